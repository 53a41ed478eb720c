//! The rules for source files. Each is a function from one file to what is wrong in it.

use super::source::Source;

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The name of the rule; exceptions are listed under it.
    pub(crate) rule: &'static str,
    /// The file.
    pub(crate) path: String,
    /// Which part of the file: a function, a word. Exceptions name it.
    pub(crate) what: String,
    /// What is wrong, and what to do.
    pub(crate) message: String,
}

const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 600;
const FILE_LINES_WITH_TESTS: usize = 800;
const LINE_COLUMNS: usize = 100;

/// The rules, all of them.
pub(crate) const RULES: &[fn(&Source) -> Vec<Finding>] = &[
    function_length,
    file_length,
    line_width,
    no_mod_rs,
    banned_in_code,
    banned_in_tests,
    banned_in_comments,
    pure_rooms,
    pure_simulator,
    unsafe_in_one_room,
    lint_reasons,
    naming,
];

fn finding(rule: &'static str, source: &Source, what: &str, message: String) -> Finding {
    Finding { rule, path: source.path.clone(), what: what.to_owned(), message }
}

fn function_length(source: &Source) -> Vec<Finding> {
    let long = source.functions.iter().filter(|f| f.last + 1 - f.first > FUNCTION_LINES);
    long.map(|f| {
        let lines = f.last + 1 - f.first;
        let message = format!("fn {} has {lines} lines; split it at {FUNCTION_LINES}", f.name);
        finding("function_length", source, &f.name, message)
    })
    .collect()
}

fn file_length(source: &Source) -> Vec<Finding> {
    let (lines, all) = (source.production().count(), source.lines.len());
    let message = if lines > FILE_LINES {
        format!("{lines} lines without tests; split it by idea at {FILE_LINES}")
    } else if all > FILE_LINES_WITH_TESTS {
        format!("{all} lines with tests; move tests to a file at {FILE_LINES_WITH_TESTS}")
    } else {
        return Vec::new();
    };
    vec![finding("file_length", source, "", message)]
}

fn line_width(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in source.lines.iter().enumerate() {
        let columns = line.chars().count();
        if columns > LINE_COLUMNS {
            let message = format!("line {} has {columns} columns; break it", number + 1);
            found.push(finding("line_width", source, &(number + 1).to_string(), message));
        }
    }
    found
}

fn no_mod_rs(source: &Source) -> Vec<Finding> {
    if !source.path.ends_with("/mod.rs") {
        return Vec::new();
    }
    let message = "name the file after its module, not mod.rs".to_owned();
    vec![finding("no_mod_rs", source, "", message)]
}

/// Words that stand nowhere, with what to do instead.
const BANNED_IN_CODE: &[(&str, &str)] = &[
    ("HashMap", "its order is random; use BTreeMap"),
    ("HashSet", "its order is random; use BTreeSet"),
    ("todo!", "write the code, or leave the path out"),
    ("unimplemented!", "write the code, or leave the path out"),
    ("dbg!", "use tracing"),
    ("#[ignore", "a test that nobody runs proves nothing; run it or delete it"),
    ("process::exit", "return an ExitCode from main, so that destructors run"),
    ("mem::forget", "keep an owner"),
];

fn banned_in_code(source: &Source) -> Vec<Finding> {
    let all = source.production().chain(source.tests());
    words("banned_in_code", source, all, BANNED_IN_CODE)
}

fn words<'a>(
    rule: &'static str,
    source: &Source,
    lines: impl Iterator<Item = (usize, &'a str)>,
    banned: &[(&str, &str)],
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in lines {
        for (word, instead) in banned {
            if has_word(line, word) {
                let message = format!("line {number}: `{word}`: {instead}");
                found.push(finding(rule, source, word, message));
            }
        }
    }
    found
}

/// Whether `word` stands in `line` with nothing that continues a name on either side of it.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    let (word_first, word_last) = (word.starts_with(joins), word.ends_with(joins));
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|b| b.chars().next_back()).is_some_and(joins);
        let after = line.get(at + word.len()..).and_then(|a| a.chars().next()).is_some_and(joins);
        !(before && word_first || after && word_last)
    })
}

/// A test waits for a condition. It may pause between two looks at one: in a loop that says
/// `while`, or in a function that is named for it.
fn banned_in_tests(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in source.tests() {
        let within = source.function_at(number).map_or("", |f| f.name.as_str());
        let before = source.code.iter().take(number - 1).rev().take(3);
        let looks = within.starts_with("wait_") || before.into_iter().any(|l| has_word(l, "while"));
        if has_word(line, "sleep") && !looks && !line.contains("use ") {
            let message = format!(
                "line {number}: sleep in {within}; wait for a condition, in `while` or fn wait_…"
            );
            found.push(finding("banned_in_tests", source, within, message));
        }
    }
    found
}

