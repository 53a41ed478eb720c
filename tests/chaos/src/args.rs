//! What can be asked for.

use std::path::PathBuf;

/// Faults for real daemons: kills, stops, partitions, full disks, replaced nodes, take-overs
///
/// Needs root, for it makes network namespaces and mounts. The same seed gives the same plan of
/// faults; what they meet depends on time, so a run is not repeated exactly.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lockstep-chaos", version)]
pub(crate) struct Args {
    /// How long faults are injected; the healing and the comparing come on top
    #[arg(long, default_value_t = 1.5)]
    pub(crate) minutes: f64,
    /// Which faults
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The last line of standard output is one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the plan and stop
    #[arg(long)]
    pub(crate) plan: bool,
    /// Keep the directory with data and logs also if all is well
    #[arg(long)]
    pub(crate) keep: bool,
    /// Injects only these kinds of faults, e.g. kill,partition
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    pub(crate) only: Vec<String>,
    /// What the daemons log
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub(crate) log_level: String,
    /// Where the directory is made [default: the system's place for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Said by the program to itself when it is in namespaces of its own.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) inside: Option<PathBuf>,
}

impl Args {
    /// Milliseconds during which faults are injected.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it was checked to be between 0 and a day"
    )]
    pub(crate) fn length_ms(&self) -> u64 {
        (self.minutes.clamp(0.0, 1440.0) * 60_000.0) as u64
    }
}
