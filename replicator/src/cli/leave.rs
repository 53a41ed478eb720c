//! `lockstep node evacuate` and `lockstep node remove`

use std::time::Duration;

use lockstep_proto::v1;
use serde_json::{Value, json};

use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::words;

const PAUSE: Duration = Duration::from_millis(1000);

/// `node evacuate`
pub(super) async fn evacuate(
    server: &Server,
    out: &Output,
    name: String,
    undo: bool,
    wait: bool,
) -> Result<(), Failure> {
    let mut client = server.control().await?;
    let mut told = None;
    loop {
        let request = v1::EvacuateNodeRequest { node: name.clone(), undo };
        let copies = client.evacuate_node(request).await?.into_inner().copies;
        let over = undo || !wait || copies.is_empty();
        if over || told.as_ref() != Some(&copies) {
            out.answer(&value(&name, undo, &copies), || text(&name, undo, &copies))?;
        }
        if over {
            return Ok(());
        }
        told = Some(copies);
        tokio::time::sleep(PAUSE).await;
    }
}

fn value(name: &str, undo: bool, copies: &[v1::CopyOnNode]) -> Value {
    let copy = |copy: &v1::CopyOnNode| {
        json!({
            "volume": copy.volume,
            "snapshot": copy.snapshot,
            "state": words::state(copy.state),
            "progress": copy.progress,
            "attached": copy.attached,
        })
    };
    json!({
        "node": name,
        "evacuating": !undo,
        "copies": copies.iter().map(copy).collect::<Vec<_>>(),
    })
}

fn text(name: &str, undo: bool, copies: &[v1::CopyOnNode]) -> String {
    if undo {
        return format!("node {name} keeps its {} copies and gets new ones again\n", copies.len());
    }
    if copies.is_empty() {
        return format!(
            "node {name} has no copies left and gets none\n\
             next: stop its daemon, then: lockstep node remove {name}\n"
        );
    }
    let mut table = Table::new(&["VOLUME", "ITS COPY THERE", "WHAT IS DONE"]);
    for copy in copies {
        let mut progress = copy.progress.clone();
        if copy.attached {
            progress.push_str("; it is also attached there");
        }
        let state = words::state(copy.state).replace('_', " ");
        let what = match copy.snapshot.as_str() {
            "" => copy.volume.clone(),
            snapshot => format!("snapshot {snapshot}"),
        };
        table.row(vec![what, state, progress]);
    }
    format!(
        "node {name} is being emptied, {} of its copies are left\n{}\
         next: lockstep node evacuate {name} --wait\n",
        copies.len(),
        table.render("  ")
    )
}

/// `node remove`
pub(super) async fn remove(
    server: &Server,
    out: &Output,
    name: String,
    force: bool,
) -> Result<(), Failure> {
    let request = v1::RemoveNodeRequest { node: name.clone(), force };
    let answer = server.control().await?.remove_node(request).await?.into_inner();
    let value = json!({ "node": name, "existed": answer.existed, "volumes": answer.volumes });
    out.answer(&value, || match (answer.existed, answer.volumes.as_slice()) {
        (false, _) => format!("there was no node {name}\n"),
        (true, []) => format!("node {name} is forgotten\n"),
        (true, volumes) => format!(
            "node {name} is forgotten; these volumes had a copy there, which is built anew \
             elsewhere while they are attached: {}\nnext: lockstep status\n",
            volumes.join(", ")
        ),
    })
}

/// `node forget-pool`
pub(super) async fn forget_pool(
    server: &Server,
    out: &Output,
    node: String,
    pool: String,
) -> Result<(), Failure> {
    let request = v1::ForgetPoolRequest { node: node.clone(), pool: pool.clone() };
    let existed = server.control().await?.forget_pool(request).await?.into_inner().existed;
    let value = json!({ "node": node, "pool": pool, "existed": existed });
    out.answer(&value, || {
        if existed {
            format!(
                "pool {pool} of node {node} is forgotten; copies that were in it are built anew \
                 while their volumes are attached\nnext: start the daemon of {node}\n"
            )
        } else {
            format!("node {node} had no pool {pool}\n")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_and_what_to_do_next() {
        let copy = v1::CopyOnNode {
            volume: "vol".to_owned(),
            state: i32::from(v1::ReplicaState::InSync),
            progress: "another copy is being built on n5, 40 %".to_owned(),
            attached: true,
            snapshot: String::new(),
        };
        let kept = v1::CopyOnNode { snapshot: "s1".to_owned(), attached: false, ..copy.clone() };
        let some = text("n1", false, &[copy, kept]);
        let told = ["2 of its copies", "in sync", "n5, 40 %; it is also attached there", "--wait"];
        for part in told.into_iter().chain(["snapshot s1"]) {
            assert!(some.contains(part), "{part}: {some}");
        }
        assert!(text("n1", false, &[]).contains("lockstep node remove n1"));
        assert!(text("n1", true, &[]).contains("gets new ones again"));
    }
}
