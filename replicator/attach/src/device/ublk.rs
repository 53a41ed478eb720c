//! The ublk door: block devices of the user-space block driver, `/dev/ublkbN`.
//!
//! A device is added with `USER_RECOVERY` and `REISSUE`: when its server goes, the kernel keeps
//! the device, lets its requests wait, and sends those that were under way to the next server. It
//! is served by one thread, see `serve.rs`; payloads are copied by `USER_COPY`, once, straight into
//! the buffer that the back end gets. No zero copy: what is written must stay as it is until it is
//! on the disk of this node and has left for the others, and a guest may change its pages before
//! that; what is read comes from memory of the engine.
//!
//! # Taking over
//!
//! `START_USER_RECOVERY`, then the new server fetches all requests, then `END_USER_RECOVERY`. A
//! server that dies in between leaves one of two states, for all fetches are one system call
//! ([`lockstep_kernel::ublk::Queues`]): nothing was fetched, then `START_USER_RECOVERY` says
//! `EINVAL` and is not needed any more; or everything was, then it can be said again.
//!
//! # Marks
//!
//! Numbers of devices are used again. The driver keeps a word for user space with each device: see
//! `mark`. A device with another word than its token's is somebody else's.

mod limits;
mod make;
mod mark;
mod request;
mod serve;
mod served;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use futures::future::BoxFuture;
use lockstep_kernel::ublk::{Control, Features};

use super::{Device, DeviceError, Door, Kind, Place, Probe, Shape, Token, known_bad};
use crate::backend::Backend;
use mark::Mark;

/// What a driver must offer.
const NEEDED: Features = Features::USER_RECOVERY
    .and(Features::USER_RECOVERY_REISSUE)
    .and(Features::CMD_IOCTL_ENCODE)
    .and(Features::USER_COPY);

/// The ublk door of this node.
#[derive(Clone, Debug)]
pub struct UblkDoor {
    owner: String,
}

impl UblkDoor {
    /// The door; whether the kernel has it is told by its probe. `owner` tells the daemon, over all
    /// its lives, from others that use the same kernel, for [`Door::sweep`].
    #[must_use]
    pub fn new(owner: &str) -> Self {
        Self { owner: owner.to_owned() }
    }
}

impl<B: Backend> Door<B> for UblkDoor {
    fn kind(&self) -> Kind {
        Kind::Ublk
    }

    fn probe(&self) -> Probe {
        let (usable, why) = match look() {
            Ok(why) => (true, why),
            Err(why) => (false, why),
        };
        Probe { kind: Kind::Ublk, usable, why, restartable: usable }
    }

    fn open(
        &self,
        shape: Shape,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        let runtime = tokio::runtime::Handle::current();
        let mark = Mark::new(&self.owner, &shape.name);
        Box::pin(async move {
            let made = blocking("add a device", move || make::open(&shape, mark, backend, runtime));
            Ok(Box::new(made.await?) as Box<dyn Device>)
        })
    }

    fn resume(
        &self,
        token: Token,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        let runtime = tokio::runtime::Handle::current();
        Box::pin(async move {
            let made =
                blocking("take a device over", move || make::resume(token, backend, runtime));
            Ok(Box::new(made.await?) as Box<dyn Device>)
        })
    }

    fn end(&self, token: Token) -> BoxFuture<'_, Result<(), DeviceError>> {
        Box::pin(blocking("end a device", move || make::end(&token)))
    }

    fn sweep(&self, known: BTreeSet<String>) -> BoxFuture<'_, Result<(), DeviceError>> {
        let owner = self.owner.clone();
        Box::pin(blocking("look for devices", move || make::sweep(&owner, &known)))
    }
}

/// Why the door is good here, or why it is not.
fn look() -> Result<String, String> {
    let release = super::kernel_release();
    if let Some(why) = known_bad(Kind::Ublk, &release) {
        return Err(format!("{why}; this is {release}"));
    }
    if !Path::new(Control::PATH).exists() {
        load_module();
    }
    if !Path::new(Control::PATH).exists() {
        return Err(format!("{release} has no ublk_drv: {} is not there", Control::PATH));
    }
    let mut control = Control::open().map_err(|error| {
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        match disabled.as_deref().map(str::trim) {
            Ok("0") | Err(_) => format!("{} cannot be used: {error}", Control::PATH),
            Ok(set) => format!("kernel.io_uring_disabled is {set}: {error}; set it to 0"),
        }
    })?;
    let offered = control.features().map_err(|error| {
        format!("ublk_drv of {release} does not tell what it can do ({error}): it needs Linux 6.5")
    })?;
    if !offered.has(NEEDED) {
        return Err(format!(
            "ublk_drv of {release} offers {offered}, {NEEDED} is needed: Linux 6.5"
        ));
    }
    let grows = if offered.has(Features::UPDATE_SIZE) {
        "grows while it is used"
    } else {
        "grows only when it is attached anew (Linux 6.16 can do it at once)"
    };
    Ok(format!("ublk_drv of {release}: outlives the daemon, several queues, {grows}"))
}

/// Best effort: where the module is built in, or may not be loaded, what is there decides.
fn load_module() {
    let loaded = Command::new("modprobe").args(["-q", "ublk_drv"]).output();
    if let Err(error) = loaded {
        tracing::debug!(%error, "modprobe cannot be run");
    }
}

fn refused(what: impl Into<String>, source: io::Error) -> DeviceError {
    DeviceError::Refused { what: what.into(), source }
}

fn block_device(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

fn char_device(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

/// Number and mark of a device of this door.
fn place(token: &Token) -> Result<(u32, u64), DeviceError> {
    match token.place {
        Place::Ublk { id, mark } => Ok((id, mark)),
        Place::Nbd { .. } | Place::Fuse { .. } => Err(DeviceError::Lost {
            device: token.device.display().to_string(),
            why: format!("it is a device of the {} door", token.kind()),
        }),
    }
}

/// Does what may block where blocking is allowed.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, DeviceError> + Send + 'static,
) -> Result<T, DeviceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(refused(format!("cannot {what}"), io::Error::other(error))),
    }
}
