//! The service, with a test in the place of the kernel: it has the other end of each socket.

use std::future::Future;
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::backend::{Errno, ExportInfo, ReadData, Segment, ZeroMode};
use crate::device::Place;
use crate::memory::MemoryBackend;
use crate::nbd::proto::{RequestHeader, SIMPLE_REPLY_BYTES, cmd};

const BLOCK: u32 = 4096;
const SOON: Duration = Duration::from_secs(10);

/// A volume whose writes wait while it is held.
struct Volume {
    memory: MemoryBackend,
    held: watch::Sender<bool>,
    leaving: AtomicBool,
    running: AtomicUsize,
    begun: watch::Sender<usize>,
    fua: AtomicUsize,
}

impl Volume {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryBackend::new(1 << 20),
            held: watch::Sender::new(false),
            leaving: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            begun: watch::Sender::new(0),
            fua: AtomicUsize::new(0),
        })
    }

    async fn has_begun(&self, count: usize) {
        let mut begun = self.begun.subscribe();
        timeout(SOON, begun.wait_for(|begun| *begun >= count)).await.unwrap().unwrap();
    }

    async fn first_byte(&self) -> u8 {
        match self.memory.read(0, BLOCK).await.unwrap().segments.as_slice() {
            [Segment::Data(data)] => data[0],
            _ => 0,
        }
    }
}

impl Backend for Volume {
    fn info(&self) -> ExportInfo {
        self.memory.info()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        self.memory.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.begun.send_modify(|begun| *begun += 1);
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.fua.fetch_add(usize::from(fua), Ordering::SeqCst);
        if self.leaving.load(Ordering::SeqCst) {
            return Err(Errno::Shutdown);
        }
        self.memory.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.begun.send_modify(|begun| *begun += 1);
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        self.memory.flush().await
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        self.memory.zero(offset, len, mode).await
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.memory.discard(offset, len, fua).await
    }
}

/// The kernel's driver.
#[derive(Clone)]
struct Fake {
    volume: Arc<Volume>,
    sockets: mpsc::UnboundedSender<UnixStream>,
    current: Arc<Mutex<UnixStream>>,
    disconnected: Arc<AtomicBool>,
    size_bytes: Arc<AtomicUsize>,
    /// A socket was made while requests of the one before it were running.
    overtaken: Arc<AtomicBool>,
}

impl Control for Fake {
    fn reconnect(&self) -> io::Result<Option<UnixStream>> {
        if self.disconnected.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.volume.running.load(Ordering::SeqCst) > 0 {
            self.overtaken.store(true, Ordering::SeqCst);
        }
        let (server, kernel) = UnixStream::pair()?;
        *self.current.lock().unwrap() = kernel.try_clone()?;
        self.sockets.send(kernel).unwrap();
        Ok(Some(server))
    }

    fn disconnect(&self) -> io::Result<()> {
        self.disconnected.store(true, Ordering::SeqCst);
        self.current.lock().unwrap().shutdown(Shutdown::Both)
    }

    fn resize(&self, size_bytes: u64) -> io::Result<()> {
        self.size_bytes.store(usize::try_from(size_bytes).unwrap(), Ordering::SeqCst);
        Ok(())
    }
}

struct World {
    volume: Arc<Volume>,
    fake: Fake,
    sockets: mpsc::UnboundedReceiver<UnixStream>,
    service: Service<Volume, Fake>,
    kernel: Kernel,
}

/// The kernel's end of one socket.
struct Kernel(tokio::net::UnixStream);

impl Kernel {
    fn new(socket: UnixStream) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self(tokio::net::UnixStream::from_std(socket).unwrap())
    }

    /// Sends a write of one block of `byte` at the beginning of the volume.
    async fn write(&mut self, cookie: u64, byte: u8) {
        let header =
            RequestHeader { flags: 0, command: cmd::WRITE, cookie, offset: 0, length: BLOCK };
        self.0.write_all(&header.encode()).await.unwrap();
        self.0.write_all(&[byte; BLOCK as usize]).await.unwrap();
    }

    /// Error number and cookie of the next reply; none at the end of the stream.
    async fn reply(&mut self) -> Option<(u32, u64)> {
        let mut bytes = [0; SIMPLE_REPLY_BYTES];
        let read = timeout(SOON, self.0.read_exact(&mut bytes)).await.expect("no reply");
        read.ok()?;
        let number = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        Some((number, u64::from_be_bytes(bytes[8..].try_into().unwrap())))
    }
}

fn world(write_through: bool) -> World {
    let volume = Volume::new();
    let (server, kernel) = UnixStream::pair().unwrap();
    let (sender, sockets) = mpsc::unbounded_channel();
    let fake = Fake {
        volume: Arc::clone(&volume),
        sockets: sender,
        current: Arc::new(Mutex::new(kernel.try_clone().unwrap())),
        disconnected: Arc::default(),
        size_bytes: Arc::default(),
        overtaken: Arc::default(),
    };
    let token = Token {
        name: "v".into(),
        device: "/dev/nbd0".into(),
        size_bytes: 1 << 20,
        read_only: false,
        write_through,
        queues: 1,
        place: Place::Nbd { index: 0, backend: "lockstep:v:1".into() },
    };
    let served = Served::new(Arc::clone(&volume), false, write_through);
    let service = Service::start(served, fake.clone(), &token, server).unwrap();
    World { volume, fake, sockets, service, kernel: Kernel::new(kernel) }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.expect("it takes for ever")
}

