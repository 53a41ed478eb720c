//! Negotiation, byte by byte.

use std::sync::Arc;
use std::time::Duration;

use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::nbd::proto::{BASE_ALLOCATION, cmd, info, opt, rep, tx};
use lockstep_attach::nbd::{Client, ClientError, Export, Limits, ServerError};

use crate::raw::{Answer, Raw, Reply, context_data, info_data, request, simple, text};
use crate::world::{MIB, World, memory_world};

const EVERYTHING: u16 = tx::HAS_FLAGS
    | tx::SEND_FLUSH
    | tx::SEND_FUA
    | tx::SEND_TRIM
    | tx::SEND_WRITE_ZEROES
    | tx::CAN_MULTI_CONN
    | tx::SEND_CACHE
    | tx::SEND_FAST_ZERO;

fn export_info(size_bytes: u64, flags: u16) -> Vec<u8> {
    [&info::EXPORT.to_be_bytes()[..], &size_bytes.to_be_bytes(), &flags.to_be_bytes()].concat()
}

#[tokio::test]
async fn export_name_ends_the_negotiation() {
    let (world, _) = memory_world(MIB).await;
    for (flags, padding) in [(3u32, 0), (1, 124), (0, 124)] {
        let mut raw = Raw::greeted(&world.socket).await;
        raw.send(&flags.to_be_bytes()).await;
        raw.send_option(opt::EXPORT_NAME, b"disk").await;
        let reply = raw.receive(10 + padding).await;
        assert_eq!(reply[..8], MIB.to_be_bytes());
        assert_eq!(reply[8..10], EVERYTHING.to_be_bytes());
        assert!(reply[10..].iter().all(|&byte| byte == 0));
        raw.assert_alive().await;
    }
}

#[tokio::test]
async fn export_name_cannot_be_refused_politely() {
    let (world, _) = memory_world(MIB).await;
    for name in [&b"other"[..], &[0xff, 0xff], &[b'a'; 5000]] {
        let mut raw = Raw::haggling(&world.socket).await;
        raw.send_option(opt::EXPORT_NAME, name).await;
        raw.assert_closed().await;
    }
}

#[tokio::test]
async fn unknown_client_flags_end_the_connection() {
    let (world, _) = memory_world(MIB).await;
    for flags in [4u32, 1 << 31, 0xffff_ffff] {
        let mut raw = Raw::greeted(&world.socket).await;
        raw.send(&flags.to_be_bytes()).await;
        raw.assert_closed().await;
    }
}

#[tokio::test]
async fn a_client_without_fixed_newstyle_has_one_option() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::greeted(&world.socket).await;
    raw.send(&2u32.to_be_bytes()).await;
    raw.send_option(opt::LIST, &[]).await;
    raw.assert_closed().await;
}

#[tokio::test]
async fn info_and_go_tell_the_same() {
    let (world, backend) = memory_world(MIB).await;
    let mut export = Export::new("second", backend);
    export.description = "for people".into();
    export.connections_max = 1;
    world.server.add(export).unwrap();

    let mut raw = Raw::haggling(&world.socket).await;
    let data = info_data("second", &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77]);
    let told = raw.ask(opt::INFO, &data).await;
    let block_size = [0, 3, 0, 0, 16, 0, 0, 0, 16, 0, 2, 0, 0, 0];
    let expected = [
        (rep::INFO, export_info(MIB, EVERYTHING & !tx::CAN_MULTI_CONN)),
        (rep::INFO, block_size.to_vec()),
        (rep::INFO, [&[0, 1], &b"second"[..]].concat()),
        (rep::INFO, [&[0, 2], &b"for people"[..]].concat()),
        (rep::ACK, vec![]),
    ];
    let expected = expected.map(|(kind, data)| Reply { option: opt::INFO, kind, data });
    assert_eq!(told, expected);

    let gone = raw.ask(opt::GO, &data).await;
    let as_info = |reply: Reply| Reply { option: opt::INFO, ..reply };
    assert_eq!(gone.into_iter().map(as_info).collect::<Vec<_>>(), told);
    raw.assert_alive().await;
}

