//! Steps that break off and are asked for again, against a record store that fails when told to.

use std::sync::Arc;
use std::time::Duration;

use lockstep_attach::Backend as _;
use lockstep_attach::device::Choice;
use lockstep_core::id::{Epoch, ReplicaId};
use lockstep_meta::faulty::{Faulty, WriteFault};
use lockstep_meta::list_all;
use lockstep_proto::v1;
use tempfile::TempDir;
use tonic::{Code, Status};

use super::catalog::Stage;
use super::*;
use crate::devices::{DeviceConfig, Devices};
use crate::engine::{EngineConfig, PoolConfig};

mod broken_off;
mod cordon;
mod fence;
mod housekeeping;
mod labels;
mod remake;
mod resize;
mod roster;
mod settled;
mod snapshots;
mod waits;

/// Longer than anything takes unless it hangs.
const LONG: Duration = Duration::from_secs(30);

/// One node, not served over the network: it is the only one there is.
pub(super) struct Node {
    pub(super) admin: Admin,
    meta: Arc<Faulty>,
    dir: TempDir,
    cluster: Uuid,
}

impl Node {
    pub(super) async fn start() -> Self {
        let meta = Arc::new(Faulty::over_memory());
        Self::up(TempDir::new().unwrap(), meta, Uuid::new_v4()).await
    }

    /// Ends the daemon in good order and starts it again, with something done in between.
    async fn restart(self, meanwhile: impl FnOnce(&TempDir)) -> Self {
        let cut_off = self.admin.end(LONG).await;
        assert!(cut_off.is_empty(), "{cut_off:?} did not close");
        let Self { admin, meta, dir, cluster } = self;
        drop(admin);
        meanwhile(&dir);
        Self::up(dir, meta, cluster).await
    }

    async fn up(dir: TempDir, meta: Arc<Faulty>, cluster: Uuid) -> Self {
        let node = Self::introduced(dir, meta, cluster).await;
        node.admin.begin();
        node
    }

    /// As far as a daemon comes before it looks after anything by itself.
    async fn introduced(dir: TempDir, meta: Arc<Faulty>, cluster: Uuid) -> Self {
        Self::with_pools(dir, meta, cluster, &["pool"]).await
    }

    /// The same, with a pool in each of these directories, the first of which is the default one.
    async fn with_pools(
        dir: TempDir,
        meta: Arc<Faulty>,
        cluster: Uuid,
        pool_dirs: &[&str],
    ) -> Self {
        Self::with(dir, meta, cluster, pool_dirs, None).await
    }

    /// The same, with devices other than none.
    async fn with(
        dir: TempDir,
        meta: Arc<Faulty>,
        cluster: Uuid,
        pool_dirs: &[&str],
        devices: Option<Devices>,
    ) -> Self {
        let nowhere = "127.0.0.1:1".to_owned();
        Self::named("n1", nowhere, dir, meta, cluster, pool_dirs, devices).await
    }

    /// The same, of another node, which is served by its caller.
    async fn named(
        name: &str,
        admin_address: String,
        dir: TempDir,
        meta: Arc<Faulty>,
        cluster: Uuid,
        pool_dirs: &[&str],
        devices: Option<Devices>,
    ) -> Self {
        let store: Arc<dyn lockstep_meta::Meta> = meta.clone();
        let catalog = Catalog::new(Arc::clone(&store));
        let config = EngineConfig {
            cluster,
            node: NodeId::new(name).unwrap(),
            listen: "127.0.0.1:0".parse().unwrap(),
            pools: pool_dirs.iter().map(|pool| pool_in(dir.path(), pool)).collect(),
            incoming_resyncs: lockstep_core::limits::RESYNC_ENTRIES,
            direct_io: true,
            version: "test".to_owned(),
        };
        let resolver = Arc::new(CatalogResolver::new(catalog.clone()));
        let engine = Engine::start(config, store, resolver).await.unwrap();
        let addresses = Addresses { peer: engine.peer_addr().to_string(), admin: admin_address };
        let without = || Devices::without_doors(&device_config(dir.path())).unwrap();
        let devices = devices.unwrap_or_else(without);
        let admin = Admin::new(Parts {
            engine,
            catalog,
            addresses,
            nbd_dir: &dir.path().join("nbd"),
            nbd_tcp: None,
            devices,
            rebuild_after_ms: 1000,
            forget_after_ms: 1000,
            zone: None,
            labels: BTreeMap::from([("rack".to_owned(), "7".to_owned())]),
        })
        .unwrap();
        admin.introduce().await.unwrap();
        Self { admin, meta, dir, cluster }
    }

