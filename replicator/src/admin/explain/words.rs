//! The sentences.

use lockstep_proto::v1;

use super::{Facts, Trouble, Unfinished, is};
use crate::config::size::Size;

const NO_ACTION: &str = "no action is needed";

/// One thing that is to be said of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::admin) struct Finding {
    /// What is the case.
    pub(in crate::admin) what: String,
    /// What happens about it without anybody; empty: nothing.
    pub(in crate::admin) by_itself: String,
    /// What a person can do; empty: nothing.
    pub(in crate::admin) to_do: String,
}

/// All findings as one sentence: what is, then what happens, then what to do, each once.
pub(in crate::admin) fn sentence(findings: &[Finding]) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let fields: [fn(&Finding) -> &String; 3] = [|f| &f.what, |f| &f.by_itself, |f| &f.to_do];
    for field in fields {
        for text in findings.iter().map(|f| field(f).as_str()).filter(|text| !text.is_empty()) {
            if !parts.contains(&text) {
                parts.push(text);
            }
        }
    }
    parts.join("; ")
}

fn finding(what: String, by_itself: &str, to_do: String) -> Finding {
    Finding { what, by_itself: by_itself.to_owned(), to_do }
}

fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}

fn seconds(ms: u64) -> String {
    format!("{} s", ms.div_ceil(1000))
}

/// The nodes of copies, each with what is broken there, if that is known.
fn list<'a>(copies: impl Iterator<Item = &'a v1::VolumeReplica>) -> String {
    let fault = |r: &'a v1::VolumeReplica| r.live.as_ref().map_or("", |live| &live.fault);
    let name = |r: &'a v1::VolumeReplica| match fault(r) {
        "" => r.node.clone(),
        fault => format!("{}: {fault}", r.node),
    };
    copies.map(name).collect::<Vec<_>>().join(", ")
}

