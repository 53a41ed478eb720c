//! Persisting promises: the superblock is written to both of its places, one after the other, and
//! only then is the promise answered. So damage to either place can't bring an older one back.

use alloc::vec::Vec;
use lockstep_core::id::{Epoch, Gen, Token};
use lockstep_core::planted::Bug;

use crate::layout::File;
use crate::op::DiskOpKind;
use crate::store::{Purpose, Store};

/// Which place is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    First,
    Second,
}

/// Promises on their way to the disk.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    stage: Option<Stage>,
    /// Answered when both places are written.
    running: Vec<Token>,
    /// Came meanwhile.
    pending: Vec<Token>,
    /// Is there something to write?
    wanted: bool,
}

impl Promises {
    pub(crate) fn abandon(&mut self) -> Vec<Token> {
        let mut all = core::mem::take(&mut self.running);
        all.append(&mut self.pending);
        all
    }
}

impl Store {
    pub(crate) fn promise(&mut self, token: Token, epoch: Epoch, attach_seq: u64, r#gen: Gen) {
        if self.planted.has(Bug::VolatilePromise) {
            self.done_with(token);
            return;
        }
        let block = &mut self.superblock;
        block.promised = block.promised.max(epoch);
        block.attach_seq = block.attach_seq.max(attach_seq);
        block.member_gen = block.member_gen.max(r#gen);
        self.persist_for(token);
    }

    /// Answers when the superblock is durable as it is now.
    pub(crate) fn persist_for(&mut self, token: Token) {
        self.promises.pending.push(token);
        self.persist_superblock();
    }

    /// Writes the superblock as it is now, or once the writing that goes on is done.
    pub(crate) fn persist_superblock(&mut self) {
        self.promises.wanted = true;
        if self.promises.stage.is_none() {
            self.promises.wanted = false;
            self.promises.running = core::mem::take(&mut self.promises.pending);
            self.promises.stage = Some(Stage::First);
            self.write_superblock();
        }
    }

    pub(crate) fn write_superblock(&mut self) {
        self.superblock.seq += 1;
        let (offset, data) = (self.superblock.offset(), self.superblock.encode());
        let kind = DiskOpKind::Write { file: File::Meta, offset, data, durable: true };
        self.issue(Purpose::Superblock, kind);
    }

    pub(crate) fn on_superblock(&mut self) {
        match self.promises.stage {
            Some(Stage::First) => {
                self.promises.stage = Some(Stage::Second);
                self.write_superblock();
            }
            Some(Stage::Second) => {
                self.promises.stage = None;
                for token in core::mem::take(&mut self.promises.running) {
                    self.done_with(token);
                }
                if self.promises.wanted {
                    self.persist_superblock();
                }
            }
            None => assert!(self.promises.stage.is_some(), "no superblock was being written"),
        }
    }
}
