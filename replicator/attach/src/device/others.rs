//! Who else has a device open, for those that are about to remove it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::filesystem::{User, users};

/// Time that those who have a device open for a moment get to close it before it is called busy.
const USERS_WAIT: Duration = Duration::from_secs(1);

/// Pause between two looks at who has it open: each goes through all processes.
const USERS_PAUSE: Duration = Duration::from_millis(50);

/// Waits until nobody but this process has it open, and says who has if that lasts: programs that
/// watch devices look into each for a moment when it was written to. Blocks.
pub(super) fn wait_for_others(device: &Path) -> Result<(), String> {
    let since = Instant::now();
    while let Some(by) = others(device) {
        if since.elapsed() > USERS_WAIT {
            return Err(by);
        }
        std::thread::sleep(USERS_PAUSE);
    }
    Ok(())
}

/// Who uses it, but for this process.
pub(super) fn others(device: &Path) -> Option<String> {
    let own = std::process::id();
    let mut by = users(device);
    by.retain(|user| !matches!(user, User::Process { pid, .. } if *pid == own));
    let names: Vec<String> = by.iter().map(User::to_string).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
