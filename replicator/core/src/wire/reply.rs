//! Bodies of replies.

use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;

use super::codec::{Malformed, Reader, Writer};
use super::{Kind, MAX_LIST_BLOCKS, read_crcs, write_crcs};
use crate::id::{Epoch, Gen, Incarnation};
use crate::message::{BlockDigest, Digest, Payload, Promised, Refusal, Reply, Wholeness};

/// Bytes of an entry of [`Reply::Digests`].
const BLOCK_DIGEST_BYTES: usize = 29;

const UNCLEAN: u8 = 1;
const LOSSY: u8 = 2;
const FRESH: u8 = 4;
/// The silence follows; since version 2.
const SILENT: u8 = 8;
/// Since version 3.
const PULLS: u8 = 16;
/// The size follows; since version 4.
const SIZED: u8 = 32;

const ZERO: u8 = 1;
/// Since version 3, as is the next.
const WHOLE: u8 = 2;
const DOUBTFUL: u8 = 4;

/// Writes the body; returns what else belongs into the frame: kind and data.
pub(super) fn write<'a>(
    reply: &'a Reply,
    version: u16,
    out: &mut Writer,
) -> (Kind, Option<&'a Payload>) {
    match reply {
        Reply::Promised(promised) => {
            write_promised(promised, version, out);
            (Kind::Promised, None)
        }
        Reply::Data(payload) => {
            write_crcs(payload, out);
            (Kind::Data, Some(payload))
        }
        Reply::Done => (Kind::Done, None),
        Reply::Regions { regions, next } => {
            out.u8(u8::from(next.is_some()));
            out.u32(next.map_or(0, |region| region.0));
            out.regions(regions);
            (Kind::Regions, None)
        }
        Reply::Digests(digests) => {
            out.count(digests.len());
            digests.iter().for_each(|digest| write_digest(digest, version, out));
            (Kind::Digests, None)
        }
        Reply::Refused(refusal) => {
            write_refusal(*refusal, version, out);
            (Kind::Refused, None)
        }
    }
}

fn write_promised(promised: &Promised, version: u16, out: &mut Writer) {
    let silent = promised.silent_ms.filter(|_| version >= 2);
    let blocks = promised.blocks.filter(|_| version >= 4);
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let flags = flag(promised.unclean, UNCLEAN)
        | flag(promised.lossy, LOSSY)
        | flag(promised.fresh, FRESH)
        | flag(silent.is_some(), SILENT)
        | flag(promised.pulls && version >= 3, PULLS)
        | flag(blocks.is_some(), SIZED);
    out.u64(promised.incarnation.0);
    out.u8(flags);
    out.u32(promised.member_gen.0);
    out.u32(promised.credit_ops);
    out.u64(promised.credit_bytes);
    out.set(&promised.ring);
    out.regions(&promised.unresolved);
    if let Some(silent_ms) = silent {
        out.u32(silent_ms);
    }
    if let Some(blocks) = blocks {
        out.u64(blocks);
    }
}

fn write_digest(digest: &BlockDigest, version: u16, out: &mut Writer) {
    let wholeness = match digest.wholeness {
        Wholeness::Whole if version >= 3 => WHOLE,
        Wholeness::Doubtful if version >= 3 => DOUBTFUL,
        _ => 0,
    };
    out.u64(digest.block);
    out.u32(digest.stamp.0);
    out.u8(if digest.zero { ZERO } else { 0 } | wholeness);
    out.bytes(&digest.digest.0);
}

/// A code and a number, which is zero where the code needs none.
fn write_refusal(refusal: Refusal, version: u16, out: &mut Writer) {
    let (code, number) = match refusal {
        Refusal::Epoch { promised } => (1, promised.0),
        Refusal::PutBack { promised } if version >= 2 => (8, promised.0),
        Refusal::NoSuchReplica | Refusal::PutBack { .. } => (2, 0),
        Refusal::NoSession => (3, 0),
        Refusal::Faulted => (4, 0),
        Refusal::Io => (5, 0),
        Refusal::Checksum { block } => (6, block),
        Refusal::NotPulled if version >= 3 => (9, 0),
        Refusal::Busy if version >= 3 => (10, 0),
        Refusal::NoRoom if version >= 4 => (11, 0),
        Refusal::NoReflink if version >= 4 => (12, 0),
        Refusal::Malformed
        | Refusal::NotPulled
        | Refusal::Busy
        | Refusal::NoRoom
        | Refusal::NoReflink => (7, 0),
    };
    out.u8(code);
    out.u64(number);
}

