//! What Kubernetes is told besides CSI: labels of its nodes, and an object for each volume, for
//! people. And what is learned there: what it says of nodes, and which pods use volumes.

pub(crate) mod events;
pub(crate) mod guards;
pub(crate) mod lease;
mod news;
pub(crate) mod nodes;
pub(crate) mod pods;
pub(crate) mod volumes;

use anyhow::Context as _;
use kube::{Client, Config};
use std::error::Error;
use std::time::Duration;
use tonic::Status;

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(15);
/// The same for a watch, which the server ends by itself after 290 s.
pub(crate) const WATCH: Duration = Duration::from_secs(300);
/// Objects that the API server is asked for at a time.
const CHUNK: u32 = 500;

/// A client of the cluster that this runs in, or that `KUBECONFIG` leads to, which waits so long
/// for answers.
///
/// # Errors
/// If there is none, or no way to reach it.
pub(crate) async fn connect(answer: Duration) -> anyhow::Result<Client> {
    let what = "--kubernetes needs a cluster: run in a pod with a service account, or name a \
                kubeconfig file in KUBECONFIG";
    let mut config = Config::infer().await.context(what)?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(answer);
    // Not from when its connection was last used.
    config.reset_reader_on_write = true;
    // All is tried again by those who ask.
    config.default_retry = false;
    Client::try_from(config).context(what)
}

/// What an error of the API server is to whoever asked.
fn refused(what: &str, error: &kube::Error) -> Status {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(why) = cause {
        let said = why.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = why.source();
    }
    Status::unavailable(text)
}

fn is_conflict(error: &kube::Error) -> bool {
    let is_so = |code| code == 409;
    matches!(error, kube::Error::Api(status) if is_so(status.code))
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}
