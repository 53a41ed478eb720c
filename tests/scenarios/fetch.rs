//! Copies that fetch content from other nodes: links of their own, and what waits for an answer.

use std::collections::{BTreeMap, VecDeque};

use lockstep_core::id::{Conn, NodeId, Seq, Tick, Token};
use lockstep_core::limits::FETCH_MS;
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::replica;

use super::{Letter, Link, Stage};

/// What copies wait for.
#[derive(Default)]
pub(super) struct Fetches(BTreeMap<Seq, Fetch>);

struct Fetch {
    by: NodeId,
    /// How often its copy had been started.
    start: u64,
    token: Token,
    conn: Conn,
    until: Tick,
}

impl Fetches {
    /// When the next one is given up.
    pub(super) fn due(&self) -> Option<Tick> {
        self.0.values().map(|fetch| fetch.until).min()
    }
}

impl Stage {
    /// Hands a copy's question to its link, which is made if need be. Nobody there is an answer.
    pub(super) fn fetch(
        &mut self,
        by: &NodeId,
        token: Token,
        to: NodeId,
        mut message: Message<Request>,
    ) {
        let is_there = self.nodes.get(&to).is_some_and(|n| n.replica.is_some());
        if !is_there || self.cut.contains(&(by.clone(), to.clone())) {
            self.say(format!("{by} can't reach {to}"));
            return self.tell_replica(by, replica::Event::Fetched { token, answer: None });
        }
        let seq = Seq(self.next_id());
        message.header.seq = seq;
        let known = |(_, l): &(&Conn, &Link)| l.fetches && (&l.from, &l.to) == (by, &to);
        let conn = match self.links.iter().find(known) {
            Some((conn, _)) => *conn,
            None => Conn(self.next_id()),
        };
        let link = self.links.entry(conn).or_insert_with(|| Link {
            from: by.clone(),
            to,
            fetches: true,
            letters: VecDeque::new(),
            replies: VecDeque::new(),
        });
        link.letters.push_back(Letter::Request(message));
        let start = self.nodes.get(by).map_or(0, |n| n.incarnations);
        let until = self.now.plus_ms(FETCH_MS);
        self.fetches.0.insert(seq, Fetch { by: by.clone(), start, token, conn, until });
    }

    /// An answer arrives; if nobody waits for it, nothing happens.
    pub(super) fn fetched(&mut self, message: Message<Reply>) {
        if let Some(fetch) = self.fetches.0.remove(&message.header.seq) {
            self.end_fetch(&fetch, Some(message));
        }
    }

    /// Nothing will come on this link any more.
    pub(super) fn fetches_lost(&mut self, conn: Conn) {
        self.give_up(|fetch| fetch.conn == conn);
    }

    /// Gives up what has waited for too long.
    pub(super) fn fetches_over(&mut self) {
        let now = self.now;
        self.give_up(|fetch| fetch.until <= now);
    }

    fn give_up(&mut self, which: impl Fn(&Fetch) -> bool) {
        let (over, left) =
            std::mem::take(&mut self.fetches.0).into_iter().partition(|(_, f)| which(f));
        self.fetches.0 = left;
        let over: BTreeMap<Seq, Fetch> = over;
        for fetch in over.into_values() {
            self.say(format!("{} waits no longer for what it fetches", fetch.by));
            self.end_fetch(&fetch, None);
        }
    }

    fn end_fetch(&mut self, fetch: &Fetch, answer: Option<Message<Reply>>) {
        let same = self.nodes.get(&fetch.by).is_some_and(|n| n.incarnations == fetch.start);
        if same {
            self.tell_replica(&fetch.by, replica::Event::Fetched { token: fetch.token, answer });
        }
    }
}
