//! What `lockstepd` is told: by a file, the environment and flags, which all use the same names.
//!
//! A key `peer_listen` is `peer_listen = "…"` in the file, `LOCKSTEP_PEER_LISTEN` in the
//! environment and `--peer-listen` as a flag. A flag wins over the environment, that over the
//! file, that over the default.

mod flags;
pub mod labels;
mod layers;
mod pool;
pub mod size;
#[cfg(test)]
mod tests;

pub use flags::Flags;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_attach::device::Choice;
use lockstep_core::cluster::locality::LABEL_DOMAIN;
use lockstep_core::id::NodeId;
use uuid::Uuid;

use crate::engine::PoolConfig;
use layers::Layers;

/// Longest path of a socket: what fits its address, less a suffix for the time it is being made.
pub const MAX_SOCKET_PATH: usize = 103;

/// All that a daemon is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node, unique in the cluster.
    pub node: NodeId,
    /// The cluster; a pool or a peer of another one is refused. `None`: the one that the pools
    /// are of, or else the record store.
    pub cluster: Option<Uuid>,
    /// Where replicas of this node are served to primaries on other nodes.
    pub peer_listen: SocketAddr,
    /// `host:port` under which others reach that; `None`: the address listened on.
    pub peer_address: Option<String>,
    /// Where the admin API and, if this daemon owns it, the record store are served.
    pub admin_listen: SocketAddr,
    /// `host:port` under which others reach that; `None`: the address listened on.
    pub admin_address: Option<String>,
    /// Unix socket of the admin API.
    pub socket: PathBuf,
    /// Where this node stands: copies of a volume are spread over zones. `None`: not told.
    pub zone: Option<String>,
    /// Labels of this node; the zone is among them.
    pub labels: BTreeMap<String, String>,
    /// Where replicas are kept; their names differ. May be empty: a node without storage.
    pub pools: Vec<PoolConfig>,
    /// Where the record store is.
    pub meta: MetaConfig,
    /// Directory of the unix sockets of attached volumes.
    pub nbd_dir: PathBuf,
    /// Directory for what must outlive the daemon but not the machine's next start. Daemons that
    /// share a machine need one each.
    pub run_dir: PathBuf,
    /// Directory for names of block devices that stay.
    pub device_dir: PathBuf,
    /// How block devices are made if a volume does not say.
    pub door: Choice,
    /// Where attached volumes are served over TCP; `None`: nowhere.
    pub nbd_listen: Option<SocketAddr>,
    /// `host:port` under which clients reach that; `None`: the address listened on.
    pub nbd_address: Option<String>,
    /// Who starts the process that keeps open what must outlive the daemon.
    pub keeper: Keeper,
    /// How long a copy may be lost before a new one is built elsewhere.
    pub rebuild_after_ms: u64,
    /// How long a copy that is one too many, and not in sync, is kept before it is removed. The
    /// node of a lost copy may come back meanwhile, and bring it up to date cheaply.
    pub forget_after_ms: u64,
    /// Resyncs that copies on this node are the target of at a time; the others wait.
    pub incoming_resyncs: usize,
    /// Whether data files are opened past the page cache.
    pub direct_io: bool,
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// What is logged: a level, or a filter such as `info,lockstep_replicator=debug`.
    pub log_level: String,
    /// A file that is created once the daemon is ready.
    pub ready_file: Option<PathBuf>,
    /// A file that is created once what this node served before is as it was.
    pub settled_file: Option<PathBuf>,
    /// An open file descriptor that gets the line `READY` once the daemon is ready.
    pub ready_fd: Option<u32>,
}

/// Where the record store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaConfig {
    /// In this file, owned and served by this daemon.
    Embedded(PathBuf),
    /// Served by another daemon at this URI.
    Remote(String),
    /// In objects of the Kubernetes cluster that this runs in, or that `KUBECONFIG` leads to, in
    /// this namespace; `None`: in the one that this runs in.
    Kubernetes(Option<String>),
}