    pub(super) async fn create(&self) -> Result<v1::VolumeStatus, Status> {
        let request = v1::CreateVolumeRequest {
            name: "v".to_owned(),
            size_bytes: 1 << 20,
            repl: 1,
            ..Default::default()
        };
        self.admin.create_for(request, &CancellationToken::new()).await
    }

    pub(super) async fn attach(&self, force: bool) -> Result<v1::AttachResponse, Status> {
        let request = v1::AttachRequest { name: "v".to_owned(), force, ..Default::default() };
        self.admin.attach(request).await
    }

    /// With a device, which no kernel offers here.
    async fn attach_device(&self) -> Result<v1::AttachResponse, Status> {
        let device = Some(v1::DeviceRequest::default());
        let request = v1::AttachRequest { name: "v".to_owned(), device, ..Default::default() };
        self.admin.attach(request).await
    }

    async fn detach(&self) -> Result<bool, Status> {
        let request = v1::DetachRequest { name: "v".to_owned(), force: false, only_node: None };
        self.admin.detach(request, false).await
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let entries = list_all(self.meta.as_ref(), prefix).await.unwrap();
        entries.into_iter().map(|entry| entry.key).collect()
    }

    async fn replicas(&self) -> usize {
        self.admin.inner.engine.list_replicas().await.len()
    }

    pub(super) async fn stop(self) {
        let cut_off = self.admin.end(LONG).await;
        assert!(cut_off.is_empty(), "{cut_off:?} did not close");
    }
}

fn device_config(dir: &Path) -> DeviceConfig {
    DeviceConfig {
        run_dir: dir.join("run"),
        device_dir: dir.join("dev"),
        door: Choice::Auto,
        starts_keeper: false,
    }
}

fn pool_in(dir: &Path, pool: &str) -> PoolConfig {
    PoolConfig {
        name: if pool == "pool" { "default" } else { pool }.to_owned(),
        dir: dir.join(pool),
        capacity_bytes: None,
        overcommit_percent: 100,
        reserve_bytes: 0,
    }
}

const FAULTS: [WriteFault; 3] =
    [WriteFault::Unavailable, WriteFault::UnknownApplied, WriteFault::UnknownNotApplied];

/// Repeats a call until it succeeds. Only failures that ask for a retry are allowed on the way.
async fn persist<T, F>(what: &str, call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    for _ in 0..10 {
        match call().await {
            Ok(value) => return value,
            Err(status) => {
                let retry = [Code::Unavailable, Code::Aborted].contains(&status.code());
                assert!(retry, "{what}: {status:?}");
            }
        }
    }
    panic!("{what} does not succeed though nothing fails any more");
}

