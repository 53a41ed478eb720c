//! Replies: how an outcome is put on the wire, simple or structured.

use tokio::io::AsyncWrite;

use super::command::Answer;
use super::limits::EXTENTS_MAX;
use super::negotiate::BASE_ALLOCATION_ID;
use super::outbox::Outbox;
use super::proto::{
    ChunkHeader, RequestHeader, STATE_HOLE, STATE_ZERO, chunk, cmd, encode_simple_reply,
    errno_code, flag,
};
use crate::backend::{Errno, Extent, ReadData, Segment};

/// Queues the reply to a request.
///
/// Where structured replies were negotiated, reads and errors use them; a success without payload
/// is a simple reply all the same, for it is shorter and just as unambiguous.
pub(crate) fn put_reply<W: AsyncWrite + Unpin>(
    outbox: &mut Outbox<W>,
    structured: bool,
    header: &RequestHeader,
    outcome: Result<Answer, (Errno, &str)>,
) {
    match outcome {
        Err((errno, why)) if structured => put_error(outbox, header.cookie, errno, why),
        Err((errno, _)) => outbox.put(&encode_simple_reply(errno_code(errno), header.cookie)),
        Ok(Answer::Done) if structured && header.command == cmd::READ => {
            put_chunk(outbox, chunk::DONE, chunk::NONE, header.cookie, 0);
        }
        Ok(Answer::Done) => outbox.put(&encode_simple_reply(0, header.cookie)),
        Ok(Answer::Data(data)) if structured => put_chunks(outbox, header, data),
        Ok(Answer::Data(data)) => {
            outbox.put(&encode_simple_reply(0, header.cookie));
            put_segments(outbox, data.segments);
        }
        Ok(Answer::Extents(extents)) => put_extents(outbox, header, &extents),
    }
}

fn put_chunk<W>(outbox: &mut Outbox<W>, flags: u16, kind: u16, cookie: u64, length: u64)
where
    W: AsyncWrite + Unpin,
{
    let Ok(length) = u32::try_from(length) else {
        unreachable!("payloads are limited to 32 MiB, far below what a chunk can carry")
    };
    outbox.put(&ChunkHeader { flags, kind, cookie, length }.encode());
}

fn put_error<W: AsyncWrite + Unpin>(outbox: &mut Outbox<W>, cookie: u64, errno: Errno, why: &str) {
    let text = why.as_bytes();
    let Ok(length) = u16::try_from(text.len()) else {
        unreachable!("reasons are short sentences of our own")
    };
    put_chunk(outbox, chunk::DONE, chunk::ERROR, cookie, 6 + u64::from(length));
    outbox.put(&errno_code(errno).to_be_bytes());
    outbox.put(&length.to_be_bytes());
    outbox.put(text);
}

fn put_segments<W: AsyncWrite + Unpin>(outbox: &mut Outbox<W>, segments: Vec<Segment>) {
    for segment in segments {
        match segment {
            Segment::Data(data) => outbox.put_payload(data),
            Segment::Zeroes(len) => outbox.put_zeroes(len),
        }
    }
}

