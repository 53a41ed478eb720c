//! Clients that break the protocol. None of them may harm another.

use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::nbd::proto::{OptionHeader, RequestHeader};
use lockstep_attach::nbd::proto::{cmd, flag, opt, rep};

use crate::raw::{Answer, Raw, info_data, request, simple};
use crate::world::{MIB, World, memory_world, pattern};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

async fn assert_serving(world: &World<MemoryBackend>) {
    let client = world.client("disk").await;
    client.flush().await.unwrap();
    client.close().await.unwrap();
}

#[tokio::test]
async fn garbage_ends_the_connection_at_every_stage() {
    let (world, _) = memory_world(MIB).await;
    for seed in 1..20 {
        let mut raw = Raw::greeted(&world.socket).await;
        raw.send(&pattern(4096, seed)).await;
        raw.assert_closed().await;

        let mut raw = Raw::haggling(&world.socket).await;
        raw.send(&pattern(4096, seed)).await;
        raw.assert_closed().await;

        let mut raw = Raw::transmitting(&world.socket, "disk", seed % 2 == 0).await;
        raw.send(&pattern(4096, seed)).await;
        raw.assert_closed().await;
    }
    assert_serving(&world).await;
}

#[tokio::test]
async fn options_may_not_be_huge() {
    let (world, _) = memory_world(MIB).await;
    for length in [64 * 1024 + 1, u32::MAX] {
        let mut raw = Raw::haggling(&world.socket).await;
        raw.send(&OptionHeader { option: opt::LIST, length }.encode()).await;
        assert_eq!(raw.reply().await.kind, rep::ERR_TOO_BIG);
        raw.assert_closed().await;
    }
    assert_serving(&world).await;
}

#[tokio::test]
async fn options_whose_lengths_lie_are_refused() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::haggling(&world.socket).await;
    let good = info_data("disk", &[3]);
    for cut in 0..good.len() {
        assert_eq!(raw.verdict(opt::GO, &good[..cut]).await, rep::ERR_INVALID);
    }
    assert_eq!(raw.verdict(opt::GO, &[0xff; 100]).await, rep::ERR_INVALID);
    assert_eq!(raw.verdict(opt::GO, &good).await, rep::ACK);
    raw.assert_alive().await;
}

#[tokio::test]
async fn a_client_may_vanish_at_any_byte() {
    let (world, backend) = memory_world(MIB).await;
    let mut script = 3u32.to_be_bytes().to_vec();
    let data = info_data("disk", &[]);
    let length = u32::try_from(data.len()).unwrap();
    script.extend_from_slice(&OptionHeader { option: opt::GO, length }.encode());
    script.extend_from_slice(&data);
    script.extend_from_slice(&request(cmd::WRITE, 1, 0, 4096).encode());
    let whole = script.len() + 4096;
    script.extend_from_slice(&[9; 4096]);
    for cut in (0..script.len() - 4096).chain([whole - 4095, whole - 1]) {
        let mut raw = Raw::greeted(&world.socket).await;
        raw.send(&script[..cut]).await;
    }
    // An export that is removed has no connection left: all of them have been noticed.
    world.server.remove("disk").await.unwrap();
    assert_eq!(backend.allocated_blocks(), 0, "part of a payload was written");
    world.add("disk", &backend);
    assert_serving(&world).await;
}

