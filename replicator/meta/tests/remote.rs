//! A record store over the network: what is told about an outcome when the network fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

use bytes::Bytes;
use lockstep_meta::faulty::{Faulty, WriteFault};
use lockstep_meta::memory::Memory;
use lockstep_meta::remote::{Deadlines, Remote};
use lockstep_meta::{Expect, Meta, MetaError, PutError, Revision, server};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

const SHORT: Deadlines =
    Deadlines { connect: Duration::from_millis(200), request: Duration::from_millis(400) };

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn client(address: SocketAddr, deadlines: Deadlines) -> Remote {
    Remote::new(&format!("http://{address}"), deadlines).unwrap()
}

fn serve(listener: TcpListener, store: Arc<dyn Meta>) {
    tokio::spawn(async move {
        server::serve(listener, store, std::future::pending()).await.unwrap();
    });
}

async fn put(store: &dyn Meta) -> Result<Revision, PutError> {
    store.put_if("k", Expect::Absent, Bytes::from_static(b"v")).await
}

fn is_unknown<T>(outcome: &Result<T, PutError>) -> bool {
    matches!(outcome, Err(PutError::Unknown(_)))
}

fn is_unavailable<T>(outcome: &Result<T, PutError>) -> bool {
    matches!(outcome, Err(PutError::Unavailable(_)))
}

#[tokio::test]
async fn nobody_listening_means_nothing_was_changed() {
    let (listener, address) = listen().await;
    drop(listener);
    let store = client(address, Deadlines::default());
    let refused = put(&store).await;
    assert!(is_unavailable(&refused), "{refused:?}");
    let message = refused.unwrap_err().to_string();
    assert!(message.contains(&address.to_string()), "{message}");
    assert!(is_unavailable(&store.delete_if("k", Revision(1)).await));
    assert!(matches!(store.get("k").await, Err(MetaError::Unavailable(_))));
    assert!(matches!(store.list("", None, 0).await, Err(MetaError::Unavailable(_))));
}

#[tokio::test]
async fn silence_after_a_change_was_sent_leaves_it_undecided() {
    let (_silent, address) = listen().await;
    let store = client(address, SHORT);
    let outcome = put(&store).await;
    assert!(is_unknown(&outcome), "{outcome:?}");
    assert!(is_unknown(&store.delete_if("k", Revision(1)).await));
    assert!(matches!(store.get("k").await, Err(MetaError::Unavailable(_))));
}

/// Hears requests out and hangs up without a word.
async fn hang_up_on(mut stream: TcpStream) {
    let mut heard = [0; 4096];
    // The preface and settings come first; what comes with them or next may be the request.
    for _ in 0..2 {
        if matches!(stream.read(&mut heard).await, Ok(0) | Err(_)) {
            return;
        }
    }
}

#[tokio::test]
async fn a_connection_lost_after_a_change_was_sent_leaves_it_undecided() {
    let (listener, address) = listen().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            hang_up_on(stream).await;
        }
    });
    let store = client(address, SHORT);
    let outcome = put(&store).await;
    assert!(is_unknown(&outcome), "{outcome:?}");
    let before = calls.load(Ordering::SeqCst);
    assert_eq!(before, 1, "a change was sent twice");
    assert!(matches!(store.get("k").await, Err(MetaError::Unavailable(_))));
}

#[tokio::test]
async fn what_the_owner_knows_about_an_outcome_arrives() {
    let (listener, address) = listen().await;
    let layer = Arc::new(Faulty::over_memory());
    serve(listener, Arc::clone(&layer) as Arc<dyn Meta>);
    let store = client(address, Deadlines::default());

    layer.fail_next_write(WriteFault::Unavailable);
    assert!(is_unavailable(&put(&store).await));
    layer.fail_next_write(WriteFault::UnknownNotApplied);
    assert!(is_unknown(&put(&store).await));
    assert_eq!(store.get("k").await, Ok(None));
    layer.fail_next_write(WriteFault::UnknownApplied);
    assert!(is_unknown(&put(&store).await));
    assert!(store.get("k").await.unwrap().is_some());

    layer.cut_off(true);
    assert!(is_unavailable(&put(&store).await));
    assert!(matches!(store.get("k").await, Err(MetaError::Unavailable(_))));
    assert!(matches!(store.list("", None, 0).await, Err(MetaError::Unavailable(_))));
    layer.cut_off(false);
    assert!(matches!(put(&store).await, Err(PutError::Conflict { current: Some(_) })));
}

