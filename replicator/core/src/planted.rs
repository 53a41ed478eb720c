//! Planted bugs: each breaks one rule on purpose, so that the simulator can be seen to find it.
//! Without the feature `planted-bugs` every question is answered with a constant `false`.

macro_rules! bugs {
    ($($name:ident = $text:literal, $rule:literal: $breach:literal;)*) => {
        /// A rule of `docs/protocol.md` to break.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Bug { $(#[doc = $breach] $name,)* }

        impl Bug {
            /// All of them, with the names used on the command line.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $text),)*];

            /// The rule of `docs/protocol.md` that is broken, and how.
            #[must_use]
            pub const fn breach(self) -> (&'static str, &'static str) {
                match self { $(Self::$name => ($rule, $breach),)* }
            }
        }
    };
}

bugs! {
    AckBeforeRemoval = "ack-before-removal", "m1":
        "acknowledge without a member before its removal is in force";
    NoRingRestamp = "no-ring-restamp", "m2":
        "no restamping of ring entries when the generation rises (R4)";
    EarlyClean = "early-clean", "m3": "clear activity-log bits of regions with uncommitted writes";
    NoPromotionFlush = "no-promotion-flush", "m4": "open without flushing what was repaired (P6)";
    NoTargetFlush = "no-target-flush", "m5": "admit a resync target without flushing it (S5)";
    ResumeUnclean = "resume-unclean", "m6": "let an unclean member resume as if nothing was lost";
    SecondReconnect = "second-reconnect", "m6":
        "take the second reconnect of a restarted member for a resumption";
    NoEpochFence = "no-epoch-fence", "m7": "apply messages of old epochs (R1)";
    SourceFromOutside = "source-from-outside", "m8":
        "take a promotion source from outside the in-sync set (P3)";
    SinceTooHigh = "since-too-high", "m9": "record `since` one too high when a member goes out";
    ForgetPendingAdd = "forget-pending-add", "m10":
        "do not require a new member while its admission is undecided";
    ResyncWithoutLock = "resync-without-lock", "m11":
        "do not hold the range lock during a resync window (S4)";
    IgnoreTargetLog = "ignore-target-log", "m12":
        "forget the target's own activity log when computing what it misses";
    NoUnresolvedRestamp = "no-unresolved-restamp", "m13": "do not restamp unresolved regions (R4)";
    IgnoreTargetRing = "ignore-target-ring", "m14":
        "forget the target's own ring when computing what it misses";
    NoCatching = "no-catching", "m16":
        "do not require a catching target for acknowledgements (S6)";
    NoRepair = "no-repair", "m17": "do not copy what rings and logs name during promotion (P5)";
    RepairIgnoresRing = "repair-ignores-ring", "m17":
        "leave the rings out of what a promotion repairs (P5)";
    RepairIgnoresLog = "repair-ignores-log", "m17":
        "leave unresolved regions out of what a promotion repairs (P5)";
    ResumeResync = "resume-resync", "m18": "go on with a resync over a new session (S2)";
    IgnoreSourceLog = "ignore-source-log", "m19":
        "leave the source's unresolved regions out of what a target misses";
    KeepVoidRepair = "keep-void-repair", "m20":
        "keep what a member was given before its session broke (P4)";
    DataBeforeLog = "data-before-log", "m21":
        "issue the data write before the activity-log bit is durable";
    RaiseSince = "raise-since", "m22": "raise `since` while the replica stays out";
    NoDrain = "no-drain", "m23":
        "a replica does not drain old sessions before it promises (R2, R3)";
    PartialSpare = "partial-spare", "m24":
        "open with a target that got only part of what it missed (P7)";
    ResumeUnproven = "resume-unproven", "R7":
        "resume a restarted member without reading the record first";
    LossyUntilTold = "lossy-until-told", "S5":
        "take a target for lossy until it is told that it is a member";
    SkipEqualStamps = "skip-equal-stamps", "m31": "skip blocks whose stamps are equal (S4)";
    SkipOlderStamps = "skip-older-stamps", "m32":
        "skip blocks that the target has with no lower stamp (S4)";
    NoStampAdoption = "no-stamp-adoption", "m33":
        "skip equal blocks without adopting the stamp (S4)";
    EarlyTargetClean = "early-target-clean", "m35":
        "settle the target's activity log before it is a member (S7)";
    AckFirst = "ack-first", "G1": "acknowledge when the first member has answered";
    FlushWithoutSync = "flush-without-sync", "G2":
        "acknowledge a flush that a replica answered without flushing";
    VolatileFua = "volatile-fua", "G2": "answer a write with FUA that is not durable";
    JoinRunningFlush = "join-running-flush", "G2":
        "let a flush join one that was started before it arrived";
    LossySource = "lossy-source", "G3":
        "prefer a source that restarted to one that lost nothing (P4)";
    LiveLossy = "live-lossy", "G4": "go on with a device in use when all members lost power (P3)";
    EarlyCommit = "early-commit", "R5": "commit operations that not every target has";
    OutsiderCommit = "outsider-commit", "R5":
        "let a replica that is no member drop ring entries of earlier sessions";
    AnySession = "any-session", "R3": "apply messages of an old session of the same epoch";
    VolatilePromise = "volatile-promise", "R2":
        "forget a promise at restart: answer before it is durable";
    IgnoreFlushError = "ignore-flush-error", "R6":
        "take a flush that failed for one that was done";
    StalePromise = "stale-promise", "S2":
        "begin a promotion anew with the promises of the last attempt";
    DirtyResync = "dirty-resync", "S2":
        "begin a resync in a session in which the target was written";
    NoForward = "no-forward", "S3": "send the target no writes before it is catching";
    NoResyncReplay = "no-resync-replay", "S3":
        "do not send the target what is in flight when its resync begins";
    EarlyTargetFlush = "early-target-flush", "S5":
        "flush the target before it has answered what was forwarded";
    CleanWithoutFlush = "clean-without-flush", "m3":
        "clear the activity log before the data is durable";
    ClearBeforeTags = "clear-before-tags", "m3":
        "clear the activity log before the tags are durable";
    RemoveBelowMin = "remove-below-min", "T5": "remove a member although too few remain";
    ShunOneOfTwo = "shun-one-of-two", "T5":
        "remove a slow member although it is one of the last two";
    UnflushedSwap = "unflushed-swap", "T7": "swap a target in that was not flushed";
    CloseUnclean = "close-unclean", "T8": "close without emptying the activity logs";
    OverwriteRecord = "overwrite-record", "T5":
        "put a change over a record that somebody else changed";
    ForgetLateCas = "forget-late-cas", "S7":
        "take a change with an unknown outcome for one that was not made";
    ServePutBack = "serve-put-back", "T3":
        "go on by a record that is marked as put back";
    KeepProposal = "keep-proposal", "T5":
        "put a change again although its reason is gone";
    ServeBeforeOpen = "serve-before-open", "P7": "serve before the opening is in force";
    NoRangeLock = "no-range-lock", "G1": "let overlapping operations run at the same time";
    UnlockedReads = "unlocked-reads", "G1": "let reads overlap writes";
    EarlyUnlock = "early-unlock", "G1": "release the range lock before every target has answered";
    FirstPiece = "first-piece", "G1": "acknowledge a write in pieces with the first of them";
    LongDiscard = "long-discard", "G1": "discard one block more than was asked";
    ReleaseUnflushed = "release-unflushed", "T5":
        "let a healthy member go before what it has is durable on the others";
    NoReadLease = "no-read-lease", "G1": "serve reads without the lease";
    LateReadInClaim = "late-read-in-claim", "G4":
        "ask for what is late while the primary claims anew";
    CountStandstill = "count-standstill", "T5":
        "take the time in which the primary's process stood still for silence of its members";
    StretchLease = "stretch-lease", "G1":
        "do not count the time in which the primary's process stood still against its lease";
    NoLeaseWait = "no-lease-wait", "P7": "open while an older primary may hold a lease";
    MendWithoutLock = "mend-without-lock", "S4": "rewrite a bad block without its range lock";
    LatePull = "late-pull", "S8":
        "apply what was pulled after the session that asked for it has ended";
    PullAnyEpoch = "pull-any-epoch", "S8":
        "give content to a pull whatever was promised, and without a session";
    NoChecksumCheck = "no-checksum-check", "G7": "give out what does not match its checksum";
    SkippingScrub = "skipping-scrub", "G7":
        "let a scrub pass over what it could not look at";
    HastyGap = "hasty-gap", "S9":
        "take a block for lost although a member may have it";
    RetryFailedFlush = "retry-failed-flush", "R6":
        "flush again after a failed flush, and believe it";
    RotAsTornTail = "rot-as-torn-tail", "G2":
        "take a damaged log record for one that was not written";
    NoTornHeal = "no-torn-heal", "P5":
        "copy a block that may be torn over one that is whole, when all lost power";
    HealedAsWhole = "healed-as-whole", "P5":
        "take a block that a member which lost power gave the source for one that can't be torn";
    ExpandUnextended = "expand-unextended", "T10":
        "change the size before every member is extended";
    VolatileExtend = "volatile-extend", "T10": "answer an extension before it is durable";
    AdmitShort = "admit-short", "T10": "admit a target that was not extended";
    SnapshotUnheld = "snapshot-unheld", "D1": "let the guest write while a snapshot is taken";
    SnapshotOfSome = "snapshot-of-some", "D1":
        "take a snapshot for made when the first member has it";
    SnapshotUnsealed = "snapshot-unsealed", "D1":
        "take a snapshot for made before it is durable";
    StaleAhead = "stale-ahead", "D3":
        "forget what was written since it was copied ahead";
    SnapshotStaleTags = "snapshot-stale-tags", "D2":
        "forget tags that the disk lacks when a snapshot is kept";
    NoImageCheck = "no-image-check", "R7":
        "take a replica for what it says although it was put back to an older image";
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
