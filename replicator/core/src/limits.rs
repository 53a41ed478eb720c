//! Every limit of the protocol, with its reason and its relation to the others.

/// Largest volume: 16 TiB in 4 KiB blocks. Keeps region indices and tag offsets far from overflow.
pub const MAX_VOLUME_BLOCKS: u64 = 1 << 32;
/// Largest single replicated operation: 256 blocks (1 MiB). Guest requests are cut into pieces of
/// this size, which bounds the range lock's look-back and a frame's size.
pub const MAX_OP_BLOCKS: u32 = 256;
/// Largest guest request after which the door must cut: 32 MiB, the usual limit of NBD clients.
/// Discards and zeroing may be larger; they carry no data.
pub const MAX_GUEST_BLOCKS: u32 = 8192;
/// Largest metadata part of a frame: see the assertions on it below.
pub const MAX_BODY_BYTES: u32 = 2 << 20;
/// Largest data part of a frame: one operation.
pub const MAX_DATA_BYTES: u32 = MAX_OP_BLOCKS * crate::range::BLOCK_SIZE;
/// Operations that a replica lets one primary have in flight (its credit in operations).
pub const CREDIT_OPS: u32 = 512;
/// Bytes that a replica lets one primary have in flight (its credit in bytes).
pub const CREDIT_BYTES: u64 = 64 << 20;
/// Guest requests that may wait in the primary before the driver must stop reading its door.
pub const MAX_QUEUED_REQUESTS: usize = 4096;
/// Highest epoch and highest attachment number of a record. At a million claims a second it lasts
/// longer than any disk, and nothing that counts on from it overflows.
pub const MAX_CLAIMS: u64 = 1 << 62;
/// Most copies of a volume.
pub const MAX_REPL: u8 = 5;
/// Most entries in a record: copies, plus those on their way in or out.
pub const MAX_REPLICA_ENTRIES: usize = 16;

