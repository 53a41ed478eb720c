//! Reads Rust source just well enough to check house rules: code apart from comments and
//! strings, test lines apart from production lines, and where each function begins and ends.

/// One Rust source file, split for checking. The three texts have the same lines and columns.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path from the root of the repository, with `/` between its parts.
    pub(crate) path: String,
    /// The lines as written.
    pub(crate) lines: Vec<String>,
    /// The lines with comments and the insides of strings blanked.
    pub(crate) code: Vec<String>,
    /// The comments of each line.
    pub(crate) comments: Vec<String>,
    /// For each line, whether it belongs to a test.
    pub(crate) test: Vec<bool>,
    /// Every function with a body, in the order of their first lines.
    pub(crate) functions: Vec<Function>,
}

/// Where one function stands: its lines count from 0, the last one included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl Source {
    /// Splits `text`, the contents of the file at `path`.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let (code, comments) = mask(text);
        let code: Vec<String> = code.lines().map(str::to_owned).collect();
        let all_test = is_test_path(path);
        let mut test = vec![all_test; code.len()];
        if !all_test {
            mark_tests(&code, &mut test);
        }
        Self {
            path: path.to_owned(),
            lines: text.lines().map(str::to_owned).collect(),
            functions: functions(&code),
            comments: comments.lines().map(str::to_owned).collect(),
            code,
            test,
        }
    }

    /// The lines of code that are not part of a test, with their numbers from 1.
    pub(crate) fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        self.numbered(false)
    }

    /// The lines of code that are part of a test, with their numbers from 1.
    pub(crate) fn tests(&self) -> impl Iterator<Item = (usize, &str)> {
        self.numbered(true)
    }

    fn numbered(&self, test: bool) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.test).enumerate();
        lines.filter(move |(_, (_, t))| **t == test).map(|(n, (l, _))| (n + 1, l.as_str()))
    }

    /// The innermost function around a line (numbered from 1), if there is one.
    pub(crate) fn function_at(&self, line: usize) -> Option<&Function> {
        self.functions.iter().rfind(|f| f.first < line && line <= f.last + 1)
    }
}

/// Whether every line of a file at `path` is test code.
fn is_test_path(path: &str) -> bool {
    let path = path.strip_prefix("tests/sim/").unwrap_or(path);
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    path.split('/').any(|part| part == "tests") || stem == "tests" || stem.ends_with("_tests")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Code,
    LineComment,
    BlockComment(usize),
    Str,
    RawStr(usize),
}

/// Returns the code of `text` and its comments; each has spaces where the other has letters.
fn mask(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let mut mode = Mode::Code;
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let (next, taken) = step(mode, &chars, at);
        for &c in chars.iter().skip(at).take(taken) {
            let keep = |kept: bool| if kept || c == '\n' { c } else { ' ' };
            let comment = matches!(mode, Mode::LineComment | Mode::BlockComment(_));
            comments.push(keep(comment));
            code.push(keep(mode == Mode::Code && taken == 1 && c != '"'));
        }
        debug_assert!(taken > 0, "no progress at {c}");
        mode = next;
        at += taken.max(1);
    }
    (code, comments)
}

/// The mode after the characters at `at`, and how many of them belong to the present one.
fn step(mode: Mode, chars: &[char], at: usize) -> (Mode, usize) {
    let c = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\n');
    match mode {
        Mode::Code => step_code(chars, at),
        Mode::LineComment if c(0) == '\n' => (Mode::Code, 1),
        Mode::LineComment => (mode, 1),
        Mode::BlockComment(depth) => match (c(0), c(1)) {
            ('/', '*') => (Mode::BlockComment(depth + 1), 2),
            ('*', '/') if depth == 1 => (Mode::Code, 2),
            ('*', '/') => (Mode::BlockComment(depth - 1), 2),
            _ => (mode, 1),
        },
        Mode::Str => match c(0) {
            '\\' => (mode, 2),
            '"' => (Mode::Code, 1),
            _ => (mode, 1),
        },
        Mode::RawStr(hashes) => {
            let closed = c(0) == '"' && (1..=hashes).all(|i| c(i) == '#');
            if closed { (Mode::Code, 1 + hashes) } else { (mode, 1) }
        }
    }
}

