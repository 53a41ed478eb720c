//! `lockstep-kube`: the record store on Kubernetes objects against a real API server and a real
//! etcd: the suite that all record stores pass, with kills, lost answers and a server that is too
//! busy; and on nodes with real kubelets, volumes in pods. `tests/kube/run` starts it in namespaces
//! of its own.

mod accounts;
mod away;
mod chart;
mod cluster;
mod counting;
mod daemons;
mod drained;
mod exclusive;
mod explained;
mod failover;
mod guards;
mod install;
#[allow(dead_code, reason = "checks that use the rest come by and by")]
mod kafka;
mod killed;
mod kubelets;
mod lab;
mod many;
mod nodes;
mod objects;
mod partition;
mod process;
mod restarts;
mod rights;
mod shown;
mod speed;
mod stateful;
mod subject;
mod throttle;
mod wire;
mod writers;

use anyhow::Context as _;
use clap::Parser as _;
use cluster::Cluster;
use lab::Lab;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Mutex;

/// The record store on Kubernetes objects against a real API server.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lockstep-kube", version)]
struct Args {
    /// Where etcd, kube-apiserver and kubectl are
    #[arg(long)]
    programs: PathBuf,
    /// The root of the project, for its manifests
    #[arg(long, default_value = ".")]
    project: PathBuf,
    /// Where data and logs are kept [default: a new directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// More of what is random
    #[arg(long)]
    full: bool,
    /// Of what is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// No nodes are started, so the checks that need them are left out
    #[arg(long)]
    without_nodes: bool,
    /// What `tests/kube/brokers/programs` made: the figures of Kafka are taken, and nothing else
    #[arg(long)]
    brokers: Option<PathBuf>,
    /// How many MiB each broker holds when its node dies; two rounds for each
    #[arg(long, value_delimiter = ',', default_value = "64")]
    mib: Vec<u64>,
    /// Only the checks whose names contain one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The last line of standard output is one JSON object
    #[arg(long)]
    json: bool,
    /// Keep the directory with data and logs also if all is well
    #[arg(long)]
    keep: bool,
}

