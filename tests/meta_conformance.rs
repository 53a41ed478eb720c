//! Every record store keeps the same contract.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

use lockstep_meta::conformance::{self, Report, Subject};
use lockstep_meta::faulty::{Faulty, WriteFault};
use lockstep_meta::memory::Memory;
use lockstep_meta::redb::Redb;
use lockstep_meta::remote::{Deadlines, Remote};
use lockstep_meta::{Meta, async_trait, server};
use std::net::SocketAddr;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const CHECKS: usize = 19;

fn lose(layer: &Faulty, is_made: bool) {
    let fault = if is_made { WriteFault::UnknownApplied } else { WriteFault::UnknownNotApplied };
    layer.fail_next_write(fault);
}

/// Memory, plain.
struct Plain(Arc<Memory>);

impl Subject for Plain {
    fn store(&self) -> Arc<dyn Meta> {
        Arc::clone(&self.0) as Arc<dyn Meta>
    }
}

/// Memory, with faults before it.
struct Injected(Arc<Faulty>);

impl Subject for Injected {
    fn store(&self) -> Arc<dyn Meta> {
        Arc::clone(&self.0) as Arc<dyn Meta>
    }

    fn lose_next_outcome(&self, is_made: bool) -> bool {
        lose(&self.0, is_made);
        true
    }
}

/// A file in a directory of its own, with faults before it.
struct OnDisk {
    dir: TempDir,
    open: Option<Arc<Faulty>>,
}

impl OnDisk {
    fn new() -> Self {
        let mut subject = Self { dir: TempDir::new().unwrap(), open: None };
        subject.open().unwrap();
        subject
    }

    fn open(&mut self) -> Result<(), String> {
        let store = Redb::open(self.dir.path().join("records")).map_err(|e| e.to_string())?;
        self.open = Some(Arc::new(Faulty::new(Arc::new(store))));
        Ok(())
    }

    fn layer(&self) -> Arc<Faulty> {
        Arc::clone(self.open.as_ref().unwrap())
    }
}

#[async_trait]
impl Subject for OnDisk {
    fn store(&self) -> Arc<dyn Meta> {
        self.layer()
    }

    async fn restart(&mut self) -> Result<bool, String> {
        self.open = None;
        self.open()?;
        Ok(true)
    }

    fn lose_next_outcome(&self, is_made: bool) -> bool {
        lose(&self.layer(), is_made);
        true
    }
}

/// A client of a server of a file; a restart is one of the server, under the same client.
struct OverNetwork {
    disk: OnDisk,
    client: Arc<Remote>,
    address: SocketAddr,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl OverNetwork {
    async fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = Remote::new(&format!("http://{address}"), Deadlines::default()).unwrap();
        let disk = OnDisk::new();
        let mut subject = Self { disk, client: Arc::new(client), address, server: None };
        subject.serve(listener);
        subject
    }

    fn serve(&mut self, listener: TcpListener) {
        let store = self.disk.store();
        let (stop, stopped) = oneshot::channel();
        let serving = async move {
            let until = async { stopped.await.unwrap_or_default() };
            server::serve(listener, store, until).await.unwrap();
        };
        self.server = Some((stop, tokio::spawn(serving)));
    }
}

#[async_trait]
impl Subject for OverNetwork {
    fn store(&self) -> Arc<dyn Meta> {
        Arc::clone(&self.client) as Arc<dyn Meta>
    }

    async fn restart(&mut self) -> Result<bool, String> {
        let (stop, server) = self.server.take().ok_or("there is no server")?;
        stop.send(()).map_err(|()| "the server is gone")?;
        server.await.map_err(|e| e.to_string())?;
        self.disk.restart().await?;
        let listener = TcpListener::bind(self.address).await.map_err(|e| e.to_string())?;
        self.serve(listener);
        Ok(true)
    }

    fn lose_next_outcome(&self, is_made: bool) -> bool {
        self.disk.lose_next_outcome(is_made)
    }
}

fn examined(report: &Report, skipped: usize) {
    assert_eq!(report.skipped.len(), skipped, "skipped: {:?}", report.skipped);
    assert_eq!(report.held.len() + skipped, CHECKS, "held: {:?}", report.held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory() {
    let report = conformance::suite(async || Plain(Arc::new(Memory::new()))).await.unwrap();
    // It has neither a restart nor a way to lose answers.
    examined(&report, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_with_faults() {
    let make = async || Injected(Arc::new(Faulty::over_memory()));
    examined(&conformance::suite(make).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redb() {
    examined(&conformance::suite(async || OnDisk::new()).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn remote_over_redb() {
    examined(&conformance::suite(async || OverNetwork::new().await).await.unwrap(), 0);
}