/// Heartbeat of a node pair.
pub const HEARTBEAT_MS: u64 = 500;
/// Silence after which a connection counts as dead: four heartbeats.
pub const SESSION_DEAD_MS: u64 = 2000;
/// How long a lost member may take to come back before its removal starts (T5). Together with
/// [`SESSION_DEAD_MS`] this is the 3 s after which a replica counts as failed.
pub const MEMBER_GRACE_MS: u64 = 1000;
/// An operation unanswered for so long on a live connection fails its replica: a hung disk looks
/// like a dead node.
pub const OP_FAIL_MS: u64 = 3000;
/// A machine that is woken so much later than it asked for stood still meanwhile: its process was
/// stopped, or its node. What it waited for gets the time again: one heartbeat, which is more than
/// a busy scheduler takes.
pub const STANDSTILL_MS: u64 = HEARTBEAT_MS;
/// How often in a row one wait gets its time again: a member that is dead has to be removed also
/// on a node on which nothing is ever done in time.
pub const STANDSTILLS_EXCUSED: u8 = 3;
/// A read unanswered for so long is asked of another member too.
pub const READ_HEDGE_MS: u64 = 1000;
/// A member is slow if its operations take so many times as long as those of the slowest of the
/// fastest half of all members. Disks of one kind differ by less, also under load.
pub const SLOW_FACTOR: u64 = 10;
/// And at least so long on average: what is shorter holds nobody up, and may be the network's.
pub const SLOW_FLOOR_MS: u64 = 50;
/// How long is measured at a time, and how many operations of each member are needed to tell.
pub const SLOW_INTERVAL_MS: u64 = 5000;
/// See [`SLOW_INTERVAL_MS`].
pub const SLOW_OPS: u64 = 8;
/// An interval that has too few by then tells nothing.
pub const SLOW_PATIENCE_MS: u64 = 60_000;
/// In so many intervals in a row a member has to be slow before it is removed: what ends by itself
/// within 20 s costs less than a resync.
pub const SLOW_INTERVALS: u32 = 4;
/// More bad blocks than this on one member, within [`ROT_WINDOW_MS`], and its disk is failing.
pub const ROT_BLOCKS: u32 = 16;
/// See [`ROT_BLOCKS`].
pub const ROT_WINDOW_MS: u64 = 600_000;
/// How long a member that was removed although it answers stays out, doubled each time, and how
/// often it is doubled at most (to about an hour).
pub const UNFIT_BACKOFF_MS: u64 = 60_000;
/// See [`UNFIT_BACKOFF_MS`].
pub const UNFIT_DOUBLINGS: u32 = 6;
/// Ranges with bad blocks that wait to be mended; what finds no place is met again.
pub const MEND_QUEUE: usize = 1024;
/// Pause before a replica that refused a promise is asked again: it may have been reopened.
pub const PROMISE_RETRY_MS: u64 = 500;
/// P3: how long promotion waits for the other members after the first has answered.
pub const PROMISE_WAIT_MS: u64 = 2000;
/// P3: how long promotion waits for a member that can't even be connected to. Leaving it out costs
/// a resync; waiting costs the guest.
pub const CONNECT_WAIT_MS: u64 = 500;
/// P3: how long promotion waits for a silent member when all that answered lost un-flushed data.
pub const LOSSY_GRACE_MS: u64 = 60_000;
/// How long a member's answer lets a primary serve reads, from when it sent the question and by
/// its own clock.
pub const LEASE_MS: u64 = 1600;
/// A read that finds an answer older than this has the lease renewed, before it runs out.
pub const RENEW_MS: u64 = LEASE_MS / 2;
/// How long a member must have been silent to older epochs before a new primary may open while
/// other members have not promised. Long enough if no clock's rate is wrong by more than 20 %.
pub const LEASE_WAIT_MS: u64 = 2500;
/// One attempt at the record store.
pub const CAS_TIMEOUT_MS: u64 = 2000;
/// Pause before the record store is asked again after a failure.
pub const CAS_RETRY_MS: u64 = 100;
/// Idle time after which the commit watermark is sent on its own.
pub const COMMIT_IDLE_MS: u64 = 10;
/// P5: largest repair during promotion; a member that needs more is left out and resynced later.
pub const MAX_REPAIR_BLOCKS: u64 = (64 << 20) / crate::range::BLOCK_SIZE as u64;
/// Windows (of one region each) that one resync has in flight: 4 MiB, enough to keep a disk and a
/// network busy.
pub const RESYNC_WINDOWS: usize = 4;
/// The same while the guest writes: a write waits for the windows before it on the disk.
pub const RESYNC_WINDOWS_GUARDED: usize = 2;
/// How long a replica that pulls waits for the content, a connection included. Its primary waits
/// for [`RESYNC_LAG_MS`], and then has time to move the content itself.
pub const FETCH_MS: u64 = 800;
/// Reads for pulls of others that a replica has in flight: two targets' windows.
pub const FETCHES: usize = 2 * RESYNC_WINDOWS;
/// Windows of one resync whose content could not be pulled, after which the primary moves all of
/// it.
pub const PULL_FAILURES: u32 = 3;
/// Regions asked for in one scan.
pub const SCAN_REGIONS: u32 = 1024;
/// Runs of neighbouring regions that a resync remembers to be copied: 1 MiB of memory. Scanning
/// waits when there are more.
pub const SCAN_AHEAD_RUNS: usize = 1 << 17;
/// Ranges of blocks in an answer to a promise, and in what is logged with one request. A ring with
/// more is told in whole regions.
pub const RING_RANGES: usize = 1 << 15;
/// Pause before a failed resync starts again.
pub const RESYNC_BACKOFF_MS: u64 = 500;
/// The same after a target could not keep up with the guest, doubled with each time in a row, and
/// how often it is doubled at most (to 8 s).
pub const RESYNC_BACKOFF_DOUBLINGS: u32 = 4;
/// Pause before another attempt when a block can be read on no copy: only the guest's writing it
/// anew helps.
pub const RESYNC_UNREADABLE_MS: u64 = 30_000;
/// How long a resync's target may owe an answer: writes of the guest that overlap wait for it.
/// Less than [`OP_FAIL_MS`], since a target is no member yet.
pub const RESYNC_LAG_MS: u64 = 2000;
/// Blocks that no member can give which the report of a scrub counts, each once.
pub const SCRUB_BLOCKS: usize = 1 << 16;
/// Resyncs that the primaries of one node run at a time.
pub const RESYNC_SLOTS: usize = 2;
/// Pause before a primary asks again for a slot; it is forgotten if it does not for so long.
pub const RESYNC_SLOT_RETRY_MS: u64 = 250;
/// See [`RESYNC_SLOT_RETRY_MS`].
pub const RESYNC_SLOT_PATIENCE_MS: u64 = 4 * RESYNC_SLOT_RETRY_MS;
/// Resyncs that the replicas of one node are the target of at a time, if nothing else is set.
pub const RESYNC_ENTRIES: usize = 2;
/// A target whose primary has asked nothing for so long makes room for others: the primary may be
/// gone although its node is connected. Several times [`OP_FAIL_MS`].
pub const RESYNC_ENTRY_MS: u64 = 15_000;
/// A target says to its node so often that it is still one, while its primary asks something.
pub const RESYNC_ENTRY_KEEP_MS: u64 = 1000;
/// How long a task (another size, the preparation of a snapshot) may take; it holds nobody up.
pub const TASK_MS: u64 = 30_000;
/// The same of the preparation of a snapshot: long enough for a million extents to be copied on a
/// busy machine.
pub const SNAPSHOT_PREPARE_MS: u64 = 60_000;
/// How long the guest's requests may wait for a snapshot, after which it is given up: long enough
/// for a file that is not badly fragmented, shorter than what a guest takes for an outage.
pub const SNAPSHOT_PAUSE_MS: u64 = 500;
/// A resync that has got no further for so long is reported and begins anew.
pub const RESYNC_STALL_MS: u64 = 60_000;
/// Bytes per second that a resync beside a writing guest begins with, falls to at least, and is
/// raised by after each interval. The start is what one spinning disk can do beside a guest; the
/// floor brings a TiB over within about a day.
pub const RESYNC_RATE_START: u64 = 50 << 20;
/// See [`RESYNC_RATE_START`].
pub const RESYNC_RATE_FLOOR: u64 = 10 << 20;
/// See [`RESYNC_RATE_START`].
pub const RESYNC_RATE_STEP: u64 = 25 << 20;
/// How long latencies are gathered before the rate is changed, and how many are needed to tell a
/// 99th percentile.
pub const RESYNC_INTERVAL_MS: u64 = 1000;
/// See [`RESYNC_INTERVAL_MS`].
pub const RESYNC_INTERVAL_WRITES: u64 = 100;
/// Writes in one interval from which on a guest is protected.
pub const RESYNC_GUARD_WRITES: u64 = 20;
/// The 99th percentile beside a resync, in tenths of the usual one, from which on a guest suffers.
pub const RESYNC_TOLERANCE_TENTHS: u64 = 13;
/// How long the windows in flight take to end before an interval without them is measured.
pub const RESYNC_SETTLE_MS: u64 = 100;
/// Intervals at the lowest rate without relief after which what is usual is measured anew: the
/// guest may do something else by now.
pub const RESYNC_FLOOR_INTERVALS: u32 = 30;

