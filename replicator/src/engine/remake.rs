//! Makes a copy of a snapshot anew (D4): asks a node that has it which regions were written, and
//! for the digests of their blocks; takes what is alike from what is here, and the rest from any
//! node that can give it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use lockstep_core::id::{Epoch, Gen, NodeId, RegionIndex, Seq, SnapshotId, Tick, VolumeId};
use lockstep_core::limits::{MAX_OP_BLOCKS, RESYNC_SLOT_RETRY_MS, SCAN_REGIONS};
use lockstep_core::message::{BlockDigest, Header, Message, Payload, Refusal, Reply, Request};
use lockstep_core::range::{BLOCK_SIZE, BlockRange, BlockSet};
use lockstep_core::slots::Wish;
use lockstep_store::blake3_digest;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::fetcher::Fetcher;
use super::kept::KeptReads;
use super::slots::NodeSlots;
use crate::clock::Clock;
use crate::pool::{NewCopy, Part, Pool, PoolError, SnapshotAbout};

/// How long a node may take to answer: it reads a few MiB, perhaps slowly beside guests.
const ANSWER: Duration = Duration::from_secs(10);
/// Regions whose digests are asked for at once.
const WINDOW_REGIONS: usize = 4;
/// Windows whose digests are asked for ahead.
const WINDOWS_AHEAD: usize = 2;
/// Copies of snapshots wait for a slot behind all resyncs of volumes.
const AFTER_VOLUMES: usize = 1 << 16;

/// A copy that is to be made.
#[derive(Clone, Debug)]
pub struct Remake {
    /// The snapshot.
    pub id: SnapshotId,
    /// The volume that it was taken of.
    pub volume: VolumeId,
    /// Its size in blocks.
    pub blocks: u64,
    /// No block of it has a higher stamp.
    pub newest: Gen,
    /// In which pool.
    pub pool: String,
    /// Nodes that have it.
    pub sources: Vec<NodeId>,
    /// Other snapshots of the volume, the nearest first.
    pub nearest: Vec<SnapshotId>,
    /// Blocks that no other node gives become gaps, though these may have them.
    pub passed_over: BTreeSet<NodeId>,
    /// How long a node that answered may be silent, or fail to read, before it is asked no more;
    /// and the last one whether it answered or not.
    pub patience: Duration,
}

/// How far it is; shared with whoever wants to know.
#[derive(Debug, Default)]
pub struct RemakeProgress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    stop: CancellationToken,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remade {
    /// Bytes that came from other nodes.
    pub moved_bytes: u64,
    /// Blocks that are gaps, since no node could give them.
    pub gaps: u64,
}

/// Why a copy was not made.
#[derive(Debug, Error)]
pub enum RemakeError {
    /// It was told to stop.
    #[error("it is not wanted any more")]
    Stopped,
    /// There is no such pool.
    #[error("this node has no pool {0:?}; start its daemon with it")]
    NoPool(String),
    /// The pool should take no more.
    #[error("pool {0:?} is nearly full; make room in it")]
    NearlyFull(String),
    /// Nobody answers.
    #[error("none of the nodes that have it answers: {0}")]
    NoSource(String),
    /// Somebody who may have a block does not answer.
    #[error(
        "block {block} is bad on the nodes that answer; waiting for {}",
        names(silent.iter().chain(unable))
    )]
    Unasked {
        /// One such block.
        block: u64,
        /// Who may have it, and does not answer.
        silent: Vec<NodeId>,
        /// Who may have it, and answers that it can't be read there.
        unable: Vec<NodeId>,
    },
    /// The pool failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A file failed.
    #[error("cannot write the copy: {0}; check the disk")]
    Io(#[from] std::io::Error),
}

impl RemakeError {
    /// May another node be able to make the copy?
    pub fn is_own(&self) -> bool {
        match self {
            Self::NoPool(_) | Self::NearlyFull(_) | Self::Pool(_) | Self::Io(_) => true,
            Self::Stopped | Self::NoSource(_) | Self::Unasked { .. } => false,
        }
    }
}

