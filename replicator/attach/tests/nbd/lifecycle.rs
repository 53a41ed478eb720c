//! Exports and clients that come and go while requests are in flight.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_attach::Errno;
use lockstep_attach::nbd::proto::cmd;
use lockstep_attach::nbd::{Client, ClientError, Export, Limits, NbdUri, ServerError};

use crate::gated::GatedBackend;
use crate::raw::{Raw, request, simple};
use crate::world::{MIB, World, soon};

const BLOCK: Bytes = Bytes::from_static(&[7; 4096]);

async fn gated_world(limits: Limits) -> (World<GatedBackend>, Arc<GatedBackend>) {
    let world = World::with_limits(limits).await;
    let backend = Arc::new(GatedBackend::new(256 * MIB));
    world.add("disk", &backend);
    (world, backend)
}

fn impatient() -> Limits {
    Limits { drain: Duration::from_millis(20), ..Limits::default() }
}

#[tokio::test]
async fn replies_overtake_each_other() {
    let (world, backend) = gated_world(Limits::default()).await;
    let client = world.client("disk").await;
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.write(0, BLOCK, false).await }
    });
    soon("the write arrives", backend.started(1)).await;
    soon("a read behind a stuck write", client.read(0, 4096)).await.unwrap();
    soon("a flush behind a stuck write", client.flush()).await.unwrap();
    assert_eq!(backend.finished(), 0);
    backend.release(1);
    soon("the write", slow).await.unwrap().unwrap();
}

#[tokio::test]
async fn requests_in_flight_are_limited() {
    let limits = Limits { requests_max: 4, ..Limits::default() };
    let (world, backend) = gated_world(limits).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    for cookie in 0..20u64 {
        raw.send(&request(cmd::WRITE, cookie, cookie * 4096, 4096).encode()).await;
        raw.send(&BLOCK).await;
    }
    for done in 0..20 {
        soon("the next write arrives", backend.started((done + 4).min(20))).await;
        // One more release lets exactly one more request in.
        assert_eq!(backend.started_now(), (done + 4).min(20));
        backend.release(1);
        assert_eq!(raw.answer().await, simple(0, done as u64));
    }
}

#[tokio::test]
async fn bytes_in_flight_are_limited() {
    let limits = Limits { bytes_max: 48 << 20, ..Limits::default() };
    let (world, backend) = gated_world(limits).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    // Reads of 8 MiB: a third would leave no room for the largest request.
    for cookie in 0..6 {
        raw.send(&request(cmd::READ, cookie, (cookie + 1) * 8 * MIB, 8 << 20).encode()).await;
    }
    for done in 0..6 {
        let expected = (done + 3).min(6);
        soon("the next read arrives", backend.started(expected)).await;
        assert_eq!(backend.started_now(), expected);
        backend.release(1);
        assert_eq!(raw.answer().await, simple(0, done as u64));
        raw.receive(8 << 20).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_buffered_for() {
    let limits = Limits { bytes_max: 40 << 20, ..Limits::default() };
    let (world, backend) = gated_world(limits).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    backend.release(1000);
    let reads = 100u64;
    for cookie in 0..reads {
        raw.send(&request(cmd::READ, cookie, MIB, 8 << 20).encode()).await;
    }
    soon("the first reads", backend.started(2)).await;
    // This runtime has one thread: here the server runs until it can do no more.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    // Replies wait in the socket and in 40 MiB; no further read is begun for them.
    assert!(backend.started_now() <= 6, "{} reads were begun", backend.started_now());
    for cookie in 0..reads {
        assert_eq!(raw.answer().await, simple(0, cookie));
        raw.receive(8 << 20).await;
    }
}

#[tokio::test]
async fn a_vanished_client_does_not_cancel_its_requests() {
    let (world, backend) = gated_world(Limits::default()).await;
    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    for cookie in 0..3u64 {
        raw.send(&request(cmd::WRITE, cookie, cookie * 4096, 4096).encode()).await;
        raw.send(&BLOCK).await;
    }
    soon("the writes arrive", backend.started(3)).await;
    drop(raw);
    backend.release(3);
    world.server.remove("disk").await.unwrap();
    assert_eq!((backend.finished(), backend.dropped()), (3, 0));
    assert_eq!(backend.inner.allocated_blocks(), 3);
}

/// A client that must not be connected yet, because of `why`: a little later it waits still.
async fn kept_waiting<'a>(
    uri: &'a NbdUri,
    why: &str,
) -> Pin<Box<impl Future<Output = Result<Client, ClientError>> + use<'a>>> {
    let mut client = Box::pin(Client::connect(uri));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut client).await;
    assert!(early.is_err(), "{why}");
    client
}

