//! A server that is killed while programs use its device.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::world::{World, away, possible, run, server, wait_until};

const KILLS: u32 = 5;

/// A process that serves a device; killed when it goes.
struct Server(Child);

impl Server {
    /// Starts it and waits until it serves; returns where its device is.
    async fn start(world: &World, resume: bool) -> (Self, PathBuf) {
        let mut command = Command::new(server());
        let token = world.path("token.json");
        command.arg("--run-dir").arg(world.dir.path()).args(["--size", "67108864"]);
        command.arg("--file").arg(world.path("content"));
        command.args(["--door", "fuse", "--delay-us", "300"]);
        command.arg(if resume { "--resume" } else { "--token" }).arg(token);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let line = away(move || BufReader::new(output).lines().next().unwrap().unwrap()).await;
        (Self(child), line.into())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    async fn close(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut status = None;
        wait_until("the server ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        assert!(status.unwrap().success(), "it closes its device");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended; both calls then do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fio(device: &Path) -> Child {
    let mut command = Command::new("fio");
    command.arg(format!("--filename={}", device.display()));
    command.args([
        "--name=verify",
        "--direct=1",
        "--ioengine=libaio",
        "--iodepth=16",
        "--size=64m",
    ]);
    command.args(["--rw=randwrite", "--bs=4k-64k", "--verify=crc32c", "--verify_fatal=1"]);
    command.arg("--verify_state_save=0");
    command.args([
        "--do_verify=1",
        "--verify_backlog=512",
        "--loops=4",
        "--continue_on_error=none",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Sectors written to the device so far.
fn written(device: &Path) -> u64 {
    let stat = crate::world::sys(device, "stat");
    stat.split_whitespace().nth(6).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_killed_under_load_and_nobody_notices() {
    if !possible("a_server_is_killed_under_load_and_nobody_notices", &["fio"]) {
        return;
    }
    let world = World::new();
    let (mut server, device) = Server::start(&world, false).await;
    let mut fio = fio(&device);
    for kill in 1..=KILLS {
        let before = written(&device);
        wait_until("fio writes", || written(&device) > before + 1000).await;
        assert!(fio.try_wait().unwrap().is_none(), "fio ended before kill {kill}");
        server.kill();
        let (next, path) = Server::start(&world, true).await;
        let before = written(&device);
        wait_until("fio goes on", || written(&device) > before).await;
        assert_eq!(path, device);
        server = next;
    }
    let output = away(move || fio.wait_with_output().unwrap()).await;
    let told = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{told}\n{complaints}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_file_system_survives_its_server() {
    let test = "a_mounted_file_system_survives_its_server";
    if !possible(test, &["mkfs.ext4", "mount", "umount", "fsck.ext4"]) {
        return;
    }
    let world = World::new();
    let (mut server, device) = Server::start(&world, false).await;
    let dir = world.mount_point();
    run("mkfs.ext4", &[&"-q", &device]).await;
    run("mount", &[&device, &dir]).await;
    let target = dir.clone();
    let writer = tokio::task::spawn_blocking(move || {
        for number in 0..200_u32 {
            let path = target.join(number.to_string());
            std::fs::write(&path, crate::world::pattern(20_000, 5)).unwrap();
            std::fs::File::open(path).unwrap().sync_all().unwrap();
        }
    });
    for _ in 0..KILLS {
        let before = written(&device);
        let enough = || written(&device) > before + 100 || writer.is_finished();
        wait_until("it is written", enough).await;
        server.kill();
        (server, _) = Server::start(&world, true).await;
    }
    writer.await.unwrap();
    run("umount", &[&dir]).await;
    run("fsck.ext4", &[&"-fn", &device]).await;
    run("mount", &[&device, &dir]).await;
    let target = dir.clone();
    away(move || {
        for number in 0..200_u32 {
            let content = std::fs::read(target.join(number.to_string())).unwrap();
            assert!(content == crate::world::pattern(20_000, 5), "file {number}");
        }
    })
    .await;
    run("umount", &[&dir]).await;
    server.close().await;
}
