//! Takes devices of one door through all that a daemon can do to them, and all that can happen to
//! the daemon meanwhile, short of its process's death, which `tests/restart.sh` brings about.

mod guest;
mod halves;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_attach::device::nbd::{NbdDoor, NbdOptions};
use lockstep_attach::device::ublk::UblkDoor;
use lockstep_attach::device::{Device, DeviceError, Door, Kind, Shape, Token};
use lockstep_attach::memory::Gated;

use crate::say;
use guest::{blkdiscard, queue, read_block, write_block};

/// Takes devices of one door through all that a daemon can do to them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which: ublk or nbd.
    door: String,
}

/// Whose devices they are.
const OWNER: &str = "scenes";
/// Size of the devices.
const SIZE: u64 = 16 << 20;
/// How soon everybody must have heard that a device fails.
const FAILED_WITHIN: Duration = Duration::from_secs(1);
/// How long something is given to happen that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long something that must not happen is watched.
const WATCH: Duration = Duration::from_millis(300);

/// How long the kernel's timers need to send again what a dead server had.
const TIMERS: Duration = Duration::from_secs(2);
/// How many writes come while nobody serves a device.
const MANY: u64 = 20;

/// How many servers follow each other.
const SERVERS: u8 = 60;

type AnyDoor = dyn Door<Gated>;

/// Runs all scenes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let door: Box<AnyDoor> = match args.door.as_str() {
        "ublk" => Box::new(UblkDoor::new(OWNER)),
        "nbd" => Box::new(NbdDoor::new(NbdOptions { owner: OWNER.into(), ..Default::default() })),
        other => bail!("no door {other} here"),
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(all(door.as_ref()))
}

async fn all(door: &AnyDoor) -> Result<()> {
    let probe = door.probe();
    say(&format!("{}: {}", probe.kind, probe.why));
    ensure!(probe.usable && probe.restartable, "the door cannot be used");
    shown(door).await.context("what is shown")?;
    reaching(door).await.context("what reaches the back end")?;
    crashed(door).await.context("a crash")?;
    held(door).await.context("a daemon that has a device, but not yet its volume")?;
    released(door).await.context("a release")?;
    failed(door).await.context("a failure")?;
    ended(door).await.context("the end of a device that nobody serves")?;
    busy(door).await.context("a busy device")?;
    churned(door).await.context("many servers")?;
    if probe.kind == Kind::Ublk {
        halves::all(door).await.context("a take-over that was cut off")?;
    }
    Ok(())
}

fn shape() -> Shape {
    let name = "scene".to_owned();
    Shape { name, size_bytes: SIZE, read_only: false, write_through: false, queues: 2 }
}

/// A device that somebody has had open: then the kernel has looked for partitions, and reads
/// nothing by itself any more.
async fn open(door: &AnyDoor, back: &Arc<Gated>) -> Result<Box<dyn Device>> {
    let device = door.open(shape(), Arc::clone(back)).await?;
    read_block(device.path(), 0).await??;
    Ok(device)
}

fn passed(scene: &str) {
    say(&format!("PASS {scene}"));
}

