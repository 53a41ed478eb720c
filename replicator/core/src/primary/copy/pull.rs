//! Rule S8: content goes from the source to the target without passing through here, if both are
//! on other nodes. Whatever can't be had that way goes the usual one.

use super::{Primary, Step, bytes_of};
use crate::id::ReplicaId;
use crate::limits;
use crate::lock::LockId;
use crate::message::{Request, ResyncContent};
use crate::range::{BlockRange, BlockSet};

impl Primary {
    /// Is it worth asking the target to fetch content by itself?
    pub(super) fn may_pull(&self) -> bool {
        let Some(job) = &self.copy else { return false };
        let remote = |rid: &ReplicaId| {
            self.peers.get(rid).is_some_and(|peer| peer.node() != &self.params.node)
        };
        let session = self.peers.get(&job.target).and_then(|peer| peer.session());
        job.locked
            && job.pull_failures < limits::PULL_FAILURES
            && remote(&job.source)
            && remote(&job.target)
            && session.is_some_and(|session| session.pulls)
    }

    /// The window's lock is held until the target has answered, or its session is gone: then it
    /// forgets the pull, or has it in its ring.
    pub(super) fn pull_window(&mut self, lock: LockId) -> Option<()> {
        let blocks = self.planned(lock)?;
        let job = self.copy.as_ref()?;
        let (source, target) = (job.source, job.target);
        let node = self.peers.get(&source)?.node().clone();
        let request = Request::Pull { node, source, blocks };
        self.copy_call(target, Step::Pull(lock), true, request);
        Some(())
    }

    pub(super) fn on_pulled(&mut self, lock: LockId) -> Option<()> {
        let bytes = bytes_of(&self.to_move(lock)?);
        self.copy.as_mut()?.progress.moved_bytes += bytes;
        self.counters.direct_bytes += bytes;
        self.finish_window(lock);
        Some(())
    }

    /// Nothing was changed: the window goes on as if it had not been tried.
    pub(super) fn on_not_pulled(&mut self, lock: LockId) {
        self.counters.pulls_failed += 1;
        let Some(blocks) = self.to_move(lock) else { return };
        let Some(job) = self.copy.as_mut() else { return };
        job.pull_failures += 1;
        let source = job.source;
        self.copy_call(source, Step::Read(lock), false, Request::Read { blocks });
    }

    /// The blocks of a window whose content has to move.
    fn to_move(&self, lock: LockId) -> Option<BlockSet> {
        let plan = &self.copy.as_ref()?.windows.get(&lock)?.plan;
        let moves = plan.iter().filter(|b| b.content == ResyncContent::Data);
        Some(moves.map(|b| BlockRange::new(b.block, 1)).collect())
    }
}
