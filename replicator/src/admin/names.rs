//! Checks of what callers send.

use std::collections::BTreeMap;

use lockstep_attach::device::Choice;
use lockstep_core::cluster::locality::is_label_key;
use lockstep_core::id::{Lineage, NodeId, ReplicaId, SnapshotId, VolumeId};
use lockstep_core::limits::{MAX_REPL, MAX_VOLUME_BLOCKS};
use lockstep_core::range::BLOCK_SIZE;
use lockstep_proto::v1;
use tonic::Status;
use uuid::Uuid;

use super::catalog::Limits;
use crate::config::labels::ZONE_LABEL;
use crate::config::size::Size;

/// Volumes are made of whole pieces of this size.
const VOLUME_UNIT_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// What is kept with a volume for its maker must fit into one object of the record store.
const ANNOTATIONS_MAX: usize = 32;
const ANNOTATION_BYTES_MAX: usize = 8 << 10;

/// The pool that is meant if none is named.
pub(super) const DEFAULT_POOL: &str = "default";

/// What a caller wants a volume to be, checked and with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) repl: u8,
    pub(super) min_in_sync: u8,
    pub(super) pool: String,
    /// Where its copies are to be; empty: anywhere.
    pub(super) nodes: Vec<NodeId>,
    pub(super) allow_degraded: bool,
    pub(super) door: String,
    pub(super) write_cache: String,
    /// One copy goes to the first of these that has room.
    pub(super) prefer: Vec<NodeId>,
    /// It has to.
    pub(super) require_preferred: bool,
    /// Of whoever made it.
    pub(super) annotations: BTreeMap<String, String>,
    /// What it begins with, if not empty. Then `size_bytes` is 0 if it is to have the same size,
    /// and `pool` is empty if it is to be in the same one.
    pub(super) source: Option<Source>,
    /// Label of nodes over whose values its copies are spread.
    pub(super) spread: String,
    /// A copy goes where it is served.
    pub(super) follow: bool,
    /// Its copies take all their space when they are made.
    pub(super) thick: bool,
    /// How fast it may be used.
    pub(super) limits: Limits,
}

/// What a volume begins with, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Snapshot(String),
    Volume(String),
}

impl Source {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Snapshot(name) | Self::Volume(name) => name,
        }
    }
}

impl Wanted {
    /// Checks a request to make a volume.
    pub(super) fn new(request: v1::CreateVolumeRequest) -> Result<Self, Status> {
        let name = volume_name(&request.name)?.to_owned();
        let source = match (request.source_snapshot.as_str(), request.source_volume.as_str()) {
            ("", "") => None,
            (snapshot, "") => Some(Source::Snapshot(volume_name(snapshot)?.to_owned())),
            ("", volume) => Some(Source::Volume(volume_name(volume)?.to_owned())),
            _ => {
                let why = "source_snapshot and source_volume: a volume begins with one of them";
                return Err(Status::invalid_argument(why));
            }
        };
        let same_size = source.is_some() && request.size_bytes == 0;
        let size_bytes = if same_size { 0 } else { size(request.size_bytes)? };
        let repl = match request.repl {
            0 => 3,
            n => u8::try_from(n).ok().filter(|n| *n <= MAX_REPL).ok_or_else(|| {
                Status::invalid_argument(format!("repl = {n}: 1 to {MAX_REPL} are allowed"))
            })?,
        };
        let min_in_sync = match request.min_in_sync {
            None => repl.min(if repl <= 2 { 1 } else { 2 }),
            Some(n) => {
                u8::try_from(n).ok().filter(|n| (1..=repl).contains(n)).ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "min_in_sync = {n}: 1 to {repl}, the number of copies, are allowed"
                    ))
                })?
            }
        };
        let (nodes, prefer) = places(&request, repl)?;
        let same_pool = source.is_some() && request.pool.is_empty();
        let pool = if same_pool { String::new() } else { pool(&request.pool) };
        let allow_degraded = request.allow_degraded;
        let or_default = |text: String, default| if text.is_empty() { default } else { text };
        let door_name = or_default(request.door, any_door());
        door(&door_name)?;
        let write_cache = or_default(request.write_cache, volatile());
        write_through(&write_cache)?;
        Ok(Self {
            name,
            size_bytes,
            repl,
            min_in_sync,
            pool,
            nodes,
            allow_degraded,
            door: door_name,
            write_cache,
            prefer,
            require_preferred: request.require_preferred,
            annotations: annotations(request.annotations)?,
            source,
            spread: spread(request.spread)?,
            follow: request.follow,
            thick: request.thick,
            limits: Limits { iops: request.max_iops, bytes_per_s: request.max_bytes_per_s },
        })
    }
}

