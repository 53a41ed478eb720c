//! Every bound of the ublk door.

use std::time::Duration;

/// Requests of one queue under way: what NVMe disks offer too is more, but each is a task and a
/// buffer here.
pub(super) const DEPTH: u16 = 128;

/// Most queues of a device. One thread serves them all; more only add memory.
pub(super) const QUEUES_MAX: u16 = 8;

/// Largest read or write. Larger ones are split by the kernel.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// Largest discard, and largest range zeroed by one request: a range is locked while that is
/// done.
pub(super) const DISCARD_BYTES_MAX: u64 = 64 << 20;

/// Logarithm of the block size: logical, physical and least I/O.
pub(super) const BLOCK_SHIFT: u8 = 12;

/// Logarithm of the I/O size that is shown as the best: from here on the cost per request hardly
/// counts.
pub(super) const BEST_SHIFT: u8 = 16;

/// Time that the kernel gets to put away what a dead server left. It waits for nothing but its own
/// work queues.
pub(super) const RECOVERY_WAIT: Duration = Duration::from_secs(20);

/// Time between the beginning of a recovery and the first fetch. Before Linux 6.16 the kernel says
/// that a device waits for a server a moment before it cancels the commands of the last one, and
/// does not ask whose they are: what is fetched in that moment is cancelled too, or corrupts the
/// kernel's memory. It is a loop over a few hundred numbers by a kernel thread, microseconds unless
/// that thread is kept from running.
pub(super) const GRACE: Duration = Duration::from_millis(100);

/// Pause between two looks at something that the kernel does by itself.
pub(super) const PAUSE: Duration = Duration::from_millis(3);

const _: () = assert!(1 << BLOCK_SHIFT == crate::backend::BLOCK_BYTES);
const _: () = assert!(QUEUES_MAX <= lockstep_kernel::ublk::QUEUES_MAX);
