//! The side of those who want files kept. Calls block, for a moment: no task may make them, but for
//! [`KeeperClient::watch`].

use std::io::{self, Read as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lockstep_kernel::fds;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::wire::{self, Answer, Ask, LINE_BYTES_MAX};
use super::{KeeperError, socket};

/// A keeper has nothing to wait for, so it answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the keeper is, and how it is started.
#[derive(Clone, Debug)]
pub struct KeeperClient {
    run_dir: PathBuf,
    socket: PathBuf,
    program: Option<PathBuf>,
}

/// A file that was fetched.
#[derive(Debug)]
pub struct Kept {
    /// The file: another descriptor of what was kept.
    pub fd: OwnedFd,
    /// What was noted with it.
    pub note: String,
}

/// How a keeper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It had nothing to keep, or the node shuts down.
    Orderly,
    /// It was killed: what it kept is kept no more.
    Broken,
}

impl KeeperClient {
    /// The keeper of `run_dir`. If none answers when there is something to keep, it is started as
    /// `program keeper --run-dir RUN_DIR --detach`; by nobody if `program` is `None`.
    #[must_use]
    pub fn new(run_dir: &Path, program: Option<PathBuf>) -> Self {
        Self { run_dir: run_dir.to_owned(), socket: socket(run_dir), program }
    }

    /// Has a file kept under a name, instead of what was kept under it. Starts a keeper if none
    /// answers.
    ///
    /// # Errors
    /// See [`KeeperError`]; the file is not kept then.
    pub fn keep(&self, name: &str, note: &str, fd: BorrowedFd<'_>) -> Result<(), KeeperError> {
        let ask = Ask::Keep { name: name.to_owned(), note: note.to_owned() };
        // A keeper that is just ending for want of work may answer the first call, not this.
        let outcome = match self.ask(&ask, Some(fd)) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(KeeperError::Io { .. }) => {
                self.start()?;
                let absent = || self.absent("it was started, and does not answer");
                self.ask(&ask, Some(fd)).and_then(|answer| answer.ok_or_else(absent))
            }
            Err(error) => Err(error),
        };
        outcome.map(drop)
    }

    /// Another descriptor of the file kept under a name. `None` if there is none, or no keeper.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub fn fetch(&self, name: &str) -> Result<Option<Kept>, KeeperError> {
        let answer = self.ask(&Ask::Fetch { name: name.to_owned() }, None)?;
        Ok(answer.and_then(|(answer, fd)| Some(Kept { fd: fd?, note: answer.note })))
    }

    /// Has the file of this name closed. Returns whether there was one.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub fn forget(&self, name: &str) -> Result<bool, KeeperError> {
        let answer = self.ask(&Ask::Forget { name: name.to_owned() }, None)?;
        Ok(answer.is_some_and(|(answer, _)| answer.found))
    }

    /// The names of all that is kept.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub fn list(&self) -> Result<Vec<String>, KeeperError> {
        Ok(self.ask(&Ask::List, None)?.map(|(answer, _)| answer.names).unwrap_or_default())
    }

    /// Waits until the keeper ends. `None` if there is none.
    ///
    /// # Errors
    /// See [`KeeperError`]; it may have ended then, or not.
    pub async fn watch(&self) -> Result<Option<End>, KeeperError> {
        let failed = |source| KeeperError::Io { socket: self.socket.clone(), source };
        let stream = match tokio::net::UnixStream::connect(&self.socket).await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let ask = wire::line(&Ask::Watch).map_err(failed)?;
        let (answered, farewell) = listen(stream, &ask).await;
        let Some(line) = answered else { return Ok(Some(End::Broken)) };
        let answer: Answer = serde_json::from_str(&line).map_err(|error| failed(error.into()))?;
        let end = if farewell { End::Orderly } else { End::Broken };
        answer.error.map_or(Ok(Some(end)), |why| Err(KeeperError::Refused(why)))
    }

    fn absent(&self, why: &str) -> KeeperError {
        KeeperError::Absent { socket: self.socket.clone(), why: why.to_owned() }
    }

    /// One question, one answer; `None` if nobody listens.
    fn ask(
        &self,
        ask: &Ask,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Option<(Answer, Option<OwnedFd>)>, KeeperError> {
        let failed = |source| KeeperError::Io { socket: self.socket.clone(), source };
        let stream = match UnixStream::connect(&self.socket) {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let (answer, fd) = converse(&stream, ask, fd).map_err(failed)?;
        answer.error.clone().map_or(Ok(Some((answer, fd))), |why| Err(KeeperError::Refused(why)))
    }

    /// Starts a keeper, and waits until it listens.
    fn start(&self) -> Result<(), KeeperError> {
        let Some(program) = &self.program else {
            return Err(self.absent("this process does not start one"));
        };
        let mut command = Command::new(program);
        command.arg("keeper").arg("--run-dir").arg(&self.run_dir).arg("--detach");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = command.output().map_err(|error| self.absent(&error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(self.absent(&format!("{}, {}", output.status, said.trim())))
    }
}

/// Whether a call failed because there is nobody to call.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What is answered until the connection ends, however it does, and whether a line followed.
async fn listen(mut stream: tokio::net::UnixStream, ask: &[u8]) -> (Option<String>, bool) {
    if stream.write_all(ask).await.is_err() {
        return (None, false);
    }
    let mut lines = BufReader::new(stream).lines();
    let answered = lines.next_line().await.ok().flatten();
    let farewell = answered.is_some() && matches!(lines.next_line().await, Ok(Some(_)));
    (answered, farewell)
}

fn converse(
    mut stream: &UnixStream,
    ask: &Ask,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<(Answer, Option<OwnedFd>)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = wire::line(ask)?;
    let sent = fds::send(stream, &line, fd)?;
    io::Write::write_all(&mut stream, line.get(sent..).unwrap_or_default())?;
    let mut received = vec![0; 4096];
    let (len, fd) = fds::receive(stream, &mut received)?;
    received.truncate(len);
    // The keeper closes when it has answered.
    stream.take(LINE_BYTES_MAX as u64).read_to_end(&mut received)?;
    if received.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((serde_json::from_slice(&received)?, fd))
}
