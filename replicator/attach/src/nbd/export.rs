//! Which volumes are on offer, and who is using them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::limits::STRING_BYTES_MAX;
use super::proto::tx;
use super::server::ServerError;
use crate::backend::{BLOCK_BYTES, Backend, ExportInfo};

/// A volume on offer under a name.
#[derive(Debug)]
pub struct Export<B> {
    /// The name clients ask for: not empty, at most 4096 bytes, no NUL.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
    /// Most connections at once. Clients see `CAN_MULTI_CONN` only if there may be several.
    ///
    /// A connection gives up its place when its last request has ended, not when its client
    /// leaves: with 1, no request of a client that reconnects can be overtaken by one it sent
    /// before.
    pub connections_max: usize,
    /// The volume.
    pub backend: Arc<B>,
}

impl<B: Backend> Export<B> {
    /// An export with no description and room for 16 connections.
    pub fn new(name: impl Into<String>, backend: Arc<B>) -> Self {
        Self { name: name.into(), description: String::new(), connections_max: 16, backend }
    }

    pub(crate) fn transmission_flags(&self, info: &ExportInfo, structured: bool) -> u16 {
        let mut flags = tx::HAS_FLAGS | tx::SEND_FLUSH | tx::SEND_FUA | tx::SEND_CACHE;
        flags |= if info.read_only {
            tx::READ_ONLY
        } else {
            tx::SEND_TRIM | tx::SEND_WRITE_ZEROES | tx::SEND_FAST_ZERO
        };
        if structured {
            flags |= tx::SEND_DF;
        }
        if self.connections_max > 1 {
            flags |= tx::CAN_MULTI_CONN;
        }
        flags
    }

    fn check(&self) -> Result<(), ServerError> {
        let name = self.name.clone();
        let bad_name =
            name.is_empty() || name.len() > STRING_BYTES_MAX || name.as_bytes().contains(&0);
        if bad_name || self.description.len() > STRING_BYTES_MAX {
            return Err(ServerError::BadName { name });
        }
        let size_bytes = self.backend.info().size_bytes;
        if !size_bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
            return Err(ServerError::BadSize { name, size_bytes });
        }
        if self.connections_max == 0 {
            return Err(ServerError::NoConnections { name });
        }
        Ok(())
    }
}

/// An export while it is served.
pub(crate) struct Live<B> {
    pub(crate) export: Export<B>,
    places: Arc<Semaphore>,
    users: TaskTracker,
    stop: CancellationToken,
}

impl<B: Backend> Live<B> {
    /// Waits for a free place among the export's connections. None: the export is going away.
    pub(crate) async fn enter(self: &Arc<Self>) -> Option<Visit<B>> {
        // The token comes first: a removal that begins now waits for this visit to end.
        let user = self.users.token();
        let place = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            place = Arc::clone(&self.places).acquire_owned() => place.ok()?,
        };
        Some(Visit { live: Arc::clone(self), _place: place, _user: user })
    }
}

/// A connection's stay at an export; dropping it frees the place.
pub(crate) struct Visit<B> {
    live: Arc<Live<B>>,
    _place: OwnedSemaphorePermit,
    _user: TaskTrackerToken,
}

impl<B: Backend> Visit<B> {
    pub(crate) fn export(&self) -> &Export<B> {
        &self.live.export
    }

    /// Cancelled when the export is removed or the server stops.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.live.stop
    }
}

/// The exports by name.
pub(crate) struct Registry<B> {
    exports: Mutex<BTreeMap<String, Arc<Live<B>>>>,
}

impl<B: Backend> Registry<B> {
    pub(crate) fn new() -> Self {
        Self { exports: Mutex::new(BTreeMap::new()) }
    }

    /// No code that holds the lock can panic half-way through a change.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Live<B>>>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(
        &self,
        export: Export<B>,
        stop: CancellationToken,
    ) -> Result<(), ServerError> {
        export.check()?;
        let mut exports = self.lock();
        if let Some(there) = exports.get(&export.name) {
            let name = export.name;
            return Err(if there.stop.is_cancelled() {
                ServerError::Leaving { name }
            } else {
                ServerError::Exists { name }
            });
        }
        let name = export.name.clone();
        let places = Arc::new(Semaphore::new(export.connections_max.min(Semaphore::MAX_PERMITS)));
        let live = Live { export, places, users: TaskTracker::new(), stop };
        exports.insert(name, Arc::new(live));
        Ok(())
    }

    /// Takes the export off the offer, ends its connections and waits until they are gone.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), ServerError> {
        let Some(live) = self.lock().get(name).map(Arc::clone) else {
            return Err(ServerError::NotFound { name: name.to_owned() });
        };
        live.stop.cancel();
        live.users.close();
        live.users.wait().await;
        let mut exports = self.lock();
        if exports.get(name).is_some_and(|there| Arc::ptr_eq(there, &live)) {
            exports.remove(name);
        }
        Ok(())
    }

    /// The export of this name; the empty name means the only export there is.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Live<B>>> {
        let exports = self.lock();
        if !name.is_empty() {
            return exports.get(name).filter(|live| !live.stop.is_cancelled()).map(Arc::clone);
        }
        let mut present = exports.values().filter(|live| !live.stop.is_cancelled());
        let only = present.next()?;
        present.next().is_none().then(|| Arc::clone(only))
    }

    /// Name and description of every export.
    pub(crate) fn list(&self) -> Vec<(String, String)> {
        let exports = self.lock();
        let present = exports.values().filter(|live| !live.stop.is_cancelled());
        present.map(|live| (live.export.name.clone(), live.export.description.clone())).collect()
    }
}
