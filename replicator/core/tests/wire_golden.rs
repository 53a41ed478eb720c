//! The bytes of one frame of each kind, one file per version. A change of the format shows here;
//! it needs a new wire version, and then a new file beside these.

use lockstep_core::id::{
    Epoch, Gen, Incarnation, InstanceId, Lineage, NodeId, RegionIndex, ReplicaId, Seq, SnapshotId,
    VolumeId,
};
use lockstep_core::message::{
    BlockDigest, Digest, Header, Message, Payload, Promised, Refusal, Reply, Request, ResyncBlock,
    ResyncContent, Wholeness,
};
use lockstep_core::range::{BLOCK_SIZE, BlockRange, BlockSet};
use lockstep_core::wire::{
    Encoded, Frame, Kind, LinkFrame, RejectReason, WireError, encode, encode_as,
};
use uuid::Uuid;

const GOLDEN: [(u16, &str); 4] = [
    (1, include_str!("wire_golden_v1.txt")),
    (2, include_str!("wire_golden_v2.txt")),
    (3, include_str!("wire_golden_v3.txt")),
    (4, include_str!("wire_golden_v4.txt")),
];
const DOCUMENT: &str = include_str!("../../../docs/wire.md");

fn blocks() -> BlockSet {
    [BlockRange::new(1, 2), BlockRange::new(256, 8)].into_iter().collect()
}

fn payload() -> Payload {
    Payload::checksummed(vec![0xa5; BLOCK_SIZE as usize].into())
}

fn promise() -> Request {
    Request::Promise {
        replica: ReplicaId(Uuid::from_u128(2)),
        lineage: Lineage(Uuid::from_u128(3)),
        parent: Some(Lineage(Uuid::from_u128(6))),
        at_least: Epoch(0x0101),
        instance: InstanceId(Uuid::from_u128(4)),
        attach_seq: 5,
    }
}

fn list() -> Vec<ResyncBlock> {
    let content = [ResyncContent::Data, ResyncContent::Zero, ResyncContent::Same];
    let entry = |(block, content)| ResyncBlock { block, stamp: Gen(7), content };
    (4..).zip(content).map(entry).collect()
}

fn requests() -> Vec<Request> {
    let source = ReplicaId(Uuid::from_u128(7));
    let pull = |node| Request::Pull { node, source, blocks: list() };
    let range = BlockRange::new(9, 1);
    let mut requests = vec![
        promise(),
        Request::Read { blocks: blocks() },
        Request::Write { range, fua: true, payload: payload() },
        Request::Zero { range: BlockRange::new(3, 200), fua: false, deallocate: true },
        Request::Flush,
        Request::Commit { member: true },
        Request::Mark { blocks: blocks() },
        Request::Scan { since: Gen(6), from: RegionIndex(2), limit: 1024 },
        Request::Digest { blocks: blocks(), since: Gen(6) },
        Request::Resync { blocks: list(), payload: payload() },
        Request::Close,
        Request::Renew,
    ];
    requests.extend(NodeId::new("node-2").map(pull));
    requests.push(Request::Fetch { source, blocks: blocks() });
    requests.push(Request::Complete);
    requests.push(Request::Enter { copies: 2 });
    let id = SnapshotId(Uuid::from_u128(8));
    requests.push(Request::Extend { blocks: 0x0708 });
    requests.push(Request::Prepare);
    requests.push(Request::Snapshot { id });
    requests.push(Request::DropSnapshot { id });
    requests.push(Request::Seal { id });
    requests.push(Request::ScanKept { id, from: RegionIndex(2), limit: 1024 });
    requests.push(Request::DigestKept { id, blocks: blocks() });
    requests.push(Request::ReadKept { id, blocks: blocks() });
    requests
}

fn replies() -> Vec<Reply> {
    let promised = Promised {
        incarnation: Incarnation(0x1122_3344_5566_7788),
        unclean: true,
        lossy: false,
        fresh: true,
        member_gen: Gen(4),
        ring: blocks(),
        unresolved: vec![RegionIndex(0), RegionIndex(5)],
        credit_ops: 512,
        credit_bytes: 64 << 20,
        silent_ms: Some(2500),
        pulls: true,
        blocks: Some(0x0807),
    };
    let digest = BlockDigest {
        block: 9,
        stamp: Gen(3),
        zero: false,
        digest: Digest(*b"0123456789abcdef"),
        wholeness: Wholeness::Doubtful,
    };
    let regions = vec![RegionIndex(1), RegionIndex(8)];
    vec![
        Reply::Promised(Box::new(promised)),
        Reply::Data(payload()),
        Reply::Done,
        Reply::Regions { regions, next: Some(RegionIndex(9)) },
        Reply::Digests(vec![digest]),
        Reply::Refused(Refusal::Epoch { promised: Epoch(12) }),
    ]
}

