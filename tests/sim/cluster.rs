//! The cluster around the volume: the nodes' pools and zones, the volumes of others, and what the
//! controllers of the daemons know and remember. They decide by the same code as the daemon's.

use lockstep_core::cluster::copysets::Copysets;
use lockstep_core::cluster::placement::{Candidate, PlacementError, Want, choose};
use lockstep_core::cluster::trim::Wanted;
use lockstep_core::id::{NodeId, ReplicaId, Revision, Tick};
use std::collections::{BTreeMap, BTreeSet};

use crate::content::BLOCK;
use crate::rng::Rng;

/// The pool in which the volume's copies are.
pub const POOL: &str = "default";
/// Nodes beyond which a cluster is large: sets of nodes matter then.
const LARGE: u64 = 24;

/// How the controllers of a world look after copies.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    /// Typical time between two looks, milliseconds.
    pub pause_ms: u64,
    /// How long a silent node may take to come back, milliseconds.
    pub grace_ms: u64,
    /// How long a copy too many is kept, milliseconds.
    pub forget_ms: u64,
    /// Volumes of others.
    pub others: usize,
}

impl Keeping {
    /// Random habits.
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            pause_ms: rng.pick(&[100, 300, 1000]).unwrap_or(300),
            grace_ms: rng.pick(&[500, 2000, 6000]).unwrap_or(2000),
            forget_ms: rng.pick(&[100, 1500, 4000]).unwrap_or(1500),
            others: rng.index(20),
        }
    }

    /// Makes its cluster a large one, in which nodes share volumes with as many as they should;
    /// answers how many nodes it has.
    pub fn enlarge(&mut self, rng: &mut Rng) -> usize {
        self.others = 40 + rng.index(80);
        usize::try_from(rng.between(LARGE, LARGE + 3)).unwrap_or(24)
    }
}

/// What the controllers of a primary's node remember while it is there.
#[derive(Debug, Default)]
pub struct Memory {
    /// Since when a node is silent, or its copy is not reached.
    pub silent: BTreeMap<NodeId, Tick>,
    /// Since when a copy is one too many.
    pub surplus: BTreeMap<ReplicaId, Tick>,
    /// What is being done, in words.
    pub told: String,
    /// The record, and the wishes, about which nothing was left to do.
    pub calm: Option<(Revision, u64)>,
}

/// What is known of the cluster.
#[derive(Debug)]
pub struct Cluster {
    /// How its controllers behave; if not at all, copies are looked after at random.
    pub keeping: Option<Keeping>,
    /// The pool of each node.
    pub pools: Vec<Candidate>,
    /// Which nodes hold the volumes of others.
    pub sets: Copysets,
    /// Copies that the owner wants.
    pub wanted: Wanted,
    /// Nodes that are being emptied.
    pub leaving: BTreeSet<usize>,
    /// Nodes that were removed from the cluster, until they start again.
    pub removed: BTreeSet<usize>,
    /// Copies whose files are to go.
    pub gone: BTreeSet<(usize, ReplicaId)>,
    /// Counts what was wanted of it.
    pub wishes: u64,
    /// By primary.
    pub memories: BTreeMap<u64, Memory>,
}

impl Cluster {
    /// A cluster of these nodes in which a copy of so many blocks fits almost everywhere.
    pub fn draw(
        nodes: &[NodeId],
        keeping: Option<Keeping>,
        wanted: Wanted,
        blocks: u64,
        rng: &mut Rng,
    ) -> Self {
        let zones = rng.pick(&[0, 1, 2, 3, 5]).unwrap_or(0);
        let needed = blocks * BLOCK as u64;
        let pool = |(at, node): (usize, &NodeId)| {
            let total = needed * rng.between(4, 40);
            let tight = at >= usize::from(wanted.repl) && rng.chance(100);
            let free = if tight { needed - 1 } else { rng.between(needed * 2, total) };
            let other = at >= usize::from(wanted.repl) && rng.chance(50);
            Candidate {
                node: node.clone(),
                pool: if other { "slow".to_owned() } else { POOL.to_owned() },
                free_bytes: free,
                total_bytes: total,
                zone: (zones > 0).then(|| format!("z{}", rng.below(zones))),
                live: true,
                cordoned: false,
                replicas: u32::try_from(rng.below(5)).unwrap_or(0),
            }
        };
        let pools = nodes.iter().enumerate().map(pool).collect();
        Self {
            keeping,
            pools,
            sets: Copysets::default(),
            wanted,
            leaving: BTreeSet::new(),
            removed: BTreeSet::new(),
            gone: BTreeSet::new(),
            wishes: 0,
            memories: BTreeMap::new(),
        }
    }

