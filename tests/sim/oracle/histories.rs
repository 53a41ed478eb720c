//! The oracle against a search through all orders: on small random histories of one block both must
//! find the same.

use lockstep_core::id::{Epoch, InstanceId, RequestId};
use lockstep_core::range::BlockRange;
use std::collections::BTreeMap;
use uuid::Uuid;

use super::Oracle;
use crate::content::Value;
use crate::rng::Rng;

/// One operation of a history; times count calls and returns.
#[derive(Clone, Copy, Debug)]
struct Op {
    /// What it writes, or what it read.
    value: u64,
    reads: bool,
    called: u64,
    /// `None`: it never returned.
    returned: Option<u64>,
}

/// A history: at most `width` operations under way; every write has its own value, and reads answer
/// any of the values so far.
fn history(rng: &mut Rng, width: usize, length: usize) -> Vec<Op> {
    let (mut ops, mut open): (Vec<Op>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut time, mut writes) = (0, 0);
    while ops.len() < length || !open.is_empty() {
        time += 1;
        let calls = ops.len() < length && open.len() < width && rng.chance(600);
        if calls {
            let reads = rng.chance(550);
            writes += u64::from(!reads);
            let value = if reads { rng.between(0, writes) } else { writes };
            open.push(ops.len());
            ops.push(Op { value, reads, called: time, returned: None });
        } else if !open.is_empty() {
            let index = open.swap_remove(rng.index(open.len()));
            // A read that is still open when the world ends says nothing.
            ops[index].returned = Some(time);
        }
    }
    ops
}

/// Is there an order of all operations, each somewhere between its call and its return, in which
/// every read returns what was written last? Tries all (after Wing, Gong and Lowe).
fn is_linearizable(left: &[Op], last: u64) -> bool {
    if left.is_empty() {
        return true;
    }
    let first_return = left.iter().filter_map(|op| op.returned).min().unwrap_or(u64::MAX);
    (0..left.len()).any(|index| {
        let op = left[index];
        let may_be_next = op.called < first_return && !(op.reads && op.value != last);
        let mut rest = left.to_vec();
        rest.remove(index);
        may_be_next && is_linearizable(&rest, if op.reads { last } else { op.value })
    })
}

/// Does the oracle accept it?
fn is_accepted(ops: &[Op]) -> bool {
    let instance = InstanceId(Uuid::from_u128(1));
    let block = BlockRange::new(3, 1);
    let mut oracle = Oracle::default();
    let opened = oracle.open(instance, Epoch(1), 0, &BTreeMap::new(), None);
    assert_eq!(opened, Ok(()));
    let end = ops.iter().filter_map(|op| op.returned).max().unwrap_or(0);
    for time in 1..=end {
        for (index, op) in ops.iter().enumerate() {
            let request = RequestId(index as u64);
            if op.called == time {
                if op.reads {
                    oracle.read(instance, request, block);
                } else {
                    oracle.write(instance, request, block, Value(op.value), false, time);
                }
            }
            if op.returned == Some(time) {
                let good = if op.reads {
                    oracle.was_read(instance, request, &[Value(op.value)]).is_ok()
                } else {
                    oracle.acked(instance, request).is_ok()
                };
                if !good {
                    return false;
                }
            }
        }
    }
    true
}

#[test]
fn the_oracle_agrees_with_a_search_through_all_orders() {
    let mut rng = Rng::new(7);
    let (mut good, mut bad) = (0, 0);
    for round in 0..60_000 {
        let (width, length) = (1 + round % 4, 3 + round % 5);
        let ops = history(&mut rng, width, length);
        let (accepted, possible) = (is_accepted(&ops), is_linearizable(&ops, 0));
        assert_eq!(accepted, possible, "of {ops:?}");
        good += u32::from(possible);
        bad += u32::from(!possible);
    }
    assert!(good > 5000 && bad > 5000, "{good} good histories, {bad} bad ones");
}
