//! Kernels on which a door is known to do harm, and who found it out.

use super::kind::Kind;

/// A door that is not to be used on a series of kernels.
struct KnownBad {
    kind: Kind,
    /// First and second number of the kernel's version.
    series: (u32, u32),
    why: &'static str,
}

const TABLE: &[KnownBad] = &[KnownBad {
    kind: Kind::Ublk,
    series: (6, 17),
    // Seen on 6.17.0-1017-aws in `ublk_init_queues`, with SPDK as the server, each time a device
    // was added; other builds of 6.17 answered `EINVAL` to starting one. 6.18 and 7.0 are well.
    why: "adding a ublk device panics kernels of the 6.17 series \
          (github.com/longhorn/longhorn issues 13509 and 11977)",
}];

/// Why this door must not be used on a kernel of this release, such as `6.17.0-1017-aws`.
#[must_use]
pub fn known_bad(kind: Kind, release: &str) -> Option<&'static str> {
    let series = series(release)?;
    let entry = TABLE.iter().find(|bad| bad.kind == kind && bad.series == series)?;
    Some(entry.why)
}

/// The release of the running kernel, as `uname -r` shows it; empty where `/proc` is not mounted.
#[must_use]
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// First and second number of a release.
pub(super) fn series(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_is_what_counts() {
        for bad in ["6.17.0-1017-aws", "6.17.13+deb14-amd64", "6.17"] {
            assert!(known_bad(Kind::Ublk, bad).is_some(), "{bad}");
            assert!(known_bad(Kind::Nbd, bad).is_none(), "{bad}");
        }
        for good in ["6.12.95+deb12-cloud-amd64", "6.1.0-55", "6.171.0", "6.18.44", "", "x.y"] {
            assert!(known_bad(Kind::Ublk, good).is_none(), "{good}");
        }
    }
}