/// Who starts the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The daemon, when it first needs one.
    Own,
    /// Somebody else: here processes of the daemon end with it.
    External,
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path}: {source}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("configuration file {path} is not TOML: {why}", path = path.display())]
    NotToml {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// The file has a key that means nothing.
    #[error(
        "configuration file {path}: unknown key `{key}`; known are {known}",
        path = path.display()
    )]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The keys there are.
        known: String,
    },
    /// A value is not allowed.
    #[error("{source_name}: {key} = `{value}`: {why}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// Where the value came from: the flag, the variable or the file.
        source_name: String,
        /// The value.
        value: String,
        /// What is allowed.
        why: String,
    },
    /// A key without a default was given nowhere.
    #[error("`{key}` is not set: {what}; give --{flag}, LOCKSTEP_{env} or `{key}` in the file")]
    Missing {
        /// The key.
        key: &'static str,
        /// What it is for.
        what: &'static str,
        /// Its flag, without dashes in front.
        flag: String,
        /// Its variable, without the prefix.
        env: String,
    },
}

impl Config {
    /// Puts the configuration together. `environment` looks up a variable.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, where its value came from, and what is allowed.
    pub fn load(
        flags: &Flags,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let layers = Layers::read(flags, environment)?;
        let config = Self::resolve(&layers)?;
        config.check(&layers)?;
        Ok(config)
    }

    fn resolve(layers: &Layers) -> Result<Self, ConfigError> {
        let node_rule = "1 to 253 of the characters A-Z a-z 0-9 . _ -";
        Ok(Self {
            node: layers.need("node", "the name of this node", |text| {
                NodeId::new(text).ok_or_else(|| node_rule.to_owned())
            })?,
            cluster: layers.optional("cluster", |text| {
                Uuid::parse_str(text).map_err(|e| format!("a UUID is needed ({e})"))
            })?,
            peer_listen: layers.with_default("peer_listen", "0.0.0.0:7170", listen)?,
            peer_address: layers.optional("peer_address", address)?,
            admin_listen: layers.with_default("admin_listen", "0.0.0.0:7171", listen)?,
            admin_address: layers.optional("admin_address", address)?,
            socket: layers.with_default("socket", "/run/lockstep/lockstepd.sock", |text| {
                socket_path(text, MAX_SOCKET_PATH)
            })?,
            zone: Self::zone(layers)?,
            labels: Self::labels(layers)?,
            pools: layers.pools()?,
            meta: layers.need("meta", "where the record store is", meta)?,
            nbd_dir: layers.with_default("nbd_dir", "/run/lockstep/nbd", |text| {
                // Room for "/<uid>.sock".
                socket_path(text, MAX_SOCKET_PATH - 42)
            })?,
            run_dir: layers.with_default("run_dir", "/run/lockstep", |text| {
                // Room for "/keeper.sock".
                socket_path(text, MAX_SOCKET_PATH - 12)
            })?,
            device_dir: layers.with_default("device_dir", "/dev/lockstep", |text| {
                socket_path(text, MAX_SOCKET_PATH)
            })?,
            door: layers.with_default("door", "auto", str::parse)?,
            keeper: layers.with_default("keeper", "own", keeper)?,
            nbd_listen: layers.optional("nbd_listen", listen)?,
            nbd_address: layers.optional("nbd_address", address)?,
            rebuild_after_ms: layers.with_default("rebuild_after_ms", "600000", milliseconds)?,
            forget_after_ms: layers.with_default("forget_after_ms", "3600000", milliseconds)?,
            incoming_resyncs: layers.with_default("incoming_resyncs", "2", resyncs)?,
            direct_io: layers.with_default("direct_io", "true", |text| {
                text.parse().map_err(|_| "allowed are true and false".to_owned())
            })?,
            log_format: layers.with_default("log_format", "text", log_format)?,
            log_level: layers.with_default("log_level", "info", log_level)?,
            ready_file: layers.optional("ready_file", |text| Ok(PathBuf::from(text)))?,
            settled_file: layers.optional("settled_file", |text| Ok(PathBuf::from(text)))?,
            ready_fd: layers.optional("ready_fd", |text| {
                text.parse().map_err(|_| "the number of an open descriptor is needed".to_owned())
            })?,
        })
    }

    fn zone(layers: &Layers) -> Result<Option<String>, ConfigError> {
        let told = layers.optional("zone", zone)?;
        Ok(told.or_else(|| layers.labels().get(labels::ZONE_LABEL).cloned()))
    }

