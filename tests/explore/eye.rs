//! How a state is recognised: a hash of all of it, under which states are equal that differ only
//! in names. Sequence numbers, connections, tokens and locks are replaced by their rank among
//! those of their kind that still occur; times by whether they are to come, recent, or long ago,
//! which is all that a machine can tell when time passes in jumps (see `world.rs`).

use lockstep_core::alike::Kind;
use std::hash::{Hash, Hasher};

const SEED: u64 = 0x243f_6a88_85a3_08d3;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A time at least so much older than now is long ago; microseconds.
const LONG_AGO_US: u64 = 1_500_000;

/// A number to be renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    /// Kind, part and number: numbers are compared with those of the same kind and part only.
    key: u64,
    /// Its place among the words, or [`NOWHERE`].
    at: u32,
    /// Among those with the same kind and part, from 1 on.
    rank: u64,
}

/// Of a number that is compared with others, but not seen itself.
const NOWHERE: u32 = u32::MAX;

/// Tells a call's number from others' ranks.
const CALL: u64 = 1 << 63;

fn key(kind: Kind, space: u8, value: u64) -> u64 {
    assert!(value >> NUMBER_BITS == 0, "a number that is too large to be renamed");
    (u64::from(kind as u8) << 8 | u64::from(space)) << NUMBER_BITS | value
}

/// Bits of a name's key that hold the number.
const NUMBER_BITS: u32 = 48;

/// Takes a state in, part by part.
#[derive(Debug, Default)]
pub(crate) struct Eye {
    words: Vec<u64>,
    names: Vec<Name>,
    /// Numbers of calls, and numbers that are compared with names, to be told when all are known.
    calls: Vec<Name>,
    bounds: Vec<Name>,
    /// The part that is being looked at: numbers of different parts are not compared.
    space: u8,
    now: u64,
    /// May a read still ask for a lease?
    pub(crate) leases: bool,
    /// Does no time pass any more?
    pub(crate) frozen: bool,
    /// Which part's sequence numbers follow.
    seqs: Seqs,
}

/// Whose sequence numbers are met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Seqs {
    /// All are of this primary.
    #[default]
    Own,
    /// Of the primary that the number or connection before says: in a replica. The array says
    /// which primary claimed each epoch.
    Of { claimed: [u8; EPOCHS], next: u8 },
}

/// Most epochs that a run may reach.
pub(crate) const EPOCHS: usize = 16;

impl Eye {
    pub(crate) fn clear(&mut self) {
        self.words.clear();
        self.names.clear();
        self.calls.clear();
        self.bounds.clear();
    }

    /// A sequence number of this primary that will be compared with others, whatever names it.
    pub(crate) fn note_seq(&mut self, seq: u64) {
        let key = key(Kind::Seq, self.space, seq);
        self.names.push(Name { key, at: NOWHERE, rank: 0 });
    }

    /// From here on a primary or its messages are seen.
    pub(crate) fn look_at_seat(&mut self, seat: u8, now: u64) {
        (self.space, self.now, self.seqs) = (seat, now, Seqs::Own);
    }

    /// From here on a replica is seen.
    pub(crate) fn look_at_copy(&mut self, copy: u8, claimed: [u8; EPOCHS]) {
        (self.space, self.now) = (0x80 + copy, 0);
        self.seqs = Seqs::Of { claimed, next: u8::MAX };
    }

    fn name(&mut self, kind: Kind, space: u8, value: u64) {
        let at = u32::try_from(self.words.len()).unwrap_or(NOWHERE);
        match kind {
            Kind::Call => self.calls.push(Name { key: key(Kind::Seq, space, value), at, rank: 0 }),
            Kind::Bound => {
                self.bounds.push(Name { key: key(Kind::Seq, space, value), at, rank: 0 })
            }
            _ => self.names.push(Name { key: key(kind, space, value), at, rank: 0 }),
        }
        self.words.push(u64::from(kind as u8) << 8 | u64::from(space));
    }

