//! Which faults are injected and when: all of it follows from the seed.

use std::fmt;

use anyhow::bail;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// A kind of fault, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `kill -9` of a daemon, and a new start later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
    /// SIGTERM, and a new start at once.
    Restart,
    /// Nothing passes between two nodes.
    Partition,
    /// Nothing passes from one node to another.
    OneWay,
    /// A partition that comes and goes.
    Flap,
    /// A node reaches nobody.
    Isolate,
    /// A pool has no space left.
    Fill,
    /// The daemon that owns the record store is killed or restarted.
    Owner,
    /// A node comes back with an empty pool.
    Replace,
    /// A volume is detached and attached elsewhere.
    Move,
    /// A volume is taken from its live primary.
    Steal,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 12] = [
        Self::Kill,
        Self::Stop,
        Self::Restart,
        Self::Partition,
        Self::OneWay,
        Self::Flap,
        Self::Isolate,
        Self::Fill,
        Self::Owner,
        Self::Replace,
        Self::Move,
        Self::Steal,
    ];

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Partition => "partition",
            Self::OneWay => "one_way",
            Self::Flap => "flap",
            Self::Isolate => "isolate",
            Self::Fill => "fill",
            Self::Owner => "owner",
            Self::Replace => "replace",
            Self::Move => "move",
            Self::Steal => "steal",
        }
    }
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A node, by its index.
    Node(usize),
    /// Whichever node then serves the volume with this index.
    Serving(usize),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(index) => write!(f, "n{}", index + 1),
            Self::Serving(volume) => write!(f, "the node that serves v{}", volume + 1),
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// When, from the beginning of the faults.
    pub(crate) at_ms: u64,
    /// What.
    pub(crate) kind: Kind,
    /// Whom; a volume's faults hit that volume.
    pub(crate) target: Target,
    /// The other node of a partition, or where a volume goes, counted from the first one's next.
    pub(crate) other: usize,
    /// How long.
    pub(crate) for_ms: u64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, target, other, ms) = (self.kind.name(), self.target, self.other, self.for_ms);
        write!(f, "{:7.1} s  {name:<10}", self.at_ms as f64 / 1000.0)?;
        match self.kind {
            Kind::Partition | Kind::Flap | Kind::OneWay => {
                write!(f, "{target} and the {other}. node after it, {ms} ms")
            }
            Kind::Move | Kind::Steal => write!(f, "{target}, to the {other}. node after it"),
            _ => write!(f, "{target}, {ms} ms"),
        }
    }
}

/// The plan that follows from a seed.
///
/// # Errors
/// `only` names no kind of fault.
pub(crate) fn plan(
    seed: u64,
    length_ms: u64,
    nodes: usize,
    volumes: usize,
    only: &[String],
) -> anyhow::Result<Vec<Step>> {
    let mut kinds = Kind::ALL.to_vec();
    if !only.is_empty() {
        for name in only {
            if !Kind::ALL.iter().any(|kind| kind.name() == name) {
                let all = Kind::ALL.map(Kind::name).join(", ");
                bail!("--only {name}: no such kind of fault; there are {all}");
            }
        }
        kinds.retain(|kind| only.iter().any(|name| kind.name() == name));
    }
    // Deaths and stops are what most depends on; and they come at more different moments.
    let often = [Kind::Kill, Kind::Kill, Kind::Stop, Kind::Isolate];
    let often = often.into_iter().filter(|kind| kinds.contains(kind));
    let bag: Vec<Kind> = often.chain(kinds.iter().copied()).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut left: Vec<Kind> = Vec::new();
    let mut steps = Vec::new();
    let mut at_ms = 3_000;
    while at_ms < length_ms {
        if left.is_empty() {
            left.clone_from(&bag);
            left.shuffle(&mut rng);
        }
        let Some(kind) = left.pop() else { bail!("there is no fault to choose from") };
        steps.push(step(&mut rng, at_ms, kind, nodes, volumes));
        at_ms += match rng.random_range(0..10) {
            // Close together, so that one meets the recovery from another.
            0..4 => rng.random_range(100..1_500),
            4..8 => rng.random_range(1_500..6_000),
            _ => rng.random_range(6_000..12_000),
        };
    }
    Ok(steps)
}

fn step(rng: &mut StdRng, at_ms: u64, kind: Kind, nodes: usize, volumes: usize) -> Step {
    let volume = rng.random_range(0..volumes);
    let node = rng.random_range(0..nodes);
    let serving = rng.random_range(0..2) == 0 || matches!(kind, Kind::Move | Kind::Steal);
    let target = match (kind, serving) {
        (Kind::Owner, _) => Target::Node(nodes - 1),
        (_, true) => Target::Serving(volume),
        (_, false) => Target::Node(node),
    };
    let short = rng.random_range(300..2_500);
    let long = rng.random_range(2_500..9_000);
    let very_long = rng.random_range(9_000..20_000);
    let for_ms = match (kind, rng.random_range(0..10)) {
        (Kind::Replace, _) => long,
        (Kind::Restart | Kind::Move | Kind::Steal, _) => 0,
        (_, 0..5) => short,
        (_, 5..9) => long,
        _ => very_long,
    };
    let other = rng.random_range(1..nodes);
    Step { at_ms, kind, target, other, for_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan_with_every_kind_in_it() {
        let one = plan(7, 600_000, 5, 4, &[]).unwrap();
        assert_eq!(one, plan(7, 600_000, 5, 4, &[]).unwrap());
        assert_ne!(one, plan(8, 600_000, 5, 4, &[]).unwrap());
        for kind in Kind::ALL {
            let count = one.iter().filter(|step| step.kind == kind).count();
            assert!(count >= 5, "{} comes {count} times", kind.name());
        }
        assert!(one.windows(2).all(|w| w[0].at_ms < w[1].at_ms));
        assert!(one.iter().all(|s| s.at_ms < 600_000 && (1..5).contains(&s.other)));
        assert!(one.iter().all(|s| s.for_ms < 20_000));
    }

    #[test]
    fn a_short_run_has_most_kinds_and_only_is_obeyed() {
        let kinds = |steps: Vec<Step>| {
            let set: std::collections::BTreeSet<Kind> = steps.iter().map(|s| s.kind).collect();
            set.len()
        };
        assert!(kinds(plan(1, 90_000, 5, 4, &[]).unwrap()) >= 9);
        let only = ["kill".to_owned(), "fill".to_owned()];
        assert_eq!(kinds(plan(1, 90_000, 5, 4, &only).unwrap()), 2);
        let error = plan(1, 90_000, 5, 4, &["flood".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("flood") && error.contains("one_way"), "{error}");
    }
}