impl RemakeProgress {
    /// Bytes looked at, of how many, and moved.
    pub fn told(&self) -> (u64, u64, u64) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (read(&self.done_bytes), read(&self.total_bytes), read(&self.moved_bytes))
    }

    /// Ends it soon.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Was it told to end?
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }
}

/// What it works with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) clock: Clock,
    pub(super) pool: Arc<Pool>,
    pub(super) kept: Arc<KeptReads>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) entries: Arc<NodeSlots>,
}

/// A copy that is being made.
#[derive(Debug)]
pub(super) struct Remaking {
    order: Remake,
    parts: Parts,
    progress: Arc<RemakeProgress>,
    heard: Mutex<Heard>,
}

/// What was heard from the nodes that have it.
#[derive(Debug, Default)]
struct Heard {
    /// Nodes that answered, or may do so yet, with the time since when they do not.
    patient: BTreeMap<NodeId, Option<Tick>>,
    /// Nodes that did not answer; they are not asked again in this attempt.
    silent: BTreeSet<NodeId>,
    /// Nodes that cannot read it; they are not asked again either.
    unable: BTreeSet<NodeId>,
}

impl Remaking {
    pub(super) fn new(order: Remake, parts: Parts, progress: Arc<RemakeProgress>) -> Self {
        Self { order, parts, progress, heard: Mutex::default() }
    }

    /// Makes it, durable when this returns.
    pub(super) async fn run(self) -> Result<Remade, RemakeError> {
        let (id, pool) = (self.order.id, Arc::clone(&self.parts.pool));
        if let Some(there) = pool.snapshot(id) {
            // It was made before, and is only to be named.
            return Ok(Remade { moved_bytes: 0, gaps: there.gaps });
        }
        let Remake { volume, blocks, .. } = self.order;
        let about = SnapshotAbout { volume, blocks, gaps: 0 };
        let made = self.make(&about).await;
        self.parts.entries.leave(slot_of(id));
        let ended = match made {
            Ok((copy, gaps)) => {
                let (pool, about) = (Arc::clone(&pool), SnapshotAbout { gaps, ..about });
                let sealed = blocking(move || {
                    copy.end()?;
                    pool.seal_snapshot(id, &about)
                });
                sealed.await.map(|()| gaps).map_err(RemakeError::from)
            }
            Err(error) => Err(error),
        };
        if ended.is_err() {
            let abandon = move || {
                pool.abandon_copy(id);
                Ok(())
            };
            let _ = blocking(abandon).await;
        }
        let (_, _, moved_bytes) = self.progress.told();
        ended.map(|gaps| Remade { moved_bytes, gaps })
    }

