//! Making a volume: placement, replicas, record, in steps that a retry takes up again.

use std::collections::BTreeSet;

use futures::future::join_all;
use lockstep_core::cluster::placement::{Misfit, PlacementError, Want, choose};
use lockstep_core::id::{NodeId, ReplicaId};
use lockstep_core::record::{NewVolume, Record};
use lockstep_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use super::catalog::{Place, Stage, VolumeObject};
use super::names::{self, Wanted};
use super::peers::{DO_LIMIT, at, pass_on, within};
use super::survey::{candidates, copysets, evacuated};
use super::{Admin, refuse};

/// Attempts against others who change the same volume.
const ATTEMPTS: usize = 5;

impl Admin {
    /// Makes a volume, goes on with the making of it, or finds that it is there.
    pub(super) async fn create(
        &self,
        request: v1::CreateVolumeRequest,
    ) -> Result<v1::VolumeStatus, Status> {
        let wanted = Wanted::new(request)?;
        for _ in 0..ATTEMPTS {
            match self.create_once(&wanted).await {
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => return Err(status),
                Ok(()) => return self.look_at(&wanted.name).await,
            }
        }
        Err(Status::aborted(format!("others keep changing volume {}; try again", wanted.name)))
    }

    async fn create_once(&self, wanted: &Wanted) -> Result<(), Status> {
        let name = &wanted.name;
        let Some(found) = self.inner.catalog.volume(name).await? else {
            let places = self.place(wanted).await?;
            let object = VolumeObject::new(wanted, places);
            self.inner.catalog.put_volume(None, &object).await?;
            return Err(Status::aborted("it is begun; go on with it"));
        };
        differences(wanted, &found.value)?;
        match found.value.stage {
            Stage::Ready => return Ok(()),
            Stage::Deleting => {
                return Err(Status::failed_precondition(format!(
                    "volume {name} is being deleted; wait until it is gone"
                )));
            }
            Stage::Creating => {}
        }
        if let Err(status) = self.make_replicas(&found.value).await {
            if refuse::is_final(&status) {
                // The same again would fail again: nothing is left behind.
                if let Err(why) = self.delete(name).await {
                    tracing::warn!(volume = name, why = why.message(), "cannot clean up");
                }
            }
            return Err(status);
        }
        self.make_record(&found.value).await?;
        let object = found.value.at(Stage::Ready);
        self.inner.catalog.put_volume(Some(found.revision), &object).await?;
        tracing::info!(volume = name, uid = %object.uid, "created");
        Ok(())
    }

    /// Chooses where the copies go.
    async fn place(&self, wanted: &Wanted) -> Result<Vec<Place>, Status> {
        let survey = self.survey_all().await?;
        for node in &wanted.nodes {
            if !survey.contains_key(node.as_str()) {
                return Err(self.inner.catalog.known_node(node).await.err().unwrap_or_else(|| {
                    Status::unavailable(format!("node {node} is just joining; try again"))
                }));
            }
        }
        let mut all = candidates(&survey, &wanted.pool);
        if !wanted.nodes.is_empty() {
            all.retain(|candidate| wanted.nodes.contains(&candidate.node));
        }
        let mut want = Want {
            bytes: wanted.size_bytes,
            copies: usize::from(wanted.repl),
            pool: wanted.pool.clone(),
            prefer: wanted.nodes.is_empty().then(|| self.inner.node.clone()),
            exclude: evacuated(&survey),
            ..Want::default()
        };
        let sets = copysets(&survey);
        let mut chosen = choose(&want, &all, &sets);
        if let Err(error) = &chosen
            && wanted.allow_degraded
            && error.fits >= usize::from(wanted.min_in_sync)
        {
            want.copies = error.fits;
            chosen = choose(&want, &all, &sets);
        }
        let mut nodes = chosen.map_err(|error| no_place(wanted, survey.len(), &error))?;
        if nodes.len() == wanted.nodes.len() {
            // In the order asked for.
            nodes.clone_from(&wanted.nodes);
        }
        let place = |node| Place { rid: ReplicaId(Uuid::new_v4()), node };
        Ok(nodes.into_iter().map(place).collect())
    }

    async fn make_replicas(&self, volume: &VolumeObject) -> Result<(), Status> {
        let made = volume.placement.iter().map(|place| {
            let request = v1::CreateReplicaRequest {
                uid: volume.uid.to_string(),
                rid: place.rid.to_string(),
                lineage: volume.lineage.to_string(),
                size_bytes: volume.size_bytes,
                pool: volume.pool.clone(),
                volume_name: volume.name.clone(),
            };
            self.create_replica_on(&place.node, request)
        });
        join_all(made).await.into_iter().collect()
    }

    /// Makes a replica on whichever node.
    pub(super) async fn create_replica_on(
        &self,
        node: &NodeId,
        request: v1::CreateReplicaRequest,
    ) -> Result<(), Status> {
        if *node == self.inner.node {
            let made = self.create_own_replica(request).await;
            return made.map(drop).map_err(|status| at(node, &status));
        }
        let object = self.inner.catalog.known_node(node).await?;
        let made = within(DO_LIMIT, async {
            let mut client = self.inner.peers.client(&object)?;
            client.create_replica(pass_on(request, DO_LIMIT)).await.map(drop)
        });
        made.await.map_err(|status| at(node, &status))
    }

