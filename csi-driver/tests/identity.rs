//! The driver as Kubernetes meets it: a program, a socket, three RPCs, a signal to end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

use lockstep_proto::csi::identity_client::IdentityClient;
use lockstep_proto::csi::{GetPluginCapabilitiesRequest, GetPluginInfoRequest, ProbeRequest};
use lockstep_proto::v1::control_server::{Control, ControlServer};
use lockstep_proto::v1::{self as lockstep};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::process::{Child, ChildStderr, Command};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(20);

struct Driver {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    socket: PathBuf,
}

impl Driver {
    async fn start(dir: &Path, more: &[&str]) -> Self {
        let socket = dir.join("plugin/csi.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_lockstep-csi"))
            .arg("--endpoint")
            .arg(format!("unix://{}", socket.display()))
            .args(["--node-id", "node-a"])
            .args(more)
            .env_remove("RUST_LOG")
            .env_remove("LOCKSTEP_DAEMON")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut driver = Self { child, log, socket };
        driver.wait_for("serving CSI").await;
        driver
    }

    async fn wait_for(&mut self, text: &str) {
        let found = async {
            while let Some(line) = self.log.next_line().await.unwrap() {
                if line.contains(text) {
                    return;
                }
            }
            panic!("the driver ended without {text:?}");
        };
        timeout(PATIENCE, found).await.unwrap();
    }

    async fn client(&self) -> IdentityClient<Channel> {
        let address = format!("unix://{}", self.socket.display());
        let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        IdentityClient::new(channel)
    }

    async fn stop(mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap());
        kill(pid, signal).unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{signal}: {status}");
        assert!(!self.socket.exists(), "{signal}: the socket was left behind");
    }
}

async fn is_ready(client: &mut IdentityClient<Channel>) -> Option<bool> {
    client.probe(ProbeRequest {}).await.unwrap().into_inner().ready
}

#[tokio::test]
async fn the_three_calls_of_identity() {
    let dir = TempDir::new().unwrap();
    let driver = Driver::start(dir.path(), &[]).await;
    let mut client = driver.client().await;

    let info = client.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "csi.lockstep.dev");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.manifest.get("node").map(String::as_str), Some("node-a"));

    let request = GetPluginCapabilitiesRequest {};
    let answer = client.get_plugin_capabilities(request).await.unwrap().into_inner();
    assert_eq!(answer.capabilities, []);

    assert_eq!(is_ready(&mut client).await, Some(true));
    // With the client still connected: an idle connection must not hold the end up.
    driver.stop(Signal::SIGTERM).await;
}

/// A daemon with threads of its own, so that its connections can be made to die with it.
fn start_daemon(socket: PathBuf) -> Runtime {
    let runtime = Runtime::new().unwrap();
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(socket).unwrap()
    };
    runtime.spawn(
        Server::builder()
            .add_service(ControlServer::new(Answering))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    runtime
}

#[tokio::test]
async fn readiness_follows_the_daemon() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("lockstepd.sock");
    let address = format!("unix://{}", socket.display());
    let mut driver = Driver::start(dir.path(), &["--daemon", &address]).await;
    let mut client = driver.client().await;
    assert_eq!(is_ready(&mut client).await, Some(false));
    driver.wait_for("not ready").await;

    let daemon = start_daemon(socket.clone());
    assert_eq!(is_ready(&mut client).await, Some(true));
    driver.wait_for(" ready").await;

    tokio::task::spawn_blocking(move || daemon.shutdown_timeout(PATIENCE)).await.unwrap();
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(is_ready(&mut client).await, Some(false));
    driver.stop(Signal::SIGINT).await;
}

#[tokio::test]
async fn a_killed_driver_leaves_a_socket_that_the_next_one_takes_over() {
    let dir = TempDir::new().unwrap();
    let mut killed = Driver::start(dir.path(), &[]).await;
    killed.child.kill().await.unwrap();
    assert!(killed.socket.exists());
    let next = Driver::start(dir.path(), &[]).await;
    assert_eq!(is_ready(&mut next.client().await).await, Some(true));
    next.stop(Signal::SIGTERM).await;
}

#[tokio::test]
async fn bad_arguments_are_refused_with_what_to_write() {
    let refusals = [
        (["--endpoint", "tcp://0.0.0.0:1", "--node-id", "a"], "unix:///path/to/csi.sock"),
        (["--endpoint", "unix:///tmp/x.sock", "--node-id", ""], "spec.nodeName"),
    ];
    for (args, advice) in refusals {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-csi"));
        let output = timeout(PATIENCE, command.args(args).output()).await.unwrap().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && message.contains(advice), "{message}");
    }
}

/// A daemon that answers GetNode.
struct Answering;

macro_rules! control {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Control for Answering {
            async fn get_node(
                &self,
                _: Request<lockstep::GetNodeRequest>,
            ) -> Result<Response<lockstep::GetNodeResponse>, Status> {
                Ok(Response::new(lockstep::GetNodeResponse::default()))
            }

            $(async fn $method(
                &self,
                _: Request<lockstep::$request>,
            ) -> Result<Response<lockstep::$response>, Status> {
                Err(Status::unimplemented("not asked for here"))
            })*
        }
    };
}

control! {
    list_nodes(ListNodesRequest) -> ListNodesResponse;
    set_volume(SetVolumeRequest) -> SetVolumeResponse;
    scrub_volume(ScrubVolumeRequest) -> ScrubVolumeResponse;
    forget_pool(ForgetPoolRequest) -> ForgetPoolResponse;
    evacuate_node(EvacuateNodeRequest) -> EvacuateNodeResponse;
    remove_node(RemoveNodeRequest) -> RemoveNodeResponse;
    recover_volume(RecoverVolumeRequest) -> RecoverVolumeResponse;
    create_replica(CreateReplicaRequest) -> CreateReplicaResponse;
    delete_replica(DeleteReplicaRequest) -> DeleteReplicaResponse;
    replica_status(ReplicaStatusRequest) -> ReplicaStatusResponse;
    create_volume(CreateVolumeRequest) -> CreateVolumeResponse;
    list_volumes(ListVolumesRequest) -> ListVolumesResponse;
    get_volume(GetVolumeRequest) -> GetVolumeResponse;
    delete_volume(DeleteVolumeRequest) -> DeleteVolumeResponse;
    add_replica(AddReplicaRequest) -> AddReplicaResponse;
    attach(AttachRequest) -> AttachResponse;
    detach(DetachRequest) -> DetachResponse;
    status(StatusRequest) -> StatusResponse;
}
