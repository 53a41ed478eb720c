//! The rules for documents: links lead somewhere, rooms are described, rules are defined.

use std::collections::{BTreeMap, BTreeSet};

/// The targets of the Markdown links of `text`, code blocks left out: `(line from 1, target)`.
pub(crate) fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        for (at, _) in line.match_indices("](") {
            let target = line.get(at + 2..).and_then(|rest| rest.split(')').next());
            found.extend(target.map(|t| (number, t.to_owned())));
        }
    }
    found
}

/// The lines outside of fenced blocks, with their numbers from 1, and without `code`.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let outside: Vec<&str> = line.split('`').step_by(2).collect();
            lines.push((number + 1, outside.join("")));
        }
    }
    lines
}

/// The anchors that the headings of `text` give, as the usual renderers make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced || !line.starts_with('#') {
            continue;
        }
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    found
}

/// Joins a relative link to the directory of the document it stands in.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Relative links of `documents` (path and text) that lead nowhere. `files` are all paths.
pub(crate) fn dead_links(
    documents: &BTreeMap<String, String>,
    files: &BTreeSet<String>,
) -> Vec<String> {
    let mut dead = Vec::new();
    for (path, text) in documents {
        for (line, target) in links(text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let file = if file.is_empty() { path.clone() } else { resolve(path, file) };
            let directory = format!("{file}/");
            if !files.contains(&file) && !files.iter().any(|f| f.starts_with(&directory)) {
                dead.push(format!("{path}:{line}: {target} does not exist"));
            } else if !anchor.is_empty()
                && documents.get(&file).is_some_and(|t| !anchors(t).contains(anchor))
            {
                dead.push(format!("{path}:{line}: {file} has no heading for #{anchor}"));
            }
        }
    }
    dead
}

/// What is wrong with the shape of a changelog, given the version of the packages.
pub(crate) fn changelog(text: &str, version: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.lines().next() != Some("# Changelog") {
        wrong.push("the first line is `# Changelog`".to_owned());
    }
    let headings: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("## ")).collect();
    if headings.first() != Some(&"[Unreleased]") {
        wrong.push("the first heading is `## [Unreleased]`".to_owned());
    }
    let mut versions = Vec::new();
    for heading in headings.iter().skip(1) {
        let parts = heading.strip_prefix('[').and_then(|h| h.split_once("] - "));
        let dated = |date: &str| date.len() == 10 && date.matches('-').count() == 2;
        match parts {
            Some((version, date)) if dated(date) => versions.push(version),
            _ => wrong.push(format!("`## {heading}`: write `## [version] - year-month-day`")),
        }
    }
    if !versions.is_empty() && !versions.contains(&version) {
        wrong.push(format!("there is no section for {version}, the version of the packages"));
    }
    let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    for kind in text.lines().filter_map(|l| l.strip_prefix("### ")) {
        if !kinds.contains(&kind) {
            wrong.push(format!("`### {kind}`: use one of {kinds:?}"));
        }
    }
    wrong
}

/// What the description of the rooms lacks. `rooms` are the directories of our packages.
pub(crate) fn rooms(architecture: &str, rooms: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for room in rooms {
        let head = format!("### `{room}/`");
        let Some((_, rest)) = architecture.split_once(&head) else {
            wrong.push(format!("docs/ARCHITECTURE.md has no heading {head}"));
            continue;
        };
        let section = rest.split("\n#").next().unwrap_or("");
        for line in ["**Invariant:**", "**Deliberately absent:**"] {
            if !section.contains(line) {
                wrong.push(format!("docs/ARCHITECTURE.md: {head} has no line {line}"));
            }
        }
    }
    wrong
}

/// The names of protocol rules (a letter of `TRPSG` and a number) that stand in a text.
pub(crate) fn rule_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    let named = words.filter(|w| {
        let number = w.strip_prefix(['T', 'R', 'P', 'S', 'G']).unwrap_or("");
        !number.is_empty() && number.len() <= 2 && number.chars().all(|c| c.is_ascii_digit())
    });
    named.map(str::to_owned).collect()
}

