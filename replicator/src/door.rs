//! An attached volume as doors see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lockstep_attach::{Backend, Errno, ExportInfo, ReadData, Segment, ZeroMode};
use lockstep_core::guest::{GuestError, GuestOp, GuestReply};
use lockstep_core::id::{InstanceId, NodeId, VolumeId};
use lockstep_core::limits::MAX_QUEUED_REQUESTS;
use lockstep_core::message::Payload;
use lockstep_core::primary::{Phase, Status, Task, TaskDone, TaskError};
use lockstep_core::range::{BLOCK_SIZE, BlockRange};
use lockstep_core::throttle::RateLimits;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::engine::EngineError;
use crate::engine::{Guest, GuestResult, PrimaryInput};
use crate::pace::Pace;

/// Data of writes that wait or run, and of reads that are asked for, in blocks: 128 MiB.
const BLOCKS_MAX: u32 = (128 << 20) / BLOCK_SIZE;

const _: () = assert!(BLOCKS_MAX >= 2 * lockstep_core::limits::MAX_GUEST_BLOCKS);

/// An attached volume: what a door serves, and what its owner watches. Clones are the same
/// attachment. When the attachment ends, requests fail; they never hang for ever.
#[derive(Clone, Debug)]
pub struct VolumeHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    volume: VolumeId,
    instance: InstanceId,
    phase: watch::Receiver<Phase>,
    inputs: mpsc::UnboundedSender<PrimaryInput>,
    size_bytes: Arc<AtomicU64>,
    write_through: AtomicBool,
    requests: Arc<Semaphore>,
    blocks: Arc<Semaphore>,
    pace: Pace,
}

impl VolumeHandle {
    /// The door's side of a primary's task.
    pub(crate) fn new(
        volume: VolumeId,
        instance: InstanceId,
        phase: watch::Receiver<Phase>,
        inputs: mpsc::UnboundedSender<PrimaryInput>,
        size_bytes: Arc<AtomicU64>,
    ) -> Self {
        let requests = Arc::new(Semaphore::new(MAX_QUEUED_REQUESTS));
        let blocks = Arc::new(Semaphore::new(BLOCKS_MAX as usize));
        let write_through = AtomicBool::new(false);
        let shared = Shared {
            volume,
            instance,
            phase,
            inputs,
            size_bytes,
            write_through,
            requests,
            blocks,
            pace: Pace::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether each write is durable when it is answered, whatever the client asks for.
    pub(crate) fn set_write_through(&self, write_through: bool) {
        self.shared.write_through.store(write_through, Ordering::Relaxed);
    }

    /// How fast it may be used, from now on.
    pub(crate) fn set_limits(&self, limits: RateLimits) {
        self.shared.pace.set(limits);
    }

    /// Whether a change that asks for `fua` or not is to be durable when it is answered.
    fn durable(&self, fua: bool) -> bool {
        fua || self.shared.write_through.load(Ordering::Relaxed)
    }

    /// Which volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.shared.volume
    }

    /// Which claim.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.shared.instance
    }

