//! CreateVolume: the same name is the same volume, however often and by whomever it is asked for.

use super::source::{Found, Source};
use super::{ASKED, Controller, FS, LOCALITY, NAME, READERS, SOURCE, copies, described};
use crate::capability::Capability;
use crate::daemon::Daemons;
use crate::parameters::Parameters;
use crate::size::Range;
use crate::topology::Preference;
use crate::{names, topology, views};
use lockstep_proto::csi;
use lockstep_proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;

/// What is asked for, checked.
#[derive(Debug)]
struct Asked {
    csi_name: String,
    name: String,
    range: Range,
    min_bytes: u64,
    parameters: Parameters,
    requirement: Option<csi::TopologyRequirement>,
    source: Option<Source>,
    /// Readers on several nodes may have it.
    many: bool,
}

impl Asked {
    fn new(request: csi::CreateVolumeRequest) -> Result<Self, Status> {
        let csi_name = names::required("name", &request.name)?.to_owned();
        let capabilities = Capability::all(&request.volume_capabilities)?;
        let parameters = Parameters::new(&request.parameters, &request.mutable_parameters)?;
        let source = request.volume_content_source.as_ref().map(Source::new).transpose()?;
        let many = views::wanted(&capabilities, source.is_some(), parameters.local)?;
        let min_bytes = match &source {
            // It has what it needs already.
            Some(_) => None,
            None => capabilities.iter().map(|c| c.min_bytes(parameters.fs)).max(),
        };
        Ok(Self {
            name: names::from_csi(&csi_name),
            csi_name,
            range: Range::new(request.capacity_range.as_ref())?,
            min_bytes: min_bytes.unwrap_or_default(),
            parameters,
            requirement: request.accessibility_requirements,
            source,
            many,
        })
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let locality = if self.parameters.local { "required" } else { "preferred" };
        let mut annotations = BTreeMap::from([
            (NAME.to_owned(), self.csi_name.clone()),
            (ASKED.to_owned(), self.parameters.to_string()),
            (LOCALITY.to_owned(), locality.to_owned()),
        ]);
        if let Some(fs) = self.parameters.fs {
            annotations.insert(FS.to_owned(), fs.name().to_owned());
        }
        if let Some(source) = &self.source {
            annotations.insert(SOURCE.to_owned(), source.to_string());
        }
        if self.many {
            annotations.insert(READERS.to_owned(), views::MANY.to_owned());
        }
        annotations
    }

    /// Whether a volume that is there is the one that is asked for.
    fn compare(&self, there: &v1::VolumeStatus, nodes: &[v1::NodeStatus]) -> Result<(), Status> {
        let told = |key: &str| there.annotations.get(key).map_or("", String::as_str);
        let asked = self.parameters.to_string();
        let source = self.source.as_ref().map_or_else(String::new, Source::to_string);
        let differs = if told(NAME) != self.csi_name {
            format!("it was made by another name, {:?}", told(NAME))
        } else if told(ASKED) != asked {
            format!("parameters are {}, not {asked}", told(ASKED))
        } else if told(SOURCE) != source {
            format!("it began with {:?}, not {source:?}", told(SOURCE))
        } else if there.annotations.contains_key(READERS) != self.many {
            "one of both is for readers on several nodes, the other is not".to_owned()
        } else if !self.range.holds(there.size_bytes) {
            format!("it has {} bytes, outside of capacity_range", there.size_bytes)
        } else if self.parameters.local
            && !topology::satisfies(self.requirement.as_ref(), &copies(there), nodes)
        {
            let copies = copies(there).join(" ");
            format!("its copies are on {copies}, outside of accessibility_requirements")
        } else {
            return Ok(());
        };
        Err(Status::already_exists(format!(
            "volume {} is there already, and it differs: {differs}; choose another name",
            there.name
        )))
    }

    /// Where copies may be: they begin where their source is.
    fn preference(
        &self,
        nodes: &[v1::NodeStatus],
        source: Option<&Found>,
    ) -> Result<Preference, Status> {
        let mut preference = topology::preference(self.requirement.as_ref(), nodes)?;
        let Some(source) = source else { return Ok(preference) };
        preference.nodes.retain(|node| source.nodes.contains(node));
        if preference.required && self.parameters.local && preference.nodes.is_empty() {
            return Err(Status::resource_exhausted(format!(
                "accessibility_requirements: what the volume begins with is on {}, and none of \
                 these is in any of the requisite places",
                source.nodes.join(" ")
            )));
        }
        preference.required &= !preference.nodes.is_empty();
        Ok(preference)
    }

