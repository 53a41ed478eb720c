//! Those who use a device.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::aligned::{Aligned, BLOCK};

/// One block, which direct I/O takes, full of a byte.
fn block(byte: u8) -> Aligned {
    let mut block = Aligned::new(BLOCK);
    block.bytes().fill(byte);
    block
}

/// Writes one block full of a byte, past all caches.
pub(super) fn write_block(
    device: &Path,
    number: u64,
    byte: u8,
    durable: bool,
) -> JoinHandle<io::Result<()>> {
    let device = device.to_owned();
    spawn_blocking(move || {
        let flags = libc::O_DIRECT | if durable { libc::O_DSYNC } else { 0 };
        let file = OpenOptions::new().write(true).custom_flags(flags).open(device)?;
        file.write_all_at(block(byte).bytes(), number * BLOCK as u64)
    })
}

/// Reads one block, past all caches, and gives its byte; they must all be alike.
pub(super) fn read_block(device: &Path, number: u64) -> JoinHandle<io::Result<u8>> {
    let device = device.to_owned();
    spawn_blocking(move || {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device)?;
        let mut block = block(0xee);
        let bytes = block.bytes();
        file.read_exact_at(bytes, number * BLOCK as u64)?;
        match bytes.split_first() {
            Some((first, rest)) if rest.iter().all(|byte| byte == first) => Ok(*first),
            _ => Err(io::Error::other("a block of several writes")),
        }
    })
}

/// What the kernel shows of a device, `name` being relative to its `queue` directory.
pub(super) fn queue(device: &Path, name: &str) -> Result<String> {
    let disk = device.file_name().context("a device has a name")?;
    let file = Path::new("/sys/block").join(disk).join("queue").join(name);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// Runs `blkdiscard`.
pub(super) async fn blkdiscard(device: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("blkdiscard");
    command.args(arguments).arg(device);
    let output = spawn_blocking(move || command.output()).await??;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "blkdiscard {arguments:?}: {told}");
    Ok(())
}

/// A program that has the device open and does nothing.
pub(super) fn opened(device: &Path) -> Result<Child> {
    let file = OpenOptions::new().read(true).open(device)?;
    let program = Command::new("sleep").arg("1000").stdin(Stdio::from(file)).spawn();
    program.context("sleep")
}
