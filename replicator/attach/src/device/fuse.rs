//! A file served over FUSE, under a loop device: for kernels that have neither ublk nor NBD.
//!
//! The kernel asks for parts of the one file of a file system; [`FuseDoor`] answers through a
//! [`Backend`]. A loop device in direct-I/O mode over that file is the block device.
//!
//! ```text
//! file system or program -> /dev/loopN -> loop -> FUSE -> /dev/fuse -> readers -> Backend
//! ```
//!
//! # A daemon that is replaced
//!
//! The connection to the kernel is an open file, `/dev/fuse`; requests wait in it. The
//! [keeper](crate::keeper) holds it too, so it stays open when the daemon dies. The next daemon
//! fetches it, says `FUSE_NOTIFY_RESEND`, and gets what its predecessor had read and not answered,
//! before what came later. That is since Linux 6.9. On an older kernel such requests would wait
//! for ever, so a device is only taken over there if its daemon released it with none left.
//!
//! - All readers share one open file. The requests that were read through a clone of it would fail
//!   when the clone is closed.
//! - A request is read only into memory that is there, see `buffer.rs`.
//! - A request that the back end answers with [`Errno::Shutdown`](crate::Errno::Shutdown) is not
//!   answered: it stays with the kernel for the next daemon.
//! - No stalled write: what a dead daemon had read is gone with it; what this one has read is done
//!   when [`Device::release`] returns.
//!
//! # Flushes
//!
//! A loop device shows a volatile cache whenever its file can be flushed, and it has no FUA: a
//! write with FUA becomes a write and a flush. With [`Shape::write_through`] every write is passed
//! with `fua`, and flushes cost nothing since they have nothing to do. The kernel could be told
//! that there is no cache (`queue/write_cache`), but it would remember that for whatever is bound
//! to the loop device next, by whomever, whose flushes would be lost.
//!
//! Discards, and zeroing that may free space, reach the file as the same request, so both zero.

mod binder;
mod buffer;
pub(crate) mod loopback;
mod maker;
mod mount;
mod probe;
mod readers;
mod service;
mod wire;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{Device, DeviceError, Door, Kind, Place, Probe, Shape, Token};
use crate::backend::Backend;
use crate::keeper::{KeeperClient, KeeperError};
use binder::Order;
pub use binder::{BINDER, bind};
use readers::Readers;
use service::Service;

/// What it notes of a device that was released with no request left.
const RELEASED: &str = "released";

/// The door for FUSE and loop.
#[derive(Clone, Debug)]
pub struct FuseDoor {
    run_dir: PathBuf,
    keeper: KeeperClient,
    program: PathBuf,
}

struct FuseDevice<B> {
    token: Token,
    keeper: KeeperClient,
    program: PathBuf,
    /// `None` when it is not served any more: then this process has not got its connection open.
    service: Mutex<Option<Arc<Service<B>>>>,
    /// Who tells the keeper of it does so in turn: what is kept must be what was told last.
    telling: Arc<tokio::sync::Mutex<()>>,
    readers: Readers,
}

/// Where the device is in the kernel: [`Place::Fuse`], taken apart.
#[derive(Clone, Debug)]
struct Seat {
    name: String,
    index: u32,
    mounted_at: PathBuf,
    connection: u32,
}

impl FuseDoor {
    /// A door whose files are mounted in `run_dir`, which is of this boot and outlives daemons.
    /// `program` calls [`bind`] if [`BINDER`] is its argument.
    #[must_use]
    pub fn new(run_dir: PathBuf, keeper: KeeperClient, program: PathBuf) -> Self {
        Self { run_dir, keeper, program }
    }

    /// The names of all that is left of devices here whose maker is no more.
    fn left(&self) -> Result<BTreeSet<String>, DeviceError> {
        let mut left = BTreeSet::new();
        let kept_names = self.keeper.list().map_err(kept)?;
        for name in &kept_names {
            let found = self.keeper.fetch(name).map_err(kept)?;
            if found.is_some_and(|found| !maker::lives(&found.note)) {
                left.insert(name.clone());
            }
        }
        // What no keeper has was left by one that is no more, too.
        let files = std::fs::read_dir(self.run_dir.join("fuse")).into_iter().flatten().flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        left.extend(names.filter(|name| !kept_names.contains(name)));
        Ok(left)
    }

