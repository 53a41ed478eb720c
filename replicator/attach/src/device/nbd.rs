//! The NBD door: `/dev/nbdN` of the kernel's driver `nbd`, told over netlink, served over a pair of
//! sockets within the process by the server of [`crate::nbd`] in its transmission phase.
//!
//! # One connection, and no time-out
//!
//! The driver can use several connections and can be told a time-out for answers. Either makes it
//! cut a connection whose server is merely slow (a volume is suspended, a disk is busy) and send
//! its requests again, over another connection or the next, while their first copies run here or
//! lie unread in a socket. A copy that is begun late would then overwrite newer data, and a request
//! that always takes longer than the time-out would be sent for ever and never be answered.
//!
//! With one connection and no time-out it does neither (`nbd_xmit_timeout` of Linux 6.1 and 6.12).
//! When a request's timer fires the driver looks whether the device has got another socket since
//! the request was sent. If so it sends it again, else it waits on, with a line in the kernel's
//! log. So a request is sent twice only when this side replaced the socket, and it does that
//!
//! - in a new daemon, when the old one is dead. What that had begun is fenced by the epoch of the
//!   new one, or had ended before it let the volume go;
//! - in a living daemon whose connection broke, which takes a fault of ours or somebody's hand, and
//!   then only when every request of the old connection has ended.
//!
//! Hence no request that was sent again is begun by its first receiver any more.
//!
//! # Time
//!
//! The timer is `queue/io_timeout` of the device, [`NbdOptions::resend_after`]: requests that were
//! under way when a daemon was killed come again after that and up to a second more, counted from
//! the moment when the device has a new socket. So the next daemon gives it one as soon as it
//! starts ([`Door::hold`]), and reads nothing from it before the volume is its own: meanwhile the
//! timer runs. Requests that are new or wait come at once. A device that gets no socket within
//! [`NbdOptions::dead_after`] fails them with `EIO`.
//!
//! # Ending
//!
//! `NBD_CMD_DISCONNECT` fails what waits for a new socket and what was sent over a dead one. It
//! would itself wait behind a full socket or a change of size that waits for answers; so a device
//! that is to fail first answers everything with `EIO`, and is disconnected then. One that is only
//! held loses its socket first.
//!
//! # Size
//!
//! From some kernel between 6.1 and 6.12 on, a new size waits until all requests under way have
//! been answered, and keeps generic netlink waiting meanwhile, for everybody. A daemon that is
//! killed in such a moment would leave a device that only a reboot ends. So a volume has to answer
//! a flush first; what remains is a volume that stops answering within the milliseconds that
//! follow, under a daemon that is killed then.

mod control;
mod held;
mod served;
mod service;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lockstep_kernel::nbd::{Driver, NewDevice};
use tokio::time::timeout;

use super::known_bad::{kernel_release, known_bad, series};
use super::{Device, DeviceError, Door, Kind, Place, Probe, Shape, Token};
use crate::backend::{BLOCK_BYTES, Backend};
use crate::nbd::proto::tx;
use control::{
    Control, KernelDevice, blocking, end_if_unserved, node, reconnect, shown_backend,
    shown_backends, tune,
};
use held::Held;
use served::Served;
use service::{NbdDevice, Service};

/// How long a new daemon tries to take a device over. The driver notices within moments that the
/// old one is dead; one that lives on is not.
const TAKE_OVER_MAX: Duration = Duration::from_secs(5);

/// Set by who runs the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// Who makes these devices, in a word that the next daemon says too: it is part of their names
    /// in the kernel. Forgotten devices of others are left alone.
    pub owner: String,
    /// How long a device outlives its daemon: after that its requests fail. A file system on it
    /// then has to be mounted anew, so it is long; a daemon that comes back or the keeper ends the
    /// wait sooner.
    pub dead_after: Duration,
    /// How long after a take-over the driver sends again what its dead daemon had received, but
    /// for up to a second more. Also how often it logs a request that takes long.
    pub resend_after: Duration,
    /// How long a release waits for requests under way. What has not ended then is left to the
    /// next daemon, as after a crash.
    pub drain: Duration,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            owner: String::new(),
            dead_after: Duration::from_secs(600),
            resend_after: Duration::from_millis(250),
            drain: Duration::from_secs(5),
        }
    }
}

/// Makes devices of the kernel's driver `nbd`.
#[derive(Clone, Debug, Default)]
pub struct NbdDoor {
    options: NbdOptions,
    held: Held,
}

impl NbdDoor {
    /// A door with these settings.
    #[must_use]
    pub fn new(options: NbdOptions) -> Self {
        Self { options, held: Held::default() }
    }
}

/// First kernel that shows a device's name, by which a daemon knows it again.
const RESTARTABLE_FROM: (u32, u32) = (5, 14);

