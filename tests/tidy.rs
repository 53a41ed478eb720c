//! The rules of the house, as tests. A failure says what to do; docs/STYLE.md says why.

#[path = "tidy/deps.rs"]
mod deps;
#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand};
use source::Source;

/// Where a rule does not hold: the rule, the file, the function or word, and the reason.
/// The list may only shrink: an entry that is no longer needed fails the test.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[];

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Every file of the project, as paths from its root. Outside of a git checkout, the files there.
fn files() -> BTreeSet<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut found = BTreeSet::new();
    match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            found.extend(text.split('\0').filter(|p| !p.is_empty()).map(str::to_owned));
        }
        _ => walk(&root(), "", &mut found),
    }
    found.retain(|path| root().join(path).is_file());
    assert!(found.contains("Cargo.toml"), "no Cargo.toml among the files of {:?}", root());
    found
}

fn walk(directory: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.path().is_dir() {
            walk(&entry.path(), &path, found);
        } else {
            found.insert(path);
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_default()
}

fn sources() -> Vec<Source> {
    let rust = files().into_iter().filter(|p| p.ends_with(".rs"));
    rust.map(|path| Source::new(&path, &read(&path))).collect()
}

fn documents() -> BTreeMap<String, String> {
    let markdown = files().into_iter().filter(|p| p.ends_with(".md"));
    markdown.map(|path| (path.clone(), read(&path))).collect()
}

#[expect(clippy::expect_used, reason = "only tests call it")]
fn metadata() -> Metadata {
    let host = if cfg!(target_arch = "aarch64") { "aarch64" } else { "x86_64" };
    let platform = format!("--filter-platform={host}-unknown-linux-gnu");
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml")).other_options(vec![platform]);
    command.exec().expect("cargo metadata runs; its message says what to mend")
}

/// Fails with every message on its own line.
fn nothing(what: &str, messages: &[String]) {
    assert!(messages.is_empty(), "{what}:\n  {}\n", messages.join("\n  "));
}

#[test]
fn sources_keep_the_rules() {
    let mut unused: Vec<_> = EXCEPTIONS.iter().collect();
    let mut messages = Vec::new();
    let sources = sources();
    assert!(sources.len() >= 10, "only {} Rust files were found", sources.len());
    for found in sources.iter().flat_map(|s| rules::RULES.iter().flat_map(|rule| rule(s))) {
        let key = (found.rule, found.path.as_str(), found.what.as_str());
        if EXCEPTIONS.iter().any(|e| (e.0, e.1, e.2) == key) {
            unused.retain(|e| (e.0, e.1, e.2) != key);
        } else {
            messages.push(format!("{} [{}]: {}", found.path, found.rule, found.message));
        }
    }
    messages.extend(unused.iter().map(|e| format!("{e:?} is no longer needed; delete it")));
    nothing("house rules broken", &messages);
}

#[test]
fn rooms_lean_one_way() {
    let metadata = metadata();
    let links = deps::links(&metadata);
    assert!(links.len() > 20, "only {} links were found", links.len());
    nothing("wrong dependencies", &deps::wrong_links(deps::EDGES, &links));
    let packages: BTreeSet<String> =
        metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
    for row in deps::EDGES {
        assert!(packages.contains(row.package), "EDGES names {}, which is gone", row.package);
    }
}

#[test]
fn pure_rooms_link_no_runtime() {
    let graph = deps::graph(&metadata());
    let mut wrong = Vec::new();
    for room in ["lockstep-core", "lockstep-store", "lockstep-tests"] {
        let linked = deps::closure(&graph, room);
        assert!(linked.contains("bytes"), "{room} links only {linked:?}");
        for banned in ["tokio", "mio", "socket2", "rand", "nix", "lockstep-replicator"] {
            if linked.contains(banned) {
                wrong.push(format!("{room} links {banned}; `cargo tree -p {room} -i {banned}`"));
            }
        }
    }
    nothing("purity", &wrong);
}

#[test]
fn packages_are_declared_alike() {
    let mut messages = Vec::new();
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
        messages.extend(deps::wrong_declarations(package, &manifest));
    }
    let workspace = read("Cargo.toml");
    if !workspace.contains("unsafe_code = \"forbid\"") {
        messages.push("Cargo.toml: [workspace.lints.rust] has unsafe_code = \"forbid\"".to_owned());
    }
    if !read("LICENSE").contains("Apache License") {
        messages.push("LICENSE holds the text of the Apache License 2.0".to_owned());
    }
    nothing("packages", &messages);
}

#[test]
fn a_package_that_breaks_the_declaration_rules_is_found() {
    let metadata = metadata();
    let core = metadata.workspace_packages();
    let core = core.iter().find(|p| p.name.as_str() == "lockstep-core").expect("core exists");
    assert_eq!(deps::wrong_declarations(core, "[lints]\nworkspace = true"), Vec::<String>::new());
    assert_eq!(deps::wrong_declarations(core, "[lints]\n[dependencies]").len(), 1);
    let mut planted = (*core).clone();
    for dependency in &mut planted.dependencies {
        dependency.features = vec!["planted-bugs".to_owned(), "std".to_owned()];
    }
    assert!(deps::wrong_declarations(&planted, "[lints]\nworkspace = true").len() >= 2);
    let mut package = (*core).clone();
    package.license = None;
    package.description = None;
    assert_eq!(deps::wrong_declarations(&package, "[lints]\nworkspace = true").len(), 2);
}

#[test]
fn dependencies_have_licences_we_allow() {
    let allowed = deps::list(&read("deny.toml"), "licenses", "allow");
    assert!(allowed.contains("Apache-2.0"), "deny.toml allows {allowed:?}");
    let packages = metadata().packages;
    let licences: BTreeMap<_, _> =
        packages.into_iter().map(|p| (p.name.to_string(), p.license)).collect();
    assert!(licences.len() > 30, "only {} packages were found", licences.len());
    nothing("licences", &deps::wrong_licences(&licences, &allowed));
}

