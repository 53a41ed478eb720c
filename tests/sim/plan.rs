//! What a seed makes of its world: how large it is, how far apart, what goes wrong in it, and how
//! its guests behave. Most worlds are drawn at random; some are **directed**: they make a course
//! of events likely that random faults hardly ever produce.

use lockstep_core::planted::Planted;
use lockstep_store::Tuning;
use std::collections::BTreeSet;

use crate::cluster::Keeping;
use crate::fault::{Fault, Swarm};
use crate::guest::Habits;
use crate::rng::Rng;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Decides everything that is not decided below.
    pub seed: u64,
    /// A rule to break.
    pub planted: Planted,
    /// The kind of world; the seed's own choice if not given.
    pub profile: Option<Profile>,
    /// Faults to leave out.
    pub without: BTreeSet<Fault>,
    /// When the faults end at the latest, virtual milliseconds.
    pub chaos_ms: Option<u64>,
    /// Most requests of the guest under way; the seed's own choice if not given.
    pub depth: Option<usize>,
}

impl Options {
    /// The seed with a bug planted, and nothing else.
    #[must_use]
    pub fn new(seed: u64, planted: Planted) -> Self {
        Self { seed, planted, ..Self::default() }
    }
}

macro_rules! profiles {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A kind of world.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Profile { $($(#[$doc])* $name,)* }

        impl Profile {
            /// All of them, with the names used on the command line.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $text),)*];
        }
    };
}

profiles! {
    /// Everything at random.
    Any = "any";
    /// Primaries change often, mostly to nodes without a copy, and lose sessions while they repair.
    Promotion = "promotion";
    /// Copies leave and come back all the time, and fail while they do.
    Return = "return";
    /// As few members as the volume may have, and spares: who fails is replaced in one step.
    Swap = "swap";
    /// The record store says nothing, and does late what it was asked.
    LateChange = "late-change";
    /// The record store is away while members restart and connect anew.
    Away = "away";
    /// The primary is cut off, and another one takes over at once; guests read a lot.
    CutOff = "cut-off";
    /// Power is lost again and again, soon after flushes.
    PowerCuts = "power-cuts";
    /// Controllers look after the copies while nodes come, go and are emptied.
    Cluster = "cluster";
    /// All members lose their files, and the record store what it knew.
    Disaster = "disaster";
    /// The volume is made larger again and again, and snapshots are taken of it.
    Tasks = "tasks";
}

/// Faults in worlds of disasters.
const DISASTER: &[(Fault, u64)] = &[
    (Fault::MembersLost, 40),
    (Fault::MetaPutBack, 300),
    (Fault::Takeover, 900),
    (Fault::ProcessKill, 2000),
    (Fault::PowerLoss, 8000),
    (Fault::BitRot, 2500),
];

/// Faults in worlds of tasks.
const TASKS: &[(Fault, u64)] = &[
    (Fault::ProcessKill, 4000),
    (Fault::PowerLoss, 6000),
    (Fault::ConnectionReset, 1500),
    (Fault::Takeover, 5000),
    (Fault::PrimaryRestart, 5000),
    (Fault::MetaUnknownLate, 150),
    (Fault::MetaUnknownApplied, 150),
    (Fault::Pause, 5000),
    (Fault::DiskFull, 15_000),
];

/// Faults in worlds of controllers.
const CLUSTER: &[(Fault, u64)] = &[
    (Fault::ProcessKill, 3000),
    (Fault::PowerLoss, 8000),
    (Fault::Partition, 5000),
    (Fault::WipedReplica, 2000),
    (Fault::NodeEvacuate, 5000),
    (Fault::NodeRemove, 1500),
    (Fault::ControllerSetRepl, 6000),
    (Fault::MetaUnknownLate, 100),
];

impl Profile {
    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(p, _)| *p == self).map_or("", |(_, name)| name)
    }

    fn draw(rng: &mut Rng) -> Self {
        if rng.chance(810) {
            return Self::Any;
        }
        // A disaster needs a quiet moment, which other worlds seldom have.
        let disasters = [Self::Disaster; 4];
        // Any world may have tasks, see `Plan::draw`.
        let tasks = |p: &Self| *p == Self::Tasks;
        let directed = Self::ALL.iter().map(|(p, _)| *p).skip(1).filter(|p| !tasks(p));
        let directed: Vec<Self> = directed.chain(disasters).collect();
        rng.pick(&directed).unwrap_or(Self::Any)
    }

    /// The faults of a directed world, with the typical milliseconds between two or the number in
    /// a thousand operations.
    fn faults(self) -> &'static [(Fault, u64)] {
        match self {
            Self::Any => &[],
            Self::Promotion => &[
                (Fault::Takeover, 1500),
                (Fault::PrimaryRestart, 4000),
                (Fault::ConnectionReset, 2000),
                (Fault::ProcessKill, 6000),
                (Fault::Partition, 3000),
                (Fault::Pause, 3000),
                (Fault::DiskError, 12_000),
            ],
            Self::Return => &[
                (Fault::ConnectionReset, 800),
                (Fault::Pause, 3000),
                (Fault::ProcessKill, 3000),
                (Fault::Partition, 4000),
                (Fault::Takeover, 5000),
                (Fault::PrimaryRestart, 5000),
            ],
            Self::Swap => &[
                (Fault::ProcessKill, 2500),
                (Fault::PowerLoss, 6000),
                (Fault::Pause, 4000),
                (Fault::Partition, 4000),
                (Fault::ControllerAdd, 1500),
            ],
            Self::LateChange => &[
                (Fault::MetaUnknownLate, 250),
                (Fault::MetaUnknownApplied, 150),
                (Fault::MetaUnknownLost, 150),
                (Fault::ConnectionReset, 900),
                (Fault::Pause, 2500),
                (Fault::ProcessKill, 4000),
                (Fault::Takeover, 6000),
            ],
            Self::Away => &[
                (Fault::MetaDown, 2500),
                (Fault::MetaSlow, 5000),
                (Fault::ProcessKill, 1500),
                (Fault::ConnectionReset, 500),
                (Fault::PowerLoss, 5000),
                (Fault::Takeover, 5000),
            ],
            Self::CutOff => &[
                (Fault::Takeover, 3500),
                (Fault::Takeover, 5000),
                (Fault::ClockRate, 3000),
                (Fault::Partition, 6000),
            ],
            Self::PowerCuts => &[
                (Fault::PowerLoss, 2500),
                (Fault::ClusterPowerLoss, 5000),
                (Fault::TornBlock, 300),
                (Fault::Takeover, 4000),
                (Fault::PrimaryRestart, 5000),
                (Fault::ConnectionReset, 3000),
            ],
            Self::Tasks => TASKS,
            Self::Disaster => DISASTER,
            Self::Cluster => CLUSTER,
        }
    }
}

