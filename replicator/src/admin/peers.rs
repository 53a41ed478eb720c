//! Connections to the admin API of other daemons.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lockstep_proto::v1::control_client::ControlClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::catalog::NodeObject;

/// How long a daemon may take to answer a question about its state.
pub(super) const ASK_LIMIT: Duration = Duration::from_millis(1500);
/// How long a daemon may take to do something small.
pub(super) const DO_LIMIT: Duration = Duration::from_secs(30);
const CONNECT_LIMIT: Duration = Duration::from_millis(1000);

/// Marks a call that another daemon passed on, so that it is not passed on again.
const PASSED_ON: &str = "lockstep-passed-on";

/// Connections, one for each address, made at first use.
#[derive(Debug, Default)]
pub(super) struct Peers {
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    /// A client of the daemon of `node`. Connects when it is used.
    pub(super) fn client(&self, node: &NodeObject) -> Result<ControlClient<Channel>, Status> {
        let address = &node.admin_address;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(ControlClient::new(channel.clone()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| Status::internal(format!("admin address `{address}`: {e}")))?
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2));
        let channel = endpoint.connect_lazy();
        channels.insert(address.clone(), channel.clone());
        Ok(ControlClient::new(channel))
    }
}

/// A request that is passed on to another daemon.
pub(super) fn pass_on<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request.metadata_mut().insert(PASSED_ON, tonic::metadata::MetadataValue::from_static("1"));
    request
}

/// Whether another daemon passed this call on.
pub(super) fn was_passed_on<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(PASSED_ON)
}

/// Gives a call a limit; a late answer is UNAVAILABLE, and so is one that broke off: what was asked
/// may have been done.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(Err(status)) if std::error::Error::source(&status).is_some() => {
            Err(Status::unavailable(plain(&status)))
        }
        Ok(answer) => answer,
        Err(_) => Err(Status::unavailable(format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// The same failure, saying at which node.
pub(super) fn at(node: &lockstep_core::id::NodeId, status: &Status) -> Status {
    Status::new(status.code(), format!("node {node}: {}", plain(status)))
}

/// What a status says, without the layers of the transport.
pub(super) fn plain(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    let mut last = None;
    while let Some(inner) = cause {
        last = Some(inner.to_string());
        cause = inner.source();
    }
    last.unwrap_or_else(|| status.message().to_owned())
}

/// Whether a call failed since nobody listens at the address: the machine there is up.
pub(super) fn is_refused(status: &Status) -> bool {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(inner) = cause {
        let error = inner.downcast_ref::<std::io::Error>();
        if error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = inner.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_broke_off_may_have_been_given() {
        let asked = |outcome: Result<(), Status>| within(ASK_LIMIT, async { outcome });
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let mut status = Status::unknown("h2 protocol error");
        status.set_source(std::sync::Arc::new(broken));
        let told = asked(Err(status)).await.unwrap_err();
        assert_eq!((told.code(), told.message()), (Code::Unavailable, "broken pipe"));
        let told = asked(Err(Status::not_found("no such volume"))).await.unwrap_err();
        assert_eq!(told.code(), Code::NotFound);
    }
}
