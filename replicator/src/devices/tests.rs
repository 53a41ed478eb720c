//! Devices with a door that only notes what is asked of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lockstep_attach::device::{Place, Token};
use lockstep_core::id::InstanceId;
use lockstep_core::primary::Phase;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc, watch};
use uuid::Uuid;

use super::*;

type Log = Arc<Mutex<Vec<String>>>;

/// A door that makes devices of words.
struct Fake {
    log: Log,
    /// A device cannot be closed.
    busy: bool,
    /// A device cannot be taken over.
    lost: bool,
    /// Each device that is made waits for a permit.
    gate: Option<Arc<Semaphore>>,
}

struct FakeDevice {
    token: Token,
    log: Log,
    busy: bool,
}

fn note(log: &Log, what: &str) {
    lock(log).push(what.to_owned());
}

impl Door<VolumeHandle> for Fake {
    fn kind(&self) -> Kind {
        Kind::Ublk
    }

    fn probe(&self) -> Probe {
        Probe { kind: Kind::Ublk, usable: true, why: "it is made up".into(), restartable: true }
    }

    fn open(
        &self,
        shape: Shape,
        _: Arc<VolumeHandle>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        note(&self.log, "open");
        let token = Token {
            name: shape.name,
            device: "/dev/made-up".into(),
            size_bytes: shape.size_bytes,
            read_only: shape.read_only,
            write_through: shape.write_through,
            queues: shape.queues,
            place: Place::Ublk { id: 1, mark: 2 },
        };
        let device = FakeDevice { token, log: Arc::clone(&self.log), busy: self.busy };
        let gate = self.gate.clone();
        async move {
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            Ok(Box::new(device) as Box<dyn Device>)
        }
        .boxed()
    }

    fn hold(&self, _: Token) -> BoxFuture<'_, ()> {
        note(&self.log, "hold");
        async {}.boxed()
    }

    fn resume(
        &self,
        token: Token,
        _: Arc<VolumeHandle>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        note(&self.log, "resume");
        let device = "/dev/made-up".to_owned();
        if self.lost {
            let lost = DeviceError::Lost { device, why: "it is gone".into() };
            return async move { Err(lost) }.boxed();
        }
        let device = FakeDevice { token, log: Arc::clone(&self.log), busy: self.busy };
        async move { Ok(Box::new(device) as Box<dyn Device>) }.boxed()
    }

    fn end(&self, _: Token) -> BoxFuture<'_, Result<(), DeviceError>> {
        note(&self.log, "end");
        async { Ok(()) }.boxed()
    }

    fn sweep(&self, known: BTreeSet<String>) -> BoxFuture<'_, Result<(), DeviceError>> {
        note(&self.log, &format!("sweep all but {}", known.len()));
        async { Ok(()) }.boxed()
    }
}

impl Device for FakeDevice {
    fn token(&self) -> &Token {
        &self.token
    }

    fn resize(&self, _: u64) -> BoxFuture<'_, Result<(), DeviceError>> {
        async { Ok(()) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        note(&self.log, "close");
        let device = "/dev/made-up".to_owned();
        let closed = if self.busy {
            Err(DeviceError::Busy { device, by: "somebody".into() })
        } else {
            Ok(())
        };
        async move { closed }.boxed()
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        note(&self.log, "release");
        async {}.boxed()
    }

    fn fail(&self) -> BoxFuture<'_, ()> {
        note(&self.log, "fail");
        async {}.boxed()
    }
}