fn banned_in_comments(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in source.comments.iter().enumerate() {
        for word in ["TODO", "FIXME", "XXX", "HACK"] {
            if has_word(line, word) {
                let message = format!("line {}: {word}; finish it or drop it", number + 1);
                found.push(finding("banned_in_comments", source, word, message));
            }
        }
    }
    found
}

const IMPURE: &[(&str, &str)] = &[
    ("std::", "this room has no std; use core:: or alloc::"),
    ("Instant", "time comes in as a Tick"),
    ("SystemTime", "time comes in as a Tick"),
    ("thread", "this room runs on its caller's thread"),
    ("rand", "randomness comes in as a value"),
    ("tokio", "this room does no I/O"),
    ("println!", "use tracing"),
    ("eprintln!", "use tracing"),
    ("async", "this room never waits; return an effect"),
    ("Mutex", "this room has one owner"),
    ("static mut", "this room has no hidden state"),
];

/// `core` and `store` decide; they touch nothing of the outside world.
fn pure_rooms(source: &Source) -> Vec<Finding> {
    let room = ["replicator/core/src/", "replicator/store/src/"];
    if !room.iter().any(|r| source.path.starts_with(r)) {
        return Vec::new();
    }
    let mut found = words("pure_rooms", source, source.production(), IMPURE);
    if source.path.ends_with("/src/lib.rs") {
        for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
            if !source.code.iter().any(|l| l.trim() == attribute) {
                let message = format!("write {attribute} at the head of this crate");
                found.push(finding("pure_rooms", source, attribute, message));
            }
        }
    }
    found
}

const NONDETERMINISTIC: &[(&str, &str)] = &[
    ("Instant", "use the world's virtual time"),
    ("SystemTime", "use the world's virtual time"),
    ("thread", "the world runs on one thread; only the program may use more"),
    ("tokio", "the world has no runtime"),
    ("rand", "take numbers from the seed"),
    ("sleep", "advance the virtual time"),
];

/// The same seed gives the same run: the simulator's library reads no clock and no runtime.
fn pure_simulator(source: &Source) -> Vec<Finding> {
    let inside = source.path.starts_with("tests/sim/") && !source.path.contains("/bin/");
    if !inside {
        return Vec::new();
    }
    words("pure_simulator", source, source.production(), NONDETERMINISTIC)
}

fn unsafe_in_one_room(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in source.code.iter().enumerate() {
        if !has_word(line, "unsafe") {
            continue;
        }
        let above = source.comments.iter().take(index + 1).rev().take(6);
        let explained = above.into_iter().any(|c| c.contains("SAFETY:"));
        if !source.path.starts_with("replicator/kernel/") {
            let message = format!("line {}: unsafe belongs to replicator/kernel only", index + 1);
            found.push(finding("unsafe_in_one_room", source, "unsafe", message));
        } else if !explained {
            let message = format!("line {}: unsafe without a // SAFETY: comment", index + 1);
            found.push(finding("unsafe_in_one_room", source, "unsafe", message));
        }
    }
    found
}

/// Whoever switches a lint off says why.
fn lint_reasons(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in source.code.iter().enumerate() {
        let opens = ["[allow(", "[expect("].iter().find_map(|a| line.find(a));
        let Some(at) = opens else { continue };
        let rest = source.code.iter().skip(index + 1).take(8).map(String::as_str);
        let text: String = line.get(at + 1..).into_iter().chain(rest).collect();
        let attribute = text.split(']').next().unwrap_or("");
        if !has_word(attribute, "reason") {
            let message = format!("line {}: write reason = \"…\" in {attribute}", index + 1);
            found.push(finding("lint_reasons", source, attribute, message));
        }
    }
    found
}

