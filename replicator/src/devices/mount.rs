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

use lockstep_attach::filesystem::{self, Content, FileSystem, FileSystemError, Mount};
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
    /// Look whether a file system is to be made, and make the directory for its mount.
    Prepare {
        device: PathBuf,
        fs: Option<String>,
        any_fs: bool,
        read_only: bool,
        unfinished: bool,
        mount: Option<Where>,
    },
    /// Make a file system, also where one was begun and not finished.
    Make { device: PathBuf, fs: String, unfinished: bool },
    /// Mount it.
    Mount { device: PathBuf, read_only: bool, mounted: Mounted },
    /// Let a mounted file system have all of its device, which has grown.
    Grow { device: PathBuf, mounted: Mounted },
    /// Let a mounted file system go on that may have been left frozen.
    Thaw { device: PathBuf, dir: PathBuf },
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
type Answer = Result<Prepared, Refusal>;

/// What has been prepared.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {
    /// How it is to be mounted, if it is.
    pub(super) mounted: Option<Mounted>,
    /// The device is blank, or was before somebody began what is wanted, and is to get its file
    /// system.
    pub(super) to_make: bool,
    /// What was not done and need not have been.
    #[serde(default)]
    note: Option<String>,
}

/// Why something was not done.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Refusal {
    why: String,
    /// There is a part of a file system on the device now.
    unfinished: bool,
}

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
    /// Looks whether a file system is to be made, and says how it is to be mounted, if it is.
    pub(super) async fn prepare(
        &self,
        kept: &Kept,
        wanted: &WantedDevice,
    ) -> Result<Prepared, DevicesError> {
        let options = wanted.mount_options.clone();
        let order = Order::Prepare {
            device: kept.token.device.clone(),
            fs: wanted.fs.clone(),
            any_fs: wanted.any_fs,
            read_only: kept.token.read_only,
            unfinished: kept.making,
            mount: wanted.mount_dir.clone().map(|dir| Where { dir, options }),
        };
        self.call(&order).await
    }

    /// Makes a file system on what was prepared.
    pub(super) async fn make(&self, kept: &Kept, fs: &str) -> Result<(), DevicesError> {
        let (device, fs, unfinished) = (kept.token.device.clone(), fs.to_owned(), kept.making);
        self.call(&Order::Make { device, fs, unfinished }).await.map(drop)
    }

    /// Mounts what was prepared; nothing if it is mounted already.
    pub(super) async fn mount(&self, kept: &Kept, mounted: &Mounted) -> Result<(), DevicesError> {
        let (device, mounted) = (kept.token.device.clone(), mounted.clone());
        let order = Order::Mount { device, read_only: kept.token.read_only, mounted };
        if let Some(why) = self.call(&order).await?.note {
            tracing::warn!(volume = kept.name, why, "the file system has not all of its device");
        }
        Ok(())
    }

    /// Lets what is mounted have all of its device, which has grown.
    pub(super) async fn grow(&self, kept: &Kept, mounted: &Mounted) -> Result<(), DevicesError> {
        let (device, mounted) = (kept.token.device.clone(), mounted.clone());
        self.call(&Order::Grow { device, mounted }).await.map(drop)
    }

    /// Lets what is mounted go on, if somebody died over its growth.
    pub(super) async fn thaw(&self, kept: &Kept, mounted: &Mounted) -> Result<(), DevicesError> {
        let (device, dir) = (kept.token.device.clone(), mounted.dir.clone());
        self.call(&Order::Thaw { device, dir }).await.map(drop)
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

    async fn call(&self, order: &Order) -> Result<Prepared, DevicesError> {
        match self {
            Self::Process => call(order).await,
            #[cfg(test)]
            Self::Nobody => Ok(Prepared::default()),
        }
    }
}

/// Has an order carried out by a process. If the caller goes away meanwhile, that does not.
async fn call(order: &Order) -> Result<Prepared, DevicesError> {
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
        Ok(answer) => answer.map_err(|refusal| match refusal.unfinished {
            true => DevicesError::Unfinished(refusal.why),
            false => DevicesError::FileSystem(refusal.why),
        }),
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
    let answer = answer(serde_json::from_slice(&order)?);
    std::io::stdout().lock().write_all(&serde_json::to_vec(&answer)?)
}

