//! The rules for dependencies: which room may lean on which, and under what licence.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, Package};

/// What one of our packages may depend on.
pub(crate) struct Edges {
    pub(crate) package: &'static str,
    /// Packages of ours that it may link.
    pub(crate) ours: &'static [&'static str],
    /// The only packages of others that it may link; `None` where there is no such list.
    pub(crate) others: Option<&'static [&'static str]>,
    /// Packages of others that it must not link.
    pub(crate) never: &'static [&'static str],
}

/// One direction: a guest's write goes from `attach` through `replicator` into `core`, and from
/// there to `store`. Nobody leans the other way.
pub(crate) const EDGES: &[Edges] = &[
    Edges { package: "lockstep-proto", ours: &[], others: None, never: &["tokio", "nix"] },
    Edges {
        package: "lockstep-core",
        ours: &[],
        others: Some(&["bytes", "crc32c", "serde", "serde_json", "tracing", "uuid"]),
        never: &[],
    },
    Edges {
        package: "lockstep-store",
        ours: &["lockstep-core"],
        others: Some(&["blake3", "bytes", "crc32c", "thiserror", "tracing", "uuid"]),
        never: &[],
    },
    Edges { package: "lockstep-kernel", ours: &[], others: None, never: &["tokio", "serde"] },
    Edges {
        package: "lockstep-attach",
        ours: &["lockstep-core", "lockstep-kernel"],
        others: None,
        never: &["tonic", "prost"],
    },
    Edges {
        package: "lockstep-meta",
        ours: &["lockstep-core", "lockstep-proto"],
        others: None,
        never: &["nix"],
    },
    Edges {
        package: "lockstep-replicator",
        ours: &[
            "lockstep-attach",
            "lockstep-core",
            "lockstep-kernel",
            "lockstep-meta",
            "lockstep-proto",
            "lockstep-store",
        ],
        others: None,
        never: &[],
    },
    Edges {
        package: "lockstep-csi",
        ours: &["lockstep-attach", "lockstep-core", "lockstep-meta", "lockstep-proto"],
        others: None,
        never: &[],
    },
    Edges {
        package: "lockstep-tests",
        ours: &["lockstep-core", "lockstep-store"],
        others: None,
        never: &["tokio", "tonic", "rand"],
    },
    Edges { package: "lockstep-floor", ours: &[], others: None, never: &["tokio"] },
    Edges {
        package: "lockstep-chaos",
        ours: &["lockstep-attach", "lockstep-proto", "lockstep-replicator"],
        others: None,
        never: &[],
    },
    Edges { package: "lockstep-csi-torture", ours: &["lockstep-proto"], others: None, never: &[] },
    Edges {
        package: "lockstep-kube",
        ours: &["lockstep-attach", "lockstep-meta"],
        others: None,
        never: &["lockstep-replicator"],
    },
    Edges {
        package: "lockstep-vm",
        ours: &["lockstep-attach", "lockstep-kernel"],
        others: None,
        never: &["lockstep-replicator"],
    },
];

/// Our packages and what they link outside of their tests: `(package, dependency)`.
pub(crate) fn links(metadata: &Metadata) -> Vec<(String, String)> {
    let mut links = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Normal {
                links.push((package.name.to_string(), dependency.name.clone()));
            }
        }
    }
    links
}

/// Says which of `links` the table does not allow.
pub(crate) fn wrong_links(edges: &[Edges], links: &[(String, String)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (package, dependency) in links {
        let Some(rule) = edges.iter().find(|e| e.package == package) else {
            wrong.push(format!("{package} is in no row of EDGES; add it, with its one direction"));
            continue;
        };
        let ours = dependency.starts_with("lockstep-");
        let allowed = if ours {
            rule.ours.contains(&dependency.as_str())
        } else {
            rule.others.is_none_or(|list| list.contains(&dependency.as_str()))
        };
        if !allowed || rule.never.contains(&dependency.as_str()) {
            wrong.push(format!(
                "{package} must not link {dependency}; move the code to a room that may, \
                 or give the value in from outside"
            ));
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

/// All that a package links, directly or not, outside of tests and build scripts: names from
/// `graph`, which maps each name to the names it links.
pub(crate) fn closure(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut left = vec![from.to_owned()];
    while let Some(name) = left.pop() {
        for next in graph.get(&name).into_iter().flatten() {
            if reached.insert(next.clone()) {
                left.push(next.clone());
            }
        }
    }
    reached
}

/// The graph for [`closure`].
pub(crate) fn graph(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata.resolve.iter().flat_map(|r| &r.nodes) {
        let Some(from) = names.get(&node.id) else { continue };
        let linked = node
            .deps
            .iter()
            .filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal))
            .filter_map(|d| names.get(&d.pkg).cloned());
        graph.entry(from.clone()).or_default().extend(linked);
    }
    graph
}

/// What is wrong in how our packages are declared.
pub(crate) fn wrong_declarations(package: &Package, manifest: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = &package.name;
    if package.license.as_deref() != Some("Apache-2.0") {
        wrong.push(format!("{name}: write license.workspace = true"));
    }
    if package.description.as_deref().is_none_or(str::is_empty) {
        wrong.push(format!("{name}: write a description, one line"));
    }
    let inherits = manifest
        .split("[lints]")
        .nth(1)
        .is_some_and(|rest| rest.trim_start().starts_with("workspace = true"));
    let own_lints = manifest.contains("[lints.") && name.as_str() == "lockstep-kernel";
    if !inherits && !own_lints {
        wrong.push(format!("{name}: write [lints] workspace = true, which forbids unsafe"));
    }
    let pure = ["lockstep-core", "lockstep-store"].contains(&name.as_str());
    for dependency in &package.dependencies {
        let normal = dependency.kind == DependencyKind::Normal;
        if pure && normal && dependency.features.iter().any(|f| f == "std" || f == "v4") {
            wrong.push(format!("{name}: take {} without std", dependency.name));
        }
        let planted = dependency.features.iter().any(|f| f == "planted-bugs");
        if planted && normal && name.as_str() != "lockstep-tests" {
            wrong.push(format!("{name}: only the simulator may plant bugs in {}", dependency.name));
        }
        if dependency.source.as_ref().is_some_and(|s| s.to_string().starts_with("git+")) {
            wrong.push(format!("{name}: take {} as a release, not from git", dependency.name));
        }
    }
    wrong
}

/// The strings of one list in `deny.toml`, such as `allow`. The file keeps one string per line.
pub(crate) fn list(toml: &str, section: &str, key: &str) -> BTreeSet<String> {
    let head = format!("[{section}]");
    let lines = toml.lines().map(str::trim).skip_while(|l| *l != head).skip(1);
    let section = lines.take_while(|l| !l.starts_with('['));
    let start = format!("{key} = [");
    let inside = section.skip_while(|l| *l != start).skip(1).take_while(|l| *l != "]");
    inside.filter_map(|l| l.split('"').nth(1)).map(str::to_owned).collect()
}

/// Whether an SPDX expression is met by the licences of `allowed`: one side of an OR is enough,
/// both sides of an AND are needed, and a WITH only gives more rights.
pub(crate) fn licence_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&tokens, &mut at, allowed) && at == tokens.len()
}