/// Loads the module if it is not there. Says what is missing or wrong.
fn find_driver(release: &str) -> Result<(), String> {
    if let Some(why) = known_bad(Kind::Nbd, release) {
        return Err(why.to_owned());
    }
    if !Path::new("/sys/module/nbd").exists() {
        let loaded = Command::new("modprobe").arg("nbd").output();
        let loaded = loaded.map_err(|error| format!("no module nbd, and no modprobe: {error}"))?;
        if !loaded.status.success() {
            let said = String::from_utf8_lossy(&loaded.stderr).trim().replace('\n', "; ");
            return Err(format!("kernel {release} has no module nbd ({said})"));
        }
    }
    Driver::open().map(drop).map_err(|error| {
        format!("nbd is loaded, but does not answer in this network namespace: {error}")
    })
}

fn flags(shape: &Shape) -> u16 {
    let mut flags = tx::HAS_FLAGS;
    if !shape.write_through {
        flags |= tx::SEND_FLUSH | tx::SEND_FUA;
    }
    flags | if shape.read_only { tx::READ_ONLY } else { tx::SEND_TRIM | tx::SEND_WRITE_ZEROES }
}

/// A name that no other device had or will have on this node.
fn backend_name(owner: &str, name: &str) -> Result<String, DeviceError> {
    let unique = fs::read_to_string("/proc/sys/kernel/random/uuid");
    let refused = |source| DeviceError::Refused { what: "cannot name a device".into(), source };
    Ok(format!("lockstep:{owner}:{name}:{}", unique.map_err(refused)?.trim()))
}

/// Which device of `owner` this is the name of.
fn name_of<'a>(owner: &str, backend: &'a str) -> Option<&'a str> {
    let rest = backend.strip_prefix("lockstep:")?.strip_prefix(owner)?.strip_prefix(':')?;
    rest.rsplit_once(':').map(|(name, _)| name)
}

/// What a token says of a device of this door.
fn place(token: &Token) -> Result<(u32, String), DeviceError> {
    let Place::Nbd { index, backend } = &token.place else {
        return Err(lost(token, format!("it is a device of the {} door", token.kind())));
    };
    if shown_backend(*index).as_ref() != Some(backend) {
        return Err(lost(token, "it is gone, or its number is somebody else's now".into()));
    }
    Ok((*index, backend.clone()))
}

fn lost(token: &Token, why: String) -> DeviceError {
    DeviceError::Lost { device: token.device.display().to_string(), why }
}

impl NbdDoor {
    fn control(&self, index: u32, backend: String) -> KernelDevice {
        KernelDevice { index, backend, dead_after_s: self.options.dead_after.as_secs().max(1) }
    }

    /// Has the kernel make a device. Blocks.
    fn connect(&self, shape: &Shape) -> Result<(Token, KernelDevice, UnixStream), DeviceError> {
        let driver = Driver::open().map_err(|error| DeviceError::Unavailable {
            kind: Kind::Nbd,
            why: format!("nbd does not answer: {error}"),
        })?;
        let backend = backend_name(&self.options.owner, &shape.name)?;
        let wanted = NewDevice {
            size_bytes: shape.size_bytes,
            block_bytes: u64::from(BLOCK_BYTES),
            flags: flags(shape),
            dead_after_s: self.options.dead_after.as_secs().max(1),
            backend: &backend,
        };
        let (index, socket) = driver.connect(&wanted).map_err(|source| DeviceError::Refused {
            what: "nbd made no device; it wants CAP_SYS_ADMIN, and a number that is free".into(),
            source,
        })?;
        let token = Token {
            name: shape.name.clone(),
            device: node(index),
            size_bytes: shape.size_bytes,
            read_only: shape.read_only,
            write_through: shape.write_through,
            queues: 1,
            place: Place::Nbd { index, backend: backend.clone() },
        };
        Ok((token, self.control(index, backend), socket))
    }

    async fn begin<B: Backend>(
        &self,
        token: Token,
        control: KernelDevice,
        backend: Arc<B>,
        socket: UnixStream,
    ) -> Result<Box<dyn Device>, DeviceError> {
        let served = Served::new(backend, token.read_only, token.write_through);
        let started = Service::start(served, control.clone(), &token, socket);
        let service = started.map_err(|source| DeviceError::Refused {
            what: format!("cannot serve {}", token.device.display()),
            source,
        })?;
        // Only now that it is served: a kernel lets changes wait for requests that are under way.
        let (index, resend_after) = (control.index, self.options.resend_after);
        let tuned = blocking(move || tune(index, resend_after)).await;
        if let Err(error) = tuned {
            let device = token.device.display();
            tracing::warn!(%device, %error, "a restart of the daemon will be a long pause for it");
        }
        Ok(Box::new(NbdDevice::new(token, control, service, self.options.drain)))
    }
}

impl<B: Backend> Door<B> for NbdDoor {
    fn kind(&self) -> Kind {
        Kind::Nbd
    }

    fn probe(&self) -> Probe {
        let release = kernel_release();
        let known = series(&release).is_some_and(|series| series >= RESTARTABLE_FROM);
        let (usable, why) = match find_driver(&release) {
            Err(why) => (false, why),
            Ok(()) if known => (true, format!("nbd of kernel {release}")),
            Ok(()) => {
                let why = "a restarted daemon cannot tell its devices from others before 5.14";
                (true, format!("nbd of kernel {release}; {why}"))
            }
        };
        Probe { kind: Kind::Nbd, usable, why, restartable: usable && known }
    }

