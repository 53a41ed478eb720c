//! What waits for the device itself, in a process of its own: the binder.
//!
//! A thread that waits for an answer of a FUSE file waits uninterruptibly once the request has
//! been read. If it is a thread of the process that should answer, and that is killed, then neither
//! ends: the next daemon could not begin, because the one before it still holds the pools. So
//! whatever opens the file, asks for its attributes or closes the loop device is done by another
//! process, which a killed daemon does not wait for, and which its successor frees.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::loopback;
use crate::device::DeviceError;

/// The word that makes a binder of a program: its only argument.
pub const BINDER: &str = "binder";

/// What is asked of a binder, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Bind the file to a free loop device, and tell its number.
    Bind { place: PathBuf, read_only: bool },
    /// Have the device take the size of its file, which has grown to this one.
    Grow { index: u32, place: PathBuf, size_bytes: u64 },
    /// Unbind the device, unless somebody uses it.
    Unbind { index: u32 },
}

/// What it answers, on its standard output.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done(u32),
    Busy { device: String, by: String },
    Refused { what: String, errno: i32 },
}

/// Is a binder: carries out the one order on standard input.
///
/// # Errors
/// It cannot be read or answered.
pub fn bind() -> io::Result<()> {
    let mut order = Vec::new();
    io::stdin().lock().read_to_end(&mut order)?;
    let answer = match carry_out(serde_json::from_slice(&order)?) {
        Ok(index) => Answer::Done(index),
        Err(DeviceError::Busy { device, by }) => Answer::Busy { device, by },
        Err(DeviceError::Refused { what, source }) => {
            Answer::Refused { what, errno: source.raw_os_error().unwrap_or(nix::libc::EIO) }
        }
        Err(other) => Answer::Refused { what: other.to_string(), errno: nix::libc::EIO },
    };
    let mut output = io::stdout().lock();
    output.write_all(&serde_json::to_vec(&answer)?)?;
    output.flush()
}

fn carry_out(order: Order) -> Result<u32, DeviceError> {
    match order {
        Order::Bind { place, read_only } => loopback::bind(&place, read_only),
        Order::Grow { index, place, size_bytes } => {
            loopback::grow(index, &place, size_bytes).map(|()| index)
        }
        Order::Unbind { index } => loopback::unbind(index).map(|()| index),
    }
}

/// Has an order carried out by `program`, and waits for it. Returns the number of the device.
pub(crate) fn call(program: &Path, order: &Order) -> Result<u32, DeviceError> {
    match ask(program, order) {
        Ok(Answer::Done(index)) => Ok(index),
        Ok(Answer::Busy { device, by }) => Err(DeviceError::Busy { device, by }),
        Ok(Answer::Refused { what, errno }) => {
            Err(DeviceError::Refused { what, source: io::Error::from_raw_os_error(errno) })
        }
        Err(source) => {
            let what = format!("running {} to bind a loop device", program.display());
            Err(DeviceError::Refused { what, source })
        }
    }
}

fn ask(program: &Path, order: &Order) -> io::Result<Answer> {
    let order = serde_json::to_vec(order)?;
    let mut command = Command::new(program);
    command.arg(BINDER).current_dir("/");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(&order)?;
    }
    let output = child.wait_with_output()?;
    let answer = serde_json::from_slice(&output.stdout);
    answer.map_err(|_| io::Error::other(format!("it ended with {}", output.status)))
}
