//! Snapshots: copies of content and tags that share their blocks with the files they were taken
//! of. A copy has no activity log, so all tags must be right in it.
//!
//! Whoever asks for one holds back all writes until the content is kept, so nothing else is done
//! before that is answered. What tags the disk lacks at that moment is remembered, and written into
//! the copy of the tags, which is made next; until then the cleaner writes none. So preparing a
//! snapshot writes nothing that is not the copy's: it only sees to it that all those tags are in
//! memory, and copies content ahead.

use alloc::collections::VecDeque;
use lockstep_core::id::{SnapshotId, Token};
use lockstep_core::planted::Bug;
use lockstep_core::store::StoreError;

use crate::op::{DiskError, DiskOpKind};
use crate::store::{Purpose, Store};
use crate::unwritten::Unwritten;

/// How often it is tried to have all tags in memory before guests wait: what they write in that
/// moment is not read.
const TRIES: u32 = 8;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Prepare,
    Take(SnapshotId),
    /// The rest of a snapshot whose content, so many blocks, is kept; nobody asks for it.
    Finish(SnapshotId, u64),
    Seal(SnapshotId),
    Drop(SnapshotId),
}

/// How far the first of them is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing was done for it.
    #[default]
    New,
    /// The driver is at it.
    Asked,
    /// The driver has done it; the next step may be done.
    Able,
    /// Content is being copied ahead.
    Copying,
    /// Tags that memory lacks are to be read.
    Copied,
    /// They are being read.
    Reading,
    /// The driver makes it durable.
    Sealing,
}

/// Snapshots to be prepared, taken or dropped, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    wishes: VecDeque<(Option<Token>, Wish)>,
    stage: Stage,
    /// How often tags were read for the first.
    tries: u32,
    /// What the files of the one that is being taken lack.
    unwritten: Unwritten,
    /// The one that was taken last, and what became of it.
    last: Option<(SnapshotId, Result<(), StoreError>)>,
}

impl Snapshots {
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Token> {
        let wishes = core::mem::take(self).wishes;
        wishes.into_iter().filter_map(|(token, _)| token)
    }

    fn add(&mut self, token: Token, wish: Wish) {
        self.wishes.push_back((Some(token), wish));
    }

    /// Must the tags on the disk stay as they are, until they are copied?
    pub(crate) fn needs_tags(&self) -> bool {
        match self.wishes.front() {
            Some((_, Wish::Take(_))) => self.stage == Stage::Asked,
            Some((_, Wish::Finish(..))) => matches!(self.stage, Stage::New | Stage::Asked),
            _ => false,
        }
    }

    /// Is it to be dropped? Then guests may be writing again, and it could wait for ever.
    fn is_unwanted(&self, id: SnapshotId) -> bool {
        self.wishes.iter().any(|(_, wish)| *wish == Wish::Drop(id))
    }

    pub(crate) fn is_preparing(&self) -> bool {
        matches!(self.wishes.front(), Some((_, Wish::Prepare)))
    }

    pub(crate) fn is_taking(&self) -> bool {
        matches!(self.wishes.front(), Some((_, Wish::Take(_))))
    }
}

impl Store {
    pub(crate) fn prepare_snapshot(&mut self, token: Token) {
        self.snapshots.add(token, Wish::Prepare);
    }

    pub(crate) fn take_snapshot(&mut self, token: Token, id: SnapshotId) {
        self.snapshots.add(token, Wish::Take(id));
    }

    pub(crate) fn seal_snapshot(&mut self, token: Token, id: SnapshotId) {
        self.snapshots.add(token, Wish::Seal(id));
    }

    pub(crate) fn drop_snapshot(&mut self, token: Token, id: SnapshotId) {
        self.snapshots.add(token, Wish::Drop(id));
    }

