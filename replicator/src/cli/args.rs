//! What can be typed.

use clap::{Parser, Subcommand};

use crate::config::size::parse_size;

/// Replicated volumes: look at them, make them, attach them.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "lockstep",
    version,
    propagate_version = true,
    after_help = "Exit status: \
    0 done, 1 failure, 2 bad usage or value, 3 not found, 4 not possible in the present state, \
    5 unavailable or not in time."
)]
pub struct Args {
    /// The daemon to ask: unix:///path/of/socket or http://host:port
    #[arg(
        long,
        global = true,
        env = "LOCKSTEP_SERVER",
        value_name = "URI",
        default_value = "unix:///run/lockstep/lockstepd.sock"
    )]
    pub server: String,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Nodes of the cluster
    Node {
        /// What about them.
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Volumes
    Volume {
        /// What about them.
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Snapshots of volumes
    Snapshot {
        /// What about them.
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Why something is as it is
    Explain {
        /// What.
        #[command(subcommand)]
        command: ExplainCommand,
    },
    /// What would happen; nothing is changed
    #[command(name = "whatif")]
    WhatIf {
        /// If what.
        #[command(subcommand)]
        command: WhatIfCommand,
    },
    /// Serve a volume on a node and print its NBD URI
    Attach(Attach),
    /// Finish, flush and stop serving a volume
    Detach {
        /// Name of the volume
        name: String,
        /// Also with clients connected, or if the node that serves it cannot be reached
        #[arg(long)]
        force: bool,
    },
    /// Show on this machine that a volume outlives the daemon that serves it
    Demo(crate::demo::DemoArgs),
    /// Nodes and volumes at a glance
    Status {
        /// Show it again and again, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
        /// Pause between two looks
        #[arg(long, value_name = "MS", default_value_t = 1000)]
        interval_ms: u64,
    },
}

/// About nodes.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// All nodes
    List,
    /// One node with its pools, replicas and attached volumes
    Show {
        /// Its name; the node of the daemon that is asked, if left out
        name: Option<String>,
    },
    /// Move all copies away from a node: each is built elsewhere first
    Evacuate {
        /// Its name
        name: String,
        /// Stop that: copies that are still there stay
        #[arg(long)]
        undo: bool,
        /// Keep running until no copy is left there
        #[arg(long)]
        wait: bool,
    },
    /// Forget a pool that a node has lost for good; a new one may take its name
    ForgetPool {
        /// Name of the node
        node: String,
        /// Name of the pool
        pool: String,
    },
    /// Forget a node whose daemon has ended; its copies are built anew elsewhere
    Remove {
        /// Its name
        name: String,
        /// Also if it holds the last copies of some volume
        #[arg(long)]
        force: bool,
    },
}

/// About volumes.
#[derive(Clone, Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume; does nothing if the very same one is there
    Create(Create),
    /// All volumes
    List,
    /// One volume: its copies, what is wrong, and what to do
    Show {
        /// Its name
        name: String,
    },
    /// Remove a volume and all its data; it must be detached
    Delete {
        /// Its name
        name: String,
    },
    /// Change how many copies a volume has, and how fast it may be used, attached or not
    Set {
        /// Its name
        name: String,
        /// Copies, 1 to 5
        #[arg(long, value_name = "N")]
        repl: Option<u32>,
        /// Fewest copies an acknowledged write may have
        #[arg(long, value_name = "N")]
        min_in_sync: Option<u32>,
        /// Most requests in a second; 0: no limit
        #[arg(long, value_name = "N")]
        max_iops: Option<u64>,
        /// Most that is read and written in a second, as in 100MiB; 0: no limit
        #[arg(long, value_name = "SIZE", value_parser = size)]
        max_bandwidth: Option<u64>,
    },
    /// Go on from one copy when those with all data are lost for good; tells first what is lost
    Recover {
        /// Its name
        name: String,
        /// The copy to go on from: its id or its node
        #[arg(long, value_name = "ID|NODE", required_unless_present = "acknowledge")]
        replica: Option<String>,
        /// Do it
        #[arg(long)]
        force: bool,
        /// Do not ask first
        #[arg(long)]
        yes: bool,
        /// Only take note: what may have been lost is known, and is shown no more
        #[arg(long, conflicts_with_all = ["replica", "force"])]
        acknowledge: bool,
    },
    /// Read every copy of an attached volume in full, mend bad blocks, compare the copies
    Scrub {
        /// Its name
        name: String,
        /// Keep running until it is done, and fail if something can't be mended
        #[arg(long)]
        wait: bool,
    },
    /// Make a volume larger, attached or not, with the file system that is mounted along with it
    Resize {
        /// Its name
        name: String,
        /// Its size from now on, as in 20GiB
        #[arg(long, value_parser = size)]
        size: u64,
    },
    /// Build one more copy of a volume
    AddReplica {
        /// Its name
        name: String,
        /// Where; chosen, if left out
        #[arg(long)]
        node: Option<String>,
    },
}

