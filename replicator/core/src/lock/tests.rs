use super::*;
use alloc::vec;
use proptest::prelude::*;

const fn exclusive(id: u64, start: u64, count: u32) -> (LockId, BlockRange, Mode) {
    (LockId(id), BlockRange { start, count }, Mode::Exclusive)
}

const fn shared(id: u64, start: u64, count: u32) -> (LockId, BlockRange, Mode) {
    (LockId(id), BlockRange { start, count }, Mode::Shared)
}

fn ask(lock: &mut RangeLock, (id, range, mode): (LockId, BlockRange, Mode)) -> bool {
    lock.acquire(id, range, mode)
}

fn release(lock: &mut RangeLock, id: u64) -> Vec<LockId> {
    let mut granted = Vec::new();
    lock.release(LockId(id), &mut granted);
    granted
}

#[test]
fn touching_ranges_do_not_wait_for_each_other() {
    let mut lock = RangeLock::default();
    assert!(ask(&mut lock, exclusive(1, 0, 8)));
    assert!(ask(&mut lock, exclusive(2, 8, 8)));
    assert!(!ask(&mut lock, exclusive(3, 7, 2)));
    assert!(release(&mut lock, 1).is_empty());
    assert_eq!(release(&mut lock, 2), [LockId(3)]);
    assert_eq!((lock.claims.len(), lock.is_held(LockId(3))), (1, Some(true)));
    assert!(release(&mut lock, 3).is_empty());
    assert!(lock.claims.is_empty() && lock.places.is_empty());
}

#[test]
fn readers_share_but_do_not_overtake_a_waiting_writer() {
    let mut lock = RangeLock::default();
    assert!(ask(&mut lock, shared(1, 0, 4)));
    assert!(ask(&mut lock, shared(2, 0, 4)));
    assert!(!ask(&mut lock, exclusive(3, 0, 4)));
    assert!(!ask(&mut lock, shared(4, 0, 4)), "would starve the writer");
    assert!(!ask(&mut lock, shared(5, 3, 4)), "would starve the writer");
    assert!(release(&mut lock, 1).is_empty());
    assert_eq!(release(&mut lock, 2), [LockId(3)]);
    assert_eq!(release(&mut lock, 3), [LockId(4), LockId(5)]);
}

#[test]
fn a_withdrawn_request_lets_those_behind_it_in() {
    let mut lock = RangeLock::default();
    assert!(ask(&mut lock, shared(1, 0, 4)));
    assert!(!ask(&mut lock, exclusive(2, 0, 4)));
    assert!(!ask(&mut lock, shared(3, 0, 4)));
    let mut granted = vec![];
    lock.cancel(LockId(2), &mut granted);
    assert_eq!(granted, [LockId(3)]);
    assert_eq!(lock.is_held(LockId(2)), None);
}

#[test]
fn the_longest_range_is_found_from_its_last_block() {
    let mut lock = RangeLock::default();
    assert!(ask(&mut lock, exclusive(1, 0, MAX_OP_BLOCKS)));
    assert!(!ask(&mut lock, shared(2, u64::from(MAX_OP_BLOCKS) - 1, 1)));
    assert!(ask(&mut lock, shared(3, u64::from(MAX_OP_BLOCKS), 1)));
}

#[test]
#[should_panic(expected = "not held")]
fn releasing_a_lock_that_waits_is_a_bug() {
    let mut lock = RangeLock::default();
    assert!(ask(&mut lock, exclusive(1, 0, 1)));
    assert!(!ask(&mut lock, exclusive(2, 0, 1)));
    release(&mut lock, 2);
}

#[test]
#[should_panic(expected = "present already")]
fn an_id_is_used_once() {
    let mut lock = RangeLock::default();
    assert!(ask(&mut lock, exclusive(1, 0, 1)));
    let _ = ask(&mut lock, exclusive(1, 5, 1));
}

#[test]
#[should_panic(expected = "too long")]
fn a_range_longer_than_one_operation_is_a_bug() {
    let _ = ask(&mut RangeLock::default(), exclusive(1, 0, MAX_OP_BLOCKS + 1));
}

/// The naive twin: all requests in order of arrival, every question a scan.
#[derive(Default)]
struct Twin(Vec<(LockId, BlockRange, Mode)>);

impl Twin {
    fn is_held(&self, at: usize) -> bool {
        let (_, range, mode) = self.0[at];
        let clash = |other: &(LockId, BlockRange, Mode)| {
            let one_writes = matches!((mode, other.2), (Mode::Exclusive, _) | (_, Mode::Exclusive));
            one_writes && range.blocks().any(|b| other.1.blocks().contains(&b))
        };
        !self.0[..at].iter().any(clash)
    }

    fn held(&self) -> Vec<LockId> {
        (0..self.0.len()).filter(|at| self.is_held(*at)).map(|at| self.0[at].0).collect()
    }

    fn remove(&mut self, at: usize) -> Vec<LockId> {
        let before = self.held();
        self.0.remove(at);
        self.held().into_iter().filter(|id| !before.contains(id)).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Acquire { start: u64, count: u32, exclusive: bool },
    Drop { pick: prop::sample::Index },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let count = prop_oneof![4 => 1_u32..12, 1 => 1..=MAX_OP_BLOCKS];
    let acquire = (0_u64..400, count, any::<bool>())
        .prop_map(|(start, count, exclusive)| Step::Acquire { start, count, exclusive });
    let drop = any::<prop::sample::Index>().prop_map(|pick| Step::Drop { pick });
    proptest::collection::vec(prop_oneof![3 => acquire, 2 => drop], 1..120)
}

proptest! {
    #[test]
    fn the_range_lock_equals_its_naive_twin(steps in steps()) {
        let (mut lock, mut twin) = (RangeLock::default(), Twin::default());
        for (id, step) in (0_u64..).zip(steps) {
            match step {
                Step::Acquire { start, count, exclusive } => {
                    let mode = if exclusive { Mode::Exclusive } else { Mode::Shared };
                    let request = (LockId(id), BlockRange::new(start, count), mode);
                    twin.0.push(request);
                    let at_once = ask(&mut lock, request);
                    prop_assert_eq!(at_once, twin.is_held(twin.0.len() - 1));
                }
                Step::Drop { pick } if !twin.0.is_empty() => {
                    let at = pick.index(twin.0.len());
                    let (id, held) = (twin.0[at].0, twin.is_held(at));
                    let mut granted = Vec::new();
                    if held {
                        lock.release(id, &mut granted);
                    } else {
                        lock.cancel(id, &mut granted);
                    }
                    prop_assert_eq!(granted, twin.remove(at));
                }
                Step::Drop { .. } => {}
            }
            lock.check();
            prop_assert_eq!(lock.claims.len(), twin.0.len());
            for (at, (id, ..)) in twin.0.iter().enumerate() {
                prop_assert_eq!(lock.is_held(*id), Some(twin.is_held(at)));
            }
        }
    }
}
