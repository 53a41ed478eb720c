//! No state without a sentence: every combination of what can be known is tried.

use super::*;

const PHASES: [v1::AttachPhase; 8] = [
    v1::AttachPhase::Unspecified,
    v1::AttachPhase::Detached,
    v1::AttachPhase::Claiming,
    v1::AttachPhase::Recovering,
    v1::AttachPhase::Active,
    v1::AttachPhase::Suspended,
    v1::AttachPhase::Draining,
    v1::AttachPhase::Fenced,
];

/// Every copy that there can be: its state, whether it is reached, resynced, broken.
fn copies(node: &str) -> Vec<v1::VolumeReplica> {
    let mut all = Vec::new();
    let states = [
        v1::ReplicaState::New,
        v1::ReplicaState::InSync,
        v1::ReplicaState::Out,
        v1::ReplicaState::Leaving,
        v1::ReplicaState::Unspecified,
    ];
    for state in states {
        for variant in 0..16 {
            let fault = if variant & 4 > 0 { "its disk is full" } else { "" };
            let live = v1::LocalReplica { fault: fault.to_owned(), ..Default::default() };
            all.push(v1::VolumeReplica {
                node: node.to_owned(),
                state: i32::from(state),
                connected: variant & 1 > 0,
                resync: (variant & 2 > 0).then(v1::Resync::default),
                live: (variant & 1 > 0 || variant & 4 > 0).then_some(live),
                missing_ms: (variant & 1 == 0).then_some(4200),
                put_back: variant & 9 == 8,
                gone: variant & 13 == 4,
                ..Default::default()
            });
        }
    }
    all
}

fn status(phase: v1::AttachPhase, replicas: Vec<v1::VolumeReplica>) -> v1::VolumeStatus {
    let attached = phase != v1::AttachPhase::Detached;
    v1::VolumeStatus {
        name: "vol".to_owned(),
        repl: 2,
        min_in_sync: 1,
        phase: i32::from(phase),
        primary_node: attached.then(|| "n1".to_owned()),
        replicas,
        ..Default::default()
    }
}

fn facts<'a>(
    status: &'a v1::VolumeStatus,
    primary: Option<&'a v1::LocalPrimary>,
    emptied: &'a [String],
) -> Facts<'a> {
    Facts {
        status,
        primary,
        unfinished: None,
        recorded: true,
        wanted_min: status.min_in_sync,
        emptied,
        warning: None,
        barred: false,
        rebuild_after_ms: 600_000,
    }
}

/// Plain health: both copies are there, and nothing is under way.
fn is_plain(status: &v1::VolumeStatus, facts: &Facts<'_>) -> bool {
    let good = |r: &v1::VolumeReplica| {
        let fault = r.live.as_ref().is_some_and(|live| !live.fault.is_empty());
        is(r, v1::ReplicaState::InSync) && r.connected && r.resync.is_none() && !fault
    };
    let calm = [v1::AttachPhase::Active, v1::AttachPhase::Detached].map(i32::from);
    status.replicas.iter().all(good)
        && status.replicas.len() == 2
        && calm.contains(&status.phase)
        && facts.emptied.is_empty()
        && facts.wanted_min <= status.min_in_sync
}

fn check(facts: &Facts<'_>) {
    let (health, findings) = facts.explain();
    assert_eq!(findings.is_empty(), is_plain(facts.status, facts), "{facts:?}");
    assert!(!findings.is_empty() || health == v1::Health::Healthy, "{facts:?}");
    for finding in &findings {
        assert!(!finding.what.is_empty(), "nothing is said of {facts:?}");
        assert!(!finding.what.ends_with(' '), "`{}` breaks off: {facts:?}", finding.what);
        let next = !finding.by_itself.is_empty() || !finding.to_do.is_empty();
        assert!(next, "nothing follows from {}: {facts:?}", finding.what);
    }
    let sentence = sentence(&findings);
    assert_eq!(sentence.is_empty(), findings.is_empty());
    assert!(!sentence.contains("; ;") && !sentence.contains("  "), "{sentence}");
}

