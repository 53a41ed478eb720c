//! The keeper itself.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_kernel::{fds, memory};
use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::socket;
use super::wire::{self, Answer, Ask, KEPT_MAX, LINE_BYTES_MAX};

/// How long a keeper waits for something to keep.
const IDLE: Duration = Duration::from_secs(5);
/// How long a client may take for its one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most clients at once.
const CLIENTS_MAX: usize = 64;
/// How long what is done at a shutdown may take.
const LAST_WILL: Duration = Duration::from_secs(20);

type Held = Arc<Mutex<BTreeMap<String, (OwnedFd, String)>>>;

fn locked(held: &Held) -> MutexGuard<'_, BTreeMap<String, (OwnedFd, String)>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts `program keeper --run-dir RUN_DIR` as a process of its own session, and returns when it
/// listens, or another keeper does.
///
/// # Errors
/// It ended at once, or does not listen.
pub(super) fn detach(program: &Path, run_dir: &Path) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg("keeper").arg("--run-dir").arg(run_dir).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    // It says a line when it listens.
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut said)?;
    }
    if said == LISTENING { Ok(()) } else { Err(io::Error::other("the keeper did not start")) }
}

const LISTENING: &str = "listening\n";

/// Is the keeper of `run_dir` until nothing is kept for a while, unless it `stays`, or until
/// `SIGTERM` or `SIGINT`: then it does `last_will` first. Returns at once if there is one already.
/// `ready` is called when clients can call.
///
/// # Errors
/// The directory cannot be used.
pub async fn run<F: Future<Output = ()>>(
    run_dir: &Path,
    stays: bool,
    ready: impl FnOnce(&str),
    last_will: F,
) -> io::Result<()> {
    std::fs::create_dir_all(run_dir)?;
    let run_dir = run_dir.canonicalize()?;
    // What follows makes it harder to kill or to stall; it works without, in a test for example.
    let _ = nix::unistd::setsid();
    let _ = memory::never_kill_for_memory();
    if let Err(error) = memory::lock_memory() {
        tracing::warn!(%error, "the keeper's memory is not locked");
    }
    let Some(_sole) = become_sole(&run_dir)? else {
        ready(LISTENING);
        return Ok(());
    };
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let listener = listen(&run_dir)?;
    ready(LISTENING);
    let held = Held::default();
    let mut clients = JoinSet::new();
    let mut watchers = Watchers::default();
    loop {
        let idle = !stays && clients.is_empty() && locked(&held).is_empty();
        tokio::select! {
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => {
                let (stream, _) = accepted?;
                let held = Arc::clone(&held);
                clients.spawn(async move {
                    // A client that breaks off has told nothing, or does not want the answer.
                    timeout(PATIENCE, serve(stream, &held)).await.ok()?.ok()?
                });
            }
            served = clients.join_next(), if !clients.is_empty() => {
                if let Some(Ok(Some(watcher))) = served {
                    watchers.add(watcher);
                }
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
            // Whoever calls now finds a socket that nobody listens on, and starts another keeper.
            () = sleep(IDLE), if idle => {
                watchers.say_farewell();
                return Ok(());
            }
        }
    }
    while let Some(served) = clients.try_join_next() {
        served.ok().flatten().into_iter().for_each(|watcher| watchers.add(watcher));
    }
    // First of all, so that nobody takes what follows for an accident and starts another keeper.
    watchers.say_farewell();
    // Nobody is answered any more, and what was kept is closed: the kernel ends what nobody else
    // has open.
    std::fs::remove_file(socket(&run_dir))?;
    drop(listener);
    clients.shutdown().await;
    locked(&held).clear();
    let _ = timeout(LAST_WILL, last_will).await;
    Ok(())
}

/// The lock that one keeper of a run directory has; `None` if another one has it.
fn become_sole(run_dir: &Path) -> io::Result<Option<Flock<File>>> {
    let path = run_dir.join("keeper.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let (path, new) = (socket(run_dir), run_dir.join("keeper.sock.new"));
    let gone = |path: &Path| match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(&new)?;
    // Nobody may call before it is closed to others than root.
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// Those who want to know when the keeper ends.
#[derive(Default)]
struct Watchers(Vec<std::os::unix::net::UnixStream>);

impl Watchers {
    /// One more, unless there are too many; that one takes the keeper for ended.
    fn add(&mut self, watcher: UnixStream) {
        // They say nothing: what is read is that they have gone.
        let waits = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.0.retain(|mut old| old.read(&mut [0]).is_err_and(|error| waits(&error)));
        if self.0.len() < CLIENTS_MAX
            && let Ok(watcher) = watcher.into_std()
        {
            self.0.push(watcher);
        }
    }

    fn say_farewell(&mut self) {
        for mut watcher in self.0.drain(..) {
            // Who does not hear it has gone.
            let _ = watcher.write_all(FAREWELL);
        }
    }
}

/// What those hear who watch a keeper that ends in good order.
const FAREWELL: &[u8] = b"{}\n";

/// Answers a client. One that goes on watching is returned.
async fn serve(mut stream: UnixStream, held: &Held) -> io::Result<Option<UnixStream>> {
    let (line, fd) = receive(&stream).await?;
    let ask = Ask::parse(&line);
    let watches = ask == Ok(Ask::Watch);
    let outcome = ask.and_then(|ask| obey(ask, fd, held));
    let (answer, fd) =
        outcome.unwrap_or_else(|why| (Answer { error: Some(why), ..Answer::default() }, None));
    let line = wire::line(&answer)?;
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            fds::send(&stream, &line, fd.as_ref().map(|fd| fd.as_fd()))
        })
        .await?;
    stream.write_all(line.get(sent..).unwrap_or_default()).await?;
    if watches {
        return Ok(Some(stream));
    }
    stream.shutdown().await?;
    Ok(None)
}

async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut line, mut attached) = (Vec::new(), None);
    while line.last() != Some(&b'\n') && line.len() < LINE_BYTES_MAX {
        let mut part = [0; 4096];
        let receive = || fds::receive(stream, &mut part);
        let (len, fd) = stream.async_io(Interest::READABLE, receive).await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        attached = fd.or(attached);
        line.extend_from_slice(part.get(..len).unwrap_or_default());
    }
    Ok((line, attached))
}

fn obey(ask: Ask, fd: Option<OwnedFd>, held: &Held) -> Result<(Answer, Option<OwnedFd>), String> {
    let mut held = locked(held);
    let mut answer = Answer::default();
    let mut attached = None;
    match ask {
        Ask::Keep { name, note } => {
            let fd = fd.ok_or("no file is attached")?;
            if held.len() >= KEPT_MAX && !held.contains_key(&name) {
                return Err(format!("{KEPT_MAX} files are kept, and no more"));
            }
            answer.found = held.insert(name, (fd, note)).is_some();
        }
        Ask::Fetch { name } => {
            if let Some((fd, note)) = held.get(&name) {
                attached = Some(fd.try_clone().map_err(|error| error.to_string())?);
                answer.found = true;
                answer.note.clone_from(note);
            }
        }
        Ask::Forget { name } => answer.found = held.remove(&name).is_some(),
        Ask::List => answer.names = held.keys().cloned().collect(),
        Ask::Watch => {}
    }
    Ok((answer, attached))
}
