//! Frames between nodes, and what the machines do with whatever is read from them.

use bytes::Bytes;
use lockstep_core::id::{Conn, Epoch, Gen, Incarnation, InstanceId, NodeId, Seq, Tick};
use lockstep_core::link::{self, Link, LinkParams};
use lockstep_core::message::{Header, Message, Request};
use lockstep_core::planted::Planted;
use lockstep_core::replica::{self, Replica};
use lockstep_core::store::Recovered;
use lockstep_core::wire::{
    Encoded, Frame, HEADER_BYTES, Kind, LinkFrame, MAX_VERSION, MIN_VERSION, Prefix, encode_as,
};
use uuid::Uuid;

use super::files::{BLOCKS, identity};
use super::input::Input;

/// Either the bytes as they are, or a header and a body whose checksums and lengths are right.
pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let sealed = match input.below(4) {
        0 => raw(input.0),
        how => sealed(&mut input, how == 1),
    };
    let Some(encoded) = sealed else { return };
    let Ok(frame) = encoded.clone().decode() else { return };
    let again = encode_as(&frame, version(&encoded).unwrap_or(MAX_VERSION).max(MIN_VERSION));
    assert_eq!(again.clone().decode().as_ref(), Ok(&frame), "a frame is not read as written");
    let open_ended = matches!(
        frame,
        Frame::Link(LinkFrame::Hello { .. } | LinkFrame::Welcome { .. } | LinkFrame::Reject { .. })
    );
    assert!(open_ended || again == encoded, "one frame can be written in two ways: {frame:?}");
    serve(frame);
}

/// The version that the header of a frame is in.
fn version(encoded: &Encoded) -> Option<u16> {
    Some(Prefix::parse(encoded.head.first_chunk()?).ok()?.version())
}

fn raw(bytes: &[u8]) -> Option<Encoded> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let prefix = Prefix::parse(header).ok()?;
    let head = HEADER_BYTES + prefix.body_len();
    let whole = head + prefix.data_len();
    let all = Bytes::copy_from_slice(bytes.get(..whole)?);
    Some(Encoded { head: all.slice(..head), data: all.slice(head..) })
}

/// A frame of any kind whose header fields and body come from the input.
fn sealed(input: &mut Input<'_>, plain: bool) -> Option<Encoded> {
    let kinds = Kind::ALL;
    let kind = kinds[usize::from(input.u8()) % kinds.len()];
    let flags = input.u8();
    let blocks =
        if matches!(kind, Kind::Write | Kind::Resync | Kind::Data) { input.below(4) } else { 0 };
    let mut head = b"LKS1".to_vec();
    let link = kind.byte() < Kind::Promise.byte();
    let handshake = matches!(kind, Kind::Hello | Kind::Welcome | Kind::Reject);
    let version = if handshake { 0 } else { MIN_VERSION + input.below(MAX_VERSION) };
    head.extend_from_slice(&version.to_le_bytes());
    head.extend_from_slice(&[kind.byte(), flags & 7]);
    if link {
        head.extend_from_slice(&[0; 44]);
    } else {
        head.extend_from_slice(identity().volume.0.as_bytes());
        for _ in 0..3 {
            let number = if plain { u64::from(input.below(8)) } else { input.u64() };
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.extend_from_slice(&u32::from(input.below(8)).to_le_bytes());
    }
    let data = vec![input.u8(); usize::from(blocks) * 4096];
    let with_crcs = input.flag();
    let mut body = input.0.to_vec();
    body.truncate(1 << 16);
    if with_crcs {
        for block in data.chunks_exact(4096) {
            body.extend_from_slice(&crc32c::crc32c(block).to_le_bytes());
        }
    }
    for number in [body.len(), data.len(), crc32c::crc32c(&body) as usize, 0] {
        head.extend_from_slice(&u32::try_from(number).ok()?.to_le_bytes());
    }
    let crc = crc32c::crc32c(&head);
    head.extend_from_slice(&crc.to_le_bytes());
    assert_eq!(head.len(), HEADER_BYTES);
    head.extend_from_slice(&body);
    Some(Encoded { head: head.into(), data: data.into() })
}

fn serve(frame: Frame) {
    match frame {
        Frame::Link(frame) => {
            for role in [link::Role::Initiator, link::Role::Acceptor] {
                greet(role, frame.clone());
            }
        }
        Frame::Request(message) => {
            let mut replica = promised();
            let mut out = Vec::new();
            for conn in [Conn(1), Conn(2)] {
                let message = message.clone();
                replica.step(Tick(2), replica::Event::Request { conn, message }, &mut out);
                replica.check();
            }
        }
        // What a primary does with them is another target.
        Frame::Reply(_) => {}
    }
}

fn greet(role: link::Role, frame: LinkFrame) {
    let Some(node) = NodeId::new("here") else { return };
    let params = LinkParams {
        role,
        cluster: Uuid::from_u128(0),
        node,
        process: 7,
        expect: None,
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
    };
    let mut link = Link::new(params, Tick(0));
    let mut out = Vec::new();
    link.step(Tick(1), link::Event::Opened, &mut out);
    for at in [2, 3] {
        link.step(Tick(at), link::Event::Received(frame.clone()), &mut out);
        assert!(link.is_closed() || link.deadline().is_some(), "a link that waits for ever");
    }
}

/// A replica in epoch 5, in a session on connection 1.
fn promised() -> Replica {
    let own = identity();
    let who = replica::Identity {
        volume: own.volume,
        replica: own.replica,
        lineage: own.lineage,
        incarnation: Incarnation(1),
    };
    let recovered = Recovered {
        promised: Epoch(4),
        attach_seq: 0,
        member_gen: Gen(0),
        blocks: BLOCKS,
        unresolved: Vec::new(),
        lossy: false,
        fresh: false,
    };
    let mut replica = Replica::open(who, recovered, Planted::NONE);
    let header =
        Header { volume: own.volume, epoch: Epoch(5), r#gen: Gen(3), seq: Seq(1), commit: Seq(0) };
    let body = Request::Promise {
        replica: own.replica,
        lineage: own.lineage,
        instance: InstanceId(Uuid::from_u128(1)),
        attach_seq: 1,
        parent: None,
        at_least: Epoch(0),
    };
    let mut out = Vec::new();
    let message = Message { header, body };
    replica.step(Tick(1), replica::Event::Request { conn: Conn(1), message }, &mut out);
    let token = out.iter().find_map(|effect| match effect {
        replica::Effect::Store { token, .. } => Some(*token),
        _ => None,
    });
    let token = token.expect("a promise is made durable");
    let result = Ok(lockstep_core::store::StoreReply::Done);
    replica.step(Tick(1), replica::Event::Stored { token, result }, &mut out);
    assert!(replica.status().connected, "a promise opens a session");
    replica
}
