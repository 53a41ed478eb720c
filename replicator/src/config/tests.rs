use std::collections::BTreeMap;
use std::io::Write as _;

use clap::Parser as _;

use super::*;

const CLUSTER: &str = "5b1f0d8e-0000-4000-8000-000000000001";

fn load(
    flags: &[&str],
    environment: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Config, String> {
    let mut arguments = vec!["lockstepd".to_owned()];
    arguments.extend(flags.iter().map(|f| (*f).to_owned()));
    let kept = file.map(|text| {
        let mut kept = tempfile::NamedTempFile::new().unwrap();
        kept.write_all(text.as_bytes()).unwrap();
        kept
    });
    if let Some(kept) = &kept {
        arguments.push("--config".to_owned());
        arguments.push(kept.path().display().to_string());
    }
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    let look = |name: &str| environment.get(name).map(|v| (*v).to_owned());
    let flags = Flags::try_parse_from(arguments).map_err(|e| e.to_string())?;
    Config::load(&flags, &look).map_err(|e| e.to_string())
}

/// The least that must be said, with more flags.
fn least<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec!["--node", "n1", "--cluster", CLUSTER, "--meta", "http://10.0.0.9:7171"];
    flags.extend(["--peer-address", "10.0.0.1:7170", "--admin-address", "10.0.0.1:7171"]);
    flags.extend(more);
    flags
}

#[test]
fn defaults_fill_what_is_not_said() {
    let config = load(&least(&[]), &[], None).unwrap();
    assert_eq!(config.node.as_str(), "n1");
    assert_eq!(config.peer_listen, "0.0.0.0:7170".parse().unwrap());
    assert_eq!(config.admin_listen, "0.0.0.0:7171".parse().unwrap());
    assert_eq!(config.meta, MetaConfig::Remote("http://10.0.0.9:7171".to_owned()));
    assert_eq!(config.rebuild_after_ms, 600_000);
    assert_eq!(config.log_format, LogFormat::Text);
    assert_eq!(config.nbd_listen, None);
    assert_eq!(config.zone, None);
    assert_eq!(config.cluster.map(|uuid| uuid.to_string()).as_deref(), Some(CLUSTER));
    assert_eq!(config.keeper, Keeper::Own);
    assert_eq!(config.settled_file, None);
    assert_eq!(config.incoming_resyncs, lockstep_core::limits::RESYNC_ENTRIES);
    assert!(config.direct_io);
    assert!(config.pools.is_empty());
}

#[test]
fn the_cluster_may_be_left_to_be_found() {
    let flags: Vec<&str> =
        least(&[]).chunks(2).filter(|pair| pair[0] != "--cluster").flatten().copied().collect();
    assert_eq!(load(&flags, &[], None).unwrap().cluster, None);
    // As where a file of a deployment has the key, and nothing in it.
    assert_eq!(load(&flags, &[("LOCKSTEP_CLUSTER", "")], None).unwrap().cluster, None);
}

#[test]
fn the_record_store_may_be_objects_of_kubernetes() {
    let named = |namespace: &str| Ok(MetaConfig::Kubernetes(Some(namespace.to_owned())));
    assert_eq!(meta("kubernetes"), Ok(MetaConfig::Kubernetes(None)));
    assert_eq!(meta("kubernetes:lockstep-system"), named("lockstep-system"));
    let long = format!("kubernetes:{}", "n".repeat(64));
    for bad in ["kubernetes:", "kubernetes:a.b", "kubernetes:A", "kubernetes:-a", &long] {
        assert!(meta(bad).is_err_and(|why| why.contains("kubernetes:namespace")), "{bad}");
    }
}

