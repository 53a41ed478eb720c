//! Making a volume: placement, replicas, record, in steps that a retry takes up again.

use std::collections::BTreeSet;

use futures::future::join_all;
use lockstep_core::cluster::copysets::Copysets;
use lockstep_core::cluster::locality::{PlacementId, is_shared_by};
use lockstep_core::cluster::placement::{Candidate, Misfit, PlacementError, Want, choose};
use lockstep_core::id::{NodeId, ReplicaId};
use lockstep_core::record::{NewVolume, Record};
use lockstep_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use uuid::Uuid;

use super::catalog::{Origin, Place, SnapshotObject, Stage, VolumeObject};
use super::names::{self, Source, Wanted};
use super::peers::{DO_LIMIT, at, pass_on, within};
use super::snapshots::taken_for;
use super::survey::{Survey, candidates, copysets, evacuated};
use super::{Admin, refuse};

/// Attempts against others who change the same volume.
const ATTEMPTS: usize = 5;
/// Ids tried until one is not that of volumes that have moved elsewhere. If none is found in so
/// many, the last one is taken: its label is then where most of its volumes have a copy.
const PLACEMENT_ATTEMPTS: u32 = 64;

impl Admin {
    /// Makes a volume, goes on with the making of it, or finds that it is there. Once `gone` is
    /// cancelled its caller is gone, who may have asked again since, and then had the volume
    /// removed: no volume is begun any more.
    pub(super) async fn create_for(
        &self,
        request: v1::CreateVolumeRequest,
        gone: &CancellationToken,
    ) -> Result<v1::VolumeStatus, Status> {
        let wanted = Wanted::new(request)?;
        for _ in 0..ATTEMPTS {
            match self.create_once(&wanted, gone).await {
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => {
                    if refuse::is_final(&status) {
                        self.forget_source(&wanted).await;
                    }
                    return Err(status);
                }
                Ok(()) => return self.look_at(&wanted.name).await,
            }
        }
        Err(Status::aborted(format!("others keep changing volume {}; try again", wanted.name)))
    }

    /// Begins a volume that is not there.
    async fn begin_volume(&self, wanted: &Wanted, gone: &CancellationToken) -> Result<(), Status> {
        still_wanted(gone)?;
        let source = self.source_of(wanted).await?;
        let wanted = &match &source {
            Some(source) => fitted(wanted, source)?,
            None => wanted.clone(),
        };
        let survey = self.survey_all().await?;
        let places = self.place(wanted, source.as_ref(), &survey).await?;
        let mut object = VolumeObject::new(wanted, places);
        object.placement_id = Some(self.placement_id(&object, &survey).await?);
        object.origin = source.map(|source| Origin {
            name: wanted.source.as_ref().map_or_else(String::new, |s| s.name().to_owned()),
            snapshot: source.uid,
            r#gen: source.r#gen,
        });
        // All this may have taken long.
        still_wanted(gone)?;
        self.inner.catalog.put_volume(None, &object).await
    }

