//! Servers of ublk that die while they take a device over.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_attach::device::ublk::UblkDoor;
use lockstep_attach::device::{DeviceError, Place, Shape, Token};
use lockstep_attach::memory::Gated;
use lockstep_kernel::ublk::{Control, DeviceState, Queues};
use nix::libc;

use super::guest::{read_block, write_block};
use super::{AnyDoor, SIZE, passed, shape, wait_in_vain};

/// Where a server dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// It has said that it begins.
    Begun,
    /// It has fetched all requests.
    Fetched,
    /// It has mapped the descriptors too, and not said that it is done.
    Mapped,
}

pub(super) async fn all(door: &AnyDoor) -> Result<()> {
    for deaths in [
        &[Death::Begun][..],
        &[Death::Fetched],
        &[Death::Mapped],
        &[Death::Begun, Death::Begun, Death::Mapped, Death::Begun, Death::Fetched],
    ] {
        deaths_then_life(door, deaths).await.with_context(|| format!("{deaths:?}"))?;
    }
    passed("a device is taken over after servers died at each step of taking it over");
    strangers(door).await.context("a device of somebody else")?;
    passed("a device with another mark is left alone");
    forgotten(door).await.context("devices that nobody noted")?;
    passed("only devices of our own that nobody serves and nobody noted are swept away");
    Ok(())
}

async fn forgotten(door: &AnyDoor) -> Result<()> {
    let served = door.open(shape(), Arc::new(Gated::new(SIZE))).await?;
    let (noted, left, other) = (left(door, "noted").await?, left(door, "left").await?, {
        let stranger: Box<AnyDoor> = Box::new(UblkDoor::new("another owner"));
        left(stranger.as_ref(), "other").await?
    });
    door.sweep(BTreeSet::from(["noted".to_owned()])).await?;
    ensure!(noted.device.exists() && other.device.exists(), "some must stay");
    ensure!(served.path().exists(), "the one that is served must stay");
    ensure!(!left.device.exists(), "the one that is left must go");
    door.end(noted).await?;
    door.end(other).await?;
    served.close().await?;
    Ok(())
}

/// Makes a device and dies.
async fn left(door: &AnyDoor, name: &str) -> Result<Token> {
    let shape = Shape { name: name.to_owned(), ..shape() };
    let device = door.open(shape, Arc::new(Gated::new(SIZE))).await?;
    let token = device.token().clone();
    let (id, _) = place(&token)?;
    drop(device);
    let mut control = Control::open()?;
    while control.info(id)?.state == DeviceState::Live {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(token)
}

async fn deaths_then_life(door: &AnyDoor, deaths: &[Death]) -> Result<()> {
    let back = Arc::new(Gated::new(SIZE));
    let device = door.open(shape(), Arc::clone(&back)).await?;
    let (path, token) = (device.path().to_owned(), device.token().clone());
    write_block(&path, 1, 5, false).await??;
    drop(device);
    let (id, _) = place(&token)?;
    let read = read_block(&path, 1);
    for death in deaths.iter().copied() {
        let queues = token.queues;
        // A thread of its own, for a server must be gone before the next one may begin.
        let died = std::thread::spawn(move || die(id, queues, death)).join();
        died.map_err(|_| anyhow::anyhow!("the server panicked"))??;
    }
    wait_in_vain("a read was answered, or failed, without a server", &read).await?;
    let device = door.resume(token, Arc::clone(&back)).await?;
    ensure!(read.await?? == 5, "who waited all the time gets its answer");
    device.close().await?;
    Ok(())
}

fn place(token: &Token) -> Result<(u32, u64)> {
    match token.place {
        Place::Ublk { id, mark } => Ok((id, mark)),
        _ => bail!("not a device of ublk"),
    }
}

/// Takes a device over up to the given step.
fn die(id: u32, queues: u16, death: Death) -> Result<()> {
    let mut control = Control::open()?;
    let depth = control.info(id)?.depth;
    wait_for_begin(&mut control, id)?;
    if matches!(death, Death::Begun) {
        return Ok(());
    }
    let mut all = Queues::new(queues, depth)?;
    all.fetch(&PathBuf::from(format!("/dev/ublkc{id}")))?;
    if matches!(death, Death::Mapped) {
        all.map()?;
    }
    Ok(())
}

fn wait_for_begin(control: &mut Control, id: u32) -> Result<()> {
    loop {
        match control.start_recovery(id).map_err(|error| error.raw_os_error()) {
            // Begun already by one that had not fetched.
            Ok(()) | Err(Some(libc::EINVAL)) => return Ok(()),
            Err(Some(libc::EBUSY)) => std::thread::sleep(Duration::from_millis(2)),
            Err(errno) => bail!("errno {errno:?}"),
        }
    }
}

async fn strangers(door: &AnyDoor) -> Result<()> {
    let device = door.open(shape(), Arc::new(Gated::new(SIZE))).await?;
    let path = device.path().to_owned();
    let mut other = device.token().clone();
    let (id, mark) = place(&other)?;
    other.place = Place::Ublk { id, mark: !mark };
    let taken = door.resume(other.clone(), Arc::new(Gated::new(SIZE))).await;
    ensure!(matches!(taken, Err(DeviceError::Lost { .. })), "it is not to be taken over");
    door.end(other).await?;
    write_block(&path, 0, 1, false).await?.context("it is not to be ended")?;
    device.close().await?;
    Ok(())
}
