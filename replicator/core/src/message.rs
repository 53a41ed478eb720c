//! Messages between a primary and a replica. Machines see these values; bytes are [`crate::wire`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;
use core::hash::{Hash, Hasher};

use crate::alike::Kind;
use crate::block;
use crate::id::{
    Epoch, Gen, Incarnation, InstanceId, Lineage, NodeId, RegionIndex, ReplicaId, Seq, SnapshotId,
    VolumeId,
};
use crate::range::{BLOCK_SIZE, BlockRange, BlockSet};

/// What every message about a volume carries (rule R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch of the primary that sent it, or that is answered.
    pub epoch: Epoch,
    /// Requests: the primary's generation. Replies: the highest the replica has seen.
    pub r#gen: Gen,
    /// Requests: rises within an epoch. Replies: that of the request.
    pub seq: Seq,
    /// Requests: every mutation up to here is retired on all targets (rule R5); 0 is none.
    pub commit: Seq,
}

impl Hash for Header {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { volume, epoch, r#gen, seq, commit } = self;
        (volume, epoch, r#gen).hash(state);
        Kind::Bound.hash(commit.0, state);
        Kind::Call.hash(seq.0, state);
    }
}

/// A message about a volume, in either direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message<B> {
    /// Who, in which epoch and generation, which operation.
    pub header: Header,
    /// What.
    pub body: B,
}

/// Data of whole blocks with one CRC32C per block. `core` never reads `data`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload {
    /// Whole blocks, 4096-aligned in memory where the receiver could arrange it.
    pub data: Bytes,
    /// CRC32C (Castagnoli) of each block.
    pub crcs: Vec<u32>,
}

/// The checksums stand for the data.
impl Hash for Payload {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.crcs.hash(state);
    }
}

impl core::fmt::Debug for Payload {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} blocks {:08x?}", self.crcs.len(), &self.crcs[..self.crcs.len().min(2)])
    }
}

impl Payload {
    /// Data with its checksums computed here.
    ///
    /// # Panics
    /// If `data` is not whole blocks.
    #[must_use]
    pub fn checksummed(data: Bytes) -> Self {
        assert!(data.len().is_multiple_of(BLOCK_SIZE as usize), "not whole blocks: {}", data.len());
        let crcs = data.chunks_exact(BLOCK_SIZE as usize).map(block::crc).collect();
        Self { data, crcs }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.crcs.len()
    }

    /// The part from block `from`, `count` blocks long; shares the memory.
    ///
    /// # Panics
    /// If it reaches beyond the end.
    #[must_use]
    pub fn slice(&self, from: usize, count: usize) -> Self {
        let bytes = from * BLOCK_SIZE as usize..(from + count) * BLOCK_SIZE as usize;
        Self { data: self.data.slice(bytes), crcs: self.crcs[from..from + count].to_vec() }
    }

    /// Does every block match its checksum?
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.data.len() == self.crcs.len() * BLOCK_SIZE as usize
            && self
                .data
                .chunks_exact(BLOCK_SIZE as usize)
                .zip(&self.crcs)
                .all(|(block, crc)| block::crc(block) == *crc)
    }
}

/// One block of a resync write (rule S4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResyncBlock {
    /// Which block.
    pub block: u64,
    /// The source's stamp, which the target adopts whether or not the content moves.
    pub stamp: Gen,
    /// What the target has to do with the content.
    pub content: ResyncContent,
}

/// Where a resynced block's content comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResyncContent {
    /// The next block of the message's payload.
    Data,
    /// Zeroes; deallocate if possible.
    Zero,
    /// The target has it already (equal digest).
    Same,
}

/// 128-bit digest (BLAKE3, truncated) of a block's content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

impl core::fmt::Debug for Digest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// A block's content and history as its replica knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockDigest {
    /// Which block.
    pub block: u64,
    /// Generation that last wrote it; 0 is never.
    pub stamp: Gen,
    /// Is the content all zeroes?
    pub zero: bool,
    /// Of the content as read from the disk.
    pub digest: Digest,
    /// Is it what one write wrote?
    pub wholeness: Wholeness,
}

/// Is the content of a block what one write wrote? A power cut may leave a mixture of two, on a
/// disk that writes less than a block at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wholeness {
    /// Not told: lost on a connection of wire version 2 or 1.
    #[default]
    Unknown,
    /// Its checksum proves it.
    Whole,
    /// It may be, but nothing proves it: its region was being written when the replica stopped.
    Doubtful,
}

