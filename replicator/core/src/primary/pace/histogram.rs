//! Latencies, counted in steps of an eighth of an octave.

/// Steps per octave.
const STEPS: u64 = 8;
/// The highest octave counted apart: 2^27 µs, two minutes.
const OCTAVES: usize = 27;
const BUCKETS: usize = 8 * OCTAVES;
const _: () = assert!(STEPS == 8);

/// Latencies in µs, each known to an eighth.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    buckets: [u32; BUCKETS],
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    pub(super) fn clear(&mut self) {
        if self.count > 0 {
            *self = Self::default();
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn add(&mut self, us: u64) {
        let bucket = &mut self.buckets[bucket(us)];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
    }

    /// The least latency that `percent` of them do not exceed, rounded up by an eighth at most;
    /// 0 if there is none.
    pub(super) fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (at, count) in (0..).zip(&self.buckets) {
            seen += u64::from(*count);
            if seen >= wanted && seen > 0 {
                return highest(at);
            }
        }
        0
    }
}

/// Latencies below [`STEPS`] have a bucket each, octaves above it are cut into as many steps.
fn bucket(us: u64) -> usize {
    let at = if us < STEPS {
        us
    } else {
        let octave = u64::from(us.ilog2() - STEPS.ilog2());
        (octave + 1) * STEPS + (us >> octave) - STEPS
    };
    usize::try_from(at).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The highest latency of a bucket.
fn highest(bucket: u64) -> u64 {
    if bucket < STEPS {
        return bucket;
    }
    let octave = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a sorted list.
        #[test]
        fn a_percentile_is_right_to_an_eighth(
            all in proptest::collection::vec(0_u64..100_000_000, 1..300),
            percent in 1_u64..=100,
        ) {
            let mut histogram = Histogram::default();
            all.iter().for_each(|us| histogram.add(*us));
            let mut sorted = all.clone();
            sorted.sort_unstable();
            let rank = (all.len() as u64 * percent).div_ceil(100);
            let exact = sorted[usize::try_from(rank).unwrap().max(1) - 1];
            let found = histogram.percentile(percent);
            prop_assert!(found >= exact, "{found} < {exact}");
            prop_assert!(found <= exact + exact / 8 + 1, "{found} is far above {exact}");
        }
    }

    #[test]
    fn what_is_beyond_all_measure_is_counted_last() {
        let mut histogram = Histogram::default();
        histogram.add(u64::MAX);
        assert_eq!((histogram.count(), histogram.percentile(50) > 100_000_000), (1, true));
        histogram.clear();
        assert_eq!((histogram.count(), histogram.percentile(99)), (0, 0));
    }
}