#[expect(clippy::print_stdout, reason = "it is a program")]
fn say(line: &str) {
    println!("{line}");
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = tokio::runtime::Runtime::new().context("starting a runtime");
    match outcome.and_then(|runtime| runtime.block_on(run(&args))) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("lockstep-kube: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => tempfile::Builder::new().prefix("lockstep-kube-").tempdir()?.keep(),
    };
    let begin = Instant::now();
    let cluster = Cluster::start(&dir, &args.programs).await?;
    let version = cluster.raw("/version").await?;
    let version: serde_json::Value = serde_json::from_str(&version)?;
    let version = version.get("gitVersion").and_then(|v| v.as_str()).unwrap_or("?").to_owned();
    say(&format!("Kubernetes {version} serves after {:.1} s", begin.elapsed().as_secs_f64()));
    for manifest in rights::manifests(&args.project)? {
        cluster.apply(&manifest).await?;
    }
    if let Some(brokers) = &args.brokers {
        return take_figures(args, brokers, cluster, &dir).await;
    }
    let mut run = Run { args, cluster: Arc::new(Mutex::new(cluster)), passed: 0, failed: 0 };
    let figures = run.all().await;
    let line = serde_json::json!({
        "kubernetes": version,
        "passed": run.passed,
        "failed": run.failed,
        "figures": figures,
    });
    let is_well = run.failed == 0 && run.passed > 0;
    if !is_well || args.keep {
        say(&format!("kept: {}", dir.display()));
    } else {
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    say(&format!("{} passed, {} failed", run.passed, run.failed));
    if args.json {
        say(&line.to_string());
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the loss of a node costs Kafka.
async fn take_figures(
    args: &Args,
    brokers: &Path,
    cluster: Cluster,
    dir: &Path,
) -> anyhow::Result<ExitCode> {
    let cluster = Arc::new(Mutex::new(cluster)).lock_owned().await;
    let taken = kafka::figures(cluster, brokers, &args.mib).await;
    if taken.is_err() || args.keep {
        say(&format!("kept: {}", dir.display()));
    } else {
        std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    let line = taken?;
    if args.json {
        say(&line.to_string());
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn wants(&self, check: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| check.contains(part))
    }
}

/// The checks that need nodes.
const NODE_CHECKS: [&str; 7] =
    ["stateful", "killed", "kubelets", "drained", "away", "exclusive", "partition"];

struct Run<'a> {
    args: &'a Args,
    cluster: Arc<Mutex<Cluster>>,
    passed: usize,
    failed: usize,
}

impl Run<'_> {
    async fn all(&mut self) -> serde_json::Value {
        let shared = Arc::clone(&self.cluster);
        self.check("suite", async || {
            subject::run(&shared).await.map(|held| format!("{held} checks of the contract"))
        })
        .await;
        self.check("many", async || many::run(&*shared.lock().await).await).await;
        self.check("wire", async || wire::run(&*shared.lock().await).await).await;
        self.check("guards", async || guards::run(&*shared.lock().await).await).await;
        self.check("throttle", async || throttle::run(&mut *shared.lock().await).await).await;
        self.check("restarts", async || restarts::run(&mut *shared.lock().await).await).await;
        self.check("daemons", async || daemons::run(&mut *shared.lock().await).await).await;
        self.check("failover", async || failover::run(&*shared.lock().await).await).await;
        self.check("shown", async || shown::run(&*shared.lock().await).await).await;
        self.check("explained", async || explained::run(&*shared.lock().await).await).await;
        self.charts(&shared).await;
        let figures = std::cell::RefCell::new(serde_json::Value::Null);
        self.check("speed", async || {
            let seen = speed::run(&*shared.lock().await).await?;
            let told = seen.to_string();
            figures.replace(seen);
            Ok(told)
        })
        .await;
        self.on_nodes().await;
        self.installed().await;
        figures.into_inner()
    }

    /// What concerns the chart.
    async fn charts(&mut self, shared: &Mutex<Cluster>) {
        let project = self.args.project.clone();
        self.check("chart", async || chart::run(&*shared.lock().await, &project).await).await;
        self.check("accounts", async || accounts::run(&*shared.lock().await, &project).await).await;
    }

    /// Checks on a cluster with nodes, which is only started if one of them is wanted.
    async fn on_nodes(&mut self) {
        let wanted = NODE_CHECKS.iter().any(|name| self.args.wants(name));
        let held = Arc::clone(&self.cluster).lock_owned().await;
        if !wanted {
            return;
        }
        if self.args.without_nodes {
            say("SKIPPED nodes: needs root, to run kubelets and to mount");
            return;
        }
        let begin = Instant::now();
        let lab = async {
            let mut lab = Lab::start(held).await?;
            lab.install_driver().await?;
            anyhow::Ok(lab)
        };
        let lab = match lab.await {
            Ok(lab) => Mutex::new(lab),
            Err(error) => {
                self.failed += 1;
                say(&format!("FAIL nodes: {error:#} ({:.1} s)", begin.elapsed().as_secs_f64()));
                return;
            }
        };
        let seconds = begin.elapsed().as_secs_f64();
        say(&format!("{} nodes with the driver are ready after {seconds:.1} s", lab::NODES));
        self.check("stateful", async || stateful::run(&mut *lab.lock().await).await).await;
        let (rounds, seed) = (if self.args.full { 10 } else { 3 }, self.args.seed);
        let body = async || killed::run(&mut *lab.lock().await, rounds, seed).await;
        self.check("killed", body).await;
        self.check("kubelets", async || kubelets::run(&mut *lab.lock().await).await).await;
        self.check("drained", async || drained::run(&mut *lab.lock().await).await).await;
        self.check("away", async || away::run(&mut *lab.lock().await).await).await;
        self.check("exclusive", async || exclusive::run(&mut *lab.lock().await).await).await;
        self.check("partition", async || partition::run(&mut *lab.lock().await).await).await;
        if let Err(error) = lab.into_inner().finish().await {
            self.failed += 1;
            say(&format!("FAIL nodes: {error:#}"));
        }
    }

    /// The chart on a cluster with nodes that has nothing of Lockstep.
    async fn installed(&mut self) {
        let held = Arc::clone(&self.cluster).lock_owned().await;
        if self.args.without_nodes {
            return;
        }
        let project = self.args.project.clone();
        self.check("install", async || {
            let lab = Lab::start(held).await?;
            let outcome = install::run(&lab, &project).await;
            lab.finish().await.and(outcome)
        })
        .await;
    }

    async fn check(&mut self, name: &str, body: impl AsyncFnOnce() -> anyhow::Result<String>) {
        if !self.args.wants(name) {
            return;
        }
        let begin = Instant::now();
        let outcome = body().await;
        let seconds = begin.elapsed().as_secs_f64();
        match outcome {
            Ok(told) => {
                self.passed += 1;
                say(&format!("PASS {name}: {told} ({seconds:.1} s)"));
            }
            Err(error) => {
                self.failed += 1;
                say(&format!("FAIL {name}: {error:#} ({seconds:.1} s)"));
            }
        }
    }
}
