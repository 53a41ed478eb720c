//! The limit of heaps, in a process that has no other tests: heaps that are there stay.
#![cfg(target_env = "gnu")]
#![expect(clippy::unwrap_used, reason = "in a test, a panic is how a failure is told")]

use std::sync::Barrier;

use lockstep_kernel::memory::limit_heaps;

/// glibc sets so much of the address space aside for each heap but the first.
const HEAP_BYTES: usize = 64 << 20;

/// Heaps beside the first: what is in use at their beginning, and what is set aside up to their
/// end.
fn more_heaps() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let number = |word: &str| usize::from_str_radix(word, 16).unwrap();
    let mapped = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        Some((number(start), number(end), words.next()?.to_owned()))
    };
    let all: Vec<_> = maps.lines().filter_map(mapped).collect();
    let is_heap = |pair: &&[(usize, usize, String)]| match pair {
        [(start, end, used), (next, last, rest)] => {
            start.is_multiple_of(HEAP_BYTES)
                && used == "rw-p"
                && rest == "---p"
                && end == next
                && *last == start + HEAP_BYTES
        }
        _ => false,
    };
    all.windows(2).filter(is_heap).count()
}

#[test]
fn threads_share_heaps() {
    assert!(limit_heaps(2));
    let all = Barrier::new(24);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                // Each holds something while all others ask for something.
                let held = vec![1_u8; 10_000];
                all.wait();
                let more = more_heaps();
                all.wait();
                assert!(more <= 1, "{more} heaps beside the first");
                drop(held);
            });
        }
    });
}
