//! What a volume begins with: a snapshot, or another volume.

use super::copies;
use crate::daemon::Daemons;
use crate::{names, refuse};
use lockstep_proto::csi;
use lockstep_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use lockstep_proto::v1;
use std::fmt;
use tonic::Status;

/// What a volume is to begin with, by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Snapshot(String),
    Volume(String),
}

/// The same, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) size_bytes: u64,
    /// Where it is: copies begin there.
    pub(super) nodes: Vec<String>,
}

impl Source {
    /// Reads a request.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub(super) fn new(wanted: &csi::VolumeContentSource) -> Result<Self, Status> {
        let id = |field: &str, id: &str| Ok(names::required(field, id)?.to_owned());
        match &wanted.r#type {
            None => Err(refuse::missing("volume_content_source.type")),
            Some(Type::Snapshot(SnapshotSource { snapshot_id })) => {
                let field = "volume_content_source.snapshot.snapshot_id";
                id(field, snapshot_id).map(Self::Snapshot)
            }
            Some(Type::Volume(VolumeSource { volume_id })) => {
                id("volume_content_source.volume.volume_id", volume_id).map(Self::Volume)
            }
        }
    }

    /// As it is told to callers, from what [`fmt::Display`] has made of it.
    pub(super) fn told(text: &str) -> Option<csi::VolumeContentSource> {
        let r#type = match text.split_once('/')? {
            ("snapshot", id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() }),
            ("volume", id) => Type::Volume(VolumeSource { volume_id: id.to_owned() }),
            _ => return None,
        };
        Some(csi::VolumeContentSource { r#type: Some(r#type) })
    }

    /// Looks for it.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub(super) async fn find(&self, daemons: &Daemons) -> Result<Found, Status> {
        match self {
            Self::Snapshot(id) => {
                let found = daemons.snapshot(id).await?.ok_or_else(|| refuse::no_snapshot(id))?;
                Ok(Found { size_bytes: found.size_bytes, nodes: found.nodes })
            }
            Self::Volume(id) => {
                let found = daemons.volume(id).await?;
                let ready = |v: &v1::VolumeStatus| v.stage == i32::from(v1::VolumeStage::Ready);
                let found = found.filter(ready).ok_or_else(|| refuse::no_volume(id))?;
                Ok(Found { size_bytes: found.size_bytes, nodes: copies(&found) })
            }
        }
    }

    /// Asks for it.
    pub(super) fn ask(&self, request: &mut v1::CreateVolumeRequest) {
        match self {
            Self::Snapshot(id) => request.source_snapshot.clone_from(id),
            Self::Volume(id) => request.source_volume.clone_from(id),
        }
    }
}

/// In one line: kept with the volume, to know a repeated request by.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => write!(f, "snapshot/{id}"),
            Self::Volume(id) => write!(f, "volume/{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn what_is_kept_is_told_again() {
        for text in ["snapshot/s-1", "volume/v.1"] {
            let told = Source::told(text).unwrap();
            assert_eq!(Source::new(&told).unwrap().to_string(), text);
        }
        assert!(Source::told("").is_none() && Source::told("x/y").is_none());
    }

    #[test]
    fn a_source_has_an_id() {
        let none = csi::VolumeContentSource { r#type: None };
        for bad in [none, Source::told("snapshot/").unwrap(), Source::told("volume/a\0").unwrap()] {
            assert_eq!(Source::new(&bad).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