#[tokio::test]
async fn df_is_offered_with_structured_replies_only() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::haggling(&world.socket).await;
    let told = raw.ask(opt::INFO, &info_data("disk", &[])).await;
    assert_eq!(told[0].data, export_info(MIB, EVERYTHING));
    assert_eq!(raw.verdict(opt::STRUCTURED_REPLY, &[1]).await, rep::ERR_INVALID);
    assert_eq!(raw.verdict(opt::STRUCTURED_REPLY, &[]).await, rep::ACK);
    let told = raw.ask(opt::INFO, &info_data("disk", &[])).await;
    assert_eq!(told[0].data, export_info(MIB, EVERYTHING | tx::SEND_DF));
}

#[tokio::test]
async fn a_read_only_export_says_so() {
    let world = World::new().await;
    world.add("disk", &Arc::new(MemoryBackend::new(MIB).read_only()));
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    for command in [cmd::TRIM, cmd::WRITE_ZEROES] {
        assert_eq!(raw.call(request(command, 7, 0, 4096)).await, simple(1, 7));
    }
    raw.send(&request(cmd::WRITE, 8, 0, 4096).encode()).await;
    raw.send(&[1; 4096]).await;
    assert_eq!(raw.answer().await, simple(1, 8));
    let client = world.client("disk").await;
    assert_ne!(client.facts().flags & tx::READ_ONLY, 0);
    assert!(matches!(client.trim(0, 4096, false).await, Err(ClientError::Unsupported(_))));
}

#[tokio::test]
async fn the_list_follows_the_exports() {
    let (world, backend) = memory_world(MIB).await;
    let mut raw = Raw::haggling(&world.socket).await;
    let server = |data| Reply { option: opt::LIST, kind: rep::SERVER, data };
    let ack = || Reply { option: opt::LIST, kind: rep::ACK, data: vec![] };
    assert_eq!(raw.ask(opt::LIST, &[]).await, [server(text("disk")), ack()]);
    assert_eq!(raw.verdict(opt::LIST, &[0]).await, rep::ERR_INVALID);

    let mut export = Export::new("another", backend);
    export.description = "told too".into();
    world.server.add(export).unwrap();
    let another = [text("another"), b"told too".to_vec()].concat();
    let expected = [server(another), server(text("disk")), ack()];
    assert_eq!(raw.ask(opt::LIST, &[]).await, expected);

    world.server.remove("another").await.unwrap();
    world.server.remove("disk").await.unwrap();
    assert_eq!(raw.ask(opt::LIST, &[]).await, [ack()]);
    let missing = ServerError::NotFound { name: "disk".into() };
    assert_eq!(world.server.remove("disk").await, Err(missing));
}

#[tokio::test]
async fn the_empty_name_is_the_only_export() {
    let (world, backend) = memory_world(MIB).await;
    let client = world.client("").await;
    assert_eq!(client.facts().name.as_deref(), Some("disk"));
    assert!(client.facts().base_allocation, "the context belongs to the same export");
    world.add("second", &backend);
    let refused = Client::connect(&world.unix("")).await.unwrap_err();
    assert!(refused.to_string().contains("no default export"), "{refused}");
    let refused = Client::connect(&world.unix("third")).await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    let mut raw = Raw::haggling(&world.socket).await;
    assert_eq!(raw.verdict(opt::INFO, &info_data("third", &[])).await, rep::ERR_UNKNOWN);
    assert_eq!(raw.verdict(opt::GO, &info_data("second", &[])).await, rep::ACK);
}

#[tokio::test]
async fn unknown_options_are_declined_and_forgotten() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::haggling(&world.socket).await;
    for option in [opt::STARTTLS, opt::EXTENDED_HEADERS, 4, 12, 0xffff_fff0] {
        assert_eq!(raw.verdict(option, &[1, 2, 3]).await, rep::ERR_UNSUP);
    }
    assert_eq!(raw.verdict(opt::GO, &info_data("disk", &[])).await, rep::ACK);
    raw.assert_alive().await;
}

#[tokio::test]
async fn abort_is_acknowledged() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::haggling(&world.socket).await;
    assert_eq!(raw.verdict(opt::ABORT, b"whatever").await, rep::ACK);
    raw.assert_closed().await;
}

#[tokio::test]
async fn metadata_contexts_need_structured_replies() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::haggling(&world.socket).await;
    let data = context_data("disk", &[BASE_ALLOCATION]);
    for option in [opt::SET_META_CONTEXT, opt::LIST_META_CONTEXT] {
        assert_eq!(raw.verdict(option, &data).await, rep::ERR_INVALID);
    }
}