fn answer(order: Order) -> Answer {
    let again = matches!(order, Order::Make { unfinished: true, .. });
    obey(order).map_err(|error| {
        let unfinished = match error {
            FileSystemError::Unfinished { .. } => true,
            FileSystemError::NotBlank { .. } => false,
            // Whatever was there is there still.
            _ => again,
        };
        Refusal { why: error.to_string(), unfinished }
    })
}

fn obey(order: Order) -> Result<Prepared, FileSystemError> {
    match order {
        Order::Prepare { device, fs, any_fs, read_only, unfinished, mount } => {
            let wanted = FsWanted { fs: fs.as_deref(), any: any_fs };
            return make_ready(&device, wanted, read_only, unfinished, mount);
        }
        Order::Make { device, fs, unfinished } => {
            let fs = fs.parse().map_err(FileSystemError::Unfit)?;
            if unfinished {
                filesystem::remake(&device, fs)?;
            } else {
                filesystem::make(&device, fs)?;
            }
        }
        Order::Mount { device, read_only, mounted } => {
            let note = filesystem::mount(&as_mount(&device, read_only, &mounted))?;
            let note = note.map(|why| why.to_string());
            return Ok(Prepared { note, ..Prepared::default() });
        }
        Order::Grow { device, mounted } => filesystem::grow(&device, &mounted.dir, &mounted.fs)?,
        Order::Thaw { device, dir } => filesystem::thaw(&device, &dir)?,
        Order::Unmount { device, mounted } => {
            filesystem::unmount(&device, &mounted.dir)?;
            remove_dir(&mounted);
        }
        Order::Settle { device, read_only, mounted } => {
            let mount = mounted.as_ref().map(|mounted| as_mount(&device, read_only, mounted));
            filesystem::settle(&device, mount.as_ref())?;
            mounted.as_ref().into_iter().for_each(remove_dir);
        }
        Order::Detach { device, mounted } => {
            filesystem::detach(&device, &mounted.dir)?;
            remove_dir(&mounted);
        }
    }
    Ok(Prepared::default())
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

/// The file system that somebody wants.
#[derive(Clone, Copy)]
struct FsWanted<'a> {
    fs: Option<&'a str>,
    /// `fs` is only for a blank device.
    any: bool,
}

fn make_ready(
    device: &Path,
    wanted: FsWanted<'_>,
    read_only: bool,
    unfinished: bool,
    mount: Option<Where>,
) -> Result<Prepared, FileSystemError> {
    let fs = wanted.fs.map(str::parse::<FileSystem>).transpose().map_err(FileSystemError::Unfit)?;
    let mut mounted = mount.map(|wanted| Mounted {
        dir: wanted.dir,
        fs: String::new(),
        options: wanted.options,
        made_dir: false,
    });
    if let Some(mounted) = &mut mounted {
        mounted.made_dir = as_mount(device, read_only, mounted).prepare()?;
    }
    let found =
        if unfinished { begun(device, fs) } else { there(device, fs, wanted.any, read_only) };
    if let (Err(_), Some(mounted)) = (&found, &mounted) {
        remove_dir(mounted);
    }
    let (fs, to_make) = found?;
    let mounted = mounted.map(|mounted| Mounted { fs, ..mounted });
    Ok(Prepared { mounted, to_make, note: None })
}

/// The type of the file system that is or will be on a device, and whether it is to be made.
fn there(
    device: &Path,
    wanted: Option<FileSystem>,
    any: bool,
    read_only: bool,
) -> Result<(String, bool), FileSystemError> {
    let found = filesystem::content(device)?;
    match (wanted, found) {
        (Some(_), Content::Blank) if read_only => Err(FileSystemError::Unfit(format!(
            "{} is read-only and blank; attach the volume writable once, to make a file system",
            device.display()
        ))),
        (Some(fs), Content::Blank) => Ok((fs.name().to_owned(), true)),
        (Some(fs), Content::FileSystem(there)) if there == fs.name() => Ok((there, false)),
        (Some(_), Content::FileSystem(there)) if any => Ok((there, false)),
        (None, Content::FileSystem(there)) => Ok((there, false)),
        (None, found) => Err(FileSystemError::Nothing { device: device.to_owned(), found }),
        (Some(_), found) => Err(FileSystemError::NotBlank { device: device.to_owned(), found }),
    }
}