#[tokio::test]
async fn a_new_socket_is_made_only_when_all_of_the_old_one_has_ended() {
    let mut world = world(false);
    world.volume.held.send_replace(true);
    world.kernel.write(1, b'a').await;
    world.volume.has_begun(1).await;
    // This one lies in the socket, or is begun late: either is right, as no other socket is there.
    world.kernel.write(2, b'a').await;
    world.fake.current.lock().unwrap().shutdown(Shutdown::Both).unwrap();
    let early = timeout(Duration::from_millis(200), world.sockets.recv()).await;
    assert!(early.is_err(), "the kernel could send again what still runs");
    world.volume.held.send_replace(false);

    let mut kernel = Kernel::new(soon(world.sockets.recv()).await.unwrap());
    assert!(!world.fake.overtaken.load(Ordering::SeqCst));
    kernel.write(3, b'a').await;
    assert_eq!(kernel.reply().await, Some((0, 3)));
    kernel.write(4, b'b').await;
    assert_eq!(kernel.reply().await, Some((0, 4)));
    assert_eq!(world.volume.first_byte().await, b'b', "newer data was overwritten");
}

#[tokio::test]
async fn a_release_answers_what_it_has_begun_and_makes_no_new_connection() {
    let mut world = world(false);
    world.volume.held.send_replace(true);
    world.kernel.write(1, b'a').await;
    world.volume.has_begun(1).await;
    let volume = Arc::clone(&world.volume);
    let released = world.service.release(SOON);
    let (replies, ()) = soon(async {
        let replies = async {
            // What comes now is for the next daemon.
            volume.held.send_replace(false);
            (world.kernel.reply().await, world.kernel.reply().await)
        };
        tokio::join!(replies, released)
    })
    .await;
    assert_eq!(replies, (Some((0, 1)), None));
    assert_eq!(world.volume.first_byte().await, b'a');
    assert!(world.sockets.try_recv().is_err(), "a socket was made after the release");
}

#[tokio::test]
async fn a_release_leaves_what_does_not_end_unanswered() {
    let mut world = world(false);
    world.volume.held.send_replace(true);
    world.kernel.write(1, b'a').await;
    world.volume.has_begun(1).await;
    soon(world.service.release(Duration::from_millis(50))).await;
    assert_eq!(world.kernel.reply().await, None, "an error is no pause");
}

#[tokio::test]
async fn a_failed_device_answers_at_once_and_is_ended() {
    let mut world = world(false);
    world.volume.held.send_replace(true);
    world.kernel.write(1, b'a').await;
    world.volume.has_begun(1).await;
    world.service.fail();
    assert_eq!(world.kernel.reply().await, Some((5, 1)));
    world.kernel.write(2, b'a').await;
    assert_eq!(world.kernel.reply().await, Some((5, 2)));
    soon(world.service.disconnect()).await.unwrap();
    assert!(world.fake.disconnected.load(Ordering::SeqCst));
    assert!(world.sockets.try_recv().is_err());
}

#[tokio::test]
async fn a_volume_that_leaves_is_a_pause_for_the_device() {
    let mut world = world(false);
    world.volume.leaving.store(true, Ordering::SeqCst);
    world.kernel.write(1, b'a').await;
    world.volume.has_begun(1).await;
    let mut byte = [0];
    let early = timeout(Duration::from_millis(200), world.kernel.0.read(&mut byte)).await;
    assert!(early.is_err(), "it was answered: {early:?}");
    world.service.fail();
    assert_eq!(world.kernel.reply().await, Some((5, 1)), "but it can be made to fail");
}

#[tokio::test]
async fn a_device_that_somebody_else_ended_is_left_alone() {
    let world = world(false);
    world.fake.disconnect().unwrap();
    soon(world.service.tasks.wait()).await;
}

#[tokio::test]
async fn writing_through_makes_each_write_durable() {
    let mut world = world(true);
    world.kernel.write(1, b'a').await;
    assert_eq!(world.kernel.reply().await, Some((0, 1)));
    assert_eq!(world.volume.fua.load(Ordering::SeqCst), 1);
    assert_eq!(world.volume.memory.unflushed_blocks(), 0);
}

#[tokio::test]
async fn a_size_is_not_changed_before_the_volume_answers() {
    let world = world(false);
    world.volume.held.send_replace(true);
    let answers = async {
        world.volume.has_begun(1).await;
        assert_eq!(world.fake.size_bytes.load(Ordering::SeqCst), 0);
        world.volume.held.send_replace(false);
    };
    let (resized, ()) = soon(async { tokio::join!(world.service.resize(2 << 20), answers) }).await;
    resized.unwrap();
    assert_eq!(world.fake.size_bytes.load(Ordering::SeqCst), 2 << 20);
}