    async fn make(&self, about: &SnapshotAbout) -> Result<(Arc<NewCopy>, u64), RemakeError> {
        self.wait_for_slot().await?;
        let (id, nearest) = (self.order.id, self.order.nearest.clone());
        let (pool, own) = (Arc::clone(&self.parts.pool), about.clone());
        let copy = Arc::new(blocking(move || pool.begin_copy(id, &own, &nearest)).await?);
        let regions = self.written().await?;
        let bytes_of =
            |regions: &[RegionIndex]| self.blocks_of(regions).len() * u64::from(BLOCK_SIZE);
        self.progress.total_bytes.store(bytes_of(&regions), Ordering::Relaxed);
        let windows: Vec<Vec<RegionIndex>> =
            regions.chunks(WINDOW_REGIONS).map(<[RegionIndex]>::to_vec).collect();
        let asked = |window: Vec<RegionIndex>| async move {
            let digests = self.digests(self.blocks_of(&window)).await;
            (window, digests)
        };
        let mut windows = stream::iter(windows).map(asked).buffered(WINDOWS_AHEAD);
        let mut gaps = 0;
        while let Some((window, digests)) = windows.next().await {
            self.check()?;
            let bytes = bytes_of(&window);
            self.parts.kept.pace.wait_for(bytes).await;
            gaps += self.make_window(&copy, &window, digests?).await?;
            self.progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        drop(windows);
        Ok((copy, gaps))
    }

    async fn make_window(
        &self,
        copy: &Arc<NewCopy>,
        window: &[RegionIndex],
        digests: BTreeMap<u64, BlockDigest>,
    ) -> Result<u64, RemakeError> {
        let (own, regions) = (Arc::clone(copy), window.to_vec());
        let volume_blocks = self.order.blocks;
        let mut gaps: BlockSet = self.blocks_of(window);
        gaps = without(&gaps, |block| digests.contains_key(&block));
        let parts = blocking(move || {
            let begin = |region: &RegionIndex| {
                let range = BlockRange::of_region(*region, volume_blocks);
                let own_digests = range.iter().flat_map(|r| digests.range(r.blocks()));
                let list: Vec<BlockDigest> = own_digests.map(|(_, digest)| *digest).collect();
                own.begin_region(*region, &list)
            };
            regions.iter().map(begin).collect::<std::io::Result<Vec<Part>>>()
        });
        let parts = parts.await?;
        let missing: BTreeMap<u64, BlockDigest> =
            parts.iter().flat_map(|part| &part.missing).map(|(b, d)| (*b, *d)).collect();
        let contents = self.contents(&missing).await;
        let moved = contents.len() as u64 * u64::from(BLOCK_SIZE);
        self.progress.moved_bytes.fetch_add(moved, Ordering::Relaxed);
        let lost = missing.keys().filter(|block| !contents.contains_key(block));
        lost.for_each(|block| gaps.insert(BlockRange::new(*block, 1)));
        self.judge(&gaps)?;
        let (own, newest) = (Arc::clone(copy), self.order.newest);
        blocking(move || {
            let end = |part| own.end_region(part, &contents, (&gaps, newest));
            parts.into_iter().map(end).sum::<std::io::Result<u64>>()
        })
        .await
        .map_err(RemakeError::from)
    }

    /// May these blocks become gaps? Not while somebody who was not asked may have them.
    fn judge(&self, gaps: &BlockSet) -> Result<(), RemakeError> {
        // Who stops does not ask to the end.
        self.check_stopped()?;
        let Some(block) = gaps.blocks().next() else { return Ok(()) };
        let heard = self.lock();
        if heard.given_up().count() >= self.order.sources.len() {
            return Err(RemakeError::NoSource(names(&self.order.sources)));
        }
        if heard.given_up().any(|node| !self.order.passed_over.contains(node)) {
            let all = |nodes: &BTreeSet<NodeId>| nodes.iter().cloned().collect();
            let (silent, unable) = (all(&heard.silent), all(&heard.unable));
            return Err(RemakeError::Unasked { block, silent, unable });
        }
        Ok(())
    }

    /// Goes on, if that is wanted and there is room; keeps its slot.
    fn check(&self) -> Result<(), RemakeError> {
        if self.progress.is_stopped() {
            return Err(RemakeError::Stopped);
        }
        if self.parts.pool.is_nearly_full()? {
            return Err(RemakeError::NearlyFull(self.order.pool.clone()));
        }
        let now = self.parts.clock.now();
        self.parts.entries.tell(now, slot_of(self.order.id), Wish::Keeps);
        Ok(())
    }

    async fn wait_for_slot(&self) -> Result<(), RemakeError> {
        let (slots, slot) = (&self.parts.entries, slot_of(self.order.id));
        let wish = Wish::Wants { copies: AFTER_VOLUMES + self.order.sources.len() };
        while !slots.tell(self.parts.clock.now(), slot, wish) {
            self.check_stopped()?;
            tokio::time::sleep(Duration::from_millis(RESYNC_SLOT_RETRY_MS)).await;
        }
        self.check()
    }

    fn check_stopped(&self) -> Result<(), RemakeError> {
        if self.progress.is_stopped() { Err(RemakeError::Stopped) } else { Ok(()) }
    }

    fn blocks_of(&self, regions: &[RegionIndex]) -> BlockSet {
        let range = |region: &RegionIndex| BlockRange::of_region(*region, self.order.blocks);
        regions.iter().filter_map(range).collect()
    }

    /// All regions that were ever written.
    async fn written(&self) -> Result<Vec<RegionIndex>, RemakeError> {
        for node in &self.order.sources {
            if let Some(regions) = self.written_on(node).await {
                return Ok(regions);
            }
        }
        Err(RemakeError::NoSource(names(&self.order.sources)))
    }

    async fn written_on(&self, node: &NodeId) -> Option<Vec<RegionIndex>> {
        let (mut all, mut from) = (Vec::new(), RegionIndex(0));
        loop {
            let scan = Request::ScanKept { id: self.order.id, from, limit: SCAN_REGIONS };
            let Some(Reply::Regions { regions, next }) = self.ask(node, scan).await else {
                return None;
            };
            all.extend(regions);
            match next {
                Some(next) if next > from => from = next,
                Some(_) => return None,
                None => break,
            }
        }
        // Each once, and within the snapshot, whatever was answered.
        let (sorted, fits) = (all.is_sorted_by(|a, b| a < b), |r: &RegionIndex| {
            BlockRange::of_region(*r, self.order.blocks).is_some()
        });
        (sorted && all.iter().all(fits)).then_some(all)
    }

    /// Digests of these blocks, as far as any node that answers can give them.
    async fn digests(&self, blocks: BlockSet) -> Result<BTreeMap<u64, BlockDigest>, RemakeError> {
        let (mut found, mut left) = (BTreeMap::new(), blocks);
        for node in self.order.sources.iter().filter(|node| !self.is_given_up(node)) {
            if left.is_empty() {
                break;
            }
            let request = Request::DigestKept { id: self.order.id, blocks: left.clone() };
            let Some(Reply::Digests(digests)) = self.ask(node, request).await else { continue };
            let asked = digests.into_iter().filter(|digest| left.contains(digest.block));
            found.extend(asked.map(|digest| (digest.block, digest)));
            left = without(&left, |block| found.contains_key(&block));
        }
        Ok(found)
    }

    /// The content of these blocks, as far as any node that answers can give it.
    async fn contents(&self, wanted: &BTreeMap<u64, BlockDigest>) -> BTreeMap<u64, Bytes> {
        let mut found = BTreeMap::new();
        let blocks: Vec<u64> = wanted.keys().copied().collect();
        for piece in blocks.chunks(MAX_OP_BLOCKS as usize) {
            let mut left: BlockSet = piece.iter().map(|block| BlockRange::new(*block, 1)).collect();
            for node in self.order.sources.iter().filter(|node| !self.is_given_up(node)) {
                if left.is_empty() {
                    break;
                }
                self.read_from(node, &left, wanted, &mut found).await;
                left = without(&left, |block| found.contains_key(&block));
            }
        }
        found
    }

    /// Reads blocks of one node: all at once, or one by one if one of them is bad there.
    async fn read_from(
        &self,
        node: &NodeId,
        blocks: &BlockSet,
        wanted: &BTreeMap<u64, BlockDigest>,
        found: &mut BTreeMap<u64, Bytes>,
    ) {
        let read = |blocks: BlockSet| Request::ReadKept { id: self.order.id, blocks };
        match self.ask(node, read(blocks.clone())).await {
            Some(Reply::Data(payload)) => take(blocks, &payload, wanted, found),
            Some(Reply::Refused(Refusal::Checksum { .. })) if blocks.len() > 1 => {
                for block in blocks.blocks() {
                    let one = BlockSet::from(BlockRange::new(block, 1));
                    if let Some(Reply::Data(payload)) = self.ask(node, read(one.clone())).await {
                        take(&one, &payload, wanted, found);
                    }
                }
            }
            _ => {}
        }
    }

    /// Asks a node, again and again if it has patience with it. One that does not answer is not
    /// asked again after that; nor is one that has no such snapshot, or can't read it.
    async fn ask(&self, node: &NodeId, body: Request) -> Option<Reply> {
        let volume = self.order.volume;
        let header = Header { volume, epoch: Epoch(0), r#gen: Gen(0), seq: Seq(0), commit: Seq(0) };
        let message = Message { header, body };
        while !self.progress.is_stopped() && !self.is_given_up(node) {
            let asked = self.parts.fetcher.fetch_within(ANSWER, node, message.clone());
            let answer = tokio::select! {
                () = self.progress.stop.cancelled() => return None,
                answer = asked => answer,
            };
            let again = match answer.map(|message| message.body) {
                None => self.is_waited_for(node, true),
                Some(Reply::Refused(Refusal::Io)) => self.is_waited_for(node, false),
                Some(Reply::Refused(Refusal::Busy)) => true,
                Some(Reply::Refused(why)) if !matches!(why, Refusal::Checksum { .. }) => {
                    self.lock().unable.insert(node.clone());
                    false
                }
                Some(reply) => {
                    self.lock().patient.insert(node.clone(), None);
                    return Some(reply);
                }
            };
            if !again {
                return None;
            }
            tokio::select! {
                () = self.progress.stop.cancelled() => return None,
                () = tokio::time::sleep(Duration::from_millis(RESYNC_SLOT_RETRY_MS)) => {}
            }
        }
        None
    }

    /// A node did not answer, or could not read. Is it to be asked again?
    fn is_waited_for(&self, node: &NodeId, is_silent: bool) -> bool {
        let (now, patience) = (self.parts.clock.now(), self.order.patience);
        let mut heard = self.lock();
        let is_last = heard.given_up().count() + 1 >= self.order.sources.len();
        if is_last || heard.patient.contains_key(node) {
            let since = *heard.patient.entry(node.clone()).or_default().get_or_insert(now);
            if u128::from(now.ms_since(since)) < patience.as_millis() {
                return true;
            }
        }
        let nodes = if is_silent { &mut heard.silent } else { &mut heard.unable };
        nodes.insert(node.clone());
        false
    }

    fn is_given_up(&self, node: &NodeId) -> bool {
        let heard = self.lock();
        heard.silent.contains(node) || heard.unable.contains(node)
    }

    /// Changed by single insertions: whole even after a panic.
    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    /// The nodes that are not asked any more.
    fn given_up(&self) -> impl Iterator<Item = &NodeId> {
        self.silent.union(&self.unable)
    }
}

/// Takes those blocks of an answer that are as they are to be.
fn take(
    blocks: &BlockSet,
    payload: &Payload,
    wanted: &BTreeMap<u64, BlockDigest>,
    found: &mut BTreeMap<u64, Bytes>,
) {
    if payload.blocks() as u64 != blocks.len() || !payload.is_intact() {
        return;
    }
    let size = BLOCK_SIZE as usize;
    for (at, block) in blocks.blocks().enumerate() {
        let content = payload.data.slice(at * size..(at + 1) * size);
        if wanted.get(&block).is_some_and(|wanted| wanted.digest == blake3_digest(&content)) {
            found.insert(block, content);
        }
    }
}

/// The blocks that are not of that kind.
fn without(blocks: &BlockSet, is: impl Fn(u64) -> bool) -> BlockSet {
    blocks.blocks().filter(|block| !is(*block)).map(|block| BlockRange::new(block, 1)).collect()
}

fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    nodes.into_iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

/// A snapshot's name among the volumes that want slots.
fn slot_of(id: SnapshotId) -> VolumeId {
    VolumeId(id.0)
}

/// Runs work on files on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}