    async fn make_record(&self, volume: &VolumeObject) -> Result<(), Status> {
        if self.inner.catalog.record(volume.uid).await?.is_some() {
            return Ok(());
        }
        let replica = |place: &Place| (place.rid, place.node.clone(), volume.pool.clone());
        let new = NewVolume {
            uid: volume.uid,
            lineage: volume.lineage,
            blocks: names::blocks(volume.size_bytes),
            repl: volume.repl,
            min_in_sync: volume.min_in_sync,
            replicas: volume.placement.iter().map(replica).collect(),
        };
        let record = Record::create(new, Uuid::new_v4()).map_err(|e| refuse::record(&e))?;
        self.inner.catalog.put_record(None, &record).await
    }
}

/// Refuses a volume that is there under the same name but is another one.
fn differences(wanted: &Wanted, there: &VolumeObject) -> Result<(), Status> {
    let mut differ = Vec::new();
    let mut compare = |what: &str, wanted: String, there: String| {
        if wanted != there {
            differ.push(format!("{what} is {there}, not {wanted}"));
        }
    };
    compare("size_bytes", wanted.size_bytes.to_string(), there.size_bytes.to_string());
    compare("repl", wanted.repl.to_string(), there.repl.to_string());
    compare("min_in_sync", wanted.min_in_sync.to_string(), there.min_in_sync.to_string());
    compare("pool", wanted.pool.clone(), there.pool.clone());
    compare("door", wanted.door.clone(), there.door.clone());
    compare("write_cache", wanted.write_cache.clone(), there.write_cache.clone());
    if !wanted.nodes.is_empty() {
        let names = |nodes: BTreeSet<&NodeId>| {
            nodes.into_iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ")
        };
        let placed = there.placement.iter().map(|place| &place.node).collect();
        compare("nodes", names(wanted.nodes.iter().collect()), names(placed));
    }
    if differ.is_empty() {
        return Ok(());
    }
    Err(Status::already_exists(format!(
        "volume {} is there already, and it differs: {}; choose another name",
        wanted.name,
        differ.join(", ")
    )))
}

fn no_place(wanted: &Wanted, nodes: usize, error: &PlacementError) -> Status {
    let roomless = error.misfits.iter().any(|(_, m)| matches!(m, Misfit::TooFull { .. }));
    let copies = if wanted.repl == 1 { "copy" } else { "copies" };
    let hint = if wanted.allow_degraded {
        format!("at least min_in_sync = {} must fit", wanted.min_in_sync)
    } else {
        "add nodes, ask for fewer copies, or allow it to begin degraded".to_owned()
    };
    let hint = if roomless {
        format!(
            "{hint}; or make room, or let pools promise more than they have (overcommit=PERCENT of \
             --pool): what is free here is not promised to any copy"
        )
    } else {
        hint
    };
    let message = format!(
        "volume {} needs {} {copies} on as many nodes, and the cluster has {nodes}: {error}; \
         {hint}",
        wanted.name, wanted.repl
    );
    if roomless {
        Status::resource_exhausted(message)
    } else {
        Status::failed_precondition(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            name: "v".to_owned(),
            size_bytes: 1 << 20,
            repl: 2,
            min_in_sync: 1,
            pool: "default".to_owned(),
            nodes: Vec::new(),
            allow_degraded: false,
            door: names::any_door(),
            write_cache: names::volatile(),
        }
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn the_same_volume_again_is_no_conflict_and_another_one_is() {
        let place = |name| Place { rid: ReplicaId(Uuid::nil()), node: node(name) };
        let there = VolumeObject::new(&wanted(), vec![place("b"), place("a")]);
        assert!(differences(&wanted(), &there).is_ok());
        let named = Wanted { nodes: vec![node("a"), node("b")], ..wanted() };
        assert!(differences(&named, &there).is_ok(), "the order of nodes does not matter");
        for (other, part) in [
            (Wanted { size_bytes: 2 << 20, ..wanted() }, "size_bytes is 1048576, not 2097152"),
            (Wanted { repl: 3, ..wanted() }, "repl is 2, not 3"),
            (Wanted { min_in_sync: 2, ..wanted() }, "min_in_sync is 1"),
            (Wanted { pool: "fast".to_owned(), ..wanted() }, "pool is default"),
            (Wanted { nodes: vec![node("a"), node("c")], ..wanted() }, "nodes is a b, not a c"),
        ] {
            let refused = differences(&other, &there).unwrap_err();
            assert_eq!(refused.code(), Code::AlreadyExists);
            assert!(refused.message().contains(part), "{part}: {}", refused.message());
        }
    }

    #[test]
    fn a_refusal_says_how_many_nodes_there_are_and_whether_room_is_missing() {
        let error = PlacementError { wanted: 2, fits: 1, misfits: Vec::new() };
        let refused = no_place(&wanted(), 1, &error);
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("the cluster has 1"), "{}", refused.message());
        let full = Misfit::TooFull { pool: "p".into(), free_bytes: 1, needed_bytes: 2 };
        let error = PlacementError { wanted: 2, fits: 1, misfits: vec![(node("b"), full)] };
        assert_eq!(no_place(&wanted(), 2, &error).code(), Code::ResourceExhausted);
    }
}