impl Facts<'_> {
    /// What is to be said of a trouble.
    pub(super) fn finding(&self, trouble: &Trouble<'_>) -> Finding {
        match trouble {
            Trouble::Unfinished(_)
            | Trouble::NoRecord
            | Trouble::Barred
            | Trouble::Forced
            | Trouble::NoCopy
            | Trouble::BelowMin { .. }
            | Trouble::TooFew
            | Trouble::TooMany
            | Trouble::Emptied { .. }
            | Trouble::MinimumLater => self.of_volume(trouble),
            Trouble::Fenced { .. }
            | Trouble::RecordPutBack { .. }
            | Trouble::Waits { .. }
            | Trouble::NotServed { .. }
            | Trouble::Claiming { .. }
            | Trouble::Recovering { .. }
            | Trouble::Draining { .. } => self.of_attachment(trouble),
            Trouble::Faulted { .. }
            | Trouble::PutBack { .. }
            | Trouble::Gone { .. }
            | Trouble::Unreached { .. }
            | Trouble::Resyncing { .. }
            | Trouble::Waiting { .. }
            | Trouble::Leaving { .. } => self.of_copy(trouble),
        }
    }

    fn of_volume(&self, trouble: &Trouble<'_>) -> Finding {
        let name = &self.status.name;
        let (copies, repl) = (self.status.replicas.len(), self.status.repl);
        match trouble {
            Trouble::Unfinished(Unfinished::Creating) => finding(
                "it is still being made".to_owned(),
                "",
                "if that does not end, create it again with the same values or delete it".into(),
            ),
            Trouble::Unfinished(Unfinished::Deleting) => finding(
                "it is being deleted".to_owned(),
                "",
                format!("if that does not end: lockstep volume delete {name}"),
            ),
            Trouble::NoRecord => finding(
                "its record is missing from the record store".to_owned(),
                "",
                "restore the record store from a backup".to_owned(),
            ),
            Trouble::Barred | Trouble::Forced => self.warned(),
            Trouble::NoCopy => finding(
                format!("no copy with all data can be used (they are on {})", list(self.in_sync())),
                "it can be used again when one of them is back",
                format!(
                    "bring one of these back; if they are lost for good, go on from another copy: \
                     lockstep volume recover {name} --replica NODE"
                ),
            ),
            Trouble::BelowMin { reached } => self.below_min(*reached),
            Trouble::TooFew => finding(
                format!("it has {copies} of {repl} copies"),
                &self.about_missing("a new one is built on another node"),
                self.attach_first(),
            ),
            Trouble::TooMany => finding(
                format!("it has {copies} copies, {repl} are wanted"),
                &self.if_attached("the one that is missed least is removed, no action is needed"),
                self.attach_first(),
            ),
            Trouble::Emptied { node } => finding(
                format!("node {node} is being emptied"),
                &self.if_attached("its copy is built elsewhere and then removed"),
                self.attach_first(),
            ),
            _ => finding(
                format!(
                    "each write has at least {} copies for now, {} are wanted",
                    self.status.min_in_sync, self.wanted_min
                ),
                &self.if_attached("that is in force once so many are in sync and reached"),
                self.attach_first(),
            ),
        }
    }

    /// The warning begins with what is the case and goes on with what to do.
    fn warned(&self) -> Finding {
        let warning = self.warning.as_deref().unwrap_or_default();
        let (what, to_do) = warning.split_once("; ").unwrap_or((warning, ""));
        finding(what.to_owned(), "", to_do.to_owned())
    }

    fn below_min(&self, reached: usize) -> Finding {
        let name = &self.status.name;
        let away = || self.in_sync().filter(|copy| !copy.connected);
        let fewer = format!(
            "bring one back, or accept fewer copies: lockstep volume set {name} --min-in-sync {}",
            reached.max(1)
        );
        finding(
            format!(
                "{reached} of the {} copies that each write needs can be reached (not: {}); \
                 writes wait until more are back, nothing is lost",
                self.status.min_in_sync,
                list(away())
            ),
            "it goes on by itself when one of them is back",
            fewer,
        )
    }

    fn of_attachment(&self, trouble: &Trouble<'_>) -> Finding {
        let name = &self.status.name;
        match trouble {
            Trouble::Fenced { node, why } => finding(
                format!(
                    "its primary on {node} stopped: {}; all its I/O fails",
                    or(why, "another one took over")
                ),
                "",
                format!("run `lockstep detach {name}`, then attach it again"),
            ),
            Trouble::RecordPutBack { node, why } => finding(
                format!(
                    "its primary on {node} stopped: {}; all its I/O fails, its data is untouched",
                    or(why, "the record store was put back to an older state")
                ),
                "",
                format!("see what can be done: lockstep volume recover {name}"),
            ),
            Trouble::NotServed { node } => finding(
                match list(self.in_sync().filter(|copy| copy.connected)).as_str() {
                    "" => format!("{node}, which served it, does not"),
                    safe => {
                        format!("{node}, which served it, does not; its data is safe on {safe}")
                    }
                },
                "",
                format!("attach it elsewhere: lockstep attach {name} --node NODE"),
            ),
            Trouble::Claiming { node, why } => finding(
                format!("{node} is about to serve it and waits for {}", or(why, "its record")),
                "it goes on by itself",
                "if it lasts, see that the daemon with the record store runs: lockstep node list"
                    .to_owned(),
            ),
            Trouble::Recovering { node, why } => finding(
                format!(
                    "{node} makes its copies agree before it serves it, and waits for {}",
                    or(why, "recovery to finish")
                ),
                "it goes on by itself, after at most 2 s without copies that stay away, or 60 s if \
                 all others lost power",
                "if it lasts, bring the nodes with its copies back: lockstep node list".to_owned(),
            ),
            Trouble::Draining { node, why } => finding(
                format!(
                    "it is being detached from {node}, which waits for {}",
                    or(why, "requests in flight and a last flush")
                ),
                "it goes on by itself",
                format!("if it lasts: lockstep detach {name} --force"),
            ),
            Trouble::Waits { node, why } => finding(
                format!("writes on {node} wait for {}; nothing is lost", or(why, "a member")),
                "they go on by themselves",
                "if it lasts, see that the daemon with the record store runs: lockstep node list"
                    .to_owned(),
            ),
            _ => Finding::default(),
        }
    }

    fn of_copy(&self, trouble: &Trouble<'_>) -> Finding {
        match trouble {
            Trouble::Faulted { copy, fault } => {
                let node = &copy.node;
                finding(
                    format!("the copy on {node} cannot be used: {fault}"),
                    &self.about_missing(&self.grace()),
                    format!("mend the pool of node {node}, then restart its daemon"),
                )
            }
            Trouble::PutBack { copy } => finding(
                format!(
                    "the copy on {} was put back to an older image, and is not used",
                    copy.node
                ),
                &self.about_missing(&self.grace()),
                self.attach_first(),
            ),
            Trouble::Gone { copy } => finding(
                format!(
                    "the copy on {} is lost: its node answers, but has no files of it",
                    copy.node
                ),
                &self.about_missing("it is built anew once it has been away for long enough"),
                self.attach_first(),
            ),
            Trouble::Unreached { copy } => self.unreached(copy),
            Trouble::Resyncing { copy, progress } => finding(
                format!(
                    "the copy on {} is being {} ({})",
                    copy.node,
                    if is(copy, v1::ReplicaState::New) { "built" } else { "brought up to date" },
                    percent(progress)
                ),
                NO_ACTION,
                String::new(),
            ),
            Trouble::Waiting { copy } => finding(
                format!(
                    "the copy on {} waits to be {}{}",
                    copy.node,
                    if is(copy, v1::ReplicaState::New) { "built" } else { "brought up to date" },
                    match copy.missing_reason.as_str() {
                        "" => String::new(),
                        reason => format!(" ({reason})"),
                    }
                ),
                &self.if_attached(NO_ACTION),
                self.attach_first(),
            ),
            Trouble::Leaving { copy } => finding(
                format!("the copy on {} is on its way out", copy.node),
                &self.if_attached("it is removed, no action is needed"),
                self.attach_first(),
            ),
            _ => Finding::default(),
        }
    }

    fn unreached(&self, copy: &v1::VolumeReplica) -> Finding {
        let node = &copy.node;
        let since = copy.missing_ms.map(|ms| format!(" for {}", seconds(ms))).unwrap_or_default();
        let why = match copy.missing_reason.as_str() {
            "" => String::new(),
            why => format!(" ({why})"),
        };
        let to_do = match self.attach_first().as_str() {
            "" => format!(
                "bring node {node} back, or if it is gone for good: lockstep node remove {node}"
            ),
            attach => attach.to_owned(),
        };
        finding(
            format!("the copy on {node} cannot be reached{since}{why}"),
            &self.about_missing(&self.grace()),
            to_do,
        )
    }

    fn grace(&self) -> String {
        let left = self.primary.and_then(|primary| primary.copies_wait_ms);
        let left = left.map(|ms| format!(", in {}", seconds(ms))).unwrap_or_default();
        format!(
            "a copy whose node stays away for {} is built anew on another node{left}",
            seconds(self.rebuild_after_ms)
        )
    }

    /// What is done about copies that are missing: usually this, else what the primary's node says.
    fn about_missing(&self, usually: &str) -> String {
        match self.primary {
            None => String::new(),
            Some(primary) if primary.copies_wait_ms.is_some() => usually.to_owned(),
            Some(primary) => or(&primary.copies_reason, usually).to_owned(),
        }
    }

    fn if_attached(&self, what: &str) -> String {
        if self.primary.is_some() { what.to_owned() } else { String::new() }
    }

    fn attach_first(&self) -> String {
        match self.primary {
            Some(_) => String::new(),
            None => format!(
                "copies are mended while it is attached: lockstep attach {}",
                self.status.name
            ),
        }
    }
}

/// `34 % of 1.2 GiB, 3 s left`
fn percent(progress: &v1::Resync) -> String {
    let percent = match u128::from(progress.total_bytes) {
        0 => 0,
        total => (u128::from(progress.done_bytes) * 100 / total).min(100),
    };
    let left = progress.eta_ms.map(|ms| format!(", {} left", seconds(ms))).unwrap_or_default();
    format!("{percent} % of {}{left}", Size(progress.total_bytes))
}
