//! On which nodes pods that use a volume may run. Where a pod may run is said by a label that its
//! volume requires of a node, for good; the label moves with the copies.
//!
//! Volumes with their copies on the same nodes share a label: they have one *placement*. So nodes
//! have as many labels as there are sets of nodes in use, not one for each volume. Should the
//! copies of such volumes part later, the label stays where all of them have one.

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// Domain of the labels. Kubernetes lets no kubelet put labels whose domain ends like this on its
/// own node (admission plugin `NodeRestriction`): a node cannot attract pods by itself.
pub const LABEL_DOMAIN: &str = "lockstep.node-restriction.kubernetes.io";
/// Value of the labels.
pub const LABEL_VALUE: &str = "replica";
const LABEL_KEY: &str = "a key is a name of 1 to 63 of A-Z a-z 0-9 - _ . that begins and ends with \
    a letter or a digit, after a domain of at most 253 bytes and a slash if need be, as in \
    example.com/rack";
const LABEL_TEXT: &str = "a value has at most 63 of A-Z a-z 0-9 - _ . and begins and ends with a \
    letter or a digit";
/// Name of a label: at most so many bytes (Kubernetes, and CSI's topology keys).
const LONGEST: usize = 63;

/// Whether a text may be the key of a label of a node, as Kubernetes has it.
///
/// # Errors
/// What is allowed.
pub fn is_label_key(key: &str) -> Result<(), &'static str> {
    let legal = match key.split_once('/') {
        Some((domain, name)) => is_domain(domain) && is_name(name),
        None => is_name(key),
    };
    if legal { Ok(()) } else { Err(LABEL_KEY) }
}

/// Whether a text may be the value of a label of a node, as Kubernetes has it.
///
/// # Errors
/// What is allowed.
pub fn is_label_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || is_name(value) { Ok(()) } else { Err(LABEL_TEXT) }
}

fn is_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    let bytes = text.as_bytes();
    let edges = edge(bytes.first()) && edge(bytes.last());
    bytes.len() <= LONGEST && edges && bytes.iter().all(inner)
}

fn is_domain(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Which set of nodes: shared by volumes that have their copies on the same ones. It never changes
/// for a volume, wherever its copies go later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlacementId(String);

impl PlacementId {
    /// An id as it was told: 1 to 63 of a-z 0-9 -, the first and the last a letter or a digit.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ok = bytes.len() <= LONGEST
            && bytes.iter().all(|b| edge(b) || *b == b'-')
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge);
        ok.then(|| Self(String::from(text)))
    }

    /// The id for copies on `nodes` that were placed as `wishes` say: always the same one, so that
    /// volumes that are made at the same time share it. If volumes elsewhere have that one by now
    /// (see [`is_shared_by`]), the next `attempt` gives another.
    #[must_use]
    pub fn derive(nodes: &BTreeSet<NodeId>, wishes: &str, attempt: u32) -> Self {
        let mut hash = Fnv::default();
        for node in nodes {
            // No byte of a node's name.
            hash.add(node.as_str().as_bytes());
            hash.add(&[0]);
        }
        hash.add(wishes.as_bytes());
        hash.add(&attempt.to_be_bytes());
        Self(format!("p-{:016x}", hash.0))
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Key of its label.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{LABEL_DOMAIN}/{}", self.0)
    }

    /// The placement of which `key` is the label, if it is one.
    #[must_use]
    pub fn of_label(key: &str) -> Option<Self> {
        Self::new(key.strip_prefix(LABEL_DOMAIN)?.strip_prefix('/')?)
    }
}

impl fmt::Display for PlacementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// FNV-1a: names need no secret. That two sets of nodes have the same one is noticed.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Whether a new volume with copies on `nodes` may share the placement of volumes whose copies are
/// on `others`: all are on the same nodes.
pub fn is_shared_by<'a>(
    nodes: &BTreeSet<NodeId>,
    others: impl IntoIterator<Item = &'a BTreeSet<NodeId>>,
) -> bool {
    others.into_iter().all(|other| other == nodes)
}

/// A volume, as far as pods that use it are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its placement.
    pub placement: PlacementId,
    /// Nodes with a copy in sync by the record, and whether it can be reached. Empty also of a
    /// volume that is being made or removed.
    pub in_sync: BTreeMap<NodeId, bool>,
    /// The node that serves it and is not fenced, also if it is silent: the volume is staged there.
    pub served: Option<NodeId>,
}

