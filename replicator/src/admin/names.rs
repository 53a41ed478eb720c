//! Checks of what callers send.

use lockstep_attach::device::Choice;
use lockstep_core::id::{Lineage, NodeId, ReplicaId, VolumeId};
use lockstep_core::limits::{MAX_REPL, MAX_VOLUME_BLOCKS};
use lockstep_core::range::BLOCK_SIZE;
use lockstep_proto::v1;
use tonic::Status;
use uuid::Uuid;

use crate::config::size::Size;

/// Volumes are made of whole pieces of this size.
const VOLUME_UNIT_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

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
}

impl Wanted {
    /// Checks a request to make a volume.
    pub(super) fn new(request: v1::CreateVolumeRequest) -> Result<Self, Status> {
        let name = volume_name(&request.name)?.to_owned();
        let size_bytes = size(request.size_bytes)?;
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
        let mut nodes = Vec::new();
        for name in &request.nodes {
            let node = node(name)?;
            if nodes.contains(&node) {
                let why = format!("nodes: `{name}` is named twice; each copy needs its own node");
                return Err(Status::invalid_argument(why));
            }
            nodes.push(node);
        }
        if !nodes.is_empty() && nodes.len() != usize::from(repl) {
            return Err(Status::invalid_argument(format!(
                "nodes: {} are named for {repl} copies; name one for each, or none",
                nodes.len()
            )));
        }
        let pool = pool(&request.pool);
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
        })
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
