//! How fast a volume may be used: so many requests and bytes in a second, as its owner says.
//!
//! Each limit is a bucket that fills at its rate up to a tenth of a second's worth. A request takes
//! its cost out of both as soon as neither is empty, and may leave them in debt: so a large request
//! is never too large, and the rate holds over any longer time.

#[cfg(test)]
mod tests;

use crate::id::Tick;

/// What an idle volume may do at once, as time at its rate.
const BURST_NS: u64 = 100_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Most requests and bytes in a second, reads and writes together; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests.
    pub iops: u64,
    /// Bytes.
    pub bytes_per_s: u64,
}

impl RateLimits {
    /// Is there any?
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A bucket, told by the time at which it is full again.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_ns: u64,
}

impl Bucket {
    /// In how many nanoseconds it is not empty any more.
    fn wait_ns(self, now_ns: u64) -> u64 {
        self.full_ns.saturating_sub(now_ns.saturating_add(BURST_NS))
    }

    fn take(&mut self, now_ns: u64, amount: u64, rate: u64) {
        let cost = u128::from(amount) * u128::from(NS_PER_S) / u128::from(rate.max(1));
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        self.full_ns = self.full_ns.max(now_ns).saturating_add(cost);
    }
}

/// The buckets of one volume.
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    limits: RateLimits,
    requests: Bucket,
    bytes: Bucket,
}

impl Throttle {
    /// Full buckets.
    #[must_use]
    pub fn new(limits: RateLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Other limits from now on, with full buckets. The same ones change nothing.
    pub fn set(&mut self, limits: RateLimits) {
        if limits != self.limits {
            *self = Self::new(limits);
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> RateLimits {
        self.limits
    }

    /// Lets a request of so many bytes pass, or says in how many microseconds to ask again.
    /// Requests ask one after the other.
    ///
    /// # Errors
    /// The time to wait, more than 0.
    pub fn pass(&mut self, now: Tick, bytes: u64) -> Result<(), u64> {
        let now_ns = now.0.saturating_mul(1000);
        let RateLimits { iops, bytes_per_s } = self.limits;
        let of = |rate: u64, bucket: Bucket| if rate == 0 { 0 } else { bucket.wait_ns(now_ns) };
        let wait_ns = of(iops, self.requests).max(of(bytes_per_s, self.bytes));
        if wait_ns > 0 {
            return Err(wait_ns.div_ceil(1000));
        }
        if iops > 0 {
            self.requests.take(now_ns, 1, iops);
        }
        if bytes_per_s > 0 {
            self.bytes.take(now_ns, bytes, bytes_per_s);
        }
        Ok(())
    }
}
