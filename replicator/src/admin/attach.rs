//! Attaching: which node serves a volume.

use std::time::{Duration, Instant};

use lockstep_core::id::VolumeId;
use lockstep_core::primary::Phase;
use lockstep_proto::v1;
use tokio::sync::watch;
use tonic::Status;

use super::catalog::{Stage, VolumeObject};
use super::liveness::{LOOK_LIMIT, Liveness};
use super::peers::{at, pass_on, within};
use super::{Admin, devices, names, refuse};
use crate::engine::{EngineError, VolumeHandle};

/// How long an attachment is waited for if the caller does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks at whether another primary is alive.
const LIVENESS_PAUSE: Duration = Duration::from_millis(100);
/// What passing a call on may add to its time.
const HOP_LIMIT: Duration = Duration::from_secs(5);
/// How long an open volume's door may take to open.
const DOOR_LIMIT: Duration = Duration::from_secs(5);

/// How long an attachment that was taken over is shown.
const FENCED_SHOWN: Duration = Duration::from_secs(300);

/// How long the node of a primary may take to say that it lives: at the first look, and at others.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnWord {
    pub(super) first: Duration,
    pub(super) later: Duration,
}

const OWN_WORD: OwnWord = OwnWord { first: LOOK_LIMIT, later: LOOK_LIMIT };

/// What became of the door of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DoorState {
    /// The volume is not served yet.
    Waiting,
    /// The door is open.
    Open,
    /// It could not be opened; says why.
    Failed(String),
    /// The attachment is over.
    Closed,
}

/// A volume that is or was attached here, until it is detached.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) name: String,
    handle: VolumeHandle,
    door: watch::Receiver<DoorState>,
    standing: Standing,
}

/// What callers were told of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody has asked for it: it was taken from a lost node, and any node may take it.
    Spare,
    /// Nobody has been told yet that it succeeded.
    Asked,
    /// Somebody has.
    Promised,
    /// Nobody was, and nobody will be: it is being ended.
    Withdrawn,
}

/// Whether nothing more comes after this phase.
pub(super) fn is_over(phase: Phase) -> bool {
    matches!(phase, Phase::Closed | Phase::Fenced)
}

/// The refusal for a volume that somebody else detaches.
fn detached_meanwhile() -> Status {
    Status::aborted("it was detached at the same time; try again")
}

/// The refusal for a volume that is not served, in words that name it as people do.
fn not_served(name: &str, error: &EngineError) -> Status {
    match error {
        EngineError::Fenced { by, .. } => {
            let by = by.as_ref().map(|node| format!(" by node {node}")).unwrap_or_default();
            Status::failed_precondition(format!(
                "volume {name} was taken over{by} at the same time; attach it again if it is \
                 still wanted here"
            ))
        }
        EngineError::AttachTimeout { waited_ms, why, .. } => Status::deadline_exceeded(format!(
            "volume {name} is not served after {waited_ms} ms: {why}; the attempt goes on, look \
             at `lockstep volume show {name}`"
        )),
        other => refuse::engine(other),
    }
}

impl Admin {
    /// Makes a node the primary of a volume, and waits until it serves it.
    pub(super) async fn attach(
        &self,
        request: v1::AttachRequest,
    ) -> Result<v1::AttachResponse, Status> {
        names::volume_name(&request.name)?;
        let wait = match request.wait_ms {
            0 => DEFAULT_WAIT,
            ms => Duration::from_millis(ms.min(3_600_000)),
        };
        let node = match request.node.as_deref() {
            None | Some("") => self.inner.node.clone(),
            Some(name) => names::node(name)?,
        };
        if node == self.inner.node {
            return self.attach_here(&request, wait).await;
        }
        let object = self.inner.catalog.known_node(&node).await?;
        let request = v1::AttachRequest { node: Some(node.to_string()), ..request };
        let limit = wait + HOP_LIMIT;
        let answer = within(limit, async {
            let mut client = self.inner.peers.client(&object)?;
            Ok(client.attach(pass_on(request, limit)).await?.into_inner())
        });
        answer.await.map_err(|status| at(&node, &status))
    }