    /// The labels with the zone among them, and none of those that a controller puts.
    fn labels(layers: &Layers) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut all = layers.labels().clone();
        if let Some(zone) = Self::zone(layers)? {
            let there = all.insert(labels::ZONE_LABEL.to_owned(), zone.clone());
            if let Some(there) = there.filter(|there| *there != zone) {
                let why = format!("the label {} is {there}; give one of them", labels::ZONE_LABEL);
                return Err(layers.bad("zone", &zone, why));
            }
        }
        let follows = |key: &&String| key.split('/').next() == Some(LABEL_DOMAIN);
        if let Some(key) = all.keys().find(follows) {
            let why = "labels of this domain follow the copies of volumes and are not given";
            return Err(labels::bad("label", key, why));
        }
        Ok(all)
    }

    /// Checks what concerns more than one key.
    fn check(&self, layers: &Layers) -> Result<(), ConfigError> {
        let listened = [
            ("peer_listen", Some(self.peer_listen), &self.peer_address, "peer_address"),
            ("admin_listen", Some(self.admin_listen), &self.admin_address, "admin_address"),
            ("nbd_listen", self.nbd_listen, &self.nbd_address, "nbd_address"),
        ];
        for (key, listen, address, address_key) in listened {
            let Some(listen) = listen else { continue };
            if listen.ip().is_unspecified() && address.is_none() {
                let why = format!(
                    "this is no address that others can use; set {address_key} to the \
                     host:port by which they reach this node, or listen on one address"
                );
                return Err(layers.bad(key, &listen.to_string(), why));
            }
        }
        if self.peer_listen == self.admin_listen && self.peer_listen.port() != 0 {
            let why = "peer_listen and admin_listen must differ".to_owned();
            return Err(layers.bad("admin_listen", &self.admin_listen.to_string(), why));
        }
        Ok(())
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "an IP address and a port are needed, as in 10.0.0.1:7170 or [::]:7170".to_owned()
    })
}

fn keeper(text: &str) -> Result<Keeper, String> {
    match text {
        "own" => Ok(Keeper::Own),
        "external" => Ok(Keeper::External),
        _ => Err("allowed are own and external".to_owned()),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("allowed are text and json".to_owned()),
    }
}

fn milliseconds(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "a whole number of milliseconds is needed".to_owned())
}

fn zone(text: &str) -> Result<String, String> {
    // The same characters as in a node's name.
    let legal = NodeId::new(text).filter(|_| text.len() <= 63);
    legal.map(|name| name.to_string()).ok_or_else(|| {
        "1 to 63 of the characters A-Z a-z 0-9 . _ - are needed, as in rack-7".to_owned()
    })
}

fn resyncs(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=1000).contains(n));
    number.ok_or_else(|| "a whole number from 1 to 1000 is needed".to_owned())
}

fn address(text: &str) -> Result<String, String> {
    let refuse = || "host:port is needed, as in node-1.example.net:7170".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
    let port: u16 = port.parse().map_err(|_| refuse())?;
    if host.is_empty() || port == 0 || host.contains(['/', ' ']) {
        return Err(refuse());
    }
    Ok(text.to_owned())
}

fn socket_path(text: &str, longest: usize) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("an absolute path is needed".to_owned());
    }
    if text.len() > longest {
        return Err(format!("at most {longest} bytes fit the path of a unix socket"));
    }
    Ok(path)
}

fn meta(text: &str) -> Result<MetaConfig, String> {
    if let Some(path) = text.strip_prefix("embedded:") {
        let path = PathBuf::from(path);
        if path.is_absolute() {
            return Ok(MetaConfig::Embedded(path));
        }
    } else if let Some(address_part) = text.strip_prefix("http://")
        && address(address_part.trim_end_matches('/')).is_ok()
    {
        return Ok(MetaConfig::Remote(text.trim_end_matches('/').to_owned()));
    } else if text == "kubernetes" {
        return Ok(MetaConfig::Kubernetes(None));
    } else if let Some(namespace) = text.strip_prefix("kubernetes:")
        && is_namespace(namespace)
    {
        return Ok(MetaConfig::Kubernetes(Some(namespace.to_owned())));
    }
    Err("allowed are embedded:/absolute/path (this daemon owns the record store and serves it), \
         http://host:port (the admin address of the daemon that does), and kubernetes or \
         kubernetes:namespace (objects of the cluster that this runs in)"
        .to_owned())
}

/// Whether Kubernetes takes it for the name of a namespace.
fn is_namespace(text: &str) -> bool {
    let is_inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_whole = (1..=63).contains(&text.len()) && text.bytes().all(is_inside);
    is_whole && !text.starts_with('-') && !text.ends_with('-')
}

fn log_level(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("allowed are error, warn, info, debug, trace, off, and filters such as \
                  info,lockstep_replicator=debug"
            .to_owned()),
    }
}
