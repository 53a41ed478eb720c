//! What is kept of a device so that the next daemon finds it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::kind::Kind;

/// What is needed to find a device again, and to know that it is still the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The name that [`super::Shape`] gave it.
    pub name: String,
    /// Where it is, such as `/dev/ublkb0`.
    pub device: PathBuf,
    /// Size in bytes when it was made or last resized.
    pub size_bytes: u64,
    /// As in [`super::Shape`].
    pub read_only: bool,
    /// As in [`super::Shape`].
    pub write_through: bool,
    /// As in [`super::Shape`], or fewer if the kernel gave fewer.
    pub queues: u16,
    /// Where the kernel keeps it.
    pub place: Place,
}

/// What names a device to its driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "door")]
pub enum Place {
    /// A device of `ublk_drv`.
    Ublk {
        /// Its number.
        id: u32,
        /// What this daemon wrote into the driver's private word for it, to know it again.
        mark: u64,
    },
    /// A device of `nbd`.
    Nbd {
        /// Its number.
        index: u32,
        /// What it tells in `/sys/block/nbdN/backend`, where the kernel has that.
        backend: String,
    },
    /// A loop device over a file served by FUSE.
    Fuse {
        /// Number of the loop device.
        index: u32,
        /// The file that the FUSE file system is mounted on.
        mounted_at: PathBuf,
        /// Number of the connection in `/sys/fs/fuse/connections`.
        connection: u32,
    },
}

impl Token {
    /// The door that made it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.place {
            Place::Ublk { .. } => Kind::Ublk,
            Place::Nbd { .. } => Kind::Nbd,
            Place::Fuse { .. } => Kind::Fuse,
        }
    }
}