#[test]
fn the_zone_is_a_label_and_a_label_may_be_the_zone() {
    let zone = "topology.kubernetes.io/zone";
    let told = |more: &[&str], environment| load(&least(more), environment, None);
    let config = told(&["--zone", "x", "--label", "rack=7"], &[]).unwrap();
    assert_eq!(config.labels.get(zone).map(String::as_str), Some("x"));
    assert_eq!(config.labels.get("rack").map(String::as_str), Some("7"));
    let config = told(&["--label", "topology.kubernetes.io/zone=y"], &[]).unwrap();
    assert_eq!(config.zone.as_deref(), Some("y"));
    let config = told(&[], &[("LOCKSTEP_LABEL", "rack=7, row=1")]).unwrap();
    assert_eq!(config.labels.len(), 2);
    let refused = told(&["--zone", "x", "--label", "topology.kubernetes.io/zone=y"], &[]);
    assert!(refused.unwrap_err().contains("is y; give one of them"));
    let ours = "lockstep.node-restriction.kubernetes.io/p-1=replica";
    assert!(told(&["--label", ours], &[]).unwrap_err().contains("follow the copies"));
    assert!(told(&["--label", "rack"], &[]).unwrap_err().contains("KEY=VALUE"));
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = format!(
        "node = 'file'\ncluster = '{CLUSTER}'\nmeta = 'embedded:/m'\nrebuild_after_ms = 1\n\
         peer_listen = '127.0.0.1:1'\nadmin_listen = '127.0.0.1:2'\nlog_level = 'warn'\n\
         direct_io = false\npool = ['file=/file']\n"
    );
    let environment =
        [("LOCKSTEP_NODE", "env"), ("LOCKSTEP_REBUILD_AFTER_MS", "2"), ("LOCKSTEP_POOL", "e=/e")];
    let flags = [
        "--node",
        "flag",
        "--pool",
        "a=/a,capacity=1GiB,reserve=1M,overcommit=250%",
        "--pool",
        "b=/b",
    ];

    let all = load(&flags, &environment, Some(&file)).unwrap();
    assert_eq!(all.node.as_str(), "flag");
    assert_eq!(all.rebuild_after_ms, 2);
    assert_eq!(all.log_level, "warn");
    assert!(!all.direct_io);
    let pool = PoolConfig {
        name: "a".to_owned(),
        dir: "/a".into(),
        capacity_bytes: Some(1 << 30),
        reserve_bytes: 1 << 20,
        overcommit_percent: 250,
    };
    assert_eq!(all.pools.len(), 2);
    assert_eq!(all.pools.first(), Some(&pool));

    let two = load(&[], &environment, Some(&file)).unwrap();
    assert_eq!(two.node.as_str(), "env");
    assert_eq!(two.pools.first().map(|p| p.name.as_str()), Some("e"));

    let one = load(&[], &[], Some(&file)).unwrap();
    assert_eq!(one.node.as_str(), "file");
    assert_eq!(one.rebuild_after_ms, 1);
    assert_eq!(one.pools.first().map(|p| p.name.as_str()), Some("file"));
}

