//! What went wrong in other replicated stores, one test for each: it must not go wrong here. The
//! list, in our words, with what has no test and why, is in `docs/verification.md`, "Pitfalls".
//!
//! A scene that cannot fail proves nothing. Where a planted bug makes the mistake of the others,
//! the test plays the scene with it, too, and wants to see it fail.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../replicator/store/tests/store/disk.rs"]
#[allow(dead_code, reason = "the tests here do not use all that the store's own tests do")]
mod disk;
#[path = "pitfalls/fence.rs"]
mod fence;
#[path = "pitfalls/files.rs"]
mod files;
#[path = "pitfalls/membership.rs"]
mod membership;
#[path = "pitfalls/ordering.rs"]
mod ordering;
#[path = "pitfalls/play.rs"]
mod play;
#[path = "pitfalls/resync.rs"]
mod resync;
#[path = "scenarios/stage.rs"]
mod stage;
#[path = "scenarios/twin.rs"]
mod twin;
#[path = "scenarios/words.rs"]
mod words;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_default()
}

/// Each of the 38 rows of the table has a test that exists, or a sentence instead of one.
#[test]
fn every_pitfall_has_its_test_or_its_reason() {
    let sources = ["fence", "files", "membership", "ordering", "resync"];
    let sources: String = sources.map(|s| read(&format!("tests/pitfalls/{s}.rs"))).concat();
    let tests: BTreeSet<&str> = sources
        .lines()
        .filter_map(|line| line.strip_prefix("fn pitfall_")?.split('(').next())
        .collect();
    let document = read("docs/verification.md");
    let section = document.split("## Pitfalls").nth(1).expect("docs/verification.md has it");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut named = BTreeSet::new();
    for row in 1..=38 {
        let line = section.lines().find(|line| line.starts_with(&format!("| {row} |")));
        let line = line.unwrap_or_else(|| panic!("docs/verification.md has no pitfall {row}"));
        let last = line.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
        let found: Vec<&str> = last.split('`').filter_map(|w| w.strip_prefix("pitfall_")).collect();
        assert!(!found.is_empty() || last.len() > 40, "pitfall {row}: no test and no reason");
        let own = found.iter().all(|name| name.starts_with(&format!("{row:02}_")));
        assert!(own, "pitfall {row} names tests of another: {found:?}");
        named.extend(found);
    }
    assert_eq!(named, tests, "docs/verification.md and the tests do not name the same pitfalls");
}
