//! Bodies of requests.

use alloc::vec::Vec;
use bytes::Bytes;

use super::codec::{Malformed, Reader, Writer};
use super::kind::{FLAG_DEALLOCATE, FLAG_FUA, FLAG_MEMBER};
use super::{Kind, MAX_LIST_BLOCKS, MAX_SCAN_REGIONS, read_crcs, write_crcs};
use crate::id::{Epoch, Gen, InstanceId, Lineage, NodeId, RegionIndex, ReplicaId, SnapshotId};
use crate::limits::{MAX_OP_BLOCKS, MAX_VOLUME_BLOCKS};
use crate::message::{Payload, Request, ResyncBlock, ResyncContent};
use crate::range::{BlockRange, BlockSet};
use uuid::Uuid;

/// Bytes of an entry of a resync.
const RESYNC_BLOCK_BYTES: usize = 13;

/// Writes the body; returns what else belongs into the frame: kind, flags and data.
pub(super) fn write<'a>(
    request: &'a Request,
    version: u16,
    out: &mut Writer,
) -> (Kind, u8, Option<&'a Payload>) {
    match request {
        Request::Promise { replica, lineage, parent, at_least, instance, attach_seq } => {
            out.uuid(replica.0);
            out.uuid(lineage.0);
            out.uuid(instance.0);
            out.u64(*attach_seq);
            if version >= 2 {
                out.uuid(parent.map_or(Uuid::nil(), |parent| parent.0));
                out.u64(at_least.0);
            }
            (Kind::Promise, 0, None)
        }
        Request::Read { blocks } => {
            out.set(blocks);
            (Kind::Read, 0, None)
        }
        Request::Write { range, fua, payload } => {
            out.range(*range);
            write_crcs(payload, out);
            (Kind::Write, fua_flag(*fua), Some(payload))
        }
        Request::Zero { range, fua, deallocate } => {
            out.range(*range);
            let deallocate = if *deallocate { FLAG_DEALLOCATE } else { 0 };
            (Kind::Zero, fua_flag(*fua) | deallocate, None)
        }
        Request::Complete if version >= Kind::Complete.since() => (Kind::Complete, 0, None),
        Request::Flush | Request::Complete => (Kind::Flush, 0, None),
        Request::Commit { member } => (Kind::Commit, if *member { FLAG_MEMBER } else { 0 }, None),
        Request::Mark { blocks } => {
            out.set(blocks);
            (Kind::Mark, 0, None)
        }
        Request::Scan { since, from, limit } => {
            write_scan(*since, *from, *limit, out);
            (Kind::Scan, 0, None)
        }
        Request::Digest { blocks, since } => {
            out.u32(since.0);
            out.set(blocks);
            (Kind::Digest, 0, None)
        }
        Request::Resync { blocks, payload } => {
            write_resync_blocks(blocks, out);
            write_crcs(payload, out);
            (Kind::Resync, 0, Some(payload))
        }
        Request::Close => (Kind::Close, 0, None),
        Request::Renew | Request::Enter { .. } => (write_question(request, version, out), 0, None),
        Request::Pull { node, source, blocks } => {
            write_pull(node, *source, blocks, out);
            (Kind::Pull, 0, None)
        }
        Request::Fetch { .. }
        | Request::Extend { .. }
        | Request::Prepare
        | Request::Snapshot { .. }
        | Request::Seal { .. }
        | Request::DropSnapshot { .. }
        | Request::ScanKept { .. }
        | Request::DigestKept { .. }
        | Request::ReadKept { .. } => (write_service(request, out), 0, None),
    }
}

/// What a volume can be asked for as a whole, and what nodes ask of each other by themselves.
fn write_service(request: &Request, out: &mut Writer) -> Kind {
    match request {
        Request::Extend { blocks } => {
            out.u64(*blocks);
            Kind::Extend
        }
        Request::Snapshot { id } => {
            out.uuid(id.0);
            Kind::Snapshot
        }
        Request::Seal { id } => {
            out.uuid(id.0);
            Kind::Seal
        }
        Request::DropSnapshot { id } => {
            out.uuid(id.0);
            Kind::DropSnapshot
        }
        Request::ScanKept { id, from, limit } => {
            out.uuid(id.0);
            out.u32(from.0);
            out.u32(*limit);
            Kind::ScanKept
        }
        Request::Fetch { source, blocks } => {
            out.uuid(source.0);
            out.set(blocks);
            Kind::Fetch
        }
        Request::DigestKept { id, blocks } => {
            out.uuid(id.0);
            out.set(blocks);
            Kind::DigestKept
        }
        Request::ReadKept { id, blocks } => {
            out.uuid(id.0);
            out.set(blocks);
            Kind::ReadKept
        }
        _ => Kind::Prepare,
    }
}