    async fn attach_here(
        &self,
        request: &v1::AttachRequest,
        wait: Duration,
    ) -> Result<v1::AttachResponse, Status> {
        let name = request.name.as_str();
        let deadline = Instant::now() + wait;
        let volume = self.ready_volume(name).await?;
        if !request.uid.is_empty() && names::uid(&request.uid)? != volume.uid {
            return Err(Status::not_found(format!(
                "there is no volume {name} of uid {}: the one there is now is {}",
                request.uid, volume.uid
            )));
        }
        let device = request.device.as_ref().map(|d| devices::wanted(&volume, d)).transpose()?;
        let served_here = || {
            let attached = self.inner.engine.attached(volume.uid);
            attached.is_some_and(|handle| !is_over(*handle.phase().borrow()))
        };
        if !served_here() && !request.force {
            self.wait_until_free(&volume, deadline, OWN_WORD).await?;
        }
        let (handle, mut door) = self.claim(&volume, Standing::Asked)?;
        // A little is always given, so that a claim that took the whole wait can still be told.
        let left = deadline.saturating_duration_since(Instant::now()).max(LIVENESS_PAUSE);
        handle.served(left).await.map_err(|error| not_served(name, &error))?;
        let opened = door.wait_for(|state| *state != DoorState::Waiting);
        let state = match tokio::time::timeout(DOOR_LIMIT, opened).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => DoorState::Closed,
            Err(_) => DoorState::Waiting,
        };
        match state {
            DoorState::Open => {
                if let Err(refusal) = self.open_device(&volume, &handle, device.as_ref()).await {
                    return Err(self.withdraw(&volume, &handle, refusal).await);
                }
                self.promise(&handle)?;
                self.attached_here(volume.uid).await
            }
            DoorState::Failed(why) => {
                let refusal = Status::internal(format!("no client can reach volume {name}: {why}"));
                Err(self.withdraw(&volume, &handle, refusal).await)
            }
            DoorState::Waiting | DoorState::Closed => {
                Err(not_served(name, &EngineError::Fenced { volume: volume.uid, by: None }))
            }
        }
    }

    /// Makes this node the primary of a volume for something else than its use. Nobody is told that
    /// it is attached; [`Self::let_go`] ends it.
    pub(super) async fn attach_for_moment(
        &self,
        volume: &VolumeObject,
        wait: Duration,
    ) -> Result<VolumeHandle, Status> {
        let deadline = Instant::now() + wait;
        self.leave_to_last_node(volume).await?;
        self.wait_until_free(volume, deadline, OWN_WORD).await?;
        let (handle, _) = self.claim(volume, Standing::Asked)?;
        let left = deadline.saturating_duration_since(Instant::now()).max(LIVENESS_PAUSE);
        if let Err(error) = handle.served(left).await {
            let refusal = match &error {
                // Perhaps also for a moment only: whoever asked comes again.
                EngineError::Fenced { .. } => Status::aborted(format!(
                    "volume {} was attached elsewhere at the same time; try again",
                    volume.name
                )),
                _ => not_served(&volume.name, &error),
            };
            return Err(self.withdraw(volume, &handle, refusal).await);
        }
        Ok(handle)
    }

    /// Ends an attachment for a moment, unless somebody has been told meanwhile that the volume is
    /// attached.
    pub(super) async fn let_go(&self, volume: &VolumeObject, handle: &VolumeHandle) {
        self.withdraw(volume, handle, detached_meanwhile()).await;
    }

    /// The volume, if it can be attached.
    pub(super) async fn ready_volume(&self, name: &str) -> Result<VolumeObject, Status> {
        let found = self.inner.catalog.volume(name).await?;
        let volume = found.ok_or_else(|| refuse::no_volume(name))?.value;
        let why = match volume.stage {
            Stage::Ready => return Ok(volume),
            Stage::Creating => "is still being made; create it again, with the same values",
            Stage::Deleting => "is being deleted",
        };
        Err(Status::failed_precondition(format!("volume {name} {why}")))
    }

    /// Waits until no live primary would be robbed (rule A4). At each look its own node has
    /// `own_word` to say that it lives.
    pub(super) async fn wait_until_free(
        &self,
        volume: &VolumeObject,
        deadline: Instant,
        own_word: OwnWord,
    ) -> Result<(), Status> {
        let (name, mut limit) = (&volume.name, own_word.first);
        loop {
            let Some(record) = self.inner.catalog.record(volume.uid).await? else {
                let why = format!("volume {name} has no record; restore the record store");
                return Err(Status::failed_precondition(why));
            };
            let own = record.value.primary.as_ref().is_some_and(|p| p.node == self.inner.node);
            if own && self.is_waited_for(volume.uid) {
                // Nobody is robbed: it is for the same device.
                return Ok(());
            }
            let refusal = match self.liveness(&record.value, limit).await? {
                Liveness::None | Liveness::Gone => return Ok(()),
                Liveness::Live(why) => Status::failed_precondition(format!(
                    "volume {name} is attached elsewhere: {why}; detach it there first, or force \
                     it, which makes all I/O there fail"
                )),
                Liveness::Unknown(why) => Status::unavailable(format!(
                    "volume {name} may be attached elsewhere: {why}; bring one of them back, or \
                     force it"
                )),
            };
            if Instant::now() + LIVENESS_PAUSE >= deadline {
                return Err(refusal);
            }
            tokio::time::sleep(LIVENESS_PAUSE).await;
            limit = own_word.later;
        }
    }

    /// Starts the attachment, or finds the one that is there.
    pub(super) fn claim(
        &self,
        volume: &VolumeObject,
        standing: Standing,
    ) -> Result<(VolumeHandle, watch::Receiver<DoorState>), Status> {
        let write_through = names::write_through(&volume.write_cache)?;
        let mut attachments = self.attachments();
        let handle = self.inner.engine.attach(volume.uid).map_err(|e| refuse::engine(&e))?;
        handle.set_write_through(write_through);
        handle.set_limits(volume.limits.into());
        if let Some(there) = attachments.get_mut(&volume.uid)
            && there.handle.instance() == handle.instance()
        {
            match there.standing {
                Standing::Withdrawn => return Err(detached_meanwhile()),
                Standing::Spare => there.standing = standing,
                Standing::Asked | Standing::Promised => {}
            }
            return Ok((handle, there.door.clone()));
        }
        let (tell, door) = watch::channel(DoorState::Waiting);
        let name = volume.name.clone();
        let attachment =
            Attachment { name: name.clone(), handle: handle.clone(), door: door.clone(), standing };
        attachments.insert(volume.uid, attachment);
        let admin = self.clone();
        let kept = handle.clone();
        self.inner.tasks.spawn(async move { admin.keep_door(name, kept, tell).await });
        Ok((handle, door))
    }

    /// Notes that somebody is told now that the volume is attached.
    fn promise(&self, handle: &VolumeHandle) -> Result<(), Status> {
        let promised = self.stand(handle, |standing| match standing {
            Standing::Withdrawn => None,
            Standing::Spare | Standing::Asked | Standing::Promised => Some(Standing::Promised),
        });
        promised.then_some(()).ok_or_else(detached_meanwhile)
    }

    /// Whether the attachment of a volume waits for a node that wants it.
    pub(super) fn is_spare(&self, volume: VolumeId) -> bool {
        self.attachments().get(&volume).is_some_and(|there| there.standing == Standing::Spare)
    }

    /// Changes the standing of an attachment as `change` says. Returns whether it did.
    pub(super) fn stand(
        &self,
        handle: &VolumeHandle,
        change: impl FnOnce(Standing) -> Option<Standing>,
    ) -> bool {
        let mut attachments = self.attachments();
        let there = attachments.get_mut(&handle.volume());
        let there = there.filter(|there| there.handle.instance() == handle.instance());
        let Some(there) = there else { return false };
        let Some(changed) = change(there.standing) else { return false };
        there.standing = changed;
        true
    }

    /// Ends an attachment again whose device was refused, so that a call has all it asked for or
    /// nothing: unless somebody has it already, or has or is to get back a device. Returns what the
    /// caller is told.
    async fn withdraw(
        &self,
        volume: &VolumeObject,
        handle: &VolumeHandle,
        refusal: Status,
    ) -> Status {
        let of_no_use = |standing| (standing == Standing::Asked).then_some(Standing::Withdrawn);
        if is_over(*handle.phase().borrow())
            || self.inner.devices.is_there(volume.uid)
            || !self.stand(handle, of_no_use)
        {
            return refusal;
        }
        let (admin, ended) = (self.clone(), volume.clone());
        // It goes on if the caller goes away.
        let ended = tokio::spawn(async move { admin.detach_here(&ended, false).await }).await;
        let why = match ended {
            Ok(Ok(_)) => return refusal,
            Ok(Err(why)) => why.message().to_owned(),
            Err(broken) => broken.to_string(),
        };
        self.stand(handle, |_| Some(Standing::Promised));
        let told = format!("{}; and it stays attached: {why}", refusal.message());
        Status::new(refusal.code(), told)
    }

    /// Forgets an attachment, unless another one is in its place already.
    pub(super) fn forget_attachment(&self, handle: &VolumeHandle) {
        let same = |there: &Attachment| there.handle.instance() == handle.instance();
        let mut attachments = self.attachments();
        if attachments.get(&handle.volume()).is_some_and(same) {
            attachments.remove(&handle.volume());
        }
    }

    /// Opens the door once the volume is served and closes it when the attachment is over.
    async fn keep_door(self, name: String, handle: VolumeHandle, tell: watch::Sender<DoorState>) {
        let mut phase = handle.phase();
        let serves = |phase: &Phase| matches!(phase, Phase::Active | Phase::Suspended);
        let reached = phase.wait_for(|p| serves(p) || is_over(*p)).await.map(|p| *p);
        if let Ok(reached) = reached
            && serves(&reached)
        {
            // An earlier attachment's door may still be closing.
            self.inner.doors.close(handle.volume()).await;
            match self.inner.doors.open(&name, &handle) {
                Ok(()) => {
                    tracing::info!(volume = name, "attached");
                    tell.send_replace(DoorState::Open);
                }
                Err(why) => {
                    tracing::error!(volume = name, why, "cannot open the door");
                    tell.send_replace(DoorState::Failed(why));
                }
            }
            let _ = phase.wait_for(|p| is_over(*p)).await;
        }
        let ended = *phase.borrow();
        // Whoever wants a spare one takes it.
        if ended == Phase::Fenced && !self.is_spare(handle.volume()) {
            tracing::warn!(volume = name, "taken over or failed; its I/O fails from now on");
        }
        if !self.is_replaced(&handle) {
            self.inner.devices.fail(handle.volume()).await;
            self.inner.doors.close(handle.volume()).await;
        }
        tell.send_replace(DoorState::Closed);
        if ended == Phase::Fenced {
            self.forget_fenced(&handle).await;
        }
    }

    /// Lets go of an attachment that was taken over, after people had time to see it.
    async fn forget_fenced(&self, handle: &VolumeHandle) {
        tokio::select! {
            biased;
            () = self.inner.stop.cancelled() => return,
            () = tokio::time::sleep(FENCED_SHOWN) => {}
        }
        let engine = &self.inner.engine;
        let there = engine.attached(handle.volume());
        if there.is_some_and(|there| there.instance() == handle.instance()) {
            // Fails only if it was detached this very moment.
            let _ = engine.detach(handle.volume(), true, FENCED_SHOWN).await;
            self.forget_attachment(handle);
        }
    }

    /// Whether the volume was attached here once more since.
    fn is_replaced(&self, handle: &VolumeHandle) -> bool {
        let attachments = self.attachments();
        let there = attachments.get(&handle.volume());
        there.is_some_and(|there| there.handle.instance() != handle.instance())
    }

    /// The answer for a volume that is attached here.
    async fn attached_here(&self, volume: VolumeId) -> Result<v1::AttachResponse, Status> {
        let door = self.inner.doors.find(volume);
        let status = self.inner.engine.primary_status(volume).await;
        let (Some(door), Some(status)) = (door, status) else {
            return Err(detached_meanwhile());
        };
        Ok(v1::AttachResponse {
            nbd_uri: door.uri,
            nbd_uri_tcp: door.uri_tcp,
            node: self.inner.node.to_string(),
            epoch: status.core.epoch.0,
            device: self.device(volume),
        })
    }

    /// The name of a volume that is or was attached here.
    pub(super) fn attached_name(&self, volume: VolumeId) -> Option<String> {
        self.attachments().get(&volume).map(|attachment| attachment.name.clone())
    }
}
