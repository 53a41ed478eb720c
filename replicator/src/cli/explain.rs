//! `lockstep explain …`

use std::collections::BTreeSet;

use lockstep_proto::v1;
use serde_json::{Value, json};

use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::pods::Cluster;
use super::table::Table;
use super::{json, words};
use crate::config::size::Size;

/// `explain volume NAME`
pub(super) async fn volume(server: &Server, out: &Output, name: String) -> Result<(), Failure> {
    let request = v1::ExplainVolumeRequest { name };
    let mut answer = server.control().await?.explain_volume(request).await?.into_inner();
    // The record store knows, where no cluster of Kubernetes does.
    let is_labelled = answer.label.is_empty() || answer.nodes.iter().any(|node| node.labelled);
    if !is_labelled && let Some(cluster) = Cluster::infer().await {
        match cluster.labelled(&answer.label).await {
            Ok(nodes) => mark(&mut answer, &nodes),
            Err(failure) => answer.placement.push(failure.message),
        }
    }
    out.answer(&told(&answer), || text(&answer))
}

/// Says which nodes of Kubernetes have the label that leads pods to the copies.
pub(super) fn mark(answer: &mut v1::ExplainVolumeResponse, labelled: &BTreeSet<String>) {
    for node in &mut answer.nodes {
        node.labelled = labelled.contains(&node.node);
    }
}

/// Where pods run, in a sentence.
fn pods(answer: &v1::ExplainVolumeResponse) -> Option<String> {
    let label = Some(answer.label.as_str()).filter(|label| !label.is_empty())?;
    let labelled: Vec<&str> =
        answer.nodes.iter().filter(|node| node.labelled).map(|node| node.node.as_str()).collect();
    let follows = if answer.volume.as_ref().is_some_and(|volume| volume.follow) {
        "; they may run anywhere, and a copy follows a volume that stays"
    } else {
        ""
    };
    Some(match labelled.as_slice() {
        [] => format!("no controller has put the label {label} on a node{follows}"),
        some => format!("pods run on {}, by the label {label}{follows}", some.join(", ")),
    })
}

fn placement(answer: &v1::ExplainVolumeResponse) -> Vec<String> {
    answer.placement.iter().cloned().chain(pods(answer)).collect()
}

pub(super) fn told(answer: &v1::ExplainVolumeResponse) -> Value {
    let node = |node: &v1::ExplainedNode| {
        json!({
            "node": node.node,
            "zone": node.zone,
            "has_copy": node.has_copy,
            "state": node.has_copy.then(|| words::state(node.state)),
            "room_bytes": node.room_bytes,
            "fits": node.fits,
            "why": node.why,
            "labelled": node.labelled,
            "preferred": node.preferred,
            "serves": node.serves,
        })
    };
    json!({
        "volume": answer.volume.as_ref().map(json::volume),
        "nodes": answer.nodes.iter().map(node).collect::<Vec<_>>(),
        "placement": placement(answer),
        "next": answer.next,
        "next_ms": answer.next_ms,
    })
}

pub(super) fn text(answer: &v1::ExplainVolumeResponse) -> String {
    let mut text = String::new();
    if let Some(volume) = &answer.volume {
        text.push_str(&format!("volume {}: {}\n", volume.name, volume.health_reason));
    }
    for sentence in placement(answer) {
        text.push_str(&format!("  {sentence}\n"));
    }
    let mut table = Table::new(&["NODE", "ZONE", "ROOM", "PODS", "WHY"]);
    for node in &answer.nodes {
        let zone = if node.zone.is_empty() { "-" } else { node.zone.as_str() };
        table.row(vec![
            node.node.clone(),
            zone.to_owned(),
            Size(node.room_bytes).to_string(),
            if node.labelled { "yes" } else { "-" }.to_owned(),
            node.why.clone(),
        ]);
    }
    text.push_str(&format!("\n{}\nnext: {}", table.render("  "), answer.next));
    if let Some(ms) = answer.next_ms {
        text.push_str(&format!(", in {} s", ms.div_ceil(1000)));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_to_people_and_to_programs() {
        let node = v1::ExplainedNode {
            node: "n1".to_owned(),
            room_bytes: 1 << 30,
            why: "could get a copy".to_owned(),
            fits: true,
            labelled: true,
            ..Default::default()
        };
        let answer = v1::ExplainVolumeResponse {
            volume: Some(v1::VolumeStatus { name: "v".to_owned(), ..Default::default() }),
            nodes: vec![node],
            placement: vec!["2 copies are wanted".to_owned()],
            next: "waiting for a silent node".to_owned(),
            next_ms: Some(1001),
            label: "x/p-1".to_owned(),
        };
        let text = text(&answer);
        for part in ["2 copies are wanted\n", "n1    -     1 GiB  yes", "silent node, in 2 s\n"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let value = told(&answer);
        assert_eq!(value["nodes"][0]["fits"], true);
        assert_eq!(value["nodes"][0]["state"], Value::Null);
        assert_eq!(value["next_ms"], 1001);
    }

    #[test]
    fn it_says_where_pods_run() {
        let node = |name: &str| v1::ExplainedNode { node: name.to_owned(), ..Default::default() };
        let mut answer = v1::ExplainVolumeResponse {
            volume: Some(v1::VolumeStatus { name: "v".to_owned(), ..Default::default() }),
            nodes: vec![node("n1"), node("n2"), node("n3")],
            ..Default::default()
        };
        assert!(!text(&answer).contains("pods run"), "it is older than placements");
        answer.label = "x/p-1".to_owned();
        assert!(text(&answer).contains("no controller has put the label x/p-1 on a node"));
        mark(&mut answer, &["n1".to_owned(), "n3".to_owned()].into());
        assert!(text(&answer).contains("pods run on n1, n3, by the label x/p-1\n"));
        answer.volume.as_mut().unwrap().follow = true;
        let value = told(&answer);
        let said = value["placement"][0].as_str().unwrap();
        assert!(said.ends_with("a copy follows a volume that stays"), "{said}");
    }
}
