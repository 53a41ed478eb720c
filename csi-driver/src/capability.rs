//! How volumes can be used.

use crate::parameters::Fs;
use crate::refuse;
use crate::size::{EXT4_MIN, XFS_MIN};
use lockstep_attach::filesystem::Options;
use lockstep_proto::csi::VolumeCapability;
use lockstep_proto::csi::volume_capability::AccessType;
use lockstep_proto::csi::volume_capability::access_mode::Mode;
use tonic::Status;

/// CSI's limit for all options of a mount together.
const MAX_FLAGS_BYTES: usize = 4096;

/// What a volume shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The device itself.
    Block,
    /// The directory of a file system.
    Mount {
        /// Which; if none is named, what the storage class says.
        fs: Option<Fs>,
        /// Options of mount(8).
        options: Vec<String>,
    },
}

/// A capability that volumes have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capability {
    pub(crate) access: Access,
    /// Nobody writes.
    pub(crate) read_only: bool,
    /// At one place of the node.
    pub(crate) single: bool,
    /// On several nodes at once.
    pub(crate) several: bool,
}

impl Capability {
    /// Reads a capability.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if something is missing, or volumes do not have it; says why.
    pub(crate) fn new(wanted: &VolumeCapability) -> Result<Self, Status> {
        let access = match &wanted.access_type {
            None => return Err(refuse::missing("volume_capability.access_type")),
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(mount)) => {
                if !mount.volume_mount_group.is_empty() {
                    let why = "leave it to the orchestrator to set the group of files";
                    let field = "volume_capability.mount.volume_mount_group";
                    return Err(refuse::bad(field, &mount.volume_mount_group, why));
                }
                let fs = Fs::named("volume_capability.mount.fs_type", &mount.fs_type)?;
                let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
                if bytes > MAX_FLAGS_BYTES {
                    // They may be secret, so they are not shown.
                    return Err(Status::invalid_argument(format!(
                        "volume_capability.mount.mount_flags has {bytes} bytes; at most \
                         {MAX_FLAGS_BYTES} are allowed"
                    )));
                }
                Access::Mount { fs, options: mount.mount_flags.clone() }
            }
        };
        let mode = wanted.access_mode.map_or(0, |mode| mode.mode);
        let (read_only, single, several) = match Mode::try_from(mode) {
            Ok(Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter) => (false, false, false),
            Ok(Mode::SingleNodeSingleWriter) => (false, true, false),
            Ok(Mode::SingleNodeReaderOnly) => (true, false, false),
            Ok(Mode::MultiNodeReaderOnly) => (true, false, true),
            Ok(Mode::Unknown) => return Err(refuse::missing("volume_capability.access_mode")),
            Ok(several @ (Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)) => {
                let why = "a volume is written on one node at a time, since one node serves it: \
                           take one of the SINGLE_NODE modes";
                let field = "volume_capability.access_mode";
                return Err(refuse::bad(field, several.as_str_name(), why));
            }
            Err(_) => {
                let field = "volume_capability.access_mode";
                return Err(refuse::bad(field, &mode.to_string(), "there is no such mode"));
            }
        };
        Ok(Self { access, read_only, single, several })
    }

    /// Whether nobody can write, since the mode or an option of the mount says so. An option that
    /// is no good is refused by who mounts.
    pub(crate) fn is_seen_read_only(&self) -> bool {
        let by_option = match &self.access {
            Access::Block => false,
            Access::Mount { options, .. } => Options::parse(options.iter().map(String::as_str))
                .is_ok_and(|options| options.is_read_only()),
        };
        self.read_only || by_option
    }

    /// Reads several, of which there has to be one at least.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub(crate) fn all(wanted: &[VolumeCapability]) -> Result<Vec<Self>, Status> {
        if wanted.is_empty() {
            return Err(refuse::missing("volume_capabilities"));
        }
        wanted.iter().map(Self::new).collect()
    }

    /// The smallest volume that can be used like this.
    pub(crate) fn min_bytes(&self, class_fs: Option<Fs>) -> u64 {
        match &self.access {
            Access::Block => 0,
            Access::Mount { fs, .. } => match fs.or(class_fs).unwrap_or_default() {
                Fs::Ext4 => EXT4_MIN,
                Fs::Xfs => XFS_MIN,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use tonic::Code;

    fn capability(access_type: Option<AccessType>, mode: i32) -> VolumeCapability {
        VolumeCapability { access_mode: Some(AccessMode { mode }), access_type }
    }

    fn mount(fs_type: &str) -> Option<AccessType> {
        let fs_type = fs_type.to_owned();
        Some(AccessType::Mount(MountVolume { fs_type, ..Default::default() }))
    }

    #[test]
    fn the_modes_of_one_writer_or_many_readers_are_there() {
        for (mode, read_only, single, several) in [
            (1, false, false, false),
            (2, true, false, false),
            (3, true, false, true),
            (6, false, true, false),
        ] {
            let block = capability(Some(AccessType::Block(BlockVolume {})), mode);
            let expected = Capability { access: Access::Block, read_only, single, several };
            assert_eq!(Capability::new(&block).unwrap(), expected);
        }
        let xfs = Capability::new(&capability(mount("xfs"), 7)).unwrap();
        assert_eq!(xfs.access, Access::Mount { fs: Some(Fs::Xfs), options: Vec::new() });
        assert_eq!(xfs.min_bytes(None), XFS_MIN);
        let any = Capability::new(&capability(mount(""), 1)).unwrap();
        assert_eq!((any.min_bytes(None), any.min_bytes(Some(Fs::Xfs))), (EXT4_MIN, XFS_MIN));
    }

    #[test]
    fn all_others_are_refused_with_the_reason() {
        let many = MountVolume {
            mount_flags: vec!["x".repeat(2049), "y".repeat(2048)],
            ..Default::default()
        };
        let group = MountVolume { volume_mount_group: "1".to_owned(), ..Default::default() };
        for (wanted, why) in [
            (capability(None, 1), "access_type is required"),
            (capability(mount(""), 0), "access_mode is required"),
            (VolumeCapability { access_type: mount(""), access_mode: None }, "access_mode"),
            (capability(mount(""), 4), "one node at a time"),
            (capability(mount(""), 5), "one node at a time"),
            (capability(mount(""), 99), "no such mode"),
            (capability(mount("btrfs"), 1), "ext4 and xfs"),
            (capability(Some(AccessType::Mount(group)), 1), "orchestrator"),
            (capability(Some(AccessType::Mount(many)), 1), "4097 bytes"),
        ] {
            let refused = Capability::new(&wanted).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(why), "{why}: {}", refused.message());
        }
        assert_eq!(Capability::all(&[]).unwrap_err().code(), Code::InvalidArgument);
    }
}
