//! What the explorer relies on: a machine that is told the same at the same time does the same, and
//! states that are alike hash alike.

use lockstep_core::primary::{Event as PrimaryEvent, Primary};
use lockstep_core::replica::{self, Replica};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::World;

fn hashed(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

impl World {
    /// Copies of all machines are told the same, twice; the machines themselves know nothing of it.
    pub(super) fn check_twice(&self) -> Result<(), String> {
        for node in &self.nodes {
            let tick = node.tick(self.now());
            if let Some(seat) = &node.seat {
                let told = || {
                    let (mut copy, mut out): (Primary, _) = (seat.primary.clone(), Vec::new());
                    let before = hashed(&copy);
                    copy.step(tick, PrimaryEvent::RecordChanged, &mut out);
                    (before, hashed(&copy), out)
                };
                if told() != told() {
                    return Err(format!("the primary on {} does two things at once", node.name));
                }
            }
            let host = node.copy.as_ref().and_then(|copy| copy.host.as_ref());
            if let Some(host) = host {
                let told = || {
                    let (mut copy, mut out): (Replica, _) = (host.replica.clone(), Vec::new());
                    let before = hashed(&copy);
                    let gone = replica::Event::Disconnected(lockstep_core::id::Conn(u64::MAX));
                    copy.step(tick, gone, &mut out);
                    (before, hashed(&copy), out)
                };
                if told() != told() {
                    return Err(format!("the copy on {} does two things at once", node.name));
                }
            }
        }
        Ok(())
    }
}
