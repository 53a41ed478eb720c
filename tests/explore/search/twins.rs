//! Do states that count as the same behave alike? What tells them apart is left out only if it
//! decides nothing, so whatever follows one of them follows the other, step by step.

use std::sync::atomic::Ordering;

use super::{Worker, lock};
use crate::eye::digest;
use crate::world::State;

impl Worker<'_> {
    /// Compares what follows `state` with what followed the first state of the same `print`.
    ///
    /// # Errors
    /// If it is not the same.
    pub(super) fn compare(&mut self, state: &State, print: u64) -> Result<(), String> {
        let (steps, transitions) = (std::mem::take(&mut self.steps), self.transitions);
        let mut actions = Vec::new();
        state.actions(&mut actions);
        let mut prints = Vec::new();
        for action in actions {
            let mut next = state.clone();
            self.steps.clear();
            let broken = self.follow(&mut next, action).is_err();
            prints.push(if broken { 0 } else { next.fingerprint(&mut self.eye) });
        }
        (self.steps, self.transitions) = (steps, transitions);
        prints.sort_unstable();
        prints.dedup();
        let found = digest(&prints);
        let known = *lock(&self.shared.follows).entry(print).or_insert(found);
        self.shared.compared.fetch_add(1, Ordering::Relaxed);
        if known == found {
            return Ok(());
        }
        Err("something else follows than did after a state that counts as the same".to_owned())
    }
}
