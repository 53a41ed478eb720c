//! The CSI Identity service: who the plugin is, what it can do, whether it is ready.

use crate::daemon::Daemon;
use lockstep_proto::csi::identity_server;
use lockstep_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, ProbeRequest, ProbeResponse,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use tonic::{Request, Response, Status, async_trait};
use tracing::{info, warn};

/// The name storage classes call the driver by.
pub(crate) const DRIVER_NAME: &str = "csi.lockstep.dev";

/// Answers the Identity RPCs on one node.
#[derive(Debug)]
pub(crate) struct Identity {
    node_id: String,
    daemon: Option<Daemon>,
    /// What the last probe found, so that only changes are logged.
    last_probe: Mutex<Option<bool>>,
}

impl Identity {
    pub(crate) fn new(node_id: String, daemon: Option<Daemon>) -> Self {
        Self { node_id, daemon, last_probe: Mutex::default() }
    }

    fn log_change(&self, found: &Result<(), String>) {
        let mut last = self.last_probe.lock().unwrap_or_else(PoisonError::into_inner);
        if last.replace(found.is_ok()) == Some(found.is_ok()) {
            return;
        }
        match found {
            Ok(()) => info!("ready"),
            Err(reason) => warn!(%reason, "not ready"),
        }
    }
}

#[async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::from([("node".to_owned(), self.node_id.clone())]),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        // A capability is a promise to serve RPCs, and there is no other service here yet.
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let found = match &self.daemon {
            Some(daemon) => daemon.answers().await,
            None => Ok(()),
        };
        self.log_change(&found);
        Ok(Response::new(ProbeResponse { ready: Some(found.is_ok()) }))
    }
}