    pub(crate) fn drive_snapshots(&mut self) {
        while let Some((_, wish)) = self.snapshots.wishes.front().copied() {
            let (stage, kind) = match (self.snapshots.stage, wish) {
                (Stage::New, Wish::Prepare) => (Stage::Asked, DiskOpKind::TrySnapshot),
                (Stage::New, Wish::Take(id)) if self.snapshots.is_unwanted(id) => {
                    self.end_wish(Err(StoreError::Io));
                    continue;
                }
                (Stage::New, Wish::Take(_)) if !self.is_still() => return,
                (Stage::New, Wish::Take(id)) if self.is_keepable() => {
                    self.snapshots.unwritten = self.unwritten();
                    (Stage::Asked, DiskOpKind::Snapshot { id, ahead: self.ahead.take() })
                }
                (Stage::New, Wish::Finish(id, _)) => {
                    let unwritten = core::mem::take(&mut self.snapshots.unwritten);
                    (Stage::Asked, DiskOpKind::KeepTags { id, unwritten })
                }
                (Stage::Able, Wish::Finish(id, blocks)) => {
                    (Stage::Sealing, DiskOpKind::SealSnapshot { id, blocks })
                }
                (Stage::New, Wish::Drop(id)) => (Stage::Asked, DiskOpKind::DropSnapshot { id }),
                (Stage::New, Wish::Seal(id)) => {
                    let last = self.snapshots.last.filter(|(last, _)| *last == id);
                    self.end_wish(last.map_or(Err(StoreError::Io), |(_, result)| result));
                    continue;
                }
                (Stage::Able, Wish::Prepare) if self.ahead.is_still() => {
                    self.copy_ahead();
                    self.snapshots.stage = Stage::Copying;
                    return;
                }
                (Stage::Copying, _) if self.ahead.is_close() => {
                    self.snapshots.stage = Stage::Copied;
                    continue;
                }
                (Stage::Asked | Stage::Able | Stage::Sealing | Stage::Copying, _) => return,
                (Stage::New | Stage::Copied | Stage::Reading, _) => {
                    if !self.read_for(wish) {
                        return;
                    }
                    continue;
                }
            };
            self.snapshots.stage = stage;
            return self.issue(Purpose::Snapshot, kind);
        }
    }

    /// Has tags read that memory lacks, as far as that can be done now. Is there more to do at
    /// once?
    fn read_for(&mut self, wish: Wish) -> bool {
        let prepares = wish == Wish::Prepare;
        if prepares && self.snapshots.stage != Stage::Reading && self.is_keepable() {
            self.end_wish(Ok(()));
            return true;
        }
        if !self.cleaner.is_idle() {
            return false;
        }
        if self.snapshots.stage == Stage::Reading {
            // For one that is being prepared it is tried again, for one that is taken looked again.
            self.snapshots.stage = if prepares { Stage::Copied } else { Stage::New };
            if self.cleaner.take_failed() {
                self.end_wish(Err(StoreError::Io));
            }
            return true;
        }
        if (!prepares || self.snapshots.tries < TRIES) && self.read_tags() {
            self.snapshots.tries += 1;
            self.snapshots.stage = Stage::Reading;
            return true;
        }
        if prepares {
            self.end_wish(Ok(()));
        }
        prepares
    }

    /// Is neither content nor what was copied ahead being changed?
    fn is_still(&self) -> bool {
        let quiet = self.planted.has(Bug::SnapshotStaleTags) || self.activity.is_quiet();
        quiet && self.ahead.is_still()
    }

    /// Is all known of the tags that the disk lacks?
    fn is_keepable(&self) -> bool {
        self.planted.has(Bug::SnapshotStaleTags) || self.unknown().next().is_none()
    }

    /// The tags and region entries that the disk has not as they are in memory.
    fn unwritten(&self) -> Unwritten {
        let mut unwritten = Unwritten::default();
        if self.planted.has(Bug::SnapshotStaleTags) {
            return unwritten;
        }
        for (region, _) in self.activity.dirty() {
            if let Some(table) = self.tags.get(region) {
                unwritten.add(region, self.regions.max(region), table.known());
            }
        }
        unwritten
    }

    fn end_wish(&mut self, result: Result<(), StoreError>) {
        (self.snapshots.stage, self.snapshots.tries) = (Stage::New, 0);
        match (self.snapshots.wishes.pop_front(), result) {
            (Some((Some(token), _)), Ok(())) => self.done_with(token),
            (Some((Some(token), _)), Err(error)) => self.answer(token, Err(error)),
            (Some((None, Wish::Finish(id, _))), result) => self.snapshots.last = Some((id, result)),
            (Some((None, _)) | None, _) => {}
        }
    }

    pub(crate) fn on_snapshot(&mut self, result: Result<(), DiskError>) {
        let Some((_, wish)) = self.snapshots.wishes.front().copied() else { return };
        match (wish, self.snapshots.stage, result) {
            (Wish::Prepare, _, Ok(())) | (Wish::Finish(..), Stage::Asked, Ok(())) => {
                self.snapshots.stage = Stage::Able;
            }
            (Wish::Take(id), _, Ok(())) => {
                self.end_wish(Ok(()));
                self.snapshots.wishes.push_front((None, Wish::Finish(id, self.superblock.blocks)));
            }
            (_, _, result) => self.end_wish(result.map_err(Into::into)),
        }
    }
}
