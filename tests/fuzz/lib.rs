//! The targets for the fuzzing engine; see `targets.rs`.

mod targets;

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or if it finds something wrong.
pub fn run(name: &str, data: &[u8]) {
    let found = targets::ALL.iter().find(|(known, _)| *known == name);
    let (_, target) = found.expect("a target of ALL");
    target(data);
}
