//! Kinds of faults, each counted when it really happens, and the mixture a seed draws of them.

use std::collections::BTreeSet;

use crate::rng::Rng;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $typical:literal;)*) => {
        /// What can go wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            /// All of them, with their names and the typical milliseconds between two (planned
            /// faults) or typical number in a thousand operations (others).
            pub const ALL: &'static [(Self, &'static str, u64)] =
                &[$((Self::$name, $text, $typical),)*];
        }
    };
}

faults! {
    /// A connection breaks; both ends learn it at different times.
    ConnectionReset = "connection-reset", 3000;
    /// A connection's frames are stuck while its sender goes on with a new one: they come late.
    LateFrames = "late-frames", 3000;
    /// Nothing passes between two nodes, for a while.
    Partition = "partition", 8000;
    /// Nothing passes in one direction, for a while.
    OneWayPartition = "one-way-partition", 8000;
    /// A node reaches nobody, nor the record store.
    Isolation = "isolation", 12000;
    /// The process is killed; what it wrote stays.
    ProcessKill = "process-kill", 6000;
    /// The node loses power; any part of what was not flushed is gone.
    PowerLoss = "power-loss", 9000;
    /// All nodes lose power at once.
    ClusterPowerLoss = "cluster-power-loss", 25000;
    /// The process stands still for a while.
    Pause = "pause", 7000;
    /// The primary is dropped and a new one started on the same node.
    PrimaryRestart = "primary-restart", 8000;
    /// A primary starts on another node while one is alive.
    Takeover = "takeover", 7000;
    /// The volume is closed in good order and attached again.
    CleanDetach = "clean-detach", 9000;
    /// Guests are quiet long enough for the activity log to be cleaned.
    Idle = "idle", 40000;
    /// The record store can't be reached, for a while.
    MetaDown = "meta-down", 9000;
    /// The record store answers slowly, for a while.
    MetaSlow = "meta-slow", 9000;
    /// A controller changes the record's revision and transaction, and nothing else.
    ControllerTouch = "controller-touch", 4000;
    /// A controller adds an empty copy.
    ControllerAdd = "controller-add", 9000;
    /// A controller forgets a copy that is out.
    ControllerForget = "controller-forget", 12000;
    /// A controller has a healthy member leave.
    ControllerRemoveMember = "controller-remove-member", 12000;
    /// A controller wants other numbers of copies.
    ControllerSetRepl = "controller-set-repl", 12000;
    /// A node is being emptied from now on, or not any more.
    NodeEvacuate = "node-evacuate", 9000;
    /// A node that is down is removed from the cluster until it starts again.
    NodeRemove = "node-remove", 2500;
    /// A disk is many times slower, for a while.
    SlowDisk = "slow-disk", 9000;
    /// A disk answers nothing, for a while.
    HungDisk = "hung-disk", 12000;
    /// A copy's disk fails one write or flush; the copy is opened again later.
    DiskError = "disk-error", 12000;
    /// A bit of a frame flips on the way.
    GarbledFrame = "garbled-frame", 6000;
    /// A peer sends a frame whose checksums are right, and whose form is not.
    MalformedFrame = "malformed-frame", 6000;
    /// A node is set up wrongly for a while, and whom it dials refuses it.
    WrongPeer = "wrong-peer", 9000;
    /// Something that is no daemon of ours connects, and speaks out of turn.
    BabblingPeer = "babbling-peer", 6000;
    /// One end of a connection refuses to go on with it.
    RefusedConnection = "refused-connection", 6000;
    /// A node's clock runs up to a fifth too fast or too slow from now on.
    ClockRate = "clock-rate", 6000;
    /// A node's clock jumps forward.
    ClockJump = "clock-jump", 9000;
    /// A connection between two nodes comes and goes.
    FlappingPartition = "flapping-partition", 9000;
    /// A copy's files are gone; it is replaced.
    WipedReplica = "wiped-replica", 3000;
    /// A copy's files are put back to an older image; it is found out and replaced.
    RolledBackReplica = "rolled-back-replica", 60;
    /// Somebody else changes the record before every put, for a while.
    MetaStorm = "meta-conflict-storm", 9000;
    /// A guest's connection to its device breaks, and it connects anew.
    DoorReconnect = "door-reconnect", 6000;
    /// A daemon of another version is started: the wire format of before is spoken with it.
    OldWire = "old-wire", 9000;
    /// A driver does something late.
    Bugify = "bugify", 5;
    /// Somebody else changes the record just before a put arrives.
    MetaConflict = "meta-conflict", 150;
    /// A put is applied but its answer is lost.
    MetaUnknownApplied = "meta-unknown-applied", 150;
    /// A put is lost and its answer too.
    MetaUnknownLost = "meta-unknown-lost", 100;
    /// A put is applied long after it was given up.
    MetaUnknownLate = "meta-unknown-late", 100;
    /// A power cut leaves a block of the data half written. The number is how many in a thousand.
    TornBlock = "torn-block", 300;
    /// The record store answers with something that this build can't take for a record.
    MetaForeign = "meta-foreign", 60;
    /// A bit flips in a superblock, a log record or the regions' file, or a write to them is lost.
    BookRot = "metadata-rot", 2500;
    /// The books of a copy are bad beyond repair when it is to be opened; it is replaced.
    RuinedReplica = "ruined-replica", 2500;
    /// The record store is put back to an older state, which the copies prove.
    MetaPutBack = "meta-put-back", 25;
    /// All members lose their files; an older copy is there.
    MembersLost = "members-lost", 10;
    /// A bit of a block flips at rest.
    BitRot = "bit-rot", 2500;
    /// A disk says that it has written a block, and has not.
    LostWrite = "lost-write", 4000;
    /// A disk writes a block to another place.
    MisdirectedWrite = "misdirected-write", 5000;
    /// A block, or a table of tags, can't be read until it is written again.
    ReadError = "read-error", 4000;
    /// A flush fails, and what it should have made durable is partly gone.
    FlushError = "flush-error", 12000;
    /// A disk has no space left, for a while.
    DiskFull = "disk-full", 15000;
    /// No disk has any space left, for a while.
    DiskFullEverywhere = "disk-full-everywhere", 40000;
    /// Nothing on a disk works, for a while.
    PoolGone = "pool-gone", 20000;
    /// A disk is many times slower, for long.
    VerySlowDisk = "very-slow-disk", 40000;
    /// Somebody wants the volume to be larger. Worlds have this by their plan.
    ControllerResize = "controller-resize", 0;
    /// Somebody wants a snapshot. Worlds have this by their plan.
    ControllerSnapshot = "controller-snapshot", 0;
}