/// What a world is made with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its kind.
    pub profile: Profile,
    /// What goes wrong, and how often.
    pub swarm: Swarm,
    /// How the guests behave.
    pub habits: Habits,
    /// Number of nodes.
    pub nodes: usize,
    /// Copies at the beginning.
    pub repl: usize,
    /// Fewest members.
    pub min_in_sync: u8,
    /// Typical delay of a message, microseconds.
    pub distance: u64,
    /// How many times farther each node is from each other one, by direction.
    pub detours: Vec<Vec<u64>>,
    /// How many times slower than usual all disks are.
    pub disk_factor: u64,
    /// Delicate moments among a thousand at which a fault strikes.
    pub ambushes: u64,
    /// Does it strike those who are concerned?
    pub aims: bool,
    /// Primaries among a thousand that start on a node without a copy, if there is one.
    pub away: u64,
    /// Takeovers among a thousand for which the primary before is cut off first.
    pub cuts_off: u64,
    /// How long faults happen, milliseconds.
    pub chaos_ms: u64,
    /// How long nobody may serve before another primary is started, milliseconds.
    pub patience_ms: u64,
    /// How stores clean.
    pub tuning: Tuning,
    /// How controllers look after the copies, if they do.
    pub keeping: Option<Keeping>,
}

impl Plan {
    /// What `options` say, and the rest at random.
    #[must_use]
    pub fn draw(options: &Options, rng: &mut Rng) -> Self {
        let drawn = Profile::draw(rng);
        let mut plan = Self::any(options.profile.unwrap_or(drawn), rng);
        if plan.profile != Profile::Any {
            plan.direct(rng);
        }
        plan.add_tasks(options);
        plan.swarm.leave_out(&options.without);
        plan.chaos_ms = plan.chaos_ms.min(options.chaos_ms.unwrap_or(u64::MAX)).max(1);
        plan.habits.depth = options.depth.unwrap_or(plan.habits.depth).max(1);
        plan
    }

    fn any(profile: Profile, rng: &mut Rng) -> Self {
        let mut keeping = rng.chance(300).then(|| Keeping::draw(rng));
        let (few, most) = if keeping.is_some() { (4, 6) } else { (3, 5) };
        let mut nodes = usize::try_from(rng.between(few, most)).unwrap_or(3);
        if let Some(keeping) = keeping.as_mut().filter(|_| rng.chance(60)) {
            nodes = keeping.enlarge(rng);
        }
        let repl = rng.pick(&[1, 2, 2, 2, 3, 3, 3, 3, 4, 5]).unwrap_or(3).min(nodes);
        let usual = if repl <= 2 { 1 } else { 2 };
        let min = if rng.chance(600) { usual } else { rng.between(1, repl as u64) };
        let chaos_ms = rng.between(8, 50) * 1000;
        Self {
            profile,
            swarm: Swarm::draw(rng),
            habits: Habits::draw(rng),
            nodes,
            repl,
            min_in_sync: u8::try_from(min).unwrap_or(1),
            distance: rng.pick(&[30, 300, 3000, 20_000]).unwrap_or(300),
            detours: detours(nodes, rng),
            disk_factor: rng.pick(&[1, 1, 10, 100]).unwrap_or(1),
            ambushes: rng.pick(&[0, 0, 10, 50, 200]).unwrap_or(0),
            aims: rng.chance(500),
            away: rng.pick(&[0, 0, 300]).unwrap_or(0),
            cuts_off: rng.pick(&[0, 0, 300]).unwrap_or(0),
            chaos_ms: if rng.chance(100) { chaos_ms * 3 } else { chaos_ms },
            patience_ms: rng.between(4, 15) * 1000,
            tuning: tuning(rng),
            keeping,
        }
    }

