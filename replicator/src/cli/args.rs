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
    /// Change how many copies a volume has, attached or not
    Set {
        /// Its name
        name: String,
        /// Copies, 1 to 5
        #[arg(long, value_name = "N")]
        repl: Option<u32>,
        /// Fewest copies an acknowledged write may have
        #[arg(long, value_name = "N")]
        min_in_sync: Option<u32>,
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
    /// Build one more copy of a volume
    AddReplica {
        /// Its name
        name: String,
        /// Where; chosen, if left out
        #[arg(long)]
        node: Option<String>,
    },
}

/// A volume to be made.
#[derive(Clone, Debug, clap::Args)]
pub struct Create {
    /// Its name: 1 to 63 of a-z 0-9 - .
    pub name: String,
    /// Its size, as in 10GiB
    #[arg(long, value_parser = size)]
    pub size: u64,
    /// Copies, 1 to 5
    #[arg(long, default_value_t = 3)]
    pub repl: u32,
    /// Fewest copies an acknowledged write may have [default: 1 for up to two copies, else 2]
    #[arg(long, value_name = "N")]
    pub min_in_sync: Option<u32>,
    /// Put a copy on this node; give one for each copy, or none to have them chosen
    #[arg(long = "node", value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Pool that holds the copies on each node
    #[arg(long, default_value = "default")]
    pub pool: String,
    /// Make it with fewer copies if there are too few nodes
    #[arg(long)]
    pub allow_degraded: bool,
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