struct Node {
    dir: TempDir,
    log: Log,
    busy: bool,
    lost: bool,
    gate: Option<Arc<Semaphore>>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, log: Log::default(), busy: false, lost: false, gate: None }
    }

    /// The devices as a daemon that starts sees them.
    fn daemon(&self) -> Devices {
        self.daemon_with(None)
    }

    fn daemon_with(&self, keeper: Option<KeeperClient>) -> Devices {
        let config = DeviceConfig {
            run_dir: self.dir.path().join("run"),
            device_dir: self.dir.path().join("dev"),
            door: Choice::Auto,
            starts_keeper: false,
        };
        let log = Arc::clone(&self.log);
        let door = Fake { log, busy: self.busy, lost: self.lost, gate: self.gate.clone() };
        Devices::with_doors(&config, "a", vec![Box::new(door)], Mounter::Nobody, keeper).unwrap()
    }

    fn took(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.log))
    }

    fn log_is_empty(&self) -> bool {
        lock(&self.log).is_empty()
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A keeper, which has ended when this task has.
    async fn keeper(&self) -> tokio::task::JoinHandle<io::Result<()>> {
        let listens = Arc::new(tokio::sync::Notify::new());
        let (told, dir) = (Arc::clone(&listens), self.run_dir());
        let keeper = tokio::spawn(async move {
            lockstep_attach::keeper::run(&dir, false, |_| told.notify_one(), std::future::pending())
                .await
        });
        listens.notified().await;
        keeper
    }

    fn keeper_client(&self) -> KeeperClient {
        KeeperClient::new(&self.run_dir(), None)
    }

    /// The names of all that the keeper has.
    async fn kept(&self) -> Vec<String> {
        let client = self.keeper_client();
        tokio::task::spawn_blocking(move || client.list().unwrap()).await.unwrap()
    }

    fn link(&self) -> Option<PathBuf> {
        std::fs::read_link(self.dir.path().join("dev/v")).ok()
    }
}

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(9));

/// A served volume. It is over when the sender of its phase says so.
fn volume()
-> (VolumeHandle, watch::Sender<Phase>, mpsc::UnboundedReceiver<crate::engine::PrimaryInput>) {
    let (tell, phase) = watch::channel(Phase::Active);
    let (inputs, received) = mpsc::unbounded_channel();
    let size = Arc::new(AtomicU64::new(1 << 20));
    let handle = VolumeHandle::new(VOLUME, InstanceId(Uuid::from_u128(1)), phase, inputs, size);
    (handle, tell, received)
}

async fn open(devices: &Devices, handle: &VolumeHandle) -> Result<Kept, DevicesError> {
    devices.open("v", handle, 1 << 20, &WantedDevice::default()).await
}

#[tokio::test]
async fn a_device_has_a_name_until_it_is_closed() {
    let (node, (handle, _tell, _inputs)) = (Node::new(), volume());
    let devices = node.daemon();
    let kept = open(&devices, &handle).await.unwrap();
    assert_eq!(node.link().as_deref(), Some(Path::new("/dev/made-up")));
    assert_eq!(open(&devices, &handle).await.unwrap(), kept, "once more is the same");
    devices.close(VOLUME, false).await.unwrap();
    assert_eq!(node.took(), ["open", "close"]);
    assert_eq!((node.link(), devices.find(VOLUME)), (None, None));
    assert_eq!(node.daemon().left(), []);
}

#[tokio::test]
async fn a_device_in_use_stays_unless_it_is_forced() {
    let (node, (handle, _tell, _inputs)) = (Node { busy: true, ..Node::new() }, volume());
    let devices = node.daemon();
    open(&devices, &handle).await.unwrap();
    let told = devices.close(VOLUME, false).await.unwrap_err().to_string();
    assert!(told.contains("somebody"), "{told}");
    assert!(devices.find(VOLUME).is_some() && node.link().is_some());
    devices.close(VOLUME, true).await.unwrap();
    assert_eq!(node.took(), ["open", "close", "close", "fail"]);
    assert_eq!(node.link(), None);
}

#[tokio::test]
async fn the_next_daemon_takes_a_device_over() {
    let (node, (handle, _tell, _inputs)) = (Node::new(), volume());
    let first = node.daemon();
    let kept = open(&first, &handle).await.unwrap();
    first.release_all(Duration::from_secs(1)).await;
    // What follows when the volume is closed in good order.
    first.fail(VOLUME).await;
    let second = node.daemon();
    second.hold().await;
    assert_eq!(second.left(), std::slice::from_ref(&kept));
    let refused = open(&second, &handle).await.unwrap_err();
    assert!(matches!(refused, DevicesError::TakingOver));
    assert!(second.resume(&kept, &handle).await.unwrap());
    assert_eq!((second.left(), second.find(VOLUME)), (Vec::new(), Some(kept)));
    assert_eq!(node.took(), ["open", "release", "hold", "resume"]);
}

