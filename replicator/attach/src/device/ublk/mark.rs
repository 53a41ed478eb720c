//! The word that a device carries.

use std::hash::{BuildHasher as _, RandomState};

/// Who made a device (32 bits), of what name (16 bits), and which of all such it is (16 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(pub(super) u64);

impl Mark {
    /// One for a new device.
    pub(super) fn new(owner: &str, name: &str) -> Self {
        // What std takes for its hash tables is random enough to tell two devices apart.
        let [low, high, ..] = RandomState::new().hash_one(name).to_le_bytes();
        let one = u64::from(u16::from_le_bytes([low, high]));
        Self(u64::from(hash(owner)) << 32 | u64::from(short(name)) << 16 | one)
    }

    /// Whether this owner made it.
    pub(super) fn is_of(self, owner: &str) -> bool {
        self.0 >> 32 == u64::from(hash(owner))
    }

    /// Whether it may be of this name. One in 65536 others may be as well.
    pub(super) fn may_name(self, name: &str) -> bool {
        self.0 >> 16 & 0xffff == u64::from(short(name))
    }
}

/// FNV-1a. It must be the same in every build: the next daemon compares what this one wrote.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn short(name: &str) -> u16 {
    let [a, b, c, d] = hash(name).to_le_bytes();
    u16::from_le_bytes([a ^ c, b ^ d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(hash(""), 0x811c_9dc5);
        assert_eq!(hash("a"), 0xe40c_292c);
        assert_eq!(hash("foobar"), 0xbf9c_f968);
    }

    #[test]
    fn a_mark_tells_owner_and_name_and_differs_each_time() {
        let mark = Mark::new("cluster/n1", "volume");
        assert!(mark.is_of("cluster/n1") && !mark.is_of("cluster/n2"));
        assert!(mark.may_name("volume") && !mark.may_name("other"));
        let others = (0..8).map(|_| Mark::new("cluster/n1", "volume"));
        assert!(others.into_iter().any(|other| other != mark));
    }
}
