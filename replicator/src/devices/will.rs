//! What the keeper does when the node shuts down.

use std::path::Path;

use futures::future::join_all;
use lockstep_attach::device::Token;
use serde::Deserialize;

use super::door;

/// What matters of a device's file: of whichever daemon and version it is.
#[derive(Deserialize)]
struct Noted {
    token: Token,
}

/// Ends every device of this node that is noted in `run_dir`, whosever it is, so that whoever
/// waits for one gets `EIO`: a node must be able to go down though a volume is suspended.
pub async fn end_all(run_dir: &Path) {
    let doors = door::all(run_dir, "", &door::keeper(run_dir, false));
    let files = std::fs::read_dir(run_dir.join("devices")).into_iter().flatten().flatten();
    let tokens = files.filter_map(|file| {
        let text = std::fs::read(file.path()).ok()?;
        serde_json::from_slice::<Noted>(&text).ok().map(|noted| noted.token)
    });
    let ends = tokens.filter_map(|token| {
        let door = doors.iter().find(|door| door.kind() == token.kind())?;
        Some(async move {
            let device = token.device.clone();
            if let Err(error) = door.end(token).await {
                tracing::warn!(%error, device = %device.display(), "cannot end a device");
            }
        })
    });
    join_all(ends).await;
}
