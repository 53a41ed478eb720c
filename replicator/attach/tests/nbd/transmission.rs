//! What commands do, through our own client.

use bytes::Bytes;
use lockstep_attach::nbd::proto::RequestHeader;
use lockstep_attach::nbd::proto::{chunk, cmd, flag};
use lockstep_attach::nbd::{Client, ConnectOptions};
use lockstep_attach::{Errno, Extent, ZeroMode};

use crate::raw::{Answer, Raw, request};
use crate::world::{MIB, memory_world, pattern};

#[tokio::test]
async fn data_comes_back_over_every_path() {
    let (world, _) = memory_world(80 * MIB).await;
    for uri in [world.unix("disk"), world.tcp("disk")] {
        for structured in [true, false] {
            let options = ConnectOptions { structured, depth: 8 };
            let client = Client::connect_with(&uri, options).await.unwrap();
            assert_eq!(client.size_bytes(), 80 * MIB);
            assert_eq!(client.facts().structured, structured);
            for (offset, len) in [(0, 4096), (8192, 65_536), (MIB, 1 << 20), (40 * MIB, 32 << 20)] {
                let data = Bytes::from(pattern(len, offset + len as u64));
                client.write(offset, data.clone(), false).await.unwrap();
                let len = u32::try_from(len).unwrap();
                assert!(client.read(offset, len).await.unwrap() == data, "{uri} at {offset}");
            }
            client.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_volume_behaves_like_an_array_whatever_is_mixed() {
    let (world, _) = memory_world(MIB).await;
    let plain = ConnectOptions { structured: false, ..ConnectOptions::default() };
    let plain = Client::connect_with(&world.unix("disk"), plain).await.unwrap();
    let structured = world.client("disk").await;
    let mut model = vec![0u8; 1 << 20];
    for (step, choice) in pattern(4 * 1000, 7).chunks_exact(4).enumerate() {
        let first = usize::from(choice[0]);
        let count = (1 + usize::from(choice[1]) % 40).min(256 - first);
        let (start, end) = (first * 4096, (first + count) * 4096);
        let (offset, len) = (start as u64, u32::try_from(end - start).unwrap());
        let client = if choice[2] % 2 == 0 { &plain } else { &structured };
        match choice[3] % 6 {
            0 | 1 => {
                let data = pattern(end - start, step as u64);
                model[start..end].copy_from_slice(&data);
                client.write(offset, data.into(), choice[2] > 200).await.unwrap();
            }
            2 => {
                let mode = ZeroMode { no_hole: choice[2] > 128, ..ZeroMode::default() };
                client.zero(offset, len, mode).await.unwrap();
                model[start..end].fill(0);
            }
            3 => {
                client.trim(offset, len, false).await.unwrap();
                model[start..end].fill(0);
            }
            4 => assert!(client.read(offset, len).await.unwrap() == model[start..end], "{step}"),
            _ => {
                let mut at = start;
                for extent in structured.block_status(offset, len, false).await.unwrap() {
                    let next = at + usize::try_from(extent.len_bytes).unwrap();
                    assert!(!extent.zero || model[at..next].iter().all(|&byte| byte == 0));
                    at = next;
                }
                assert_eq!(at, end, "step {step}: the extents end elsewhere");
            }
        }
    }
    for client in [plain, structured] {
        assert!(client.read(0, 1 << 20).await.unwrap() == model);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_in_flight_keep_their_data_apart() {
    let (world, _) = memory_world(64 * MIB).await;
    let options = ConnectOptions { depth: 64, ..ConnectOptions::default() };
    let client = Client::connect_with(&world.unix("disk"), options).await.unwrap();
    let tasks: Vec<_> = (0..64u64)
        .map(|lane| {
            let client = client.clone();
            tokio::spawn(async move {
                for round in 0..50 {
                    let seed = lane * 1000 + round;
                    let len = 4096 * (1 + (lane * 7 + round * 13) % 32);
                    let len = u32::try_from(len).unwrap();
                    let data = Bytes::from(pattern(len as usize, seed));
                    client.write(lane * MIB, data.clone(), round % 5 == 0).await.unwrap();
                    assert!(client.read(lane * MIB, len).await.unwrap() == data);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_flush_covers_all_connections() {
    let (world, backend) = memory_world(MIB).await;
    let first = world.client("disk").await;
    let second = Client::connect(&world.tcp("disk")).await.unwrap();
    first.write(0, Bytes::from(vec![1; 8192]), false).await.unwrap();
    assert_eq!(backend.unflushed_blocks(), 2);
    second.flush().await.unwrap();
    assert_eq!(backend.unflushed_blocks(), 0);
    assert_eq!(backend.flushes(), 1);
}

#[tokio::test]
async fn fua_reaches_the_volume_on_every_changing_command() {
    let (world, backend) = memory_world(MIB).await;
    let client = world.client("disk").await;
    let zeroes = |fua| ZeroMode { fua, ..ZeroMode::default() };
    for fua in [true, false] {
        client.write(0, Bytes::from(vec![1; 4096]), fua).await.unwrap();
        client.trim(4096, 4096, fua).await.unwrap();
        client.zero(8192, 4096, zeroes(fua)).await.unwrap();
        assert_eq!(backend.unflushed_blocks(), if fua { 0 } else { 3 });
    }
}

#[tokio::test]
async fn zeroing_and_trimming() {
    let (world, backend) = memory_world(MIB).await;
    let client = world.client("disk").await;
    client.write(0, Bytes::from(vec![1; 1 << 20]), false).await.unwrap();
    assert_eq!(backend.allocated_blocks(), 256);

    client.trim(0, 8192, false).await.unwrap();
    client.zero(8192, 8192, ZeroMode::default()).await.unwrap();
    assert_eq!(backend.allocated_blocks(), 252);
    client.zero(0, 8192, ZeroMode { no_hole: true, ..ZeroMode::default() }).await.unwrap();
    assert_eq!(backend.allocated_blocks(), 254);
    let read = client.read(0, 20_480).await.unwrap();
    assert!(read[..16_384].iter().all(|&byte| byte == 0));
    assert!(read[16_384..].iter().all(|&byte| byte == 1));

    client.zero(0, 1 << 20, ZeroMode { fast: true, ..ZeroMode::default() }).await.unwrap();
    assert_eq!(backend.allocated_blocks(), 0);
    client.write(0, Bytes::from(vec![1; 4096]), false).await.unwrap();
    let slow = ZeroMode { fast: true, no_hole: true, fua: false };
    let refused = client.zero(0, 4096, slow).await.unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::NotSupported));
    assert_eq!(client.read(0, 4096).await.unwrap(), vec![1; 4096], "nothing was changed");
    client.cache(0, 1 << 20).await.unwrap();
}

#[tokio::test]
async fn ranges_without_payload_may_be_longer_than_a_payload() {
    let (world, _) = memory_world(1024 * MIB).await;
    let client = world.client("disk").await;
    client.zero(0, 1 << 30, ZeroMode::default()).await.unwrap();
    client.trim(0, 1 << 30, false).await.unwrap();
    client.cache(0, 1 << 30).await.unwrap();
    let extents = client.block_status(0, 1 << 30, false).await.unwrap();
    assert_eq!(extents, [Extent { len_bytes: 1 << 30, hole: true, zero: true }]);
}

#[tokio::test]
async fn block_status_tells_holes_from_data() {
    let (world, _) = memory_world(MIB).await;
    let client = world.client("disk").await;
    client.write(8192, Bytes::from(vec![1; 12_288]), false).await.unwrap();
    let hole = |len_bytes| Extent { len_bytes, hole: true, zero: true };
    let data = |len_bytes| Extent { len_bytes, hole: false, zero: false };
    let rest = MIB - 20_480;
    let all = client.block_status(0, 1 << 20, false).await.unwrap();
    assert_eq!(all, [hole(8192), data(12_288), hole(rest)]);
    assert_eq!(client.block_status(0, 1 << 20, true).await.unwrap(), [hole(8192)]);
    assert_eq!(client.block_status(12_288, 4096, true).await.unwrap(), [data(4096)]);
    assert_eq!(client.block_status(0, 0, false).await.unwrap_err().errno(), Some(Errno::Invalid));

    let plain = ConnectOptions { structured: false, ..ConnectOptions::default() };
    let plain = Client::connect_with(&world.unix("disk"), plain).await.unwrap();
    assert!(plain.block_status(0, 4096, false).await.is_err(), "it was not negotiated");
}

#[tokio::test]
async fn holes_travel_as_holes_and_df_keeps_the_reply_whole() {
    let (world, _) = memory_world(MIB).await;
    let client = world.client("disk").await;
    client.write(4096, Bytes::from(vec![3; 4096]), false).await.unwrap();
    let mut expected = vec![0; 12_288];
    expected[4096..8192].fill(3);
    assert_eq!(client.read(0, 12_288).await.unwrap(), expected);
    assert_eq!(client.read_whole(0, 12_288).await.unwrap(), expected);

    let mut raw = Raw::transmitting(&world.socket, "disk", true).await;
    raw.send(&request(cmd::READ, 1, 0, 12_288).encode()).await;
    let mut kinds = Vec::new();
    loop {
        let Answer::Chunk { flags, kind, .. } = raw.answer().await else {
            panic!("reads are answered structured")
        };
        kinds.push(kind);
        if flags & chunk::DONE != 0 {
            break;
        }
    }
    assert_eq!(kinds, [chunk::OFFSET_HOLE, chunk::OFFSET_DATA, chunk::OFFSET_HOLE]);

    let whole = RequestHeader { flags: flag::DF, ..request(cmd::READ, 2, 0, 12_288) };
    let Answer::Chunk { flags, kind, data, .. } = raw.call(whole).await else {
        panic!("reads are answered structured")
    };
    assert_eq!((flags, kind), (chunk::DONE, chunk::OFFSET_DATA));
    assert_eq!(data[8..], expected);
}

#[tokio::test]
async fn a_client_is_told_why() {
    let (world, _) = memory_world(MIB).await;
    let client = world.client("disk").await;
    let error = client.read(512, 4096).await.unwrap_err();
    assert_eq!(error.errno(), Some(Errno::Invalid));
    assert!(error.to_string().contains("multiple of 4096"), "{error}");
    let error = client.write(MIB, Bytes::from(vec![0; 4096]), false).await.unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NoSpace));
    assert!(client.read(0, (32 << 20) + 4096).await.is_err());
    client.flush().await.unwrap();
}

#[tokio::test]
async fn a_socket_pair_can_be_served_without_a_handshake() {
    let (world, _) = memory_world(MIB).await;
    let (near, far) = tokio::net::UnixStream::pair().unwrap();
    let server = world.server.clone();
    let serving = tokio::spawn(async move {
        let (reader, writer) = far.into_split();
        server.serve_attached("disk", reader, writer).await
    });
    let mut raw = Raw { stream: near };
    raw.assert_alive().await;
    drop(raw);
    serving.await.unwrap().unwrap();
    let (_near, far) = tokio::net::UnixStream::pair().unwrap();
    let (reader, writer) = far.into_split();
    assert!(world.server.serve_attached("other", reader, writer).await.is_err());
}
