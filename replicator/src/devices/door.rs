//! The doors of this build.

use std::path::Path;

use lockstep_attach::device::Door;
use lockstep_attach::device::nbd::{NbdDoor, NbdOptions};
use lockstep_attach::device::ublk::UblkDoor;

use crate::door::VolumeHandle;

/// All of them, the best first.
pub(super) fn all(_run_dir: &Path) -> Vec<Box<dyn Door<VolumeHandle>>> {
    vec![Box::new(UblkDoor::new()), Box::new(NbdDoor::new(NbdOptions::default()))]
}
