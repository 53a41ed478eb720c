//! What a StorageClass and a VolumeAttributesClass can say. README.md explains each.

use crate::refuse;
use lockstep_core::cluster::locality::is_label_key;
use std::collections::BTreeMap;
use std::fmt;
use tonic::Status;

/// Most copies of a volume.
const MAX_REPL: u32 = 5;
/// Keys of Kubernetes itself: of no meaning here, but for the one below.
const FOREIGN: &str = "csi.storage.k8s.io/";
/// Which file system.
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
/// Label of nodes over whose values copies are spread if nobody says.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Keys, as they are told in a refusal.
const KEYS: &str = "repl, minInSync, maxIops, maxBandwidth, writeCache, locality, pool, spread, \
                    thick, door, allowDegraded and csi.storage.k8s.io/fstype";
const MUTABLE_KEYS: &str = "repl, minInSync, maxIops and maxBandwidth";

/// File systems that are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fs {
    #[default]
    Ext4,
    Xfs,
}

impl Fs {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Reads its name; empty: none is named.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub(crate) fn named(field: &str, name: &str) -> Result<Option<Self>, Status> {
        match name {
            "" => Ok(None),
            "ext4" => Ok(Some(Self::Ext4)),
            "xfs" => Ok(Some(Self::Xfs)),
            other => Err(refuse::bad(field, other, "ext4 and xfs are allowed")),
        }
    }
}

/// A storage class, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) repl: u32,
    pub(crate) min_in_sync: u32,
    pub(crate) write_cache: String,
    /// Pods run only where a copy is.
    pub(crate) local: bool,
    pub(crate) pool: String,
    /// Label of nodes over whose values copies are spread.
    pub(crate) spread: String,
    /// Copies take all their space when they are made.
    pub(crate) thick: bool,
    pub(crate) door: String,
    /// Most requests, and bytes, in a second; 0: no limit.
    pub(crate) max_iops: u64,
    pub(crate) max_bytes_per_s: u64,
    pub(crate) allow_degraded: bool,
    pub(crate) fs: Option<Fs>,
}

/// What can be changed on a volume that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mutable {
    pub(crate) repl: Option<u32>,
    pub(crate) min_in_sync: Option<u32>,
    pub(crate) max_iops: Option<u64>,
    pub(crate) max_bytes_per_s: Option<u64>,
}

fn number(key: &str, value: &str, max: u32) -> Result<u32, Status> {
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    let number = value.parse().ok().filter(|n| digits && (1..=max).contains(n));
    number.ok_or_else(|| refuse::bad(key, value, &format!("1 to {max} are allowed")))
}

/// A whole number, with a unit if it has one, as Kubernetes writes quantities.
fn quantity(key: &str, value: &str) -> Result<u64, Status> {
    let units = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40)];
    let tens = [("k", 1000), ("M", 1_000_000), ("G", 1_000_000_000), ("", 1)];
    let mut all = units.into_iter().chain(tens);
    let found = all.find_map(|(unit, factor)| Some((value.strip_suffix(unit)?, factor)));
    let read = found.and_then(|(digits, factor): (&str, u64)| {
        let legal = digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|_| legal)?.checked_mul(factor)
    });
    read.ok_or_else(|| {
        let why =
            "a whole number is needed, with k, M, G, Ki, Mi, Gi or Ti if need be; 0: no limit";
        refuse::bad(key, value, why)
    })
}

fn one_of<'a>(key: &str, value: &'a str, allowed: &[&str]) -> Result<&'a str, Status> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    Err(refuse::bad(key, value, &format!("{} are allowed", allowed.join(" and "))))
}

fn flag(key: &str, value: &str) -> Result<bool, Status> {
    Ok(one_of(key, value, &["true", "false"])? == "true")
}

/// `minInSync` if nobody says.
fn usual_min(repl: u32) -> u32 {
    if repl <= 2 { 1 } else { 2 }
}

impl Mutable {
    /// Reads parameters that can be changed later.
    ///
    /// # Errors
    /// INVALID_ARGUMENT names key, value, and what is allowed.
    pub(crate) fn new(map: &BTreeMap<String, String>) -> Result<Self, Status> {
        let mut read = Self::default();
        for (key, value) in map {
            match key.as_str() {
                "repl" => read.repl = Some(number(key, value, MAX_REPL)?),
                "minInSync" => read.min_in_sync = Some(number(key, value, MAX_REPL)?),
                "maxIops" => read.max_iops = Some(quantity(key, value)?),
                "maxBandwidth" => read.max_bytes_per_s = Some(quantity(key, value)?),
                _ => {
                    let why = format!("no such mutable parameter; {MUTABLE_KEYS} are known");
                    return Err(refuse::bad(key, value, &why));
                }
            }
        }
        if let (Some(repl), Some(min)) = (read.repl, read.min_in_sync) {
            fits(repl, min)?;
        }
        Ok(read)
    }
}