/// The rules that the protocol defines: those that stand in bold, as `**R2**`.
pub(crate) fn defined_rules(protocol: &str) -> BTreeSet<String> {
    let bold = protocol.split("**").skip(1).step_by(2);
    bold.flat_map(rule_names).collect()
}

/// Text that must not stand in the project: hosts of package registries, paths of one machine.
pub(crate) fn foreign_text(path: &str, text: &str) -> Vec<String> {
    let hosts = ["index", "static", "files", "registry", "proxy", "deb"];
    let registries = [("crates", "io"), ("pypi", "org"), ("npmjs", "com")];
    let homes = ["home", "root", "Users", "work", "farm"];
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let host = hosts.iter().any(|h| line.contains(&format!("://{h}.")))
            || registries.iter().any(|(name, end)| line.contains(&format!("{name}.{end}")));
        let home = homes.iter().any(|h| absolute(line, &format!("/{h}/")));
        if host {
            found.push(format!("{path}:{}: names a package registry's host", number + 1));
        }
        if home {
            found.push(format!("{path}:{}: names a path of one machine", number + 1));
        }
    }
    found
}

/// Whether `prefix` stands in `line` as the beginning of an absolute path.
fn absolute(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let before = line.get(..at).and_then(|b| b.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "./_-}$*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_link_is_found() {
        let text = "# A b\n[x](b.md#c-d) [y](#a-b) [z](https://x.y)\n```\n[q](no.md)\n```\n";
        let documents = |extra: &str| {
            BTreeMap::from([
                ("docs/a.md".to_owned(), format!("{text}{extra}")),
                ("docs/b.md".to_owned(), "# C, `d`\n".to_owned()),
            ])
        };
        let files = BTreeSet::from(["docs/a.md".to_owned(), "docs/b.md".to_owned()]);
        assert_eq!(dead_links(&documents(""), &files), Vec::<String>::new());
        for bad in ["[x](c.md)", "[x](b.md#e)", "[x](#e)", "[x](../b.md)"] {
            assert_eq!(dead_links(&documents(bad), &files).len(), 1, "{bad}");
        }
        assert_eq!(dead_links(&documents("[x](../docs)"), &files).len(), 0);
    }

    #[test]
    fn the_changelog_has_a_shape() {
        let good = "# Changelog\n## [Unreleased]\n### Added\n- x\n## [0.1.0] - 2026-01-02\n";
        assert_eq!(changelog(good, "0.1.0"), Vec::<String>::new());
        for (from, to) in [
            ("# Changelog", "# News"),
            ("## [Unreleased]", "## Next"),
            ("### Added", "### New"),
            ("0.1.0", "0.2.0"),
            (" - 2026-01-02", ""),
        ] {
            assert!(!changelog(&good.replacen(from, to, 1), "0.1.0").is_empty(), "{to}");
        }
    }

    #[test]
    fn a_room_needs_its_lines() {
        let good = "### `a/b/`\n**Invariant:** x\n**Deliberately absent:** y\n### `c/`\n";
        assert_eq!(rooms(good, &["a/b".to_owned()]), Vec::<String>::new());
        assert_eq!(rooms(good, &["c".to_owned()]).len(), 2);
        assert_eq!(rooms(good, &["d".to_owned()]).len(), 1);
    }

    #[test]
    fn rule_names_are_words() {
        let names: Vec<String> =
            rule_names("R2, S4; T10. G R123 aR1 R1a P_1").into_iter().collect();
        assert_eq!(names, ["R2", "S4", "T10"]);
        assert_eq!(defined_rules("**R1** see R2 **S3**").len(), 2);
    }

    #[test]
    fn foreign_text_is_found() {
        for bad in [
            format!("see https://{}.example.org/", "index"),
            format!("from {}.{}", "crates", "io"),
            format!("cd /{}/x", "root"),
            format!("\"/{}/x\"", "home"),
        ] {
            assert_eq!(foreign_text("a", &bad).len(), 1, "{bad}");
        }
        let fine = format!("a/{}/b ${{DIR}}/{}/c https://docs.example.org", "work", "home");
        assert_eq!(foreign_text("a", &fine), Vec::<String>::new());
    }
}
