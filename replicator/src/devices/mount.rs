//! File systems on devices: made, mounted and unmounted along with them.
//!
//! All of it is done in a process of its own, the mounter: this program, started with one word.
//! A thread that waits for a device waits uninterruptibly, and a process with such a thread does
//! not end, however it is killed. The device it waits for may be the daemon's own: then the next
//! daemon could not begin, because the one before it still holds the pools.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use lockstep_attach::filesystem::{self, Content, FileSystem, FileSystemError, Mount, User};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::kept::{Kept, Mounted};
use super::{DevicesError, WantedDevice};

/// The word that makes a mounter of this program.
pub const MOUNTER: &str = "mounter";
/// This program, also when its file has been replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// What is asked of a mounter, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Make the file system that is wanted, and the directory for its mount.
    Prepare { device: PathBuf, fs: Option<String>, read_only: bool, mount: Option<Where> },
    /// Mount it.
    Mount { device: PathBuf, read_only: bool, mounted: Mounted },
    /// Undo a mount that failed.
    Unmount { device: PathBuf, mounted: Mounted },
    /// Unmount what was mounted along with it, unless somebody else uses the device; then write
    /// out what the kernel still holds of it, so that no thread of the daemon has to.
    Settle { device: PathBuf, read_only: bool, mounted: Option<Mounted> },
    /// Take a mount whose device has failed out of sight.
    Detach { device: PathBuf, mounted: Mounted },
}

/// Where somebody wants a mount.
#[derive(Debug, Serialize, Deserialize)]
struct Where {
    dir: PathBuf,
    options: Vec<String>,
}

/// What a mounter answers, on its standard output.
type Answer = Result<Option<Mounted>, String>;

/// What has orders carried out.
#[derive(Debug)]
pub(super) enum Mounter {
    /// A process for each.
    Process,
    /// Nothing, in tests whose devices are made of words.
    #[cfg(test)]
    Nobody,
}

impl Mounter {
    /// Makes the file system that is wanted, and says how it is to be mounted, if it is.
    pub(super) async fn prepare(
        &self,
        kept: &Kept,
        wanted: &WantedDevice,
    ) -> Result<Option<Mounted>, DevicesError> {
        let options = wanted.mount_options.clone();
        let order = Order::Prepare {
            device: kept.token.device.clone(),
            fs: wanted.fs.clone(),
            read_only: kept.token.read_only,
            mount: wanted.mount_dir.clone().map(|dir| Where { dir, options }),
        };
        self.call(&order).await
    }

    /// Mounts what was prepared; nothing if it is mounted already.
    pub(super) async fn mount(&self, kept: &Kept, mounted: &Mounted) -> Result<(), DevicesError> {
        let (device, mounted) = (kept.token.device.clone(), mounted.clone());
        let order = Order::Mount { device, read_only: kept.token.read_only, mounted };
        self.call(&order).await.map(drop)
    }

    /// Leaves a device with nothing mounted, and nothing for the kernel to write to it: it can be
    /// closed then.
    pub(super) async fn settle(&self, kept: &Kept) -> Result<(), DevicesError> {
        let (device, read_only) = (kept.token.device.clone(), kept.token.read_only);
        let order = Order::Settle { device, read_only, mounted: kept.mount.clone() };
        self.call(&order).await.map(drop)
    }

    /// Unmounts what could not be mounted as it should, and removes the directory if it was made
    /// for it.
    pub(super) async fn unmount(&self, kept: &Kept, mounted: &Mounted) -> Result<(), DevicesError> {
        let (device, mounted) = (kept.token.device.clone(), mounted.clone());
        self.call(&Order::Unmount { device, mounted }).await.map(drop)
    }

    /// Takes a mount whose device is gone out of sight.
    pub(super) async fn detach(&self, kept: &Kept, mounted: &Mounted) {
        let (device, mounted) = (kept.token.device.clone(), mounted.clone());
        if let Err(error) = self.call(&Order::Detach { device, mounted }).await {
            tracing::warn!(volume = kept.name, %error, "a mount whose device is gone is left over");
        }
    }