#[tokio::test]
async fn a_volume_is_made_once_wherever_its_making_breaks_off() {
    let node = Node::start().await;
    // Housekeeping writes too, so a fault may hit that instead; more faults than steps do no harm.
    for fault in FAULTS {
        for step in 0..5 {
            let what = format!("{fault:?} at step {step}");
            // The steps before are done, though their answers are lost.
            for _ in 0..step {
                node.meta.fail_next_write(WriteFault::UnknownApplied);
            }
            node.meta.fail_next_write(fault);
            let made = persist(&what, || node.create()).await;
            let again = persist(&what, || node.create()).await;
            assert_eq!(made.uid, again.uid, "{what}");
            assert_eq!(made.health, i32::from(v1::Health::Healthy), "{what}: {made:?}");
            assert_eq!(node.replicas().await, 1, "{what}");
            assert_eq!(node.keys("record/").await.len(), 1, "{what}");

            node.meta.fail_next_write(fault);
            persist(&what, || node.admin.delete("v")).await;
            assert_eq!(node.replicas().await, 0, "{what}");
            assert_eq!(node.keys("record/").await, Vec::<String>::new(), "{what}");
            assert_eq!(node.keys("volume/").await, Vec::<String>::new(), "{what}");
            persist(&what, || node.admin.introduce()).await;
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn without_a_record_store_calls_say_so_and_go_on_when_it_is_back() {
    let node = Node::start().await;
    node.create().await.unwrap();
    let attached = node.attach(false).await.unwrap();
    assert!(attached.nbd_uri.starts_with("nbd+unix:///v?socket="), "{attached:?}");
    node.meta.cut_off(true);
    let refusals = [
        node.create().await.map(drop),
        node.attach(false).await.map(drop),
        node.detach().await.map(drop),
        node.admin.delete("v").await.map(drop),
    ];
    for refused in refusals {
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(node.admin.own_node().await.primaries.len(), 1, "it still tells of itself");
    node.meta.cut_off(false);
    assert!(node.detach().await.unwrap());
    assert!(!node.detach().await.unwrap());
    node.stop().await;
}

#[tokio::test]
async fn an_attachment_is_the_same_until_it_is_detached() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let first = node.attach(false).await.unwrap();
    assert_eq!(node.attach(false).await.unwrap(), first);
    assert_eq!(node.attach(true).await.unwrap(), first);
    let refused = node.admin.delete("v").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("detach it first"), "{}", refused.message());

    let uid = names::uid(&made.uid).unwrap();
    let handle = node.admin.inner.engine.attached(uid).unwrap();
    handle.write(0, bytes::Bytes::from(vec![7; 4096]), true).await.unwrap();
    assert!(node.detach().await.unwrap());
    assert!(handle.read(0, 4096).await.is_err(), "a detached volume serves nothing");
    let second = node.attach(false).await.unwrap();
    assert!(second.epoch > first.epoch, "{second:?}");
    let handle = node.admin.inner.engine.attached(uid).unwrap();
    assert_eq!(handle.read(0, 4096).await.unwrap().len(), 4096);
    node.stop().await;
}

#[tokio::test]
async fn only_the_volume_that_is_meant_is_attached_and_only_here_detached() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let attach = |uid: &str| {
        let (name, uid) = ("v".to_owned(), uid.to_owned());
        node.admin.attach(v1::AttachRequest { name, uid, ..Default::default() })
    };
    let other = attach(&Uuid::new_v4().to_string()).await.unwrap_err();
    assert_eq!(other.code(), Code::NotFound, "{other:?}");
    assert_eq!(attach("nonsense").await.unwrap_err().code(), Code::InvalidArgument);
    let attached = attach(&made.uid).await.unwrap();

    let detach = |only: &str| {
        let (name, only_node) = ("v".to_owned(), Some(only.to_owned()));
        node.admin.detach(v1::DetachRequest { name, force: true, only_node }, false)
    };
    assert!(!detach("n2").await.unwrap(), "it is not there");
    assert_eq!(node.attach(false).await.unwrap(), attached, "and stays here");
    assert!(detach("n1").await.unwrap());
    assert!(!detach("n1").await.unwrap());
    node.stop().await;
}

#[tokio::test]
async fn a_volume_that_is_attached_while_it_is_to_be_deleted_stays() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let uid = names::uid(&made.uid).unwrap();
    let catalog = &node.admin.inner.catalog;
    let seen = catalog.record(uid).await.unwrap().unwrap();
    let volume = catalog.volume("v").await.unwrap().unwrap();
    // Looked at, and found free; then somebody is quicker.
    node.attach(false).await.unwrap();
    let deleting = volume.value.clone().at(Stage::Deleting);
    catalog.put_volume(Some(volume.revision), &deleting).await.unwrap();
    let refused = node.admin.seal(&deleting, &seen).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
    assert_eq!(catalog.volume("v").await.unwrap().unwrap().value.stage, Stage::Ready);
    let refused = node.admin.delete("v").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(node.detach().await.unwrap());
    assert!(node.admin.delete("v").await.unwrap().0);
    node.stop().await;
}

#[tokio::test]
async fn a_volume_whose_device_is_refused_is_attached_as_it_was() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let uid = names::uid(&made.uid).unwrap();
    let refused = node.attach_device().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(node.admin.inner.engine.attached(uid).is_none(), "it was not before");
    assert!(node.admin.inner.doors.find(uid).is_none());
    let record = node.admin.inner.catalog.record(uid).await.unwrap().unwrap();
    assert_eq!(record.value.primary, None);

    let attached = node.attach(false).await.unwrap();
    let refused = node.attach_device().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(node.attach(false).await.unwrap(), attached, "somebody has it");
    assert!(node.detach().await.unwrap());
    node.stop().await;
}

