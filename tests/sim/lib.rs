//! The simulator: a whole cluster in one thread, in virtual time, from one seed.
//!
//! The machines of `lockstep-core` and `lockstep-store` run as in the daemon, with the real wire
//! format between them. Disks, network, record store, power and guests are simulated, and go wrong
//! in every way that `docs/faults.md` lists. Checkers outside of the code under test compare what
//! happens with what `docs/protocol.md` promises. The same seed gives the same run.
#![forbid(unsafe_code)]

pub mod clock;
pub mod cluster;
pub mod content;
pub mod disk;
pub mod fault;
pub mod fetch;
pub mod guest;
pub mod meta;
pub mod net;
pub mod node;
pub mod oracle;
pub mod plan;
pub mod report;
pub mod rng;
pub mod schedule;
pub mod world;

use lockstep_core::planted::Planted;
use std::panic::{AssertUnwindSafe, catch_unwind};

use plan::Options;
use report::{Outcome, Violation};
use world::{Sink, World};

/// Runs one seed.
#[must_use]
pub fn run_seed(seed: u64, planted: Planted, sink: Option<Sink>) -> Outcome {
    run(&Options::new(seed, planted), sink)
}

/// Runs one world. A panic of the code under test is a violation like any other.
#[must_use]
pub fn run(options: &Options, sink: Option<Sink>) -> Outcome {
    let run = AssertUnwindSafe(|| World::new(options, sink).run());
    catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let what = text.unwrap_or_else(|| "a panic without words".to_owned());
        let violation = Some(Violation { at_us: 0, checker: "panic", what });
        Outcome { violation, ..Outcome::default() }
    })
}

#[cfg(test)]
mod tests;
