//! A program, a socket, three RPCs, a signal to end.

use crate::fake::Fake;
use crate::program::{Driver, PATIENCE, daemon_socket};
use lockstep_proto::csi::identity_client::IdentityClient;
use lockstep_proto::csi::plugin_capability::{Type, service};
use lockstep_proto::csi::{GetPluginCapabilitiesRequest, GetPluginInfoRequest, ProbeRequest};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;
use tonic::transport::Channel;

async fn client(driver: &Driver) -> IdentityClient<Channel> {
    IdentityClient::new(driver.channel().await)
}

async fn is_ready(client: &mut IdentityClient<Channel>) -> Option<bool> {
    client.probe(ProbeRequest {}).await.unwrap().into_inner().ready
}

#[tokio::test]
async fn the_three_calls_of_identity() {
    for (role, node, controller) in
        [("node", true, false), ("controller", false, true), ("--standalone", true, true)]
    {
        let dir = TempDir::new().unwrap();
        let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
        let driver = Driver::start(dir.path(), role).await;
        let mut client = client(&driver).await;

        let info = client.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.name, "csi.lockstep.dev");
        assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(info.manifest.contains_key("node"), node, "{role}");

        let request = GetPluginCapabilitiesRequest {};
        let answer = client.get_plugin_capabilities(request).await.unwrap().into_inner();
        let claims = |wanted: service::Type| {
            let is_it =
                |claimed: &Type| matches!(claimed, Type::Service(s) if s.r#type() == wanted);
            answer.capabilities.iter().filter_map(|c| c.r#type.as_ref()).any(is_it)
        };
        let online = |claimed: &Type| matches!(claimed, Type::VolumeExpansion(e) if e.r#type == 1);
        assert!(answer.capabilities.iter().filter_map(|c| c.r#type.as_ref()).any(online));
        assert_eq!(claims(service::Type::ControllerService), controller, "{role}");
        assert!(claims(service::Type::VolumeAccessibilityConstraints), "{role}");

        assert_eq!(is_ready(&mut client).await, Some(true));
        // With the client still connected: an idle connection must not hold the end up.
        driver.stop(Signal::SIGTERM).await;
    }
}

#[tokio::test]
async fn readiness_follows_the_daemon() {
    let dir = TempDir::new().unwrap();
    let socket = daemon_socket(dir.path());
    let mut driver = Driver::start(dir.path(), "node").await;
    let mut client = client(&driver).await;
    assert_eq!(is_ready(&mut client).await, Some(false));
    driver.wait_for("not ready").await;

    let daemon = Fake::default().serve(&socket);
    assert_eq!(is_ready(&mut client).await, Some(true));
    driver.wait_for(" ready").await;

    tokio::task::spawn_blocking(move || daemon.shutdown_timeout(PATIENCE)).await.unwrap();
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(is_ready(&mut client).await, Some(false));

    let unready = Fake { not_ready: "the record store is away".to_owned(), ..Fake::default() };
    let _daemon = unready.serve(&socket);
    assert_eq!(is_ready(&mut client).await, Some(false));
    driver.stop(Signal::SIGINT).await;
}

#[tokio::test]
async fn a_killed_driver_leaves_a_socket_that_the_next_one_takes_over() {
    let dir = TempDir::new().unwrap();
    let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
    let mut killed = Driver::start(dir.path(), "node").await;
    killed.child.kill().await.unwrap();
    assert!(killed.socket.exists());
    let next = Driver::start(dir.path(), "node").await;
    assert_eq!(is_ready(&mut client(&next).await).await, Some(true));
    next.stop(Signal::SIGTERM).await;
}

#[tokio::test]
async fn bad_arguments_are_refused_with_what_to_write() {
    let good = ["--endpoint", "unix:///nowhere/x.sock", "--daemon", "unix:///nowhere/d"];
    let refusals: [(&[&str], &str); 6] = [
        (&["node", "--endpoint", "tcp://0.0.0.0:1", "--daemon", "a"], "unix:///path/to/csi.sock"),
        (&[&["node", "--node-id", ""], good.as_slice()].concat(), "spec.nodeName"),
        (&[&["node"], good.as_slice()].concat(), "--node-id is needed"),
        (&good, "<ROLE>"),
        (&[&["node", "--standalone"], good.as_slice()].concat(), "cannot be used with"),
        (&["controller", "--endpoint", "unix:///nowhere/x.sock"], "--daemon"),
    ];
    for (args, advice) in refusals {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-csi"));
        let output = timeout(PATIENCE, command.args(args).output()).await.unwrap().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && message.contains(advice), "{advice}: {message}");
    }
}
