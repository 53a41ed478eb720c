//! The CSI Identity service: who the plugin is, what it can do, whether it is ready.

use crate::daemon::Daemons;
use lockstep_proto::csi::identity_server;
use lockstep_proto::csi::plugin_capability::{
    Service, Type, VolumeExpansion, service, volume_expansion,
};
use lockstep_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::{Request, Response, Status, async_trait};
use tracing::{info, warn};

/// The name storage classes call the driver by.
pub(crate) const DRIVER_NAME: &str = "csi.lockstep.dev";

/// Answers the Identity RPCs.
#[derive(Debug)]
pub(crate) struct Identity {
    node_id: Option<String>,
    daemons: Arc<Daemons>,
    controller: bool,
    /// What the last probe found, so that only changes are logged.
    last_probe: Mutex<Option<bool>>,
}

impl Identity {
    /// `controller`: volumes are made through the same socket.
    pub(crate) fn new(node_id: Option<String>, daemons: Arc<Daemons>, controller: bool) -> Self {
        Self { node_id, daemons, controller, last_probe: Mutex::default() }
    }

    /// Whether volumes can be made and used: the daemon answers, and has what it needs.
    async fn find_out(&self) -> Result<(), String> {
        let node = self.daemons.node().await.map_err(|status| status.message().to_owned())?;
        if node.ready { Ok(()) } else { Err(node.not_ready_reason) }
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

fn capability(service: service::Type) -> PluginCapability {
    let r#type = i32::from(service);
    PluginCapability { r#type: Some(Type::Service(Service { r#type })) }
}

#[async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let node = self.node_id.iter().map(|node| ("node".to_owned(), node.clone()));
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::from_iter(node),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let online = VolumeExpansion { r#type: i32::from(volume_expansion::Type::Online) };
        let mut capabilities = vec![
            capability(service::Type::VolumeAccessibilityConstraints),
            PluginCapability { r#type: Some(Type::VolumeExpansion(online)) },
        ];
        if self.controller {
            capabilities.push(capability(service::Type::ControllerService));
        }
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let found = self.find_out().await;
        self.log_change(&found);
        Ok(Response::new(ProbeResponse { ready: Some(found.is_ok()) }))
    }
}
