//! The driver as a program.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where the daemon of a test is, if there is one.
pub(crate) fn daemon_socket(dir: &Path) -> PathBuf {
    dir.join("lockstepd.sock")
}

pub(crate) struct Driver {
    pub(crate) child: Child,
    log: Lines<BufReader<ChildStderr>>,
    pub(crate) socket: PathBuf,
}

impl Driver {
    /// Starts it beside a daemon that may be there or not.
    pub(crate) async fn start(dir: &Path, role: &str) -> Self {
        let socket = dir.join("plugin/csi.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_lockstep-csi"))
            .arg(role)
            .arg("--endpoint")
            .arg(format!("unix://{}", socket.display()))
            .args(["--node-id", "node-a", "--labels-every-ms", "20"])
            .arg("--daemon")
            .arg(format!("unix://{}", daemon_socket(dir).display()))
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut driver = Self { child, log, socket };
        driver.wait_for("serving CSI").await;
        driver
    }

    pub(crate) async fn wait_for(&mut self, text: &str) {
        let found = async {
            while let Some(line) = self.log.next_line().await.unwrap() {
                if line.contains(text) {
                    return;
                }
            }
            panic!("the driver ended without {text:?}");
        };
        timeout(PATIENCE, found).await.unwrap();
    }

    pub(crate) async fn channel(&self) -> Channel {
        let address = format!("unix://{}", self.socket.display());
        Endpoint::from_shared(address).unwrap().connect().await.unwrap()
    }

    /// Ends it. Returns what it logged since it began to serve.
    pub(crate) async fn end(mut self) -> Vec<String> {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let all = async {
            let mut lines = Vec::new();
            while let Some(line) = self.log.next_line().await.unwrap() {
                lines.push(line);
            }
            lines
        };
        timeout(PATIENCE, all).await.unwrap()
    }

    pub(crate) async fn stop(mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap());
        kill(pid, signal).unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{signal}: {status}");
        assert!(!self.socket.exists(), "{signal}: the socket was left behind");
    }
}
