//! Which keys there are.
//!
//! A key has 1 to [`MAX_KEY_BYTES`] bytes of `A-Z a-z 0-9 . _ -`, in parts joined by single `/`;
//! no part is empty, `.` or `..`. That fits a file name, an object name and a log line alike. A
//! prefix is any beginning of a key, the empty one included.

use crate::MetaError;

/// Most bytes a key may have.
pub const MAX_KEY_BYTES: usize = 512;

/// Checks a key.
///
/// # Errors
/// [`MetaError::BadKey`] with the rule it breaks.
pub fn check(key: &str) -> Result<(), MetaError> {
    if key.is_empty() {
        return Err(bad(key, "a key has at least one byte"));
    }
    check_bytes(key)?;
    match key.split('/').find_map(part_fault) {
        Some(reason) => Err(bad(key, reason)),
        None => Ok(()),
    }
}

/// Checks a prefix: what may stand at the beginning of a key.
///
/// # Errors
/// [`MetaError::BadKey`] with the rule it breaks.
pub fn check_prefix(prefix: &str) -> Result<(), MetaError> {
    check_bytes(prefix)?;
    // The last part may go on, so only the ones before it are whole.
    let Some((whole, _)) = prefix.rsplit_once('/') else { return Ok(()) };
    match whole.split('/').find_map(part_fault) {
        Some(reason) => Err(bad(prefix, reason)),
        None => Ok(()),
    }
}

fn check_bytes(text: &str) -> Result<(), MetaError> {
    if text.len() > MAX_KEY_BYTES {
        return Err(bad(text, "a key has at most 512 bytes"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    if !text.bytes().all(allowed) {
        return Err(bad(text, "only A-Z a-z 0-9 . _ - and / may stand in a key"));
    }
    Ok(())
}

fn part_fault(part: &str) -> Option<&'static str> {
    match part {
        "" => Some("no part between slashes may be empty"),
        "." | ".." => Some("no part between slashes may be . or .."),
        _ => None,
    }
}

fn bad(key: &str, reason: &'static str) -> MetaError {
    const SHOWN: usize = 64;
    let mut shown: String = key.chars().take(SHOWN).collect();
    if shown.len() < key.len() {
        shown.push('…');
    }
    MetaError::BadKey { key: shown, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_fine() {
        let longest = "k".repeat(MAX_KEY_BYTES);
        for key in ["a", "volumes/pvc-1", "a/b/c", "A.b_c-9", ".a/b..", &longest] {
            assert_eq!(check(key), Ok(()), "{key}");
            assert_eq!(check_prefix(key), Ok(()), "{key}");
        }
    }

    #[test]
    fn keys_that_are_not() {
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        for key in ["", "/", "/a", "a/", "a//b", ".", "a/..", "../a", "a b", "a\0", "é", &long] {
            assert!(matches!(check(key), Err(MetaError::BadKey { .. })), "{key:?}");
        }
    }

    #[test]
    fn a_prefix_may_end_anywhere_in_a_key() {
        for prefix in ["", "a", "a/", "a/b", "a/.", "a/.."] {
            assert_eq!(check_prefix(prefix), Ok(()), "{prefix}");
        }
        for prefix in ["/", "a//", "../", "a/./", "a b"] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }

    #[test]
    fn a_long_key_is_shortened_in_the_message() {
        let Err(MetaError::BadKey { key, .. }) = check(&"é".repeat(5000)) else {
            panic!("a long key was taken")
        };
        assert_eq!(key.chars().count(), 65);
    }
}