#[tokio::test]
async fn a_delayed_change_loses_against_the_one_made_meanwhile() {
    let layer = Faulty::over_memory();
    layer.fail_next_write(WriteFault::Delayed);
    assert!(is_unknown(&put(&layer).await));
    assert_eq!(layer.get("k").await, Ok(None));
    let revision = put(&layer).await.unwrap();
    assert_eq!(layer.delayed(), 1);
    let late = layer.release_delayed().await;
    assert_eq!(late, [Err(PutError::Conflict { current: Some(revision) })]);
    assert_eq!(layer.delayed(), 0);

    layer.fail_next_write(WriteFault::Delayed);
    let unmade = layer.put_if("k", Expect::Revision(revision), Bytes::from_static(b"late")).await;
    assert!(is_unknown(&unmade));
    assert_eq!(layer.get("k").await.unwrap().map(|v| v.revision), Some(revision));
    assert_eq!(layer.release_delayed().await, [Ok(())]);
    let value = layer.get("k").await.unwrap().map(|v| v.value);
    assert_eq!(value, Some(Bytes::from_static(b"late")));
}

#[tokio::test]
async fn a_server_of_something_else_is_named_as_the_mistake() {
    let (listener, address) = listen().await;
    tokio::spawn(
        Server::builder()
            .add_routes(Routes::default())
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let store = client(address, Deadlines::default());
    let outcome = put(&store).await;
    assert!(is_unavailable(&outcome), "{outcome:?}");
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("serves no record store"), "{message}");
}

/// A store with one key, served by threads of its own, so that its connections can be made to die
/// with it.
async fn serve_apart(address: SocketAddr, value: &'static [u8]) -> (Runtime, SocketAddr) {
    let memory = Memory::new();
    memory.put_if("k", Expect::Absent, Bytes::from_static(value)).await.unwrap();
    let runtime = Runtime::new().unwrap();
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        server::serve(listener, Arc::new(memory), std::future::pending()).await.unwrap();
    });
    (runtime, address)
}

async fn kill(server: Runtime) {
    let end = move || server.shutdown_timeout(Duration::from_secs(20));
    tokio::task::spawn_blocking(end).await.unwrap();
}

#[tokio::test]
async fn a_server_that_was_killed_and_came_back_is_found_again() {
    let (first, address) = serve_apart(([127, 0, 0, 1], 0).into(), b"first").await;
    let store = client(address, Deadlines::default());
    let seen = async || store.get("k").await.map(|found| found.map(|v| v.value));
    assert_eq!(seen().await, Ok(Some(Bytes::from_static(b"first"))));

    kill(first).await;
    assert!(matches!(seen().await, Err(MetaError::Unavailable(_))));
    let refused = put(&store).await;
    assert!(is_unavailable(&refused), "{refused:?}");

    let (second, _) = serve_apart(address, b"second").await;
    assert_eq!(seen().await, Ok(Some(Bytes::from_static(b"second"))));

    // Killed and back between two calls: the client has yet to learn that its connection is gone.
    kill(second).await;
    let (third, _) = serve_apart(address, b"third").await;
    assert_eq!(seen().await, Ok(Some(Bytes::from_static(b"third"))));
    kill(third).await;
}

#[tokio::test]
async fn addresses_that_are_none_are_refused() {
    for address in ["", "http://", "not an address"] {
        let refused = Remote::new(address, Deadlines::default()).unwrap_err().to_string();
        assert!(refused.contains("http://host:port"), "{refused}");
    }
}
