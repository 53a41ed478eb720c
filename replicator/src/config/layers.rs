//! Values as texts, each with where it came from, and how the strongest one is found and read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ConfigError, Flags, labels, pool};
use crate::engine::PoolConfig;

/// Every key but `config`, which names the file.
const KEYS: &[&str] = &[
    "node",
    "cluster",
    "peer_listen",
    "peer_address",
    "admin_listen",
    "admin_address",
    "socket",
    "zone",
    "label",
    "pool",
    "meta",
    "nbd_dir",
    "run_dir",
    "device_dir",
    "door",
    "keeper",
    "nbd_listen",
    "nbd_address",
    "rebuild_after_ms",
    "forget_after_ms",
    "incoming_resyncs",
    "direct_io",
    "log_format",
    "log_level",
    "ready_file",
    "settled_file",
    "ready_fd",
];

/// A value before it is understood.
struct Raw {
    text: String,
    source: String,
}

/// The strongest value of each key.
#[derive(Default)]
pub(super) struct Layers {
    values: BTreeMap<&'static str, Raw>,
    pools: Vec<PoolConfig>,
    labels: BTreeMap<String, String>,
}

fn flag_name(key: &str) -> String {
    key.replace('_', "-")
}

fn variable(key: &str) -> String {
    format!("LOCKSTEP_{}", key.to_uppercase())
}

impl Layers {
    /// Reads all sources; the stronger ones last, so that they replace.
    pub(super) fn read(
        flags: &Flags,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self::default();
        let file = flags.config.clone().or_else(|| environment("LOCKSTEP_CONFIG").map(Into::into));
        if let Some(path) = file {
            layers.read_file(&path)?;
        }
        for key in KEYS {
            let name = variable(key);
            match environment(&name).filter(|text| !text.is_empty()) {
                Some(text) if *key == "pool" => {
                    layers.pools = pool::read_texts(text.split(';'), &name)?;
                }
                Some(text) if *key == "label" => {
                    layers.labels = labels::read_texts(text.split(','), &name)?;
                }
                Some(text) => {
                    layers.values.insert(key, Raw { text, source: name });
                }
                None => {}
            }
        }
        for (key, text) in flags.values() {
            let source = format!("--{}", flag_name(key));
            layers.values.insert(key, Raw { text: text.clone(), source });
        }
        if !flags.pool.is_empty() {
            layers.pools = pool::read_texts(flags.pool.iter().map(String::as_str), "--pool")?;
        }
        if !flags.label.is_empty() {
            layers.labels = labels::read_texts(flags.label.iter().map(String::as_str), "--label")?;
        }
        Ok(layers)
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            ConfigError::NotToml { path: path.to_owned(), why: e.to_string() }
        })?;
        for (name, value) in table {
            let Some(key) = KEYS.iter().copied().find(|key| *key == name) else {
                let path = path.to_owned();
                return Err(ConfigError::UnknownKey { path, key: name, known: KEYS.join(", ") });
            };
            let source = path.display().to_string();
            if key == "pool" {
                self.pools = pool::read_toml(&value, &source)?;
                continue;
            }
            if key == "label" {
                self.labels = labels::read_toml(&value, &source)?;
                continue;
            }
            let text = match &value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                other => {
                    let why = format!("one value is needed, not a {}", other.type_str());
                    let value = other.to_string();
                    return Err(ConfigError::BadValue { key, source_name: source, value, why });
                }
            };
            self.values.insert(key, Raw { text, source });
        }
        Ok(())
    }

    /// A key that must be set.
    pub(super) fn need<T>(
        &self,
        key: &'static str,
        what: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        self.optional(key, read)?.ok_or_else(|| ConfigError::Missing {
            key,
            what,
            flag: flag_name(key),
            env: key.to_uppercase(),
        })
    }

    /// A key with a default. The default is read like any value.
    pub(super) fn with_default<T>(
        &self,
        key: &'static str,
        default: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        match self.optional(key, &read)? {
            Some(value) => Ok(value),
            None => read(default).map_err(|why| self.bad(key, default, why)),
        }
    }

    /// A key that may be left out.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(raw) = self.values.get(key) else { return Ok(None) };
        read(&raw.text).map(Some).map_err(|why| self.bad(key, &raw.text, why))
    }

    /// The labels as they were given.
    pub(super) fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// The pools, with names that differ.
    pub(super) fn pools(&self) -> Result<Vec<PoolConfig>, ConfigError> {
        let mut dirs: BTreeMap<PathBuf, &str> = BTreeMap::new();
        let mut names: BTreeMap<&str, ()> = BTreeMap::new();
        for pool in &self.pools {
            let twice = if names.insert(&pool.name, ()).is_some() {
                Some("two pools have this name")
            } else if dirs.insert(pool.dir.clone(), &pool.name).is_some() {
                Some("two pools have this directory")
            } else {
                None
            };
            if let Some(why) = twice {
                let value = format!("{}={}", pool.name, pool.dir.display());
                return Err(self.bad("pool", &value, why.to_owned()));
            }
        }
        Ok(self.pools.clone())
    }

    /// The error for a value of `key`.
    pub(super) fn bad(&self, key: &'static str, value: &str, why: String) -> ConfigError {
        let source = self.values.get(key).map(|raw| raw.source.clone());
        let source_name = source.unwrap_or_else(|| format!("default of {key}"));
        let source_name = if key == "pool" { "pool".to_owned() } else { source_name };
        ConfigError::BadValue { key, source_name, value: value.to_owned(), why }
    }
}