    /// Removes whatever is left of a device called `name`.
    fn clean(&self, name: &str) -> Result<(), DeviceError> {
        let place = mount::place(&self.run_dir, name)?;
        let left = loopback::over(&place);
        mount::force_off(&place);
        self.keeper.forget(name).map_err(kept)?;
        for index in left {
            loopback::unbind_when_unused(index, 0, true);
        }
        Ok(())
    }

    async fn make<B: Backend>(
        &self,
        shape: Shape,
        backend: Arc<B>,
    ) -> Result<FuseDevice<B>, DeviceError> {
        let (door, name) = (self.clone(), shape.name.clone());
        let (place, connection, number) = blocking(move || {
            let place = mount::place(&door.run_dir, &name)?;
            door.clean(&name)?;
            let connection = mount::connect()?;
            // First of all, so that what a daemon left that dies now can be told to be its own.
            door.keeper.keep(&name, &maker::served(), connection.as_fd()).map_err(kept)?;
            let number = mount::mount(&place, &connection);
            if number.is_err() {
                door.clean(&name)?;
            }
            Ok((place, connection, number?))
        })
        .await?;
        let mut seat =
            Seat { name: shape.name.clone(), index: 0, mounted_at: place, connection: number };
        let service = Service::new(
            backend,
            connection,
            shape.size_bytes,
            shape.read_only,
            shape.write_through,
        );
        let service = Arc::new(service);
        let outcome = match begin(&service, shape.queues) {
            Ok(readers) => {
                let (program, place) = (self.program.clone(), seat.mounted_at.clone());
                let order = Order::Bind { place, read_only: shape.read_only };
                let bound = blocking(move || binder::call(&program, &order)).await;
                bound.map(|index| (readers, index))
            }
            Err(error) => Err(error),
        };
        let (readers, index) = match outcome {
            Ok(made) => made,
            Err(error) => {
                let door = self.clone();
                blocking(move || door.clean(&seat.name)).await?;
                return Err(error);
            }
        };
        seat.index = index;
        Ok(FuseDevice {
            token: token(shape, seat),
            keeper: self.keeper.clone(),
            program: self.program.clone(),
            service: held(service),
            telling: Arc::default(),
            readers,
        })
    }

    async fn take_over<B: Backend>(
        &self,
        token: Token,
        backend: Arc<B>,
    ) -> Result<FuseDevice<B>, DeviceError> {
        let seat = Seat::of(&token)?;
        let lost = |why: &str| lost(&token, why);
        let (keeper, name) = (self.keeper.clone(), seat.name.clone());
        let kept = blocking(move || keeper.fetch(&name).map_err(kept)).await?;
        let kept = kept.ok_or_else(|| lost("no keeper has its connection any more"))?;
        let index = seat.index;
        let shown = blocking(move || Ok(loopback::size_bytes(index))).await?;
        let service = Arc::new(Service::new(
            backend,
            File::from(kept.fd),
            token.size_bytes.max(shown),
            token.read_only,
            token.write_through,
        ));
        let again = service.ask_again().map_err(|_| lost("its connection has been ended"))?;
        if !again && kept.note != RELEASED {
            return Err(lost(
                "requests were under way, and this kernel, older than Linux 6.9, cannot send \
                 them again",
            ));
        }
        let (keeper, name, noted) = (self.keeper.clone(), seat.name.clone(), Arc::clone(&service));
        blocking(move || keep(&keeper, &name, &maker::served(), &noted)).await?;
        let readers = begin(&service, token.queues)?;
        let bound = seat.clone();
        if blocking(move || Ok(bound.is_bound())).await? {
            return Ok(FuseDevice {
                token,
                keeper: self.keeper.clone(),
                program: self.program.clone(),
                service: held(service),
                telling: Arc::default(),
                readers,
            });
        }
        readers.abandon().await;
        Err(lost("it has been unbound from its file"))
    }
}

