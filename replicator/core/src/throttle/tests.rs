use super::*;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

/// Sends requests of these sizes as soon as each may pass. Returns when each did, in microseconds.
fn sent(limits: RateLimits, sizes: &[u64]) -> Vec<u64> {
    let (mut throttle, mut now) = (Throttle::new(limits), Tick(5));
    let mut times = Vec::new();
    for bytes in sizes {
        while let Err(wait_us) = throttle.pass(now, *bytes) {
            assert!(wait_us > 0);
            now = Tick(now.0 + wait_us);
        }
        times.push(now.0);
    }
    times
}

#[test]
fn without_limits_nothing_waits() {
    assert_eq!(sent(RateLimits::default(), &[1 << 30; 5]), [5; 5]);
    assert!(RateLimits::default().is_none());
}

#[test]
fn requests_are_counted() {
    let limits = RateLimits { iops: 100, bytes_per_s: 0 };
    let times = sent(limits, &vec![1 << 20; 1000]);
    assert_eq!(times[10], 5, "a burst");
    assert!(times[11] > 5);
    assert_eq!(times[999] - times[899], 1_000_000, "100 in a second");
}

#[test]
fn bytes_are_counted() {
    let limits = RateLimits { iops: 0, bytes_per_s: 1 << 20 };
    let times = sent(limits, &vec![64 << 10; 161]);
    assert_eq!(times[160] - times[144], 1_000_000, "16 of 64 KiB in a second");
    let large = sent(limits, &[4 << 20, 1]);
    assert_eq!(large[0], 5, "nothing is too large");
    assert_eq!(large[1] - large[0], 3_900_000, "but then it has to wait");
}

#[test]
fn other_limits_are_in_force_at_once() {
    let mut throttle = Throttle::new(RateLimits { iops: 1, bytes_per_s: 0 });
    throttle.pass(Tick(0), 0).expect("the first passes");
    let waits = throttle.pass(Tick(0), 0).expect_err("the second waits");
    throttle.set(throttle.limits());
    assert_eq!(throttle.pass(Tick(0), 0), Err(waits), "the same limits change nothing");
    throttle.set(RateLimits { iops: 1000, bytes_per_s: 0 });
    assert_eq!(throttle.pass(Tick(0), 0), Ok(()));
}

proptest! {
    /// In no second more passes than the limit, the burst, and the last request.
    #[test]
    fn the_rate_holds(
        iops in 0..2000u64,
        bytes_per_s in prop_oneof![Just(0), 4096..(64u64 << 20)],
        sizes in proptest::collection::vec(prop_oneof![Just(4096), 0..(2u64 << 20)], 1..300),
    ) {
        let limits = RateLimits { iops, bytes_per_s };
        let times = sent(limits, &sizes);
        for (first, begin) in times.iter().enumerate() {
            let within = |time: &&u64| **time < begin + 1_000_000;
            let count = times[first..].iter().take_while(within).count();
            if iops > 0 {
                prop_assert!(count as u64 <= iops + iops / 10 + 2, "{count} of {iops}");
            }
            if bytes_per_s > 0 {
                let before_last = &sizes[first..first + count - 1];
                let bytes: u64 = before_last.iter().sum();
                prop_assert!(bytes <= bytes_per_s + bytes_per_s / 10 + 4096);
            }
        }
    }
}
