//! The daemons, as the driver sees them.

use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// For a connection and a short answer; a probe of the kubelet waits little longer.
const DEADLINE: Duration = Duration::from_secs(2);
/// For a question about volumes or nodes: a daemon asks others, some of which may be silent.
const ASK: Duration = Duration::from_secs(15);
/// For what makes and removes things. What takes longer goes on, and the next call finds it.
const DO: Duration = Duration::from_secs(90);
/// What a daemon adds to the time that those have whom it asks.
const HOP: Duration = Duration::from_millis(200);
/// A daemon that does not answer this is gone, and another one is asked.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The address of the daemon is not one.
#[derive(Debug, Error)]
#[error("{address:?} is not a daemon's address: {source}; write unix:///path or http://host:port")]
pub(crate) struct AddressError {
    address: String,
    source: tonic::transport::Error,
}

/// What came of asking a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// It answered somebody.
    pub(crate) live: bool,
    /// Its machine said that no daemon listens there.
    pub(crate) refused: bool,
}

/// The same of all nodes.
pub(crate) type Answers = BTreeMap<NodeId, Answer>;

type Client = ControlClient<Channel>;

/// One or more daemons of a cluster, any of which knows all of it. Connects when it is used.
#[derive(Debug)]
pub(crate) struct Daemons {
    all: Vec<(String, Client)>,
    /// The one that is asked first: it answered last.
    last: AtomicUsize,
}

/// What a daemon said, without what belongs to the connection.
fn plain(address: &str, status: &Status) -> Status {
    let broken = std::error::Error::source(status).is_some();
    if broken {
        let why = format!("the daemon at {address} does not answer: {}", status.message());
        return Status::unavailable(why);
    }
    Status::new(status.code(), status.message())
}

