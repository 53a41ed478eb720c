//! Names and ids, as callers give them and as the daemon has them.
//!
//! A volume's id is the name the daemon knows it by: every call to the daemon takes it, and what
//! stands in a PersistentVolume is what `lockstep volume show` takes. That a name may come back
//! with another volume is met by the volume's uid, which goes along in the volume context.

use crate::refuse;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use tonic::Status;

/// CSI's limit for a name or an id.
const MAX_BYTES: usize = 128;
/// Longest path that the kernel takes, without the final zero byte.
const MAX_PATH_BYTES: usize = 4095;
/// Names with this beginning are made here, and are never taken as they come.
const MADE: &str = "csi-";
/// Bytes of the checksum in a name that is made here.
const MADE_BYTES: usize = 20;

/// What CSI does not allow in a name or an id.
fn is_banned(character: char) -> bool {
    let ok = matches!(character, '\t' | '\n' | '\r');
    character.is_control() && !ok
}

/// Checks a required name or id.
///
/// # Errors
/// INVALID_ARGUMENT if it is missing, too long, or has control characters.
pub(crate) fn required<'a>(field: &str, text: &'a str) -> Result<&'a str, Status> {
    if text.is_empty() {
        return Err(refuse::missing(field));
    }
    if text.len() > MAX_BYTES {
        let why = format!("{} bytes; at most {MAX_BYTES} are allowed", text.len());
        return Err(refuse::bad(field, &shown(text), &why));
    }
    if text.chars().any(is_banned) {
        return Err(refuse::bad(field, &shown(text), "control characters are not allowed"));
    }
    Ok(text)
}

/// The beginning of something that may be long.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Whether the daemon could have a volume of this name.
pub(crate) fn is_volume_name(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|b| edge(*b) || *b == b'-' || *b == b'.')
        && bytes.first().is_some_and(|b| edge(*b))
        && bytes.last().is_some_and(|b| edge(*b))
}

/// The daemon's name for what a caller names: the same, if it is one the daemon takes; else one
/// that is made from its checksum.
pub(crate) fn from_csi(name: &str) -> String {
    if is_volume_name(name) && !name.starts_with(MADE) {
        return name.to_owned();
    }
    let mut made = MADE.to_owned();
    for byte in Sha256::digest(name.as_bytes()).iter().take(MADE_BYTES) {
        // Writing to a String cannot fail.
        let _ = write!(made, "{byte:02x}");
    }
    made
}

/// The name of the volume by which a node reads a volume that several nodes read. No caller can
/// name it: what its checksum is made from is no name.
pub(crate) fn view(volume: &str, node: &str) -> String {
    from_csi(&format!("{volume}\0{node}"))
}

/// Checks a path that the caller chose: absolute, and it is what it looks like.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(crate) fn path(field: &str, text: &str) -> Result<PathBuf, Status> {
    if text.is_empty() {
        return Err(refuse::missing(field));
    }
    if text.len() > MAX_PATH_BYTES {
        let why = format!("{} bytes; at most {MAX_PATH_BYTES} are allowed", text.len());
        return Err(refuse::bad(field, &shown(text), &why));
    }
    let path = Path::new(text);
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    let ok = path.is_absolute()
        && path.components().all(plain)
        && !text.split('/').any(|part| part == ".")
        && path.file_name().is_some()
        && !text.contains('\0');
    if !ok {
        let why = "an absolute path without `.` and `..` is needed, and not the root";
        return Err(refuse::bad(field, &shown(text), why));
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn plain_names_stay_and_all_others_become_one_that_the_daemon_takes() {
        for plain in ["pvc-0f1e", "a", "v.1"] {
            assert_eq!(from_csi(plain), plain);
        }
        let long = "x".repeat(128);
        let odd = ["", "A", "Ä b", "a/../b", "csi-a", "-", long.as_str(), &from_csi("A")];
        let mut made: Vec<_> = odd.iter().map(|name| from_csi(name)).collect();
        for name in &made {
            assert!(is_volume_name(name) && name.starts_with(MADE), "{name}");
        }
        made.extend([("v", "a"), ("v", "b"), ("va", "")].map(|(v, n)| view(v, n)));
        made.sort();
        made.dedup();
        assert_eq!(made.len(), odd.len() + 3);
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "ä b\t/..", &"x".repeat(128)] {
            assert_eq!(required("name", good).unwrap(), good);
        }
        for bad in ["", "a\0", "a\u{1b}", "a\u{7f}", "a\u{80}", &"x".repeat(129)] {
            let refused = required("name", bad).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
            assert!(refused.message().contains("name"), "{}", refused.message());
        }
    }

    #[test]
    fn paths_are_checked() {
        assert_eq!(path("p", "/a//b/").unwrap(), Path::new("/a/b"));
        for bad in ["", "a/b", "/", "//", "/a/../b", "/a/./b", "..", "/..", "/a\0b"] {
            assert_eq!(path("p", bad).unwrap_err().code(), Code::InvalidArgument, "{bad}");
        }
        let long = format!("/{}", "a/".repeat(2100));
        assert_eq!(path("p", &long).unwrap_err().code(), Code::InvalidArgument);
    }
}
