//! How large a volume becomes.

use crate::refuse;
use lockstep_core::limits::MAX_VOLUME_BLOCKS;
use lockstep_core::range::BLOCK_SIZE;
use lockstep_proto::csi::CapacityRange;
use tonic::Status;

/// Volumes are made of whole pieces of this size.
const UNIT: u64 = 1 << 20;
/// If nobody says.
const DEFAULT: u64 = 1 << 30;
/// Smallest volume on which each file system is made: ext4 has its journal, and XFS what
/// `mkfs.xfs` asks for.
pub(crate) const EXT4_MIN: u64 = 16 << 20;
pub(crate) const XFS_MIN: u64 = 300 << 20;
/// Largest volume.
pub(crate) const MAX: u64 = MAX_VOLUME_BLOCKS * BLOCK_SIZE as u64;

/// A size that was asked for: at least `required`, at most `limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    required: u64,
    limit: u64,
}

impl Range {
    /// Reads what was asked for.
    ///
    /// # Errors
    /// OUT_OF_RANGE if no volume could be of such a size; INVALID_ARGUMENT if a number is negative.
    pub(crate) fn new(range: Option<&CapacityRange>) -> Result<Self, Status> {
        let Some(range) = range else { return Ok(Self { required: 0, limit: MAX }) };
        let number = |field: &str, bytes: i64| {
            u64::try_from(bytes)
                .map_err(|_| refuse::bad(field, &bytes.to_string(), "0 or more is allowed"))
        };
        let required = number("capacity_range.required_bytes", range.required_bytes)?;
        let limit = match number("capacity_range.limit_bytes", range.limit_bytes)? {
            0 => MAX,
            bytes => bytes.min(MAX),
        };
        Ok(Self { required, limit })
    }

    /// The size for a new volume that has to be at least `min` in any case.
    ///
    /// # Errors
    /// OUT_OF_RANGE.
    pub(crate) fn choose(self, min: u64) -> Result<u64, Status> {
        let least = self.required.max(min).max(UNIT);
        let rounded = least.checked_next_multiple_of(UNIT).filter(|bytes| *bytes <= self.limit);
        let Some(least) = rounded else {
            return Err(Status::out_of_range(format!(
                "capacity_range: no volume has between {} and {} bytes; sizes are multiples of \
                 {UNIT}, here at least {}, up to {MAX}",
                self.required,
                self.limit,
                min.max(UNIT),
            )));
        };
        if self.required > 0 {
            return Ok(least);
        }
        Ok(least.max(DEFAULT.min(self.limit / UNIT * UNIT)))
    }

    /// The size for a new volume that begins with something of `source` bytes.
    ///
    /// # Errors
    /// OUT_OF_RANGE if that would not fit.
    pub(crate) fn choose_for(self, source: u64) -> Result<u64, Status> {
        let bytes = if self.required == 0 { source } else { self.choose(0)? };
        if (source..=self.limit).contains(&bytes) {
            return Ok(bytes);
        }
        Err(Status::out_of_range(format!(
            "capacity_range: between {} and {} bytes are asked for, and what the volume begins \
             with has {source}; ask for as much or more",
            self.required, self.limit
        )))
    }

    /// The size that a volume of `present` bytes is to get: what it has, if that will do.
    ///
    /// # Errors
    /// OUT_OF_RANGE if no volume could be of such a size, or if it would get smaller.
    pub(crate) fn grown(self, present: u64) -> Result<u64, Status> {
        if self.holds(present) {
            return Ok(present);
        }
        if present > self.limit {
            return Err(Status::out_of_range(format!(
                "capacity_range: at most {} bytes are asked for, the volume has {present}, and \
                 volumes do not get smaller",
                self.limit
            )));
        }
        self.choose(0)
    }

    /// Whether a volume of this size is what was asked for.
    pub(crate) fn holds(self, bytes: u64) -> bool {
        (self.required..=self.limit).contains(&bytes)
    }
}

/// Bytes, as CSI tells them.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn range(required_bytes: i64, limit_bytes: i64) -> Range {
        Range::new(Some(&CapacityRange { required_bytes, limit_bytes })).unwrap()
    }

    #[test]
    fn sizes_are_rounded_up_within_the_range() {
        let none = Range::new(None).unwrap();
        assert_eq!(none.choose(0).unwrap(), DEFAULT);
        assert_eq!(none.choose(2 << 30).unwrap(), 2 << 30);
        assert_eq!(range(1, 0).choose(0).unwrap(), UNIT);
        assert_eq!(range(UNIT as i64 + 1, 0).choose(0).unwrap(), 2 * UNIT);
        assert_eq!(range(5, 0).choose(XFS_MIN).unwrap(), XFS_MIN);
        assert_eq!(range(0, 64 << 20).choose(0).unwrap(), 64 << 20);
        assert_eq!(range(0, 0).choose(0).unwrap(), DEFAULT);
        assert_eq!(range(MAX as i64, 0).choose(0).unwrap(), MAX);
    }

    #[test]
    fn what_no_volume_can_be_is_out_of_range() {
        for (required, limit) in
            [(1, 2), (UNIT as i64 + 1, 2 * UNIT as i64 - 1), (i64::MAX, 0), (2 << 30, 1 << 30)]
        {
            let refused = range(required, limit).choose(0).unwrap_err();
            assert_eq!(refused.code(), Code::OutOfRange, "{required} {limit}");
        }
        assert_eq!(range(1, 32 << 20).choose(XFS_MIN).unwrap_err().code(), Code::OutOfRange);
        let negative = CapacityRange { required_bytes: -1, limit_bytes: 0 };
        assert_eq!(Range::new(Some(&negative)).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn what_a_volume_begins_with_has_to_fit() {
        let none = Range::new(None).unwrap();
        assert_eq!(none.choose_for(5 << 20).unwrap(), 5 << 20);
        assert_eq!(range(0, 6 << 20).choose_for(5 << 20).unwrap(), 5 << 20);
        assert_eq!(range((7 << 20) - 1, 0).choose_for(5 << 20).unwrap(), 7 << 20);
        for small in [range(1, 0), range(0, 4 << 20), range(1 << 20, 2 << 20)] {
            assert_eq!(small.choose_for(5 << 20).unwrap_err().code(), Code::OutOfRange);
        }
    }

    #[test]
    fn volumes_grow_and_do_not_shrink() {
        assert_eq!(range(5 << 20, 0).grown(4 << 20).unwrap(), 5 << 20);
        assert_eq!(range(5 << 20, 0).grown(9 << 20).unwrap(), 9 << 20);
        assert_eq!(range(1, 4 << 20).grown(9 << 20).unwrap_err().code(), Code::OutOfRange);
        assert_eq!(range(i64::MAX, 0).grown(9 << 20).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn an_existing_size_is_compared_with_the_range() {
        assert!(range(10, 20).holds(20) && range(10, 0).holds(30) && range(0, 20).holds(1));
        assert!(!range(10, 20).holds(21) && !range(10, 0).holds(9));
    }
}