impl<B: Backend> Door<B> for FuseDoor {
    fn kind(&self) -> Kind {
        Kind::Fuse
    }

    fn probe(&self) -> Probe {
        probe::probe()
    }

    fn open(
        &self,
        shape: Shape,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        async move { Ok(Box::new(self.make(shape, backend).await?) as Box<dyn Device>) }.boxed()
    }

    fn resume(
        &self,
        token: Token,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>> {
        async move {
            let taken = self.take_over(token.clone(), backend).await;
            if matches!(taken, Err(DeviceError::Lost { .. })) {
                // Nobody will ever serve it: whoever waits for it must not wait for ever.
                <Self as Door<B>>::end(self, token).await?;
            }
            Ok(Box::new(taken?) as Box<dyn Device>)
        }
        .boxed()
    }

    fn sweep(&self, known: BTreeSet<String>) -> BoxFuture<'_, Result<(), DeviceError>> {
        let door = self.clone();
        blocking(move || {
            for name in door.left()?.difference(&known) {
                tracing::warn!(name, "ending what is left of a device that nobody knows of");
                door.clean(name)?;
            }
            Ok(())
        })
        .boxed()
    }

    fn end(&self, token: Token) -> BoxFuture<'_, Result<(), DeviceError>> {
        let keeper = self.keeper.clone();
        async move {
            let seat = Seat::of(&token)?;
            blocking(move || {
                let named = seat.abort();
                // Where its mount is not seen, its requests end with the last open file.
                keeper.forget(&seat.name).map_err(kept)?;
                loopback::unbind_when_unused(seat.index, seat.connection, named);
                Ok(())
            })
            .await
        }
        .boxed()
    }
}

impl<B: Backend> Device for FuseDevice<B> {
    fn token(&self) -> &Token {
        &self.token
    }

    fn resize(&self, size_bytes: u64) -> BoxFuture<'_, Result<(), DeviceError>> {
        async move {
            let seat = Seat::of(&self.token)?;
            let service =
                self.service().clone().ok_or_else(|| lost(&self.token, "it has ended"))?;
            let what = format!("showing the new size of {}", self.token.device.display());
            let program = self.program.clone();
            blocking(move || {
                let shown = service.show_size(size_bytes);
                shown.map_err(|source| DeviceError::Refused { what, source })?;
                let (index, place) = (seat.index, seat.mounted_at);
                let order = Order::Grow { index, place, size_bytes };
                binder::call(&program, &order).map(drop)
            })
            .await
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        async move {
            let seat = Seat::of(&self.token)?;
            let (gone, program) = (seat.clone(), self.program.clone());
            // Closing it may write: requests are served until it is gone.
            blocking(move || {
                binder::call(&program, &Order::Unbind { index: gone.index })?;
                mount::take_off(&gone.mounted_at, gone.connection);
                Ok(())
            })
            .await?;
            self.readers.finish().await;
            drop(self.service().take());
            let (keeper, turn) = (self.keeper.clone(), self.turn().await);
            blocking(move || {
                let _turn = turn;
                keeper.forget(&seat.name).map(drop).map_err(kept)
            })
            .await
        }
        .boxed()
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        async move {
            self.readers.finish().await;
            let Some(service) = self.service().take() else { return };
            let note = if service.has_left_any() { maker::served() } else { RELEASED.to_owned() };
            let (keeper, name) = (self.keeper.clone(), self.token.name.clone());
            let turn = self.turn().await;
            let outcome = blocking(move || {
                let _turn = turn;
                keep(&keeper, &name, &note, &service)
            });
            if let Err(error) = outcome.await {
                let device = self.token.device.display();
                tracing::error!(%error, %device, "the device ends with this daemon");
            }
        }
        .boxed()
    }