pub(super) fn read(
    (kind, version): (Kind, u16),
    reader: &mut Reader<'_>,
    data: Bytes,
) -> Result<Reply, Malformed> {
    Ok(match kind {
        Kind::Promised => Reply::Promised(Box::new(read_promised(version, reader)?)),
        Kind::Data => Reply::Data(read_crcs(reader, data)?),
        Kind::Done => Reply::Done,
        Kind::Regions => read_regions(reader)?,
        Kind::Digests => Reply::Digests(read_digests(version, reader)?),
        Kind::Refused => Reply::Refused(read_refusal(version, reader)?),
        _ => return Err(Malformed("not a reply")),
    })
}

fn read_promised(version: u16, reader: &mut Reader<'_>) -> Result<Promised, Malformed> {
    let incarnation = Incarnation(reader.u64()?);
    let flags = reader.u8()?;
    let mut known = UNCLEAN | LOSSY | FRESH;
    known |= if version >= 2 { SILENT } else { 0 };
    known |= if version >= 3 { PULLS } else { 0 };
    known |= if version >= 4 { SIZED } else { 0 };
    if flags & !known != 0 {
        return Err(Malformed("unknown state of a replica"));
    }
    let member_gen = Gen(reader.u32()?);
    let (credit_ops, credit_bytes) = (reader.u32()?, reader.u64()?);
    Ok(Promised {
        incarnation,
        unclean: flags & UNCLEAN != 0,
        lossy: flags & LOSSY != 0,
        fresh: flags & FRESH != 0,
        member_gen,
        ring: reader.set()?,
        unresolved: reader.regions()?,
        credit_ops,
        credit_bytes,
        silent_ms: if flags & SILENT == 0 { None } else { Some(reader.u32()?) },
        pulls: flags & PULLS != 0,
        blocks: if flags & SIZED == 0 { None } else { Some(reader.u64()?) },
    })
}

fn read_flag(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("neither yes nor no")),
    }
}

fn read_regions(reader: &mut Reader<'_>) -> Result<Reply, Malformed> {
    let is_more = read_flag(reader)?;
    let next = reader.region()?;
    if !is_more && next.0 != 0 {
        return Err(Malformed("a next region although there is no more"));
    }
    Ok(Reply::Regions { regions: reader.regions()?, next: is_more.then_some(next) })
}

fn read_digests(version: u16, reader: &mut Reader<'_>) -> Result<Vec<BlockDigest>, Malformed> {
    let count = reader.count(BLOCK_DIGEST_BYTES)?;
    if count > MAX_LIST_BLOCKS as usize {
        return Err(Malformed("more digests than one answer may hold"));
    }
    let digests: Result<Vec<_>, Malformed> =
        (0..count).map(|_| read_digest(version, reader)).collect();
    let digests = digests?;
    let ascending = digests.is_sorted_by(|a, b| a.block < b.block);
    if ascending { Ok(digests) } else { Err(Malformed("blocks are not ascending")) }
}

fn read_digest(version: u16, reader: &mut Reader<'_>) -> Result<BlockDigest, Malformed> {
    let (block, stamp, state) = (reader.block()?, Gen(reader.u32()?), reader.u8()?);
    let wholeness = match state & !ZERO {
        0 => Wholeness::Unknown,
        WHOLE if version >= 3 => Wholeness::Whole,
        DOUBTFUL if version >= 3 => Wholeness::Doubtful,
        _ => return Err(Malformed("unknown state of a block")),
    };
    let mut digest = [0; 16];
    digest.copy_from_slice(reader.bytes(16)?);
    let (zero, digest) = (state & ZERO != 0, Digest(digest));
    Ok(BlockDigest { block, stamp, zero, digest, wholeness })
}

fn read_refusal(version: u16, reader: &mut Reader<'_>) -> Result<Refusal, Malformed> {
    let (code, number) = (reader.u8()?, reader.u64()?);
    let refusal = match code {
        1 => return Ok(Refusal::Epoch { promised: Epoch(number) }),
        6 => return Ok(Refusal::Checksum { block: number }),
        8 if version >= 2 => return Ok(Refusal::PutBack { promised: Epoch(number) }),
        2 => Refusal::NoSuchReplica,
        3 => Refusal::NoSession,
        4 => Refusal::Faulted,
        5 => Refusal::Io,
        7 => Refusal::Malformed,
        9 if version >= 3 => Refusal::NotPulled,
        10 if version >= 3 => Refusal::Busy,
        11 if version >= 4 => Refusal::NoRoom,
        12 if version >= 4 => Refusal::NoReflink,
        _ => return Err(Malformed("unknown refusal")),
    };
    if number == 0 { Ok(refusal) } else { Err(Malformed("a number that the refusal has not")) }
}
