//! The nodes of the cluster as the record store had them a moment ago: whether they answer is asked
//! several times a second, and just when one is lost the record store may be slow as well.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

use super::Admin;
use super::catalog::NodeObject;

/// What is older than this is read again, while it is used; what is older than that is waited for.
const FRESH: Duration = Duration::from_secs(3);
const USABLE: Duration = Duration::from_secs(60);

/// The nodes, and when they began to be read.
#[derive(Debug, Default)]
pub(super) struct Roster {
    known: Mutex<Option<(Instant, Arc<[NodeObject]>)>>,
    reading: tokio::sync::Mutex<()>,
}

impl Roster {
    fn known(&self, within: Duration) -> Option<Arc<[NodeObject]>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|(at, _)| at.elapsed() < within);
        known.map(|(_, nodes)| Arc::clone(nodes))
    }
}

impl Admin {
    /// All nodes, as they were not long ago.
    pub(super) async fn nodes_lately(&self) -> Result<Arc<[NodeObject]>, Status> {
        let roster = &self.inner.roster;
        if let Some(nodes) = roster.known(FRESH) {
            return Ok(nodes);
        }
        // It goes on if the caller has no time left: the next one will need it, too.
        let reading = self.inner.tasks.spawn(self.clone().read_nodes());
        if let Some(nodes) = roster.known(USABLE) {
            return Ok(nodes);
        }
        reading.await.map_err(|error| Status::internal(format!("it broke off: {error}")))?
    }

    /// Reads all nodes, or finds what somebody else has just read.
    async fn read_nodes(self) -> Result<Arc<[NodeObject]>, Status> {
        let roster = &self.inner.roster;
        let read = async {
            let _turn = roster.reading.lock().await;
            if let Some(nodes) = roster.known(FRESH) {
                return Ok(nodes);
            }
            let begin = Instant::now();
            let nodes: Arc<[NodeObject]> = self.inner.catalog.nodes().await?.into();
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
