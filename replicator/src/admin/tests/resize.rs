//! A volume that grows while somebody opens its device.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lockstep_attach::device::{Device, DeviceError, Door, Kind, Place, Probe, Shape, Token};
use lockstep_core::id::InstanceId;
use lockstep_core::primary::Phase;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::devices::WantedDevice;
use crate::door::VolumeHandle;

const SIZE: u64 = 1 << 20;

/// A door that makes devices of words, which note their size.
struct Paper(Arc<AtomicU64>);

struct PaperDevice {
    token: Token,
    size_bytes: Arc<AtomicU64>,
}

impl Door<VolumeHandle> for Paper {
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
        let token = Token {
            name: shape.name,
            device: "/dev/made-up".into(),
            size_bytes: shape.size_bytes,
            read_only: shape.read_only,
            write_through: shape.write_through,
            queues: shape.queues,
            place: Place::Ublk { id: 1, mark: 2 },
        };
        let device = PaperDevice { token, size_bytes: Arc::clone(&self.0) };
        async move { Ok(Box::new(device) as Box<dyn Device>) }.boxed()
    }

    fn resume(
        &self,
        token: Token,
        _: Arc<VolumeHandle>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        let device = PaperDevice { token, size_bytes: Arc::clone(&self.0) };
        async move { Ok(Box::new(device) as Box<dyn Device>) }.boxed()
    }

    fn end(&self, _: Token) -> BoxFuture<'_, Result<(), DeviceError>> {
        async { Ok(()) }.boxed()
    }
}

impl Device for PaperDevice {
    fn token(&self) -> &Token {
        &self.token
    }

    fn resize(&self, size_bytes: u64) -> BoxFuture<'_, Result<(), DeviceError>> {
        self.size_bytes.store(size_bytes, Ordering::SeqCst);
        async { Ok(()) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        async { Ok(()) }.boxed()
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn fail(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

#[tokio::test]
async fn a_device_that_was_opened_while_its_volume_grew_is_told() {
    let (dir, meta) = (TempDir::new().unwrap(), Arc::new(Faulty::over_memory()));
    let told = Arc::new(AtomicU64::new(0));
    let door: Box<dyn Door<VolumeHandle>> = Box::new(Paper(Arc::clone(&told)));
    let devices = Devices::with_door(&device_config(dir.path()), door).unwrap();
    let node = Node::with(dir, meta, Uuid::new_v4(), &["pool"], Some(devices)).await;
    node.admin.begin();
    let uid = names::uid(&node.create().await.unwrap().uid).unwrap();
    // To whoever looked where the volume is served it was not attached yet.
    let (_tell, phase) = watch::channel(Phase::Active);
    let (inputs, _received) = mpsc::unbounded_channel();
    let size = Arc::new(AtomicU64::new(SIZE));
    let handle = VolumeHandle::new(uid, InstanceId(Uuid::new_v4()), phase, inputs, size);
    node.admin.inner.devices.open("v", &handle, SIZE, &WantedDevice::default()).await.unwrap();

    let request = v1::ResizeVolumeRequest { name: "v".to_owned(), size_bytes: 2 * SIZE };
    let resized = node.admin.resize_volume(&request, false).await.unwrap();
    assert_eq!((resized.size_bytes, resized.note.as_str()), (2 * SIZE, ""));
    assert_eq!(told.load(Ordering::SeqCst), 2 * SIZE);
    node.stop().await;
}
