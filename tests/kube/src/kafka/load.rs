//! The load program, which runs on a node that stays up, and what it says.

use super::brokers::{self, BROKERS};
use crate::lab::{LIMIT, Lab};
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PROGRAM: &str = "kafka-load";
const TOPICS: usize = 3;
const PARTITIONS: usize = 2;
const REPLICATION: usize = 2;
const RECORD_BYTES: u64 = 1024;
/// Records in a second, for each partition.
const RATE: u64 = 50;
/// How long it may take to write or to read all there is.
const LONG: Duration = Duration::from_secs(600);

/// The load of one round.
#[derive(Debug)]
pub(crate) struct Load {
    java: PathBuf,
    common: Vec<String>,
    /// The node that it runs on.
    node: usize,
    enough: PathBuf,
    log: PathBuf,
    /// Where in the log this round begins.
    from: usize,
}

impl Load {
    pub(crate) fn new(lab: &Lab, programs: &Path, round: usize, node: usize) -> Self {
        let dir = lab.cluster.dir();
        let app = programs.join("app");
        let common = vec![
            "-Xmx256m".to_owned(),
            "-XX:+UseSerialGC".to_owned(),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error".to_owned(),
            "-cp".to_owned(),
            format!("{0}/classes:{0}/jars/*", app.display()),
            "Load".to_owned(),
        ];
        let flags = [
            format!("--servers={}", brokers::servers(round)),
            format!("--ledger={}", dir.join(format!("ledger-{round}")).display()),
            format!("--topics={TOPICS}"),
            format!("--partitions={PARTITIONS}"),
            format!("--record={RECORD_BYTES}"),
        ];
        let log = dir.join(format!("n{node}/{PROGRAM}.log"));
        Self {
            java: programs.join("jre/bin/java"),
            common: common.into_iter().chain(flags).collect(),
            node,
            enough: dir.join(format!("enough-{round}")),
            from: fs::read_to_string(&log).map_or(0, |said| said.len()),
            log,
        }
    }

    /// The words of a command; what it does comes after the name of the class.
    fn words(&self, command: &str, more: &[String]) -> Vec<String> {
        let mut words = self.common.clone();
        let class = words.iter().position(|word| word == "Load").map_or(0, |at| at + 1);
        words.insert(class, command.to_owned());
        words.extend_from_slice(more);
        words
    }

    /// Runs a command of it to its end; returns the last event that it told.
    async fn whole(&self, lab: &Lab, command: &str, more: &[String]) -> anyhow::Result<Value> {
        let java = self.java.display().to_string();
        let words = self.words(command, more);
        let words: Vec<&str> =
            std::iter::once(java.as_str()).chain(words.iter().map(String::as_str)).collect();
        let run = tokio::time::timeout(LONG, lab.node(self.node)?.run(&words)).await;
        let said = run.with_context(|| format!("{command} does not end"))??;
        events(&said).pop().with_context(|| format!("{command} told nothing"))
    }

    /// Makes the topics once all brokers are there.
    pub(crate) async fn make_topics(&self, lab: &Lab) -> anyhow::Result<()> {
        let more = [format!("--brokers={BROKERS}"), format!("--replication={REPLICATION}")];
        self.whole(lab, "topics", &more).await.map(drop)
    }

    /// Writes until every broker has so many bytes.
    pub(crate) async fn fill(&self, lab: &Lab, bytes_each: u64) -> anyhow::Result<()> {
        let brokers = u64::try_from(BROKERS)?;
        let bytes = bytes_each * brokers / u64::try_from(REPLICATION)?;
        self.whole(lab, "fill", &[format!("--bytes={bytes}")]).await.map(drop)
    }

    /// Begins to write and read, and returns when all brokers are seen in sync.
    pub(crate) async fn begin(&self, lab: &mut Lab) -> anyhow::Result<()> {
        let until = format!("--until={}", self.enough.display());
        let words = self.words("run", &[format!("--rate={RATE}"), until]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let node = lab.node_mut(self.node)?;
        node.add(PROGRAM, &self.java, &words, None);
        node.start(PROGRAM)?;
        let all = async || (0..BROKERS).all(|broker| self.is_whole(broker));
        let log = self.log.display();
        ensure!(wait_for(LIMIT, all).await, "not all brokers are in sync; see {log}");
        Ok(())
    }

    /// Lets it end; returns what it counted.
    pub(crate) async fn end(&self) -> anyhow::Result<Value> {
        fs::write(&self.enough, "")?;
        let ran = || self.told("ran").pop();
        let log = self.log.display();
        ensure!(wait_for(LIMIT, async || ran().is_some()).await, "it does not end; see {log}");
        ran().context("it has ended")
    }

    /// Reads all there is, and holds it against the ledger. It must be as it was acknowledged.
    pub(crate) async fn verify(&self, lab: &Lab) -> anyhow::Result<Value> {
        self.whole(lab, "verify", &[]).await
    }

    /// What was told of one kind, oldest first.
    fn told(&self, event: &str) -> Vec<Value> {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let mut told = events(said.get(self.from..).unwrap_or_default());
        told.retain(|line| line.get("event").and_then(Value::as_str) == Some(event));
        told
    }

    /// The last word on a broker, and when it was: does it lead or follow all its partitions in
    /// sync?
    pub(crate) fn last_word(&self, broker: usize) -> Option<(u64, bool)> {
        let of = |line: &Value| number(line, "broker") == u64::try_from(broker).ok();
        let line = self.told("in_sync").into_iter().rfind(of)?;
        let is_whole = number(&line, "in_sync") == number(&line, "of");
        Some((number(&line, "at_ms")?, is_whole))
    }

    fn is_whole(&self, broker: usize) -> bool {
        self.last_word(broker).is_some_and(|(_, is_whole)| is_whole)
    }
}

/// The lines of output that are events.
pub(crate) fn events(said: &str) -> Vec<Value> {
    let lines = said.lines().filter_map(|line| line.find("{\"event\"").map(|at| &line[at..]));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A number of an event.
pub(crate) fn number(event: &Value, name: &str) -> Option<u64> {
    event.get(name).and_then(Value::as_u64)
}
