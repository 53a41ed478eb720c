//! Block devices of volumes attached to this node.
//!
//! Of each device a small file is kept, so that the next daemon finds it. The order is the same
//! always: the device, its file, its name that stays, its mount; undone the other way round. Then
//! a daemon that dies in between leaves nothing that its successor does not know of.

mod door;
mod dress;
mod guard;
mod kept;
mod left;
mod link;
mod mount;
mod resize;
#[cfg(test)]
mod tests;
mod will;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_attach::device::{Choice, Device, DeviceError, Door, Kind, Probe, Shape};
use lockstep_attach::keeper::KeeperClient;
use lockstep_core::id::VolumeId;
use lockstep_core::record::Claimed;

use crate::door::VolumeHandle;
use kept::Files;
pub use kept::{Kept, Mounted};
use link::Links;
use mount::Mounter;
pub use mount::{MOUNTER, serve as serve_mounter};
pub use will::end_all;

/// Queues, or connections, of a device.
const QUEUES: u16 = 2;

/// How long a device that is to be removed by force may take to be unmounted and closed.
const FORCED_LIMIT: Duration = Duration::from_secs(2);

/// Where devices and what belongs to them are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Directory for what must outlive the daemon but not the machine's next start.
    pub run_dir: PathBuf,
    /// Directory for names that stay, `/dev/lockstep`.
    pub device_dir: PathBuf,
    /// Which door this node takes if a volume does not say.
    pub door: Choice,
    /// Whether a keeper is started if none answers.
    pub starts_keeper: bool,
}

/// The device that somebody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedDevice {
    /// Which door.
    pub door: Choice,
    /// Refuses writes.
    pub read_only: bool,
    /// Durable when written.
    pub write_through: bool,
    /// Makes a file system of this type if the device is blank.
    pub fs: Option<String>,
    /// `fs` is only for a blank device: any file system that is there will do.
    pub any_fs: bool,
    /// Mounts it there.
    pub mount_dir: Option<PathBuf>,
    /// With these options.
    pub mount_options: Vec<String>,
    /// The claim under which it is made, for the next daemon.
    pub claimed: Option<Claimed>,
}

