//! File systems on devices: made, mounted and unmounted along with them.

use super::kept::{Kept, Mounted};
use super::{DevicesError, WantedDevice};

/// Makes the file system that is wanted, and says how it is to be mounted.
pub(super) async fn prepare(
    _kept: &Kept,
    _wanted: &WantedDevice,
) -> Result<Option<Mounted>, DevicesError> {
    std::future::ready(Ok(None)).await
}

/// Mounts what was prepared.
pub(super) async fn mount(_kept: &Kept) -> Result<(), DevicesError> {
    std::future::ready(Ok(())).await
}

/// Unmounts it.
pub(super) async fn unmount(_kept: &Kept) -> Result<(), DevicesError> {
    std::future::ready(Ok(())).await
}

/// Takes a mount whose device is gone out of sight.
pub(super) async fn detach(_kept: &Kept) {
    std::future::ready(()).await;
}