    async fn call(&self, order: &Order) -> Result<Option<Mounted>, DevicesError> {
        match self {
            Self::Process => call(order).await,
            #[cfg(test)]
            Self::Nobody => Ok(None),
        }
    }
}

/// Has an order carried out by a process. If the caller goes away meanwhile, that does not.
async fn call(order: &Order) -> Result<Option<Mounted>, DevicesError> {
    let failed = |what: &str, source| DevicesError::Files { what: what.to_owned(), source };
    let cannot = |source| failed("cannot run the process that mounts", source);
    let order = serde_json::to_vec(order).map_err(|e| cannot(e.into()))?;
    let mut command = std::process::Command::new(PROGRAM);
    command.arg0("lockstepd").arg(MOUNTER).stdin(Stdio::piped()).stdout(Stdio::piped());
    // A Ctrl-C of the terminal is for the daemon.
    command.process_group(0).current_dir("/");
    let mut child = Command::from(command).spawn().map_err(cannot)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(&order).await.map_err(cannot)?;
    }
    let output = child.wait_with_output().await.map_err(cannot)?;
    match serde_json::from_slice::<Answer>(&output.stdout) {
        Ok(answer) => answer.map_err(DevicesError::FileSystem),
        Err(error) => {
            let what = format!("the process that mounts ended with {}", output.status);
            Err(failed(&what, error.into()))
        }
    }
}

/// The mounter: carries out the order on standard input.
///
/// # Errors
/// If it is not understood, or nobody hears the answer.
pub fn serve() -> std::io::Result<()> {
    // This process uses devices; it serves none.
    if let Err(error) = lockstep_kernel::memory::end_io_flusher() {
        tracing::debug!(%error, "cannot tell the kernel that this process serves no device");
    }
    let mut order = Vec::new();
    std::io::stdin().lock().read_to_end(&mut order)?;
    let answer: Answer = obey(serde_json::from_slice(&order)?).map_err(|e| e.to_string());
    std::io::stdout().lock().write_all(&serde_json::to_vec(&answer)?)
}

fn obey(order: Order) -> Result<Option<Mounted>, FileSystemError> {
    match order {
        Order::Prepare { device, fs, read_only, mount } => {
            make_ready(&device, fs.as_deref(), read_only, mount)
        }
        Order::Mount { device, read_only, mounted } => {
            filesystem::mount(&as_mount(&device, read_only, &mounted))?;
            Ok(None)
        }
        Order::Unmount { device, mounted } => {
            filesystem::unmount(&device, &mounted.dir)?;
            remove_dir(&mounted);
            Ok(None)
        }
        Order::Settle { device, read_only, mounted } => {
            settle_down(&device, read_only, mounted.as_ref())?;
            Ok(None)
        }
        Order::Detach { device, mounted } => {
            filesystem::detach(&device, &mounted.dir)?;
            remove_dir(&mounted);
            Ok(None)
        }
    }
}

fn as_mount(device: &Path, read_only: bool, mounted: &Mounted) -> Mount {
    Mount {
        device: device.to_owned(),
        dir: mounted.dir.clone(),
        fs: mounted.fs.clone(),
        options: mounted.options.clone(),
        read_only,
    }
}

fn make_ready(
    device: &Path,
    fs: Option<&str>,
    read_only: bool,
    mount: Option<Where>,
) -> Result<Option<Mounted>, FileSystemError> {
    let fs = fs.map(str::parse::<FileSystem>).transpose().map_err(FileSystemError::Unfit)?;
    let mut mounted = mount.map(|wanted| Mounted {
        dir: wanted.dir,
        fs: String::new(),
        options: wanted.options,
        made_dir: false,
    });
    if let Some(mounted) = &mut mounted {
        mounted.made_dir = as_mount(device, read_only, mounted).prepare()?;
    }
    let found = there(device, fs, read_only);
    if let (Err(_), Some(mounted)) = (&found, &mounted) {
        remove_dir(mounted);
    }
    let fs = found?;
    Ok(mounted.map(|mounted| Mounted { fs, ..mounted }))
}