#[tokio::test]
async fn a_device_that_cannot_be_taken_over_is_ended() {
    let (mut node, (handle, _tell, _inputs)) = (Node::new(), volume());
    let kept = open(&node.daemon(), &handle).await.unwrap();
    node.lost = true;
    let second = node.daemon();
    assert!(second.resume(&kept, &handle).await.is_err());
    assert_eq!(node.took(), ["open", "resume", "end"]);
    assert_eq!((node.link(), second.left(), node.daemon().left()), (None, vec![], vec![]));
}

#[tokio::test]
async fn a_volume_that_is_over_leaves_no_device() {
    let (node, (handle, tell, _inputs)) = (Node::new(), volume());
    let kept = open(&node.daemon(), &handle).await.unwrap();
    tell.send_replace(Phase::Fenced);
    let second = node.daemon();
    assert!(!second.resume(&kept, &handle).await.unwrap());
    assert_eq!(second.find(VOLUME), None);
    open(&second, &handle).await.unwrap();
    assert_eq!(second.find(VOLUME), None);
    assert_eq!(node.took(), ["open", "resume", "fail", "open", "fail"]);
    assert_eq!(node.link(), None);
}

#[tokio::test]
async fn a_device_that_was_given_up_is_not_taken_over() {
    let (node, (handle, _tell, _inputs)) = (Node::new(), volume());
    let kept = open(&node.daemon(), &handle).await.unwrap();
    let second = node.daemon();
    assert_eq!(second.while_left(VOLUME, || 7), Some(7));
    second.close(VOLUME, true).await.unwrap();
    assert_eq!(second.while_left(VOLUME, || 7), None);
    assert!(!second.resume(&kept, &handle).await.unwrap());
    assert_eq!(node.took(), ["open", "end"]);
    assert_eq!((node.link(), node.daemon().left()), (None, vec![]));
}

#[tokio::test]
async fn a_device_that_is_being_made_is_not_swept_away() {
    let gate = Arc::new(Semaphore::new(0));
    let node = Node { gate: Some(Arc::clone(&gate)), ..Node::new() };
    let ((handle, _tell, _inputs), devices) = (volume(), node.daemon());
    let mut opened = Box::pin(open(&devices, &handle));
    // Until it waits at the gate.
    while node.log_is_empty() {
        assert!(futures::poll!(&mut opened).is_pending());
        tokio::task::yield_now().await;
    }
    let mut swept = Box::pin(devices.sweep());
    assert!(futures::poll!(&mut swept).is_pending());
    gate.add_permits(1);
    futures::join!(swept, async { opened.await.unwrap() });
    assert_eq!(node.took(), ["open", "sweep all but 1"]);
}

#[tokio::test]
async fn the_keeper_has_the_note_of_a_device_until_it_is_closed() {
    let (node, (handle, _tell, _inputs)) = (Node::new(), volume());
    let keeper = node.keeper().await;
    let devices = node.daemon_with(Some(node.keeper_client()));
    for _ in 0..20 {
        open(&devices, &handle).await.unwrap();
        assert_eq!(node.kept().await, [VOLUME.to_string()]);
        devices.close(VOLUME, false).await.unwrap();
        assert_eq!(node.kept().await, Vec::<String>::new());
    }
    keeper.abort();
}

#[tokio::test]
async fn another_keeper_is_given_what_one_that_was_killed_had() {
    let (node, (handle, _tell, _inputs)) = (Node::new(), volume());
    let mut keeper = node.keeper().await;
    let devices = node.daemon_with(Some(node.keeper_client()));
    let guarded = devices.clone();
    let guard = tokio::spawn(async move { guarded.mind_keeper().await });
    open(&devices, &handle).await.unwrap();
    for _ in 0..3 {
        keeper.abort();
        assert!(keeper.await.unwrap_err().is_cancelled());
        keeper = node.keeper().await;
        while node.kept().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(node.kept().await, [VOLUME.to_string()]);
    }
    guard.abort();
    keeper.abort();
}

#[tokio::test]
async fn a_door_that_is_not_there_is_told_with_its_reason() {
    let (node, (handle, _tell, _inputs)) = (Node::new(), volume());
    let wanted = WantedDevice { door: Choice::Only(Kind::Nbd), ..WantedDevice::default() };
    let told = node.daemon().open("v", &handle, 1 << 20, &wanted).await.unwrap_err().to_string();
    assert!(told.contains("no block device can be made here through door nbd"), "{told}");
}
