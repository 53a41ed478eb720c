//! The pace of a resync beside a guest whose latency the test decides.

use super::*;
use alloc::vec::Vec;

const MIB: u64 = 1 << 20;

/// A guest that writes every ms, and a resync that always has another window of 1 MiB. A write
/// takes 100 µs, and `strain_us` more for each window of the last 100 ms.
struct World {
    pace: Pace,
    now: Tick,
    strain_us: u64,
    writes: bool,
    /// When windows started.
    windows: Vec<Tick>,
}

impl World {
    fn new(strain_us: u64, writes: bool) -> Self {
        let (pace, now) = (Pace::default(), Tick(1_000_000));
        Self { pace, now, strain_us, writes, windows: Vec::new() }
    }

    /// `secs` seconds; each window takes 2 ms. Returns bytes compared per second.
    fn run(&mut self, secs: u64, resync: bool) -> u64 {
        let mut compared = 0;
        for ms in 0..secs * 1000 {
            self.now = self.now.plus_ms(1);
            let now = self.now;
            self.windows.retain(|at| now.ms_since(*at) < 100);
            if self.writes {
                self.pace.note(now, 100 + self.strain_us * self.windows.len() as u64);
            }
            let running = usize::from(ms % 2 == 1) * 3;
            if resync && self.pace.admits(now, running) {
                self.pace.charge(now, MIB);
                self.windows.push(now);
                compared += MIB;
            }
        }
        compared / secs
    }
}

#[test]
fn without_a_guest_there_is_no_limit_but_the_windows() {
    let mut world = World::new(100, false);
    world.pace.begin(world.now);
    let most = world.run(5, true);
    assert!(most >= 450 * MIB, "{} MiB/s", most / MIB);
    assert_eq!(world.pace.due(world.now), None);
}

#[test]
fn a_guest_that_does_not_suffer_lets_the_rate_rise() {
    let mut world = World::new(0, true);
    world.run(5, false);
    world.pace.begin(world.now);
    let first = world.run(2, true);
    assert!((40 * MIB..100 * MIB).contains(&first), "{} MiB/s", first / MIB);
    let later = world.run(10, true);
    assert!(2 * later > 3 * first, "{} MiB/s after {}", later / MIB, first / MIB);
}

#[test]
fn a_guest_that_suffers_gets_relief_but_the_resync_goes_on() {
    let mut world = World::new(100, true);
    world.run(5, false);
    world.pace.begin(world.now);
    world.run(10, true);
    for _ in 0..10 {
        let rate = world.run(3, true);
        assert!((6 * MIB..16 * MIB).contains(&rate), "{} MiB/s", rate / MIB);
    }
}

#[test]
fn what_is_usual_is_learned_by_a_pause_if_it_is_unknown() {
    let mut world = World::new(100, true);
    // The guest was not measured before.
    world.pace.begin(world.now);
    world.run(1, true);
    assert!(world.pace.due(world.now).is_some() && !world.pace.admits(world.now, 0));
    world.run(3, true);
    assert_eq!(world.pace.usual.map(|us| us / 16), Some(100 / 16));
    assert!(world.run(3, true) > 0);
}

#[test]
fn another_habit_of_the_guest_is_learned_in_the_end() {
    let mut world = World::new(0, true);
    world.run(5, false);
    world.pace.begin(world.now);
    world.run(3, true);
    // Every write takes three times as long from now on, whatever the resync does.
    let before = world.pace.usual;
    for _ in 0..50_000 {
        world.now = world.now.plus_ms(1);
        world.pace.note(world.now, 300);
        if world.pace.admits(world.now, 0) {
            world.pace.charge(world.now, MIB);
        }
    }
    assert!(world.pace.usual > before, "{:?}", world.pace.usual);
    assert!(world.pace.rate > limits::RESYNC_RATE_FLOOR);
}

#[test]
fn a_guest_that_stops_writing_is_not_waited_for() {
    let mut world = World::new(100, true);
    world.run(5, false);
    world.pace.begin(world.now);
    world.run(10, true);
    world.writes = false;
    world.run(5, true);
    assert!(world.run(2, true) >= 450 * MIB);
}

#[test]
fn waits_for_a_lost_member_are_no_measure() {
    let mut world = World::new(0, true);
    world.run(5, false);
    for _ in 0..100 {
        world.pace.note(world.now, 2_000_000);
    }
    world.run(2, false);
    assert!(world.pace.usual.is_some_and(|us| us < 150), "{:?}", world.pace.usual);
}
