//! Messages and records in a few words.

use lockstep_core::message::{Message, Reply, Request, ResyncBlock, ResyncContent};
use lockstep_core::primary::{TaskDone, TaskError};
use lockstep_core::record::{Record, ReplicaState};

/// Size of a scene's volume, which is not told.
pub(crate) const USUAL_BLOCKS: u64 = 1024;

pub(crate) fn request(m: &Message<Request>) -> String {
    let h = &m.header;
    let what = match &m.body {
        Request::Promise { .. } => "PROMISE".into(),
        Request::Read { blocks } => format!("READ {blocks:?}"),
        Request::Write { range, fua, .. } => {
            format!("WRITE {range:?}{}", if *fua { " FUA" } else { "" })
        }
        Request::Zero { range, .. } => format!("ZERO {range:?}"),
        Request::Flush => "FLUSH".into(),
        Request::Complete => "COMPLETE".into(),
        Request::Commit { member } => {
            format!("COMMIT{}", if *member { " member" } else { "" })
        }
        Request::Mark { blocks } => format!("MARK {blocks:?}"),
        Request::Scan { since, .. } => format!("SCAN since={since}"),
        Request::Digest { blocks, since } => format!("DIGEST {blocks:?} since={since}"),
        Request::Resync { blocks, .. } => format!("RESYNC {}", entries(blocks)),
        Request::Pull { node, blocks, .. } => format!("PULL from {node} {}", entries(blocks)),
        Request::Fetch { blocks, .. } => format!("FETCH {blocks:?}"),
        Request::Close => "CLOSE".into(),
        Request::Renew => "RENEW".into(),
        Request::Enter { copies } => format!("ENTER copies={copies}"),
        Request::Extend { blocks } => format!("EXTEND blocks={blocks}"),
        Request::Prepare => "PREPARE".into(),
        Request::Snapshot { id } => format!("SNAPSHOT {}", id.0.as_u128()),
        Request::Seal { id } => format!("SEAL {}", id.0.as_u128()),
        Request::DropSnapshot { id } => format!("DROP SNAPSHOT {}", id.0.as_u128()),
        Request::ScanKept { id, .. } => format!("SCAN KEPT {}", id.0.as_u128()),
        Request::DigestKept { blocks, .. } => format!("DIGEST KEPT {blocks:?}"),
        Request::ReadKept { blocks, .. } => format!("READ KEPT {blocks:?}"),
    };
    format!("{what} e{} g{} s{} c{}", h.epoch, h.r#gen, h.seq, h.commit)
}

pub(crate) fn reply(m: &Message<Reply>) -> String {
    let what = match &m.body {
        Reply::Promised(p) => {
            let flag = |on, word| if on { word } else { "" };
            format!(
                "PROMISED{}{}{} ring={:?} unresolved={:?}",
                flag(p.unclean, " unclean"),
                flag(p.lossy, " lossy"),
                flag(p.fresh, " fresh"),
                p.ring,
                p.unresolved.iter().map(|r| r.0).collect::<Vec<_>>()
            )
        }
        Reply::Data(payload) => format!("DATA {} blocks", payload.blocks()),
        Reply::Done => "DONE".into(),
        Reply::Regions { regions, .. } => {
            format!("REGIONS {:?}", regions.iter().map(|r| r.0).collect::<Vec<_>>())
        }
        Reply::Digests(d) => {
            format!("DIGESTS {}", runs(d.iter().map(|d| (d.block, format!("@{}", d.stamp)))))
        }
        Reply::Refused(refusal) => format!("REFUSED {refusal:?}"),
    };
    format!("{what} s{}", m.header.seq)
}

#[allow(dead_code, reason = "the explorer asks for no tasks")]
pub(crate) fn task(result: &Result<TaskDone, TaskError>) -> String {
    match result {
        Ok(TaskDone::Resized { blocks }) => format!("{blocks} blocks"),
        Ok(TaskDone::Snapshot(s)) => {
            let (id, copies) = (s.id.0.as_u128(), s.replicas.len());
            format!("snapshot {id} of {} blocks up to g{} on {copies}", s.blocks, s.r#gen)
        }
        Err(error) => format!("{error:?}"),
    }
}

fn entries(blocks: &[ResyncBlock]) -> String {
    let word = |c| match c {
        ResyncContent::Data => "data",
        ResyncContent::Zero => "zero",
        ResyncContent::Same => "same",
    };
    runs(blocks.iter().map(|b| (b.block, format!("{}@{}", word(b.content), b.stamp))))
}

/// Blocks with a remark each, neighbours with the same remark together.
fn runs(list: impl Iterator<Item = (u64, String)>) -> String {
    let mut runs: Vec<(u64, u64, String)> = Vec::new();
    for (block, remark) in list {
        match runs.last_mut() {
            Some((start, count, same)) if *start + *count == block && *same == remark => {
                *count += 1
            }
            _ => runs.push((block, 1, remark)),
        }
    }
    let said: Vec<String> = runs.iter().map(|(s, c, remark)| format!("{s}+{c}:{remark}")).collect();
    said.join(" ")
}

pub(crate) fn record(r: &Record) -> String {
    let state = |s| match s {
        ReplicaState::New => "new".into(),
        ReplicaState::InSync => "in-sync".into(),
        ReplicaState::Out { since, .. } => format!("out@{since}"),
        ReplicaState::Leaving => "leaving".into(),
    };
    let replicas: Vec<String> =
        r.replicas.iter().map(|e| format!("{}:{}", e.node, state(e.state))).collect();
    let primary = r.primary.as_ref().map_or("none".into(), |p| p.node.to_string());
    let clean = match (r.clean, r.put_back.0) {
        (_, 1..) => " PUT BACK",
        (true, 0) => " clean",
        (false, 0) => "",
    };
    let larger = r.blocks > USUAL_BLOCKS;
    let size = if larger { format!(" {} blocks", r.blocks) } else { String::new() };
    format!("e{} g{} primary={primary}{clean}{size} {}", r.epoch, r.r#gen, replicas.join(" "))
}