/// A question that needs nothing but an answer.
fn write_question(request: &Request, version: u16, out: &mut Writer) -> Kind {
    match request {
        Request::Renew if version >= Kind::Renew.since() => Kind::Renew,
        Request::Enter { copies } if version >= Kind::Enter.since() => {
            out.u32(*copies);
            Kind::Enter
        }
        // The cheapest question that every version has an answer to.
        _ => {
            write_scan(Gen(u32::MAX), RegionIndex(0), 1, out);
            Kind::Scan
        }
    }
}

fn write_scan(since: Gen, from: RegionIndex, limit: u32, out: &mut Writer) {
    out.u32(since.0);
    out.u32(from.0);
    out.u32(limit);
}

fn fua_flag(fua: bool) -> u8 {
    if fua { FLAG_FUA } else { 0 }
}

fn write_pull(node: &NodeId, source: ReplicaId, blocks: &[ResyncBlock], out: &mut Writer) {
    out.uuid(source.0);
    out.node(node);
    write_resync_blocks(blocks, out);
}

fn write_resync_blocks(blocks: &[ResyncBlock], out: &mut Writer) {
    out.count(blocks.len());
    blocks.iter().for_each(|block| write_resync_block(block, out));
}

fn write_resync_block(block: &ResyncBlock, out: &mut Writer) {
    out.u64(block.block);
    out.u32(block.stamp.0);
    out.u8(match block.content {
        ResyncContent::Data => 0,
        ResyncContent::Zero => 1,
        ResyncContent::Same => 2,
    });
}

pub(super) fn read(
    (kind, version, flags): (Kind, u16, u8),
    reader: &mut Reader<'_>,
    data: Bytes,
) -> Result<Request, Malformed> {
    let fua = flags & FLAG_FUA != 0;
    Ok(match kind {
        Kind::Promise => Request::Promise {
            replica: ReplicaId(reader.uuid()?),
            lineage: Lineage(reader.uuid()?),
            instance: InstanceId(reader.uuid()?),
            attach_seq: reader.u64()?,
            parent: read_parent(version, reader)?,
            at_least: Epoch(if version >= 2 { reader.u64()? } else { 0 }),
        },
        Kind::Read => Request::Read { blocks: read_set(reader, MAX_OP_BLOCKS)? },
        Kind::Write => {
            let range = read_op_range(reader)?;
            let payload = read_crcs(reader, data)?;
            if payload.blocks() != range.count as usize {
                return Err(Malformed("as many blocks of data as the range has must follow"));
            }
            Request::Write { range, fua, payload }
        }
        Kind::Zero => {
            let deallocate = flags & FLAG_DEALLOCATE != 0;
            Request::Zero { range: read_op_range(reader)?, fua, deallocate }
        }
        Kind::Flush => Request::Flush,
        Kind::Complete => Request::Complete,
        Kind::Commit => Request::Commit { member: flags & FLAG_MEMBER != 0 },
        Kind::Mark => Request::Mark { blocks: reader.set()? },
        Kind::Scan => read_scan(reader)?,
        Kind::Digest => {
            let since = Gen(reader.u32()?);
            Request::Digest { blocks: read_set(reader, MAX_LIST_BLOCKS)?, since }
        }
        Kind::Resync => read_resync(reader, data)?,
        Kind::Close => Request::Close,
        Kind::Renew => Request::Renew,
        Kind::Pull => {
            let source = ReplicaId(reader.uuid()?);
            Request::Pull { source, node: reader.node()?, blocks: read_resync_blocks(reader)? }
        }
        Kind::Fetch => {
            let source = ReplicaId(reader.uuid()?);
            Request::Fetch { source, blocks: read_set(reader, MAX_OP_BLOCKS)? }
        }
        Kind::Enter => Request::Enter { copies: reader.u32()? },
        Kind::Extend => Request::Extend { blocks: read_size(reader)? },
        Kind::Prepare => Request::Prepare,
        Kind::Snapshot => Request::Snapshot { id: SnapshotId(reader.uuid()?) },
        Kind::DropSnapshot => Request::DropSnapshot { id: SnapshotId(reader.uuid()?) },
        Kind::Seal => Request::Seal { id: SnapshotId(reader.uuid()?) },
        _ => read_kept(kind, reader)?,
    })
}