/// Words with two meanings are not names here.
fn naming(source: &Source) -> Vec<Finding> {
    let banned = [
        ("fn sync", "say flush (a guest asks), durable (on disk) or resync (repair)"),
        ("master", "say primary"),
        ("slave", "say replica"),
    ];
    let code = source.production().chain(source.tests());
    let mut found = words("naming", source, code, &banned);
    let comments = source.comments.iter().enumerate().map(|(n, l)| (n + 1, l.as_str()));
    found.extend(words("naming", source, comments, banned.get(1..).unwrap_or(&[])));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaks(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> bool {
        !rule(&Source::new(path, text)).is_empty()
    }

    #[test]
    fn each_budget_can_be_exceeded() {
        let long = format!("fn a() {{\n{}}}\n", "b();\n".repeat(FUNCTION_LINES - 1));
        assert!(breaks(function_length, "x.rs", &long));
        let fits = format!("fn a() {{\n{}}}\n", "b();\n".repeat(FUNCTION_LINES - 2));
        assert!(!breaks(function_length, "x.rs", &fits));
        assert!(breaks(file_length, "x.rs", &"b!();\n".repeat(FILE_LINES + 1)));
        let tests = format!("#[cfg(test)]\nmod t {{\n{}}}\n", "b!();\n".repeat(FILE_LINES));
        assert!(!breaks(file_length, "x.rs", &tests));
        assert!(breaks(file_length, "tests/x.rs", &"b!();\n".repeat(FILE_LINES_WITH_TESTS + 1)));
        assert!(breaks(line_width, "x.rs", &"b".repeat(LINE_COLUMNS + 1)));
        assert!(!breaks(line_width, "x.rs", &"é".repeat(LINE_COLUMNS)));
        assert!(breaks(no_mod_rs, "proto/src/a/mod.rs", ""));
    }

    #[test]
    fn banned_words_are_found_in_code_and_only_there() {
        assert!(breaks(banned_in_code, "x.rs", "use std::collections::HashMap;"));
        assert!(breaks(banned_in_code, "x.rs", "#[cfg(test)]\nmod t { fn a() { dbg!(1) } }"));
        assert!(!breaks(banned_in_code, "x.rs", "struct NoHashMaps; // HashMap"));
        assert!(breaks(banned_in_comments, "x.rs", "// FIXME: later"));
        assert!(!breaks(banned_in_comments, "x.rs", "let a = \"TODO\";"));
        assert!(breaks(naming, "x.rs", "fn sync(&self) {}"));
        assert!(breaks(naming, "x.rs", "// the master decides"));
        assert!(breaks(lint_reasons, "x.rs", "#[allow(dead_code)]\nfn a() {}"));
        let reason = "#[expect(\n  dead_code,\n  reason = \"b\"\n)]\nfn a() {}";
        assert!(!breaks(lint_reasons, "x.rs", reason));
        assert!(!breaks(naming, "x.rs", "use tokio::sync::mpsc; fn resync() {}"));
    }

    #[test]
    fn a_test_may_pause_only_in_a_function_that_waits() {
        let test =
            |name: &str| format!("#[cfg(test)]\nmod t {{\nfn {name}() {{\nsleep(1);\n}}\n}}");
        assert!(breaks(banned_in_tests, "x.rs", &test("reads_back")));
        assert!(!breaks(banned_in_tests, "x.rs", &test("wait_until")));
        let looking = test("a").replace("sleep", "while !b() {\nsleep").replace(";", ";\n}");
        assert!(!breaks(banned_in_tests, "x.rs", &looking));
        assert!(!breaks(banned_in_tests, "x.rs", "fn a() { sleep(1) }"));
    }

    #[test]
    fn purity_is_checked_where_it_matters() {
        let core = "replicator/core/src/a.rs";
        assert!(breaks(pure_rooms, core, "use std::fmt;"));
        assert!(breaks(pure_rooms, core, "async fn a() {}"));
        assert!(!breaks(pure_rooms, core, "#[cfg(test)]\nmod tests { use std::fmt; }"));
        assert!(!breaks(pure_rooms, "replicator/meta/src/a.rs", "use std::fmt;"));
        assert!(breaks(pure_rooms, "replicator/store/src/lib.rs", "#![no_std]"));
        let both = "#![no_std]\n#![forbid(unsafe_code)]\n";
        assert!(!breaks(pure_rooms, "replicator/store/src/lib.rs", both));
        assert!(breaks(pure_simulator, "tests/sim/world.rs", "let a = Instant::now();"));
        assert!(!breaks(pure_simulator, "tests/sim/bin/x.rs", "let a = Instant::now();"));
    }

    #[test]
    fn unsafe_needs_the_right_room_and_a_reason() {
        let block = "unsafe { a() }";
        let reason = format!("// SAFETY: a takes no pointer\n{block}");
        assert!(breaks(unsafe_in_one_room, "replicator/src/a.rs", &reason));
        assert!(breaks(unsafe_in_one_room, "replicator/kernel/src/a.rs", block));
        assert!(!breaks(unsafe_in_one_room, "replicator/kernel/src/a.rs", &reason));
    }
}
