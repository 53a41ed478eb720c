//! What happens when: a queue of events in virtual time, first come first served within an instant.

use std::collections::BTreeMap;

/// Events to come.
#[derive(Debug)]
pub struct Schedule<E> {
    now: u64,
    next: u64,
    events: BTreeMap<(u64, u64), E>,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Self { now: 0, next: 0, events: BTreeMap::new() }
    }
}

impl<E> Schedule<E> {
    /// The virtual time, microseconds since the start.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// `event` will happen in `delay` microseconds.
    pub fn after(&mut self, delay: u64, event: E) {
        self.at(self.now + delay, event);
    }

    /// `event` will happen at `when`, or now if that is past.
    pub fn at(&mut self, when: u64, event: E) {
        self.next += 1;
        self.events.insert((when.max(self.now), self.next), event);
    }

    /// Moves time on to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let ((when, _), event) = self.events.pop_first()?;
        assert!(when >= self.now, "time goes backwards: {} then {when}", self.now);
        self.now = when;
        Some(event)
    }

    /// Number of events to come.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Will nothing happen any more?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_arrival() {
        let mut schedule = Schedule::default();
        schedule.after(5, "c");
        schedule.after(1, "a");
        schedule.after(5, "d");
        schedule.at(2, "b");
        let mut seen = Vec::new();
        while let Some(event) = schedule.advance() {
            seen.push((schedule.now(), event));
        }
        assert_eq!(seen, [(1, "a"), (2, "b"), (5, "c"), (5, "d")]);
        assert!(schedule.is_empty());
    }
}