    /// Other things are wanted: whoever had nothing left to do has to look again.
    pub fn stir(&mut self) {
        self.wishes += 1;
    }

    /// The volumes of others get their copies.
    ///
    /// # Errors
    /// If one is placed badly.
    pub fn settle_others(&mut self, rng: &mut Rng) -> Result<(), String> {
        for _ in 0..self.keeping.map_or(0, |k| k.others) {
            let near = rng.index(self.pools.len());
            let want = Want {
                bytes: 1,
                copies: rng.index(4) + 1,
                pool: POOL.to_owned(),
                prefer: rng.chance(500).then(|| self.pools[near].node.clone()),
                ..Want::default()
            };
            let Ok(chosen) = choose(&want, &self.pools, &self.sets) else { continue };
            is_spread(&want, &self.pools, &chosen)?;
            self.sets.note(&chosen);
            for pool in self.pools.iter_mut().filter(|p| chosen.contains(&p.node)) {
                pool.replicas += 1;
            }
        }
        Ok(())
    }

    /// Where the volume begins: on as many nodes as wanted, or as fit.
    ///
    /// # Errors
    /// If it is placed badly.
    pub fn create(&self, blocks: u64, rng: &mut Rng) -> Result<Vec<NodeId>, String> {
        let mut want = Want {
            bytes: blocks * BLOCK as u64,
            copies: usize::from(self.wanted.repl),
            pool: POOL.to_owned(),
            prefer: rng.pick(&self.pools).map(|pool| pool.node),
            ..Want::default()
        };
        let chosen = choose(&want, &self.pools, &self.sets).or_else(|error: PlacementError| {
            want.copies = error.fits;
            choose(&want, &self.pools, &self.sets)
        });
        let chosen = chosen.map_err(|error| error.to_string())?;
        is_spread(&want, &self.pools, &chosen)?;
        Ok(chosen)
    }
}

/// Is each copy on another node that fits, and are they in as many zones as can be?
///
/// # Errors
/// Says what is wrong.
pub fn is_spread(want: &Want, pools: &[Candidate], chosen: &[NodeId]) -> Result<(), String> {
    let fits = |c: &&Candidate| {
        let free = c.live && c.pool == want.pool && c.free_bytes >= want.bytes;
        free && !want.beside.contains(&c.node) && !want.exclude.contains(&c.node)
    };
    let fitting: Vec<&Candidate> = pools.iter().filter(fits).collect();
    let nodes: BTreeSet<&NodeId> = chosen.iter().collect();
    if nodes.len() != want.copies || !nodes.iter().all(|n| fitting.iter().any(|c| c.node == **n)) {
        return Err(format!("{chosen:?} are chosen for {want:?}"));
    }
    let zones_of = |is: &dyn Fn(&Candidate) -> bool| -> BTreeSet<Option<&str>> {
        pools.iter().filter(|c| is(c)).map(|c| c.zone.as_deref()).collect()
    };
    let here = |c: &Candidate| c.pool == want.pool;
    let preferred = fitting.iter().find(|c| want.prefer.as_ref() == Some(&c.node));
    let mut possible = zones_of(&|c| here(c) && want.beside.contains(&c.node));
    possible.extend(preferred.filter(|_| want.copies > 0).map(|c| c.zone.as_deref()));
    let left = want.copies - usize::from(preferred.is_some()).min(want.copies);
    let open: BTreeSet<Option<&str>> = fitting.iter().map(|c| c.zone.as_deref()).collect();
    let possible = possible.len() + open.difference(&possible).count().min(left);
    let found =
        zones_of(&|c| here(c) && (want.beside.contains(&c.node) || chosen.contains(&c.node)));
    if found.len() < possible {
        return Err(format!("{chosen:?} are in {} zones of {possible}: {want:?}", found.len()));
    }
    Ok(())
}
