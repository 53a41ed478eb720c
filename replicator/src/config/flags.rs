//! The flags of `lockstepd`.

use std::path::PathBuf;

/// Serves replicas and volumes of this node.
#[derive(Clone, Debug, Default, clap::Parser)]
#[command(
    name = "lockstepd",
    version,
    args_override_self = true,
    after_help = "Every key can also be set as \
    LOCKSTEP_<KEY> in the environment or as <key> in the configuration file; a flag wins over \
    the environment, that over the file."
)]
pub struct Flags {
    /// Configuration file, TOML [env: LOCKSTEP_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration, say what is in force, and stop
    #[arg(long)]
    pub check_config: bool,
    /// Name of this node, unique in the cluster
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// UUID of the cluster [default: that of the pools, or else of the record store]
    #[arg(long, value_name = "UUID")]
    pub cluster: Option<String>,
    /// Where replicas are served to other nodes [default: 0.0.0.0:7170]
    #[arg(long, value_name = "IP:PORT")]
    pub peer_listen: Option<String>,
    /// How others reach that [default: the address listened on]
    #[arg(long, value_name = "HOST:PORT")]
    pub peer_address: Option<String>,
    /// Where the admin API is served [default: 0.0.0.0:7171]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// How others reach that [default: the address listened on]
    #[arg(long, value_name = "HOST:PORT")]
    pub admin_address: Option<String>,
    /// Unix socket of the admin API [default: /run/lockstep/lockstepd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// Where this node stands: copies of a volume are spread over zones [default: none]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// A label of this node, over whose values copies can be spread; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Where replicas are kept; may be repeated
    #[arg(
        long = "pool",
        value_name = "NAME=DIR[,capacity=SIZE][,reserve=SIZE][,overcommit=PERCENT]"
    )]
    pub pool: Vec<String>,
    /// The record store: embedded:/path (owned and served by this daemon), http://host:port, or
    /// kubernetes or kubernetes:NAMESPACE (objects of the cluster that this runs in)
    #[arg(long, value_name = "WHERE")]
    pub meta: Option<String>,
    /// Directory for the unix sockets of attached volumes [default: /run/lockstep/nbd]
    #[arg(long, value_name = "DIR")]
    pub nbd_dir: Option<String>,
    /// Directory for what must outlive the daemon, not the machine [default: /run/lockstep]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<String>,
    /// Directory for names of block devices that stay [default: /dev/lockstep]
    #[arg(long, value_name = "DIR")]
    pub device_dir: Option<String>,
    /// How block devices are made: auto, ublk, nbd or fuse [default: auto]
    #[arg(long, value_name = "DOOR")]
    pub door: Option<String>,
    /// Who starts the process that keeps devices while there is no daemon: own (the daemon does) or
    /// external (`lockstepd keeper` runs already) [default: own]
    #[arg(long, value_name = "WHO")]
    pub keeper: Option<String>,
    /// Where attached volumes are also served over TCP [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    pub nbd_listen: Option<String>,
    /// How clients reach that [default: the address listened on]
    #[arg(long, value_name = "HOST:PORT")]
    pub nbd_address: Option<String>,
    /// How long a copy may be lost before a new one is built elsewhere [default: 600000]
    #[arg(long, value_name = "MS")]
    pub rebuild_after_ms: Option<String>,
    /// How long a copy too many, not in sync, is kept before it is removed [default: 3600000]
    #[arg(long, value_name = "MS")]
    pub forget_after_ms: Option<String>,
    /// Resyncs that copies on this node are the target of at a time [default: 2]
    #[arg(long, value_name = "N")]
    pub incoming_resyncs: Option<String>,
    /// Whether data files are opened past the page cache [default: true]
    #[arg(long, value_name = "BOOL")]
    pub direct_io: Option<String>,
    /// Shape of log lines: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or a filter [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Create this file once the daemon is ready
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<String>,
    /// Create this file once devices go on and copies are in sync again, after a restart
    #[arg(long, value_name = "PATH")]
    pub settled_file: Option<String>,
    /// Write the line READY to this open descriptor once the daemon is ready
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<String>,
}

impl Flags {
    /// The values that were given, by key.
    pub(super) fn values(&self) -> Vec<(&'static str, &String)> {
        let all = [
            ("node", &self.node),
            ("cluster", &self.cluster),
            ("peer_listen", &self.peer_listen),
            ("peer_address", &self.peer_address),
            ("admin_listen", &self.admin_listen),
            ("admin_address", &self.admin_address),
            ("socket", &self.socket),
            ("zone", &self.zone),
            ("meta", &self.meta),
            ("nbd_dir", &self.nbd_dir),
            ("run_dir", &self.run_dir),
            ("device_dir", &self.device_dir),
            ("door", &self.door),
            ("keeper", &self.keeper),
            ("nbd_listen", &self.nbd_listen),
            ("nbd_address", &self.nbd_address),
            ("rebuild_after_ms", &self.rebuild_after_ms),
            ("forget_after_ms", &self.forget_after_ms),
            ("incoming_resyncs", &self.incoming_resyncs),
            ("direct_io", &self.direct_io),
            ("log_format", &self.log_format),
            ("log_level", &self.log_level),
            ("ready_file", &self.ready_file),
            ("settled_file", &self.settled_file),
            ("ready_fd", &self.ready_fd),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?))).collect()
    }
}
