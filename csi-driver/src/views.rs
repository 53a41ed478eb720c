//! Volumes that are read on several nodes.
//!
//! One node serves a volume. So each node that reads such a volume has a *view* there: a volume of
//! its own, made from it in constant time when it is staged, with one copy that shares all blocks
//! with the copy on this node, and removed when it is unstaged. A file system that was in use when
//! its snapshot was taken has a journal to replay, and each node replays it in its view.

use crate::capability::Capability;
use crate::controller::{READERS, UID};
use crate::daemon::Daemons;
use crate::{names, refuse};
use lockstep_proto::v1;
use tonic::Status;

/// What [`READERS`] says if there may be many.
pub(crate) const MANY: &str = "many";
/// Annotation of a view: the name of what it shows; [`UID`] has the uid.
const OF: &str = "csi.lockstep.dev/view-of";

/// Whether a volume is none of these, but one that a caller has made.
pub(crate) fn is_none(volume: &v1::VolumeStatus) -> bool {
    !volume.annotations.contains_key(OF)
}

/// Whether a volume of these capabilities is for readers on several nodes.
///
/// # Errors
/// INVALID_ARGUMENT if it then has others that do not go with that.
pub(crate) fn wanted(
    capabilities: &[Capability],
    has_source: bool,
    local: bool,
) -> Result<bool, Status> {
    if !capabilities.iter().any(|capability| capability.several) {
        return Ok(false);
    }
    let why = if capabilities.iter().any(|capability| !capability.read_only) {
        "a volume is written on one node or read on several, not both; take a snapshot, and for \
         the readers a volume from that"
    } else if !has_source {
        "nobody would ever write it; let it begin with a snapshot or a volume"
    } else if !local {
        "its readers run where its copies are; leave out locality=preferred"
    } else {
        return Ok(true);
    };
    Err(refuse::bad("volume_capabilities.access_mode", "MULTI_NODE_READER_ONLY", why))
}

/// Whether a volume can be used so. `many`: it is for readers on several nodes.
///
/// # Errors
/// FAILED_PRECONDITION.
pub(crate) fn fits(capability: &Capability, many: bool) -> Result<(), Status> {
    if many && !capability.read_only {
        let why = "the volume is for readers on several nodes; take MULTI_NODE_READER_ONLY";
        return Err(Status::failed_precondition(why));
    }
    if capability.several && !many {
        return Err(Status::failed_precondition(
            "the volume was not made for readers on several nodes; make one from a snapshot of it \
             that is asked for with MULTI_NODE_READER_ONLY (ReadOnlyMany)",
        ));
    }
    Ok(())
}

/// The view of a volume on a node; it is made if it is not there.
///
/// # Errors
/// NOT_FOUND, also if the volume is another one by now; or what the daemon says.
pub(crate) async fn make(
    daemons: &Daemons,
    volume: &str,
    uid: &str,
    node: &str,
) -> Result<v1::VolumeStatus, Status> {
    let shown = find(daemons, volume, uid).await?;
    let request = request(&shown, node);
    if let Some(there) = daemons.volume(&request.name).await? {
        let same = there.annotations == request.annotations;
        match v1::VolumeStage::try_from(there.stage).unwrap_or_default() {
            v1::VolumeStage::Ready if same => return Ok(there),
            v1::VolumeStage::Creating if same => {}
            // Of an earlier volume, or one that was just unstaged.
            _ => daemons.delete(&request.name).await?,
        }
    }
    let made = daemons.create(&request).await?;
    // Whoever deletes the volume may have looked for views before this one was there.
    if let Err(gone) = find(daemons, volume, uid).await {
        daemons.delete(&made.name).await?;
        return Err(gone);
    }
    Ok(made)
}

async fn find(daemons: &Daemons, volume: &str, uid: &str) -> Result<v1::VolumeStatus, Status> {
    let found = daemons.volume(volume).await?;
    let is_it = |found: &v1::VolumeStatus| {
        found.stage == i32::from(v1::VolumeStage::Ready) && (uid.is_empty() || found.uid == uid)
    };
    let found = found.filter(is_it).ok_or_else(|| refuse::no_volume(volume))?;
    if !found.annotations.contains_key(READERS) {
        let why = format!("volume {volume} was not made for readers on several nodes");
        return Err(Status::failed_precondition(why));
    }
    Ok(found)
}

fn request(shown: &v1::VolumeStatus, node: &str) -> v1::CreateVolumeRequest {
    let annotations = [(OF, &shown.name), (UID, &shown.uid)];
    v1::CreateVolumeRequest {
        name: names::view(&shown.name, node),
        repl: 1,
        min_in_sync: Some(1),
        pool: shown.pool.clone(),
        nodes: vec![node.to_owned()],
        door: shown.door.clone(),
        write_cache: shown.write_cache.clone(),
        max_iops: shown.max_iops,
        max_bytes_per_s: shown.max_bytes_per_s,
        annotations: annotations.map(|(key, value)| (key.to_owned(), value.clone())).into(),
        source_volume: shown.name.clone(),
        ..Default::default()
    }
}

/// Deletes a volume, with its views if it has some.
///
/// # Errors
/// What the daemon says: FAILED_PRECONDITION if it is in use.
pub(crate) async fn delete_with(daemons: &Daemons, name: &str) -> Result<(), Status> {
    let there = daemons.volume(name).await?;
    if there.is_some_and(|volume| volume.annotations.contains_key(READERS)) {
        let (_, volumes) = daemons.cluster().await?;
        let is_view = |v: &&v1::VolumeStatus| v.annotations.get(OF).is_some_and(|of| of == name);
        for view in volumes.iter().filter(is_view) {
            daemons.delete(&view.name).await?;
        }
    }
    daemons.delete(name).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Access;
    use tonic::Code;

    fn capability(read_only: bool, several: bool) -> Capability {
        Capability { access: Access::Block, read_only, single: false, several }
    }

    #[test]
    fn many_readers_have_what_nobody_writes() {
        let readers = [capability(true, true), capability(true, false)];
        assert!(wanted(&readers, true, true).unwrap());
        assert!(!wanted(&[capability(false, false)], false, false).unwrap());
        assert!(!wanted(&[capability(true, false)], false, true).unwrap());
        let mixed = [capability(true, true), capability(false, false)];
        for (refused, why) in [
            (wanted(&mixed, true, true), "not both"),
            (wanted(&readers, false, true), "begin with"),
            (wanted(&readers, true, false), "locality"),
        ] {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(why), "{why}: {}", status.message());
        }
    }

    #[test]
    fn a_volume_is_used_as_it_was_made() {
        assert!(fits(&capability(true, true), true).is_ok());
        assert!(fits(&capability(true, false), true).is_ok());
        assert!(fits(&capability(true, false), false).is_ok());
        for (read_only, several, many) in [(false, false, true), (true, true, false)] {
            let refused = fits(&capability(read_only, several), many).unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
        }
    }
}