    fn open(
        &self,
        shape: Shape,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        let door = self.clone();
        async move {
            let made = blocking(move || Ok(door.connect(&shape))).await;
            let made = made.unwrap_or_else(|source| {
                Err(DeviceError::Refused { what: "cannot ask the kernel".into(), source })
            });
            let (token, control, socket) = made?;
            self.begin(token, control, backend, socket).await
        }
        .boxed()
    }

    fn hold(&self, token: Token) -> BoxFuture<'_, ()> {
        async move {
            if let Ok((index, name)) = place(&token) {
                self.held.get(&name, &self.control(index, name.clone())).await;
            }
        }
        .boxed()
    }

    fn resume(
        &self,
        token: Token,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        async move {
            let (index, name) = place(&token)?;
            let held = self.held.take(&name);
            let control = self.control(index, name);
            let socket = match held {
                Some(socket) => socket,
                None => {
                    let socket = timeout(TAKE_OVER_MAX, reconnect(&control)).await;
                    let socket =
                        socket.map_err(|_| lost(&token, "somebody else serves it".into()))?;
                    socket.map_err(|error| lost(&token, error.to_string()))?
                }
            };
            self.begin(token, control, backend, socket).await
        }
        .boxed()
    }

    fn end(&self, token: Token) -> BoxFuture<'_, Result<(), DeviceError>> {
        async move {
            let Ok((index, name)) = place(&token) else { return Ok(()) };
            // The driver may be sending to it, and nobody reads.
            drop(self.held.take(&name));
            let control = self.control(index, name);
            let ended = blocking(move || control.disconnect()).await;
            let what = format!("cannot end {}", token.device.display());
            ended.map_err(|source| DeviceError::Refused { what, source })
        }
        .boxed()
    }

    fn sweep(&self, known: BTreeSet<String>) -> BoxFuture<'_, Result<(), DeviceError>> {
        async move {
            for (index, backend) in shown_backends() {
                let name = name_of(&self.options.owner, &backend);
                if name.is_none_or(|name| known.contains(name)) {
                    continue;
                }
                let control = self.control(index, backend.clone());
                let swept = blocking(move || end_if_unserved(&control)).await;
                match swept {
                    Ok(false) => {}
                    Ok(true) => tracing::warn!(index, backend, "ended a forgotten device"),
                    Err(error) => tracing::warn!(index, backend, %error, "cannot end it"),
                }
            }
            Ok(())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            name: "v".into(),
            size_bytes: 1 << 20,
            read_only: false,
            write_through: false,
            queues: 4,
        }
    }

    #[test]
    fn the_kernel_is_told_what_the_device_is_like() {
        let cached = flags(&shape());
        assert_eq!(cached & tx::SEND_FLUSH, tx::SEND_FLUSH);
        assert_eq!(cached & tx::SEND_FUA, tx::SEND_FUA);
        assert_eq!(cached & tx::SEND_TRIM, tx::SEND_TRIM);
        assert_eq!(cached & tx::READ_ONLY, 0);
        assert_eq!(cached & tx::CAN_MULTI_CONN, 0, "one connection");
        let through = flags(&Shape { write_through: true, ..shape() });
        assert_eq!(through & (tx::SEND_FLUSH | tx::SEND_FUA), 0);
        let read_only = flags(&Shape { read_only: true, ..shape() });
        assert_eq!(read_only & tx::READ_ONLY, tx::READ_ONLY);
        assert_eq!(read_only & (tx::SEND_TRIM | tx::SEND_WRITE_ZEROES), 0);
    }

    #[test]
    fn no_two_devices_have_one_name() {
        let name = || backend_name("/run/lockstep", "v").unwrap();
        let (one, other) = (name(), name());
        assert_ne!(one, other);
        assert!(!one.ends_with('\n'), "{one}");
        assert_eq!(name_of("/run/lockstep", &one), Some("v"));
        for stranger in ["", "/run", "/run/lockstep/other"] {
            assert_eq!(name_of(stranger, &one), None, "{stranger}");
        }
        assert_eq!(name_of("/run/lockstep", "somebody's image"), None);
    }

    #[tokio::test]
    async fn a_device_that_is_gone_cannot_be_taken_over_and_is_ended_already() {
        let token = Token {
            name: "v".into(),
            device: "/dev/nbd4711".into(),
            size_bytes: 1 << 20,
            read_only: false,
            write_through: false,
            queues: 1,
            place: Place::Nbd { index: 4711, backend: "lockstep:v:1".into() },
        };
        let door = NbdDoor::default();
        let backend = Arc::new(crate::memory::MemoryBackend::new(1 << 20));
        let resumed = door.resume(token.clone(), backend).await;
        assert!(matches!(resumed.err(), Some(DeviceError::Lost { .. })));
        Door::<crate::memory::MemoryBackend>::end(&door, token).await.unwrap();
    }
}
