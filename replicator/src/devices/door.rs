//! The doors of this build.

use std::path::Path;

use lockstep_attach::device::Door;
use lockstep_attach::device::fuse::FuseDoor;
use lockstep_attach::device::nbd::{NbdDoor, NbdOptions};
use lockstep_attach::device::ublk::UblkDoor;
use lockstep_attach::keeper::KeeperClient;

use crate::door::VolumeHandle;

/// The program of this process: also when its file has been replaced meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// The keeper of this node; `starts`: if none answers, one is started.
pub(super) fn keeper(run_dir: &Path, starts: bool) -> KeeperClient {
    KeeperClient::new(run_dir, starts.then(|| OWN_PROGRAM.into()))
}

/// All of them, the best first. `owner` is who makes devices: a node of a cluster.
pub(super) fn all(
    run_dir: &Path,
    owner: &str,
    keeper: &KeeperClient,
) -> Vec<Box<dyn Door<VolumeHandle>>> {
    let keeper = keeper.clone();
    let nbd = NbdOptions { owner: owner.to_owned(), ..NbdOptions::default() };
    vec![
        Box::new(UblkDoor::new(owner)),
        Box::new(NbdDoor::new(nbd)),
        Box::new(FuseDoor::new(run_dir.to_owned(), keeper, OWN_PROGRAM.into())),
    ]
}
