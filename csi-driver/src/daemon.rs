//! The daemon of this node, as the driver sees it.

use lockstep_proto::v1::GetNodeRequest;
use lockstep_proto::v1::control_client::ControlClient;
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// For a connection and an answer; a probe of the kubelet waits little longer.
const DEADLINE: Duration = Duration::from_secs(2);

/// The address of the daemon is not one.
#[derive(Debug, Error)]
#[error("{address:?} is not a daemon's address: {source}; write unix:///path or http://host:port")]
pub(crate) struct AddressError {
    address: String,
    source: tonic::transport::Error,
}

/// A client that connects when it is used.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    client: ControlClient<Channel>,
}

impl Daemon {
    pub(crate) fn new(address: &str) -> Result<Self, AddressError> {
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|source| AddressError { address: address.to_owned(), source })?;
        let channel = endpoint.connect_timeout(DEADLINE).connect_lazy();
        Ok(Self { client: ControlClient::new(channel) })
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// Why it did not, in one sentence.
    pub(crate) async fn answers(&self) -> Result<(), String> {
        let mut client = self.client.clone();
        match timeout(DEADLINE, client.get_node(GetNodeRequest {})).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(format!("the daemon did not answer: {}", status.message())),
            Err(_) => Err(format!("the daemon did not answer within {} ms", DEADLINE.as_millis())),
        }
    }
}