fn links() -> Vec<LinkFrame> {
    let node = NodeId::new("node-1");
    let cluster = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    let hello = |node| LinkFrame::Hello {
        min_version: 1,
        max_version: 2,
        cluster,
        node,
        process: 0x0102_0304_0506_0708,
    };
    let welcome = |node| LinkFrame::Welcome { version: 1, node, process: 0x0a0b_0c0d };
    let mut frames: Vec<_> = node.clone().map(hello).into_iter().collect();
    frames.extend(node.map(welcome));
    frames.extend([
        LinkFrame::Reject { reason: RejectReason::Version { min: 3, max: 4 } },
        LinkFrame::Ping { id: 17 },
        LinkFrame::Pong { id: 17 },
    ]);
    frames
}

fn frames() -> Vec<Frame> {
    let header = Header {
        volume: VolumeId(Uuid::from_u128(1)),
        epoch: Epoch(0x0102),
        r#gen: Gen(0x0304),
        seq: Seq(0x0506),
        commit: Seq(0x0505),
    };
    let links = links().into_iter().map(Frame::Link);
    let requests = requests().into_iter().map(|body| Frame::Request(Message { header, body }));
    let replies = replies().into_iter().map(|body| Frame::Reply(Message { header, body }));
    links.chain(requests).chain(replies).collect()
}

/// The line that stands for a frame: header and body in hex, and how much data follows.
fn line(kind: Kind, encoded: &Encoded) -> String {
    let hex: String = encoded.head.iter().map(|byte| format!("{byte:02x}")).collect();
    let (header, body) = hex.split_at(144);
    format!("{kind} {header} {body} +{}", encoded.data.len())
}

#[test]
fn the_format_has_not_changed() {
    let frames = frames();
    assert_eq!(frames.len(), Kind::ALL.len(), "a kind of frame has no golden bytes");
    for (version, golden) in GOLDEN {
        let pairs = Kind::ALL.iter().zip(&frames).filter(|(kind, _)| kind.since() <= version);
        let lines: Vec<String> =
            pairs.map(|(kind, f)| line(*kind, &encode_as(f, version))).collect();
        let golden: Vec<&str> = golden.lines().filter(|l| !l.starts_with('#')).collect();
        let now = lines.join("\n");
        assert_eq!(golden, lines, "\nversion {version} changed; as it is now:\n{now}\n");
    }
}

/// What version 1 can't say is left out, or asked for in its words.
#[test]
fn an_older_peer_gets_what_it_understands() {
    let old = |(kind, _): &(&Kind, Frame)| kind.since() <= 2;
    let frames = Kind::ALL.iter().zip(frames()).filter(old).map(|(_, frame)| frame);
    let sent = frames.map(|frame| (encode_as(&frame, 1).decode(), frame));
    let differs = |(read, frame): &(Result<Frame, _>, Frame)| read.as_ref() != Ok(frame);
    let changed: Vec<_> = sent.filter(differs).map(|(read, _)| read).collect();
    let [
        Ok(Frame::Request(promise)),
        Ok(Frame::Request(renew)),
        Ok(Frame::Reply(promised)),
        Ok(Frame::Reply(digests)),
    ] = changed.as_slice()
    else {
        panic!("other frames differ: {changed:?}");
    };
    assert!(matches!(promise.body, Request::Promise { parent: None, at_least: Epoch(0), .. }));
    let empty = Request::Scan { since: Gen(u32::MAX), from: RegionIndex(0), limit: 1 };
    assert_eq!(renew.body, empty);
    assert!(matches!(&promised.body, Reply::Promised(p) if p.silent_ms.is_none() && !p.pulls));
    let unknown = |d: &BlockDigest| d.wholeness == Wholeness::Unknown;
    assert!(matches!(&digests.body, Reply::Digests(d) if d.iter().all(unknown)));
}

