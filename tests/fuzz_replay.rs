//! Replays on a stable compiler what the fuzzers found interesting, and what once broke something.
//! `tests/fuzz/run` is how to look for more.

#![expect(clippy::expect_used, clippy::panic, reason = "a target reports by panicking")]

#[path = "fuzz/targets.rs"]
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn inputs(folder: &str, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder).join(name);
    let entries = fs::read_dir(&dir).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("a readable entry").path());
    paths.map(|path| (path.clone(), fs::read(&path).expect("a readable input"))).collect()
}

#[test]
fn every_input_that_was_kept_is_handled() {
    let mut broken = Vec::new();
    for (name, target) in targets::ALL {
        let mut all = inputs("corpus", name);
        assert!(all.len() >= 5, "the corpus of {name} is missing");
        all.extend(inputs("broken", name));
        for (path, data) in all {
            if catch_unwind(|| target(&data)).is_err() {
                broken.push(path.display().to_string());
            }
        }
    }
    assert!(broken.is_empty(), "these inputs are not handled:\n{}", broken.join("\n"));
}

/// Every prefix of a good input is an input, too.
#[test]
fn no_target_minds_where_its_input_ends() {
    for (name, target) in targets::ALL {
        let longest = inputs("corpus", name).into_values().max_by_key(Vec::len).unwrap_or_default();
        let step = (longest.len() / 50).max(1);
        for end in (0..longest.len()).step_by(step) {
            target(&longest[..end]);
        }
    }
}
