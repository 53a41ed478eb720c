//! The connection to a daemon.

use std::time::Duration;

use lockstep_proto::v1::control_client::ControlClient;
use tonic::transport::{Channel, Endpoint};

use super::failure::Failure;

const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// A daemon to ask.
#[derive(Clone, Debug)]
pub(super) struct Server {
    uri: String,
}

impl Server {
    pub(super) fn new(uri: &str) -> Self {
        Self { uri: uri.to_owned() }
    }

    /// Connects.
    pub(super) async fn control(&self) -> Result<ControlClient<Channel>, Failure> {
        if !self.uri.starts_with("unix:///") && !self.uri.starts_with("http://") {
            return Err(Failure::usage(format!(
                "--server `{}` is no daemon's address; write unix:///path/of/socket or \
                 http://host:port",
                self.uri
            )));
        }
        let endpoint = Endpoint::from_shared(self.uri.clone())
            .map_err(|e| Failure::usage(format!("--server `{}`: {e}", self.uri)))?
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = endpoint.connect().await.map_err(|e| self.unreachable(&e))?;
        Ok(ControlClient::new(channel))
    }

    fn unreachable(&self, error: &tonic::transport::Error) -> Failure {
        // The outer error only says "transport error"; the innermost one says what happened.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure::unreachable(&self.uri, &cause.to_string())
    }
}
