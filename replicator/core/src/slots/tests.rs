use super::*;
use alloc::vec;
use alloc::vec::Vec;
use uuid::Uuid;

fn volume(n: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(n))
}

fn wants(slots: &mut Slots, ms: u64, n: u128, copies: usize) -> bool {
    slots.tell(Tick(ms * 1000), volume(n), Wish::Wants { copies })
}

#[test]
fn there_are_only_so_many_and_they_come_back() {
    let mut slots = Slots::default();
    assert!(wants(&mut slots, 0, 1, 2) && wants(&mut slots, 0, 2, 2));
    assert!(!wants(&mut slots, 0, 3, 2));
    assert!(slots.tell(Tick(0), volume(1), Wish::Keeps));
    assert!(!slots.tell(Tick(0), volume(1), Wish::Nothing));
    assert!(wants(&mut slots, 1, 3, 2));
    assert_eq!(slots.taken(), limits::RESYNC_SLOTS);
    slots.leave(volume(2));
    assert_eq!(slots.taken(), 1);
}

#[test]
fn who_has_the_fewest_copies_comes_first() {
    let mut slots = Slots::default();
    assert!(wants(&mut slots, 0, 1, 2) && wants(&mut slots, 0, 2, 2));
    assert!(!wants(&mut slots, 1, 3, 2) && !wants(&mut slots, 1, 4, 1));
    slots.leave(volume(1));
    assert!(!wants(&mut slots, 2, 3, 2), "volume 4 has but one copy");
    assert!(wants(&mut slots, 3, 4, 1));
}

#[test]
fn who_does_not_ask_again_is_not_waited_for() {
    let mut slots = Slots::default();
    assert!(wants(&mut slots, 0, 1, 2) && wants(&mut slots, 0, 2, 2));
    assert!(!wants(&mut slots, 1, 4, 1));
    slots.leave(volume(1));
    assert!(!wants(&mut slots, 2, 3, 2));
    assert!(wants(&mut slots, 2 + 2 * limits::RESYNC_SLOT_PATIENCE_MS, 3, 2));
}

#[test]
fn a_target_whose_primary_is_gone_makes_room() {
    let mut slots = Slots::of_targets(1);
    assert!(wants(&mut slots, 0, 1, 2) && !wants(&mut slots, 1, 2, 2));
    let kept = limits::RESYNC_ENTRY_MS;
    assert!(slots.tell(Tick(kept * 1000), volume(1), Wish::Keeps));
    assert!(!wants(&mut slots, 2 * kept, 2, 2));
    assert!(wants(&mut slots, 2 * kept + 1, 2, 2), "nobody has kept the slot for so long");
    assert!(!slots.tell(Tick((2 * kept + 2) * 1000), volume(1), Wish::Keeps), "it is lost");
    assert!(slots.holds(volume(2)) && slots.taken() == 1);
}

/// A volume whose primary and target are on certain nodes.
struct Job {
    copies: usize,
    source: usize,
    target: usize,
    asks_at: u64,
    ends_at: Option<u64>,
}

const MS_PER_RESYNC: u64 = 3000;

/// Lets the volumes of three nodes be resynced as their primaries do it: a slot of one's own node
/// first, then one of the target's; who gets only the first gives it back and asks again later.
/// Answers when each began.
fn resync_all(mut jobs: Vec<Job>) -> Vec<u64> {
    let mut sources = [Slots::default(), Slots::default(), Slots::default()];
    let mut targets = [Slots::of_targets(1), Slots::of_targets(1), Slots::of_targets(2)];
    let mut began = vec![None; jobs.len()];
    let longest = MS_PER_RESYNC * jobs.len() as u64;
    for ms in (0..longest).step_by(10) {
        for (n, job) in (0..).zip(&mut jobs) {
            let (now, id) = (Tick(ms * 1000), volume(n));
            let (source, target) = (&mut sources[job.source], &mut targets[job.target]);
            match job.ends_at {
                Some(at) if at > ms => {
                    assert!(target.tell(now, id, Wish::Keeps), "a slot that is used was lost");
                }
                Some(_) => {
                    source.leave(id);
                    target.leave(id);
                }
                None if job.asks_at > ms => {}
                None if !source.tell(now, id, Wish::Wants { copies: job.copies }) => {
                    job.asks_at = ms + limits::RESYNC_SLOT_RETRY_MS;
                }
                None if target.tell(now, id, Wish::Wants { copies: job.copies }) => {
                    job.ends_at = Some(ms + MS_PER_RESYNC);
                    began[n as usize] = Some(ms);
                }
                None => {
                    source.leave(id);
                    job.asks_at = ms + limits::RESYNC_SLOT_RETRY_MS;
                }
            }
            let most = [limits::RESYNC_SLOTS, 1, 2];
            assert!(sources.iter().all(|s| s.taken() <= most[0]), "too many from one node");
            let held = targets.iter().map(Slots::taken);
            assert!(held.zip([1, 1, 2]).all(|(n, most)| n <= most), "too many to one node");
        }
    }
    began.into_iter().map(|at| at.expect("a volume got no turn")).collect()
}

#[test]
fn many_volumes_all_get_their_turn() {
    let job = |n: usize| Job {
        copies: 1 + n % 3,
        source: n % 3,
        target: (n + 1 + n / 3 % 2) % 3,
        asks_at: (n as u64 * 37) % 250,
        ends_at: None,
    };
    resync_all((0..48).map(job).collect());
}

#[test]
fn at_one_target_volumes_with_the_fewest_copies_come_first() {
    let job = |n: usize| Job {
        copies: if n < 10 { 2 } else { 1 },
        source: n % 2,
        target: 2,
        asks_at: (n as u64 * 10) % 100,
        ends_at: None,
    };
    let began = resync_all((0..20).map(job).collect());
    let average = |part: &[u64]| part.iter().sum::<u64>() / part.len() as u64;
    let (two, one) = (average(&began[..10]), average(&began[10..]));
    assert!(one + 3 * MS_PER_RESYNC < two, "with one copy: {one} ms, with two: {two} ms");
}
