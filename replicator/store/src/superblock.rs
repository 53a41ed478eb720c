//! The superblock: identity and promise of a replica, kept twice.

use alloc::vec;
use bytes::Bytes;
use lockstep_core::id::{Epoch, Gen, Lineage, ReplicaId, VolumeId};
use uuid::Uuid;

use crate::codec::{array_at, checksum_without, put, u32_at, u64_at};
use crate::error::OpenError;
use crate::layout::{File, MAX_WRITES, SUPERBLOCK_BYTES};

const MAGIC: [u8; 8] = *b"LKSTREP1";
/// The version of the whole format that is written and understood here.
pub(crate) const VERSION: u32 = 1;
const CRC_AT: usize = 12;
const FLAG_LOSSY: u32 = 1;
const FLAG_CLONE: u32 = 2;

/// Which replica some files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which copy.
    pub replica: ReplicaId,
    /// Of which history.
    pub lineage: Lineage,
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Whose files these are.
    pub identity: Identity,
    /// Size of the volume in blocks.
    pub blocks: u64,
    /// Epoch promised (rule R2).
    pub promised: Epoch,
    /// Highest attachment number seen.
    pub attach_seq: u64,
    /// Highest generation seen as a member, as of the last promise.
    pub member_gen: Gen,
    /// The machine's boot in which it was last written.
    pub boot_id: [u8; 16],
    /// A reset of the machine lost un-flushed data, and that is not resolved yet.
    pub lossy: bool,
    /// It began with what another volume had: gaps of other volumes are gaps here too.
    pub clone: bool,
    /// Counts the writes; the copy with the higher number is in force.
    pub seq: u64,
}

/// What is wrong with one copy of a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyFault {
    /// It does not begin as a superblock does.
    #[error("no superblock there")]
    Magic,
    /// It is one of a version that is not understood here.
    #[error("version {0}")]
    Version(u32),
    /// Its checksum is wrong, or its number is none that a replica can have reached.
    #[error("wrong checksum")]
    Checksum,
}

impl Superblock {
    /// Reads the superblock in force from the head (at least 8192 bytes) of [`File::Meta`].
    ///
    /// # Errors
    /// [`OpenError::TooShort`], [`OpenError::NotAReplica`], [`OpenError::SuperblockDamaged`] if
    /// neither copy is good, [`OpenError::FutureVersion`] if either was written by a newer format.
    pub fn read(meta: &[u8]) -> Result<Self, OpenError> {
        let size = SUPERBLOCK_BYTES as usize;
        if meta.len() < 2 * size {
            let need = u64::from(2 * SUPERBLOCK_BYTES);
            return Err(OpenError::TooShort { file: File::Meta, have: meta.len() as u64, need });
        }
        let a = Self::decode(&meta[..size]);
        let b = Self::decode(&meta[size..2 * size]);
        for copy in [&a, &b] {
            if let Err(CopyFault::Version(found)) = copy {
                return Err(OpenError::FutureVersion { found: *found, supported: VERSION });
            }
        }
        match (a, b) {
            (Ok(a), Ok(b)) => Ok(if a.seq > b.seq { a } else { b }),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(CopyFault::Magic), Err(CopyFault::Magic)) => Err(OpenError::NotAReplica),
            (Err(a), Err(b)) => Err(OpenError::SuperblockDamaged { a, b }),
        }
    }

    /// How many of the two copies at the head of [`File::Meta`] are good: fewer than two is worth
    /// a warning. The next promise writes both.
    #[must_use]
    pub fn good_copies(meta: &[u8]) -> usize {
        Self::copies(meta).count()
    }

    /// Those of the two copies that are good.
    pub(crate) fn copies(meta: &[u8]) -> impl Iterator<Item = Self> {
        let places = meta.chunks_exact(SUPERBLOCK_BYTES as usize).take(2);
        places.filter_map(|copy| Self::decode(copy).ok())
    }

    /// Where the copy with this write's number goes.
    pub(crate) fn offset(&self) -> u64 {
        (self.seq % 2) * u64::from(SUPERBLOCK_BYTES)
    }

    /// The bytes of one copy.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![0; SUPERBLOCK_BYTES as usize];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, &VERSION.to_le_bytes());
        put(&mut out, 16, &self.seq.to_le_bytes());
        put(&mut out, 24, self.identity.volume.0.as_bytes());
        put(&mut out, 40, self.identity.lineage.0.as_bytes());
        put(&mut out, 56, self.identity.replica.0.as_bytes());
        put(&mut out, 72, &self.blocks.to_le_bytes());
        put(&mut out, 80, &self.promised.0.to_le_bytes());
        put(&mut out, 88, &self.attach_seq.to_le_bytes());
        put(&mut out, 96, &self.member_gen.0.to_le_bytes());
        let clone = if self.clone { FLAG_CLONE } else { 0 };
        let flags = if self.lossy { FLAG_LOSSY } else { 0 } | clone;
        put(&mut out, 100, &flags.to_le_bytes());
        put(&mut out, 104, &self.boot_id);
        let crc = checksum_without(&out, CRC_AT);
        put(&mut out, CRC_AT, &crc.to_le_bytes());
        Bytes::from(out)
    }

    fn decode(copy: &[u8]) -> Result<Self, CopyFault> {
        if copy[..8] != MAGIC {
            return Err(CopyFault::Magic);
        }
        // The checksum first: a damaged version number is damage, not the future.
        if checksum_without(copy, CRC_AT) != u32_at(copy, CRC_AT) {
            return Err(CopyFault::Checksum);
        }
        let version = u32_at(copy, 8);
        if version != VERSION {
            return Err(CopyFault::Version(version));
        }
        let seq = u64_at(copy, 16);
        if seq > MAX_WRITES {
            return Err(CopyFault::Checksum);
        }
        Ok(Self {
            identity: Identity {
                volume: VolumeId(Uuid::from_bytes(array_at(copy, 24))),
                lineage: Lineage(Uuid::from_bytes(array_at(copy, 40))),
                replica: ReplicaId(Uuid::from_bytes(array_at(copy, 56))),
            },
            blocks: u64_at(copy, 72),
            promised: Epoch(u64_at(copy, 80)),
            attach_seq: u64_at(copy, 88),
            member_gen: Gen(u32_at(copy, 96)),
            boot_id: array_at(copy, 104),
            lossy: u32_at(copy, 100) & FLAG_LOSSY != 0,
            clone: u32_at(copy, 100) & FLAG_CLONE != 0,
            seq,
        })
    }
}