fn either(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = both(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        met |= both(tokens, at, allowed);
    }
    met
}

fn both(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(tokens, at, allowed);
    }
    met
}

fn one(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let met = either(tokens, at, allowed);
        let closed = tokens.get(*at) == Some(&")");
        *at += 1;
        return met && closed;
    }
    if tokens.get(*at) == Some(&"WITH") {
        *at += 2;
    }
    allowed.contains(*token)
}

/// Packages whose licence is missing or not allowed.
pub(crate) fn wrong_licences(
    licences: &BTreeMap<String, Option<String>>,
    allowed: &BTreeSet<String>,
) -> Vec<String> {
    let wrong = licences
        .iter()
        .filter(|(_, licence)| !licence.as_deref().is_some_and(|l| licence_allowed(l, allowed)));
    wrong
        .map(|(name, licence)| {
            let licence = licence.as_deref().unwrap_or("no licence");
            format!("{name}: {licence} is not among the licences deny.toml allows; replace it")
        })
        .collect()
}

/// The names of all packages in a `Cargo.lock`.
pub(crate) fn locked(lock: &str) -> BTreeSet<String> {
    let names = lock.lines().filter_map(|l| l.strip_prefix("name = \""));
    names.filter_map(|l| l.strip_suffix('"')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(package: &str, dependency: &str) -> Vec<(String, String)> {
        vec![(package.to_owned(), dependency.to_owned())]
    }

    #[test]
    fn the_edges_refuse_what_they_should() {
        for (package, dependency) in [
            ("lockstep-core", "tokio"),
            ("lockstep-core", "lockstep-store"),
            ("lockstep-store", "lockstep-replicator"),
            ("lockstep-csi", "lockstep-replicator"),
            ("lockstep-proto", "lockstep-core"),
            ("lockstep-attach", "lockstep-proto"),
            ("lockstep-attach", "tonic"),
            ("lockstep-tests", "tokio"),
            ("lockstep-new", "bytes"),
        ] {
            let wrong = wrong_links(EDGES, &link(package, dependency));
            assert_eq!(wrong.len(), 1, "{package} -> {dependency}");
        }
        for (package, dependency) in
            [("lockstep-core", "bytes"), ("lockstep-meta", "tokio"), ("lockstep-csi", "tonic")]
        {
            let wrong = wrong_links(EDGES, &link(package, dependency));
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }

    #[test]
    fn a_closure_reaches_what_is_linked_indirectly() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let graph = BTreeMap::from([
            ("a".to_owned(), set(&["b"])),
            ("b".to_owned(), set(&["a", "c"])),
            ("d".to_owned(), set(&["e"])),
        ]);
        assert_eq!(closure(&graph, "a"), set(&["a", "b", "c"]));
        assert!(closure(&graph, "x").is_empty());
    }

    #[test]
    fn licence_expressions_are_understood() {
        let allowed = BTreeSet::from(["MIT".to_owned(), "Unicode-3.0".to_owned()]);
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "GPL-2.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "MIT WITH x-exception",
        ] {
            assert!(licence_allowed(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT", "", "MIT MIT", "Apache-2.0 WITH MIT"] {
            assert!(!licence_allowed(bad, &allowed), "{bad}");
        }
        let licences =
            BTreeMap::from([("a".to_owned(), None), ("b".to_owned(), Some("MIT".into()))]);
        assert_eq!(wrong_licences(&licences, &allowed).len(), 1);
    }

    #[test]
    fn lists_are_read_from_their_own_section() {
        let toml = "[a]\nallow = [\n  \"x\", # why\n]\n[b]\nallow = [\n  { crate = \"y\" },\n]\n";
        assert_eq!(list(toml, "a", "allow"), BTreeSet::from(["x".to_owned()]));
        assert_eq!(list(toml, "b", "allow"), BTreeSet::from(["y".to_owned()]));
        assert!(list(toml, "c", "allow").is_empty());
        assert!(locked("[[package]]\nname = \"q\"\n").contains("q"));
    }
}