/// A node, as far as pods are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Since when it does not answer, in milliseconds before now.
    pub silent_ms: Option<u64>,
    /// Its copies are being moved away.
    pub emptied: bool,
}

/// Labels, by placement.
pub type Labels = BTreeMap<PlacementId, BTreeSet<NodeId>>;

/// Everything that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// All volumes.
    pub volumes: &'a [Resident],
    /// All nodes.
    pub nodes: &'a BTreeMap<NodeId, Site>,
    /// Which nodes have which label now.
    pub labelled: &'a Labels,
    /// How long a label stays on a node that is silent, in milliseconds.
    pub grace_ms: u64,
}

/// What is to be changed now. What follows from that is found at the next look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Labels to put on nodes.
    pub put: Labels,
    /// Labels to take off nodes: only those of placements that get none now, so that the new node
    /// has the label before the old one loses it.
    pub take: Labels,
}

impl Changes {
    /// Is all as it should be?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.take.is_empty()
    }
}

/// Decides which labels are put on which nodes, and which are taken off.
///
/// A label is wanted on the nodes where every volume of the placement has a copy that is in sync
/// and can be reached, and that are not being emptied if others are there; if there is no such
/// node, on those where most have one. It stays where one of the volumes is served, since a kubelet
/// that restarts would not mount it again; for a while on a node that is silent; on all nodes while
/// more than a third of them are silent, as the network is more likely to be broken than they are;
/// and wherever it is as long as no node is known to be better.
#[must_use]
pub fn changes(view: &View<'_>) -> Changes {
    let mut placements: BTreeMap<&PlacementId, Vec<&Resident>> = BTreeMap::new();
    for volume in view.volumes {
        placements.entry(&volume.placement).or_default().push(volume);
    }
    let mut changes = Changes::default();
    for (placement, volumes) in &placements {
        let labelled = view.labelled.get(*placement).cloned().unwrap_or_default();
        let good = view.good(volumes);
        let put: BTreeSet<NodeId> = good.difference(&labelled).cloned().collect();
        if !put.is_empty() {
            changes.put.insert((*placement).clone(), put);
            continue;
        }
        let stays = |node: &NodeId| good.contains(node) || view.stays(node, volumes, &good);
        let take: BTreeSet<NodeId> = labelled.into_iter().filter(|node| !stays(node)).collect();
        if !take.is_empty() {
            changes.take.insert((*placement).clone(), take);
        }
    }
    for (placement, nodes) in view.labelled {
        if !placements.contains_key(placement) && !nodes.is_empty() {
            changes.take.insert(placement.clone(), nodes.clone());
        }
    }
    changes
}

impl View<'_> {
    /// The nodes on which pods should run. Empty if no copy can be reached.
    fn good(&self, volumes: &[&Resident]) -> BTreeSet<NodeId> {
        let mut count: BTreeMap<&NodeId, usize> = BTreeMap::new();
        for volume in volumes {
            for (node, reached) in &volume.in_sync {
                if *reached && self.nodes.contains_key(node) {
                    *count.entry(node).or_default() += 1;
                }
            }
        }
        let stays = |node: &NodeId| self.nodes.get(node).is_some_and(|site| !site.emptied);
        if count.keys().any(|node| stays(node)) {
            count.retain(|node, _| stays(node));
        }
        // Volumes that are not there yet have no copies in sync: they ask for nothing.
        let most = count.values().copied().max().unwrap_or(0);
        let best = count.into_iter().filter(|(_, volumes)| *volumes == most);
        best.map(|(node, _)| node.clone()).collect()
    }

    /// Whether a label stays on a node that it would not be put on.
    fn stays(&self, node: &NodeId, volumes: &[&Resident], good: &BTreeSet<NodeId>) -> bool {
        let Some(site) = self.nodes.get(node) else { return false };
        if good.is_empty() || volumes.iter().any(|v| v.served.as_ref() == Some(node)) {
            return true;
        }
        let concerned = || volumes.iter().filter(|v| !v.in_sync.is_empty());
        let unsure = concerned().all(|v| v.in_sync.contains_key(node));
        let silent = self.nodes.values().filter(|site| site.silent_ms.is_some()).count();
        let briefly = site.silent_ms.is_some_and(|ms| ms < self.grace_ms);
        unsure && site.silent_ms.is_some() && (briefly || silent * 3 > self.nodes.len())
    }
}
