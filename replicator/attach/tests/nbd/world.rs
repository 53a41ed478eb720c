//! A server on a unix socket and a TCP port, gone when dropped.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_attach::Backend;
use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::nbd::{Client, Export, Limits, NbdUri, Server, bind_unix};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct World<B> {
    pub(crate) dir: TempDir,
    pub(crate) server: Server<B>,
    pub(crate) stop: CancellationToken,
    pub(crate) socket: PathBuf,
    pub(crate) tcp: SocketAddr,
    /// The tasks that accept clients.
    pub(crate) listening: TaskTracker,
}

impl<B: Backend> World<B> {
    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let stop = CancellationToken::new();
        let server = Server::new(limits, stop.clone());
        let unix = bind_unix(&socket).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = listener.local_addr().unwrap();
        let listening = TaskTracker::new();
        let serving = server.clone();
        listening.spawn(async move { serving.serve(unix).await });
        let serving = server.clone();
        listening.spawn(async move { serving.serve(listener).await });
        listening.close();
        Self { dir, server, stop, socket, tcp, listening }
    }

    pub(crate) async fn new() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) fn add(&self, name: &str, backend: &Arc<B>) {
        self.server.add(Export::new(name, Arc::clone(backend))).unwrap();
    }

    pub(crate) fn unix(&self, export: &str) -> NbdUri {
        NbdUri::unix(&self.socket, export)
    }

    pub(crate) fn tcp(&self, export: &str) -> NbdUri {
        NbdUri::tcp(self.tcp.ip().to_string(), self.tcp.port(), export)
    }

    pub(crate) async fn client(&self, export: &str) -> Client {
        Client::connect(&self.unix(export)).await.unwrap()
    }
}

impl<B> Drop for World<B> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A server with one volume in memory called `disk`.
pub(crate) async fn memory_world(size_bytes: u64) -> (World<MemoryBackend>, Arc<MemoryBackend>) {
    let world = World::new().await;
    let backend = Arc::new(MemoryBackend::new(size_bytes));
    world.add("disk", &backend);
    (world, backend)
}

/// What must happen within [`PATIENCE`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen in time: {what}"),
    }
}

/// Bytes that differ from place to place, and from seed to seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}
