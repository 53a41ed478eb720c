//! Newtypes: every id, counter and index has its own type, so that they can't be mixed up.

use alloc::sync::Arc;
use core::fmt;
use core::hash::{Hash, Hasher};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::alike::Kind;

/// Declares a `Copy` newtype over an integer with ordering, `Display`, hashing and serde. With
/// `relative` its values are told from others by a hasher ([`Kind`]).
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        number! { @ $(#[$doc])* #[derive(Hash)] $name($inner) }
    };
    (relative $(#[$doc:meta])* $name:ident($inner:ty)) => {
        number! { @ $(#[$doc])* $name($inner) }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                Kind::$name.hash(self.0, state);
            }
        }
    };
    (@ $(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        #[derive(Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Which primary: grows by one with every claim of the volume.
    Epoch(u64)
}
number! {
    /// Which membership: grows by one with every change of epoch or in-sync set.
    Gen(u32)
}
number! { relative
    /// Order of a primary's messages within one epoch; 0 is "none".
    Seq(u64)
}
number! { relative
    /// A point in time, microseconds since an arbitrary start; monotone per process.
    Tick(u64)
}
number! { relative
    /// One connection (session transport); unique within a process, never reused.
    Conn(u64)
}
number! { relative
    /// Pairs a question that a machine asks its driver with the answer.
    Token(u64)
}
number! {
    /// Pairs a guest's request with its reply.
    RequestId(u64)
}
number! {
    /// Random per open of a replica's files: tells a restart from a reconnect.
    Incarnation(u64)
}
number! {
    /// Index of a 1 MiB region of the volume.
    RegionIndex(u32)
}
number! {
    /// Version of an object in the record store; changes with every successful put.
    Revision(u64)
}
number! {
    /// Identifies a volume for its whole life.
    VolumeId(Uuid)
}
number! {
    /// Identifies one copy; a wiped copy comes back under a new id.
    ReplicaId(Uuid)
}
number! {
    /// Identifies an unbroken history of a volume; changed only by forced recovery.
    Lineage(Uuid)
}
number! {
    /// Identifies one claim of a volume by one process.
    InstanceId(Uuid)
}
number! {
    /// Identifies one attempt to make a snapshot; never used for another.
    SnapshotId(Uuid)
}

impl Gen {
    /// The next generation. Panics at the end of the number space, which [`crate::record`]
    /// refuses to reach.
    #[must_use]
    pub fn next(self) -> Self {
        assert!(self.0 < u32::MAX, "generation space is used up");
        Self(self.0 + 1)
    }
}

impl Epoch {
    /// The next epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Seq {
    /// The next sequence number.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Tick {
    /// This point plus `ms` milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to this point; 0 if it is not earlier.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }
}

/// Name of a node: 1 to 253 bytes, as Kubernetes names its nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = alloc::string::String::deserialize(d)?;
        Self::new(&name).ok_or_else(|| serde::de::Error::custom("not a node name"))
    }
}

impl NodeId {
    /// A node's name, or `None` if it is empty, longer than 253 bytes, or has a byte outside
    /// `[A-Za-z0-9._-]`.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let ok = !name.is_empty() && name.len() <= 253 && name.bytes().all(legal);
        ok.then(|| Self(Arc::from(name)))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
