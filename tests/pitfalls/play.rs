//! Plays a scene, and asks what was said.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lockstep_core::guest::GuestOp;
use lockstep_core::message::Payload;
use lockstep_core::planted::{Bug, Planted};

use super::stage::Stage;

/// A scene that is being played.
pub(crate) struct Play {
    stage: Stage,
    said: Vec<String>,
}

pub(crate) type Scene = fn(&mut Play);

impl Play {
    pub(crate) fn new(planted: Planted) -> Self {
        let mut stage = Stage::default();
        stage.planted = planted;
        Self { stage, said: Vec::new() }
    }

    /// Performs commands; returns what was said because of them.
    pub(crate) fn run(&mut self, commands: &[&str]) -> Vec<String> {
        let from = self.said.len();
        for command in commands {
            let said = self.stage.perform(command);
            self.said.extend(said);
        }
        self.said[from..].to_vec()
    }

    /// The data that a primary sends because of a guest's request, instead of sending it.
    pub(crate) fn payloads_of(&mut self, node: &str, op: GuestOp) -> Vec<Payload> {
        self.stage.payloads_of(node, op)
    }

    /// All that was said so far.
    pub(crate) fn said(&self) -> &[String] {
        &self.said
    }

    /// Where the first line stands that has all these words, if there is one.
    pub(crate) fn at(&self, words: &[&str]) -> Option<usize> {
        self.said.iter().position(|line| words.iter().all(|word| line.contains(word)))
    }

    /// What each node's copy holds now, by the name of the node.
    pub(crate) fn copies(&mut self) -> Vec<(String, String)> {
        let lines = self.stage.perform("show");
        let copy = |line: &String| {
            let (node, rest) = line.split_once(" copy ")?;
            let content = rest.split_once("log=")?.1;
            let content = content.split_once(' ').map_or("", |(_, content)| content);
            Some((node.to_owned(), content.to_owned()))
        };
        lines.iter().filter_map(copy).collect()
    }

    /// Every copy holds exactly this.
    pub(crate) fn assert_all_hold(&mut self, content: &str) {
        let copies = self.copies();
        assert!(!copies.is_empty(), "there are no copies");
        for (node, found) in copies {
            assert_eq!(found, content, "on {node}, after\n{}", self.said.join("\n"));
        }
    }

    /// The record as it is now, in words.
    pub(crate) fn record(&mut self) -> String {
        let lines = self.stage.perform("show");
        lines.into_iter().find(|line| line.starts_with("record: ")).expect("a record")
    }
}

/// Is this line the good answer to a guest's request?
pub(crate) fn is_acknowledgement(line: &str) -> bool {
    line.contains(" guest #") && line.ends_with(": done")
}

pub(crate) fn acknowledgements(lines: &[String]) -> usize {
    lines.iter().filter(|line| is_acknowledgement(line)).count()
}

/// The scene is good, and is not with any of these bugs: so it would see the mistake.
pub(crate) fn proves(scene: Scene, bugs: &[Bug]) {
    scene(&mut Play::new(Planted::NONE));
    for bug in bugs {
        let played = || scene(&mut Play::new(Planted::with(*bug)));
        let failed = catch_unwind(AssertUnwindSafe(played)).is_err();
        assert!(failed, "the scene is good although {bug:?} is planted");
    }
}
