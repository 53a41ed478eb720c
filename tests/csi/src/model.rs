//! What must be true of each volume and of each snapshot.

use crate::data::Legal;
use lockstep_proto::csi;
use lockstep_proto::csi::volume_capability::access_mode::Mode;
use lockstep_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How a volume is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block,
    Ext4,
    Xfs,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Block, Self::Ext4, Self::Xfs];

    /// The smallest volume of this kind, and a little more.
    pub(crate) fn bytes(self) -> i64 {
        if self == Self::Xfs { 304 << 20 } else { 24 << 20 }
    }
}

/// A volume that was made.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) wanted: csi::CreateVolumeRequest,
    pub(crate) context: BTreeMap<String, String>,
    pub(crate) bytes: i64,
    /// On which node.
    pub(crate) staged: Option<usize>,
    /// Where.
    pub(crate) published: Vec<PathBuf>,
    /// Where nobody can write.
    pub(crate) read_only: BTreeSet<PathBuf>,
    /// What may be on it.
    pub(crate) legal: Legal,
    /// What was seen of its size, and how large it was then.
    pub(crate) seen: Option<(u64, i64)>,
    /// Its file system has not grown along with it yet.
    pub(crate) lags: bool,
}

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) told: csi::Snapshot,
    pub(crate) wanted: csi::CreateSnapshotRequest,
    pub(crate) kind: Kind,
    pub(crate) legal: Legal,
}

pub(crate) fn capability(kind: Kind) -> csi::VolumeCapability {
    let mount =
        |fs: &str| AccessType::Mount(MountVolume { fs_type: fs.to_owned(), ..Default::default() });
    let access_type = Some(match kind {
        Kind::Block => AccessType::Block(BlockVolume {}),
        Kind::Ext4 => mount("ext4"),
        Kind::Xfs => mount("xfs"),
    });
    let mode = i32::from(Mode::SingleNodeMultiWriter);
    csi::VolumeCapability { access_mode: Some(AccessMode { mode }), access_type }
}

impl Volume {
    pub(crate) fn new(kind: Kind, wanted: csi::CreateVolumeRequest, made: csi::Volume) -> Self {
        Self {
            id: made.volume_id,
            kind,
            wanted,
            context: made.volume_context,
            bytes: made.capacity_bytes,
            staged: None,
            published: Vec::new(),
            read_only: BTreeSet::new(),
            legal: vec![None],
            seen: None,
            lags: false,
        }
    }

    pub(crate) fn is_block(&self) -> bool {
        self.kind == Kind::Block
    }

    /// Where it is published to be written.
    pub(crate) fn writable(&self) -> Vec<PathBuf> {
        let places = self.published.iter().filter(|place| !self.read_only.contains(*place));
        places.cloned().collect()
    }

    pub(crate) fn staging(&self, dir: &Path, node: usize) -> String {
        dir.join(format!("staging-n{}", node + 1)).join(&self.id).display().to_string()
    }

    pub(crate) fn stage(&self, dir: &Path, node: usize) -> csi::NodeStageVolumeRequest {
        csi::NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.staging(dir, node),
            volume_capability: Some(capability(self.kind)),
            volume_context: self.context.clone(),
            ..Default::default()
        }
    }

    pub(crate) fn publish(
        &self,
        dir: &Path,
        node: usize,
        target: &Path,
    ) -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.staging(dir, node),
            target_path: target.display().to_string(),
            volume_capability: Some(capability(self.kind)),
            readonly: self.read_only.contains(target),
            volume_context: self.context.clone(),
            ..Default::default()
        }
    }
}

/// A request for a new volume.
pub(crate) fn wanted(name: &str, kind: Kind, repl: u32, bytes: i64) -> csi::CreateVolumeRequest {
    let range = csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 };
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(range),
        volume_capabilities: vec![capability(kind)],
        parameters: BTreeMap::from([("repl".to_owned(), repl.to_string())]),
        ..Default::default()
    }
}