/// The type of the file system on a device, which is made if it is wanted and the device blank.
fn there(
    device: &Path,
    wanted: Option<FileSystem>,
    read_only: bool,
) -> Result<String, FileSystemError> {
    let found = filesystem::content(device)?;
    match (wanted, found) {
        (Some(_), Content::Blank) if read_only => Err(FileSystemError::Unfit(format!(
            "{} is read-only and blank; attach the volume writable once, to make a file system",
            device.display()
        ))),
        (Some(fs), Content::Blank) => {
            filesystem::make(device, fs)?;
            Ok(fs.name().to_owned())
        }
        (Some(fs), Content::FileSystem(there)) if there == fs.name() => Ok(there),
        (None, Content::FileSystem(there)) => Ok(there),
        (None, found) => Err(FileSystemError::Nothing { device: device.to_owned(), found }),
        (Some(_), found) => Err(FileSystemError::NotBlank { device: device.to_owned(), found }),
    }
}

fn settle_down(
    device: &Path,
    read_only: bool,
    mounted: Option<&Mounted>,
) -> Result<(), FileSystemError> {
    // Programs that only look at all devices, as udev does, are none that use it.
    let counts = |user: &User| !matches!(user, User::Process { .. });
    let ours = mounted.map(|mounted| User::Mount(mounted.dir.clone()));
    let mut others = filesystem::users(device).into_iter().filter(counts);
    if let Some(other) = others.find(|user| Some(user) != ours.as_ref()) {
        let by = other.to_string();
        return Err(FileSystemError::Busy { what: device.to_owned(), by });
    }
    if let Some(mounted) = mounted {
        filesystem::unmount(device, &mounted.dir)?;
    }
    if let Err(error) = filesystem::write_out(device) {
        if let Some(mounted) = mounted {
            filesystem::mount(&as_mount(device, read_only, mounted))?;
        }
        return Err(error);
    }
    if let Some(mounted) = mounted {
        remove_dir(mounted);
    }
    Ok(())
}

/// Removes the directory that was made for a mount, if it is empty again.
fn remove_dir(mounted: &Mounted) {
    if mounted.made_dir {
        // It may have been used for something else since.
        let _ = std::fs::remove_dir(&mounted.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_wanted_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let mount = || Some(Where { dir: at.clone(), options: vec!["noatime".to_owned()] });
        let told = make_ready(&image, None, false, mount()).unwrap_err().to_string();
        assert!(told.contains("no file system to mount"), "{told}");
        let told = make_ready(&image, Some("ext4"), true, mount()).unwrap_err().to_string();
        assert!(told.contains("writable once"), "{told}");
        let told = make_ready(&image, Some("fat"), false, mount()).unwrap_err().to_string();
        assert!(told.contains("ext4 and xfs"), "{told}");
        assert!(!at.exists(), "a directory that is of no use is removed again");
        assert_eq!(filesystem::content(&image).unwrap(), Content::Blank);

        let mounted = make_ready(&image, Some("ext4"), false, mount()).unwrap().unwrap();
        assert!(mounted.made_dir && mounted.fs == "ext4" && at.exists(), "{mounted:?}");
        let again = make_ready(&image, None, true, mount()).unwrap().unwrap();
        assert!(!again.made_dir && again.fs == "ext4", "{again:?}");
        let told = make_ready(&image, Some("xfs"), false, mount()).unwrap_err().to_string();
        assert!(told.contains("not blank"), "{told}");
        remove_dir(&mounted);
        assert!(!at.exists());
    }

    #[test]
    fn orders_and_answers_are_read_as_they_are_written() {
        let mounted = Mounted {
            dir: "/mnt/a b".into(),
            fs: "xfs".to_owned(),
            options: vec!["ro".to_owned()],
            made_dir: true,
        };
        let order = Order::Unmount { device: "/dev/null".into(), mounted: mounted.clone() };
        let read: Order = serde_json::from_slice(&serde_json::to_vec(&order).unwrap()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{order:?}"));
        for answer in [Ok(Some(mounted)), Ok(None), Err("no".to_owned())] {
            let text = serde_json::to_vec(&answer).unwrap();
            assert_eq!(serde_json::from_slice::<Answer>(&text).unwrap(), answer);
        }
    }
}