/// Checks the two numbers against each other.
fn fits(repl: u32, min_in_sync: u32) -> Result<(), Status> {
    if min_in_sync <= repl {
        return Ok(());
    }
    let why = format!("1 to {repl}, the number of copies, are allowed");
    Err(refuse::bad("minInSync", &min_in_sync.to_string(), &why))
}

impl Parameters {
    /// Reads a storage class, and what goes before it.
    ///
    /// # Errors
    /// INVALID_ARGUMENT names key, value, and what is allowed.
    pub(crate) fn new(
        map: &BTreeMap<String, String>,
        mutable: &BTreeMap<String, String>,
    ) -> Result<Self, Status> {
        let changed = Mutable::new(mutable)?;
        let (mut repl, mut min_in_sync) = (3, None);
        let mut read = Self {
            repl,
            min_in_sync: 0,
            write_cache: "volatile".to_owned(),
            local: true,
            pool: "default".to_owned(),
            spread: ZONE.to_owned(),
            thick: false,
            door: "auto".to_owned(),
            max_iops: 0,
            max_bytes_per_s: 0,
            allow_degraded: false,
            fs: None,
        };
        for (key, value) in map {
            match key.as_str() {
                "repl" => repl = number(key, value, MAX_REPL)?,
                "minInSync" => min_in_sync = Some(number(key, value, MAX_REPL)?),
                _ => read.set(key, value)?,
            }
        }
        read.repl = changed.repl.unwrap_or(repl);
        // What is set later need not know what the class says.
        let asked = changed.min_in_sync.or(min_in_sync.filter(|_| changed.repl.is_none()));
        read.min_in_sync = asked.unwrap_or_else(|| usual_min(read.repl));
        fits(read.repl, read.min_in_sync)?;
        read.max_iops = changed.max_iops.unwrap_or(read.max_iops);
        read.max_bytes_per_s = changed.max_bytes_per_s.unwrap_or(read.max_bytes_per_s);
        Ok(read)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Status> {
        match key {
            "writeCache" => {
                self.write_cache = one_of(key, value, &["volatile", "through"])?.to_owned();
            }
            "locality" => {
                self.local = one_of(key, value, &["required", "preferred"])? == "required"
            }
            "pool" => {
                if value.is_empty() {
                    return Err(refuse::bad(key, value, "the name of a pool is needed"));
                }
                self.pool = value.to_owned();
            }
            "spread" => {
                is_label_key(value).map_err(|why| refuse::bad(key, value, why))?;
                self.spread = value.to_owned();
            }
            "thick" => self.thick = flag(key, value)?,
            "door" => {
                self.door = one_of(key, value, &["auto", "ublk", "nbd", "fuse"])?.to_owned();
            }
            "maxIops" => self.max_iops = quantity(key, value)?,
            "maxBandwidth" => self.max_bytes_per_s = quantity(key, value)?,
            "allowDegraded" => self.allow_degraded = flag(key, value)?,
            FS_TYPE => self.fs = Fs::named(key, value)?,
            _ if key.starts_with(FOREIGN) => {}
            _ => {
                let why = format!("no such parameter; {KEYS} are known");
                return Err(refuse::bad(key, value, &why));
            }
        }
        Ok(())
    }
}

/// Checks the parameters of a snapshot class: there are none.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(crate) fn of_snapshot(map: &BTreeMap<String, String>) -> Result<(), Status> {
    match map.iter().find(|(key, _)| !key.starts_with(FOREIGN)) {
        None => Ok(()),
        Some((key, value)) => {
            Err(refuse::bad(key, value, "no such parameter; snapshots have none"))
        }
    }
}

