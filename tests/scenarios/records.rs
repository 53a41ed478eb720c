//! The record store of the stage.

use lockstep_core::id::{NodeId, Revision};
use lockstep_core::primary::{MetaOp, MetaResult};

use super::Stage;
use crate::words;

/// What goes wrong with the next put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mishap {
    #[default]
    None,
    /// It is made, but nobody says so.
    LosesAnswer,
    /// The same, and then the store is away.
    FailsAfterPut,
    /// Nobody says whether it was made, and it was not; then the store is away.
    FailsAtPut,
}

impl Stage {
    pub(super) fn ask_store(&mut self, name: &NodeId, op: MetaOp) -> MetaResult {
        if !self.store_up {
            self.say(format!("{name} finds the record store unavailable"));
            return MetaResult::Unavailable;
        }
        let (_, revision) = self.record.clone().expect("a record");
        match op {
            MetaOp::Get => MetaResult::Read(self.record.clone()),
            MetaOp::PutIf { record, .. } if self.mishap == Mishap::FailsAtPut => {
                (self.mishap, self.store_up) = (Mishap::None, false);
                self.say(format!("{name} loses {}", words::record(&record)));
                MetaResult::Unknown
            }
            MetaOp::PutIf { expected, .. } if expected != revision => {
                self.say(format!("{name} conflicts in the record store"));
                MetaResult::Conflict
            }
            MetaOp::PutIf { record, .. } => {
                self.say(format!("{name} puts {}", words::record(&record)));
                let revision = Revision(revision.0 + 1);
                self.record = Some((record, revision));
                let mishap = std::mem::take(&mut self.mishap);
                if mishap == Mishap::None {
                    return MetaResult::Written(revision);
                }
                self.store_up = mishap != Mishap::FailsAfterPut;
                self.say("the answer is lost".into());
                MetaResult::Unknown
            }
        }
    }
}