    async fn create_once(&self, wanted: &Wanted, gone: &CancellationToken) -> Result<(), Status> {
        let name = &wanted.name;
        let Some(found) = self.inner.catalog.volume(name).await? else {
            self.begin_volume(wanted, gone).await?;
            return Err(Status::aborted("it is begun; go on with it"));
        };
        differences(wanted, &found.value)?;
        match found.value.stage {
            Stage::Ready => {
                // Taken here while somebody else made the volume.
                self.forget_source(wanted).await;
                return Ok(());
            }
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
        self.forget_source(wanted).await;
        Ok(())
    }

    /// The snapshot that a volume begins with. If it begins with a volume, one is taken for it.
    async fn source_of(&self, wanted: &Wanted) -> Result<Option<SnapshotObject>, Status> {
        let (name, is_own) = match &wanted.source {
            None => return Ok(None),
            Some(Source::Snapshot(name)) => (name.clone(), false),
            Some(Source::Volume(volume)) => {
                let request = v1::CreateSnapshotRequest {
                    volume: volume.clone(),
                    name: String::new(),
                    made_for: wanted.name.clone(),
                };
                self.create_snapshot(&request, false).await?;
                (taken_for(&wanted.name), true)
            }
        };
        let found = self.inner.catalog.snapshot(&name).await?.map(|stored| stored.value);
        match found {
            Some(snapshot) if snapshot.stage == Stage::Ready => Ok(Some(snapshot)),
            _ if is_own => Err(Status::aborted(format!(
                "what was taken for volume {} is gone: somebody else has made or removed it \
                 meanwhile; try again",
                wanted.name
            ))),
            Some(_) => Err(Status::failed_precondition(format!(
                "snapshot {name} is being taken or deleted; wait until that is done"
            ))),
            None => Err(Status::not_found(format!(
                "there is no snapshot `{name}`; `lockstep snapshot list` shows them"
            ))),
        }
    }

    /// Removes the snapshot that was taken for a volume which is made by now, or is not to be.
    async fn forget_source(&self, wanted: &Wanted) {
        let name = &wanted.name;
        if !matches!(wanted.source, Some(Source::Volume(_))) {
            return;
        }
        let forgotten = async {
            // Another call may be about to make it.
            match self.inner.catalog.volume(name).await? {
                Some(found) if found.value.stage == Stage::Creating => Ok(false),
                _ => self.remove_snapshot(&taken_for(name)).await,
            }
        };
        if let Err(status) = forgotten.await {
            tracing::warn!(volume = name, why = status.message(), "its source is removed later");
        }
    }

    /// Chooses where the copies go.
    async fn place(
        &self,
        wanted: &Wanted,
        source: Option<&SnapshotObject>,
        survey: &Survey,
    ) -> Result<Vec<Place>, Status> {
        for node in &wanted.nodes {
            if !survey.contains_key(node.as_str()) {
                return Err(self.inner.catalog.known_node(node).await.err().unwrap_or_else(|| {
                    Status::unavailable(format!("node {node} is just joining; try again"))
                }));
            }
        }
        let mut all = candidates(survey, &wanted.pool, &wanted.spread);
        if let Some(source) = source {
            all.retain(|candidate| source.nodes.contains(&candidate.node));
        }
        if !wanted.nodes.is_empty() {
            all.retain(|candidate| wanted.nodes.contains(&candidate.node));
        }
        let mut want = Want {
            bytes: wanted.size_bytes,
            copies: usize::from(wanted.repl),
            pool: wanted.pool.clone(),
            prefer: wanted.nodes.is_empty().then(|| self.inner.node.clone()),
            exclude: evacuated(survey),
            ..Want::default()
        };
        let sets = copysets(survey);
        let mut chosen = choose_preferred(wanted, &mut want, &all, &sets);
        if let Ok(Err(error)) = &chosen
            // Copies begin where the snapshot is; what is missing is built when it is attached.
            && (wanted.allow_degraded || source.is_some())
            && error.fits >= usize::from(wanted.min_in_sync)
        {
            want.copies = error.fits;
            chosen = choose_preferred(wanted, &mut want, &all, &sets);
        }
        let chosen = chosen?;
        let mut nodes = chosen.map_err(|error| no_place(wanted, survey.len(), &error))?;
        if nodes.len() == wanted.nodes.len() {
            // In the order asked for.
            nodes.clone_from(&wanted.nodes);
        }
        let place = |node| Place { rid: ReplicaId(Uuid::new_v4()), node };
        Ok(nodes.into_iter().map(place).collect())
    }

    /// The placement of a new volume: that of others whose copies are on the same nodes and were
    /// placed by the same wishes, or a new one.
    async fn placement_id(
        &self,
        volume: &VolumeObject,
        survey: &Survey,
    ) -> Result<PlacementId, Status> {
        let nodes = placed(volume);
        let wishes = format!("{} {} {}", volume.pool, volume.repl, volume.spread);
        let others = self.inner.catalog.volumes().await?;
        let mut id = PlacementId::derive(&nodes, &wishes, 0);
        for attempt in 1..=PLACEMENT_ATTEMPTS {
            let same = others.iter().filter(|other| other.placement_id.as_ref() == Some(&id));
            let elsewhere: Vec<_> = same.map(|other| whereabouts(other, survey)).collect();
            if is_shared_by(&nodes, &elsewhere) {
                break;
            }
            id = PlacementId::derive(&nodes, &wishes, attempt);
        }
        Ok(id)
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
                snapshot_uid: volume
                    .origin
                    .as_ref()
                    .map_or_else(String::new, |o| o.snapshot.to_string()),
                thick: volume.thick,
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
        let record = match &volume.origin {
            Some(origin) => record.begun_after(origin.r#gen),
            None => record,
        };
        self.inner.catalog.put_record(None, &record).await
    }
}

/// Whether somebody waits for what is about to be begun.
fn still_wanted(gone: &CancellationToken) -> Result<(), Status> {
    if gone.is_cancelled() {
        return Err(Status::cancelled("whoever asked for it is gone: nothing is begun"));
    }
    Ok(())
}

/// Where the first copies of a volume are made.
fn placed(volume: &VolumeObject) -> BTreeSet<NodeId> {
    volume.placement.iter().map(|place| place.node.clone()).collect()
}

/// The nodes that have a copy of a volume, as far as they tell.
fn whereabouts(volume: &VolumeObject, survey: &Survey) -> BTreeSet<NodeId> {
    if volume.stage == Stage::Creating {
        return placed(volume);
    }
    let uid = volume.uid.to_string();
    let has = |status: &&v1::NodeStatus| {
        status.info.iter().flat_map(|info| &info.replicas).any(|replica| replica.uid == uid)
    };
    survey.values().filter(has).filter_map(|status| NodeId::new(&status.name)).collect()
}

/// Chooses nodes so that a copy is on the first preferred one that fits.
fn choose_preferred(
    wanted: &Wanted,
    want: &mut Want,
    all: &[Candidate],
    sets: &Copysets,
) -> Result<Result<Vec<NodeId>, PlacementError>, Status> {
    for node in &wanted.prefer {
        want.prefer = Some(node.clone());
        let chosen = choose(want, all, sets);
        if chosen.as_ref().is_ok_and(|nodes| nodes.contains(node)) {
            return Ok(chosen);
        }
    }
    let chosen = choose(want, all, sets);
    match &chosen {
        Ok(nodes)
            if wanted.require_preferred && !wanted.prefer.iter().any(|n| nodes.contains(n)) =>
        {
            let names: Vec<_> = wanted.prefer.iter().map(NodeId::as_str).collect();
            Err(Status::resource_exhausted(format!(
                "volume {} needs a copy on one of {}, and none of them has room for it in pool {}; \
                 make room there, or prefer other nodes",
                wanted.name,
                names.join(" "),
                wanted.pool
            )))
        }
        _ => Ok(chosen),
    }
}

/// What is wanted, as far as it follows from the snapshot that it begins with.
fn fitted(wanted: &Wanted, source: &SnapshotObject) -> Result<Wanted, Status> {
    let mut wanted = wanted.clone();
    if wanted.size_bytes == 0 {
        wanted.size_bytes = source.size_bytes;
    }
    if wanted.size_bytes < source.size_bytes {
        return Err(Status::out_of_range(format!(
            "size_bytes = {}: what volume {} begins with has {}; ask for as much or more",
            wanted.size_bytes, wanted.name, source.size_bytes
        )));
    }
    if wanted.pool.is_empty() {
        wanted.pool.clone_from(&source.pool);
    }
    let elsewhere = wanted.nodes.iter().find(|node| !source.nodes.contains(node));
    if wanted.pool != source.pool || elsewhere.is_some() {
        let nodes: Vec<&str> = source.nodes.iter().map(NodeId::as_str).collect();
        return Err(Status::failed_precondition(format!(
            "what volume {} begins with is in pool {} of nodes {}; its copies are made there, and \
             can be moved later",
            wanted.name,
            source.pool,
            nodes.join(" ")
        )));
    }
    Ok(wanted)
}

/// Refuses a volume that is there under the same name but is another one.
fn differences(wanted: &Wanted, there: &VolumeObject) -> Result<(), Status> {
    let mut differ = Vec::new();
    let mut compare = |what: &str, wanted: String, there: String| {
        if wanted != there {
            differ.push(format!("{what} is {there}, not {wanted}"));
        }
    };
    let source = wanted.source.as_ref().map_or("", |source| source.name());
    let origin = there.origin.as_ref().map_or("", |origin| origin.name.as_str());
    compare("source", source.to_owned(), origin.to_owned());
    if wanted.size_bytes > 0 {
        compare("size_bytes", wanted.size_bytes.to_string(), there.size_bytes.to_string());
    }
    compare("repl", wanted.repl.to_string(), there.repl.to_string());
    compare("min_in_sync", wanted.min_in_sync.to_string(), there.min_in_sync.to_string());
    if !wanted.pool.is_empty() {
        compare("pool", wanted.pool.clone(), there.pool.clone());
    }
    compare("door", wanted.door.clone(), there.door.clone());
    compare("spread", wanted.spread.clone(), there.spread.clone());
    compare("limits", format!("{:?}", wanted.limits), format!("{:?}", there.limits));
    compare("thick", wanted.thick.to_string(), there.thick.to_string());
    compare("follow", wanted.follow.to_string(), there.follow.to_string());
    compare("write_cache", wanted.write_cache.clone(), there.write_cache.clone());
    compare("annotations", format!("{:?}", wanted.annotations), format!("{:?}", there.annotations));
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
    let silent = error.misfits.iter().filter(|(_, m)| matches!(m, Misfit::Silent)).count();
    // Copies begin where the snapshot is; what is missing is built when it is attached.
    let enough = if wanted.allow_degraded || wanted.source.is_some() {
        usize::from(wanted.min_in_sync)
    } else {
        usize::from(wanted.repl)
    };
    if silent > 0 && error.fits + silent >= enough {
        // Nobody has to do anything if they are just being restarted.
        let why = match &wanted.source {
            Some(_) => "what it begins with is on nodes of which some do not answer",
            None => "some nodes do not answer",
        };
        return Status::unavailable(format!(
            "volume {}: {why}: {error}; try again when they do, or {hint}",
            wanted.name
        ));
    }
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
    use std::collections::BTreeMap;

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
            prefer: Vec::new(),
            require_preferred: false,
            annotations: BTreeMap::new(),
            spread: names::zone_label(),
            follow: false,
            thick: false,
            limits: crate::admin::catalog::Limits::default(),
            source: None,
        }
    }