/// One that can't be told that it has got back what it lost flushes all the same.
#[test]
fn an_older_peer_is_asked_for_a_flush_in_place_of_completing() {
    let is_complete = |f: &Frame| matches!(f, Frame::Request(m) if m.body == Request::Complete);
    let complete = frames().into_iter().find(is_complete).expect("one of the frames");
    for (version, expected) in [(2, Request::Flush), (3, Request::Complete)] {
        let Ok(Frame::Request(read)) = encode_as(&complete, version).decode() else {
            panic!("not read back: {complete:?}");
        };
        assert_eq!(read.body, expected, "version {version}");
    }
}

/// There is no limit of targets on a node that is reached in version 2.
#[test]
fn an_older_node_is_not_asked_for_leave() {
    let enter = frames()
        .into_iter()
        .find(|f| matches!(f, Frame::Request(Message { body: Request::Enter { .. }, .. })))
        .expect("one of the frames");
    let Ok(Frame::Request(read)) = encode_as(&enter, 2).decode() else {
        panic!("not read back: {enter:?}");
    };
    let empty = Request::Scan { since: Gen(u32::MAX), from: RegionIndex(0), limit: 1 };
    assert_eq!(read.body, empty);
}

/// A replica that is reached in version 3 tells no size, so it is never told to grow.
#[test]
fn sizes_are_not_told_before_version_4() {
    let promised = frames()
        .into_iter()
        .find(|f| matches!(f, Frame::Reply(Message { body: Reply::Promised(_), .. })))
        .expect("one of the frames");
    for (version, expected) in [(3, None), (4, Some(0x0807))] {
        let Ok(Frame::Reply(read)) = encode_as(&promised, version).decode() else {
            panic!("not read back: {promised:?}");
        };
        assert!(matches!(read.body, Reply::Promised(p) if p.blocks == expected));
    }
}

/// A replica that is reached in version 2 is never told to pull.
#[test]
fn pulling_is_not_offered_before_version_3() {
    let promised = frames()
        .into_iter()
        .find(|f| matches!(f, Frame::Reply(Message { body: Reply::Promised(p), .. }) if p.pulls))
        .expect("one of the frames");
    let Ok(Frame::Reply(read)) = encode_as(&promised, 2).decode() else {
        panic!("not read back: {promised:?}");
    };
    assert!(matches!(read.body, Reply::Promised(p) if !p.pulls && p.silent_ms == Some(2500)));
}

#[test]
fn a_kind_is_refused_in_a_version_before_it() {
    let renew =
        frames().into_iter().find(|f| matches!(f, Frame::Request(m) if m.body == Request::Renew));
    let encoded = encode(&renew.expect("one of the frames"));
    let mut head = encoded.head.to_vec();
    head[4] = 1;
    let crc = crc32c::crc32c(&head[..68]).to_le_bytes();
    head[68..72].copy_from_slice(&crc);
    let old = Encoded { head: head.into(), data: encoded.data };
    assert_eq!(old.decode(), Err(WireError::Version { kind: Kind::Renew, found: 1 }));
}

#[test]
fn golden_frames_are_read() {
    for frame in frames() {
        assert_eq!(encode(&frame).decode(), Ok(frame));
    }
}

/// Every single bit of every golden frame, header, body and data.
#[test]
fn each_flipped_bit_is_found() {
    for (kind, frame) in Kind::ALL.iter().zip(frames()) {
        let intact = encode(&frame);
        for bit in 0..intact.len() * 8 {
            let mut head = intact.head.to_vec();
            let mut data = intact.data.to_vec();
            let at = bit / 8;
            match at.checked_sub(head.len()) {
                None => head[at] ^= 1 << (bit % 8),
                Some(at) => data[at] ^= 1 << (bit % 8),
            }
            let damaged = Encoded { head: head.into(), data: data.into() };
            assert!(damaged.decode().is_err(), "{kind}: bit {bit} was flipped unseen");
        }
    }
}

#[test]
fn the_document_lists_every_kind() {
    for kind in Kind::ALL {
        let row = format!("| `{:#04x}` | {kind} |", kind.byte());
        assert!(DOCUMENT.contains(&row), "docs/wire.md has no row {row}");
    }
}
