//! The story of a world in words, for `--trace`.

use lockstep_core::guest::GuestOp;
use lockstep_core::id::Conn;
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::primary::Event as PrimaryEvent;
use lockstep_core::replica::Event as ReplicaEvent;

use super::World;
use crate::guest::Asked;

impl World {
    pub(crate) fn tell_replica(&mut self, node: usize, event: &ReplicaEvent) {
        let name = self.nodes[node].name.clone();
        let text = match event {
            ReplicaEvent::Request { conn, message } => {
                let header = message.header;
                format!(
                    "gets #{} on c{conn} (epoch {}, gen {}, commit {}): {}",
                    header.seq,
                    header.epoch,
                    header.r#gen,
                    header.commit,
                    request(&message.body)
                )
            }
            ReplicaEvent::Disconnected(conn) => format!("loses c{conn}"),
            ReplicaEvent::Stored { token, result } => match result {
                Ok(_) => format!("store has done {token}"),
                Err(why) => format!("store fails {token}: {why:?}"),
            },
            ReplicaEvent::Fetched { token, answer } => match answer.as_ref().map(|m| &m.body) {
                Some(Reply::Data(payload)) => {
                    format!("has fetched {} blocks for {token}", payload.blocks())
                }
                other => format!("can't fetch for {token}: {other:?}"),
            },
            ReplicaEvent::Entered { granted: true } => "may be a target".to_owned(),
            ReplicaEvent::Entered { granted: false } => "may not be a target yet".to_owned(),
        };
        self.say(|| format!("{name}: replica {text}"));
    }

    pub(crate) fn tell_primary_story(&mut self, node: usize, event: &PrimaryEvent) {
        let name = self.nodes[node].name.clone();
        let text = match event {
            PrimaryEvent::Connected { node, conn } => format!("reaches {node} on c{conn}"),
            PrimaryEvent::Disconnected(conn) => format!("loses c{conn}"),
            PrimaryEvent::Reply { conn, message } => reply(*conn, message),
            PrimaryEvent::Meta { result, .. } => format!("hears of the record: {result:?}"),
            PrimaryEvent::RecordChanged => "is told that the record changed".to_owned(),
            PrimaryEvent::Release(rid) => format!("is told to let {rid} go"),
            PrimaryEvent::Scrub => "is told to scrub".to_owned(),
            PrimaryEvent::Task { task, .. } => format!("is asked for {task:?}"),
            PrimaryEvent::ResyncSlot => "gets a slot for a resync".to_owned(),
            PrimaryEvent::Close => "is told to close".to_owned(),
            PrimaryEvent::Wake | PrimaryEvent::Guest { .. } => return,
        };
        self.say(|| format!("{name}: primary {text}"));
    }

    pub(crate) fn tell_request(&mut self, node: usize, conn: Conn, message: &Message<Request>) {
        let name = self.nodes[node].name.clone();
        let (seq, text) = (message.header.seq, request(&message.body));
        self.say(|| format!("{name}: primary sends #{seq} on c{conn}: {text}"));
    }

    pub(crate) fn tell_guest(&mut self, node: usize, asked: &Asked) {
        let name = self.nodes[node].name.clone();
        let text = match &asked.op {
            GuestOp::Read { range } => format!("read {range:?}"),
            GuestOp::Write { range, fua, .. } => {
                format!("write {:?} to {range:?}{}", asked.value, if *fua { " fua" } else { "" })
            }
            GuestOp::Zero { range, fua, .. } => {
                format!("zero {range:?}{}", if *fua { " fua" } else { "" })
            }
            GuestOp::Flush => "flush".to_owned(),
        };
        let request = asked.request;
        self.say(|| format!("{name}: guest asks {request}: {text}"));
    }
}

fn request(body: &Request) -> String {
    match body {
        Request::Promise { attach_seq, .. } => format!("promise (attachment {attach_seq})"),
        Request::Read { blocks } => format!("read {blocks:?}"),
        Request::Write { range, fua, payload } => {
            let block = payload.data.get(..crate::content::BLOCK);
            let value = block.map(|b| crate::content::value_of(range.start, b));
            let fua = if *fua { " fua" } else { "" };
            format!("write {range:?} ({value:?}){fua}")
        }
        Request::Zero { range, .. } => format!("zero {range:?}"),
        Request::Resync { blocks, .. } | Request::Pull { blocks, .. } => {
            let pulled = matches!(body, Request::Pull { .. });
            let list: Vec<String> = blocks
                .iter()
                .take(8)
                .map(|b| format!("{}:{:?}@{}", b.block, b.content, b.stamp))
                .collect();
            let how = if pulled { "pull" } else { "resync" };
            format!("{how} of {}: {}", blocks.len(), list.join(" "))
        }
        other => format!("{other:?}"),
    }
}

fn reply(conn: Conn, message: &Message<Reply>) -> String {
    let seq = message.header.seq;
    match &message.body {
        Reply::Data(payload) => format!("gets #{seq} on c{conn}: {} blocks", payload.blocks()),
        Reply::Digests(list) => format!("gets #{seq} on c{conn}: {} digests", list.len()),
        other => format!("gets #{seq} on c{conn}: {other:?}"),
    }
}
