//! Which pods of a node that is suspected leave it, and with which others.
//!
//! A volume that is taken from a node is taken from all pods there. So those that share volumes,
//! with each other or through others, leave together, or all of them stay.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use super::{Maker, Pod, Stays, Used};

/// Pods that leave together, and what must be fenced before any of them is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaving {
    /// Which, by their place in the list.
    pub pods: BTreeSet<usize>,
    /// Names of volumes, all of which must be fenced.
    pub volumes: BTreeSet<String>,
}

/// What to do about the pods of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// These leave, once their volumes are fenced.
    pub leave: Vec<Leaving>,
    /// These stay, by their place in the list. Those that use no volume of ours are not told of.
    pub stay: BTreeMap<usize, Stays>,
}

/// What to do about the pods of a node.
#[must_use]
pub fn plan(pods: &[Pod]) -> Plan {
    let mut plan = Plan::default();
    for set in sets(pods) {
        let stays = |at: &usize| Some((*at, stays(pods.get(*at)?)?));
        let own: BTreeMap<usize, Stays> = set.pods.iter().filter_map(stays).collect();
        if own.is_empty() {
            plan.leave.push(set);
            continue;
        }
        let beside = set.pods.iter().map(|at| (*at, Stays::Beside));
        plan.stay.extend(beside.chain(own));
    }
    plan
}

/// Whether a pod is to be made anew on a node that has lost a volume of it and is back.
#[must_use]
pub fn begins_anew(pod: &Pod) -> bool {
    !pod.ignored && !pod.ended && pod.maker != Maker::Nobody
}

/// The pods that use volumes of ours, in sets that share none.
fn sets(pods: &[Pod]) -> Vec<Leaving> {
    let mut sets: Vec<Leaving> = Vec::new();
    for (at, pod) in pods.iter().enumerate().filter(|(_, pod)| !pod.ended) {
        let ours = pod.volumes.iter().filter_map(|volume| match volume {
            Used::Ours(name) => Some(name.clone()),
            Used::Shared(_) | Used::Foreign(_) | Used::Unknown(_) => None,
        });
        let mut joined = Leaving { pods: BTreeSet::from([at]), volumes: ours.collect() };
        if joined.volumes.is_empty() {
            continue;
        }
        let shares = |set: &mut Leaving| !set.volumes.is_disjoint(&joined.volumes);
        let shared: Vec<Leaving> = sets.extract_if(.., shares).collect();
        for set in shared {
            joined.pods.extend(set.pods);
            joined.volumes.extend(set.volumes);
        }
        sets.push(joined);
    }
    sets
}

/// Why a pod that uses volumes of ours stays, whatever becomes of others.
fn stays(pod: &Pod) -> Option<Stays> {
    if pod.ignored {
        return Some(Stays::Ignored);
    }
    match pod.maker {
        Maker::Nobody => return Some(Stays::NoMaker),
        Maker::Node => return Some(Stays::OfNode),
        Maker::Controller => {}
    }
    pod.volumes.iter().find_map(|volume| match volume {
        Used::Foreign(volume) => Some(Stays::Foreign(volume.clone())),
        Used::Unknown(claim) => Some(Stays::Unknown(claim.clone())),
        Used::Ours(_) | Used::Shared(_) => None,
    })
}
