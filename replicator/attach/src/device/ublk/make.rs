//! Devices are made, taken over, and ended. All of this blocks.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use lockstep_kernel::ublk::{Control, DeviceInfo, DeviceState, NewDevice, Parameters};
use nix::libc;
use tokio::runtime::Handle;

use super::limits::{
    BEST_SHIFT, BLOCK_SHIFT, DEPTH, DISCARD_BYTES_MAX, GRACE, PAUSE, PAYLOAD_BYTES_MAX, QUEUES_MAX,
    RECOVERY_WAIT,
};
use super::mark::Mark;
use super::request::SECTOR_BYTES;
use super::serve::{Plan, Server};
use super::served::UblkDevice;
use super::{NEEDED, block_device, char_device, place, refused};
use crate::backend::{BLOCK_BYTES, Backend};
use crate::device::{DeviceError, Kind, Place, Shape, Token};

/// Opens the driver.
pub(super) fn control() -> Result<Control, DeviceError> {
    Control::open().map_err(|error| {
        let why = format!("{} cannot be opened ({error}); load ublk_drv", Control::PATH);
        DeviceError::Unavailable { kind: Kind::Ublk, why }
    })
}

/// Adds a device and serves it.
pub(super) fn open<B: Backend>(
    shape: &Shape,
    mark: Mark,
    backend: Arc<B>,
    runtime: Handle,
) -> Result<UblkDevice, DeviceError> {
    if shape.size_bytes == 0 || !shape.size_bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
        let what = format!("a device of {} bytes: whole blocks of 4096 only", shape.size_bytes);
        return Err(refused(what, io::ErrorKind::InvalidInput.into()));
    }
    let mut control = control()?;
    let new = NewDevice {
        queues: shape.queues.clamp(1, QUEUES_MAX),
        depth: DEPTH,
        payload_bytes_max: PAYLOAD_BYTES_MAX,
        features: NEEDED,
        mark: mark.0,
    };
    let info = control.add(&new).map_err(|error| refused("cannot add a ublk device", error))?;
    let started = start(&mut control, shape, &info, backend, runtime);
    started.inspect_err(|_| {
        // Nobody else knows of it yet.
        if let Err(error) = control.stop(info.id).and_then(|()| control.remove(info.id)) {
            tracing::warn!(%error, "ublk device {} stays behind", info.id);
        }
    })
}

fn start<B: Backend>(
    control: &mut Control,
    shape: &Shape,
    info: &DeviceInfo,
    backend: Arc<B>,
    runtime: Handle,
) -> Result<UblkDevice, DeviceError> {
    let device = block_device(info.id);
    if !info.features.has(NEEDED) {
        let why = format!("the driver gave {} of {NEEDED}", info.features);
        return Err(DeviceError::Unavailable { kind: Kind::Ublk, why });
    }
    let failed = |what: &str, error| refused(format!("cannot {what} {}", device.display()), error);
    control.set_parameters(info.id, &parameters(shape)).map_err(|e| failed("describe", e))?;
    let server = serve(info, shape.write_through, backend, runtime)?;
    control.start(info.id).map_err(|e| failed("start", e))?;
    if !device.exists() {
        let what = "the device was made, but has no node: mount devtmpfs, or the host's /dev";
        return Err(failed(what, io::ErrorKind::NotFound.into()));
    }
    let token = Token {
        name: shape.name.clone(),
        device,
        size_bytes: shape.size_bytes,
        read_only: shape.read_only,
        write_through: shape.write_through,
        queues: info.queues,
        place: Place::Ublk { id: info.id, mark: info.mark },
    };
    Ok(UblkDevice::new(token, info.id, server))
}

fn serve<B: Backend>(
    info: &DeviceInfo,
    write_through: bool,
    backend: Arc<B>,
    runtime: Handle,
) -> Result<Server, DeviceError> {
    let path = char_device(info.id);
    let what = format!("cannot serve {}", path.display());
    let plan = Plan { path, queues: info.queues, depth: info.depth, write_through };
    Server::start(plan, backend, runtime).map_err(|error| refused(what, error))
}

fn parameters(shape: &Shape) -> Parameters {
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR_BYTES).unwrap_or(u32::MAX);
    Parameters {
        sectors: shape.size_bytes / SECTOR_BYTES,
        read_only: shape.read_only,
        volatile_cache: !shape.write_through,
        block_shift: BLOCK_SHIFT,
        best_shift: BEST_SHIFT,
        sectors_max: sectors(PAYLOAD_BYTES_MAX.into()),
        discard_sectors_max: sectors(DISCARD_BYTES_MAX),
    }
}