/// All that makes one volume differ from another, in one line: kept with the volume, to know a
/// repeated request by.
impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "repl={} minInSync={} writeCache={} locality={} pool={} spread={} thick={} \
             door={} allowDegraded={} fs={} maxIops={} maxBandwidth={}",
            self.repl,
            self.min_in_sync,
            self.write_cache,
            if self.local { "required" } else { "preferred" },
            self.pool,
            self.spread,
            self.thick,
            self.door,
            self.allow_degraded,
            self.fs.map_or("", Fs::name),
            self.max_iops,
            self.max_bytes_per_s
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Parameters, Status> {
        Parameters::new(&map(pairs), &BTreeMap::new())
    }

    #[test]
    fn all_has_a_default() {
        let none = read(&[]).unwrap();
        assert_eq!((none.repl, none.min_in_sync, none.local), (3, 2, true));
        assert_eq!(read(&[("repl", "2")]).unwrap().min_in_sync, 1);
        assert_eq!(none, read(&[("thick", "false"), ("spread", ZONE)]).unwrap());
        assert_eq!(none, read(&[("csi.storage.k8s.io/pvc/name", "data")]).unwrap());
        assert!(none.to_string().contains("repl=3 minInSync=2"), "{none}");
    }

    /// What README.md tells of each parameter.
    fn documented() -> BTreeMap<&'static str, &'static str> {
        let lines = include_str!("../../README.md").lines();
        let table = lines.skip_while(|line| !line.starts_with("| Parameter of a StorageClass"));
        let rows = table.skip(2).take_while(|line| line.starts_with('|'));
        rows.filter_map(|row| row.strip_prefix("| `")?.split_once("` |")).collect()
    }

    #[test]
    fn each_is_explained() {
        let documented = documented();
        let told: Vec<&str> = documented.keys().copied().collect();
        let mut known: Vec<&str> =
            KEYS.split([',', ' ']).filter(|word| !["", "and"].contains(word)).collect();
        known.sort_unstable();
        assert_eq!(told, known);
        let usual = read(&[]).unwrap();
        for (key, value) in [
            ("writeCache", usual.write_cache.as_str()),
            ("pool", &usual.pool),
            ("spread", &usual.spread),
            ("door", &usual.door),
            ("repl", &usual.repl.to_string()),
            (FS_TYPE, Fs::default().name()),
        ] {
            let row = documented[key].replace('`', "");
            assert!(row.contains(&format!("({value})")), "the default of {key} is {value}: {row}");
        }
        for key in MUTABLE_KEYS.split([',', ' ']).filter(|word| !["", "and"].contains(word)) {
            assert!(Mutable::new(&map(&[(key, "1")])).is_ok(), "{key}");
        }
    }

    #[test]
    fn each_is_read() {
        let all = read(&[
            ("repl", "5"),
            ("minInSync", "4"),
            ("writeCache", "through"),
            ("locality", "preferred"),
            ("pool", "fast"),
            ("spread", "example.com/rack"),
            ("thick", "true"),
            ("door", "nbd"),
            ("allowDegraded", "true"),
            (FS_TYPE, "xfs"),
            ("maxIops", "5k"),
            ("maxBandwidth", "64Mi"),
        ])
        .unwrap();
        let told = "repl=5 minInSync=4 writeCache=through locality=preferred pool=fast \
                    spread=example.com/rack thick=true door=nbd allowDegraded=true fs=xfs \
                    maxIops=5000 maxBandwidth=67108864";
        assert_eq!(all.to_string(), told);
    }

    #[test]
    fn what_is_mutable_goes_first() {
        let both = |class: &[(&str, &str)], later: &[(&str, &str)]| {
            Parameters::new(&map(class), &map(later)).map(|p| (p.repl, p.min_in_sync))
        };
        assert_eq!(both(&[("repl", "3"), ("minInSync", "3")], &[("repl", "2")]).unwrap(), (2, 1));
        assert_eq!(both(&[("repl", "3")], &[("minInSync", "3")]).unwrap(), (3, 3));
        assert!(both(&[("repl", "1")], &[("minInSync", "3")]).is_err());
    }

    #[test]
    fn limits_are_quantities() {
        let iops = |value: &str| read(&[("maxIops", value)]).map(|p| p.max_iops);
        for (value, expected) in [("0", 0), ("12", 12), ("3k", 3000), ("2Gi", 2 << 30)] {
            assert_eq!(iops(value).unwrap(), expected);
        }
        for value in ["", "k", "-1", "+1", "1.5M", "1 k", "99999999999G", "ten"] {
            assert!(iops(value).unwrap_err().message().contains("whole number"), "{value}");
        }
        let later = Parameters::new(&map(&[("maxIops", "1")]), &map(&[("maxIops", "2")])).unwrap();
        assert_eq!((later.max_iops, later.max_bytes_per_s), (2, 0));
    }

    #[test]
    fn a_refusal_names_key_value_and_what_is_allowed() {
        for (key, value, allowed) in [
            ("repl", "0", "1 to 5"),
            ("repl", "6", "1 to 5"),
            ("repl", "+3", "1 to 5"),
            ("repl", "", "1 to 5"),
            ("minInSync", "4", "1 to 3"),
            ("writeCache", "none", "volatile and through"),
            ("locality", "yes", "required and preferred"),
            ("pool", "", "name of a pool"),
            ("spread", "a//b", "a key is a name"),
            ("thick", "1", "true and false"),
            ("door", "iscsi", "ublk"),
            ("allowDegraded", "", "true and false"),
            (FS_TYPE, "btrfs", "ext4 and xfs"),
            ("replicas", "3", "minInSync"),
        ] {
            let refused = read(&[(key, value)]).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{key}");
            for part in [key, &format!("{value:?}"), allowed] {
                assert!(refused.message().contains(part), "{part}: {}", refused.message());
            }
        }
        for (key, value) in [("FakeKey", "x"), ("pool", "fast"), ("repl", "9")] {
            let refused = Mutable::new(&map(&[(key, value)])).unwrap_err();
            assert!(refused.message().contains(key), "{}", refused.message());
        }
        assert!(Mutable::new(&map(&[("repl", "2"), ("minInSync", "3")])).is_err());
    }
}