/// Why there is no device as wanted.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// A door said no.
    #[error(transparent)]
    Door(#[from] DeviceError),
    /// A file, a name or a directory could not be made.
    #[error("{what}: {source}")]
    Files {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file system could not be made, mounted or unmounted; says why and what to do.
    #[error("{0}")]
    FileSystem(String),
    /// The same, and a part of it is on the device.
    #[error("{0}")]
    Unfinished(String),
    /// There is one already, which is another.
    #[error("it has a device already, {0}; detach the volume first")]
    Differs(String),
    /// The device of the daemon before this one is being taken over.
    #[error("its device is being taken over from the daemon before this one; try again")]
    TakingOver,
    /// The kernel has nothing to make one with.
    #[error("no block device can be made here through door {choice}: {why}")]
    NoDoor {
        /// Which door was wanted.
        choice: Choice,
        /// What each lacks.
        why: String,
    },
    /// The device went while something was done with it.
    #[error("its device is gone: the volume was taken over or detached meanwhile")]
    Gone,
}

/// A device that is served.
struct Open {
    device: Arc<dyn Device>,
    kept: Kept,
}

/// All block devices of this node. Clones are the same.
#[derive(Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

struct Inner {
    files: Files,
    links: Links,
    mounter: Mounter,
    doors: Vec<Box<dyn Door<VolumeHandle>>>,
    /// Ends all devices when the machine shuts down; none in tests.
    keeper: Option<KeeperClient>,
    choice: Choice,
    probes: Vec<Probe>,
    open: Mutex<BTreeMap<VolumeId, Open>>,
    /// Tells of each one that comes to be open.
    added: tokio::sync::Notify,
    /// Of the daemon before this one, and not taken over yet.
    left: Mutex<BTreeMap<VolumeId, Kept>>,
    /// Left to the daemon after this one.
    released: Mutex<Vec<Kept>>,
    /// One operation on a volume's device at a time; failing it does not wait.
    turns: Mutex<BTreeMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
    /// Shared by those who make a device until it is noted, so that [`Devices::sweep`] does not
    /// take it for a forgotten one.
    making: tokio::sync::RwLock<()>,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices").field("choice", &self.inner.choice).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something that must not be left half done if whoever waits for it goes away.
async fn on<T: Send + 'static>(
    work: impl Future<Output = Result<T, DevicesError>> + Send + 'static,
) -> Result<T, DevicesError> {
    let broken = |error| DevicesError::Files {
        what: "what was begun with a device has no end".to_owned(),
        source: io::Error::other(error),
    };
    tokio::spawn(work).await.map_err(broken)?
}

/// What this machine's kernel offers, the best first. Blocks.
#[must_use]
pub fn probes(run_dir: &Path) -> Vec<Probe> {
    let keeper = door::keeper(run_dir, true);
    door::all(run_dir, "", &keeper).iter().map(|door| door.probe()).collect()
}

impl Devices {
    /// Asks the kernel what it offers, and reads what the daemon before this one left. Blocks.
    ///
    /// # Errors
    /// If what was left cannot be read.
    pub fn new(config: &DeviceConfig, owner: &str) -> Result<Self, DevicesError> {
        let keeper = door::keeper(&config.run_dir, config.starts_keeper);
        let doors = door::all(&config.run_dir, owner, &keeper);
        Self::with_doors(config, owner, doors, Mounter::Process, Some(keeper))
    }

    /// The devices of a node whose kernel offers nothing.
    #[cfg(test)]
    pub(crate) fn without_doors(config: &DeviceConfig) -> Result<Self, DevicesError> {
        Self::with_doors(config, "test", Vec::new(), Mounter::Nobody, None)
    }

    /// The devices of a node with one door, which is made up.
    #[cfg(test)]
    pub(crate) fn with_door(
        config: &DeviceConfig,
        door: Box<dyn Door<VolumeHandle>>,
    ) -> Result<Self, DevicesError> {
        Self::with_doors(config, "test", vec![door], Mounter::Nobody, None)
    }

    fn with_doors(
        config: &DeviceConfig,
        owner: &str,
        doors: Vec<Box<dyn Door<VolumeHandle>>>,
        mounter: Mounter,
        keeper: Option<KeeperClient>,
    ) -> Result<Self, DevicesError> {
        let files = Files::new(config.run_dir.join("devices"), owner);
        let left = files.read_all()?;
        let inner = Inner {
            probes: doors.iter().map(|door| door.probe()).collect(),
            files,
            links: Links::new(config.device_dir.clone()),
            doors,
            mounter,
            keeper,
            choice: config.door,
            open: Mutex::default(),
            added: tokio::sync::Notify::new(),
            left: Mutex::new(left.into_iter().map(|kept| (kept.volume, kept)).collect()),
            released: Mutex::default(),
            turns: Mutex::default(),
            making: tokio::sync::RwLock::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the kernel offers, the best first.
    #[must_use]
    pub fn probes(&self) -> &[Probe] {
        &self.inner.probes
    }

    /// The door that `choice` leads to, after the node's own choice.
    #[must_use]
    pub fn chosen(&self, choice: Choice) -> Option<Kind> {
        let choice = if choice == Choice::Auto { self.inner.choice } else { choice };
        let mut usable = self.inner.probes.iter().filter(|probe| probe.usable).map(|p| p.kind);
        match choice {
            Choice::Auto => usable.next(),
            Choice::Only(kind) => usable.find(|usable| *usable == kind),
        }
    }

    /// The device of a volume, if it is served.
    #[must_use]
    pub fn find(&self, volume: VolumeId) -> Option<Kept> {
        lock(&self.inner.open).get(&volume).map(|open| open.kept.clone())
    }

    /// Where a volume's device is, under its name that stays.
    #[must_use]
    pub fn path(&self, kept: &Kept) -> PathBuf {
        self.inner.links.path(&kept.name)
    }

    /// Whether a volume has a device, or is to have one again.
    #[must_use]
    pub fn is_there(&self, volume: VolumeId) -> bool {
        lock(&self.inner.left).contains_key(&volume) || self.find(volume).is_some()
    }

    fn turn(&self, volume: VolumeId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.inner.turns).entry(volume).or_default())
    }

    fn device(&self, volume: VolumeId) -> Option<Arc<dyn Device>> {
        lock(&self.inner.open).get(&volume).map(|open| Arc::clone(&open.device))
    }

    fn door(&self, kind: Kind) -> Result<&dyn Door<VolumeHandle>, DeviceError> {
        let found = self.inner.doors.iter().find(|door| door.kind() == kind);
        let none = || DeviceError::Unavailable { kind, why: "it is not built in".to_owned() };
        found.map(AsRef::as_ref).ok_or_else(none)
    }

    /// Makes a device for a served volume, with file system and mount as wanted; or finds the one
    /// that is there. What was begun is undone if it fails. Goes on if the caller goes away: a file
    /// system that is half made is worse than none.
    ///
    /// # Errors
    /// [`DevicesError`] says what to do.
    pub async fn open(
        &self,
        name: &str,
        handle: &VolumeHandle,
        size_bytes: u64,
        wanted: &WantedDevice,
    ) -> Result<Kept, DevicesError> {
        let (devices, name, handle) = (self.clone(), name.to_owned(), handle.clone());
        let wanted = wanted.clone();
        on(async move { devices.open_in_turn(&name, &handle, size_bytes, &wanted).await }).await
    }

    async fn open_in_turn(
        &self,
        name: &str,
        handle: &VolumeHandle,
        size_bytes: u64,
        wanted: &WantedDevice,
    ) -> Result<Kept, DevicesError> {
        let volume = handle.volume();
        let turn = self.turn(volume);
        let _turn = turn.lock().await;
        if lock(&self.inner.left).contains_key(&volume) {
            return Err(DevicesError::TakingOver);
        }
        if let Some(kept) = self.find(volume) {
            kept.check(wanted)?;
            return self.dress(kept, wanted).await;
        }
        let kept = self.make(name, handle, size_bytes, wanted).await?;
        match self.dress(kept, wanted).await {
            Ok(kept) => Ok(kept),
            Err(error) => {
                if let Err(why) = self.undo(volume).await {
                    tracing::warn!(volume = name, %why, "a device is left over; detach it");
                }
                Err(error)
            }
        }
    }

    /// The device, its file and its name.
    async fn make(
        &self,
        name: &str,
        handle: &VolumeHandle,
        size_bytes: u64,
        wanted: &WantedDevice,
    ) -> Result<Kept, DevicesError> {
        let kind = self.chosen(wanted.door).ok_or_else(|| self.no_door(wanted.door))?;
        let shape = Shape {
            name: handle.volume().to_string(),
            size_bytes,
            read_only: wanted.read_only,
            write_through: wanted.write_through,
            queues: QUEUES,
        };
        let _making = self.inner.making.read().await;
        let device = self.door(kind)?.open(shape, Arc::new(handle.clone())).await?;
        let (token, claimed) = (device.token().clone(), wanted.claimed);
        let kept = Kept::new(&self.inner.files, handle.volume(), name, token, claimed);
        let noted = self.note(&kept).await;
        if let Err(error) = noted {
            device.fail().await;
            return Err(error);
        }
        tracing::info!(volume = name, device = %device.path().display(), "has a device");
        self.put(device, &kept);
        if handle.is_over() {
            // Who failed its device meanwhile did not find this one.
            self.fail(handle.volume()).await;
        }
        Ok(kept)
    }

    fn put(&self, device: Box<dyn Device>, kept: &Kept) {
        let open = Open { device: Arc::from(device), kept: kept.clone() };
        lock(&self.inner.open).insert(kept.volume, open);
        self.inner.added.notify_one();
    }

    /// Notes a device for the next daemon, and for the keeper.
    async fn note(&self, kept: &Kept) -> Result<(), DevicesError> {
        self.inner.files.write(kept)?;
        self.watch(kept).await;
        self.inner.links.make(&kept.name, &kept.token.device)
    }

    /// Sees to it that there is a keeper while there is this device. A device of FUSE has its
    /// connection there; of the others it keeps the file that notes them.
    async fn watch(&self, kept: &Kept) {
        let Some(keeper) = self.inner.keeper.clone() else { return };
        if kept.token.kind() == Kind::Fuse {
            return;
        }
        let (name, path) = (kept.token.name.clone(), self.inner.files.path(kept.volume));
        let kept_open = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
            keeper.keep(&name, "noted", file.as_fd()).map_err(|error| error.to_string())
        });
        let outcome = kept_open.await.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(why) = outcome {
            tracing::warn!(volume = kept.name, why, "a shutdown of the machine may wait for it");
        }
    }

    fn no_door(&self, choice: Choice) -> DevicesError {
        let choice = if choice == Choice::Auto { self.inner.choice } else { choice };
        let asked = |probe: &&Probe| choice == Choice::Auto || choice == Choice::Only(probe.kind);
        let why = self.inner.probes.iter().filter(asked);
        let why: Vec<_> = why.map(|probe| format!("{}: {}", probe.kind, probe.why)).collect();
        DevicesError::NoDoor { choice, why: why.join("; ") }
    }

    /// Notes what has become of an open device.
    fn keep(&self, kept: &Kept) -> Result<(), DevicesError> {
        let mut open = lock(&self.inner.open);
        let Some(open) = open.get_mut(&kept.volume) else { return Err(DevicesError::Gone) };
        self.inner.files.write(kept)?;
        open.kept = kept.clone();
        Ok(())
    }

    /// Removes the device of a volume, if it has one: unmounts what was mounted by
    /// [`Devices::open`]. With `force` also while it is in use: then all I/O on it fails.
    ///
    /// # Errors
    /// [`DeviceError::Busy`] and what unmounting it says; it is then served as before.
    pub async fn close(&self, volume: VolumeId, force: bool) -> Result<(), DevicesError> {
        let devices = self.clone();
        let closed = on(async move { devices.close_in_turn(volume).await });
        if !force {
            return closed.await;
        }
        // What is not written yet is not thrown away without need.
        match tokio::time::timeout(FORCED_LIMIT, closed).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => self.fail(volume).await,
        }
        Ok(())
    }

    async fn close_in_turn(&self, volume: VolumeId) -> Result<(), DevicesError> {
        let turn = self.turn(volume);
        let _turn = turn.lock().await;
        if lock(&self.inner.left).contains_key(&volume) {
            return Err(DevicesError::TakingOver);
        }
        self.undo(volume).await
    }

    async fn undo(&self, volume: VolumeId) -> Result<(), DevicesError> {
        let (Some(device), Some(kept)) = (self.device(volume), self.find(volume)) else {
            return Ok(());
        };
        self.inner.mounter.settle(&kept).await?;
        if let Err(error) = device.close().await {
            if let Some(mounted) = &kept.mount
                && let Err(why) = self.inner.mounter.mount(&kept, mounted).await
            {
                tracing::warn!(volume = kept.name, %why, "not mounted again; detach it once more");
            }
            return Err(error.into());
        }
        lock(&self.inner.open).remove(&volume);
        self.forget(&kept).await;
        Ok(())
    }

    /// The name that stays, then the file, then what the keeper has of it. The next device of the
    /// volume has the same names, so it is waited for.
    async fn forget(&self, kept: &Kept) {
        self.inner.links.remove(&kept.name, &kept.token.device);
        if let Err(error) = self.inner.files.remove(kept.volume) {
            tracing::warn!(volume = kept.name, %error, "a device that is gone is still noted");
        }
        let (keeper, name) = (self.inner.keeper.clone(), kept.token.name.clone());
        if let Some(keeper) = keeper.filter(|_| kept.token.kind() != Kind::Fuse) {
            // What the keeper has too much does no harm.
            let _ = tokio::task::spawn_blocking(move || keeper.forget(&name)).await;
        }
    }

    /// Fails all I/O on a volume's device with `EIO`, at once, and removes it. Waits for no
    /// operation on it that is under way.
    pub async fn fail(&self, volume: VolumeId) {
        let open = lock(&self.inner.open).remove(&volume);
        if let Some(open) = open {
            tracing::warn!(volume = open.kept.name, "its device fails from now on");
            open.device.fail().await;
            self.bury(&open.kept).await;
        }
        let left = lock(&self.inner.left).remove(&volume);
        if let Some(kept) = left {
            self.end(&kept).await;
        }
    }

    /// Clears up after a device that is gone.
    async fn bury(&self, kept: &Kept) {
        if let Some(mounted) = &kept.mount {
            self.inner.mounter.detach(kept, mounted).await;
        }
        self.forget(kept).await;
    }

    async fn end(&self, kept: &Kept) {
        let outcome = match self.door(kept.token.kind()) {
            Ok(door) => door.end(kept.token.clone()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(volume = kept.name, %error, "cannot end a device that was left");
        }
        self.bury(kept).await;
    }

    /// Ends what is left of devices whose daemon died before it could note them.
    pub async fn sweep(&self) {
        let _nobody_makes_one = self.inner.making.write().await;
        for door in &self.inner.doors {
            if let Err(error) = door.sweep(self.inner.files.names()).await {
                tracing::warn!(door = %door.kind(), %error, "cannot look for forgotten devices");
            }
        }
    }
}