    fn candidate(name: &str, free_bytes: u64) -> Candidate {
        Candidate {
            node: node(name),
            pool: "default".to_owned(),
            free_bytes,
            total_bytes: 1 << 30,
            zone: None,
            live: true,
            replicas: 0,
            cordoned: false,
        }
    }

    #[test]
    fn a_copy_goes_to_the_first_preferred_node_with_room() {
        let all = [candidate("a", 1 << 30), candidate("b", 0), candidate("c", 1 << 29)];
        let chosen = |prefer: &[&str], require_preferred| {
            let prefer = prefer.iter().map(|name| node(name)).collect();
            let wanted = Wanted { prefer, require_preferred, repl: 1, ..wanted() };
            let mut want = Want {
                bytes: wanted.size_bytes,
                copies: 1,
                pool: wanted.pool.clone(),
                ..Want::default()
            };
            choose_preferred(&wanted, &mut want, &all, &Copysets::default())
        };
        assert_eq!(chosen(&["c", "a"], true).unwrap().unwrap(), [node("c")]);
        assert_eq!(chosen(&["b", "c"], true).unwrap().unwrap(), [node("c")]);
        assert_eq!(chosen(&["b"], false).unwrap().unwrap(), [node("a")]);
        let refused = chosen(&["b", "x"], true).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("one of b x"), "{}", refused.message());
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

    #[test]
    fn nodes_that_do_not_answer_are_waited_for_if_they_may_be_enough() {
        let refused = |wanted: &Wanted, fits| {
            let misfits = vec![(node("b"), Misfit::Silent)];
            no_place(wanted, 2, &PlacementError { wanted: 2, fits, misfits }).code()
        };
        assert_eq!(refused(&wanted(), 1), Code::Unavailable);
        assert_eq!(refused(&wanted(), 0), Code::FailedPrecondition);
        let degraded = Wanted { allow_degraded: true, ..wanted() };
        assert_eq!(refused(&degraded, 0), Code::Unavailable);
    }
}