/// Where copies are to be, and where one is best.
fn places(
    request: &v1::CreateVolumeRequest,
    repl: u8,
) -> Result<(Vec<NodeId>, Vec<NodeId>), Status> {
    let nodes = different_nodes("nodes", &request.nodes)?;
    let prefer = different_nodes("prefer_nodes", &request.prefer_nodes)?;
    if !nodes.is_empty() && !prefer.is_empty() {
        let why = "prefer_nodes: not together with nodes, which leaves no choice";
        return Err(Status::invalid_argument(why));
    }
    if request.require_preferred && prefer.is_empty() {
        let why = "require_preferred without prefer_nodes: name some";
        return Err(Status::invalid_argument(why));
    }
    if !nodes.is_empty() && nodes.len() != usize::from(repl) {
        return Err(Status::invalid_argument(format!(
            "nodes: {} are named for {repl} copies; name one for each, or none",
            nodes.len()
        )));
    }
    Ok((nodes, prefer))
}

/// Nodes by their names, each once.
fn different_nodes(field: &str, names: &[String]) -> Result<Vec<NodeId>, Status> {
    let mut nodes = Vec::new();
    for name in names {
        let node = node(name)?;
        if nodes.contains(&node) {
            let why = format!("{field}: `{name}` is named twice; name each node once");
            return Err(Status::invalid_argument(why));
        }
        nodes.push(node);
    }
    Ok(nodes)
}

/// Checks what is to be kept with a volume.
fn annotations(map: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if map.len() <= ANNOTATIONS_MAX && bytes <= ANNOTATION_BYTES_MAX {
        return Ok(map);
    }
    Err(Status::invalid_argument(format!(
        "annotations: {} with {bytes} bytes; at most {ANNOTATIONS_MAX} with {ANNOTATION_BYTES_MAX} \
         bytes are kept",
        map.len()
    )))
}

/// The label over whose values copies are spread if nobody says.
pub(super) fn zone_label() -> String {
    ZONE_LABEL.to_owned()
}

/// Checks over which label copies are to be spread.
fn spread(key: String) -> Result<String, Status> {
    if key.is_empty() {
        return Ok(zone_label());
    }
    match is_label_key(&key) {
        Ok(()) => Ok(key),
        Err(why) => Err(Status::invalid_argument(format!("spread = {key:?}: {why}"))),
    }
}

/// The door of volumes that ask for none.
pub(super) fn any_door() -> String {
    Choice::Auto.to_string()
}

/// What a volume's write cache is if nobody says.
pub(super) fn volatile() -> String {
    "volatile".to_owned()
}

/// Checks the name of a door.
pub(super) fn door(name: &str) -> Result<Choice, Status> {
    name.parse().map_err(|why| Status::invalid_argument(format!("door = {name:?}: {why}")))
}

/// Checks what a write cache is to be: whether a write is durable when it is answered.
pub(super) fn write_through(name: &str) -> Result<bool, Status> {
    match name {
        "volatile" => Ok(false),
        "through" => Ok(true),
        _ => Err(Status::invalid_argument(format!(
            "write_cache = {name:?}: volatile and through are allowed"
        ))),
    }
}