/// As [`there`], of a device on which somebody began to make a file system. He may be about it
/// still, so nothing is looked at.
fn begun(device: &Path, wanted: Option<FileSystem>) -> Result<(String, bool), FileSystemError> {
    let nothing = || {
        FileSystemError::Unfit(format!(
            "the making of a file system on {} was cut short; say which one it is to be, and it is \
             made again",
            device.display()
        ))
    };
    wanted.map(|fs| (fs.name().to_owned(), true)).ok_or_else(nothing)
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

    fn this(fs: Option<&str>) -> FsWanted<'_> {
        FsWanted { fs, any: false }
    }

    #[test]
    fn what_is_not_wanted_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let mount = || Some(Where { dir: at.clone(), options: vec!["noatime".to_owned()] });
        let refused = |fs, read_only| {
            let refused = make_ready(&image, this(fs), read_only, false, mount());
            refused.unwrap_err().to_string()
        };
        let told = refused(None, false);
        assert!(told.contains("no file system to mount"), "{told}");
        let told = refused(Some("ext4"), true);
        assert!(told.contains("writable once"), "{told}");
        let told = refused(Some("fat"), false);
        assert!(told.contains("ext4 and xfs"), "{told}");
        assert!(!at.exists(), "a directory that is of no use is removed again");
        assert_eq!(filesystem::content(&image).unwrap(), Content::Blank);

        let first = make_ready(&image, this(Some("ext4")), false, false, mount()).unwrap();
        let mounted = first.mounted.unwrap();
        assert!(first.to_make && mounted.made_dir && mounted.fs == "ext4" && at.exists());
        assert_eq!(filesystem::content(&image).unwrap(), Content::Blank, "nothing is made yet");
        let order = |fs: &str, unfinished| {
            obey(Order::Make { device: image.clone(), fs: fs.to_owned(), unfinished })
        };
        order("ext4", false).unwrap();
        let again = make_ready(&image, this(None), true, false, mount()).unwrap();
        let there = again.mounted.unwrap();
        assert!(!again.to_make && !there.made_dir && there.fs == "ext4", "{there:?}");
        let told = refused(Some("xfs"), false);
        assert!(told.contains("not blank"), "{told}");
        let any = FsWanted { fs: Some("xfs"), any: true };
        let there = make_ready(&image, any, false, false, mount()).unwrap();
        assert!(!there.to_make && there.mounted.unwrap().fs == "ext4");
        remove_dir(&mounted);
        assert!(!at.exists());
    }

    #[test]
    fn what_was_begun_is_made_again_when_it_is_wanted() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(image.as_file(), &[7; 4096], 1 << 20).unwrap();
        let told = make_ready(image.path(), this(None), false, true, None).unwrap_err().to_string();
        assert!(told.contains("cut short"), "{told}");
        let told = make_ready(image.path(), this(Some("ext4")), false, false, None);
        assert!(told.unwrap_err().to_string().contains("not blank"), "nobody noted that it was");
        let begun = make_ready(image.path(), this(Some("ext4")), false, true, None).unwrap();
        assert!(begun.to_make);
        let device = image.path().to_owned();
        obey(Order::Make { device, fs: "ext4".to_owned(), unfinished: true }).unwrap();
        let made = Content::FileSystem("ext4".to_owned());
        assert_eq!(filesystem::content(image.path()).unwrap(), made);
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
        let prepared = Prepared { mounted: Some(mounted), to_make: true, note: None };
        let refusal = Refusal { why: "no".to_owned(), unfinished: true };
        for answer in [Ok(prepared), Ok(Prepared::default()), Err(refusal)] {
            let text = serde_json::to_vec(&answer).unwrap();
            assert_eq!(serde_json::from_slice::<Answer>(&text).unwrap(), answer);
        }
    }
}