    /// Some worlds have tasks. They are drawn apart, so that all others stay as they were.
    fn add_tasks(&mut self, options: &Options) {
        let mut rng = Rng::new(options.seed ^ 0x7461_736b_7321);
        let directed = self.profile == Profile::Tasks;
        if !directed && !rng.chance(80) {
            return;
        }
        let pace = if directed { 300 } else { 1500 };
        self.swarm.add(Fault::ControllerSnapshot, pace * rng.between(30, 250) / 100);
        // What a record store that was put back says of the size is not what it was.
        let without = [Fault::MetaPutBack, Fault::MembersLost];
        if without.iter().all(|fault| self.swarm.rate(*fault) == 0) {
            self.swarm.add(Fault::ControllerResize, 3 * pace * rng.between(30, 250) / 100);
            self.habits.most_blocks = self.habits.blocks + 3 * 256;
        }
        // Nodes that know of neither are rare, and then in the way of most tasks.
        if directed && rng.chance(200) {
            self.swarm.add(Fault::OldWire, 9000 * rng.between(30, 250) / 100);
        }
    }

    /// Makes the world what its profile says.
    fn direct(&mut self, rng: &mut Rng) {
        self.swarm = Swarm::of(self.profile.faults(), rng);
        self.nodes = usize::try_from(rng.between(4, 5)).unwrap_or(4);
        let keeps = self.profile == Profile::Cluster;
        self.keeping = keeps.then(|| Keeping::draw(rng));
        self.detours = detours(self.nodes, rng);
        self.repl = rng.pick(&[2, 3, 3, 3]).unwrap_or(3);
        self.min_in_sync = if rng.chance(700) { 1 } else { 2 };
        self.chaos_ms = rng.between(8, 20) * 1000;
        self.patience_ms = rng.between(2, 6) * 1000;
        (self.aims, self.ambushes) = (true, rng.pick(&[50, 200, 500]).unwrap_or(200));
        self.habits.few(rng);
        match self.profile {
            Profile::Any | Profile::Tasks => {}
            Profile::Promotion => self.away = 800,
            Profile::Return => self.habits.repeats = rng.pick(&[0, 300, 700]).unwrap_or(0),
            Profile::Swap => {
                self.repl = rng.pick(&[2, 2, 3]).unwrap_or(2);
                self.min_in_sync = u8::try_from(self.repl).unwrap_or(2);
            }
            Profile::LateChange | Profile::Away => self.ambushes = 50,
            Profile::CutOff => {
                (self.cuts_off, self.ambushes, self.min_in_sync) = (900, 0, 1);
                self.habits.mix = [60, 38, 0, 2];
                self.habits.budget = 6000;
                self.habits.depth = self.habits.depth.min(4);
            }
            Profile::PowerCuts => self.habits.mix = [10, 50, 10, 30],
            Profile::Disaster => (self.min_in_sync, self.chaos_ms) = (1, self.chaos_ms * 3),
            Profile::Cluster => {
                (self.nodes, self.ambushes) = (6, 20);
                self.detours = detours(self.nodes, rng);
                self.chaos_ms *= 3;
            }
        }
    }
}

/// Some worlds have nodes that are near in one direction and far in another.
fn detours(nodes: usize, rng: &mut Rng) -> Vec<Vec<u64>> {
    let uneven = rng.chance(500);
    let mut detour = |_| if uneven { rng.pick(&[1, 1, 3, 8]).unwrap_or(1) } else { 1 };
    (0..nodes).map(|_| (0..nodes).map(&mut detour).collect()).collect()
}

/// Stores that clean early and often, or as in the daemon.
fn tuning(rng: &mut Rng) -> Tuning {
    let usual = Tuning { digest: crate::content::digest, ..Tuning::default() };
    if rng.chance(400) {
        return usual;
    }
    let active_max = rng.pick(&[2, 3, 6, 1000]).unwrap_or(6);
    Tuning {
        active_max,
        clean_above: active_max / 2,
        idle_ms: rng.pick(&[5, 50, 500, 5000]).unwrap_or(500),
        clean_batch: rng.pick(&[1, 2, 256]).unwrap_or(2),
        ahead: rng.pick(&[0, 1, 16]).unwrap_or(0),
        cached_tables: rng.pick(&[0, 1, 1000]).unwrap_or(1000),
        ..usual
    }
}
