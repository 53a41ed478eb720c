//! Growing (T10): files first, then the superblock that says so, then the answer.

use alloc::collections::VecDeque;
use lockstep_core::id::Token;
use lockstep_core::planted::Bug;
use lockstep_core::store::StoreError;

use crate::layout::region_count;
use crate::op::{DiskError, DiskOpKind};
use crate::store::{Purpose, Store};

/// Extensions asked for; the files of the first are being extended.
#[derive(Debug, Default)]
pub(crate) struct Extends(VecDeque<(Token, u64)>);

impl Extends {
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Token> {
        core::mem::take(&mut self.0).into_iter().map(|(token, _)| token)
    }
}

impl Store {
    pub(crate) fn extend(&mut self, token: Token, blocks: u64) {
        self.extends.0.push_back((token, blocks));
        if self.extends.0.len() == 1 {
            self.extend_files();
        }
    }

    fn extend_files(&mut self) {
        while let Some(&(token, blocks)) = self.extends.0.front() {
            if blocks > self.superblock.blocks {
                return self.issue(Purpose::Extend, DiskOpKind::Extend { blocks });
            }
            self.extends.0.pop_front();
            // Whoever was answered before has made it durable, or waits for that as well.
            self.persist_for(token);
        }
    }

    pub(crate) fn on_extended(&mut self, result: Result<(), DiskError>) {
        let Some((token, blocks)) = self.extends.0.pop_front() else { return };
        match result {
            Ok(()) => {
                let before = core::mem::replace(&mut self.superblock.blocks, blocks);
                self.regions.grow(region_count(blocks));
                self.ahead.stop();
                if self.planted.has(Bug::VolatileExtend) {
                    self.superblock.blocks = before;
                    self.done_with(token);
                } else {
                    self.persist_for(token);
                }
            }
            Err(DiskError::NoSpace) => self.answer(token, Err(StoreError::NoSpace)),
            Err(error) => {
                self.answer(token, Err(error.into()));
                return self.latch(error);
            }
        }
        self.extend_files();
    }
}