#[test]
fn the_environment_can_name_the_file_and_several_pools() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "node = 'from-file'").unwrap();
    let path = file.path().display().to_string();
    let environment = [
        ("LOCKSTEP_CONFIG", path.as_str()),
        ("LOCKSTEP_CLUSTER", CLUSTER),
        ("LOCKSTEP_META", "embedded:/var/lib/lockstep/meta.redb"),
        ("LOCKSTEP_POOL", "a=/a;b=/b,reserve=5%"),
        ("LOCKSTEP_PEER_ADDRESS", "h:1"),
        ("LOCKSTEP_ADMIN_ADDRESS", "h:2"),
    ];
    let wrong = load(&[], &environment, None).unwrap_err();
    assert!(wrong.contains("LOCKSTEP_POOL") && wrong.contains("5%"), "{wrong}");
    let fixed: Vec<_> = environment
        .iter()
        .map(|(k, v)| if *k == "LOCKSTEP_POOL" { (*k, "a=/a; b=/b") } else { (*k, *v) })
        .collect();
    let config = load(&[], &fixed, None).unwrap();
    assert_eq!(config.node.as_str(), "from-file");
    assert_eq!(config.pools.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn pools_can_be_tables() {
    let file = "[[pool]]\nname = 'fast'\ndir = '/fast'\ncapacity = '2GiB'\nreserve = 4096\n";
    let config = load(&least(&[]), &[], Some(file)).unwrap();
    let pool = config.pools.first().unwrap();
    assert_eq!((pool.capacity_bytes, pool.reserve_bytes), (Some(2 << 30), 4096));
}

#[test]
fn errors_name_key_value_source_and_what_is_allowed() {
    let cases: &[(&[&str], Option<&str>, &[&str])] = &[
        (&["--node", "a b"], None, &["--node", "`a b`", "A-Z a-z 0-9"]),
        (&["--cluster", "7"], None, &["--cluster", "`7`", "UUID"]),
        (&["--peer-listen", "here"], None, &["--peer-listen", "`here`", "IP address and a port"]),
        (&["--peer-address", "here"], None, &["--peer-address", "`here`", "host:port"]),
        (&["--admin-listen", "0.0.0.0:7170"], None, &["admin_listen", "must differ"]),
        (&["--nbd-listen", "0.0.0.0:1"], None, &["--nbd-listen", "nbd_address"]),
        (&["--meta", "etcd://x"], None, &["--meta", "embedded:/absolute/path", "http://host"]),
        (&["--meta", "embedded:relative"], None, &["--meta", "embedded:/absolute/path"]),
        (&["--socket", "relative"], None, &["--socket", "absolute path"]),
        (&["--rebuild-after-ms", "soon"], None, &["`soon`", "milliseconds"]),
        (&["--direct-io", "maybe"], None, &["`maybe`", "true and false"]),
        (&["--keeper", "none"], None, &["`none`", "own and external"]),
        (&["--log-format", "xml"], None, &["`xml`", "text and json"]),
        (&["--log-level", "lockstep=loud"], None, &["lockstep=loud", "info,"]),
        (&["--pool", "x"], None, &["--pool", "`x`", "NAME=DIR"]),
        (&["--pool", "x=relative"], None, &["x=relative", "absolute"]),
        (&["--pool", "x=/x,capacity=0"], None, &["capacity of 0"]),
        (&["--pool", "x=/x,size=1"], None, &["NAME=DIR"]),
        (&["--pool", "x=/x", "--pool", "x=/y"], None, &["two pools have this name"]),
        (&["--pool", "x=/x", "--pool", "y=/x"], None, &["two pools have this directory"]),
        (&[], Some("pools = []"), &["unknown key `pools`", "known are node"]),
        (&[], Some("node = "), &["not TOML"]),
        (&[], Some("log_level = [1]"), &["log_level", "array"]),
        (&[], Some("[[pool]]\nname='a'\ndir='/a'\nsize=1"), &["no key `size`"]),
        (&[], Some("[[pool]]\nname='a'"), &["needs a dir"]),
    ];
    for (flags, file, parts) in cases {
        let overridden: Vec<&str> = flags.iter().copied().filter(|f| f.starts_with("--")).collect();
        let base = least(&[]);
        let kept = base.chunks(2).filter(|pair| !overridden.contains(&pair[0])).flatten();
        let mut all: Vec<&str> = kept.copied().collect();
        all.extend(*flags);
        let message = load(&all, &[], *file).unwrap_err();
        for part in *parts {
            assert!(message.contains(part), "{flags:?} {file:?}: no `{part}` in: {message}");
        }
    }
}

#[test]
fn what_is_missing_is_named_with_all_ways_to_give_it() {
    let message = load(&[], &[], None).unwrap_err();
    for part in ["`node`", "--node", "LOCKSTEP_NODE"] {
        assert!(message.contains(part), "{message}");
    }
    let unreadable = load(&["--config", "/nowhere/x.toml"], &[], None).unwrap_err();
    assert!(unreadable.contains("/nowhere/x.toml"), "{unreadable}");
    let nowhere = least(&[]);
    let without: Vec<&str> =
        nowhere.chunks(2).filter(|pair| pair[0] != "--peer-address").flatten().copied().collect();
    let message = load(&without, &[], None).unwrap_err();
    assert!(message.contains("peer_address") && message.contains("0.0.0.0:7170"), "{message}");
}

#[test]
fn of_a_flag_given_twice_the_last_one_wins_and_pools_add_up() {
    let twice = least(&["--log-level", "warn", "--log-level", "debug", "--node", "n2"]);
    let pools = ["--pool", "a=/a", "--pool", "b=/b"];
    let config = load(&[twice, pools.to_vec()].concat(), &[], None).unwrap();
    assert_eq!((config.node.as_str(), config.log_level.as_str()), ("n2", "debug"));
    assert_eq!(config.pools.len(), 2);
}
