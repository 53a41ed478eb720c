//! `lockstep whatif …`

use std::collections::BTreeMap;

use lockstep_proto::v1;
use serde_json::{Value, json};

use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::pods::{Bound, Cluster, Found};
use super::table::Table;
use crate::config::size::Size;

/// What is known of a node that might die.
struct Loss {
    node: String,
    answer: v1::WhatIfNodeDownResponse,
    /// Pods there, by volume. Absent: no cluster of Kubernetes tells.
    pods: Option<BTreeMap<String, Vec<String>>>,
    /// Bytes in a second that a node takes in.
    rate: u64,
}

/// `whatif node-down NODE`
pub(super) async fn node_down(
    server: &Server,
    out: &Output,
    node: String,
    rate: u64,
) -> Result<(), Failure> {
    if rate == 0 {
        return Err(Failure::usage("--rate 0: a node that takes in nothing never ends; give more"));
    }
    let request = v1::WhatIfNodeDownRequest { node: node.clone() };
    let answer = server.control().await?.what_if_node_down(request).await?.into_inner();
    let pods = match Cluster::infer().await {
        Some(cluster) => Some(by_volume(&cluster.pods_on(&node).await?)),
        None => None,
    };
    let loss = Loss { node, answer, pods, rate };
    out.answer(&loss.told(), || loss.text())
}

fn by_volume(pods: &[Found]) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for pod in pods {
        for claim in &pod.claims {
            if let Bound::Volume(volume) = &claim.bound {
                let name = format!("{}/{}", pod.namespace, pod.name);
                all.entry(volume.clone()).or_default().push(name);
            }
        }
    }
    all
}

impl Loss {
    fn pods(&self, volume: &str) -> &[String] {
        let found = self.pods.as_ref().and_then(|pods| pods.get(volume));
        found.map_or(&[], Vec::as_slice)
    }

    /// What each node takes in.
    fn by_node(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for volume in self.answer.volumes.iter().filter(|volume| !volume.rebuilt_on.is_empty()) {
            *all.entry(volume.rebuilt_on.as_str()).or_default() += volume.rebuild_bytes;
        }
        all
    }

    fn bytes(&self) -> u64 {
        self.by_node().values().sum()
    }

    /// Nodes rebuild side by side: as long as the one with the most.
    fn seconds(&self) -> u64 {
        self.by_node().values().max().map_or(0, |most| most.div_ceil(self.rate))
    }

    fn told(&self) -> Value {
        let volume = |volume: &v1::VolumeWithoutNode| {
            json!({
                "volume": volume.name,
                "served_there": volume.served_there,
                "copy_there": volume.copy_there,
                "pods": self.pods.as_ref().map(|_| self.pods(&volume.name)),
                "left": volume.left,
                "repl": volume.repl,
                "min_in_sync": volume.min_in_sync,
                "serves": volume.serves,
                "next": volume.next,
                "rebuilt_on": (!volume.rebuilt_on.is_empty()).then_some(&volume.rebuilt_on),
                "rebuild_bytes": volume.rebuild_bytes,
            })
        };
        json!({
            "node": self.node,
            "volumes": self.answer.volumes.iter().map(volume).collect::<Vec<_>>(),
            "grace_ms": self.answer.grace_ms,
            "rebuild_bytes": self.bytes(),
            "rebuild_seconds": self.seconds(),
        })
    }

    fn text(&self) -> String {
        if self.answer.volumes.is_empty() {
            return format!("nothing: node {} has no copy and serves no volume\n", self.node);
        }
        let mut table = Table::new(&["VOLUME", "PODS", "GO TO", "COPIES", "THEN"]);
        for volume in &self.answer.volumes {
            table.row(self.row(volume));
        }
        let stops = self.answer.volumes.iter().filter(|volume| !volume.serves).count();
        let all = self.answer.volumes.len();
        let minutes = self.seconds().div_ceil(60);
        let rebuilt = match self.bytes() {
            0 => "nothing is rebuilt".to_owned(),
            bytes => format!(
                "after {} s, {} are rebuilt on {} nodes, in some {minutes} min at {} a second each",
                self.answer.grace_ms.div_ceil(1000),
                Size(bytes),
                self.by_node().len(),
                Size(self.rate)
            ),
        };
        format!(
            "if node {} died: {} of {all} volumes go on, {stops} stop; {rebuilt}\n\n{}",
            self.node,
            all - stops,
            table.render("")
        )
    }

    fn row(&self, volume: &v1::VolumeWithoutNode) -> Vec<String> {
        let pods = match self.pods(&volume.name) {
            [] if volume.served_there => "served there".to_owned(),
            [] => "-".to_owned(),
            pods => pods.join(", "),
        };
        let moves = volume.served_there || !self.pods(&volume.name).is_empty();
        let go = match (moves, volume.serves) {
            (_, false) => "nowhere: too few copies are left".to_owned(),
            (true, true) => volume.left.join(" or "),
            (false, true) => "-".to_owned(),
        };
        let copies =
            format!("{} of {}, {} needed", volume.left.len(), volume.repl, volume.min_in_sync);
        vec![volume.name.clone(), pods, go, copies, volume.next.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, left: &[&str], on: &str, bytes: u64) -> v1::VolumeWithoutNode {
        v1::VolumeWithoutNode {
            name: name.to_owned(),
            served_there: true,
            copy_there: true,
            left: left.iter().map(|node| (*node).to_owned()).collect(),
            repl: 3,
            min_in_sync: 2,
            serves: left.len() >= 2,
            next: "so".to_owned(),
            rebuilt_on: on.to_owned(),
            rebuild_bytes: bytes,
        }
    }

    fn loss() -> Loss {
        let volumes = vec![
            volume("a", &["n2", "n3"], "n4", 6000 << 20),
            volume("b", &["n2", "n3"], "n5", 600 << 20),
            volume("c", &["n2"], "", 0),
        ];
        Loss {
            node: "n1".to_owned(),
            answer: v1::WhatIfNodeDownResponse { volumes, grace_ms: 600_000 },
            pods: Some(BTreeMap::from([("a".to_owned(), vec!["default/db-0".to_owned()])])),
            rate: 100 << 20,
        }
    }

    #[test]
    fn nodes_rebuild_side_by_side() {
        let loss = loss();
        assert_eq!((loss.bytes(), loss.seconds()), (6600 << 20, 60));
        assert_eq!(loss.told()["rebuild_seconds"], 60);
        assert_eq!(loss.told()["volumes"][2]["rebuilt_on"], Value::Null);
    }

    #[test]
    fn people_are_told_what_goes_where() {
        let text = loss().text();
        for part in [
            "if node n1 died: 2 of 3 volumes go on, 1 stop; after 600 s, 6.4 GiB are rebuilt on 2",
            "a       default/db-0  n2 or n3",
            "b       served there  n2 or n3",
            "nowhere: too few copies are left",
            "1 of 3, 2 needed",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let nothing = Loss { answer: v1::WhatIfNodeDownResponse::default(), ..loss() };
        assert!(nothing.text().starts_with("nothing: node n1"));
    }
}
