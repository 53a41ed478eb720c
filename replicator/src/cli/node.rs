//! `lockstep node …`

use lockstep_proto::v1;
use serde_json::json;

use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::{json, words};
use crate::config::size::Size;

/// `node list`
pub(super) async fn list(server: &Server, out: &Output) -> Result<(), Failure> {
    let nodes = all(server).await?;
    let value = json!({ "nodes": nodes.iter().map(json::node_status).collect::<Vec<_>>() });
    out.answer(&value, || table(&nodes))
}

/// `node show [NAME]`
pub(super) async fn show(
    server: &Server,
    out: &Output,
    name: Option<String>,
) -> Result<(), Failure> {
    let node = match name {
        None => {
            let mut control = server.control().await?;
            let info = control.get_node(v1::GetNodeRequest::default()).await?.into_inner().node;
            let info = info.ok_or_else(|| Failure::local("the daemon told nothing of itself"))?;
            let mut labels = info.labels.clone();
            // Those that were put on it are in the record store, which may be out of reach.
            if let Ok(answer) = control.label_nodes(v1::LabelNodesRequest::default()).await {
                let put = answer.into_inner().nodes.into_iter().filter(|n| n.node == info.name);
                labels.extend(put.flat_map(|node| node.labels));
            }
            v1::NodeStatus {
                labels,
                name: info.name.clone(),
                live: true,
                peer_address: info.peer_address.clone(),
                admin_address: info.admin_address.clone(),
                zone: info.zone.clone(),
                info: Some(info),
                ..Default::default()
            }
        }
        Some(name) => {
            let nodes = all(server).await?;
            let known: Vec<_> = nodes.iter().map(|n| n.name.as_str()).collect();
            let missing = format!("no node `{name}`; known are: {}", known.join(", "));
            let found = nodes.iter().find(|n| n.name == name).cloned();
            found.ok_or_else(|| Failure::not_found(missing))?
        }
    };
    out.answer(&json::node_status(&node), || details(&node))
}

async fn all(server: &Server) -> Result<Vec<v1::NodeStatus>, Failure> {
    let answer = server.control().await?.list_nodes(v1::ListNodesRequest::default()).await?;
    Ok(answer.into_inner().nodes)
}

/// One line per node.
pub(super) fn table(nodes: &[v1::NodeStatus]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "ZONE",
        "PEER ADDRESS",
        "REPLICAS",
        "ATTACHED",
        "POOLS (FREE)",
    ]);
    for node in nodes {
        let (replicas, attached, pools) = match &node.info {
            Some(info) => {
                let pool = |p: &v1::Pool| format!("{} ({})", p.name, Size(p.free_bytes));
                let pools: Vec<_> = info.pools.iter().map(pool).collect();
                (
                    info.replicas.len().to_string(),
                    info.primaries.len().to_string(),
                    if pools.is_empty() { "none".to_owned() } else { pools.join(", ") },
                )
            }
            None => ("?".to_owned(), "?".to_owned(), node.unreachable_reason.clone()),
        };
        let state = state(node);
        let (name, address) = (node.name.clone(), node.peer_address.clone());
        let zone = if node.zone.is_empty() { "-" } else { node.zone.as_str() }.to_owned();
        table.row(vec![name, state, zone, address, replicas, attached, pools]);
    }
    table.render("")
}

fn state(node: &v1::NodeStatus) -> String {
    let state = match &node.info {
        Some(info) if info.ready => "ready",
        Some(_) => "not ready",
        None => "unreachable",
    };
    let cordoned = if node.cordoned { ", cordoned" } else { "" };
    let emptied = if node.evacuating { ", being emptied" } else { "" };
    format!("{state}{cordoned}{emptied}")
}

fn details(node: &v1::NodeStatus) -> String {
    let mut text = format!(
        "node {}: {}\n  peers reach it at {}, its admin API is at {}\n",
        node.name,
        state(node),
        node.peer_address,
        node.admin_address
    );
    if !node.zone.is_empty() {
        text.push_str(&format!("  it stands in zone {}\n", node.zone));
    }
    for (key, value) in &node.labels {
        text.push_str(&format!("  label {key}={value}\n"));
    }
    let Some(info) = &node.info else {
        return format!("{text}  why: {}\n", node.unreachable_reason);
    };
    if !info.ready {
        text.push_str(&format!("  why: {}\n", info.not_ready_reason));
    }
    text.push_str(&format!("  version {}, up {} s\n", info.version, info.uptime_ms / 1000));
    let mut pools = Table::new(&["POOL", "DIRECTORY", "CAPACITY", "FREE", "PROMISED", "ROOM"]);
    for pool in &info.pools {
        let sizes = [pool.capacity_bytes, pool.free_bytes, pool.reserved_bytes];
        let sizes = sizes.into_iter().chain([pool.room_bytes]);
        let mut row = vec![pool.name.clone(), pool.dir.clone()];
        row.extend(sizes.map(|bytes| Size(bytes).to_string()));
        pools.row(row);
    }
    let mut replicas = Table::new(&["REPLICA OF", "POOL", "SIZE", "USED", "ROLE", "EPOCH", "GEN"]);
    for replica in &info.replicas {
        let role = match replica.fault.as_str() {
            "" => words::role(replica.role).to_owned(),
            fault => format!("{}: {fault}", words::role(replica.role)),
        };
        replicas.row(vec![
            replica.volume_name.clone(),
            replica.pool.clone(),
            Size(replica.size_bytes).to_string(),
            Size(replica.bytes_used).to_string(),
            role,
            replica.promised_epoch.to_string(),
            replica.r#gen.to_string(),
        ]);
    }
    let mut attached = Table::new(&["ATTACHED", "PHASE", "EPOCH", "CLIENTS", "DOOR"]);
    for primary in &info.primaries {
        attached.row(vec![
            primary.volume_name.clone(),
            words::phase(primary.phase).to_owned(),
            primary.epoch.to_string(),
            primary.clients.to_string(),
            primary.device.as_ref().map_or_else(|| primary.nbd_uri.clone(), words::device),
        ]);
    }
    let mut doors = Table::new(&["DOOR", "STATE", "WHY"]);
    for door in &info.doors {
        let state = match (door.chosen, door.usable) {
            (true, _) => "chosen",
            (false, true) => "usable",
            (false, false) => "not usable",
        };
        doors.row(vec![door.kind.clone(), state.to_owned(), door.reason.clone()]);
    }
    for table in [pools, doors, replicas, attached].iter().filter(|t| !t.is_empty()) {
        text.push('\n');
        text.push_str(&table.render("  "));
    }
    text
}
