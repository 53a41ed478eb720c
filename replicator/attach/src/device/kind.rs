//! Which doors there are, and which one is wanted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A way to make a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The user-space block driver, `/dev/ublkbN`.
    Ublk,
    /// The network block device, `/dev/nbdN`, over a pair of sockets within the node.
    Nbd,
    /// A file served over FUSE under a loop device, `/dev/loopN`.
    Fuse,
}

impl Kind {
    /// All, the best first.
    pub const ALL: [Self; 3] = [Self::Ublk, Self::Nbd, Self::Fuse];

    /// Its name, as typed and shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which door is wanted, of a node or for a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best that the kernel offers.
    #[default]
    Auto,
    /// This one, and no other.
    Only(Kind),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == text);
        kind.map(Self::Only).ok_or_else(|| "allowed are auto, ublk, nbd and fuse".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_shown() {
        for choice in ["auto", "ublk", "nbd", "fuse"] {
            assert_eq!(choice.parse::<Choice>().unwrap().to_string(), choice);
        }
        assert!("loop".parse::<Choice>().is_err());
    }
}