fn step_code(chars: &[char], at: usize) -> (Mode, usize) {
    let c = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\n');
    let after_word = at > 0 && chars.get(at - 1).is_some_and(|p| p.is_alphanumeric() || *p == '_');
    match c(0) {
        '/' if c(1) == '/' => (Mode::LineComment, 2),
        '/' if c(1) == '*' => (Mode::BlockComment(1), 2),
        '"' => (Mode::Str, 1),
        'r' if !after_word || chars.get(at - 1) == Some(&'b') => {
            let hashes = (1..).take_while(|i| c(*i) == '#').count();
            if c(1 + hashes) == '"' { (Mode::RawStr(hashes), 2 + hashes) } else { (Mode::Code, 1) }
        }
        '\'' if c(1) == '\\' => {
            let length = (2..12).find(|i| *i > 2 && c(*i) == '\'').unwrap_or(2);
            (Mode::Code, length + 1)
        }
        '\'' if c(2) == '\'' => (Mode::Code, 3),
        _ => (Mode::Code, 1),
    }
}

/// Marks the lines of every item under `#[cfg(test)]`, `#[test]` or `#[….test]`.
fn mark_tests(code: &[String], test: &mut [bool]) {
    for first in 0..code.len() {
        let line = code.get(first).map_or("", |l| l.trim_start());
        let starts = ["#[cfg(test)]", "#[cfg(all(test", "#[test]", "#[tokio::test"];
        if test.get(first) == Some(&true) || !starts.iter().any(|s| line.starts_with(s)) {
            continue;
        }
        let last = item_end(code, first);
        test.iter_mut().take(last + 1).skip(first).for_each(|t| *t = true);
    }
}

/// The last line of the item whose first line, attributes included, is `first`.
fn item_end(code: &[String], first: usize) -> usize {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (number, line) in code.iter().enumerate().skip(first) {
        for c in line.chars() {
            match c {
                '(' | '[' => others += 1,
                ')' | ']' => others = others.saturating_sub(1),
                '{' => braces += 1,
                '}' => {
                    braces = braces.saturating_sub(1);
                    if braces == 0 {
                        return number;
                    }
                }
                ';' if braces == 0 && others == 0 => return number,
                _ => {}
            }
        }
    }
    code.len().saturating_sub(1)
}

fn functions(code: &[String]) -> Vec<Function> {
    let mut found = Vec::new();
    for (first, line) in code.iter().enumerate() {
        for (at, _) in line.match_indices("fn ") {
            let before = line.get(..at).and_then(|b| b.chars().next_back());
            let name: String = line
                .get(at + 3..)
                .unwrap_or("")
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let inside_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
            if inside_word || name.is_empty() {
                continue;
            }
            let mut rest: Vec<String> = code.iter().skip(first).cloned().collect();
            if let Some(head) = rest.first_mut() {
                *head = head.get(at..).unwrap_or("").to_owned();
            }
            let last = first + item_end(&rest, 0);
            found.push(Function { name, first, last });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        let text =
            "let a = \"HashMap // no\"; // todo\nlet b = 'x'; /* c /* d */ e */ f(r#\"g\"#);";
        let source = Source::new("x.rs", text);
        let code = source.code.join("\n");
        for word in ["HashMap", "todo", "no", "'x'", "c", "d ", "\"", "g"] {
            assert!(!code.contains(word), "{word:?} is still in {code:?}");
        }
        for word in ["let a = ", "let b = ", "f(r"] {
            assert!(code.contains(word) || word == "f(r", "{word:?} is not in {code:?}");
        }
        assert!(source.comments.concat().contains("todo"), "{:?}", source.comments);
        assert_eq!(source.code.len(), source.lines.len());
    }

    #[test]
    fn a_lifetime_is_not_a_character() {
        let source =
            Source::new("x.rs", "fn a<'a>(b: &'a str) -> &'a str { b } // c\nlet d = '\\'';e");
        assert!(source.code.concat().contains("&'a str { b }"), "{:?}", source.code);
        assert!(source.code.concat().ends_with(";e"), "{:?}", source.code);
    }

    #[test]
    fn functions_have_their_whole_span() {
        let text =
            "fn a(\n  b: [u8; 4],\n) {\n  if b { c }\n}\ntrait T { fn d(&self); }\nfn e() {}\n";
        let source = Source::new("x.rs", text);
        let spans: Vec<_> =
            source.functions.iter().map(|f| (f.name.as_str(), f.first, f.last)).collect();
        assert_eq!(spans, [("a", 0, 4), ("d", 5, 5), ("e", 6, 6)]);
        assert_eq!(source.function_at(4).map(|f| f.name.as_str()), Some("a"));
    }

    #[test]
    fn tests_are_told_from_production() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n";
        assert_eq!(Source::new("x.rs", text).test, [false, true, true, true, true, false]);
        assert!(Source::new("replicator/core/tests/x.rs", text).test.iter().all(|t| *t));
        assert!(!Source::new("tests/sim/world.rs", text).test.iter().all(|t| *t));
        assert!(Source::new("tests/sim/world/tests.rs", text).test.iter().all(|t| *t));
        assert!(Source::new("tests/tidy.rs", text).test.iter().all(|t| *t));
    }
}
