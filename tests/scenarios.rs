//! Golden transcripts: each file of `tests/scenarios` is a scene of the protocol, read as text.
//! Lines that start with `> ` are commands; what follows is the dialogue they cause. To accept a
//! changed dialogue run the test with `UPDATE_SCENARIOS=1` and review the difference.

#![expect(clippy::expect_used, clippy::panic, reason = "a scene without sense fails its test")]

#[path = "scenarios/play.rs"]
mod play;
#[path = "scenarios/stage.rs"]
mod stage;
#[path = "scenarios/twin.rs"]
mod twin;
#[path = "scenarios/words.rs"]
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_core::planted::{Bug, Planted};
use play::play;

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .expect("the scenarios are beside this file")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_scene_plays_as_written() {
    let update = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let mut changed = Vec::new();
    let files = files();
    assert!(files.len() >= 8, "scenarios are missing: {files:?}");
    for path in files {
        let script = fs::read_to_string(&path).expect("a readable script");
        let now = play(&script, Planted::NONE);
        if now == script {
            continue;
        }
        if update {
            fs::write(&path, now).expect("a writable script");
        } else {
            let at = script.lines().zip(now.lines()).position(|(a, b)| a != b).unwrap_or(0);
            let said = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
            changed.push(format!(
                "{}:{}\n  written: {}\n  now:     {}",
                path.display(),
                at + 1,
                said(&script),
                said(&now)
            ));
        }
    }
    assert!(changed.is_empty(), "scenes changed:\n{}", changed.join("\n"));
}

#[test]
fn a_changed_dialogue_is_noticed() {
    let script = "> create n1 repl=1 min=1\n    something that is never said\n";
    assert_ne!(play(script, Planted::NONE), script);
}

/// What chance hardly ever finds: `lockstep-sim --mutants` counts it as found by its scene.
#[test]
fn scenes_notice_what_they_were_written_for() {
    let found_by = [
        (Bug::OutsiderCommit, include_str!("scenarios/11-void-repair-is-kept.txt")),
        (Bug::KeepProposal, include_str!("scenarios/50-removal-taken-back.txt")),
        (Bug::CountStandstill, include_str!("scenarios/52-standstill.txt")),
        (Bug::MendWithoutLock, include_str!("scenarios/61-mend-under-its-lock.txt")),
        (Bug::ShunOneOfTwo, include_str!("scenarios/66-slow-member-of-two.txt")),
        (Bug::ResumeUnproven, include_str!("scenarios/23-put-back-under-an-old-primary.txt")),
        (Bug::LossyUntilTold, include_str!("scenarios/32-whole-before-it-is-told.txt")),
        (Bug::ServePutBack, include_str!("scenarios/24-put-back-store-before-an-old-primary.txt")),
        (Bug::LateReadInClaim, include_str!("scenarios/68-no-late-read-while-claiming.txt")),
        (Bug::HealedAsWhole, include_str!("scenarios/69-what-a-source-got-may-be-torn.txt")),
        (Bug::HastyGap, include_str!("scenarios/82-lost-block-found.txt")),
        (Bug::SkippingScrub, include_str!("scenarios/83-scrub-comes-back.txt")),
        (Bug::StretchLease, include_str!("scenarios/53-standstill-of-a-reader.txt")),
    ];
    for (bug, scene) in found_by {
        assert_ne!(play(scene, Planted::with(bug)), scene, "{bug:?}");
    }
}
