//! The admin side of a daemon: what it answers people and other daemons, and what it does for the
//! cluster on its own.
//!
//! It owns no data and takes no part in reads and writes. It changes the record store's objects,
//! asks other daemons how they are, and tells the [`Engine`] what to serve.

mod attach;
mod catalog;
mod cordon;
mod create;
mod delete;
mod detach;
mod devices;
mod doors;
mod evacuate;
mod explain;
mod fence;
mod housekeeping;
mod keeper;
mod labels;
mod liveness;
mod local;
mod modify;
mod moment;
mod names;
mod outage;
mod peers;
mod pools;
mod recover;
mod refuse;
mod remake;
mod replicas;
mod resize;
mod resolver;
mod roster;
mod scrub;
mod service;
mod settled;
mod snapshots;
mod survey;
#[cfg(test)]
mod tests;
mod view;
mod whereabouts;

pub use catalog::{Catalog, NodeObject};
pub use resolver::CatalogResolver;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::id::{NodeId, VolumeId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::clock::Clock;
use crate::devices::Devices;
use crate::engine::Engine;
use attach::Attachment;
use doors::Doors;
use keeper::Told;
use peers::Peers;
use remake::Remakes;
use roster::Roster;

/// Where others reach this daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Its replicas: `host:port`.
    pub peer: String,
    /// Its admin API: `host:port`.
    pub admin: String,
}

/// What an admin side is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The data path of this node.
    pub engine: Engine,
    /// The record store.
    pub catalog: Catalog,
    /// Where others reach this daemon.
    pub addresses: Addresses,
    /// Where the node stands, if copies are spread over zones.
    pub zone: Option<String>,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// Directory for the sockets of attached volumes.
    pub nbd_dir: &'a Path,
    /// Listener for attached volumes over TCP, and the host and port that clients are told.
    pub nbd_tcp: Option<(TcpListener, String, u16)>,
    /// Block devices of attached volumes.
    pub devices: Devices,
    /// How long a copy may be lost before a new one is built elsewhere.
    pub rebuild_after_ms: u64,
    /// How long a copy that is one too many is kept.
    pub forget_after_ms: u64,
}

/// The admin side of a daemon. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Admin {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    process: Uuid,
    engine: Engine,
    catalog: Catalog,
    addresses: Addresses,
    zone: Option<String>,
    labels: BTreeMap<String, String>,
    peers: Peers,
    roster: Roster,
    doors: Doors,
    devices: Devices,
    clock: Clock,
    rebuild_after_ms: u64,
    forget_after_ms: u64,
    attachments: Mutex<BTreeMap<VolumeId, Attachment>>,
    /// Has it joined the cluster?
    introduced: AtomicBool,
    /// What is done about missing copies of volumes attached here.
    told: Mutex<BTreeMap<VolumeId, Told>>,
    /// Copies of snapshots that are made here.
    remakes: Mutex<Remakes>,
    /// Why the daemon is not ready; `None`: it is.
    not_ready: Mutex<Option<String>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Admin {
    /// The admin side of a node. It is not ready before [`Admin::begin`].
    ///
    /// # Errors
    /// If the directory for sockets cannot be made.
    pub fn new(parts: Parts<'_>) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let inner = Inner {
            node: parts.engine.node().clone(),
            process: Uuid::new_v4(),
            engine: parts.engine,
            catalog: parts.catalog,
            addresses: parts.addresses,
            zone: parts.zone,
            labels: parts.labels,
            peers: Peers::default(),
            roster: Roster::default(),
            doors: Doors::new(parts.nbd_dir, parts.nbd_tcp, stop.child_token())?,
            devices: parts.devices,
            clock: Clock::start(),
            rebuild_after_ms: parts.rebuild_after_ms,
            forget_after_ms: parts.forget_after_ms,
            attachments: Mutex::new(BTreeMap::new()),
            introduced: AtomicBool::new(false),
            told: Mutex::new(BTreeMap::new()),
            remakes: Mutex::default(),
            not_ready: Mutex::new(Some("the daemon is starting".to_owned())),
            tasks: TaskTracker::new(),
            stop,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts to look after the node and the volumes attached to it. Call it once, after
    /// [`Admin::introduce`] succeeded.
    pub fn begin(&self) {
        self.set_ready();
        self.inner.tasks.spawn(self.clone().resume_devices());
        self.inner.tasks.spawn(self.clone().mind_keeper());
        self.inner.tasks.spawn(self.clone().keep_house());
        self.inner.tasks.spawn(self.clone().keep_copies());
        self.inner.tasks.spawn(self.clone().keep_snapshots());
    }

    /// Leaves the devices to the next daemon, closes the doors, then the primaries in good order
    /// for at most `limit`. Returns the volumes that had to be cut off.
    pub async fn end(&self, limit: Duration) -> Vec<VolumeId> {
        self.set_not_ready("the daemon is stopping");
        self.inner.stop.cancel();
        self.release_devices().await;
        self.end_remakes().await;
        self.inner.doors.close_all().await;
        let cut_off = self.inner.engine.shutdown(limit).await;
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        cut_off
    }

    fn attachments(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Attachment>> {
        self.inner.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uptime_ms(&self) -> u64 {
        self.inner.clock.now().0 / 1000
    }

    fn set_ready(&self) {
        if !self.inner.stop.is_cancelled() {
            *self.inner.not_ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn set_not_ready(&self, why: &str) {
        let mut not_ready = self.inner.not_ready.lock().unwrap_or_else(PoisonError::into_inner);
        if not_ready.as_deref() != Some(why) {
            tracing::info!(why, "not ready");
            *not_ready = Some(why.to_owned());
        }
    }

    /// Whether the daemon is ready, and if not, why.
    fn readiness(&self) -> (bool, String) {
        let not_ready = self.inner.not_ready.lock().unwrap_or_else(PoisonError::into_inner);
        (not_ready.is_none(), not_ready.clone().unwrap_or_default())
    }
}