/// Adjacent data goes into one chunk, adjacent zeroes into one hole.
fn put_chunks<W: AsyncWrite + Unpin>(
    outbox: &mut Outbox<W>,
    header: &RequestHeader,
    data: ReadData,
) {
    let whole = header.flags & flag::DF != 0;
    let mut segments = data.segments.into_iter().filter(|one| !one.is_empty()).peekable();
    let mut offset = header.offset;
    while let Some(first) = segments.next() {
        let hole = is_zeroes(&first) && !whole;
        let mut length = first.len();
        let mut run = vec![first];
        while let Some(more) = segments.next_if(|next| whole || is_zeroes(next) == hole) {
            length += more.len();
            run.push(more);
        }
        let flags = if segments.peek().is_none() { chunk::DONE } else { 0 };
        if hole {
            put_chunk(outbox, flags, chunk::OFFSET_HOLE, header.cookie, 12);
            outbox.put(&offset.to_be_bytes());
            outbox.put(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        } else {
            put_chunk(outbox, flags, chunk::OFFSET_DATA, header.cookie, 8 + length);
            outbox.put(&offset.to_be_bytes());
            put_segments(outbox, run);
        }
        offset += length;
    }
}

fn is_zeroes(segment: &Segment) -> bool {
    matches!(segment, Segment::Zeroes(_))
}

fn put_extents<W: AsyncWrite + Unpin>(
    outbox: &mut Outbox<W>,
    header: &RequestHeader,
    extents: &[Extent],
) {
    let one = header.flags & flag::REQ_ONE != 0;
    let most = if one { 1 } else { EXTENTS_MAX };
    let descriptors = descriptors(extents, header.length, most);
    if descriptors.is_empty() {
        tracing::error!(offset = header.offset, "the back end described no extent");
        return put_error(outbox, header.cookie, Errno::Io, "the allocation is not known");
    }
    let length = 4 + 8 * descriptors.len() as u64;
    put_chunk(outbox, chunk::DONE, chunk::BLOCK_STATUS, header.cookie, length);
    outbox.put(&BASE_ALLOCATION_ID.to_be_bytes());
    for (length, status) in descriptors {
        outbox.put(&length.to_be_bytes());
        outbox.put(&status.to_be_bytes());
    }
}

/// At most `most` descriptors of length and status: neighbours of one status are joined, empty
/// ones dropped, and nothing beyond `length` bytes is told.
fn descriptors(extents: &[Extent], length: u32, most: usize) -> Vec<(u32, u32)> {
    let mut told: Vec<(u32, u32)> = Vec::new();
    let mut left = length;
    for extent in extents {
        let len = u32::try_from(extent.len_bytes).unwrap_or(u32::MAX).min(left);
        if len == 0 {
            continue;
        }
        let hole = if extent.hole { STATE_HOLE } else { 0 };
        let status = hole | if extent.zero { STATE_ZERO } else { 0 };
        let full = told.len() == most;
        match told.last_mut() {
            Some(last) if last.1 == status => last.0 += len,
            _ if full => break,
            _ => told.push((len, status)),
        }
        left -= len;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn extent(len_bytes: u64, hole: bool) -> Extent {
        Extent { len_bytes, hole, zero: hole }
    }

    #[test]
    fn extents_are_joined_clipped_and_counted() {
        let extents =
            [extent(4096, false), extent(8192, false), extent(0, true), extent(1 << 40, true)];
        assert_eq!(descriptors(&extents, 1 << 20, 10), [(12_288, 0), ((1 << 20) - 12_288, 3)]);
        assert_eq!(descriptors(&extents, 1 << 20, 1), [(12_288, 0)]);
        assert_eq!(descriptors(&extents, 4096, 10), [(4096, 0)]);
        assert_eq!(descriptors(&[], 4096, 10), []);
    }

    async fn wire(flags: u16, segments: Vec<Segment>) -> Vec<u8> {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut outbox = Outbox::new(near);
        let header = RequestHeader { flags, command: cmd::READ, cookie: 9, offset: 0, length: 0 };
        put_reply(&mut outbox, true, &header, Ok(Answer::Data(segments.into())));
        outbox.flush().await.unwrap();
        drop(outbox);
        let mut bytes = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut far, &mut bytes).await.unwrap();
        bytes
    }

    fn chunk_bytes(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        let header = ChunkHeader { flags, kind, cookie: 9, length }.encode();
        [&header[..], payload].concat()
    }

    #[tokio::test]
    async fn zeroes_travel_as_holes_unless_one_piece_was_asked_for() {
        let data = |byte| Segment::Data(Bytes::from(vec![byte; 4096]));
        let segments = vec![data(1), data(2), Segment::Zeroes(4096), Segment::Zeroes(8192)];

        let mut content = vec![0; 8];
        content.extend_from_slice(&[1; 4096]);
        content.extend_from_slice(&[2; 4096]);
        let mut hole = 8192u64.to_be_bytes().to_vec();
        hole.extend_from_slice(&12_288u32.to_be_bytes());
        let expected = [
            chunk_bytes(0, chunk::OFFSET_DATA, &content),
            chunk_bytes(chunk::DONE, chunk::OFFSET_HOLE, &hole),
        ]
        .concat();
        assert!(wire(0, segments.clone()).await == expected, "fragmented");

        content.extend_from_slice(&[0; 12_288]);
        let expected = chunk_bytes(chunk::DONE, chunk::OFFSET_DATA, &content);
        assert!(wire(flag::DF, segments).await == expected, "in one piece");
    }
}