#[tokio::test]
async fn a_refused_device_takes_a_volume_from_nobody() {
    let node = Node::start().await;
    node.create().await.unwrap();
    for _ in 0..10 {
        let (attached, refused) = tokio::join!(node.attach(false), node.attach_device());
        refused.unwrap_err();
        // Whoever was told that it is attached has it; nobody else does.
        match attached {
            Ok(attached) => assert_eq!(node.attach(false).await.unwrap(), attached),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
        node.detach().await.unwrap();
    }
    node.stop().await;
}

#[tokio::test]
async fn a_volume_whose_making_cannot_succeed_leaves_nothing_behind() {
    let node = Node::start().await;
    // A pool that cannot take replicas, which placement cannot know.
    let pool = node.dir.path().join("pool/replicas");
    std::fs::remove_dir(&pool).unwrap();
    std::fs::write(&pool, "in the way").unwrap();
    let refused = node.create().await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    std::fs::remove_file(&pool).unwrap();
    std::fs::create_dir(&pool).unwrap();
    assert_eq!(node.keys("volume/").await, Vec::<String>::new());
    assert_eq!(node.keys("record/").await, Vec::<String>::new());
    node.create().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_damaged_copy_is_not_taken_for_one_that_is_to_go() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let uid = names::uid(&made.uid).unwrap();
    let damage = |dir: &TempDir| {
        let copy = dir.path().join("pool/replicas").join(uid.to_string());
        std::fs::write(copy.join("meta"), [0xAA; 100]).unwrap();
    };
    let node = node.restart(damage).await;
    assert_eq!(node.replicas().await, 1);

    // An earlier copy was here, and was to be removed.
    let earlier = ReplicaId(Uuid::new_v4());
    let (catalog, own) = (&node.admin.inner.catalog, &node.admin.inner.node);
    let request =
        v1::DeleteReplicaRequest { uid: made.uid.clone(), rid: earlier.to_string(), force: true };
    let refused = node.admin.delete_own_replica(&request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("it is kept"), "{}", refused.message());
    catalog.put_gone(own, uid, earlier, "v").await.unwrap();
    node.admin.keep_house_once().await.unwrap();
    assert_eq!(node.keys("gone/").await, Vec::<String>::new(), "it is looked for no more");
    assert_eq!(node.replicas().await, 1, "the copy that counts is still there");

    node.admin.delete("v").await.unwrap();
    assert_eq!(node.replicas().await, 0, "with its volume it goes, damaged or not");
    node.stop().await;
}

#[tokio::test]
async fn nothing_takes_a_place_while_nobody_knows_which_copies_count() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let catalog = &node.admin.inner.catalog;
    let stored = catalog.record(names::uid(&made.uid).unwrap()).await.unwrap().unwrap();
    let next = stored.value.mark_put_back(Epoch(7), Uuid::new_v4());
    catalog.put_record(Some(stored.revision), &next).await.unwrap();
    let request = v1::AddReplicaRequest { name: "v".to_owned(), node: None };
    let refused = node.admin.add_replica(request, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("put back to an older state"), "{}", refused.message());
    node.stop().await;
}

/// What a daemon of this node that died left of a device of the volume.
fn leave_a_device(dir: &TempDir, uid: &str) {
    let devices = dir.path().join("run/devices");
    std::fs::create_dir_all(&devices).unwrap();
    // An index that no kernel has: nothing of this machine is touched.
    let note = serde_json::json!({
        "version": 1, "owner": "test", "volume": uid, "name": "v", "mount": null,
        "token": {
            "name": uid, "device": "/dev/nbd4711", "size_bytes": 1 << 20, "read_only": false,
            "write_through": false, "queues": 1,
            "place": { "door": "nbd", "index": 4711, "backend": "nobody" },
        },
    });
    std::fs::write(devices.join(format!("{uid}.json")), note.to_string()).unwrap();
}

#[tokio::test]
async fn a_volume_that_was_detached_is_not_attached_again_for_the_device_of_a_former_daemon() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let cut_off = node.admin.end(LONG).await;
    assert!(cut_off.is_empty(), "{cut_off:?} did not close");
    let Node { admin, meta, dir, cluster } = node;
    drop(admin);
    leave_a_device(&dir, &made.uid);
    // Its devices are not looked after yet: what follows is in the order that matters.
    let node = Node::introduced(dir, meta, cluster).await;
    let left = node.admin.inner.devices.left();
    assert_eq!(left.len(), 1);

    assert_eq!(node.detach().await.unwrap_err().code(), Code::Aborted, "it is being taken over");
    let request = v1::DetachRequest { name: "v".to_owned(), force: true, only_node: None };
    assert!(!node.admin.detach(request, false).await.unwrap(), "it was not attached");
    assert_eq!(node.admin.inner.devices.left(), []);
    node.admin.resume_device(&left[0]).await;
    assert!(node.admin.inner.engine.attached(left[0].volume).is_none());
    node.stop().await;
}
