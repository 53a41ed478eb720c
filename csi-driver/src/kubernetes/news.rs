//! What people are told of a volume by events on its claim, and when: that copies are missing, that
//! writes wait, that all is well again. What was told last stands in the volume's object, so that
//! it is told once, whichever controller looks.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use lockstep_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long something has to last to be told: that a volume is attached, or a daemon started again,
/// is over sooner.
const LASTS: Duration = Duration::from_secs(5);
/// The condition that has what was told last, as its reason.
const TOLD: &str = "Told";
/// The condition of a volume of which every block can be read.
const INTACT: &str = "Intact";

/// How a volume is for those who use it, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// It has all copies.
    #[default]
    Redundant,
    /// It has fewer, which is being mended, or will be.
    CopiesMissing,
    /// It has fewer, and a new one cannot be made.
    NoReplacement,
    /// Too few copies are reached for a write.
    WritesWait,
    /// It cannot be used.
    Unavailable,
}

impl Level {
    const ALL: [Self; 5] = [
        Self::Redundant,
        Self::CopiesMissing,
        Self::NoReplacement,
        Self::WritesWait,
        Self::Unavailable,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Redundant => "Redundant",
            Self::CopiesMissing => "CopiesMissing",
            Self::NoReplacement => "NoReplacement",
            Self::WritesWait => "WritesWait",
            Self::Unavailable => "Unavailable",
        }
    }

    /// What a volume is; nothing while it is being made or removed.
    fn of(volume: &v1::VolumeStatus) -> Option<Self> {
        let is_whole =
            in_sync(volume).count() >= usize::try_from(volume.repl).unwrap_or(usize::MAX);
        match (volume.stage(), volume.health()) {
            (v1::VolumeStage::Creating | v1::VolumeStage::Deleting, _)
            | (_, v1::Health::Unspecified) => None,
            (_, v1::Health::Unavailable) => Some(Self::Unavailable),
            (_, v1::Health::BelowMin) => Some(Self::WritesWait),
            (_, v1::Health::Healthy | v1::Health::Degraded) if is_whole => Some(Self::Redundant),
            _ if volume.copies_blocked => Some(Self::NoReplacement),
            _ => Some(Self::CopiesMissing),
        }
    }

    /// What was told last; that all is well, if nothing was.
    fn told(conditions: &[Condition]) -> Self {
        let reason = conditions.iter().find(|c| c.type_ == TOLD).map(|c| c.reason.as_str());
        let level = reason.and_then(|reason| Self::ALL.iter().find(|l| l.name() == reason));
        level.copied().unwrap_or_default()
    }
}

/// The copies with all data that are reached.
pub(super) fn in_sync(volume: &v1::VolumeStatus) -> impl Iterator<Item = &v1::VolumeReplica> {
    let is_so = |copy: &&v1::VolumeReplica| {
        copy.state == i32::from(v1::ReplicaState::InSync) && copy.connected
    };
    volume.replicas.iter().filter(is_so)
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) is_bad: bool,
    pub(super) reason: &'static str,
    pub(super) note: String,
}

/// Since when volumes are as they are. A controller that is new begins anew, since the clocks of
/// two are not compared.
#[derive(Debug, Default)]
pub(super) struct Patience(BTreeMap<String, (Level, Instant)>);

impl Patience {
    /// Whether a volume has been so for long enough.
    fn lasts(&mut self, uid: &str, level: Level, now: Instant) -> bool {
        let seen = self.0.entry(uid.to_owned()).or_insert((level, now));
        if seen.0 != level {
            *seen = (level, now);
        }
        now.duration_since(seen.1) >= LASTS
    }

    /// Forgets all volumes but these.
    pub(super) fn keep(&mut self, uids: &BTreeSet<&str>) {
        self.0.retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// The conditions of a volume that have to do with what is told, and what is to be told now.
    pub(super) fn news(
        &mut self,
        volume: &v1::VolumeStatus,
        before: &[Condition],
        (time, now): (Timestamp, Instant),
    ) -> (Vec<Condition>, Vec<News>) {
        let (intact, damage) = intact(volume, before, time);
        let mut news: Vec<News> = damage.into_iter().collect();
        let told = before.iter().find(|c| c.type_ == TOLD).cloned();
        let last = Level::told(before);
        let level = Level::of(volume).filter(|level| self.lasts(&volume.uid, *level, now));
        let fresh = level.filter(|level| *level != last).map(|level| {
            let what = change(volume, last, level);
            let told = condition(TOLD, "True", level.name(), &what.note, time);
            news.push(what);
            told
        });
        ([Some(intact), fresh.or(told)].into_iter().flatten().collect(), news)
    }
}

/// What is told of a change.
fn change(volume: &v1::VolumeStatus, last: Level, level: Level) -> News {
    let (name, repl, why) = (&volume.name, volume.repl, &volume.health_reason);
    let copies = format!("{} of {repl} copies in sync", in_sync(volume).count());
    let goes_on = last >= Level::WritesWait && level < Level::WritesWait;
    let (reason, note) = match level {
        Level::Redundant => {
            (level.name(), format!("volume {name} has all {repl} copies in sync again"))
        }
        Level::CopiesMissing | Level::NoReplacement if goes_on => {
            ("WritesGoOn", format!("volume {name} can be used again, with {copies}: {why}"))
        }
        Level::CopiesMissing | Level::NoReplacement => {
            (level.name(), format!("volume {name} has {copies}: {why}"))
        }
        Level::WritesWait => (level.name(), format!("writes to volume {name} wait: {why}")),
        Level::Unavailable => (level.name(), format!("volume {name} cannot be used: {why}")),
    };
    News { is_bad: level > last || level >= Level::WritesWait, reason, note }
}

/// Whether all blocks can be read, as far as that was found out since the volume was attached; and
/// what is to be told of it.
fn intact(
    volume: &v1::VolumeStatus,
    before: &[Condition],
    time: Timestamp,
) -> (Condition, Option<News>) {
    let before = before.iter().find(|c| c.type_ == INTACT);
    let counters = volume.counters.unwrap_or_default();
    let (lost, differ) = (counters.unreadable_blocks, counters.diverged_blocks);
    if lost + differ == 0 {
        let same = |c: &&Condition| volume.counters.is_none() || c.status == "True";
        let found = || condition(INTACT, "True", "NothingFound", "", time);
        return (before.filter(same).cloned().unwrap_or_else(found), None);
    }
    if let Some(known) = before.filter(|c| c.status == "False") {
        return (known.clone(), None);
    }
    let name = &volume.name;
    let note = format!(
        "volume {name} has damaged blocks: {lost} times no copy could give one, {differ} differ \
         between copies. What cannot be read fails until it is written; see \
         `lockstep volume scrub {name}`"
    );
    let found = condition(INTACT, "False", "DamagedBlocks", &note, time);
    (found, Some(News { is_bad: true, reason: "DamagedBlocks", note }))
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, time: Timestamp) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(time),
        observed_generation: None,
    }
}

#[cfg(test)]
mod tests;