#[test]
fn banned_packages_are_absent() {
    let banned = deps::list(&read("deny.toml"), "bans", "deny");
    assert!(banned.contains("openssl"), "deny.toml bans {banned:?}");
    let locked = deps::locked(&read("Cargo.lock"));
    assert!(locked.contains("bytes"), "Cargo.lock was not read");
    let present = locked.intersection(&banned);
    let messages: Vec<_> = present
        .map(|p| format!("{p} is banned by deny.toml; `cargo tree -i {p}` says who"))
        .collect();
    nothing("banned packages", &messages);
}

#[test]
fn the_root_holds_rooms_and_settings_only() {
    let allowed = [
        ".cargo",
        ".ci",
        ".gitignore",
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "clippy.toml",
        "csi-driver",
        "deny.toml",
        "deploy",
        "docs",
        "proto",
        "replicator",
        "rustfmt.toml",
        "tests",
    ];
    let present: BTreeSet<String> =
        files().iter().map(|p| p.split('/').next().unwrap_or(p).to_owned()).collect();
    let strange: Vec<_> = present
        .iter()
        .filter(|p| !allowed.contains(&p.as_str()))
        .map(|p| format!("{p}: move it into the room it belongs to"))
        .collect();
    nothing("the root of the repository", &strange);
    for needed in ["README.md", "CHANGELOG.md", "LICENSE", "deny.toml", "docs", "deploy"] {
        assert!(present.contains(needed), "{needed} is missing");
    }
}

#[test]
fn documents_lead_somewhere() {
    let documents = documents();
    assert!(documents.len() >= 5, "only {} documents were found", documents.len());
    nothing("dead links", &docs::dead_links(&documents, &files()));
}

#[test]
fn the_changelog_keeps_its_shape() {
    let metadata = metadata();
    let version = metadata.workspace_packages().first().map(|p| p.version.to_string());
    nothing("CHANGELOG.md", &docs::changelog(&read("CHANGELOG.md"), &version.unwrap_or_default()));
}

#[test]
fn every_room_is_described() {
    let metadata = metadata();
    let root = metadata.workspace_root.as_str();
    let rooms: Vec<String> = metadata
        .workspace_packages()
        .iter()
        .filter_map(|p| p.manifest_path.parent())
        .filter_map(|p| p.as_str().strip_prefix(root))
        .map(|p| p.trim_start_matches('/').to_owned())
        .collect();
    assert_eq!(rooms.len(), deps::EDGES.len());
    let architecture = read("docs/ARCHITECTURE.md");
    let mut wrong = docs::rooms(&architecture, &rooms);
    let core = files().into_iter().filter(|p| p.starts_with("replicator/core/src/"));
    for path in core.filter(|p| !p.ends_with("/lib.rs") && !p.ends_with("/tests.rs")) {
        let module = path.trim_start_matches("replicator/core/src/").trim_end_matches(".rs");
        let top = module.split('/').next().unwrap_or(module);
        if !architecture.contains(&format!("`{top}`")) {
            wrong.push(format!("docs/ARCHITECTURE.md does not say what `{top}` of core is for"));
        }
    }
    wrong.dedup();
    nothing("rooms", &wrong);
}

#[test]
fn rules_that_code_names_are_defined() {
    let defined = docs::defined_rules(&read("docs/protocol.md"));
    assert!(defined.len() > 30, "only {} rules are defined in docs/protocol.md", defined.len());
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| !s.path.starts_with("tests/tidy")) {
        for (number, comment) in source.comments.iter().enumerate() {
            for name in docs::rule_names(comment).difference(&defined) {
                let at = format!("{}:{}", source.path, number + 1);
                wrong.push(format!("{at}: {name} is not a rule of docs/protocol.md"));
            }
        }
    }
    nothing("rules", &wrong);
}

#[test]
fn planted_bugs_are_documented() {
    let row = |(bug, name): &(lockstep_core::planted::Bug, &str)| {
        let (rule, breach) = bug.breach();
        format!("| {rule} | {breach} | `{name}` |")
    };
    let rows = lockstep_core::planted::Bug::ALL.iter().map(row);
    let protocol = read("docs/protocol.md");
    let missing: Vec<_> = rows
        .filter(|row| !protocol.lines().any(|line| line == row))
        .map(|row| format!("docs/protocol.md, Mutations, has no row {row}"))
        .collect();
    nothing("planted bugs", &missing);
}

#[test]
fn injected_faults_are_documented() {
    let names: Vec<String> = read("tests/sim/fault.rs")
        .lines()
        .filter(|l| l.trim_end().ends_with(';') && l.contains(" = \""))
        .filter_map(|l| l.split('"').nth(1).map(str::to_owned))
        .collect();
    assert!(names.len() >= 10, "only {names:?} were found in tests/sim/fault.rs");
    let faults = read("docs/faults.md");
    let missing: Vec<_> = names
        .iter()
        .filter(|n| !faults.contains(&format!("`{n}`")))
        .map(|n| format!("docs/faults.md does not say what must hold under `{n}`"))
        .collect();
    nothing("injected faults", &missing);
}

#[test]
fn no_file_names_a_registry_or_a_machine() {
    let binary = [".png", ".bin", ".img", "Cargo.lock"];
    let texts = files().into_iter().filter(|p| !binary.iter().any(|b| p.ends_with(b)));
    let wrong: Vec<_> = texts.flat_map(|p| docs::foreign_text(&p, &read(&p))).collect();
    nothing("text that belongs to one machine", &wrong);
}