const _: () = assert!(MAX_GUEST_BLOCKS.is_multiple_of(MAX_OP_BLOCKS));
const _: () = assert!(SESSION_DEAD_MS >= 4 * HEARTBEAT_MS);
// The lease of a clock that is a fifth too slow, waited for by one that is a fifth too fast.
const _: () = assert!(LEASE_WAIT_MS * 80 >= LEASE_MS * 120);
// A take-over follows a silence; then, and after the wait for members without a connection, no
// lease is left to be waited for.
const _: () = assert!(LEASE_WAIT_MS <= SESSION_DEAD_MS + CONNECT_WAIT_MS);
// An idle reader's question is answered before the lease that it had runs out.
const _: () = assert!(LEASE_MS - RENEW_MS >= HEARTBEAT_MS);
const _: () = assert!(CREDIT_BYTES >= 4 * MAX_DATA_BYTES as u64);
// A promise tells at most 120,000 regions, as many as an activity log holds: each may be in the
// ring, as a range of 12 bytes, and unresolved, with 4; besides them there are 64 bytes.
const _: () = assert!(120_000 * (12 + 4) + 64 < MAX_BODY_BYTES);
const _: () = assert!(RING_RANGES * 12 + 120_000 * 4 + 64 < MAX_BODY_BYTES as usize);
const _: () = assert!(MAX_VOLUME_BLOCKS / 256 <= u32::MAX as u64);
const _: () = assert!(READ_HEDGE_MS < OP_FAIL_MS);
const _: () = assert!(RESYNC_WINDOWS_GUARDED <= RESYNC_WINDOWS);
const _: () = assert!(2 * FETCH_MS < RESYNC_LAG_MS);
const _: () = assert!(RESYNC_LAG_MS < OP_FAIL_MS && RESYNC_LAG_MS >= SESSION_DEAD_MS);
const _: () = assert!(RESYNC_RATE_FLOOR <= RESYNC_RATE_START && RESYNC_RATE_STEP > 0);
const _: () = assert!(RESYNC_GUARD_WRITES <= RESYNC_INTERVAL_WRITES);
const _: () = assert!(SLOW_PATIENCE_MS > SLOW_INTERVAL_MS && SLOW_FLOOR_MS < OP_FAIL_MS);
const _: () = assert!(SNAPSHOT_PAUSE_MS < OP_FAIL_MS && TASK_MS > 2 * OP_FAIL_MS);
const _: () = assert!(SNAPSHOT_PREPARE_MS >= TASK_MS);
const _: () = assert!(RESYNC_STALL_MS > 10 * OP_FAIL_MS);
const _: () = assert!(RESYNC_ENTRY_MS > 4 * OP_FAIL_MS);
const _: () = assert!(RESYNC_ENTRY_MS > 4 * RESYNC_ENTRY_KEEP_MS);
