//! What is fuzzed, as plain functions: each takes any bytes, and panics if something is wrong.
//!
//! `tests/fuzz/run` lets a fuzzer look for such bytes; `tests/fuzz_replay.rs` replays those that
//! were found interesting before. A target must not depend on anything but its input.

#[path = "targets/activity_log.rs"]
mod activity_log;
#[path = "../../replicator/store/tests/store/disk.rs"]
#[allow(dead_code, reason = "the targets do not use all that the store's own tests do")]
mod disk;
#[path = "targets/files.rs"]
mod files;
#[path = "targets/input.rs"]
mod input;
#[path = "targets/nbd_client.rs"]
mod nbd_client;
#[path = "targets/nbd_server.rs"]
mod nbd_server;
#[path = "targets/nbd_words.rs"]
mod nbd_words;
#[path = "targets/primary.rs"]
mod primary;
#[path = "targets/record.rs"]
mod record;
#[path = "targets/replica.rs"]
mod replica;
#[path = "targets/superblock.rs"]
mod superblock;
#[path = "targets/tags.rs"]
mod tags;
#[path = "targets/wire.rs"]
mod wire;

/// Takes any bytes.
pub(crate) type Target = fn(&[u8]);

/// All of them, by name: the names of the files in `fuzz_targets/` and of the corpora.
pub(crate) const ALL: [(&str, Target); 9] = [
    ("activity_log", activity_log::target),
    ("nbd_client", nbd_client::target),
    ("nbd_server", nbd_server::target),
    ("primary", primary::target),
    ("record", record::target),
    ("replica", replica::target),
    ("superblock", superblock::target),
    ("tags", tags::target),
    ("wire", wire::target),
];
