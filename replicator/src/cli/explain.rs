//! `lockstep explain …`

use lockstep_proto::v1;
use serde_json::{Value, json};

use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::{json, words};
use crate::config::size::Size;

/// `explain volume NAME`
pub(super) async fn volume(server: &Server, out: &Output, name: String) -> Result<(), Failure> {
    let request = v1::ExplainVolumeRequest { name };
    let answer = server.control().await?.explain_volume(request).await?.into_inner();
    out.answer(&told(&answer), || text(&answer))
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
        "placement": answer.placement,
        "next": answer.next,
        "next_ms": answer.next_ms,
    })
}

pub(super) fn text(answer: &v1::ExplainVolumeResponse) -> String {
    let mut text = String::new();
    if let Some(volume) = &answer.volume {
        text.push_str(&format!("volume {}: {}\n", volume.name, volume.health_reason));
    }
    for sentence in &answer.placement {
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
}
