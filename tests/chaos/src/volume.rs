//! The volumes under test.

/// How many nodes there are. The last one owns the record store.
pub(crate) const NODES: usize = 5;

const MIB: u64 = 1 << 20;

/// A file system that is put on the start of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fs {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

/// What keeps a volume busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// Random reads, writes and flushes, each entered in a ledger, behind the file system.
    Writer(Fs),
    /// fio with checksums.
    Fio,
}

/// A volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volume {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Copies.
    pub(crate) repl: u32,
    /// Fewest copies that an acknowledged write has.
    pub(crate) min_in_sync: u32,
    /// Who uses it.
    pub(crate) guest: Guest,
}

impl Fs {
    /// Size of its image. XFS is never smaller.
    pub(crate) fn size_bytes(self) -> u64 {
        match self {
            Self::Ext4 => 64 * MIB,
            Self::Xfs => 304 * MIB,
        }
    }
}

/// All of them.
pub(crate) const ALL: [Volume; 4] = [
    Volume {
        name: "v1",
        size_bytes: 128 * MIB,
        repl: 3,
        min_in_sync: 2,
        guest: Guest::Writer(Fs::Ext4),
    },
    Volume {
        name: "v2",
        size_bytes: 352 * MIB,
        repl: 2,
        min_in_sync: 1,
        guest: Guest::Writer(Fs::Xfs),
    },
    Volume { name: "v3", size_bytes: 96 * MIB, repl: 3, min_in_sync: 1, guest: Guest::Fio },
    Volume { name: "v4", size_bytes: 64 * MIB, repl: 3, min_in_sync: 2, guest: Guest::Fio },
];
