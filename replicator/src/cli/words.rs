//! The words for enums: the same in tables and in JSON.

use lockstep_proto::v1::{AttachPhase, Device, Health, ReplicaRole, ReplicaState};

/// The word for an attachment's phase.
pub(super) fn phase(number: i32) -> &'static str {
    match AttachPhase::try_from(number) {
        Ok(AttachPhase::Detached) => "detached",
        Ok(AttachPhase::Claiming) => "claiming",
        Ok(AttachPhase::Recovering) => "recovering",
        Ok(AttachPhase::Active) => "active",
        Ok(AttachPhase::Suspended) => "suspended",
        Ok(AttachPhase::Draining) => "draining",
        Ok(AttachPhase::Fenced) => "fenced",
        Ok(AttachPhase::Unspecified) | Err(_) => "unknown",
    }
}

/// The word for a volume's health.
pub(super) fn health(number: i32) -> &'static str {
    match Health::try_from(number) {
        Ok(Health::Healthy) => "healthy",
        Ok(Health::Degraded) => "degraded",
        Ok(Health::BelowMin) => "below_min",
        Ok(Health::Unavailable) => "unavailable",
        Ok(Health::Unspecified) | Err(_) => "unknown",
    }
}

/// The word for a replica's place in the record.
pub(super) fn state(number: i32) -> &'static str {
    match ReplicaState::try_from(number) {
        Ok(ReplicaState::New) => "new",
        Ok(ReplicaState::InSync) => "in_sync",
        Ok(ReplicaState::Out) => "out",
        Ok(ReplicaState::Leaving) => "leaving",
        Ok(ReplicaState::Unspecified) | Err(_) => "unknown",
    }
}

/// A block device: where it is, and what it is.
pub(super) fn device(device: &Device) -> String {
    let mut text = format!("{} ({}, {}", device.path, device.kernel_path, device.door);
    if device.read_only {
        text.push_str(", read-only");
    }
    text.push(')');
    if !device.mount_dir.is_empty() {
        text.push_str(&format!(", mounted at {}", device.mount_dir));
    }
    text
}

/// The word for what a replica is doing.
pub(super) fn role(number: i32) -> &'static str {
    match ReplicaRole::try_from(number) {
        Ok(ReplicaRole::Idle) => "idle",
        Ok(ReplicaRole::Promised) => "promised",
        Ok(ReplicaRole::Member) => "member",
        Ok(ReplicaRole::Target) => "target",
        Ok(ReplicaRole::Faulted) => "faulted",
        Ok(ReplicaRole::Unspecified) | Err(_) => "unknown",
    }
}