#[test]
fn every_state_that_is_not_plain_health_says_what_is_and_what_comes_next() {
    let mut tried = 0;
    let emptied = ["n2".to_owned()];
    let phases = PHASES.into_iter().map(|phase| (phase, false));
    for (phase, record_put_back) in phases.chain([(v1::AttachPhase::Fenced, true)]) {
        let phase_number = i32::from(phase);
        let told = v1::LocalPrimary { phase: phase_number, record_put_back, ..Default::default() };
        // A daemon that does not tell of its primary leaves the phase open; none is none.
        let silent = [v1::AttachPhase::Unspecified, v1::AttachPhase::Detached].contains(&phase);
        let primary = (!silent).then_some(&told);
        for first in copies("n1") {
            for second in copies("n2") {
                for (repl, min, wanted_min) in
                    [(1, 1, 1), (2, 1, 1), (2, 2, 2), (2, 1, 2), (3, 2, 2)]
                {
                    for emptied in [&emptied[..], &[]] {
                        let mut status = status(phase, vec![first.clone(), second.clone()]);
                        (status.repl, status.min_in_sync) = (repl, min);
                        let mut facts = facts(&status, primary, emptied);
                        facts.wanted_min = wanted_min;
                        if repl == 2 {
                            check(&facts);
                        } else {
                            assert!(!facts.explain().1.is_empty(), "{facts:?}");
                        }
                        tried += 1;
                    }
                }
            }
        }
    }
    assert_eq!(tried, 9 * 80 * 80 * 5 * 2);
}

#[test]
fn a_volume_that_is_not_there_says_only_that() {
    let status = status(v1::AttachPhase::Detached, Vec::new());
    for (unfinished, recorded, part) in [
        (Some(Unfinished::Creating), false, "create it again"),
        (Some(Unfinished::Deleting), true, "lockstep volume delete vol"),
        (None, false, "restore the record store"),
    ] {
        let facts = Facts { unfinished, recorded, ..facts(&status, None, &[]) };
        let (health, findings) = facts.explain();
        assert_eq!((health, findings.len()), (v1::Health::Unavailable, 1));
        assert!(sentence(&findings).contains(part), "{part}: {findings:?}");
    }
}

#[test]
fn the_worst_comes_first_and_each_thing_is_said_once() {
    let all = copies("n1");
    let lost = |node: &str| v1::VolumeReplica {
        node: node.to_owned(),
        ..all.iter().find(|r| is(r, v1::ReplicaState::InSync) && !r.connected).unwrap().clone()
    };
    let told = v1::LocalPrimary { copies_wait_ms: Some(90_500), ..Default::default() };
    let mut status = status(v1::AttachPhase::Suspended, vec![lost("n1"), lost("n2")]);
    status.replicas.push(v1::VolumeReplica { connected: true, missing_ms: None, ..lost("n3") });
    (status.repl, status.min_in_sync) = (3, 2);
    let (health, findings) = facts(&status, Some(&told), &[]).explain();
    let text = sentence(&findings);
    assert_eq!(health, v1::Health::BelowMin, "{text}");
    assert!(text.starts_with("1 of the 2 copies that each write needs"), "{text}");
    for part in [
        "not: n1, n2",
        "the copy on n1 cannot be reached for 5 s",
        "built anew on another node, in 91 s",
        "lockstep volume set vol --min-in-sync 1",
        "lockstep node remove n2",
    ] {
        assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
    }
}

#[test]
fn what_keeps_a_copy_from_being_built_is_said() {
    let all = copies("n1");
    let good = all.iter().find(|r| is(r, v1::ReplicaState::InSync) && r.connected).unwrap();
    let reason = "2 of 4 nodes are silent; no copy is replaced while more than a third are";
    let told = v1::LocalPrimary { copies_reason: reason.to_owned(), ..Default::default() };
    let mut status = status(v1::AttachPhase::Active, vec![good.clone()]);
    let calm = v1::VolumeReplica { resync: None, live: None, ..good.clone() };
    status.replicas = vec![calm];
    let (health, findings) = facts(&status, Some(&told), &[]).explain();
    let text = sentence(&findings);
    assert_eq!(health, v1::Health::Degraded);
    assert!(text.contains("1 of 2 copies") && text.contains(reason), "{text}");
}

#[test]
fn a_decision_that_is_due_is_told_and_what_it_is_about() {
    let status = status(v1::AttachPhase::Detached, Vec::new());
    let warning = Some("the store was put back; choose: lockstep volume recover vol".to_owned());
    for (barred, health) in [(true, v1::Health::Unavailable), (false, v1::Health::Unavailable)] {
        let facts = Facts { warning: warning.clone(), barred, ..facts(&status, None, &[]) };
        let (seen, findings) = facts.explain();
        assert_eq!(seen, health);
        let warned = findings.iter().find(|f| f.what == "the store was put back").unwrap();
        assert!(warned.to_do.starts_with("choose: "), "{warned:?}");
    }
}