fn read_kept(kind: Kind, reader: &mut Reader<'_>) -> Result<Request, Malformed> {
    let id = SnapshotId(reader.uuid()?);
    match kind {
        Kind::ScanKept => {
            let (from, limit) = (reader.region()?, reader.u32()?);
            let fits = limit <= MAX_SCAN_REGIONS;
            let scan = Request::ScanKept { id, from, limit };
            if fits { Ok(scan) } else { Err(Malformed("more regions than one answer can hold")) }
        }
        Kind::DigestKept => {
            Ok(Request::DigestKept { id, blocks: read_set(reader, MAX_LIST_BLOCKS)? })
        }
        Kind::ReadKept => Ok(Request::ReadKept { id, blocks: read_set(reader, MAX_OP_BLOCKS)? }),
        _ => Err(Malformed("not a request")),
    }
}

/// Blocks of a volume.
fn read_size(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    let blocks = reader.u64()?;
    let fits = (1..=MAX_VOLUME_BLOCKS).contains(&blocks);
    if fits { Ok(blocks) } else { Err(Malformed("a size that no volume has")) }
}

/// Since version 2; nil is none.
fn read_parent(version: u16, reader: &mut Reader<'_>) -> Result<Option<Lineage>, Malformed> {
    if version < 2 {
        return Ok(None);
    }
    let parent = reader.uuid()?;
    Ok((!parent.is_nil()).then_some(Lineage(parent)))
}

/// A range that one operation may have.
fn read_op_range(reader: &mut Reader<'_>) -> Result<BlockRange, Malformed> {
    let range = reader.range()?;
    let fits = range.count <= MAX_OP_BLOCKS;
    if fits { Ok(range) } else { Err(Malformed("a range longer than one operation may be")) }
}

/// A set whose answer, block by block, fits into one frame.
fn read_set(reader: &mut Reader<'_>, max_blocks: u32) -> Result<BlockSet, Malformed> {
    let set = reader.set()?;
    let fits = set.len() <= u64::from(max_blocks);
    if fits { Ok(set) } else { Err(Malformed("more blocks than one answer can hold")) }
}

fn read_scan(reader: &mut Reader<'_>) -> Result<Request, Malformed> {
    let (since, from, limit) = (Gen(reader.u32()?), reader.region()?, reader.u32()?);
    let fits = limit <= MAX_SCAN_REGIONS;
    let scan = Request::Scan { since, from, limit };
    if fits { Ok(scan) } else { Err(Malformed("more regions than one answer can hold")) }
}

fn read_resync(reader: &mut Reader<'_>, data: Bytes) -> Result<Request, Malformed> {
    let blocks = read_resync_blocks(reader)?;
    let payload = read_crcs(reader, data)?;
    if blocks.iter().filter(|b| b.content == ResyncContent::Data).count() != payload.blocks() {
        return Err(Malformed("as many blocks of data as are announced must follow"));
    }
    Ok(Request::Resync { blocks, payload })
}

fn read_resync_blocks(reader: &mut Reader<'_>) -> Result<Vec<ResyncBlock>, Malformed> {
    let count = reader.count(RESYNC_BLOCK_BYTES)?;
    if count > MAX_LIST_BLOCKS as usize {
        return Err(Malformed("more blocks than one resync may name"));
    }
    let blocks: Result<Vec<_>, Malformed> = (0..count).map(|_| read_resync_block(reader)).collect();
    let blocks = blocks?;
    if !blocks.is_sorted_by(|a, b| a.block < b.block) {
        return Err(Malformed("blocks are not ascending"));
    }
    Ok(blocks)
}

fn read_resync_block(reader: &mut Reader<'_>) -> Result<ResyncBlock, Malformed> {
    let (block, stamp) = (reader.block()?, Gen(reader.u32()?));
    let content = match reader.u8()? {
        0 => ResyncContent::Data,
        1 => ResyncContent::Zero,
        2 => ResyncContent::Same,
        _ => return Err(Malformed("unknown content of a resynced block")),
    };
    Ok(ResyncBlock { block, stamp, content })
}