/// What is explained.
#[derive(Clone, Debug, Subcommand)]
pub enum ExplainCommand {
    /// Why the copies of a volume are where they are, and what happens next
    Volume {
        /// Its name
        name: String,
    },
    /// Why a pod of Kubernetes runs where it does, or does not run, as far as its volumes go
    Pod {
        /// Its name
        name: String,
        /// Its namespace [default: that of the kubeconfig file, or of the pod this runs in]
        #[arg(long, short)]
        namespace: Option<String>,
    },
}

/// What could happen.
#[derive(Clone, Debug, Subcommand)]
pub enum WhatIfCommand {
    /// A node dies and never comes back: which volumes go on where, and what is rebuilt
    NodeDown {
        /// Its name
        node: String,
        /// What a node takes in while it rebuilds, in a second
        #[arg(long, value_name = "SIZE", value_parser = size, default_value = "100MiB")]
        rate: u64,
    },
}

/// About snapshots.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep a volume's content as it is now, attached or not
    Create {
        /// Name of the volume
        volume: String,
        /// Name of the snapshot: 1 to 63 of a-z 0-9 - .
        name: String,
    },
    /// All snapshots
    List {
        /// Of this volume only
        #[arg(long)]
        volume: Option<String>,
    },
    /// Where the copies of a snapshot are, and how far those are that are made anew
    Show {
        /// Its name
        name: String,
    },
    /// Remove a snapshot; volumes that were made from it stay
    Delete {
        /// Its name
        name: String,
    },
}

/// A volume to be made.
#[derive(Clone, Debug, clap::Args)]
pub struct Create {
    /// Its name: 1 to 63 of a-z 0-9 - .
    pub name: String,
    /// Its size, as in 10GiB [default: that of what it begins with]
    #[arg(long, value_parser = size,
        required_unless_present_any = ["from_snapshot", "from_volume"])]
    pub size: Option<u64>,
    /// Begin with what this snapshot has
    #[arg(long, value_name = "SNAPSHOT")]
    pub from_snapshot: Option<String>,
    /// Begin with what this volume has now
    #[arg(long, value_name = "VOLUME", conflicts_with = "from_snapshot")]
    pub from_volume: Option<String>,
    /// Copies, 1 to 5
    #[arg(long, default_value_t = 3)]
    pub repl: u32,
    /// Fewest copies an acknowledged write may have [default: 1 for up to two copies, else 2]
    #[arg(long, value_name = "N")]
    pub min_in_sync: Option<u32>,
    /// Put a copy on this node; give one for each copy, or none to have them chosen
    #[arg(long = "node", value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Pool that holds the copies on each node [default: that of what it begins with, or "default"]
    #[arg(long)]
    pub pool: Option<String>,
    /// Put a copy on the first of these that has room; may be repeated, the best first
    #[arg(long, value_name = "NODE", conflicts_with = "nodes")]
    pub prefer: Vec<String>,
    /// Spread copies over the values of this label of nodes [default: topology.kubernetes.io/zone]
    #[arg(long, value_name = "KEY")]
    pub spread: Option<String>,
    /// If it is served for long by a node that has no copy, move one there
    #[arg(long)]
    pub follow: bool,
    /// Take the space of all copies now, and keep it
    #[arg(long)]
    pub thick: bool,
    /// Make it with fewer copies if there are too few nodes
    #[arg(long)]
    pub allow_degraded: bool,
    /// Most requests in a second; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_iops: u64,
    /// Most that is read and written in a second, as in 100MiB; 0: no limit
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "0")]
    pub max_bandwidth: u64,
    /// How its block devices are made: auto, ublk, nbd or fuse [default: auto]
    #[arg(long, value_name = "DOOR")]
    pub door: Option<String>,
    /// When a write is durable: volatile, when it is flushed; through, when it is written
    /// [default: volatile]
    #[arg(long, value_name = "WHEN")]
    pub write_cache: Option<String>,
}

/// A volume to be attached.
#[derive(Clone, Debug, clap::Args)]
pub struct Attach {
    /// Its name
    pub name: String,
    /// Where to serve it [default: the node of the daemon that is asked]
    #[arg(long)]
    pub node: Option<String>,
    /// Take it also from a node that is alive; its clients get errors
    #[arg(long)]
    pub force: bool,
    /// How long to wait for it
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub wait: f64,
    /// Keep running until Ctrl-C and then detach it
    #[arg(long)]
    pub export: bool,
    /// Make a block device of it and print its path; the flags below imply this
    #[arg(long)]
    pub device: bool,
    /// Through this door: auto, ublk, nbd or fuse [default: as the volume says, then the node]
    #[arg(long, value_name = "DOOR")]
    pub door: Option<String>,
    /// The device refuses writes
    #[arg(long)]
    pub ro: bool,
    /// Make a file system of this type, ext4 or xfs, if the device is blank
    #[arg(long, value_name = "TYPE")]
    pub fs: Option<String>,
    /// Mount its file system there; detaching unmounts it
    #[arg(long, value_name = "DIR")]
    pub mount: Option<String>,
    /// Mount it with this option; may be repeated
    #[arg(long, value_name = "OPTION", requires = "mount")]
    pub mount_option: Vec<String>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}