    fn keep(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        async move {
            let turn = self.turn().await;
            // One that is closed, failed or released meanwhile is not kept as one that is served.
            let Some(service) = self.service().clone() else { return Ok(()) };
            let (keeper, name) = (self.keeper.clone(), self.token.name.clone());
            blocking(move || {
                let _turn = turn;
                keep(&keeper, &name, &maker::served(), &service)
            })
            .await
        }
        .boxed()
    }

    fn fail(&self) -> BoxFuture<'_, ()> {
        async move {
            let Ok(seat) = Seat::of(&self.token) else { return };
            let aborted = seat.clone();
            let named = blocking(move || Ok(aborted.abort())).await.unwrap_or(false);
            self.readers.abandon().await;
            drop(self.service().take());
            let (keeper, turn) = (self.keeper.clone(), self.turn().await);
            let outcome = blocking(move || {
                let _turn = turn;
                let forgotten = keeper.forget(&seat.name).map_err(kept);
                loopback::unbind_when_unused(seat.index, seat.connection, named);
                forgotten
            });
            if let Err(error) = outcome.await {
                tracing::warn!(%error, "the keeper still has the connection of a failed device");
            }
        }
        .boxed()
    }
}

impl<B> FuseDevice<B> {
    async fn turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.telling).lock_owned().await
    }

    fn service(&self) -> MutexGuard<'_, Option<Arc<Service<B>>>> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held<B>(service: Arc<Service<B>>) -> Mutex<Option<Arc<Service<B>>>> {
    Mutex::new(Some(service))
}

fn lost(token: &Token, why: &str) -> DeviceError {
    DeviceError::Lost { device: token.device.display().to_string(), why: why.to_owned() }
}

impl Seat {
    fn of(token: &Token) -> Result<Self, DeviceError> {
        let Place::Fuse { index, mounted_at, connection } = token.place.clone() else {
            return Err(lost(token, &format!("it is a device of the {} door", token.kind())));
        };
        Ok(Self { name: token.name.clone(), index, mounted_at, connection })
    }

    /// Whether the loop device is bound to the file still. Its name is asked first: that waits for
    /// nothing. It is not seen where the mount is not.
    fn is_bound(&self) -> bool {
        loopback::is_named(self.index, &self.mounted_at)
            || loopback::is_over(self.index, self.connection)
    }

    /// Fails all requests, present and future, if the mount is seen here. Says whether the loop
    /// device was bound to the file by its name, which is not seen any more afterwards.
    fn abort(&self) -> bool {
        let named = loopback::is_named(self.index, &self.mounted_at);
        if mount::number(&self.mounted_at) == Some(self.connection) {
            mount::force_off(&self.mounted_at);
        }
        named
    }
}

fn token(shape: Shape, seat: Seat) -> Token {
    Token {
        name: shape.name,
        device: loopback::path(seat.index),
        size_bytes: shape.size_bytes,
        read_only: shape.read_only,
        write_through: shape.write_through,
        queues: shape.queues,
        place: Place::Fuse {
            index: seat.index,
            mounted_at: seat.mounted_at,
            connection: seat.connection,
        },
    }
}

fn begin<B: Backend>(service: &Arc<Service<B>>, queues: u16) -> Result<Readers, DeviceError> {
    let what = "starting threads for a device".to_owned();
    Readers::start(service, queues).map_err(|source| DeviceError::Refused { what, source })
}

fn keep<B: Backend>(
    keeper: &KeeperClient,
    name: &str,
    note: &str,
    service: &Service<B>,
) -> Result<(), DeviceError> {
    keeper.keep(name, note, service.connection().as_fd()).map_err(kept)
}

fn kept(error: KeeperError) -> DeviceError {
    let what = "having the keeper hold a connection".to_owned();
    DeviceError::Refused { what, source: io::Error::other(error) }
}

/// Does what may block, away from the tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeviceError> + Send + 'static,
) -> Result<T, DeviceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let what = "a call of the kernel was broken off".to_owned();
        Err(DeviceError::Refused { what, source: io::Error::other(error) })
    })
}