/// What a primary asks of a replica, or one replica of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Promise this epoch: refuse all older ones from now on (rule R2). Opens the session.
    Promise {
        /// The replica meant; a wiped copy has a new id and refuses.
        replica: ReplicaId,
        /// The history the replica must belong to.
        lineage: Lineage,
        /// The history that `lineage` goes on from after a forced recovery (T11): a replica that
        /// belongs to it changes over. Lost on a connection of wire version 1.
        parent: Option<Lineage>,
        /// The record proves that it promised this epoch, or a later one. A replica that did not
        /// was put back to an older image, and refuses (R7). Lost in wire version 1.
        at_least: Epoch,
        /// The claim that holds the epoch.
        instance: InstanceId,
        /// Counts attachments; persisted as a maximum.
        attach_seq: u64,
    },
    /// Read blocks, in order; answered by [`Reply::Data`].
    Read {
        /// What to read.
        blocks: BlockSet,
    },
    /// Write. Answered by [`Reply::Done`] once applied; with `fua` once durable.
    Write {
        /// Where.
        range: BlockRange,
        /// Durable before the answer?
        fua: bool,
        /// What; as many blocks as `range` has.
        payload: Payload,
    },
    /// Write zeroes.
    Zero {
        /// Where.
        range: BlockRange,
        /// Durable before the answer?
        fua: bool,
        /// May the space be given back to the pool?
        deallocate: bool,
    },
    /// Make every write answered before this arrived durable.
    Flush,
    /// As `Flush`, to a resync's target that has got everything (S5): whatever a lost cache took
    /// from it is back, so from now on it counts as one that lost nothing (P4). Its untrusted
    /// regions stay so (m35). A peer of wire version 2 or 1 is asked for a flush alone.
    Complete,
    /// Generation and commit watermark. Not answered.
    Commit {
        /// The replica is a member in this generation: whatever it held from older epochs, and
        /// its untrusted regions, are settled (P7, T6).
        member: bool,
    },
    /// Put blocks into the activity log and the ring without writing them (rule P5).
    Mark {
        /// Which blocks.
        blocks: BlockSet,
    },
    /// Which regions have a block stamped `since` or later, or an untrusted one?
    Scan {
        /// Lowest stamp of interest.
        since: Gen,
        /// First region to look at.
        from: RegionIndex,
        /// Most regions to answer.
        limit: u32,
    },
    /// Stamp and digest of the blocks stamped `since` or later (0: all) or untrusted.
    Digest {
        /// Among these.
        blocks: BlockSet,
        /// Lowest stamp of interest.
        since: Gen,
    },
    /// Bring blocks to the source's content and stamps (rule S4).
    Resync {
        /// In ascending order; those with content `Data` take the payload's blocks in turn.
        blocks: Vec<ResyncBlock>,
        /// Data of the blocks that need it.
        payload: Payload,
    },
    /// Clean the activity log: everything is committed and flushed (T8).
    Close,
    /// Nothing but an answer: it shows that this epoch is still the promised one, which renews
    /// the lease for reads. A peer of wire version 1 is asked for an empty scan instead.
    Renew,
    /// As [`Request::Resync`], but the replica fetches the data from another one by itself
    /// (rule S8). Refused with [`Refusal::NotPulled`] if it can't have them. Since wire version 3,
    /// and only for a replica that said [`Promised::pulls`].
    Pull {
        /// The node that has the data.
        node: NodeId,
        /// Its copy.
        source: ReplicaId,
        /// As in [`Request::Resync`].
        blocks: Vec<ResyncBlock>,
    },
    /// From a replica that was told to pull, to the source: read blocks, in order; answered by
    /// [`Reply::Data`] if the source has a session of the header's epoch. Since wire version 3.
    Fetch {
        /// The copy that is meant.
        source: ReplicaId,
        /// What to read.
        blocks: BlockSet,
    },
    /// Be the target of a resync in this session. Answered by [`Reply::Done`], or with
    /// [`Refusal::Busy`] if the node's replicas are the target of enough others. A peer of wire
    /// version 2 or less is asked for an empty scan instead: there is no limit.
    Enter {
        /// Copies in sync; volumes with the fewest come first.
        copies: u32,
    },
    /// Be at least this large, durably (T10); what is new is zeroes. Answered by [`Reply::Done`],
    /// or with [`Refusal::NoRoom`], and then nothing has changed. Since wire version 4, as are the
    /// next four, and only for a replica that told its size ([`Promised::blocks`]).
    Extend {
        /// Size in blocks; less than it has changes nothing.
        blocks: u64,
    },
    /// Make all that a snapshot needs durable as far as that goes beside writes, so that taking
    /// one is short. Refused with [`Refusal::NoReflink`] if it can't take any.
    Prepare,
    /// Keep a copy of all blocks as they are under this id (D1). No write is under way. Answered
    /// as soon as writes can go on: a power cut may still take the copy.
    Snapshot {
        /// Its id; refused as malformed if there is one.
        id: SnapshotId,
    },
    /// Answered when the copy that was kept last, under this id, is durable; refused with
    /// [`Refusal::Io`] if there is no such copy, or it failed.
    Seal {
        /// Its id.
        id: SnapshotId,
    },
    /// Remove that copy, if it is there.
    DropSnapshot {
        /// Its id.
        id: SnapshotId,
    },
    /// From a node that makes a copy of a snapshot anew, to one that has it (D4), as are the next
    /// two: which regions were ever written? Answered by [`Reply::Regions`]. A snapshot does not
    /// change, so none of them needs a session. Since wire version 4.
    ScanKept {
        /// The snapshot.
        id: SnapshotId,
        /// First region to look at.
        from: RegionIndex,
        /// Most regions to answer.
        limit: u32,
    },
    /// Stamp and digest of blocks of a snapshot. Those that this copy can't give are left out.
    DigestKept {
        /// The snapshot.
        id: SnapshotId,
        /// Which blocks.
        blocks: BlockSet,
    },
    /// Read blocks of a snapshot, in order; answered by [`Reply::Data`].
    ReadKept {
        /// The snapshot.
        id: SnapshotId,
        /// What to read.
        blocks: BlockSet,
    },
}

