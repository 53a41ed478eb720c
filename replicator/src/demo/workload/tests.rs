use super::*;
use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::nbd::{Export, Limits, NbdUri, Server, bind_unix};
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 8 << 20;
const AREA: Span = Span { first: 16, count: 2032 };

/// A volume in memory; its server ends when this is dropped.
struct World {
    stop: CancellationToken,
    uri: NbdUri,
    _dir: tempfile::TempDir,
}

impl World {
    fn serve(backend: &Arc<MemoryBackend>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd");
        let stop = CancellationToken::new();
        let server = Server::new(Limits::default(), stop.clone());
        server.add(Export::new("demo", Arc::clone(backend))).unwrap();
        let listener = bind_unix(&socket).unwrap();
        tokio::spawn(async move { server.serve(listener).await });
        Self { stop, uri: NbdUri::unix(&socket, "demo"), _dir: dir }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn workload() -> (Workload, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    (Workload::new(5, AREA, Arc::clone(&progress)), progress)
}

/// Drives until so many writes are acknowledged, then does `then`; returns why it ended.
async fn drive(
    workload: &mut Workload,
    uri: &NbdUri,
    orders: &Orders,
    writes: u64,
    then: impl FnOnce(),
) -> End {
    let client = Client::connect(uri).await.unwrap();
    let progress = Arc::clone(&workload.progress);
    let wait_for_writes = async {
        while progress.writes.load(Ordering::Relaxed) < writes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        then();
    };
    let (end, ()) = tokio::join!(workload.drive(&client, orders), wait_for_writes);
    end
}

async fn look(workload: &mut Workload, uri: &NbdUri) -> Findings {
    let client = Client::connect(uri).await.unwrap();
    let reading = workload.ledger.read(AREA);
    let data = read_span(&client, AREA).await.unwrap();
    workload.ledger.judge(&reading, &data)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there() {
    let backend = Arc::new(MemoryBackend::new(SIZE));
    let world = World::serve(&backend);
    let (mut workload, progress) = workload();
    let orders = Orders::default();
    let stop = || orders.stop.store(true, Ordering::Relaxed);
    let end = drive(&mut workload, &world.uri, &orders, 3000, stop).await;
    assert_eq!(end, End::Stopped);
    assert!(progress.flushes.load(Ordering::Relaxed) > 0);
    assert!(progress.reads.load(Ordering::Relaxed) > 0);
    assert!(workload.findings.is_clean(), "{:?}", workload.findings);
    let findings = look(&mut workload, &world.uri).await;
    assert!(findings.is_clean() && findings.blocks == AREA.count, "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_wrote_is_found() {
    let backend = Arc::new(MemoryBackend::new(SIZE));
    let world = World::serve(&backend);
    let (mut workload, _) = workload();
    let orders = Orders::default();
    let stop = || orders.stop.store(true, Ordering::Relaxed);
    drive(&mut workload, &world.uri, &orders, 500, stop).await;
    let (mut other, _) = (Workload::new(6, AREA, Arc::default()), ());
    let client = Client::connect(&world.uri).await.unwrap();
    other.write_one(&client).await.unwrap();
    assert!(!look(&mut workload, &world.uri).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_leaves_uncertain_blocks_that_the_next_one_decides() {
    let backend = Arc::new(MemoryBackend::new(SIZE));
    let (mut workload, _) = workload();
    let orders = Orders::default();
    let world = World::serve(&backend);
    let uri = world.uri.clone();
    let end = drive(&mut workload, &uri, &orders, 2000, || world.stop.cancel()).await;
    // A server that stops answers or hangs up; one that is killed only hangs up.
    assert_ne!(end, End::Stopped);
    assert_eq!(workload.ledger.pending().count(), 0);

    let world = World::serve(&backend);
    let client = Client::connect(&world.uri).await.unwrap();
    for span in workload.ledger.uncertain() {
        let reading = workload.ledger.read(span);
        let data = read_span(&client, span).await.unwrap();
        assert!(workload.ledger.judge(&reading, &data).is_clean());
        workload.ledger.decide(&reading, &data);
    }
    assert!(workload.ledger.uncertain().is_empty());
    let stop = || orders.stop.store(true, Ordering::Relaxed);
    assert_eq!(drive(&mut workload, &world.uri, &orders, 3000, stop).await, End::Stopped);
    assert!(look(&mut workload, &world.uri).await.is_clean());
    assert!(workload.ledger.missed_blocks() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pace_is_kept() {
    let backend = Arc::new(MemoryBackend::new(SIZE));
    let world = World::serve(&backend);
    let (mut workload, progress) = workload();
    let orders = Orders { rate: AtomicU64::new(4 << 20), ..Orders::default() };
    let begin = Instant::now();
    let stop = || orders.stop.store(true, Ordering::Relaxed);
    drive(&mut workload, &world.uri, &orders, 40, stop).await;
    let bytes = progress.bytes.load(Ordering::Relaxed);
    let due = rate_f64(4 << 20) * begin.elapsed().as_secs_f64();
    // What is under way when the pace is reached still counts.
    let slack = rate_f64((DEPTH_MAX as u64 + 1) * BLOCKS_MAX * BLOCK as u64);
    assert!(rate_f64(bytes) <= due + slack, "{bytes} bytes, {due} were due");
}