#[tokio::test]
async fn bytes_may_arrive_one_at_a_time() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::greeted(&world.socket).await;
    let mut script = 3u32.to_be_bytes().to_vec();
    let data = info_data("disk", &[]);
    let length = u32::try_from(data.len()).unwrap();
    script.extend_from_slice(&OptionHeader { option: opt::GO, length }.encode());
    script.extend_from_slice(&data);
    script.extend_from_slice(&request(cmd::WRITE, 1, 8192, 4096).encode());
    let payload = pattern(4096, 1);
    script.extend_from_slice(&payload);
    for byte in script {
        raw.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    while raw.reply().await.kind != rep::ACK {}
    assert_eq!(raw.answer().await, simple(0, 1));
    for byte in request(cmd::READ, 2, 8192, 4096).encode() {
        raw.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(raw.answer().await, simple(0, 2));
    assert_eq!(raw.receive(4096).await, payload);
}

#[tokio::test]
async fn unknown_commands_and_flags_are_refused_one_by_one() {
    let (world, backend) = memory_world(MIB).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    for command in [8, 9, 1000, u16::MAX] {
        assert_eq!(raw.call(request(command, 5, 0, 4096)).await, simple(EINVAL, 5));
    }
    for command in [cmd::READ, cmd::TRIM, cmd::FLUSH, cmd::CACHE, cmd::WRITE_ZEROES] {
        let length = if command == cmd::FLUSH { 0 } else { 4096 };
        let header = RequestHeader { flags: 1 << 9, ..request(command, 6, 0, length) };
        assert_eq!(raw.call(header).await, simple(EINVAL, 6), "command {command}");
    }
    let unfragmented = RequestHeader { flags: flag::DF, ..request(cmd::READ, 7, 0, 4096) };
    assert_eq!(raw.call(unfragmented).await, simple(EINVAL, 7), "DF was not negotiated");

    let header = RequestHeader { flags: flag::DF, ..request(cmd::WRITE, 8, 0, 8192) };
    raw.send(&header.encode()).await;
    raw.send(&[1; 8192]).await;
    assert_eq!(raw.answer().await, simple(EINVAL, 8));
    raw.assert_alive().await;
    assert_eq!(backend.allocated_blocks(), 0);
}

#[tokio::test]
async fn ranges_outside_or_across_blocks_are_refused() {
    let (world, backend) = memory_world(MIB).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    for (offset, length) in [(MIB, 4096), (MIB - 4096, 8192), (u64::MAX - 4095, 4096)] {
        for command in [cmd::READ, cmd::TRIM, cmd::CACHE] {
            assert_eq!(raw.call(request(command, 1, offset, length)).await, simple(EINVAL, 1));
        }
        let zeroes = request(cmd::WRITE_ZEROES, 2, offset, length);
        assert_eq!(raw.call(zeroes).await, simple(ENOSPC, 2));
        raw.send(&request(cmd::WRITE, 3, offset, length).encode()).await;
        raw.send(&vec![1; length as usize]).await;
        assert_eq!(raw.answer().await, simple(ENOSPC, 3));
    }
    for (offset, length) in [(512, 4096), (0, 512), (1, 1), (4095, 2)] {
        for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
            assert_eq!(raw.call(request(command, 4, offset, length)).await, simple(EINVAL, 4));
        }
        raw.send(&request(cmd::WRITE, 5, offset, length).encode()).await;
        raw.send(&vec![1; length as usize]).await;
        assert_eq!(raw.answer().await, simple(EINVAL, 5));
    }
    raw.assert_alive().await;
    assert_eq!(backend.allocated_blocks(), 0);
}

#[tokio::test]
async fn a_payload_too_large_is_swallowed_and_refused() {
    let (world, backend) = memory_world(64 * MIB).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", true).await;
    let length = 33 << 20;
    raw.send(&request(cmd::WRITE, 1, 0, length).encode()).await;
    let mebibyte = vec![0x55; 1 << 20];
    for _ in 0..33 {
        raw.send(&mebibyte).await;
    }
    let Answer::Chunk { flags: 1, kind: 0x8001, cookie: 1, data } = raw.answer().await else {
        panic!("the refusal is a structured error")
    };
    assert_eq!(data[..4], EINVAL.to_be_bytes());
    assert!(String::from_utf8_lossy(&data[6..]).contains("32 MiB"));
    assert_eq!(backend.allocated_blocks(), 0);

    let Answer::Chunk { data, .. } = raw.call(request(cmd::READ, 2, 0, length)).await else {
        panic!("reads are answered structured")
    };
    assert_eq!(data[..4], 75u32.to_be_bytes(), "EOVERFLOW");
    raw.assert_alive().await;
}

#[tokio::test]
async fn empty_requests_are_answered() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        assert_eq!(raw.call(request(command, 1, 4096, 0)).await, simple(0, 1));
    }
    let mut raw = Raw::transmitting(&world.socket, "disk", true).await;
    let none = Answer::Chunk { flags: 1, kind: 0, cookie: 1, data: vec![] };
    assert_eq!(raw.call(request(cmd::READ, 1, 4096, 0)).await, none);
}

#[tokio::test]
async fn a_disconnect_request_ends_the_connection() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    raw.send(&request(cmd::FLUSH, 1, 0, 0).encode()).await;
    raw.send(&request(cmd::DISC, 2, 0, 0).encode()).await;
    assert_eq!(raw.answer().await, simple(0, 1), "what came before is answered");
    raw.assert_closed().await;
}