    fn relative(&mut self, kind: Kind, value: u64) {
        match kind {
            Kind::Lease if !self.leases => self.words.push(0),
            Kind::Due if self.frozen => self.words.push(0),
            Kind::Due if value == u64::MAX => self.words.push(3),
            Kind::Tick | Kind::Lease | Kind::Due => {
                let age = self.now.checked_sub(value);
                self.words.push(age.map_or(2, |age| u64::from(age >= LONG_AGO_US)));
            }
            // The next number of a primary that has none yet.
            Kind::Seq | Kind::Bound if value == 0 => self.words.push(0),
            Kind::Seq | Kind::Call | Kind::Bound => {
                let space = match self.seqs {
                    Seqs::Own => self.space,
                    Seqs::Of { next, .. } => next,
                };
                assert!(space != u8::MAX, "a sequence number of an unknown primary");
                self.name(kind, space, value);
            }
            Kind::Conn => {
                if let Seqs::Of { next, .. } = &mut self.seqs {
                    *next = crate::world::seat_of(value);
                }
                self.name(kind, crate::world::pair_of(value), value);
            }
            Kind::Token | Kind::Lock | Kind::Ticket => self.name(kind, self.space, value),
        }
    }

    /// Replaces each number by its rank among those of its kind and part.
    fn rank_names(&mut self) {
        let (mut rank, mut before) = (0, u64::MAX);
        for name in &mut self.names {
            rank = match before {
                same if same == name.key => rank,
                like if like >> NUMBER_BITS == name.key >> NUMBER_BITS => rank + 1,
                _ => 1,
            };
            before = name.key;
            if let Some(word) = self.words.get_mut(name.at as usize) {
                *word |= rank << 32;
            }
            name.rank = rank;
        }
    }

    /// Numbers of calls are the same or not; which comes first is told by where they are met.
    /// Those that are compared with others have their rank among these.
    fn rank_calls(&mut self) {
        for index in 0..self.calls.len() {
            let Name { key, at, .. } = self.calls[index];
            let known = self.names.binary_search_by_key(&key, |name| name.key);
            let known = known.ok().map(|found| self.names[found].rank << 32);
            let first = || self.calls.iter().position(|call| call.key == key).unwrap_or(index);
            self.words[at as usize] |= known.unwrap_or_else(|| (first() as u64) << 32 | CALL);
        }
    }

    /// Of a bound it counts how many are not above it.
    fn rank_bounds(&mut self) {
        for Name { key, at, .. } in &self.bounds {
            let below = self.names.partition_point(|name| name.key <= *key);
            let like = |name: &&Name| name.key >> NUMBER_BITS == key >> NUMBER_BITS;
            let last = self.names[..below].last().filter(like);
            self.words[*at as usize] |= last.map_or(0, |name| name.rank) << 32;
        }
    }

    /// The fingerprint of all that was taken in; never 0.
    pub(crate) fn fingerprint(&mut self) -> u64 {
        self.names.sort_unstable();
        self.rank_names();
        self.rank_calls();
        self.rank_bounds();
        digest(&self.words)
    }
}

/// One number for all of `words`; never 0.
pub(crate) fn digest(words: &[u64]) -> u64 {
    let mut print = fold(SEED ^ words.len() as u64, STEP);
    for pair in words.chunks(2) {
        let second = pair.get(1).copied().unwrap_or(0);
        print = fold(print ^ pair[0], STEP ^ second) ^ print.rotate_left(23);
    }
    fold(print, STEP).max(1)
}

/// Both halves of the product.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high
}

impl Hasher for Eye {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.words.push(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.words.push(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.words.push(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.words.push(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.words.push(value);
        if let Seqs::Of { claimed, next } = &mut self.seqs {
            let epoch = usize::try_from(value).ok();
            *next = epoch.and_then(|e| claimed.get(e)).copied().unwrap_or(u8::MAX);
        }
    }

    fn write_usize(&mut self, value: usize) {
        self.words.push(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.words.push(value.cast_unsigned() as u64);
    }

    fn write_i128(&mut self, value: i128) {
        match Kind::of(value) {
            Some((kind, value)) => self.relative(kind, value),
            None => self.write(&value.to_le_bytes()),
        }
    }
}

/// Takes `part` in.
pub(crate) fn see(part: &impl Hash, eye: &mut Eye) {
    part.hash(eye);
}
