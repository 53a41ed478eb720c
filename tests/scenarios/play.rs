//! Playing a scene: its commands, and what is said because of them.

use lockstep_core::planted::Planted;

use crate::stage::Stage;

/// Runs the commands of a script and returns it with the dialogue as it is now, if
/// every machine breaks the rule that is planted.
pub(crate) fn play(script: &str, planted: Planted) -> String {
    let mut stage = Stage::default();
    stage.planted = planted;
    let mut out = String::new();
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            out.push_str(line);
            out.push('\n');
            for said in stage.perform(command) {
                out.push_str("    ");
                out.push_str(&said);
                out.push('\n');
            }
        } else if !line.starts_with("    ") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