impl Request {
    /// Does it put an entry into the replica's ring?
    #[must_use]
    pub fn mutates(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::Zero { .. }
            | Self::Mark { .. }
            | Self::Resync { .. }
            | Self::Pull { .. } => true,
            Self::Promise { .. }
            | Self::Read { .. }
            | Self::Flush
            | Self::Complete
            | Self::Commit { .. }
            | Self::Scan { .. }
            | Self::Digest { .. }
            | Self::Close
            | Self::Fetch { .. }
            | Self::Enter { .. }
            | Self::Extend { .. }
            | Self::Prepare
            | Self::Snapshot { .. }
            | Self::Seal { .. }
            | Self::DropSnapshot { .. }
            | Self::ScanKept { .. }
            | Self::DigestKept { .. }
            | Self::ReadKept { .. }
            | Self::Renew => false,
        }
    }

    /// Is it about a snapshot that a node has, whatever became of the volume?
    #[must_use]
    pub fn is_about_kept(&self) -> bool {
        matches!(self, Self::ScanKept { .. } | Self::DigestKept { .. } | Self::ReadKept { .. })
    }
}

/// A replica's answer to a promise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promised {
    /// Random per open of the files.
    pub incarnation: Incarnation,
    /// Restarted with a non-empty activity log that is not resolved yet.
    pub unclean: bool,
    /// Unclean, and the node lost power or was reset: un-flushed data may be gone.
    pub lossy: bool,
    /// Never written: every block is zero and stamped 0.
    pub fresh: bool,
    /// Highest generation it was a member of, as far as it is durable.
    pub member_gen: Gen,
    /// Blocks written but not known to be committed.
    pub ring: BlockSet,
    /// Regions whose content and stamps can't be trusted until resolved.
    pub unresolved: Vec<RegionIndex>,
    /// Operations it lets this primary have in flight.
    pub credit_ops: u32,
    /// Bytes it lets this primary have in flight.
    pub credit_bytes: u64,
    /// Milliseconds since it last answered an older epoch, or since it was opened, if that is
    /// later; a longer time may be told as a shorter one. None from a peer of wire version 1.
    pub silent_ms: Option<u32>,
    /// Can it be told to [`Request::Pull`]? Never on a connection of wire version 2 or less.
    pub pulls: bool,
    /// Its size: what the record says, or more. None on a connection of wire version 3 or less:
    /// then it can be neither extended nor asked for snapshots.
    pub blocks: Option<u64>,
}

/// Why a replica will not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A newer epoch is promised (rule R1): the asking primary is fenced.
    Epoch {
        /// The epoch that is promised.
        promised: Epoch,
    },
    /// No such replica here, or another lineage or id.
    NoSuchReplica,
    /// It was put back to an older image: it promised less than the record proves (rule R7).
    PutBack {
        /// The epoch that it promised by what it has now.
        promised: Epoch,
    },
    /// No promise was made on this connection; start with one.
    NoSession,
    /// The replica has failed and waits to be reopened.
    Faulted,
    /// The disk could not do it. The replica is faulted unless it was a read.
    Io,
    /// A block's content does not match its checksum.
    Checksum {
        /// Which block.
        block: u64,
    },
    /// The request breaks the protocol (range, size or credit).
    Malformed,
    /// The data could not be had from the other replica; nothing was changed. Ask for it in
    /// another way.
    NotPulled,
    /// Enough resyncs end on this node. Ask again after a while.
    Busy,
    /// Its pool has no room for that; nothing was changed.
    NoRoom,
    /// The file system of its pool can't share blocks between files, which snapshots need.
    NoReflink,
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// To [`Request::Promise`].
    Promised(Box<Promised>),
    /// To [`Request::Read`]: the blocks asked for, in order.
    Data(Payload),
    /// To everything that has no other answer.
    Done,
    /// To [`Request::Scan`].
    Regions {
        /// Regions of interest, ascending.
        regions: Vec<RegionIndex>,
        /// Where to go on, if there is more.
        next: Option<RegionIndex>,
    },
    /// To [`Request::Digest`], ascending.
    Digests(Vec<BlockDigest>),
    /// To any.
    Refused(Refusal),
}
