//! The clients people use: libnbd's tools, QEMU's and fio, over both kinds of socket.
//!
//! A test whose program is not installed says so on standard error, where the test runner looks.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use lockstep_attach::memory::MemoryBackend;
use tokio::process::Command;

use crate::world::{MIB, World, memory_world, pattern, soon};

/// Whether all programs are there; if not, the test is skipped aloud.
fn installed(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing = programs.iter().find(|program| !found(program));
    if let Some(program) = missing {
        // Not `eprintln!`, which the test harness would keep to itself.
        let line = format!("SKIPPED {test}: {program} not installed\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    missing.is_none()
}

/// Runs a program to its end and returns what it printed; it must succeed.
async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = soon(program, command.output()).await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}\n{printed}\n{complaints}");
    printed
}

fn uris(world: &World<MemoryBackend>) -> [String; 2] {
    [world.unix("disk").to_string(), world.tcp("disk").to_string()]
}

/// A file with data, a hole, and data again.
fn image(dir: &Path, len: usize) -> (PathBuf, Vec<u8>) {
    let mut bytes = pattern(len, 42);
    bytes[len / 4..len / 2].fill(0);
    let path = dir.join("source.img");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_understands_what_we_tell() {
    if !installed("nbdinfo_understands_what_we_tell", &["nbdinfo"]) {
        return;
    }
    let (world, backend) = memory_world(MIB).await;
    for uri in uris(&world) {
        let told = run("nbdinfo", &["--json", &uri]).await;
        for fact in [
            "\"protocol\": \"newstyle-fixed\"",
            "\"structured\": true",
            "\"export-size\": 1048576",
            "\"is_read_only\": false",
            "\"can_multi_conn\": true",
            "\"can_fast_zero\": true",
            "\"can_df\": true",
            "\"can_cache\": true",
            "\"can_fua\": true",
            "\"block_size_minimum\": 4096",
            "\"block_size_maximum\": 33554432",
            "base:allocation",
        ] {
            assert!(told.contains(fact), "no {fact} in {told}");
        }
        assert_eq!(run("nbdinfo", &["--size", &uri]).await, "1048576\n");
    }
    world.add("second", &backend);
    let list = run("nbdinfo", &["--list", &world.unix("").to_string()]).await;
    assert!(list.contains("export=\"disk\"") && list.contains("export=\"second\""), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_maps_holes() {
    if !installed("nbdinfo_maps_holes", &["nbdinfo"]) {
        return;
    }
    let (world, _) = memory_world(MIB).await;
    let client = world.client("disk").await;
    client.write(65_536, pattern(4096, 1).into(), false).await.unwrap();
    for uri in uris(&world) {
        let map = run("nbdinfo", &["--map", &uri]).await;
        let lines: Vec<Vec<&str>> =
            map.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "{map}");
        assert_eq!(lines[0][..3], ["0", "65536", "3"]);
        assert_eq!(lines[1][..3], ["65536", "4096", "0"]);
        assert_eq!(lines[2][..3], ["69632", "978944", "3"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_copies_there_and_back() {
    if !installed("nbdcopy_copies_there_and_back", &["nbdcopy"]) {
        return;
    }
    let (world, backend) = memory_world(64 * MIB).await;
    let (source, bytes) = image(world.dir.path(), 64 << 20);
    let copy = world.dir.path().join("copy.img");
    for uri in uris(&world) {
        run("nbdcopy", &["--flush", source.to_str().unwrap(), &uri]).await;
        assert_eq!(backend.unflushed_blocks(), 0);
        assert_eq!(backend.allocated_blocks(), 3 * 4096, "the hole stays a hole");
        run("nbdcopy", &[&uri, copy.to_str().unwrap()]).await;
        assert!(std::fs::read(&copy).unwrap() == bytes, "{uri}");
        std::fs::remove_file(&copy).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_converts_and_compares() {
    if !installed("qemu_img_converts_and_compares", &["qemu-img"]) {
        return;
    }
    let (world, _) = memory_world(32 * MIB).await;
    let (source, bytes) = image(world.dir.path(), 32 << 20);
    let source = source.to_str().unwrap();
    let copy = world.dir.path().join("copy.img");
    for uri in uris(&world) {
        let raw = ["-f", "raw", "-O", "raw"];
        run("qemu-img", &[&["convert", "-n"], &raw[..], &[source, &uri]].concat()).await;
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]).await;
        let back = [&["convert"], &raw[..], &[&uri, copy.to_str().unwrap()]].concat();
        run("qemu-img", &back).await;
        assert!(std::fs::read(&copy).unwrap() == bytes, "{uri}");
        let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).await;
        assert!(map.contains("\"zero\": true"), "{map}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_reads_what_it_wrote() {
    if !installed("qemu_io_reads_what_it_wrote", &["qemu-io"]) {
        return;
    }
    let (world, backend) = memory_world(16 * MIB).await;
    for uri in uris(&world) {
        let script = [
            "write -P 0xaa 0 1M",
            "write -f -P 0xbb 64k 4k",
            "write -z 128k 64k",
            "write -z -u 256k 64k",
            "discard 512k 64k",
            "aio_write -P 0xcc 2M 1M",
            "aio_write -P 0xdd 3M 1M",
            "aio_flush",
            "flush",
            "read -P 0xaa 0 64k",
            "read -P 0xbb 64k 4k",
            "read -P 0 128k 64k",
            "read -P 0 256k 64k",
            "read -P 0xcc 2M 1M",
            "read -P 0xdd 3M 1M",
            // QEMU turns what is smaller than a block into a read, a change and a write.
            "write -P 0xee 4M 512",
            "read -P 0xee 4M 512",
            "read -P 0 4194816 3584",
        ];
        let mut arguments = vec!["-f", "raw"];
        arguments.extend(script.iter().flat_map(|command| ["-c", *command]));
        arguments.push(&uri);
        let told = run("qemu-io", &arguments).await;
        assert!(!told.contains("Pattern verification failed"), "{told}");
        assert!(backend.flushes() > 0);
    }
}

async fn fio(uri: &str, dir: &Path, extra: &[&str]) {
    let uri = format!("--uri={uri}");
    let dir = dir.to_str().unwrap();
    let aux = format!("--aux-path={dir}");
    let common = [
        "--name=verify",
        "--ioengine=nbd",
        "--size=48m",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
    ];
    let arguments = [&common[..], &[&uri, &aux], extra].concat();
    let told = run("fio", &arguments).await;
    assert!(told.contains("err= 0"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote() {
    if !installed("fio_verifies_what_it_wrote", &["fio"]) {
        return;
    }
    let (world, backend) = memory_world(64 * MIB).await;
    for uri in uris(&world) {
        fio(&uri, world.dir.path(), &["--rw=randwrite", "--bs=4k", "--fsync=64"]).await;
        let flushes = backend.flushes();
        assert!(flushes > 100, "{flushes} flushes");
        let sizes = ["--rw=randwrite", "--bsrange=4k-256k", "--blockalign=4k"];
        fio(&uri, world.dir.path(), &sizes).await;
        fio(&uri, world.dir.path(), &["--rw=randrw", "--bs=16k"]).await;
    }
}
