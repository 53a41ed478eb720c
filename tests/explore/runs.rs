//! The runs: which cluster, and what may go wrong in it.

use lockstep_core::planted::{Bug, Planted};
use lockstep_core::primary::Phase;

use crate::act::Action;
use crate::focus::Focus;
use crate::world::{Budget, Setup, State};

/// A run with a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) setup: Setup,
    /// Small enough for every change of the code?
    pub(crate) quick: bool,
}

const NOTHING: Budget = Budget {
    writes: 0,
    flushes: 0,
    reads: 0,
    kills: 0,
    powers: 0,
    breaks: 0,
    deaths: 0,
    waits: 0,
    unknowns: 0,
    closes: 0,
    cleans: 0,
    commits: 1,
};
const W: Budget = Budget { writes: 1, ..NOTHING };
const WF: Budget = Budget { flushes: 1, ..W };

const fn run(name: &'static str, copies: u8, budget: Budget) -> Run {
    let planted = Planted::NONE;
    let setup =
        Setup { copies, seats: 2, min_in_sync: 1, opened: true, budget, planted, full: false };
    Run { name, setup, quick: false }
}

const fn quick(name: &'static str, copies: u8, budget: Budget) -> Run {
    Run { quick: true, ..run(name, copies, budget) }
}

/// With at least two members.
const fn strict(run: Run) -> Run {
    Run { setup: Setup { min_in_sync: 2, ..run.setup }, ..run }
}

/// Without an idle commit.
const fn lean(run: Run) -> Run {
    let budget = Budget { commits: 0, ..run.setup.budget };
    Run { setup: Setup { budget, ..run.setup }, ..run }
}

/// From before the first claim on: the two compete for it.
const fn early(run: Run) -> Run {
    Run { setup: Setup { opened: false, ..run.setup }, ..run }
}

/// All of them.
pub(crate) const RUNS: &[Run] = &[
    quick("two", 2, Budget { reads: 1, ..WF }),
    quick("two-writes", 2, Budget { writes: 2, ..NOTHING }),
    quick("two-kill", 2, Budget { kills: 1, ..W }),
    quick("two-wait", 2, Budget { waits: 1, ..W }),
    quick("two-break", 2, Budget { breaks: 1, ..W }),
    quick("two-unknown", 2, Budget { unknowns: 1, ..W }),
    quick("two-death", 2, Budget { deaths: 1, ..W }),
    quick("two-detach", 2, Budget { cleans: 1, closes: 1, ..W }),
    early(quick("two-claims", 2, Budget { unknowns: 1, deaths: 1, ..W })),
    quick("three", 3, W),
    quick("three-death", 3, Budget { deaths: 1, ..W }),
    quick("three-unknown", 3, Budget { unknowns: 1, ..W }),
    run("two-power", 2, Budget { powers: 1, ..WF }),
    run("two-kill-clean", 2, Budget { kills: 1, cleans: 1, ..W }),
    run("two-kill-break", 2, Budget { kills: 1, breaks: 1, ..W }),
    run("two-kill-wait", 2, Budget { kills: 1, waits: 1, ..W }),
    run("two-waits", 2, Budget { waits: 2, ..W }),
    run("two-power-wait", 2, Budget { powers: 1, waits: 1, ..WF }),
    run("two-writes-kill", 2, Budget { writes: 2, kills: 1, ..NOTHING }),
    run("two-writes-kill-wait", 2, Budget { writes: 2, kills: 1, waits: 1, ..NOTHING }),
    run("two-writes-power", 2, Budget { writes: 2, flushes: 1, powers: 1, ..NOTHING }),
    run("three-kill", 3, Budget { kills: 1, ..W }),
    run("three-break", 3, Budget { breaks: 1, ..W }),
    run("three-wait", 3, Budget { waits: 1, ..W }),
    run("three-power", 3, Budget { powers: 1, ..WF }),
    strict(run("three-strict-kill", 3, Budget { kills: 1, ..W })),
    strict(run("three-strict-wait", 3, Budget { waits: 1, ..W })),
    early(run("three-claims", 3, Budget { unknowns: 1, deaths: 1, ..W })),
    lean(run("three-kill-power", 3, Budget { kills: 1, powers: 1, ..W })),
    lean(run("three-kill-break", 3, Budget { kills: 1, breaks: 1, ..W })),
    lean(run("three-kill-wait", 3, Budget { kills: 1, waits: 1, ..W })),
    lean(run("three-power-break", 3, Budget { powers: 1, breaks: 1, ..W })),
    lean(run("three-power-wait", 3, Budget { powers: 1, waits: 1, ..W })),
    lean(run("three-break-wait", 3, Budget { breaks: 1, waits: 1, ..W })),
    run("three-kill-unknown", 3, Budget { kills: 1, unknowns: 1, ..W }),
];

/// Bugs that this model can express, with a run that notices each.
pub(crate) const MUTANTS: &[(Bug, &str)] = &[
    (Bug::AckBeforeRemoval, "two-wait"),
    (Bug::NoRingRestamp, "two-kill"),
    (Bug::EarlyClean, "two-kill-clean"),
    (Bug::NoPromotionFlush, "two-kill"),
    (Bug::NoTargetFlush, "two-kill"),
    (Bug::ResumeUnclean, "two-kill"),
    (Bug::NoEpochFence, "two-kill"),
    (Bug::IgnoreTargetLog, "two-kill"),
    (Bug::IgnoreTargetRing, "two-wait"),
    (Bug::NoCatching, "two-kill"),
    (Bug::NoRepair, "two-kill"),
    (Bug::FlushWithoutSync, "two-kill"),
    (Bug::EarlyCommit, "two-kill"),
    (Bug::VolatilePromise, "two-kill"),
    (Bug::SinceTooHigh, "two-kill"),
    (Bug::RepairIgnoresRing, "two-writes"),
    (Bug::RepairIgnoresLog, "two-kill"),
    (Bug::ServeBeforeOpen, "two-writes"),
    (Bug::KeepVoidRepair, "two-kill"),
    (Bug::OverwriteRecord, "two-kill"),
    (Bug::AckFirst, "two-writes"),
    (Bug::ForgetPendingAdd, "two-kill"),
];

/// Where the exploration begins.
///
/// # Errors
/// If what comes before breaks something already.
pub(crate) fn start(setup: &Setup) -> Result<State, String> {
    let mut state = State::new(setup);
    state.act(Action::Start(0))?;
    if !setup.opened {
        return Ok(state);
    }
    let mut actions = Vec::new();
    loop {
        actions.clear();
        state.actions(&mut actions);
        let plain = |a: &&Action| {
            let moves = matches!(a, Action::Request(_) | Action::Reply(_) | Action::Short(_));
            moves || matches!(a, Action::Apply(_) | Action::Answer(_) | Action::Connect(..))
        };
        match actions.iter().find(plain) {
            Some(action) => state.act(*action)?,
            None if state.seats[0].phase == Phase::Active => {
                state.focus = Focus::Free;
                return Ok(state);
            }
            None => return Err("the first primary does not open".to_owned()),
        }
    }
}
