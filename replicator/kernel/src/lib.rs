//! Safe calls for what a kernel offers to those who make block devices.
//!
//! The one room of the project with `unsafe` in it: each call is as thin as it can be, checks what
//! it is given, and knows nothing of volumes.
#![expect(unsafe_code, reason = "the kernel is touched here, and nowhere else")]

pub mod bindmount;
pub mod block;
pub mod fds;
pub mod freeze;
pub mod loopback;
pub mod map;
pub mod memory;
pub mod nbd;
mod netlink;
pub mod privilege;
pub mod share;
pub mod superblock;
pub mod ublk;