impl Daemons {
    /// These daemons.
    ///
    /// # Errors
    /// If one of these is no address.
    pub(crate) fn new(addresses: &[String]) -> Result<Self, AddressError> {
        let client = |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone())
                .map_err(|source| AddressError { address: address.clone(), source })?;
            let channel = endpoint
                .connect_timeout(DEADLINE)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .connect_lazy();
            Ok((address.clone(), ControlClient::new(channel)))
        };
        let all = addresses.iter().map(client).collect::<Result<_, _>>()?;
        Ok(Self { all, last: AtomicUsize::new(0) })
    }

    /// Asks one after another until one can tell: all calls may be repeated.
    async fn ask<T, A>(&self, limit: Duration, call: impl Fn(Client) -> A) -> Result<T, Status>
    where
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let first = self.last.load(Ordering::Relaxed);
        let mut refused = Status::unavailable("no daemon is named; start with --daemon");
        for n in 0..self.all.len() {
            let which = (first + n) % self.all.len();
            let Some((address, client)) = self.all.get(which) else { break };
            let outcome = match timeout(limit, call(client.clone())).await {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => Err(plain(address, &status)),
                Err(_) => Err(Status::deadline_exceeded(format!(
                    "the daemon at {address} did not answer within {} s; it may still do what was \
                     asked, and the same call again finds out",
                    limit.as_secs()
                ))),
            };
            match outcome {
                Err(status) if status.code() == Code::Unavailable => refused = status,
                // It may hang. The next call asks another one.
                Err(status) if status.code() == Code::DeadlineExceeded => {
                    self.last.store(which + 1, Ordering::Relaxed);
                    return Err(status);
                }
                told => {
                    self.last.store(which, Ordering::Relaxed);
                    return told;
                }
            }
        }
        Err(refused)
    }

    /// What the daemon says of itself.
    pub(crate) async fn node(&self) -> Result<v1::Node, Status> {
        let call = |mut client: Client| async move {
            client.get_node(v1::GetNodeRequest::default()).await
        };
        let answer = self.ask(DEADLINE, call).await?;
        answer.node.ok_or_else(|| Status::internal("the daemon does not say which node it is"))
    }

    /// All nodes, by name.
    pub(crate) async fn nodes(&self) -> Result<Vec<v1::NodeStatus>, Status> {
        let call = |mut client: Client| async move {
            client.list_nodes(v1::ListNodesRequest::default()).await
        };
        Ok(self.ask(ASK, call).await?.nodes)
    }

    /// Which nodes answer, as two daemons see it: one of them may be cut off itself. Each `turn`
    /// asks others. UNAVAILABLE if none of the two can tell.
    pub(crate) async fn who_answers(
        &self,
        turn: usize,
        limit: Duration,
    ) -> Result<Answers, Status> {
        let wait_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut asked = JoinSet::new();
        for n in 0..self.all.len().min(2) {
            let which = turn.wrapping_mul(2).wrapping_add(n) % self.all.len();
            let Some((address, client)) = self.all.get(which).cloned() else { continue };
            asked.spawn(async move {
                let mut client = client;
                let request = v1::ListNodesRequest { brief: true, wait_ms };
                match timeout(limit + HOP, client.list_nodes(request)).await {
                    Ok(Ok(answer)) => Ok((which, answer.into_inner().nodes)),
                    Ok(Err(status)) => Err(plain(&address, &status)),
                    Err(_) => Err(Status::unavailable(format!("{address} does not answer"))),
                }
            });
        }
        let mut answers = Answers::new();
        let mut outcome = Err(Status::unavailable("no daemon is named; start with --daemon"));
        let mut until = Instant::now() + limit + 2 * HOP;
        while let Ok(Some(Ok(told))) = timeout_at(until, asked.join_next()).await {
            let (which, nodes) = match told {
                Ok(told) => told,
                Err(status) => {
                    outcome = outcome.or(Err(status));
                    continue;
                }
            };
            // The other one had as much time.
            until = until.min(Instant::now() + HOP);
            self.last.store(which, Ordering::Relaxed);
            outcome = Ok(());
            for status in nodes {
                let Some(name) = NodeId::new(&status.name) else { continue };
                let answer = answers.entry(name).or_insert(Answer { live: false, refused: false });
                answer.live |= status.live;
                answer.refused |= status.refused;
            }
        }
        outcome.map(|()| answers)
    }

    /// Sees to it that a lost node gets no write of a volume acknowledged any more.
    pub(crate) async fn fence(
        &self,
        request: &v1::FenceVolumeRequest,
    ) -> Result<v1::FenceVolumeResponse, Status> {
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.fence_volume(request).await }
        };
        self.ask(ASK, call).await
    }

    /// Has a node's copies moved elsewhere, or not any more (`undo`).
    pub(crate) async fn evacuate(&self, node: &NodeId, undo: bool) -> Result<(), Status> {
        let call = |mut client: Client| {
            let request = v1::EvacuateNodeRequest { node: node.to_string(), undo };
            async move { client.evacuate_node(request).await }
        };
        self.ask(ASK, call).await.map(drop)
    }

    /// Notes that a node is cordoned, or not any more (`undo`).
    pub(crate) async fn cordon(&self, node: &NodeId, undo: bool) -> Result<(), Status> {
        let call = |mut client: Client| {
            let request = v1::CordonNodeRequest { node: node.to_string(), undo };
            async move { client.cordon_node(request).await }
        };
        self.ask(ASK, call).await.map(drop)
    }

    /// Forgets a node that is gone. FAILED_PRECONDITION if it is not, or if it has the last copy of
    /// something.
    pub(crate) async fn remove_node(&self, node: &NodeId) -> Result<Vec<String>, Status> {
        let call = |mut client: Client| {
            let request = v1::RemoveNodeRequest { node: node.to_string(), force: false };
            async move { client.remove_node(request).await }
        };
        Ok(self.ask(ASK, call).await?.volumes)
    }

    /// All nodes and all volumes, also those that are being made or removed.
    pub(crate) async fn cluster(
        &self,
    ) -> Result<(Vec<v1::NodeStatus>, Vec<v1::VolumeStatus>), Status> {
        let call = |mut client: Client| async move { client.status(v1::StatusRequest {}).await };
        let told = self.ask(ASK, call).await?;
        Ok((told.nodes, told.volumes))
    }

    /// Changes labels of nodes. Returns all that were put, by node.
    pub(crate) async fn label(
        &self,
        changes: Vec<v1::LabelChange>,
    ) -> Result<Vec<v1::NodeLabels>, Status> {
        let request = v1::LabelNodesRequest { changes };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.label_nodes(request).await }
        };
        Ok(self.ask(ASK, call).await?.nodes)
    }

    /// All volumes that are not being made or removed.
    pub(crate) async fn volumes(&self) -> Result<Vec<v1::VolumeStatus>, Status> {
        let call = |mut client: Client| async move {
            client.list_volumes(v1::ListVolumesRequest {}).await
        };
        let mut volumes = self.ask(ASK, call).await?.volumes;
        volumes.retain(|volume| volume.stage == i32::from(v1::VolumeStage::Ready));
        Ok(volumes)
    }

    /// One volume, if it is there; also one that is being made or removed.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<v1::VolumeStatus>, Status> {
        if !crate::names::is_volume_name(name) {
            return Ok(None);
        }
        let call = |mut client: Client| {
            let request = v1::GetVolumeRequest { name: name.to_owned() };
            async move { client.get_volume(request).await }
        };
        match self.ask(ASK, call).await {
            Ok(answer) => Ok(answer.volume),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Makes a volume.
    pub(crate) async fn create(
        &self,
        request: &v1::CreateVolumeRequest,
    ) -> Result<v1::VolumeStatus, Status> {
        let call = |mut client: Client| {
            let request = Request::new(request.clone());
            async move { client.create_volume(request).await }
        };
        let answer = self.ask(DO, call).await?;
        answer.volume.ok_or_else(|| Status::internal("the daemon does not say what it has made"))
    }

    /// Removes a volume, if it is there.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), Status> {
        if !crate::names::is_volume_name(name) {
            return Ok(());
        }
        let call = |mut client: Client| {
            let request = v1::DeleteVolumeRequest { name: name.to_owned() };
            async move { client.delete_volume(request).await }
        };
        self.ask(DO, call).await.map(drop)
    }

    /// Wants other numbers of copies.
    pub(crate) async fn set(&self, request: &v1::SetVolumeRequest) -> Result<(), Status> {
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.set_volume(request).await }
        };
        self.ask(DO, call).await.map(drop)
    }

    /// Makes a volume larger. Returns what does not show that, in words.
    pub(crate) async fn resize(&self, name: &str, size_bytes: u64) -> Result<String, Status> {
        let call = |mut client: Client| {
            let request = v1::ResizeVolumeRequest { name: name.to_owned(), size_bytes };
            async move { client.resize_volume(request).await }
        };
        Ok(self.ask(DO, call).await?.note)
    }

    /// Takes a snapshot, or finds it.
    pub(crate) async fn take_snapshot(
        &self,
        name: &str,
        volume: &str,
    ) -> Result<v1::Snapshot, Status> {
        let call = |mut client: Client| {
            let request = v1::CreateSnapshotRequest {
                name: name.to_owned(),
                volume: volume.to_owned(),
                ..Default::default()
            };
            async move { client.create_snapshot(request).await }
        };
        self.ask(DO, call).await
    }

    /// Removes a snapshot, if it is there.
    pub(crate) async fn delete_snapshot(&self, name: &str) -> Result<(), Status> {
        if !crate::names::is_volume_name(name) {
            return Ok(());
        }
        let call = |mut client: Client| {
            let request = v1::DeleteSnapshotRequest { name: name.to_owned() };
            async move { client.delete_snapshot(request).await }
        };
        self.ask(DO, call).await.map(drop)
    }

    /// The snapshots that are not being taken still; of one volume, or of one name, if these are
    /// not empty.
    pub(crate) async fn snapshots(
        &self,
        volume: &str,
        name: &str,
    ) -> Result<Vec<v1::Snapshot>, Status> {
        let is_name = |text: &str| text.is_empty() || crate::names::is_volume_name(text);
        if !is_name(volume) || !is_name(name) {
            return Ok(Vec::new());
        }
        let call = |mut client: Client| {
            let (volume, name) = (volume.to_owned(), name.to_owned());
            async move { client.list_snapshots(v1::ListSnapshotsRequest { volume, name }).await }
        };
        let mut snapshots = self.ask(ASK, call).await?.snapshots;
        snapshots.retain(|snapshot| snapshot.ready);
        Ok(snapshots)
    }

    /// One snapshot, if it is there.
    pub(crate) async fn snapshot(&self, name: &str) -> Result<Option<v1::Snapshot>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        Ok(self.snapshots("", name).await?.pop())
    }

    /// Attaches a volume.
    pub(crate) async fn attach(
        &self,
        request: &v1::AttachRequest,
    ) -> Result<v1::AttachResponse, Status> {
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.attach(request).await }
        };
        self.ask(DO, call).await
    }

    /// Detaches a volume.
    pub(crate) async fn detach(&self, request: &v1::DetachRequest) -> Result<bool, Status> {
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.detach(request).await }
        };
        Ok(self.ask(DO, call).await?.was_attached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_hangs_is_not_asked_first_again() {
        let addresses = ["a", "b"].map(|name| format!("unix:///no/such/place/{name}"));
        let daemons = Daemons::new(&addresses).unwrap();
        let hang = |_| std::future::pending::<Result<Response<()>, Status>>();
        for then in [1, 2, 1] {
            let told = daemons.ask(Duration::from_millis(1), hang).await.unwrap_err();
            assert_eq!(told.code(), Code::DeadlineExceeded);
            assert_eq!(daemons.last.load(Ordering::Relaxed), then, "{told:?}");
        }
    }
}