/// Takes over a device.
pub(super) fn resume<B: Backend>(
    mut token: Token,
    backend: Arc<B>,
    runtime: Handle,
) -> Result<UblkDevice, DeviceError> {
    let (id, mark) = place(&token)?;
    let device = token.device.display().to_string();
    let lost = |why: String| DeviceError::Lost { device: device.clone(), why };
    let failed = |what: &str, error| refused(format!("cannot {what} {device}"), error);
    let mut control = control()?;
    let info = match control.info(id) {
        Ok(info) if info.mark == mark => info,
        Ok(_) => return Err(lost("its number now names a device of somebody else".to_owned())),
        Err(error) if is_gone(&error) => return Err(lost("it is gone".to_owned())),
        Err(error) => return Err(failed("look at", error)),
    };
    if info.state == DeviceState::Dead {
        return Err(lost("it was stopped".to_owned()));
    }
    let shown = control.parameters(id).map_err(|error| failed("look at", error))?;
    wait_for_recovery(&mut control, &info).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => lost(format!("process {} still serves it", info.server)),
        _ => failed("take over", error),
    })?;
    std::thread::sleep(GRACE);
    let server = serve(&info, token.write_through, backend, runtime)?;
    control.end_recovery(id).map_err(|error| failed("take over", error))?;
    token.size_bytes = shown.sectors * SECTOR_BYTES;
    token.queues = info.queues;
    Ok(UblkDevice::new(token, id, server))
}

/// Begins the recovery as soon as the kernel has put away what the last server left.
fn wait_for_recovery(control: &mut Control, info: &DeviceInfo) -> io::Result<()> {
    let since = Instant::now();
    loop {
        let error = match control.start_recovery(info.id) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Another began, and died before it had fetched anything: it is begun.
        let begun = error.raw_os_error() == Some(libc::EINVAL)
            && control.info(info.id)?.state == DeviceState::Quiesced;
        if begun {
            return Ok(());
        }
        if error.raw_os_error() != Some(libc::EBUSY) || since.elapsed() > RECOVERY_WAIT {
            return Err(error);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Fails all requests of a device that nobody serves, and removes it.
pub(super) fn end(token: &Token) -> Result<(), DeviceError> {
    let (id, mark) = place(token)?;
    let mut control = match Control::open() {
        Ok(control) => control,
        // Without the driver there is no device either.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(format!("cannot open {}", Control::PATH), error)),
    };
    match control.info(id) {
        Ok(info) if info.mark == mark => {}
        Ok(_) => return Ok(()),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(refused(format!("cannot look at ublk device {id}"), error)),
    }
    stop_and_remove(&mut control, id)
}

/// Ends devices of this owner that nobody serves and whose names are not known.
pub(super) fn sweep(owner: &str, known: &BTreeSet<String>) -> Result<(), DeviceError> {
    // Without the module there is no such directory, and no device.
    let Ok(entries) = fs::read_dir("/sys/class/ublk-char") else { return Ok(()) };
    let names = entries.flatten().map(|entry| entry.file_name());
    let ids = names.filter_map(|name| name.to_str()?.strip_prefix("ublkc")?.parse().ok());
    let ids: Vec<u32> = ids.collect();
    if ids.is_empty() {
        return Ok(());
    }
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let mut control = control()?;
    for id in ids {
        let Ok(info) = control.info(id) else { continue };
        let mark = Mark(info.mark);
        // One that this process is making is not started yet.
        let made_now = info.state == DeviceState::Dead && info.server == own;
        let left = info.state != DeviceState::Live && !made_now && mark.is_of(owner);
        if left && !known.iter().any(|name| mark.may_name(name)) {
            tracing::warn!("ends ublk device {id}, which a daemon left before it could note it");
            stop_and_remove(&mut control, id)?;
        }
    }
    Ok(())
}

/// Stops a device and removes it. It need not be there any more.
pub(super) fn stop_and_remove(control: &mut Control, id: u32) -> Result<(), DeviceError> {
    match control.stop(id).and_then(|()| control.remove(id)) {
        Err(error) if !is_gone(&error) => {
            Err(refused(format!("cannot remove ublk device {id}"), error))
        }
        _ => Ok(()),
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}
