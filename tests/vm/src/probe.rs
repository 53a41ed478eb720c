//! One small write after the other, to see when a device stands still.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::libc;

use crate::aligned::{Aligned, BLOCK};
use crate::say;

/// Where to write.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The device.
    device: PathBuf,
    /// The block that is written, and read after each write.
    #[arg(long)]
    block: u64,
}

/// Writes until it is stopped or meets an error. Prints the time of each write that is done, in
/// milliseconds since 1970.
pub(crate) fn run(args: &Args) -> Result<()> {
    let at = || args.device.display().to_string();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let device = options.open(&args.device).with_context(at)?;
    let mut memory = Aligned::new(BLOCK);
    for number in 0_u64.. {
        memory.bytes().fill(u8::try_from(number % 251)?);
        device.write_all_at(memory.bytes(), args.block * BLOCK as u64).with_context(at)?;
        memory.bytes().fill(255);
        device.read_exact_at(memory.bytes(), args.block * BLOCK as u64).with_context(at)?;
        let right = memory.bytes().iter().all(|byte| u64::from(*byte) == number % 251);
        ensure!(right, "what write {number} has written is not there");
        say(&SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis().to_string());
    }
    Ok(())
}
