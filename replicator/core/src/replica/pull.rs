//! Rule S8: a resync's target fetches content from its source by itself.
//!
//! A pull belongs to the session that it was asked for in. Whatever ends that session forgets it,
//! so that an answer that comes later is for nobody. From the moment its content is there, it is
//! a resync write like any other: in the ring, in flight, waited for by a promise.

use alloc::vec::Vec;

use super::serve::{refusal, sized, with_data};
use super::{Effect, InFlight, Replica, Role};
use crate::id::{Conn, NodeId, ReplicaId, Token};
use crate::limits::{self, MAX_OP_BLOCKS};
use crate::message::{
    Header, Message, Payload, Refusal, Reply, Request, ResyncBlock, ResyncContent,
};
use crate::planted::Bug;
use crate::range::{BlockRange, BlockSet};
use crate::store::{StoreError, StoreOp, StoreReply};

/// A pull whose content is not there yet.
#[derive(Clone, Debug, Hash)]
pub(super) struct Pull {
    source: ReplicaId,
    blocks: Vec<ResyncBlock>,
    /// Who waits for it, once it was admitted.
    asked: Option<(Conn, Header)>,
}

impl Pull {
    pub(super) fn new(source: ReplicaId, blocks: Vec<ResyncBlock>) -> Self {
        Self { source, blocks, asked: None }
    }
}

impl Replica {
    /// Nothing of the session is admitted any more, and what it has not got is for nobody.
    pub(super) fn end_session(&mut self) {
        self.session = None;
        if !self.planted.has(Bug::LatePull) {
            self.pulls.clear();
        }
    }

    /// May the session's primary have another operation in flight?
    pub(super) fn is_within_credit(&self) -> bool {
        let own = self.in_flight.len() - self.giving + self.pulls.len();
        own < limits::CREDIT_OPS as usize
    }

    pub(super) fn is_pull_well_formed(&self, blocks: &[ResyncBlock]) -> bool {
        let moves = with_data(blocks);
        self.is_list_well_formed(blocks) && (1..=MAX_OP_BLOCKS as usize).contains(&moves)
    }

    pub(super) fn on_pull(
        &mut self,
        conn: Conn,
        header: Header,
        node: NodeId,
        mut pull: Pull,
        out: &mut Vec<Effect>,
    ) {
        if !self.fetches {
            return self.reply(conn, &header, Reply::Refused(Refusal::NotPulled), out);
        }
        let data = pull.blocks.iter().filter(|b| b.content == ResyncContent::Data);
        let blocks = data.map(|b| BlockRange::new(b.block, 1)).collect();
        let body = Request::Fetch { source: pull.source, blocks };
        pull.asked = Some((conn, header));
        let token = Token(*self.next_token);
        *self.next_token += 1;
        self.pulls.insert(token, pull);
        let header = Header { commit: Default::default(), ..header };
        out.push(Effect::Fetch { token, node, message: Message { header, body } });
    }

    /// The content is there, or will not be. If the pull is forgotten, it is for nobody.
    pub(super) fn on_fetched(
        &mut self,
        token: Token,
        answer: Option<Message<Reply>>,
        out: &mut Vec<Effect>,
    ) {
        let Some(Pull { blocks, asked: Some((conn, header)), .. }) = self.pulls.remove(&token)
        else {
            return;
        };
        let Some(payload) = answer.and_then(|answer| content(answer, &header, &blocks)) else {
            return self.reply(conn, &header, Reply::Refused(Refusal::NotPulled), out);
        };
        let set = blocks.iter().map(|b| BlockRange::new(b.block, 1)).collect();
        self.mutate(conn, header, set, StoreOp::Resync { blocks, payload }, out);
    }

    /// Another replica pulls from this one.
    pub(super) fn on_fetch(
        &mut self,
        conn: Conn,
        header: Header,
        source: ReplicaId,
        blocks: BlockSet,
        out: &mut Vec<Effect>,
    ) {
        let right = (header.volume, source) == (self.identity.volume, self.identity.replica);
        let fits = blocks.len() <= u64::from(MAX_OP_BLOCKS) && self.holds(&blocks);
        let refusal = match self.may_give(&header) {
            _ if !right => Some(Refusal::NoSuchReplica),
            Err(refusal) => Some(refusal),
            Ok(()) if !fits => Some(Refusal::Malformed),
            Ok(()) => (self.giving >= limits::FETCHES).then_some(Refusal::NotPulled),
        };
        if let Some(refusal) = refusal {
            return self.reply(conn, &header, Reply::Refused(refusal), out);
        }
        self.giving += 1;
        let item =
            InFlight { conn, header, mutation: None, fatal: false, gives: true, extends: None };
        self.submit(item, StoreOp::Read { blocks }, out);
    }

    /// Only in a session of that epoch is what is here known to be what the primary asked about:
    /// after a restart it may lack what was not flushed, and the primary may not know yet.
    fn may_give(&self, header: &Header) -> Result<(), Refusal> {
        if self.role == Role::Faulted {
            Err(Refusal::Faulted)
        } else if self.planted.has(Bug::PullAnyEpoch) {
            Ok(())
        } else if header.epoch != self.promised {
            Err(Refusal::Epoch { promised: self.promised })
        } else if self.session.is_none() {
            Err(Refusal::NoSession)
        } else {
            Ok(())
        }
    }

    /// What another replica pulls was read.
    pub(super) fn on_given(
        &mut self,
        item: &InFlight,
        result: Result<StoreReply, StoreError>,
        out: &mut Vec<Effect>,
    ) {
        self.giving -= 1;
        let body = match (self.may_give(&item.header), result) {
            (Err(why), _) => Reply::Refused(why),
            (Ok(()), Ok(StoreReply::Data(payload))) => Reply::Data(payload),
            (Ok(()), Ok(_)) => Reply::Refused(Refusal::Io),
            (Ok(()), Err(error)) => Reply::Refused(refusal(error)),
        };
        self.reply(item.conn, &item.header, body, out);
    }

    pub(super) fn check_pulls(&self) {
        assert!(self.giving <= limits::FETCHES, "more is given than may be");
        let giving = self.in_flight.values().filter(|item| item.gives).count();
        assert_eq!(giving, self.giving, "what is given is miscounted");
        let void = self.session.is_none() && !self.pulls.is_empty();
        assert!(!void || self.planted.has(Bug::LatePull), "a pull outlived its session");
    }
}

/// What was fetched, if it is what was asked for.
fn content(answer: Message<Reply>, asked: &Header, blocks: &[ResyncBlock]) -> Option<Payload> {
    let Reply::Data(payload) = answer.body else { return None };
    let same = (answer.header.volume, answer.header.epoch) == (asked.volume, asked.epoch);
    (same && sized(&payload) && payload.blocks() == with_data(blocks)).then_some(payload)
}