    /// What the daemon is asked to make. The size of a volume that is half made stays.
    fn request(
        &self,
        there: Option<&v1::VolumeStatus>,
        nodes: &[v1::NodeStatus],
        source: Option<&Found>,
    ) -> Result<v1::CreateVolumeRequest, Status> {
        let preference = self.preference(nodes, source)?;
        let parameters = &self.parameters;
        let mut request = v1::CreateVolumeRequest {
            name: self.name.clone(),
            size_bytes: match (there, source) {
                (Some(there), _) => there.size_bytes,
                (None, Some(source)) => self.range.choose_for(source.size_bytes)?,
                (None, None) => self.range.choose(self.min_bytes)?,
            },
            repl: parameters.repl,
            min_in_sync: Some(parameters.min_in_sync),
            pool: parameters.pool.clone(),
            allow_degraded: parameters.allow_degraded,
            door: parameters.door.clone(),
            write_cache: parameters.write_cache.clone(),
            require_preferred: preference.required && parameters.local,
            prefer_nodes: preference.nodes,
            spread: parameters.spread.clone(),
            thick: parameters.thick,
            follow: !parameters.local,
            max_iops: parameters.max_iops,
            max_bytes_per_s: parameters.max_bytes_per_s,
            annotations: self.annotations(),
            ..Default::default()
        };
        if let Some(source) = &self.source {
            source.ask(&mut request);
        }
        Ok(request)
    }

    async fn make(&self, daemons: &Daemons) -> Result<v1::VolumeStatus, Status> {
        let there = daemons.volume(&self.name).await?;
        let nodes = match &self.requirement {
            Some(_) => daemons.nodes().await?,
            None => Vec::new(),
        };
        if let Some(there) = &there {
            let stage = v1::VolumeStage::try_from(there.stage).unwrap_or_default();
            if stage == v1::VolumeStage::Deleting {
                daemons.delete(&self.name).await?;
                let why = format!("volume {} was just being removed; try again", self.name);
                return Err(Status::aborted(why));
            }
            // Where the copies of one that is half made are is known only when it is made.
            if stage == v1::VolumeStage::Ready {
                self.compare(there, &nodes)?;
                return Ok(there.clone());
            }
        }
        let source = match &self.source {
            // One that is half made has been begun: its source is asked for no more.
            Some(source) if there.is_none() => Some(source.find(daemons).await?),
            _ => None,
        };
        let made = daemons.create(&self.request(there.as_ref(), &nodes, source.as_ref())?).await?;
        if there.is_some() {
            // It was begun for a call that may have wanted another one.
            self.compare(&made, &nodes)?;
        }
        Ok(made)
    }
}

impl Controller {
    pub(super) async fn create(
        &self,
        request: csi::CreateVolumeRequest,
    ) -> Result<csi::Volume, Status> {
        let asked = Asked::new(request)?;
        // Refused also if nobody can be asked.
        asked.range.choose(asked.min_bytes)?;
        let (daemons, name) = (Arc::clone(&self.daemons), asked.name.clone());
        let keeper = self.keeper.clone();
        let made = async move {
            let made = asked.make(&daemons).await?;
            keeper.begin(&made).await?;
            Ok(made)
        };
        Ok(described(&self.turns.run(&name, made).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume};
    use tonic::Code;

    fn request(name: &str) -> csi::CreateVolumeRequest {
        csi::CreateVolumeRequest {
            name: name.to_owned(),
            volume_capabilities: vec![csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: 1 }),
                access_type: Some(AccessType::Block(BlockVolume {})),
            }],
            ..Default::default()
        }
    }

    fn made(asked: &Asked) -> v1::VolumeStatus {
        let made = asked.request(None, &[], None).unwrap();
        let replica = v1::VolumeReplica { node: "a".to_owned(), ..Default::default() };
        v1::VolumeStatus {
            name: made.name,
            size_bytes: made.size_bytes,
            annotations: made.annotations,
            replicas: vec![replica],
            ..Default::default()
        }
    }

    #[test]
    fn what_was_made_is_known_again_and_told_from_another() {
        let asked = Asked::new(request("v")).unwrap();
        let there = made(&asked);
        asked.compare(&there, &[]).unwrap();
        let other_size = v1::VolumeStatus { size_bytes: 1 << 40, ..there.clone() };
        asked.compare(&other_size, &[]).unwrap();

        let range = csi::CapacityRange { required_bytes: 1 << 20, limit_bytes: 1 << 20 };
        let repl = BTreeMap::from([("repl".to_owned(), "2".to_owned())]);
        let elsewhere =
            csi::TopologyRequirement { requisite: vec![topology::of_node("b")], preferred: vec![] };
        let nodes =
            ["a", "b"].map(|name| v1::NodeStatus { name: name.to_owned(), ..Default::default() });
        for (other, why) in [
            (csi::CreateVolumeRequest { capacity_range: Some(range), ..request("v") }, "bytes"),
            (csi::CreateVolumeRequest { parameters: repl, ..request("v") }, "repl=3"),
            (
                csi::CreateVolumeRequest {
                    accessibility_requirements: Some(elsewhere),
                    ..request("v")
                },
                "copies are on a",
            ),
            (request("V"), "another name"),
        ] {
            let refused = Asked::new(other).unwrap().compare(&there, &nodes).unwrap_err();
            assert_eq!(refused.code(), Code::AlreadyExists);
            assert!(refused.message().contains(why), "{why}: {}", refused.message());
        }
    }

    #[test]
    fn a_volume_that_is_half_made_keeps_its_size() {
        let asked = Asked::new(request("v")).unwrap();
        let there = v1::VolumeStatus { size_bytes: 5 << 20, ..made(&asked) };
        assert_eq!(asked.request(Some(&there), &[], None).unwrap().size_bytes, 5 << 20);
    }
}
