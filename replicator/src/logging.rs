//! Log lines go to standard error, as text for people or as JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The client of Kubernetes logs each error that it returns; whoever handles one logs it once.
const QUIET: &str = "kube_client=off";

/// Starts logging. Later calls in the same process change nothing.
pub fn start(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_new(format!("{QUIET},{level}"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}
