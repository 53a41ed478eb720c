//! The network: a bridge, and for each node a network namespace with one interface. What may not
//! pass is dropped where it arrives, so that each direction can be cut alone.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Mutex;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::board::lock;

/// Which cuts are in force, and how many faults want each: from, to.
#[derive(Debug, Default)]
pub(crate) struct Net {
    cuts: Mutex<BTreeMap<(usize, usize), u32>>,
    /// One change of the rules at a time, so that they agree with `cuts`.
    changing: tokio::sync::Mutex<()>,
}

/// The address of a node.
pub(crate) fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(node + 1).unwrap_or(u8::MAX))
}

/// The network namespace of a node.
pub(crate) fn namespace(node: usize) -> String {
    format!("/run/netns/n{}", node + 1)
}

/// A command in the network of a node.
pub(crate) fn command_in(node: usize, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace(node))).arg("--").arg(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command that must succeed; returns its standard output.
pub(crate) async fn must(command: &mut Command) -> anyhow::Result<String> {
    let words = format!("{:?}", command.as_std());
    let output = command.output().await.with_context(|| format!("starting {words}"))?;
    if !output.status.success() {
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{words} ended with {}: {}{}", output.status, out.trim(), err.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn shell_words(words: &str) -> anyhow::Result<String> {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    must(&mut command).await
}

impl Net {
    /// Makes it. This process must be in a network namespace and a mount namespace of its own.
    pub(crate) async fn make(nodes: usize) -> anyhow::Result<Self> {
        std::fs::create_dir_all("/run/netns").context("making /run/netns")?;
        shell_words("mount -t tmpfs -o size=1m netns /run/netns").await?;
        for words in ["ip link set lo up", "ip link add chaos type bridge", "ip link set chaos up"]
        {
            shell_words(words).await?;
        }
        for node in 0..nodes {
            let (name, ip) = (format!("n{}", node + 1), address(node));
            for words in [
                format!("ip netns add {name}"),
                format!("ip link add to-{name} type veth peer name eth0 netns {name}"),
                format!("ip link set to-{name} master chaos up"),
                format!("ip -n {name} address add {ip}/24 dev eth0"),
                format!("ip -n {name} link set eth0 up"),
                format!("ip -n {name} link set lo up"),
            ] {
                shell_words(&words).await?;
            }
            for rule in [
                "add table ip chaos",
                "add set ip chaos cut { type ipv4_addr; }",
                "add chain ip chaos in { type filter hook input priority 0; }",
                "add rule ip chaos in ip saddr @cut drop",
            ] {
                must(command_in(node, "nft").arg(rule)).await?;
            }
        }
        Ok(Self::default())
    }

    /// From now on nothing passes from one node to another.
    pub(crate) async fn cut(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        let count = {
            let mut cuts = lock(&self.cuts);
            let count = cuts.entry((from, to)).or_default();
            *count += 1;
            *count
        };
        if count == 1 { rule("add", from, to).await } else { Ok(()) }
    }

    /// Undoes one [`Net::cut`].
    pub(crate) async fn mend(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        let count = {
            let mut cuts = lock(&self.cuts);
            let count = cuts.entry((from, to)).or_default();
            assert!(*count > 0, "what was not cut cannot be mended");
            *count -= 1;
            *count
        };
        if count == 0 { rule("delete", from, to).await } else { Ok(()) }
    }

    /// Whether anything is cut.
    pub(crate) fn is_whole(&self) -> bool {
        lock(&self.cuts).values().all(|count| *count == 0)
    }
}

async fn rule(verb: &str, from: usize, to: usize) -> anyhow::Result<()> {
    let words = format!("{verb} element ip chaos cut {{ {} }}", address(from));
    must(command_in(to, "nft").arg(words)).await.map(drop)
}
