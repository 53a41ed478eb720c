//! Frames of every kind, made at random: they come back as they were, damage is found, and
//! bytes that no build of ours wrote are refused without a panic.

use bytes::Bytes;
use lockstep_core::id::{
    Epoch, Gen, Incarnation, InstanceId, Lineage, NodeId, RegionIndex, ReplicaId, Seq, SnapshotId,
    VolumeId,
};
use lockstep_core::limits::{MAX_BODY_BYTES, MAX_DATA_BYTES, MAX_OP_BLOCKS, MAX_VOLUME_BLOCKS};
use lockstep_core::message::{
    BlockDigest, Digest, Header, Message, Payload, Promised, Refusal, Reply, Request, ResyncBlock,
    ResyncContent, Wholeness,
};
use lockstep_core::range::{BLOCK_SIZE, BlockRange, BlockSet};
use lockstep_core::wire::{
    Encoded, Frame, HEADER_BYTES, Kind, LinkFrame, Prefix, RejectReason, WireError, encode,
    encode_as,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use uuid::Uuid;

const REGIONS: u32 = 1 << 24;
const _: () = assert!(MAX_VOLUME_BLOCKS == REGIONS as u64 * 256);

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn range(max: u32) -> impl Strategy<Value = BlockRange> {
    (0..MAX_VOLUME_BLOCKS - u64::from(max), 1..=max)
        .prop_map(|(start, count)| BlockRange::new(start, count))
}

/// Sets of up to 64 blocks, near each other or far apart.
fn set() -> impl Strategy<Value = BlockSet> {
    let near = vec((0_u64..100, 1_u32..9), 0..8);
    let far = vec((0..MAX_VOLUME_BLOCKS - 8, 1_u32..9), 0..8);
    let ranges = prop_oneof![near, far];
    ranges.prop_map(|all| all.into_iter().map(|(s, c)| BlockRange::new(s, c)).collect())
}

fn regions() -> impl Strategy<Value = Vec<RegionIndex>> {
    btree_set((0..REGIONS).prop_map(RegionIndex), 0..20).prop_map(|set| set.into_iter().collect())
}

/// Data of `blocks` blocks, each filled with bytes that follow from `seed`.
fn payload(blocks: usize, seed: u8) -> Payload {
    let bytes = (0..=250_u8).cycle().take(blocks * BLOCK_SIZE as usize);
    Payload::checksummed(bytes.map(|byte| byte ^ seed).collect())
}

fn write() -> impl Strategy<Value = Request> {
    (range(4), any::<bool>(), any::<u8>()).prop_map(|(range, fua, seed)| Request::Write {
        range,
        fua,
        payload: payload(range.count as usize, seed),
    })
}

fn entries() -> impl Strategy<Value = Vec<ResyncBlock>> {
    let content = prop_oneof![
        1 => Just(ResyncContent::Data),
        2 => Just(ResyncContent::Zero),
        2 => Just(ResyncContent::Same)
    ];
    let blocks = btree_map(0..MAX_VOLUME_BLOCKS, (any::<u32>().prop_map(Gen), content), 0..8);
    let entry = |(block, (stamp, content))| ResyncBlock { block, stamp, content };
    blocks.prop_map(move |blocks| blocks.into_iter().map(entry).collect())
}

fn resync() -> impl Strategy<Value = Request> {
    (entries(), any::<u8>()).prop_map(|(blocks, seed)| {
        let with_data = blocks.iter().filter(|b| b.content == ResyncContent::Data).count();
        Request::Resync { blocks, payload: payload(with_data, seed) }
    })
}

fn request() -> impl Strategy<Value = Request> {
    let r#gen = || any::<u32>().prop_map(Gen);
    prop_oneof![
        (uuid(), [uuid(), uuid()], uuid(), any::<[u64; 2]>()).prop_map(|(a, [b, p], c, n)| {
            let (replica, lineage, instance) = (ReplicaId(a), Lineage(b), InstanceId(c));
            let parent = (!p.is_nil()).then_some(Lineage(p));
            let (at_least, attach_seq) = (Epoch(n[0]), n[1]);
            Request::Promise { replica, lineage, parent, at_least, instance, attach_seq }
        }),
        set().prop_map(|blocks| Request::Read { blocks }),
        write(),
        (range(MAX_OP_BLOCKS), any::<bool>(), any::<bool>())
            .prop_map(|(range, fua, deallocate)| Request::Zero { range, fua, deallocate }),
        Just(Request::Flush),
        Just(Request::Complete),
        any::<bool>().prop_map(|member| Request::Commit { member }),
        set().prop_map(|blocks| Request::Mark { blocks }),
        (r#gen(), 0..REGIONS, 0..=1_u32 << 18).prop_map(|(since, from, limit)| Request::Scan {
            since,
            from: RegionIndex(from),
            limit
        }),
        (set(), r#gen()).prop_map(|(blocks, since)| Request::Digest { blocks, since }),
        resync(),
        Just(Request::Close),
        Just(Request::Renew),
        any::<u32>().prop_map(|copies| Request::Enter { copies }),
        (node(), uuid(), entries()).prop_map(|(node, source, blocks)| Request::Pull {
            node,
            source: ReplicaId(source),
            blocks
        }),
        (uuid(), set())
            .prop_map(|(source, blocks)| Request::Fetch { source: ReplicaId(source), blocks }),
        (1..=MAX_VOLUME_BLOCKS).prop_map(|blocks| Request::Extend { blocks }),
        Just(Request::Prepare),
        uuid().prop_map(|id| Request::Snapshot { id: SnapshotId(id) }),
        uuid().prop_map(|id| Request::DropSnapshot { id: SnapshotId(id) }),
        uuid().prop_map(|id| Request::Seal { id: SnapshotId(id) }),
        (uuid(), 0..REGIONS, 0..=1_u32 << 18).prop_map(|(id, from, limit)| Request::ScanKept {
            id: SnapshotId(id),
            from: RegionIndex(from),
            limit
        }),
        (uuid(), set()).prop_map(|(id, blocks)| Request::DigestKept { id: SnapshotId(id), blocks }),
        (uuid(), set()).prop_map(|(id, blocks)| Request::ReadKept { id: SnapshotId(id), blocks }),
    ]
}

fn promised() -> impl Strategy<Value = Promised> {
    let flags = any::<(bool, bool, bool, bool)>();
    let silent = any::<(Option<u32>, Option<u64>)>();
    (any::<(u64, u32, u32, u64)>(), flags, set(), regions(), silent).prop_map(
        |(numbers, (unclean, lossy, fresh, pulls), ring, unresolved, (silent_ms, blocks))| {
            Promised {
                incarnation: Incarnation(numbers.0),
                unclean,
                lossy,
                fresh,
                member_gen: Gen(numbers.1),
                ring,
                unresolved,
                credit_ops: numbers.2,
                credit_bytes: numbers.3,
                silent_ms,
                pulls,
                blocks,
            }
        },
    )
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any::<u64>().prop_map(|promised| Refusal::Epoch { promised: Epoch(promised) }),
        Just(Refusal::NoSuchReplica),
        any::<u64>().prop_map(|promised| Refusal::PutBack { promised: Epoch(promised) }),
        Just(Refusal::NoSession),
        Just(Refusal::Faulted),
        Just(Refusal::Io),
        any::<u64>().prop_map(|block| Refusal::Checksum { block }),
        Just(Refusal::Malformed),
        Just(Refusal::NotPulled),
        Just(Refusal::Busy),
        Just(Refusal::NoRoom),
        Just(Refusal::NoReflink),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let wholeness =
        prop_oneof![Just(Wholeness::Unknown), Just(Wholeness::Whole), Just(Wholeness::Doubtful)];
    let digest = (any::<u32>(), any::<bool>(), any::<[u8; 16]>(), wholeness);
    let digests = btree_map(0..MAX_VOLUME_BLOCKS, digest, 0..20);
    prop_oneof![
        promised().prop_map(|promised| Reply::Promised(Box::new(promised))),
        (0_usize..4, any::<u8>()).prop_map(|(blocks, seed)| Reply::Data(payload(blocks, seed))),
        Just(Reply::Done),
        (regions(), proptest::option::of((0..REGIONS).prop_map(RegionIndex)))
            .prop_map(|(regions, next)| Reply::Regions { regions, next }),
        digests.prop_map(|digests| {
            let entry = |(block, (stamp, zero, digest, wholeness))| BlockDigest {
                block,
                stamp: Gen(stamp),
                zero,
                digest: Digest(digest),
                wholeness,
            };
            Reply::Digests(digests.into_iter().map(entry).collect())
        }),
        refusal().prop_map(Reply::Refused),
    ]
}

fn node() -> impl Strategy<Value = NodeId> {
    "[a-z0-9._-]{1,253}".prop_filter_map("a node's name", |name| NodeId::new(&name))
}

fn link() -> impl Strategy<Value = LinkFrame> {
    let reason = prop_oneof![
        any::<(u16, u16)>().prop_map(|(min, max)| RejectReason::Version { min, max }),
        Just(RejectReason::Cluster),
        Just(RejectReason::Duplicate),
        Just(RejectReason::Shutdown),
        Just(RejectReason::WrongNode),
        Just(RejectReason::SameNode),
        (7_u8..=255).prop_map(RejectReason::Unknown),
    ];
    let hello =
        (any::<(u16, u16, u64)>(), uuid(), node()).prop_map(|((a, b, process), c, node)| {
            let (min_version, max_version) = (a.min(b), a.max(b));
            LinkFrame::Hello { min_version, max_version, cluster: c, node, process }
        });
    prop_oneof![
        hello,
        (any::<(u16, u64)>(), node()).prop_map(|((version, process), node)| LinkFrame::Welcome {
            version,
            node,
            process
        }),
        reason.prop_map(|reason| LinkFrame::Reject { reason }),
        any::<u64>().prop_map(|id| LinkFrame::Ping { id }),
        any::<u64>().prop_map(|id| LinkFrame::Pong { id }),
    ]
}

fn header() -> impl Strategy<Value = Header> {
    (uuid(), any::<(u64, u32, u64, u64)>()).prop_map(|(volume, (epoch, r#gen, seq, commit))| {
        Header {
            volume: VolumeId(volume),
            epoch: Epoch(epoch),
            r#gen: Gen(r#gen),
            seq: Seq(seq),
            commit: Seq(commit),
        }
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        5 => (header(), request())
            .prop_map(|(header, body)| Frame::Request(Message { header, body })),
        3 => (header(), reply()).prop_map(|(header, body)| Frame::Reply(Message { header, body })),
        2 => link().prop_map(Frame::Link),
    ]
}

/// All bytes of a frame in one piece, as the network carries them.
fn flat(encoded: &Encoded) -> Vec<u8> {
    [encoded.head.as_ref(), encoded.data.as_ref()].concat()
}

/// Reads a frame from a stream as the daemon does.
fn receive(bytes: &[u8]) -> Result<Frame, WireError> {
    let short = |expected| WireError::Length { expected, found: bytes.len() };
    let (header, rest) = bytes.split_first_chunk().ok_or(short(HEADER_BYTES))?;
    let prefix = Prefix::parse(header)?;
    let (body_len, data_len) = (prefix.body_len(), prefix.data_len());
    assert!(body_len <= MAX_BODY_BYTES as usize && data_len <= MAX_DATA_BYTES as usize);
    let body = rest.get(..body_len).ok_or(short(HEADER_BYTES + body_len))?;
    let data = rest.get(body_len..).unwrap_or(&[]);
    prefix.finish(Bytes::copy_from_slice(body), Bytes::copy_from_slice(data))
}

fn le32(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

/// Puts right the lengths and checksums of a frame whose header or body was changed.
fn seal(bytes: &mut [u8], body_len: usize) {
    let end = (HEADER_BYTES + body_len).min(bytes.len());
    let body_crc = crc32c::crc32c(&bytes[HEADER_BYTES..end]);
    bytes[52..56].copy_from_slice(&le32(body_len));
    bytes[60..64].copy_from_slice(&body_crc.to_le_bytes());
    let header_crc = crc32c::crc32c(&bytes[..68]);
    bytes[68..72].copy_from_slice(&header_crc.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn a_frame_comes_back_as_it_was(frame in frame()) {
        let encoded = encode(&frame);
        prop_assert_eq!(encoded.len(), flat(&encoded).len());
        prop_assert_eq!(receive(&flat(&encoded)), Ok(frame.clone()));
        prop_assert_eq!(encoded.decode(), Ok(frame));
    }

    #[test]
    fn a_flipped_bit_is_found(frame in frame(), at in any::<prop::sample::Index>()) {
        let mut bytes = flat(&encode(&frame));
        let bit = at.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(receive(&bytes).is_err(), "bit {} was flipped unseen in {:?}", bit, frame);
    }

    #[test]
    fn a_cut_frame_is_found(frame in frame(), at in any::<prop::sample::Index>()) {
        let bytes = flat(&encode(&frame));
        prop_assert!(receive(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(receive(&bytes).is_err(), "no checksum fits by chance");
    }

    /// A peer that means harm makes its checksums fit. What is then read has exactly one form.
    #[test]
    fn sealed_nonsense_is_refused_or_has_one_form(
        frame in frame(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        kind in proptest::option::of(proptest::sample::select(Kind::ALL)),
        tail in vec(any::<u8>(), 0..3),
    ) {
        let encoded = encode(&frame);
        let mut head = encoded.head.to_vec();
        head.extend(tail);
        for (at, value) in changes {
            let at = at.index(head.len());
            head[at] = value;
        }
        head[..4].copy_from_slice(b"LKS1");
        if let Some(kind) = kind {
            let version = if kind.is_handshake() { 0 } else { head[4] % 2 + 1 };
            head[4..6].copy_from_slice(&u16::from(version).to_le_bytes());
            head[6] = kind.byte();
        }
        let body_len = head.len() - HEADER_BYTES;
        seal(&mut head, body_len);
        let bytes = [head.as_slice(), encoded.data.as_ref()].concat();
        if let Ok(read) = receive(&bytes) {
            let is_handshake = matches!(read, Frame::Link(
                LinkFrame::Hello { .. } | LinkFrame::Welcome { .. } | LinkFrame::Reject { .. }
            ));
            let again = match u16::from_le_bytes([head[4], head[5]]) {
                0 => flat(&encode(&read)),
                version => flat(&encode_as(&read, version)),
            };
            prop_assert!(is_handshake || again == bytes, "{:?} has two forms", read);
        }
    }
}

/// A frame whose body is `body` and whose header is that of `kind`.
fn made_by_hand(kind: Kind, flags: u8, body: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0_u8; HEADER_BYTES];
    bytes[..4].copy_from_slice(b"LKS1");
    bytes[4..6].copy_from_slice(&u16::from(!kind.is_handshake()).to_le_bytes());
    bytes[6..8].copy_from_slice(&[kind.byte(), flags]);
    bytes[56..60].copy_from_slice(&le32(data.len()));
    bytes.extend_from_slice(body);
    seal(&mut bytes, body.len());
    bytes.extend_from_slice(data);
    bytes
}

fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut body = le32(ranges.len()).to_vec();
    for (start, count) in ranges {
        body.extend(start.to_le_bytes());
        body.extend(count.to_le_bytes());
    }
    body
}

fn refusal_of(bytes: &[u8]) -> String {
    match receive(bytes) {
        Ok(frame) => format!("read: {frame:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_breaks_the_format_is_refused_by_name() {
    let top = MAX_VOLUME_BLOCKS;
    let block = [0_u8; BLOCK_SIZE as usize];
    let one_block = [list(&[(5, 1)])[4..].to_vec(), crc32c::crc32c(&block).to_le_bytes().to_vec()];
    let two_regions = [2_u32, 7, 7].iter().flat_map(|n| n.to_le_bytes());
    let regions = [0_u8; 5].into_iter().chain(two_regions).collect::<Vec<u8>>();
    let many = [&le32((1 << 16) + 1)[..], &vec![0; 29 * ((1 << 16) + 1)]].concat();
    type Case<'a> = (Kind, u8, Vec<u8>, &'a [u8], &'a str);
    let cases: &[Case<'_>] = &[
        (Kind::Mark, 0, list(&[(0, 0)]), &[], "an empty range"),
        (Kind::Mark, 0, list(&[(top - 1, 2)]), &[], "beyond the largest volume"),
        (Kind::Mark, 0, list(&[(u64::MAX, 1)]), &[], "beyond the largest volume"),
        (Kind::Mark, 0, list(&[(8, 1), (4, 1)]), &[], "out of order"),
        (Kind::Mark, 0, list(&[(4, 2), (6, 1)]), &[], "touching"),
        (Kind::Mark, 0, list(&[(4, 2), (4, 2)]), &[], "overlapping"),
        (Kind::Mark, 0, u32::MAX.to_le_bytes().to_vec(), &[], "fewer entries than announced"),
        (Kind::Read, 0, list(&[(0, MAX_OP_BLOCKS + 1)]), &[], "than one answer can hold"),
        (Kind::Zero, 0, list(&[(0, 257)])[4..].to_vec(), &[], "longer than one operation"),
        (Kind::Zero, 4, list(&[(0, 1)])[4..].to_vec(), &[], "unknown flags 0x04"),
        (Kind::Write, 0, one_block[0].clone(), &block, "fewer checksums than blocks"),
        (Kind::Write, 0, one_block[0].clone(), &[], "as many blocks of data"),
        (Kind::Write, 0, one_block.concat(), &block[1..], "4095 bytes of data; whole blocks"),
        (Kind::Flush, 0, vec![0], &[], "bytes after the last field"),
        (Kind::Flush, 0, vec![], &block, "4096 bytes of data; whole blocks and at most 0"),
        (Kind::Regions, 0, regions, &[], "regions are not ascending"),
        (Kind::Regions, 0, [&[0, 1], &[0; 7][..]].concat(), &[], "although there is no more"),
        (Kind::Resync, 0, many.clone(), &[], "more blocks than one resync may name"),
        (Kind::Digests, 0, many, &[], "more digests than one answer may hold"),
        (Kind::Refused, 0, vec![9; 9], &[], "unknown refusal"),
        (Kind::Ping, 0, vec![0; 7], &[], "ends within a field"),
        (Kind::Hello, 0, vec![0; 1025], &[], "a body of 1025 bytes; at most 1024"),
        (Kind::Reject, 0, vec![], &[], "ends within a field"),
    ];
    for (kind, flags, body, data, why) in cases {
        let found = refusal_of(&made_by_hand(*kind, *flags, body, data));
        assert!(found.contains(why), "{kind}: {found:?} does not say {why:?}");
    }
}

#[test]
fn a_header_of_others_is_refused_by_name() {
    let intact = made_by_hand(Kind::Flush, 0, &[], &[]);
    let changed = |at: usize, value: u8| {
        let mut bytes = intact.clone();
        bytes[at] = value;
        seal(&mut bytes, 0);
        refusal_of(&bytes)
    };
    assert!(refusal_of(&intact).starts_with("read: "));
    assert!(refusal_of(b"GET / HTTP/1.1\r\n").contains("instead of 72"));
    assert!(changed(0, b'X').contains("does not speak the Lockstep protocol"));
    assert!(changed(4, 9).contains("Flush frame in wire version 9; this build speaks 1 to 4"));
    assert!(changed(6, 0x7f).contains("unknown kind of frame 0x7f in wire version 1"));
    assert!(changed(64, 1).contains("must be zero"), "the reserved field");
    let mut ping = made_by_hand(Kind::Ping, 0, &[0; 8], &[]);
    ping[10] = 1;
    seal(&mut ping, 8);
    assert!(refusal_of(&ping).contains("must be zero"), "a ping is about no volume");
}

#[test]
fn a_later_version_may_append_to_a_hello() {
    let node = NodeId::new("a").expect("legal");
    let hello = LinkFrame::Hello {
        min_version: 3,
        max_version: 9,
        cluster: Uuid::from_u128(1),
        node,
        process: 2,
    };
    let frame = Frame::Link(hello);
    let mut body = encode(&frame).head[HEADER_BYTES..].to_vec();
    body.extend_from_slice(b"what version nine has to say");
    assert_eq!(receive(&made_by_hand(Kind::Hello, 0, &body, &[])), Ok(frame));
}

#[test]
fn damaged_data_names_the_block() {
    let range = BlockRange::new(0, 3);
    let header = Header {
        volume: VolumeId(Uuid::nil()),
        epoch: Epoch(1),
        r#gen: Gen(1),
        seq: Seq(1),
        commit: Seq(0),
    };
    let body = Request::Write { range, fua: false, payload: payload(3, 1) };
    let mut bytes = flat(&encode(&Frame::Request(Message { header, body })));
    let last = bytes.len() - 1;
    bytes[last] ^= 0x80;
    assert_eq!(receive(&bytes), Err(WireError::BlockChecksum { kind: Kind::Write, index: 2 }));
}

/// The payload goes out from where it lies.
#[test]
fn data_is_not_copied() {
    let payload = payload(2, 9);
    let at = payload.data.as_ptr();
    let header = Header {
        volume: VolumeId(Uuid::nil()),
        epoch: Epoch(1),
        r#gen: Gen(1),
        seq: Seq(1),
        commit: Seq(0),
    };
    let encoded = encode(&Frame::Reply(Message { header, body: Reply::Data(payload) }));
    assert_eq!(encoded.data.as_ptr(), at);
    let Ok(Frame::Reply(Message { body: Reply::Data(back), .. })) = encoded.decode() else {
        panic!("the frame did not come back");
    };
    assert_eq!(back.data.as_ptr(), at);
}
