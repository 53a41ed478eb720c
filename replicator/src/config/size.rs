//! Sizes as people write them: `10GiB`, `64M`, `4096`.

use std::fmt;

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a size: {why}; write a whole number of bytes, or a number with one of \
    KiB MiB GiB TiB (or K M G T, the same) or kB MB GB TB (powers of 1000), as in 10GiB"
)]
pub struct SizeError {
    text: String,
    why: &'static str,
}

const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("ki", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mi", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gi", 1 << 30),
    ("gib", 1 << 30),
    ("t", 1 << 40),
    ("ti", 1 << 40),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

/// Reads a size; the answer is in bytes.
///
/// A number may have a fraction (`1.5GiB`) as long as the result is a whole number of bytes.
///
/// # Errors
/// [`SizeError`] names the text and what is allowed.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let refuse = |why| SizeError { text: text.to_owned(), why };
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    if number.is_empty() {
        return Err(refuse(if trimmed.starts_with('-') {
            "it is negative"
        } else {
            "it does not begin with a number"
        }));
    }
    let unit = unit.trim().to_ascii_lowercase();
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(refuse("the unit is unknown"));
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let too_large = || refuse("it is too large");
    let whole: u64 = match whole {
        "" => return Err(refuse("it does not begin with a digit")),
        digits => digits.parse().map_err(|_| too_large())?,
    };
    let bytes = whole.checked_mul(*factor).ok_or_else(too_large)?;
    let part =
        fraction_bytes(fraction, *factor).ok_or_else(|| refuse("the fraction is no byte"))?;
    bytes.checked_add(part).ok_or_else(too_large)
}

/// `0.<digits>` of `factor` bytes; `None` if that is not a whole number of them.
fn fraction_bytes(digits: &str, factor: u64) -> Option<u64> {
    if digits.is_empty() {
        return Some(0);
    }
    if digits.len() > 18 {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
    let product = u128::from(digits.parse::<u64>().ok()?) * u128::from(factor);
    if product % scale != 0 { None } else { u64::try_from(product / scale).ok() }
}

/// A number of bytes as people read it, with at most one decimal: `1.5 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let Some((unit, name)) = steps.iter().find(|(unit, _)| self.0 >= *unit) else {
            return f.pad(&format!("{} B", self.0));
        };
        let tenths = u128::from(self.0) * 10 / u128::from(*unit);
        let (whole, tenth) = (tenths / 10, tenths % 10);
        if tenth == 0 {
            f.pad(&format!("{whole} {name}"))
        } else {
            f.pad(&format!("{whole}.{tenth} {name}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64M", 64 << 20),
            ("64Mi", 64 << 20),
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            (" 1.5GiB ", 3 << 29),
            ("0.5k", 512),
            ("2TiB", 2 << 40),
            ("3kB", 3000),
            ("3GB", 3_000_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_reason() {
        let cases = [
            ("", "begin with a number"),
            ("GiB", "begin with a number"),
            ("-1", "negative"),
            (".5G", "begin with a digit"),
            ("1.2.3G", "no byte"),
            ("1.0001K", "no byte"),
            ("5 parsecs", "unit is unknown"),
            ("5PiB", "unit is unknown"),
            ("18446744073709551616", "too large"),
            ("99999999TiB", "too large"),
        ];
        for (text, why) in cases {
            let message = parse_size(text).map_err(|e| e.to_string());
            assert!(message.as_ref().is_err_and(|m| m.contains(why)), "{text}: {message:?}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            ((1 << 40) - 1, "1023.9 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>8}|", Size(1024)), "   1 KiB|");
    }
}
