//! The nodes of the cluster as the record store had them a moment ago: whether they answer is asked
//! several times a second, and just when one is lost the record store may be slow as well.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tonic::Status;

use super::Admin;
use super::catalog::NodeObject;

/// What is older than this is read again, while it is used; what is older than that is waited for.
const FRESH: Duration = Duration::from_secs(3);
const USABLE: Duration = Duration::from_secs(60);

type Nodes = Arc<[NodeObject]>;
/// One read, which all wait for who want it.
type Reading = Shared<BoxFuture<'static, Result<Nodes, Status>>>;

/// The nodes, and when they began to be read.
#[derive(Debug, Default)]
pub(super) struct Roster {
    known: Mutex<Option<(Instant, Nodes)>>,
    /// The one that is under way, or was last.
    reading: Mutex<Option<Reading>>,
}

impl Roster {
    fn known(&self, within: Duration) -> Option<Nodes> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|(at, _)| at.elapsed() < within);
        known.map(|(_, nodes)| Arc::clone(nodes))
    }

    fn reading(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admin {
    /// All nodes, as they were not long ago.
    pub(super) async fn nodes_lately(&self) -> Result<Nodes, Status> {
        let roster = &self.inner.roster;
        if let Some(nodes) = roster.known(FRESH) {
            return Ok(nodes);
        }
        let reading = self.begin_reading();
        if let Some(nodes) = roster.known(USABLE) {
            return Ok(nodes);
        }
        reading.await
    }

    /// Reads all nodes, unless that is under way: a record store that is slow is not asked by
    /// everybody at once.
    fn begin_reading(&self) -> Reading {
        let mut last = self.inner.roster.reading();
        if let Some(reading) = last.as_ref().filter(|reading| reading.peek().is_none()) {
            return reading.clone();
        }
        let reading = self.clone().read_nodes().boxed().shared();
        // It goes on if the caller has no time left: the next one will need it, too.
        self.inner.tasks.spawn(reading.clone());
        *last = Some(reading.clone());
        reading
    }

    async fn read_nodes(self) -> Result<Nodes, Status> {
        let roster = &self.inner.roster;
        let read = async {
            let begin = Instant::now();
            let nodes: Nodes = self.inner.catalog.nodes().await?.into();
            let mut known = roster.known.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some((begin, Arc::clone(&nodes)));
            Ok(nodes)
        };
        tokio::select! {
            biased;
            () = self.inner.stop.cancelled() => Err(Status::unavailable("the daemon is stopping")),
            read = read => read,
        }
    }
}
