//! Why a volume is as it is, in plain words: what is wrong, what happens about it by itself, and
//! what a person can do. Every state that is not plain health has a sentence of its own.

mod words;

#[cfg(test)]
mod tests;

use lockstep_proto::v1;

pub(super) use words::{Finding, sentence};

/// What is known of a volume.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    /// Its copies, its phase, what it is to have.
    pub(super) status: &'a v1::VolumeStatus,
    /// What its primary tells, if its daemon answers and has it.
    pub(super) primary: Option<&'a v1::LocalPrimary>,
    /// How far its making or unmaking is, if that is not over.
    pub(super) unfinished: Option<Unfinished>,
    /// Has it a record?
    pub(super) recorded: bool,
    /// Fewest copies of a write that its owner wants.
    pub(super) wanted_min: u32,
    /// Nodes that are being emptied.
    pub(super) emptied: &'a [String],
    /// What a person has to decide or to know, until it is acknowledged.
    pub(super) warning: Option<String>,
    /// Nobody may attach it before that.
    pub(super) barred: bool,
    /// How long a node may be away before its copies are built anew.
    pub(super) rebuild_after_ms: u64,
}

/// A volume that is not there yet, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// It is being made.
    Creating,
    /// It is being removed.
    Deleting,
}

/// Something about a volume that a person may want to know.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble<'a> {
    /// It is being made or removed.
    Unfinished(Unfinished),
    /// The record store has lost its record.
    NoRecord,
    /// Its primary stopped for good.
    Fenced { node: &'a str, why: &'a str },
    /// Its primary found that the record store was put back to an older state.
    RecordPutBack { node: &'a str, why: &'a str },
    /// The record store was put back, and somebody has to decide.
    Barred,
    /// It was recovered by force.
    Forced,
    /// No copy with all data can be reached.
    NoCopy,
    /// Fewer copies than each write needs.
    BelowMin { reached: usize },
    /// Enough copies, but writes wait.
    Waits { node: &'a str, why: &'a str },
    /// The node that served it does not.
    NotServed { node: &'a str },
    /// A node is about to serve it.
    Claiming { node: &'a str, why: &'a str },
    /// A node makes its copies agree.
    Recovering { node: &'a str, why: &'a str },
    /// It is being detached.
    Draining { node: &'a str, why: &'a str },
    /// A copy whose files or disk failed.
    Faulted { copy: &'a v1::VolumeReplica, fault: &'a str },
    /// A copy that was put back to an older image.
    PutBack { copy: &'a v1::VolumeReplica },
    /// A copy whose node has lost its files.
    Gone { copy: &'a v1::VolumeReplica },
    /// A copy that is not reached.
    Unreached { copy: &'a v1::VolumeReplica },
    /// A copy that gets what it lacks.
    Resyncing { copy: &'a v1::VolumeReplica, progress: v1::Resync },
    /// A copy that waits for that.
    Waiting { copy: &'a v1::VolumeReplica },
    /// A copy that is to be removed.
    Leaving { copy: &'a v1::VolumeReplica },
    /// Fewer copies are on record than wanted.
    TooFew,
    /// More copies are on record than wanted.
    TooMany,
    /// A node with a copy is being emptied.
    Emptied { node: &'a str },
    /// A higher minimum is wanted than is in force.
    MinimumLater,
}

impl Trouble<'_> {
    /// How bad it is.
    pub(super) fn health(&self) -> v1::Health {
        match self {
            Self::Unfinished(_)
            | Self::NoRecord
            | Self::Fenced { .. }
            | Self::RecordPutBack { .. }
            | Self::Barred
            | Self::NoCopy => v1::Health::Unavailable,
            Self::BelowMin { .. } | Self::Waits { .. } => v1::Health::BelowMin,
            Self::NotServed { .. }
            | Self::Claiming { .. }
            | Self::Recovering { .. }
            | Self::Faulted { .. }
            | Self::PutBack { .. }
            | Self::Gone { .. }
            | Self::Unreached { .. }
            | Self::Resyncing { .. }
            | Self::Waiting { .. }
            | Self::Leaving { .. }
            | Self::TooFew
            | Self::TooMany => v1::Health::Degraded,
            Self::Forced | Self::Draining { .. } | Self::Emptied { .. } | Self::MinimumLater => {
                v1::Health::Healthy
            }
        }
    }
}

fn is(copy: &v1::VolumeReplica, state: v1::ReplicaState) -> bool {
    copy.state == i32::from(state)
}

impl<'a> Facts<'a> {
    /// The volume's health, and why: the worst first.
    pub(super) fn explain(&self) -> (v1::Health, Vec<Finding>) {
        let mut troubles = self.troubles();
        troubles.sort_by_key(|trouble| core::cmp::Reverse(i32::from(trouble.health())));
        let health = troubles.first().map_or(v1::Health::Healthy, Trouble::health);
        let findings = troubles.iter().map(|trouble| self.finding(trouble)).collect();
        (health, findings)
    }

    fn in_sync(&self) -> impl Iterator<Item = &'a v1::VolumeReplica> {
        self.status.replicas.iter().filter(|copy| is(copy, v1::ReplicaState::InSync))
    }

    fn troubles(&self) -> Vec<Trouble<'a>> {
        if let Some(unfinished) = self.unfinished {
            return vec![Trouble::Unfinished(unfinished)];
        }
        if !self.recorded {
            return vec![Trouble::NoRecord];
        }
        let mut troubles = Vec::new();
        if self.warning.is_some() {
            troubles.push(if self.barred { Trouble::Barred } else { Trouble::Forced });
        }
        let reached = self.in_sync().filter(|copy| copy.connected).count();
        let fewest = usize::try_from(self.status.min_in_sync).unwrap_or(usize::MAX);
        let fenced = self.phase() == v1::AttachPhase::Fenced;
        if !fenced && reached == 0 {
            troubles.push(Trouble::NoCopy);
        } else if !fenced && reached < fewest {
            troubles.push(Trouble::BelowMin { reached });
        }
        troubles.extend(self.attachment(reached >= fewest));
        troubles.extend(self.status.replicas.iter().filter_map(trouble_of));
        let copies = self.status.replicas.len();
        let wanted = usize::try_from(self.status.repl).unwrap_or(usize::MAX);
        troubles.extend((copies < wanted).then_some(Trouble::TooFew));
        troubles.extend((copies > wanted).then_some(Trouble::TooMany));
        let has_copy = |node: &&String| self.status.replicas.iter().any(|r| r.node == **node);
        let emptied = self.emptied.iter().filter(has_copy);
        troubles.extend(emptied.map(|node| Trouble::Emptied { node }));
        let later = self.wanted_min > self.status.min_in_sync;
        troubles.extend(later.then_some(Trouble::MinimumLater));
        troubles
    }

    fn phase(&self) -> v1::AttachPhase {
        v1::AttachPhase::try_from(self.status.phase).unwrap_or(v1::AttachPhase::Unspecified)
    }

    /// What is to be said of the volume's attachment.
    fn attachment(&self, enough: bool) -> Option<Trouble<'a>> {
        let node = self.status.primary_node.as_deref()?;
        let why = self.primary.map_or("", |primary| primary.phase_reason.as_str());
        match self.phase() {
            v1::AttachPhase::Active | v1::AttachPhase::Detached => None,
            v1::AttachPhase::Unspecified => Some(Trouble::NotServed { node }),
            v1::AttachPhase::Claiming => Some(Trouble::Claiming { node, why }),
            v1::AttachPhase::Recovering => Some(Trouble::Recovering { node, why }),
            v1::AttachPhase::Suspended => enough.then_some(Trouble::Waits { node, why }),
            v1::AttachPhase::Draining => Some(Trouble::Draining { node, why }),
            v1::AttachPhase::Fenced if self.primary.is_some_and(|p| p.record_put_back) => {
                Some(Trouble::RecordPutBack { node, why })
            }
            v1::AttachPhase::Fenced => Some(Trouble::Fenced { node, why }),
        }
    }
}

/// What is to be said of one copy.
fn trouble_of(copy: &v1::VolumeReplica) -> Option<Trouble<'_>> {
    if let Some(progress) = copy.resync {
        return Some(Trouble::Resyncing { copy, progress });
    }
    let fault = copy.live.as_ref().map_or("", |live| live.fault.as_str());
    if !fault.is_empty() {
        return Some(Trouble::Faulted { copy, fault });
    }
    match v1::ReplicaState::try_from(copy.state) {
        Ok(v1::ReplicaState::Leaving) => Some(Trouble::Leaving { copy }),
        _ if copy.put_back => Some(Trouble::PutBack { copy }),
        _ if copy.gone && !copy.connected => Some(Trouble::Gone { copy }),
        _ if !copy.connected => Some(Trouble::Unreached { copy }),
        Ok(v1::ReplicaState::InSync) => None,
        Ok(v1::ReplicaState::New | v1::ReplicaState::Out | v1::ReplicaState::Unspecified)
        | Err(_) => Some(Trouble::Waiting { copy }),
    }
}
