//! A device while it is served: one connection after the other.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lockstep_kernel::block::open_exclusive;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control::{Control, KernelDevice, blocking, is_there, reconnect};
use super::served::Served;
use crate::backend::Backend;
use crate::device::others::{others, wait_for_others};
use crate::device::{Device, DeviceError, Token};
use crate::nbd::{Export, Limits, Server};

/// How long a device that was ended may take to vanish: somebody like udev may look at it.
const VANISH_MAX: Duration = Duration::from_secs(2);
const VANISH_PAUSE: Duration = Duration::from_millis(10);

/// How long a volume may take to answer before its device is given a new size.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// More requests than the driver has under way: it may send a queue's 128 at once, and flushes.
const REQUESTS_MAX: usize = 256;

/// Nobody waits this long; the device's owner gives up sooner.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Serves the connections of one device, one at a time.
pub(super) struct Service<B: Backend, C> {
    shared: Arc<Shared<B, C>>,
    tasks: TaskTracker,
    task: AbortHandle,
}

struct Shared<B: Backend, C> {
    name: String,
    device: String,
    served: Arc<Served<B>>,
    server: Server<Served<B>>,
    control: C,
    /// Nothing more is read.
    stop: CancellationToken,
    /// No new connection is made.
    ended: CancellationToken,
}

impl<B: Backend, C: Control> Service<B, C> {
    /// Begins to serve a device that has the other end of `socket`.
    pub(super) fn start(
        served: Served<B>,
        control: C,
        token: &Token,
        socket: UnixStream,
    ) -> io::Result<Self> {
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        // A request that is under way is never given up by the server: its client would take that
        // for an error of the volume.
        let limits = Limits { requests_max: REQUESTS_MAX, drain: NEVER, ..Limits::default() };
        let (server, served) = (Server::new(limits, stop.clone()), Arc::new(served));
        let export = Export {
            name: token.name.clone(),
            description: String::new(),
            connections_max: 1,
            backend: Arc::clone(&served),
        };
        server.add(export).map_err(io::Error::other)?;
        let (name, device) = (token.name.clone(), token.device.display().to_string());
        let shared = Arc::new(Shared { name, device, served, server, control, stop, ended });
        let tasks = TaskTracker::new();
        let task = tasks.spawn(Arc::clone(&shared).run(socket)).abort_handle();
        tasks.close();
        Ok(Self { shared, tasks, task })
    }

    /// Finishes and answers what is under way, or stops waiting for it after `drain`.
    pub(super) async fn release(&self, drain: Duration) {
        self.shared.stop.cancel();
        if timeout(drain, self.tasks.wait()).await.is_err() {
            let device = &self.shared.device;
            tracing::warn!(device, "requests do not end; they are left to the next daemon");
            self.task.abort();
            self.tasks.wait().await;
        }
    }

    /// Fails what is under way and what comes.
    pub(super) fn fail(&self) {
        self.shared.served.fail();
    }

    /// Has the kernel end the device. Requests that wait there fail.
    pub(super) async fn disconnect(&self) -> io::Result<()> {
        self.shared.ended.cancel();
        let control = self.shared.control.clone();
        blocking(move || control.disconnect()).await?;
        self.tasks.wait().await;
        Ok(())
    }

    /// Has the kernel show another size. Newer kernels let that wait for all requests under way;
    /// a daemon that dies meanwhile leaves them and the command waiting for each other, until the
    /// machine is started anew. So it is begun only when the volume has just answered.
    pub(super) async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        let answer = timeout(ANSWER_MAX, self.shared.served.flush()).await;
        answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?;
        let control = self.shared.control.clone();
        blocking(move || control.resize(size_bytes)).await
    }
}

impl<B: Backend, C> Drop for Service<B, C> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<B: Backend, C: Control> Shared<B, C> {
    async fn run(self: Arc<Self>, mut socket: UnixStream) {
        let device = &self.device;
        loop {
            if let Err(error) = self.transmit(socket).await {
                tracing::error!(device, %error, "cannot serve the kernel's connection");
            }
            // Here no request of the old connection runs any more, and only here a new one is made.
            let anew = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.ended.cancelled() => return,
                anew = reconnect(&self.control) => anew,
            };
            match anew {
                Ok(anew) => socket = anew,
                Err(error) => {
                    tracing::error!(device, %error, "its connection broke, and it takes no other");
                    return;
                }
            }
            tracing::warn!(device, "its connection broke, and it has a new one");
        }
    }

    /// Serves a connection to its end. No request of it is running when this returns.
    async fn transmit(&self, socket: UnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let (reader, writer) = tokio::net::UnixStream::from_std(socket)?.into_split();
        let served = self.server.serve_attached(&self.name, reader, writer).await;
        // Not found: the server was stopped before the connection came to it.
        if served.is_err() {
            self.stop.cancelled().await
        };
        Ok(())
    }
}

/// A device of the driver `nbd`.
pub(super) struct NbdDevice<B: Backend> {
    token: Token,
    control: KernelDevice,
    service: Service<B, KernelDevice>,
    drain: Duration,
}

impl<B: Backend> NbdDevice<B> {
    pub(super) fn new(
        token: Token,
        control: KernelDevice,
        service: Service<B, KernelDevice>,
        drain: Duration,
    ) -> Self {
        Self { token, control, service, drain }
    }

    fn refused(&self, what: &str, source: io::Error) -> DeviceError {
        DeviceError::Refused { what: format!("{what} {}", self.token.device.display()), source }
    }

    /// Keeps the device from others until it is gone. Nothing if it is.
    async fn hold(&self) -> Result<Option<File>, DeviceError> {
        let device = self.token.device.clone();
        let held = blocking(move || {
            let held = open_exclusive(&device)?;
            Ok((held, wait_for_others(&device)))
        });
        match held.await {
            Ok((held, Ok(()))) => Ok(Some(held)),
            Ok((_, Err(by))) => Err(self.busy(by)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let by = others(&self.token.device);
                Err(self.busy(by.unwrap_or_else(|| "somebody holds it".to_owned())))
            }
            Err(_) if !is_there(self.control.index) => Ok(None),
            Err(source) => Err(self.refused("cannot open", source)),
        }
    }

    fn busy(&self, by: String) -> DeviceError {
        DeviceError::Busy { device: self.token.device.display().to_string(), by }
    }

    async fn remove(&self) -> Result<(), DeviceError> {
        let held = self.hold().await?;
        let ended = self.service.disconnect().await;
        ended.map_err(|source| self.refused("cannot end", source))?;
        drop(held);
        if timeout(VANISH_MAX, self.wait_gone()).await.is_err() {
            let device = self.token.device.display();
            tracing::info!(%device, "it is ended, but somebody has it open still");
        }
        Ok(())
    }

    async fn wait_gone(&self) {
        while is_there(self.control.index) {
            sleep(VANISH_PAUSE).await;
        }
    }
}

impl<B: Backend> Device for NbdDevice<B> {
    fn token(&self) -> &Token {
        &self.token
    }

    fn resize(&self, size_bytes: u64) -> BoxFuture<'_, Result<(), DeviceError>> {
        let what = "the volume has to answer, and nobody to have ended the device, to resize";
        let resized = self.service.resize(size_bytes);
        async move { resized.await.map_err(|source| self.refused(what, source)) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        self.remove().boxed()
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        self.service.release(self.drain).boxed()
    }

    fn fail(&self) -> BoxFuture<'_, ()> {
        async move {
            self.service.fail();
            if let Err(error) = self.service.disconnect().await {
                tracing::error!(device = %self.token.device.display(), %error, "cannot end it");
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
