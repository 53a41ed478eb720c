//! The inside: makes the cluster, lets clients and faults loose, and judges.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lockstep_attach::nbd::{Client, NbdUri};
use lockstep_proto::v1::CreateVolumeRequest;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::Args;
use crate::board::{Board, say};
use crate::cluster::Cluster;
use crate::fio::Fio;
use crate::report::Report;
use crate::seat::Seat;
use crate::volume::{ALL, Fs, Guest, NODES};
use crate::writer::{Outcome, Writer};
use crate::{files, finish, inject, plan};

/// How long daemons may take to start.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long clients may take to come to their end, once all is healed.
const CLIENTS_LIMIT: Duration = Duration::from_secs(300);

/// Runs it all in the namespaces that were made for it.
pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = args.inside.clone().context("--inside is missing")?;
    if std::process::id() != 1 {
        bail!("--inside is for the program itself; leave it out");
    }
    let begin = Instant::now();
    let steps = plan::plan(args.seed, args.length_ms(), NODES, ALL.len(), &args.only)?;
    say(&format!("seed {}: {} faults in {} minutes", args.seed, steps.len(), args.minutes));
    steps.iter().for_each(|step| say(&format!("  {step}")));
    let board = Arc::new(Board::new());
    let cluster = Arc::new(Cluster::make(&dir, &args.log_level, Arc::clone(&board)).await?);
    let outcome = chaos(args, &dir, &cluster, &steps).await;
    if let Err(e) = &outcome {
        board.violation(&format!("the run could not go on: {e:#}"));
    }
    finish::end(&cluster).await?;
    let mut report = outcome.unwrap_or_default();
    let violations = board.violations();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    report.minutes = args.minutes;
    report.seed = args.seed;
    report.violations = violations.len();
    report.faults = board.faults();
    report.fio_runs = count(&board.fio_runs);
    report.takeovers = count(&board.takeovers);
    report.failed_requests = count(&board.failed_requests);
    report.abandoned = count(&board.abandoned);
    report.skipped = count(&board.skipped);
    report.elapsed_ms = u64::try_from(begin.elapsed().as_millis())?;
    say(&format!("{report:#?}"));
    std::fs::write(dir.with_extension("json"), serde_json::to_string(&report)?)?;
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn chaos(
    args: &Args,
    dir: &Path,
    cluster: &Arc<Cluster>,
    steps: &[plan::Step],
) -> anyhow::Result<Report> {
    let board = &cluster.board;
    for node in cluster.nodes.iter().rev() {
        cluster.launch(node)?;
    }
    cluster.until_ready(READY_LIMIT).await?;
    let mut seats = Vec::new();
    let mut writers = JoinSet::new();
    let mut fios = JoinSet::new();
    for (index, volume) in ALL.into_iter().enumerate() {
        let seed = args.seed.wrapping_mul(1000) + index as u64;
        let seat = Arc::new(Seat::new(volume, Arc::clone(cluster), seed));
        seats.push(Arc::clone(&seat));
        let wanted = CreateVolumeRequest {
            name: volume.name.to_owned(),
            size_bytes: volume.size_bytes,
            repl: volume.repl,
            min_in_sync: Some(volume.min_in_sync),
            ..Default::default()
        };
        cluster.control(0)?.create_as(wanted).await?;
        let uri = seat.attach(index % NODES, false).await?;
        match volume.guest {
            Guest::Writer(fs) => {
                let image = prepare(dir, fs, &uri).await?;
                writers.spawn(Writer::new(seat, image, seed).run(Some(uri)));
            }
            Guest::Fio => {
                fios.spawn(Fio::new(seat, dir.to_owned(), seed).run(Some(uri)));
            }
        }
    }
    board.tell("all volumes are in use; the faults begin");
    inject::inject(cluster, &seats, steps).await;
    finish::heal(cluster, &ALL).await?;
    board.stop.store(true, Ordering::Relaxed);
    board.tell("the clients come to their end and look at everything");
    let ends = async {
        let outcomes = writers.join_all().await;
        fios.join_all().await;
        outcomes
    };
    let outcomes = timeout(CLIENTS_LIMIT, ends).await.context("the clients do not end")?;
    let mut report = add_up(&outcomes);
    // A client that did nothing has shown nothing.
    if outcomes.iter().any(|o| o.acked_writes == 0 || o.reads_checked == 0) {
        board.violation("a client wrote or read nothing");
    }
    board.tell("comparing the copies");
    report.copies_compared = finish::compare(cluster, &seats).await;
    let wanted: usize = ALL.iter().map(|v| v.repl as usize).sum();
    if report.copies_compared < wanted {
        board.violation(&format!("only {} copies were in sync", report.copies_compared));
    }
    Ok(report)
}

async fn prepare(dir: &Path, fs: Fs, uri: &NbdUri) -> anyhow::Result<files::Image> {
    let image = files::make_image(dir, fs).await?;
    let client = Client::connect(uri).await?;
    files::put_image(&client, &image).await?;
    client.close().await?;
    Ok(image)
}

fn add_up(outcomes: &[Outcome]) -> Report {
    let mut report = Report::default();
    for outcome in outcomes {
        report.acked_writes += outcome.acked_writes;
        report.acked_bytes += outcome.acked_bytes;
        report.reads_checked += outcome.reads_checked;
        report.former_reads += outcome.former_reads;
        report.blocks_checked += outcome.blocks_checked;
        report.max_pause_ms = report.max_pause_ms.max(outcome.max_pause_ms);
    }
    report
}
