//! The user-space block driver `ublk_drv`: its commands, and the queues of one device.
//!
//! [`Control`] makes, starts, stops and removes devices. [`Queues`] is the side that serves one:
//! all its queues in one ring, used by one thread. Numbers and layouts are those of
//! `linux/ublk_cmd.h`; what is used here is there from Linux 6.5 on, unless it says otherwise.

mod control;
mod queues;
mod uapi;

pub use control::{Control, DeviceInfo, DeviceState, NewDevice, Parameters};
pub use queues::{Bell, Event, Queues};
pub use uapi::{Descriptor, Features, Operation, QUEUE_DEPTH_MAX, QUEUES_MAX};
