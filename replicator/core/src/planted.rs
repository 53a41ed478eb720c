//! Planted bugs: each breaks one rule on purpose, so that the simulator can be seen to find it.
//! Without the feature `planted-bugs` every question is answered with a constant `false`.

/// A rule of `docs/protocol.md` to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Bug {
    /// m1: acknowledge without a member before its removal is in force.
    AckBeforeRemoval,
    /// m2: no restamping of ring entries when the generation rises (R4).
    NoRingRestamp,
    /// m3: clear activity-log bits of regions with uncommitted writes.
    EarlyClean,
    /// m4: open without flushing what was repaired (P6).
    NoPromotionFlush,
    /// m5: admit a resync target without flushing it (S5).
    NoTargetFlush,
    /// m6: let an unclean member resume as if nothing was lost.
    ResumeUnclean,
    /// m7: apply messages of old epochs (R1).
    NoEpochFence,
    /// m8: take a promotion source from outside the in-sync set (P3).
    SourceFromOutside,
    /// m11: do not hold the range lock during a resync window (S4).
    ResyncWithoutLock,
    /// m12: forget the target's own activity log when computing what it misses.
    IgnoreTargetLog,
    /// m14: forget the target's own ring when computing what it misses.
    IgnoreTargetRing,
    /// m16: do not require a catching target for acknowledgements (S6).
    NoCatching,
    /// m17: do not copy what rings and logs name during promotion (P5).
    NoRepair,
    /// m18: go on with a resync over a new session (S2).
    ResumeResync,
    /// m21: issue the data write before the activity-log bit is durable.
    DataBeforeLog,
    /// m23: a replica does not drain old sessions before it promises (R2, R3).
    NoDrain,
    /// Acknowledge a flush that a replica answered without flushing.
    FlushWithoutSync,
    /// Commit entries that not every target has (R5).
    EarlyCommit,
    /// Let overlapping operations run at the same time.
    NoRangeLock,
    /// Forget a promise at restart: answer before it is durable (R2).
    VolatilePromise,
    /// Let a healthy member go before what it has is durable on the others.
    ReleaseUnflushed,
    /// Serve reads without the lease (G1).
    NoReadLease,
    /// Open while an older primary may hold a lease (P7).
    NoLeaseWait,
}

impl Bug {
    /// All of them, with the names used on the command line.
    pub const ALL: [(Self, &'static str); 23] = [
        (Self::AckBeforeRemoval, "ack-before-removal"),
        (Self::NoRingRestamp, "no-ring-restamp"),
        (Self::EarlyClean, "early-clean"),
        (Self::NoPromotionFlush, "no-promotion-flush"),
        (Self::NoTargetFlush, "no-target-flush"),
        (Self::ResumeUnclean, "resume-unclean"),
        (Self::NoEpochFence, "no-epoch-fence"),
        (Self::SourceFromOutside, "source-from-outside"),
        (Self::ResyncWithoutLock, "resync-without-lock"),
        (Self::IgnoreTargetLog, "ignore-target-log"),
        (Self::IgnoreTargetRing, "ignore-target-ring"),
        (Self::NoCatching, "no-catching"),
        (Self::NoRepair, "no-repair"),
        (Self::ResumeResync, "resume-resync"),
        (Self::DataBeforeLog, "data-before-log"),
        (Self::NoDrain, "no-drain"),
        (Self::FlushWithoutSync, "flush-without-sync"),
        (Self::EarlyCommit, "early-commit"),
        (Self::NoRangeLock, "no-range-lock"),
        (Self::VolatilePromise, "volatile-promise"),
        (Self::ReleaseUnflushed, "release-unflushed"),
        (Self::NoReadLease, "no-read-lease"),
        (Self::NoLeaseWait, "no-lease-wait"),
    ];
}

/// Which bug is planted, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Planted {
    #[cfg(feature = "planted-bugs")]
    bug: Option<Bug>,
}

impl Planted {
    /// No bug.
    pub const NONE: Self = Self {
        #[cfg(feature = "planted-bugs")]
        bug: None,
    };

    /// Plants `bug`.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub const fn with(bug: Bug) -> Self {
        Self { bug: Some(bug) }
    }

    /// Is `bug` planted?
    #[must_use]
    #[inline]
    pub fn has(self, bug: Bug) -> bool {
        #[cfg(feature = "planted-bugs")]
        {
            self.bug == Some(bug)
        }
        #[cfg(not(feature = "planted-bugs"))]
        {
            let _ = bug;
            false
        }
    }
}
