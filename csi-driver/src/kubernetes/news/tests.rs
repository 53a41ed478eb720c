use super::*;

fn volume(health: v1::Health, reached: usize) -> v1::VolumeStatus {
    let copy = |at: usize| v1::VolumeReplica {
        node: format!("n{at}"),
        state: v1::ReplicaState::InSync.into(),
        connected: at < reached,
        ..Default::default()
    };
    v1::VolumeStatus {
        name: "pvc-1".to_owned(),
        uid: "u".to_owned(),
        repl: 3,
        health: health.into(),
        health_reason: "why".to_owned(),
        stage: v1::VolumeStage::Ready.into(),
        replicas: (0..3).map(copy).collect(),
        ..Default::default()
    }
}

fn healthy() -> v1::VolumeStatus {
    volume(v1::Health::Healthy, 3)
}

fn degraded() -> v1::VolumeStatus {
    volume(v1::Health::Degraded, 2)
}

/// Controllers that look at a volume's object, one after the other.
struct Stage {
    patience: Patience,
    now: Instant,
    conditions: Vec<Condition>,
}

impl Stage {
    fn new() -> Self {
        Self { patience: Patience::default(), now: Instant::now(), conditions: Vec::new() }
    }

    fn look(&mut self, volume: &v1::VolumeStatus) -> Vec<News> {
        let time = (Timestamp::UNIX_EPOCH, self.now);
        let (conditions, news) = self.patience.news(volume, &self.conditions, time);
        self.conditions = conditions;
        news
    }

    /// What is told if a volume is so for as long as it takes, and for much longer.
    fn told(&mut self, volume: &v1::VolumeStatus) -> Vec<(&'static str, bool)> {
        let mut told = self.look(volume);
        for _ in 0..100 {
            self.now += LASTS / 10;
            told.extend(self.look(volume));
        }
        told.into_iter().map(|news| (news.reason, news.is_bad)).collect()
    }
}

#[test]
fn a_copy_lost_and_back_is_told_once_each() {
    let mut stage = Stage::new();
    assert_eq!(stage.told(&healthy()), []);
    assert_eq!(stage.told(&degraded()), [("CopiesMissing", true)]);
    assert_eq!(stage.told(&healthy()), [("Redundant", false)]);
    assert_eq!(stage.told(&healthy()), []);
}

#[test]
fn what_is_over_soon_is_not_told() {
    let mut stage = Stage::new();
    for _ in 0..100 {
        for volume in [degraded(), volume(v1::Health::Unavailable, 0), healthy()] {
            stage.now += LASTS - Duration::from_millis(1);
            assert_eq!(stage.look(&volume), []);
        }
    }
}

#[test]
fn another_controller_tells_nothing_again() {
    let mut stage = Stage::new();
    assert_eq!(stage.told(&degraded()).len(), 1);
    stage.patience = Patience::default();
    assert_eq!(stage.told(&degraded()), []);
    stage.patience = Patience::default();
    assert_eq!(stage.told(&healthy()), [("Redundant", false)]);
}

#[test]
fn worse_and_better_have_names_of_their_own() {
    let mut stage = Stage::new();
    let full = v1::VolumeStatus { copies_blocked: true, ..degraded() };
    let steps = [
        (degraded(), ("CopiesMissing", true)),
        (full.clone(), ("NoReplacement", true)),
        (volume(v1::Health::BelowMin, 1), ("WritesWait", true)),
        (volume(v1::Health::Unavailable, 0), ("Unavailable", true)),
        (volume(v1::Health::BelowMin, 1), ("WritesWait", true)),
        (full, ("WritesGoOn", false)),
        (degraded(), ("CopiesMissing", false)),
        (healthy(), ("Redundant", false)),
    ];
    for (volume, wanted) in steps {
        assert_eq!(stage.told(&volume), [wanted]);
    }
}

#[test]
fn volumes_that_are_made_or_removed_or_have_all_copies_are_no_news() {
    let with = |stage: v1::VolumeStage| v1::VolumeStatus {
        stage: stage.into(),
        ..volume(v1::Health::Unavailable, 0)
    };
    let moving = volume(v1::Health::Degraded, 3);
    let unknown = volume(v1::Health::Unspecified, 0);
    for volume in
        [with(v1::VolumeStage::Creating), with(v1::VolumeStage::Deleting), moving, unknown]
    {
        assert_eq!(Stage::new().told(&volume), []);
    }
}

#[test]
fn damage_is_told_once_for_each_attachment() {
    let with = |unreadable_blocks| v1::VolumeStatus {
        counters: Some(v1::Counters { unreadable_blocks, ..Default::default() }),
        ..healthy()
    };
    let mut stage = Stage::new();
    assert_eq!(stage.told(&with(0)), []);
    assert_eq!(stage.told(&with(1)), [("DamagedBlocks", true)]);
    assert_eq!(stage.told(&with(2)), []);
    assert_eq!(stage.told(&healthy()), [], "detached");
    assert!(stage.conditions.iter().any(|c| c.type_ == INTACT && c.status == "False"));
    assert_eq!(stage.told(&with(0)), []);
    assert_eq!(stage.told(&with(3)), [("DamagedBlocks", true)]);
}

#[test]
fn a_note_says_what_and_why() {
    let mut stage = Stage::new();
    stage.look(&degraded());
    stage.now += LASTS;
    let news = stage.look(&degraded());
    let notes: Vec<_> = news.iter().map(|news| news.note.as_str()).collect();
    assert_eq!(notes, ["volume pvc-1 has 2 of 3 copies in sync: why"]);
}
