//! The keeper, as a process.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_attach::keeper::{End, KeeperClient, KeeperError};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::world::{server, wait_until};

/// Waits until no keeper has the lock of the directory. Calling one would keep it from ending.
fn wait_for_the_end(dir: &Path) {
    let begun = Instant::now();
    let locked = || {
        let file = File::options().write(true).open(dir.join("keeper.lock")).unwrap();
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    };
    while locked() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the keeper does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn it_keeps_files_until_they_are_forgotten() {
    let dir = tempfile::TempDir::new().unwrap();
    let keeper = KeeperClient::new(dir.path(), Some(server()));
    assert!(keeper.fetch("a").unwrap().is_none(), "there is none yet, and that is no error");
    assert_eq!(keeper.list().unwrap(), [""; 0]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    keeper.keep("a", "first", writer.as_fd()).unwrap();
    keeper.keep("b", "", writer.as_fd()).unwrap();
    drop(writer);
    assert_eq!(keeper.list().unwrap(), ["a", "b"]);
    let kept = keeper.fetch("a").unwrap().unwrap();
    assert_eq!(kept.note, "first");
    let mut writer = File::from(kept.fd);
    writer.write_all(b"it is open").unwrap();
    // The same name again: the former file is closed.
    keeper.keep("a", "second", writer.as_fd()).unwrap();
    drop(writer);
    assert_eq!(keeper.fetch("a").unwrap().unwrap().note, "second");
    assert!(keeper.forget("a").unwrap());
    assert!(!keeper.forget("a").unwrap());
    assert!(keeper.forget("b").unwrap());
    let mut got = String::new();
    reader.read_to_string(&mut got).unwrap();
    assert_eq!(got, "it is open", "the pipe has no writer left");
    wait_for_the_end(dir.path());
    // It is started anew when there is something to keep.
    let (_reader, writer) = std::io::pipe().unwrap();
    keeper.keep("c", "", writer.as_fd()).unwrap();
    assert_eq!(keeper.list().unwrap(), ["c"]);
    keeper.forget("c").unwrap();
}

#[test]
fn many_who_start_one_get_the_same() {
    let dir = tempfile::TempDir::new().unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    let keeper = KeeperClient::new(dir.path(), Some(server()));
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (keeper, writer) = (&keeper, &writer);
            scope.spawn(move || keeper.keep(name, "", writer.as_fd()).unwrap());
        }
    });
    assert_eq!(keeper.list().unwrap(), ["a", "b", "c", "d"]);
    for name in keeper.list().unwrap() {
        keeper.forget(&name).unwrap();
    }
    wait_for_the_end(dir.path());
}

#[test]
fn without_a_program_there_is_none() {
    let dir = tempfile::TempDir::new().unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    let keeper = KeeperClient::new(dir.path(), None);
    assert!(matches!(keeper.keep("a", "", writer.as_fd()), Err(KeeperError::Absent { .. })));
    let keeper = KeeperClient::new(dir.path(), Some("/bin/false".into()));
    assert!(matches!(keeper.keep("a", "", writer.as_fd()), Err(KeeperError::Absent { .. })));
}

/// Connections that a keeper has, or is to accept.
fn connections(dir: &Path) -> usize {
    let path = dir.join("keeper.sock.new");
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let (path, connected) = (path.to_str().unwrap(), "03");
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|words| words.last() == Some(&path) && words.get(5) == Some(&connected)).count()
}

/// A keeper that keeps something, and its process.
async fn started(keeper: &KeeperClient, dir: &Path) -> Pid {
    let (_reader, writer) = std::io::pipe().unwrap();
    let client = keeper.clone();
    tokio::task::spawn_blocking(move || client.keep("a", "", writer.as_fd()).unwrap())
        .await
        .unwrap();
    let stream = UnixStream::connect(dir.join("keeper.sock")).await.unwrap();
    let pid = Pid::from_raw(stream.peer_cred().unwrap().pid().unwrap());
    drop(stream);
    wait_until("nobody calls it", || connections(dir) == 0).await;
    pid
}

#[tokio::test]
async fn who_watches_it_learns_how_it_ended() {
    let dir = tempfile::TempDir::new().unwrap();
    let keeper = KeeperClient::new(dir.path(), Some(server()));
    assert_eq!(keeper.watch().await.unwrap(), None, "there is none yet");
    let pid = started(&keeper, dir.path()).await;
    let watcher = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.watch().await.unwrap() }
    });
    wait_until("it is watched", || connections(dir.path()) == 1).await;
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(watcher.await.unwrap(), Some(End::Broken));

    let pid = started(&keeper, dir.path()).await;
    let mut watcher = UnixStream::connect(dir.path().join("keeper.sock")).await.unwrap();
    watcher.write_all(b"{\"do\":\"watch\"}\n").await.unwrap();
    let mut answer = [0; 256];
    let len = watcher.read(&mut answer).await.unwrap();
    assert_eq!(answer.get(..len).unwrap().last(), Some(&b'\n'));
    kill(pid, Signal::SIGTERM).unwrap();
    let mut farewell = String::new();
    watcher.read_to_string(&mut farewell).await.unwrap();
    assert_eq!(farewell, "{}\n");

    started(&keeper, dir.path()).await;
    let idle = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.watch().await.unwrap() }
    });
    wait_until("it is watched", || connections(dir.path()) == 1).await;
    let client = keeper.clone();
    tokio::task::spawn_blocking(move || client.forget("a").unwrap()).await.unwrap();
    assert_eq!(idle.await.unwrap(), Some(End::Orderly), "it has nothing to keep");
}
