//! Detaching: the volume is finished with, wherever it is attached.

use std::time::Duration;

use lockstep_core::record::{PrimaryRef, Record};
use lockstep_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use super::attach::is_over;
use super::catalog::{Stored, VolumeObject};
use super::peers::{DO_LIMIT, pass_on, plain, within};
use super::{Admin, names, refuse};
use crate::engine::{EngineError, VolumeHandle};

/// How long a volume may take to drain, flush and close.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// The same if it was forced: then it is cut off.
const FORCED_CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// A client that has just left may still be counted for a moment.
const CLIENTS_LIMIT: Duration = Duration::from_secs(1);
const CLIENTS_PAUSE: Duration = Duration::from_millis(20);

impl Admin {
    /// Detaches a volume. Returns whether it was attached.
    pub(super) async fn detach(
        &self,
        request: v1::DetachRequest,
        passed_on: bool,
    ) -> Result<bool, Status> {
        let name = names::volume_name(&request.name)?;
        let found = self.inner.catalog.volume(name).await?;
        let volume = found.ok_or_else(|| refuse::no_volume(name))?.value;
        let only = request.only_node.as_deref().map(names::node).transpose()?;
        if only.is_some() && self.is_spare(volume.uid) && !self.inner.devices.is_there(volume.uid) {
            // Whoever clears up after an earlier attachment here has no part in this one.
            return Ok(false);
        }
        let here = only.as_ref().is_none_or(|node| *node == self.inner.node);
        let was_here = here && self.detach_here(&volume, request.force).await?;
        let Some(record) = self.inner.catalog.record(volume.uid).await? else {
            return Ok(was_here);
        };
        let Some(primary) = record.value.primary.clone() else { return Ok(was_here) };
        if only.is_some_and(|node| node != primary.node) {
            return Ok(was_here);
        }
        if primary.node == self.inner.node {
            // It names a primary of this node, and this node has none: a former process's, or one
            // that was cut off.
            self.take_out(&record).await?;
            return Ok(true);
        }
        if was_here {
            return Ok(true);
        }
        if passed_on {
            return Err(Status::aborted(format!(
                "volume {name} has just moved to {}; try again",
                primary.node
            )));
        }
        self.detach_there(&volume, &record, &primary, request.force).await
    }

    /// Ends the attachment on this node. Returns whether there was one that was not over.
    pub(super) async fn detach_here(
        &self,
        volume: &VolumeObject,
        force: bool,
    ) -> Result<bool, Status> {
        let attached = || self.inner.engine.attached(volume.uid);
        let is_over = |handle: &VolumeHandle| is_over(*handle.phase().borrow());
        // First, and even if it is not attached: the device that the daemon before this one left
        // would have the volume attached again.
        self.close_device(volume, force || attached().is_some_and(|h| is_over(&h))).await?;
        let Some(handle) = attached() else { return Ok(false) };
        let over = is_over(&handle);
        if !over && !force {
            self.wait_until_left(volume).await?;
        }
        self.inner.doors.close(volume.uid).await;
        let limit = if force { FORCED_CLOSE_LIMIT } else { CLOSE_LIMIT };
        let mut closed = self.inner.engine.detach(volume.uid, false, limit).await;
        if force && matches!(closed, Err(EngineError::DetachTimeout { .. })) {
            tracing::warn!(volume = volume.name, "cut off: it could not be closed in time");
            closed = self.inner.engine.detach(volume.uid, true, limit).await;
        }
        match closed {
            Ok(()) | Err(EngineError::NotAttached(_)) => {}
            Err(error) => return Err(refuse::engine(&error)),
        }
        self.forget_attachment(&handle);
        tracing::info!(volume = volume.name, "detached");
        Ok(!over)
    }

    /// Waits a moment for the last clients to leave.
    async fn wait_until_left(&self, volume: &VolumeObject) -> Result<(), Status> {
        let clients = || self.inner.doors.find(volume.uid).map_or(0, |door| door.clients);
        let none_left = async {
            while clients() > 0 {
                tokio::time::sleep(CLIENTS_PAUSE).await;
            }
        };
        tokio::time::timeout(CLIENTS_LIMIT, none_left).await.map_err(|_| {
            Status::failed_precondition(format!(
                "volume {} has {} client(s) connected on node {}; end them first, or force it",
                volume.name,
                clients(),
                self.inner.node
            ))
        })
    }

    /// Asks the node that has the volume attached to detach it.
    async fn detach_there(
        &self,
        volume: &VolumeObject,
        record: &Stored<Record>,
        primary: &PrimaryRef,
        force: bool,
    ) -> Result<bool, Status> {
        let name = volume.name.clone();
        let answer = match self.inner.catalog.node(&primary.node).await? {
            None => Err(Status::unavailable("the record store does not know it")),
            Some(node) => {
                within(DO_LIMIT, async {
                    let mut client = self.inner.peers.client(&node)?;
                    let request = v1::DetachRequest { name, force, only_node: None };
                    let answer = client.detach(pass_on(request, DO_LIMIT)).await?;
                    Ok(answer.into_inner().was_attached)
                })
                .await
            }
        };
        match answer {
            Ok(was_attached) => Ok(was_attached),
            Err(status) if status.code() != Code::Unavailable => {
                Err(super::peers::at(&primary.node, &status))
            }
            Err(_) if force => {
                tracing::warn!(volume = volume.name, node = %primary.node, "taken out by force");
                self.take_out(record).await?;
                Ok(true)
            }
            Err(status) => Err(Status::unavailable(format!(
                "volume {} is attached on node {}, which cannot be asked to detach it: {}; bring \
                 it back, attach the volume elsewhere, or force it",
                volume.name,
                primary.node,
                plain(&status)
            ))),
        }
    }

    /// Takes a primary out of the record that cannot do so itself. The volume is not clean, and
    /// is recovered when it is next attached.
    pub(super) async fn take_out(&self, record: &Stored<Record>) -> Result<(), Status> {
        let next = Record { primary: None, txn: Uuid::new_v4(), ..record.value.clone() };
        self.inner.catalog.put_record(Some(record.revision), &next).await
    }
}