/// Checks other numbers of copies for a volume that has these now.
pub(super) fn copies(
    request: &v1::SetVolumeRequest,
    repl: u8,
    min_in_sync: u8,
) -> Result<(u8, u8), Status> {
    let repl = match request.repl {
        None => repl,
        Some(n) => {
            u8::try_from(n).ok().filter(|n| (1..=MAX_REPL).contains(n)).ok_or_else(|| {
                Status::invalid_argument(format!("repl = {n}: 1 to {MAX_REPL} are allowed"))
            })?
        }
    };
    let min_in_sync = match request.min_in_sync {
        None => min_in_sync.min(repl),
        Some(n) => u8::try_from(n).ok().filter(|n| (1..=repl).contains(n)).ok_or_else(|| {
            Status::invalid_argument(format!(
                "min_in_sync = {n}: 1 to {repl}, the number of copies, are allowed"
            ))
        })?,
    };
    Ok((repl, min_in_sync))
}

/// The name of a pool, or the default.
pub(super) fn pool(name: &str) -> String {
    if name.is_empty() { DEFAULT_POOL.to_owned() } else { name.to_owned() }
}

/// Checks a volume's name.
pub(super) fn volume_name(name: &str) -> Result<&str, Status> {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let inner = |b: u8| edge(b) || b == b'-' || b == b'.';
    let bytes = name.as_bytes();
    let ok = bytes.len() <= 63
        && bytes.iter().all(|b| inner(*b))
        && bytes.first().is_some_and(|b| edge(*b))
        && bytes.last().is_some_and(|b| edge(*b));
    if ok {
        return Ok(name);
    }
    let shown: String = name.chars().take(80).collect();
    Err(Status::invalid_argument(format!(
        "name = {shown:?}: 1 to 63 of a-z 0-9 - . are allowed, the first and the last a letter \
         or a digit"
    )))
}

/// Checks a volume's size and rounds it up to whole mebibytes.
pub(super) fn size(bytes: u64) -> Result<u64, Status> {
    let largest = MAX_VOLUME_BLOCKS * BLOCK_BYTES;
    let refuse = |why: &str| {
        Err(Status::invalid_argument(format!(
            "size_bytes = {bytes}: {why}; a multiple of {BLOCK_BYTES} up to {largest} ({}) is \
             needed",
            Size(largest)
        )))
    };
    if bytes == 0 {
        return refuse("a volume cannot be empty");
    }
    if !bytes.is_multiple_of(BLOCK_BYTES) {
        return refuse("it is not made of whole blocks");
    }
    match bytes.checked_next_multiple_of(VOLUME_UNIT_BYTES) {
        Some(rounded) if rounded <= largest => Ok(rounded),
        _ => refuse("it is too large"),
    }
}

/// A size in bytes as blocks; it was checked by [`size`] or comes from a record.
pub(super) fn blocks(bytes: u64) -> u64 {
    bytes / BLOCK_BYTES
}

/// Blocks as bytes.
pub(super) fn bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK_BYTES)
}

/// Checks a node's name.
pub(super) fn node(name: &str) -> Result<NodeId, Status> {
    NodeId::new(name).ok_or_else(|| {
        let shown: String = name.chars().take(80).collect();
        Status::invalid_argument(format!(
            "node = {shown:?}: 1 to 253 of A-Z a-z 0-9 . _ - are allowed"
        ))
    })
}

fn uuid(field: &str, text: &str) -> Result<Uuid, Status> {
    Uuid::parse_str(text).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Status::invalid_argument(format!("{field} = {shown:?}: a hyphenated UUID is needed"))
    })
}

/// Checks a snapshot's id.
pub(super) fn snapshot_uid(text: &str) -> Result<SnapshotId, Status> {
    uuid("uid", text).map(SnapshotId)
}

