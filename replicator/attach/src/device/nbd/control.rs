//! What a device asks of the kernel's driver.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_kernel::nbd::Driver;

/// Pauses between offers of a socket: the driver needs a moment to see that the old one is dead.
const PAUSES_MS: [u64; 5] = [2, 5, 10, 50, 100];

/// Most of a request in one piece. The driver's own default is 128 KiB on Linux 6.1.
const REQUEST_KIB_MAX: u32 = 1024;
/// The longest tick of a kernel: 100 a second.
const TICK_MS_MAX: u128 = 10;

/// Commands for one device. They may block.
pub(super) trait Control: Clone + Send + Sync + 'static {
    /// Offers the device a socket; `None` if it did not need one.
    fn reconnect(&self) -> io::Result<Option<UnixStream>>;

    /// Ends the device.
    fn disconnect(&self) -> io::Result<()>;

    /// Gives it another size.
    fn resize(&self, size_bytes: u64) -> io::Result<()>;
}

/// A device of the kernel.
#[derive(Clone, Debug)]
pub(super) struct KernelDevice {
    pub(super) index: u32,
    pub(super) backend: String,
    pub(super) dead_after_s: u64,
}

impl Control for KernelDevice {
    fn reconnect(&self) -> io::Result<Option<UnixStream>> {
        Driver::open()?.reconnect(self.index, &self.backend, self.dead_after_s)
    }

    fn disconnect(&self) -> io::Result<()> {
        Driver::open()?.disconnect(self.index)
    }

    fn resize(&self, size_bytes: u64) -> io::Result<()> {
        Driver::open()?.resize(self.index, &self.backend, size_bytes)?;
        let shown = size(self.index)?;
        if shown == size_bytes {
            return Ok(());
        }
        Err(io::Error::other(format!("the kernel took it for {shown} bytes")))
    }
}

/// Does what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Gives a device a new socket as soon as its old one is dead.
pub(super) async fn reconnect<C: Control>(control: &C) -> io::Result<UnixStream> {
    let mut pauses = PAUSES_MS.into_iter();
    let mut pause = Duration::ZERO;
    loop {
        let asked = control.clone();
        if let Some(socket) = blocking(move || asked.reconnect()).await? {
            return Ok(socket);
        }
        pause = pauses.next().map_or(pause, Duration::from_millis);
        tokio::time::sleep(pause).await;
    }
}

/// The device file of a number.
pub(super) fn node(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

fn attribute(index: u32, name: &str) -> PathBuf {
    Path::new("/sys/block").join(format!("nbd{index}")).join(name)
}

/// The name that the device of this number was given, if there is one.
pub(super) fn shown_backend(index: u32) -> Option<String> {
    let text = fs::read_to_string(attribute(index, "backend")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Number and name of all devices that there are.
pub(super) fn shown_backends() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let indices = entries.filter_map(|entry| {
        entry.file_name().to_str().and_then(|name| name.strip_prefix("nbd")?.parse().ok())
    });
    indices.filter_map(|index| Some((index, shown_backend(index)?))).collect()
}

/// Ends a device if it takes a socket, for then nobody serves it. Says whether it did.
pub(super) fn end_if_unserved<C: Control>(control: &C) -> io::Result<bool> {
    // The socket is closed at once: the driver could not end the device while it waits for room in
    // one that nobody reads.
    let taken = control.reconnect()?.is_some();
    if taken {
        control.disconnect()?;
    }
    Ok(taken)
}

/// Whether the device has not been ended, or somebody has it open still.
pub(super) fn is_there(index: u32) -> bool {
    attribute(index, "pid").exists()
}

fn size(index: u32) -> io::Result<u64> {
    let sectors: u64 = fs::read_to_string(attribute(index, "size"))?
        .trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(sectors.saturating_mul(512))
}

/// Sets what has no place in the driver's commands.
///
/// # Errors
/// If the time-out cannot be set: it is then 30 s. The rest is for speed.
pub(super) fn tune(index: u32, resend_after: Duration) -> io::Result<()> {
    // No disk turns behind it, and the volume orders what it has to.
    let set = [("scheduler", "none".to_owned()), ("max_sectors_kb", REQUEST_KIB_MAX.to_string())];
    for (name, value) in set {
        if let Err(error) = set_if_differs(&attribute(index, "queue").join(name), &value) {
            tracing::debug!(index, name, %error, "the kernel keeps its own setting");
        }
    }
    set_timer(&attribute(index, "queue").join("io_timeout"), resend_after)
}

/// Some kernels let a change wait for all requests under way, even if it changes nothing. On a
/// device that was taken over those wait for their timers.
fn set_if_differs(path: &Path, value: &str) -> io::Result<()> {
    if is_chosen(&fs::read_to_string(path)?, value) { Ok(()) } else { fs::write(path, value) }
}

/// As [`set_if_differs`]. On Linux 6.12 the change waits uninterruptibly: a daemon that is killed
/// then cannot end before the requests are answered, by a next daemon that cannot start before.
fn set_timer(path: &Path, after: Duration) -> io::Result<()> {
    let wanted_ms = after.as_millis().max(1);
    if is_timer(&fs::read_to_string(path)?, wanted_ms) {
        return Ok(());
    }
    fs::write(path, wanted_ms.to_string())
}

/// Whether a timer is shown that was set to `wanted_ms`: it is rounded up to a tick of the kernel.
fn is_timer(shown: &str, wanted_ms: u128) -> bool {
    shown.trim().parse::<u128>().is_ok_and(|ms| (wanted_ms..wanted_ms + TICK_MS_MAX).contains(&ms))
}

/// Whether a file of settings says `value`, or has it marked as the one of several.
fn is_chosen(shown: &str, value: &str) -> bool {
    let shown = shown.trim();
    shown == value || shown.split(' ').any(|word| word == format!("[{value}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_known_when_it_is_shown() {
        assert!(is_chosen("500\n", "500"));
        assert!(is_chosen("[none] mq-deadline\n", "none"));
        assert!(!is_chosen("none [mq-deadline]\n", "none"));
        assert!(!is_chosen("1500\n", "500"));
    }

    #[test]
    fn a_timer_is_known_in_ticks() {
        // 250 ms at 250, 300, 100 and 1000 ticks a second.
        assert!(["252\n", "250\n", "253\n", "254\n"].iter().all(|shown| is_timer(shown, 250)));
        assert!(["30000\n", "248\n", "260\n", "\n"].iter().all(|shown| !is_timer(shown, 250)));
    }
}