#[tokio::test]
async fn metadata_contexts_are_listed_and_chosen() {
    let (world, _) = memory_world(MIB).await;
    let mut raw = Raw::haggling(&world.socket).await;
    raw.ask(opt::STRUCTURED_REPLY, &[]).await;
    let context = |id: u32| [&id.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat();

    for (queries, found) in [
        (&[][..], true),
        (&["base:"], true),
        (&["x-other:thing", BASE_ALLOCATION], true),
        (&["base:other"], false),
        (&["qemu:"], false),
    ] {
        let told = raw.ask(opt::LIST_META_CONTEXT, &context_data("disk", queries)).await;
        assert_eq!(told.len(), 1 + usize::from(found), "{queries:?}");
        assert_eq!(told[0].data, if found { context(0) } else { vec![] });
    }
    for (queries, found) in
        [(&[][..], false), (&["base:"], false), (&["x-a:b", BASE_ALLOCATION], true)]
    {
        let told = raw.ask(opt::SET_META_CONTEXT, &context_data("disk", queries)).await;
        assert_eq!(told.len(), 1 + usize::from(found), "{queries:?}");
        assert_eq!(told[0].data, if found { context(1) } else { vec![] });
    }
    let other = context_data("other", &[BASE_ALLOCATION]);
    assert_eq!(raw.verdict(opt::SET_META_CONTEXT, &other).await, rep::ERR_UNKNOWN);
    let nameless = context_data("disk", &["allocation"]);
    assert_eq!(raw.verdict(opt::SET_META_CONTEXT, &nameless).await, rep::ERR_INVALID);
}

#[tokio::test]
async fn a_context_of_another_export_does_not_count() {
    let (world, backend) = memory_world(MIB).await;
    world.add("second", &backend);
    let mut raw = Raw::haggling(&world.socket).await;
    raw.ask(opt::STRUCTURED_REPLY, &[]).await;
    raw.ask(opt::SET_META_CONTEXT, &context_data("second", &[BASE_ALLOCATION])).await;
    raw.ask(opt::GO, &info_data("disk", &[])).await;
    let Answer::Chunk { kind, data, .. } = raw.call(request(cmd::BLOCK_STATUS, 1, 0, 4096)).await
    else {
        panic!("an error comes structured")
    };
    assert_ne!(kind & (1 << 15), 0);
    assert_eq!(data[..4], [0, 0, 0, 22]);
}

#[tokio::test]
async fn the_number_of_options_is_limited() {
    let world = World::with_limits(Limits { options_max: 5, ..Limits::default() }).await;
    world.add("disk", &Arc::new(MemoryBackend::new(MIB)));
    let mut raw = Raw::haggling(&world.socket).await;
    for _ in 0..5 {
        assert_eq!(raw.verdict(99, &[]).await, rep::ERR_UNSUP);
    }
    raw.assert_closed().await;
}

#[tokio::test]
async fn a_handshake_takes_its_time_but_not_for_ever() {
    let limits = Limits { handshake: Duration::from_millis(50), ..Limits::default() };
    let world = World::with_limits(limits).await;
    world.add("disk", &Arc::new(MemoryBackend::new(MIB)));
    Raw::greeted(&world.socket).await.assert_closed().await;
    let mut raw = Raw::haggling(&world.socket).await;
    raw.send(&[0x49, 0x48]).await;
    raw.assert_closed().await;
}

#[tokio::test]
async fn unusable_exports_are_refused() {
    let (world, backend) = memory_world(MIB).await;
    let add = |name: &str| world.server.add(Export::new(name, Arc::clone(&backend)));
    assert_eq!(add("disk"), Err(ServerError::Exists { name: "disk".into() }));
    for name in ["", "a\0b", &"x".repeat(4097)] {
        assert_eq!(add(name), Err(ServerError::BadName { name: name.into() }));
    }
    let mut closed = Export::new("closed", Arc::clone(&backend));
    closed.connections_max = 0;
    let refused = world.server.add(closed);
    assert_eq!(refused, Err(ServerError::NoConnections { name: "closed".into() }));
    assert_eq!(world.server.exports(), ["disk"]);
}