impl Fault {
    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(f, _, _)| *f == self).map_or("", |(_, name, _)| name)
    }

    /// Does it happen at a time of its own, not to an operation?
    #[must_use]
    pub fn is_planned(self) -> bool {
        !matches!(
            self,
            Self::MetaConflict
                | Self::MetaUnknownApplied
                | Self::MetaUnknownLost
                | Self::MetaUnknownLate
                | Self::MetaForeign
                | Self::Bugify
                | Self::TornBlock
        )
    }
}

/// The faults of one seed, with their rates.
#[derive(Clone, Debug)]
pub struct Swarm {
    rates: Vec<(Fault, u64)>,
}

impl Swarm {
    /// A random subset at random rates.
    pub fn draw(rng: &mut Rng) -> Self {
        let share = rng.pick(&[0, 150, 300, 500, 800]).unwrap_or(0);
        let rate = |rng: &mut Rng, typical: u64| typical * rng.between(30, 250) / 100;
        let mut rates = Vec::new();
        for (fault, _, typical) in Fault::ALL.iter().filter(|(_, _, typical)| *typical > 0) {
            let rate = rate(rng, *typical);
            if rng.chance(share) {
                rates.push((*fault, rate));
            }
        }
        Self { rates }
    }

    /// These faults, mostly, at random rates around the given ones.
    pub fn of(faults: &[(Fault, u64)], rng: &mut Rng) -> Self {
        let mut rates = Vec::new();
        for (fault, typical) in faults {
            let rate = typical * rng.between(30, 250) / 100;
            if rng.chance(750) {
                rates.push((*fault, rate));
            }
        }
        Self { rates }
    }

    /// Adds one.
    pub fn add(&mut self, fault: Fault, rate: u64) {
        self.rates.push((fault, rate));
    }

    /// Takes some out.
    pub fn leave_out(&mut self, without: &BTreeSet<Fault>) {
        self.rates.retain(|(fault, _)| !without.contains(fault));
    }

    /// No faults.
    #[must_use]
    pub fn none() -> Self {
        Self { rates: Vec::new() }
    }

    /// The faults with their rates.
    #[must_use]
    pub fn rates(&self) -> &[(Fault, u64)] {
        &self.rates
    }

    /// Its rate; 0 if it is not among them.
    #[must_use]
    pub fn rate(&self, fault: Fault) -> u64 {
        self.rates.iter().find(|(f, _)| *f == fault).map_or(0, |(_, rate)| *rate)
    }
}