/// Checks the id of a snapshot that a copy is to begin with; empty: none.
pub(super) fn source(text: &str) -> Result<Option<SnapshotId>, Status> {
    if text.is_empty() { Ok(None) } else { uuid("snapshot_uid", text).map(SnapshotId).map(Some) }
}

/// Checks a volume's id.
pub(super) fn uid(text: &str) -> Result<VolumeId, Status> {
    uuid("uid", text).map(VolumeId)
}

/// Checks a replica's id.
pub(super) fn rid(text: &str) -> Result<ReplicaId, Status> {
    uuid("rid", text).map(ReplicaId)
}

/// Checks a lineage.
pub(super) fn lineage(text: &str) -> Result<Lineage, Status> {
    uuid("lineage", text).map(Lineage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn request() -> v1::CreateVolumeRequest {
        v1::CreateVolumeRequest { name: "v".to_owned(), size_bytes: 1 << 30, ..Default::default() }
    }

    #[test]
    fn defaults_are_filled_in() {
        let wanted = Wanted::new(request()).unwrap();
        assert_eq!((wanted.repl, wanted.min_in_sync, wanted.pool.as_str()), (3, 2, "default"));
        let two = Wanted::new(v1::CreateVolumeRequest { repl: 2, ..request() }).unwrap();
        assert_eq!((two.repl, two.min_in_sync), (2, 1));
    }

    #[test]
    fn names_are_checked() {
        for good in ["v", "pvc-0f.1", "0", &"a".repeat(63)] {
            assert!(volume_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", ".", "A", "a b", "a/b", "ä", &"a".repeat(64)] {
            let refused = volume_name(bad).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn sizes_are_checked_and_rounded() {
        assert_eq!(size(4096).unwrap(), 1 << 20);
        assert_eq!(size(1 << 20).unwrap(), 1 << 20);
        assert_eq!(size((1 << 20) + 4096).unwrap(), 2 << 20);
        assert_eq!(size(16 << 40).unwrap(), 16 << 40);
        for (bad, why) in [
            (0, "empty"),
            (1, "whole blocks"),
            (4097, "whole blocks"),
            ((16 << 40) + 4096, "too large"),
            (u64::MAX - 4095, "too large"),
        ] {
            let refused = size(bad).unwrap_err();
            assert!(refused.message().contains(why), "{bad}: {}", refused.message());
        }
    }

    #[test]
    fn bad_requests_name_the_field() {
        let cases = [
            (v1::CreateVolumeRequest { repl: 6, ..request() }, "repl = 6"),
            (v1::CreateVolumeRequest { repl: 300, ..request() }, "repl = 300"),
            (v1::CreateVolumeRequest { min_in_sync: Some(0), ..request() }, "min_in_sync = 0"),
            (v1::CreateVolumeRequest { min_in_sync: Some(4), ..request() }, "min_in_sync = 4"),
            (v1::CreateVolumeRequest { nodes: vec!["a".to_owned()], ..request() }, "1 are named"),
            (
                v1::CreateVolumeRequest { nodes: vec!["a".to_owned(); 3], ..request() },
                "named twice",
            ),
            (
                v1::CreateVolumeRequest { prefer_nodes: vec!["a".to_owned(); 2], ..request() },
                "named twice",
            ),
            (v1::CreateVolumeRequest { require_preferred: true, ..request() }, "prefer_nodes"),
            (
                v1::CreateVolumeRequest {
                    annotations: BTreeMap::from([("k".to_owned(), "v".repeat(9 << 10))]),
                    ..request()
                },
                "8192 bytes",
            ),
            (
                v1::CreateVolumeRequest { nodes: vec!["a b".to_owned(); 3], ..request() },
                "node = \"a b\"",
            ),
        ];
        for (request, part) in cases {
            let refused = Wanted::new(request).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(part), "{part}: {}", refused.message());
        }
    }
}