/// Waits for something that must happen.
async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let since = Instant::now();
    while !is_so() {
        ensure!(since.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Sees that somebody goes on waiting.
async fn wait_in_vain<T>(what: &str, task: &tokio::task::JoinHandle<T>) -> Result<()> {
    tokio::time::sleep(WATCH).await;
    ensure!(!task.is_finished(), "{what}");
    Ok(())
}

async fn shown(door: &AnyDoor) -> Result<()> {
    for (read_only, write_through) in [(false, false), (false, true), (true, false)] {
        let shape = Shape { read_only, write_through, ..shape() };
        let device = door.open(shape, Arc::new(Gated::new(SIZE))).await?;
        let path = device.path();
        ensure!(queue(path, "logical_block_size")? == "4096", "logical blocks");
        ensure!(queue(path, "physical_block_size")? == "4096", "physical blocks");
        let cache = if write_through { "write through" } else { "write back" };
        ensure!(queue(path, "write_cache")? == cache, "it should show a cache: {cache}");
        ensure!(queue(path, "../ro")? == u8::from(read_only).to_string(), "read-only");
        ensure!(queue(path, "../size")? == (SIZE / 512).to_string(), "size");
        ensure!(read_only || queue(path, "discard_max_bytes")? != "0", "discards are taken");
        device.close().await?;
        ensure!(!served(path), "{} is there after it was closed", path.display());
    }
    passed("a device shows its shape");
    Ok(())
}

/// Whether there is a disk of this name with something on it.
fn served(path: &Path) -> bool {
    path.exists() && queue(path, "../size").is_ok_and(|size| size != "0")
}

async fn reaching(door: &AnyDoor) -> Result<()> {
    let back = Arc::new(Gated::new(SIZE));
    let device = door.open(shape(), Arc::clone(&back)).await?;
    let path = device.path().to_owned();
    write_block(&path, 7, 3, false).await??;
    ensure!(back.memory().unflushed_blocks() == 1, "a plain write is not durable");
    write_block(&path, 7, 4, true).await??;
    ensure!(back.memory().unflushed_blocks() == 0, "a write that is asked to be durable is");
    ensure!(read_block(&path, 7).await?? == 4, "what was written last is read");
    blkdiscard(&path, &["--offset", "28672", "--length", "4096"]).await?;
    ensure!(back.discards() == 1, "discards reach it");
    ensure!(read_block(&path, 7).await?? == 0, "discarded blocks are empty here");
    write_block(&path, 8, 5, false).await??;
    blkdiscard(&path, &["--zeroout", "--offset", "32768", "--length", "4096"]).await?;
    ensure!(read_block(&path, 8).await?? == 0, "zeroes are zeroes");
    device.close().await?;
    passed("reads, writes, flushes, discards and zeroes reach the back end");
    Ok(())
}

async fn crashed(door: &AnyDoor) -> Result<()> {
    let back = Arc::new(Gated::new(SIZE));
    let device = open(door, &back).await?;
    let (path, token) = (device.path().to_owned(), device.token().clone());
    back.shut();
    let (write, read) = (write_block(&path, 1, 9, false), read_block(&path, 2));
    wait_until("the requests come", || back.waiting() == 2).await?;
    drop(device);
    wait_until("their tasks are dropped", || back.waiting() == 0).await?;
    let late = write_block(&path, 3, 8, false);
    wait_in_vain("a write was answered, or failed, without a server", &write).await?;
    wait_in_vain("a write was answered, or failed, without a server", &late).await?;
    back.open();
    let device = door.resume(token, Arc::clone(&back)).await?;
    write.await??;
    late.await??;
    ensure!(read.await?? == 0, "the read is done");
    ensure!(read_block(&path, 1).await?? == 9, "what was under way is there");
    device.close().await?;
    passed("a crash is a pause: what was under way is done by the next server");
    Ok(())
}

/// Gets hold of the device of a dead daemon, and lets the kernel's timers run.
async fn wait_held(door: &AnyDoor, token: &Token) {
    door.hold(token.clone()).await;
    tokio::time::sleep(TIMERS).await;
}

async fn held(door: &AnyDoor) -> Result<()> {
    let back = Arc::new(Gated::new(SIZE));
    let device = open(door, &back).await?;
    let (path, token) = (device.path().to_owned(), device.token().clone());
    back.shut();
    let begun = write_block(&path, 1, 9, false);
    wait_until("the request comes", || back.waiting() == 1).await?;
    drop(device);
    back.open();
    wait_held(door, &token).await;
    let late: Vec<_> = (2..2 + MANY).map(|number| write_block(&path, number, 8, false)).collect();
    wait_in_vain("a write was answered before its volume was there", &begun).await?;
    let since = Instant::now();
    let device = door.resume(token.clone(), Arc::clone(&back)).await?;
    begun.await??;
    say(&format!("what was under way is done after {:?}", since.elapsed()));
    for write in late {
        write.await??;
    }
    ensure!(read_block(&path, 1).await?? == 9 && read_block(&path, 2).await?? == 8, "all is there");
    drop(device);
    let read = read_block(&path, 1);
    wait_held(door, &token).await;
    wait_in_vain("a read was answered before its volume was there", &read).await?;
    let since = Instant::now();
    door.end(token).await?;
    ensure!(read.await?.is_err(), "whoever waited hears of it");
    ensure!(since.elapsed() < FAILED_WITHIN, "it took {:?}", since.elapsed());
    wait_until("it is gone", || !served(&path)).await?;
    passed("a device whose volume is not there yet begins nothing, and can be ended");
    Ok(())
}

/// Leaves a release the time to be over too early.
async fn wait_to_open(back: &Gated) {
    tokio::time::sleep(WATCH).await;
    back.open();
}

async fn released(door: &AnyDoor) -> Result<()> {
    let back = Arc::new(Gated::new(SIZE));
    let mut device = open(door, &back).await?;
    let (path, token) = (device.path().to_owned(), device.token().clone());
    for round in 1..=3 {
        back.shut();
        let begun = write_block(&path, 1, round, false);
        wait_until("the request comes", || back.waiting() == 1).await?;
        let opening = Arc::clone(&back);
        let (before, ()) = tokio::join!(
            async {
                device.release().await;
                back.is_open()
            },
            wait_to_open(&opening)
        );
        ensure!(before, "it was released before what was begun was finished");
        begun.await??;
        let later = read_block(&path, 1);
        wait_in_vain("a read was answered by nobody", &later).await?;
        drop(device);
        device = door.resume(token.clone(), Arc::clone(&back)).await?;
        ensure!(later.await?? == round, "the read is done");
    }
    device.close().await?;
    passed("a release finishes what was begun, and lets the rest wait");
    Ok(())
}

async fn failed(door: &AnyDoor) -> Result<()> {
    for released_first in [false, true] {
        let back = Arc::new(Gated::new(SIZE));
        let device = open(door, &back).await?;
        let path = device.path().to_owned();
        back.shut();
        let (write, read) = (write_block(&path, 1, 9, false), read_block(&path, 2));
        wait_until("the requests come", || back.waiting() == 2).await?;
        if released_first {
            // It cannot end, for the requests do not; it is cut off as by a daemon's limit.
            let _ = tokio::time::timeout(WATCH, device.release()).await;
        }
        let since = Instant::now();
        device.fail().await;
        let (write, read) = (write.await?, read.await?);
        ensure!(since.elapsed() < FAILED_WITHIN, "it took {:?}", since.elapsed());
        for error in [write.err(), read.err()] {
            let errno = error.and_then(|error| error.raw_os_error());
            ensure!(errno == Some(nix::libc::EIO), "they should meet EIO, not {errno:?}");
        }
        ensure!(!served(&path), "it is there after it failed");
        ensure!(read_block(&path, 1).await?.is_err(), "nobody can read it");
        drop(device);
    }
    passed("a device that fails fails at once, whatever its back end does");
    Ok(())
}

async fn ended(door: &AnyDoor) -> Result<()> {
    let device = door.open(shape(), Arc::new(Gated::new(SIZE))).await?;
    let (path, token) = (device.path().to_owned(), device.token().clone());
    drop(device);
    let read = read_block(&path, 0);
    wait_in_vain("a read was answered by nobody", &read).await?;
    door.end(token.clone()).await?;
    ensure!(read.await?.is_err(), "whoever waited hears of it");
    wait_until("it is gone", || !served(&path)).await?;
    door.end(token.clone()).await.context("once more")?;
    let lost = door.resume(token, Arc::new(Gated::new(SIZE))).await;
    ensure!(matches!(lost, Err(DeviceError::Lost { .. })), "it cannot be taken over");
    passed("a device that nobody serves can be ended");
    Ok(())
}

async fn busy(door: &AnyDoor) -> Result<()> {
    let device: Box<dyn Device> = door.open(shape(), Arc::new(Gated::new(SIZE))).await?;
    let path = device.path().to_owned();
    let mut program = guest::opened(&path)?;
    let refused = device.close().await;
    let told = match refused {
        Err(error @ DeviceError::Busy { .. }) => error.to_string(),
        other => bail!("somebody has it open, and closing it said {other:?}"),
    };
    ensure!(told.contains(&program.id().to_string()), "it says who: {told}");
    write_block(&path, 1, 1, false).await?.context("it is served as before")?;
    program.kill()?;
    program.wait()?;
    device.close().await?;
    ensure!(!served(&path), "it is there after it was closed");
    passed("a device that is in use is not closed");
    Ok(())
}

/// Servers follow each other while requests come, so that some are always on their way.
async fn churned(door: &AnyDoor) -> Result<()> {
    let back = Arc::new(Gated::new(SIZE));
    let mut device = door.open(shape(), Arc::clone(&back)).await?;
    let (path, token) = (device.path().to_owned(), device.token().clone());
    for round in 0..SERVERS {
        write_block(&path, 1, round, false).await??;
        let before = read_block(&path, 1);
        if round % 2 == 0 {
            device.release().await;
        }
        drop(device);
        let reads: Vec<_> = (0..5).map(|number| read_block(&path, number)).collect();
        device = door.resume(token.clone(), Arc::clone(&back)).await?;
        ensure!(before.await?? == round, "what was on its way is answered");
        for read in reads {
            read.await??;
        }
    }
    device.close().await?;
    passed("requests that come while servers follow each other are all answered");
    Ok(())
}