#[tokio::test]
async fn a_place_is_free_only_when_the_last_request_has_ended() {
    let world = World::with_limits(Limits::default()).await;
    let backend = Arc::new(GatedBackend::new(MIB));
    let mut export = Export::new("disk", Arc::clone(&backend));
    export.connections_max = 1;
    world.server.add(export).unwrap();

    let mut raw = Raw::transmitting(&world.socket, "disk", false).await;
    raw.send(&request(cmd::WRITE, 1, 0, 4096).encode()).await;
    raw.send(&BLOCK).await;
    soon("the write arrives", backend.started(1)).await;
    drop(raw);

    let uri = world.unix("disk");
    let why = "a request of the old connection may still overtake";
    let second = kept_waiting(&uri, why).await;
    backend.release(1);
    let client = soon("the second connection", second).await.unwrap();
    assert_eq!(backend.finished(), 1);
    assert_eq!(client.read(0, 4096).await.unwrap(), BLOCK);
}

#[tokio::test]
async fn connections_are_limited_over_all_listeners() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let (world, _) = gated_world(limits).await;
    for uri in [world.tcp("disk"), world.unix("disk")] {
        let first = soon("the first client", Client::connect(&uri)).await.unwrap();
        let second = kept_waiting(&uri, "two clients where one is allowed").await;
        first.close().await.unwrap();
        soon("the second client", second).await.unwrap().close().await.unwrap();
    }
}

#[tokio::test]
async fn removing_an_export_fails_what_hangs() {
    let (world, backend) = gated_world(impatient()).await;
    let client = world.client("disk").await;
    let writes: Vec<_> = (0..5u64)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.write(number * 4096, BLOCK, false).await })
        })
        .collect();
    soon("the writes arrive", backend.started(5)).await;

    let server = world.server.clone();
    let removal = tokio::spawn(async move { server.remove("disk").await });
    for write in writes {
        let error = soon("the write fails", write).await.unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Shutdown), "{error}");
    }
    drop(client);
    soon("the removal", removal).await.unwrap().unwrap();
    assert_eq!((backend.finished(), backend.dropped()), (0, 5));
    assert_eq!(Arc::strong_count(&backend), 1, "the server holds the volume no longer");
    let gone = Client::connect(&world.unix("disk")).await.unwrap_err();
    assert!(matches!(gone, ClientError::Refused { .. }), "{gone}");
    world.add("disk", &backend);
    world.client("disk").await.flush().await.unwrap();
}

#[tokio::test]
async fn removing_an_export_lets_healthy_requests_finish() {
    let limits = Limits { drain: Duration::from_secs(3600), ..Limits::default() };
    let (world, backend) = gated_world(limits).await;
    let client = world.client("disk").await;
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.write(0, BLOCK, false).await }
    });
    soon("the write arrives", backend.started(1)).await;
    let server = world.server.clone();
    let removal = tokio::spawn(async move { server.remove("disk").await });
    soon("the export is off the list", async {
        while !world.server.exports().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let leaving = ServerError::Leaving { name: "disk".into() };
    assert_eq!(world.server.add(Export::new("disk", Arc::clone(&backend))), Err(leaving));
    backend.release(1);
    soon("the write", write).await.unwrap().unwrap();
    soon("the removal", removal).await.unwrap().unwrap();
    let error = client.flush().await.unwrap_err();
    assert!(matches!(error, ClientError::Disconnected(_)), "{error}");
}

#[tokio::test]
async fn an_idle_client_does_not_hold_up_a_removal() {
    let (world, _) = gated_world(Limits::default()).await;
    let _idle = world.client("disk").await;
    soon("the removal", world.server.remove("disk")).await.unwrap();
}

#[tokio::test]
async fn stopping_the_server_ends_everything() {
    let (world, backend) = gated_world(impatient()).await;
    let client = world.client("disk").await;
    let haggling = Raw::haggling(&world.socket).await;
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.write(0, BLOCK, false).await }
    });
    soon("the write arrives", backend.started(1)).await;
    world.stop.cancel();
    let error = soon("the write fails", write).await.unwrap().unwrap_err();
    assert_eq!(error.errno(), Some(Errno::Shutdown), "{error}");
    haggling.assert_closed().await;
    drop(client);
    soon("the listeners end", world.listening.wait()).await;
    soon("the connections end", world.server.closed()).await;
    assert_eq!(backend.dropped(), 1);
    assert!(Client::connect(&world.unix("disk")).await.is_err());
}