    /// The phase, now and as it changes. [`Phase::Closed`] and [`Phase::Fenced`] are final: then
    /// the owner takes the doors down.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.clone()
    }

    /// Waits until the volume is served (active or suspended).
    ///
    /// # Errors
    /// [`EngineError::Fenced`] if it was taken over meanwhile, [`EngineError::NotAttached`] if it
    /// was detached, [`EngineError::AttachTimeout`] after `limit`; the attempt goes on then.
    pub async fn served(&self, limit: Duration) -> Result<(), EngineError> {
        let volume = self.volume();
        let mut phase = self.phase();
        let settled = phase.wait_for(|p| !matches!(p, Phase::Claiming | Phase::Recovering));
        let result = timeout(limit, settled).await.map(|settled| settled.map(|phase| *phase));
        match result {
            Ok(Ok(Phase::Active | Phase::Suspended)) => Ok(()),
            Ok(Ok(Phase::Fenced)) => {
                let by = self.successor().await;
                Err(EngineError::Fenced { volume, by })
            }
            Ok(Ok(_) | Err(_)) => Err(EngineError::NotAttached(volume)),
            Err(_) => {
                let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                let why = match *self.shared.phase.borrow() {
                    Phase::Claiming => "claiming it in the record store",
                    _ => "waiting for promises of its replicas",
                };
                Err(EngineError::AttachTimeout { volume, waited_ms, why: why.into() })
            }
        }
    }

    /// The node of the primary that took over, if it is known.
    async fn successor(&self) -> Option<NodeId> {
        let primary = self.status().await?.record?.primary?;
        (primary.instance != self.instance()).then_some(primary.node)
    }

    /// The primary's own status; `None` if its task has ended.
    pub(crate) async fn status(&self) -> Option<Status> {
        let (asker, answer) = oneshot::channel();
        self.send(PrimaryInput::Status(asker));
        answer.await.ok()
    }

    /// Has the primary do something with the volume as a whole; `None` if its task has ended.
    pub(crate) async fn task(&self, task: Task) -> Option<Result<TaskDone, TaskError>> {
        let (reply, answer) = oneshot::channel();
        self.send(PrimaryInput::Task { task, reply });
        answer.await.ok()
    }

    /// Tells the primary something. One that has ended hears nothing.
    pub(crate) fn send(&self, input: PrimaryInput) {
        let _ = self.shared.inputs.send(input);
    }

    /// Has the attachment come to its end?
    pub(crate) fn is_over(&self) -> bool {
        matches!(*self.shared.phase.borrow(), Phase::Closed | Phase::Fenced)
            || self.shared.inputs.is_closed()
    }

    /// Hands a request to the primary and waits for its answer. `blocks` is the data it carries.
    async fn submit(&self, op: GuestOp, blocks: u32) -> Result<GuestReply, Errno> {
        let shared = &self.shared;
        // What was written can always be made durable.
        if !matches!(op, GuestOp::Flush) {
            let bytes = u64::from(blocks) * u64::from(BLOCK_SIZE);
            shared.pace.pass(bytes, &shared.phase).await;
        }
        let blocks = blocks.min(BLOCKS_MAX);
        // The semaphores are never closed.
        let requests = Arc::clone(&shared.requests).acquire_owned().await;
        let blocks = Arc::clone(&shared.blocks).acquire_many_owned(blocks).await;
        let (Ok(requests), Ok(blocks)) = (requests, blocks) else { return Err(Errno::Shutdown) };
        let (reply, answer) = oneshot::channel();
        self.send(PrimaryInput::Guest(Guest { op, reply, permits: [requests, blocks] }));
        let answer: GuestResult = answer.await.unwrap_or(Err(GuestError::Closing));
        answer.map_err(|e| match e {
            GuestError::Fenced | GuestError::Io => Errno::Io,
            GuestError::Closing => Errno::Shutdown,
            GuestError::Invalid => Errno::Invalid,
        })
    }

    async fn change(&self, op: GuestOp, blocks: u32) -> Result<(), Errno> {
        self.submit(op, blocks).await.map(|_| ())
    }
}

/// Bytes to blocks. The door has checked them; what a wrong door sends is refused, not rounded.
fn range(offset: u64, len: u64) -> Result<BlockRange, Errno> {
    let block = u64::from(BLOCK_SIZE);
    if !offset.is_multiple_of(block) || !len.is_multiple_of(block) || len == 0 {
        return Err(Errno::Invalid);
    }
    let count = u32::try_from(len / block).map_err(|_| Errno::Overflow)?;
    Ok(BlockRange::new(offset / block, count))
}

impl Backend for VolumeHandle {
    fn info(&self) -> ExportInfo {
        let size_bytes = self.shared.size_bytes.load(Ordering::Relaxed);
        ExportInfo { size_bytes, read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        let range = range(offset, u64::from(len))?;
        match self.submit(GuestOp::Read { range }, range.count).await? {
            GuestReply::Data(pieces) => {
                Ok(pieces.into_iter().map(Segment::Data).collect::<Vec<_>>().into())
            }
            GuestReply::Done => Err(Errno::Io),
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        let range = range(offset, data.len() as u64)?;
        // The door's buffer is private and nobody writes to it any more: no copy is needed.
        let payload = Payload::checksummed(data);
        let fua = self.durable(fua);
        self.change(GuestOp::Write { range, fua, payload }, range.count).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.change(GuestOp::Flush, 0).await
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        let range = range(offset, len)?;
        // Zeroing is always fast: it moves no data.
        let (fua, deallocate) = (self.durable(mode.fua), !mode.no_hole);
        self.change(GuestOp::Zero { range, fua, deallocate }, 0).await
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        let range = range(offset, len)?;
        let fua = self.durable(fua);
        self.change(GuestOp::Zero { range, fua, deallocate: true }, 0).await
    }
}
