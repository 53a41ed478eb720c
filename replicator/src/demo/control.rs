//! The admin API of one daemon, as the demonstration uses it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use lockstep_attach::nbd::NbdUri;
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use tonic::transport::{Channel, Endpoint};

/// How long a daemon may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long an answer may take beyond the waiting that was asked for.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// A daemon. Cheap to clone; connects when first used and again when needed.
#[derive(Clone, Debug)]
pub struct Control {
    client: ControlClient<Channel>,
}

impl Control {
    /// The daemon whose socket is at `path`.
    ///
    /// # Errors
    /// The path is no address.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
            .with_context(|| format!("{} is not usable as an address", path.display()))?
            .connect_timeout(CONNECT_LIMIT);
        Ok(Self { client: ControlClient::new(endpoint.connect_lazy()) })
    }

    /// Makes a volume with a copy on each of the nodes.
    ///
    /// # Errors
    /// The daemon refuses, or does not answer in time; so for all that is asked here.
    pub async fn create(
        &self,
        name: &str,
        size_bytes: u64,
        nodes: Vec<String>,
    ) -> anyhow::Result<v1::VolumeStatus> {
        let repl = u32::try_from(nodes.len())?;
        let name = name.to_owned();
        let wanted =
            v1::CreateVolumeRequest { name, size_bytes, repl, nodes, ..Default::default() };
        self.create_as(wanted).await
    }

    /// Makes a volume as wanted.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn create_as(
        &self,
        wanted: v1::CreateVolumeRequest,
    ) -> anyhow::Result<v1::VolumeStatus> {
        let call = async |mut c: ControlClient<Channel>| c.create_volume(wanted).await;
        let answer = self.call("making the volume", ANSWER_LIMIT, call).await?;
        answer.volume.ok_or_else(|| anyhow!("making the volume: the daemon tells no volume"))
    }

    /// Attaches a volume on a node; returns where it is served. With `force` also if another node
    /// serves it.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn attach(
        &self,
        name: &str,
        node: &str,
        wait: Duration,
        force: bool,
    ) -> anyhow::Result<NbdUri> {
        let wanted = v1::AttachRequest {
            name: name.to_owned(),
            node: Some(node.to_owned()),
            force,
            wait_ms: u64::try_from(wait.as_millis())?,
            ..Default::default()
        };
        let call = async |mut c: ControlClient<Channel>| c.attach(wanted).await;
        let limit = wait + ANSWER_LIMIT;
        let answer = self.call(&format!("attaching on {node}"), limit, call).await?;
        answer.nbd_uri.parse().with_context(|| format!("{} is of no use", answer.nbd_uri))
    }

    /// Attaches a volume on a node, with a block device as wanted.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn attach_device(
        &self,
        name: &str,
        node: &str,
        wait: Duration,
        device: v1::DeviceRequest,
    ) -> anyhow::Result<v1::AttachResponse> {
        let wanted = v1::AttachRequest {
            name: name.to_owned(),
            node: Some(node.to_owned()),
            force: false,
            wait_ms: u64::try_from(wait.as_millis())?,
            device: Some(device),
            ..Default::default()
        };
        let call = async |mut c: ControlClient<Channel>| c.attach(wanted).await;
        self.call(&format!("attaching on {node}"), wait + ANSWER_LIMIT, call).await
    }

    /// Detaches a volume; with `force` also with clients connected.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn detach(&self, name: &str, force: bool) -> anyhow::Result<()> {
        let wanted = v1::DetachRequest { name: name.to_owned(), force, only_node: None };
        let call = async |mut c: ControlClient<Channel>| c.detach(wanted).await;
        self.call("detaching", ANSWER_LIMIT, call).await.map(drop)
    }

    /// What is known of a volume.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn volume(&self, name: &str) -> anyhow::Result<v1::VolumeStatus> {
        let wanted = v1::GetVolumeRequest { name: name.to_owned() };
        let call = async |mut c: ControlClient<Channel>| c.get_volume(wanted).await;
        let answer = self.call("looking at the volume", ANSWER_LIMIT, call).await?;
        answer.volume.ok_or_else(|| anyhow!("looking at the volume: the daemon tells nothing"))
    }

    /// Forgets a pool that a node has lost.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn forget_pool(&self, node: &str, pool: &str) -> anyhow::Result<()> {
        let wanted = v1::ForgetPoolRequest { node: node.to_owned(), pool: pool.to_owned() };
        let call = async |mut c: ControlClient<Channel>| c.forget_pool(wanted).await;
        self.call("forgetting the pool", ANSWER_LIMIT, call).await.map(drop)
    }

    async fn call<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl AsyncFnOnce(ControlClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> anyhow::Result<T> {
        let answer = tokio::time::timeout(limit, call(self.client.clone())).await;
        let answer = answer.map_err(|_| anyhow!("{what}: no answer within {limit:?}"))?;
        let answer = answer.map_err(|status| anyhow!("{what}: {}", status.message()))?;
        Ok(answer.into_inner())
    }
}

/// The state of a replica in the volume's record.
pub fn state(replica: &v1::VolumeReplica) -> v1::ReplicaState {
    v1::ReplicaState::try_from(replica.state).unwrap_or(v1::ReplicaState::Unspecified)
}

/// Whether every copy in the record is in sync, and there are at least `count`.
pub fn all_in_sync(volume: &v1::VolumeStatus, count: usize) -> bool {
    volume.replicas.len() >= count
        && volume.replicas.iter().all(|r| state(r) == v1::ReplicaState::InSync)
}

/// The replica on a node.
pub fn on_node<'a>(volume: &'a v1::VolumeStatus, node: &str) -> Option<&'a v1::VolumeReplica> {
    volume.replicas.iter().find(|r| r.node == node)
}
