//! The NBD sockets of attached volumes: one unix socket each, and one TCP port for all.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_attach::nbd::{Export, Limits, NbdUri, Server, bind_unix};
use lockstep_core::id::VolumeId;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::MAX_SOCKET_PATH;
use crate::engine::VolumeHandle;

/// Most clients of one unix socket; more wait until one leaves.
const MAX_CLIENTS: usize = 128;

/// An open door, as told to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Door {
    pub(super) uri: String,
    pub(super) uri_tcp: Option<String>,
    /// Clients connected to the unix socket.
    pub(super) clients: u32,
}

/// The door of one volume.
#[derive(Debug)]
struct Open {
    name: String,
    path: PathBuf,
    uri: String,
    uri_tcp: Option<String>,
    clients: Arc<AtomicU32>,
    server: Server<VolumeHandle>,
    stop: CancellationToken,
}

/// All doors of this node.
#[derive(Debug)]
pub(super) struct Doors {
    dir: PathBuf,
    tcp: Option<Tcp>,
    open: Mutex<BTreeMap<VolumeId, Open>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Tcp {
    server: Server<VolumeHandle>,
    host: String,
    port: u16,
}

impl Doors {
    /// Doors in a directory, which is made, and behind a TCP port if there is a listener. `host`
    /// and `port` are what clients are told of it. Cancelling `stop` closes all.
    pub(super) fn new(
        dir: &Path,
        tcp: Option<(TcpListener, String, u16)>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let tasks = TaskTracker::new();
        let tcp = tcp.map(|(listener, host, port)| {
            let server = Server::new(Limits::default(), stop.child_token());
            let serving = server.clone();
            tasks.spawn(async move { serving.serve(listener).await });
            Tcp { server, host, port }
        });
        let open = Mutex::new(BTreeMap::new());
        Ok(Self { dir: dir.to_owned(), tcp, open, tasks, stop })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the door of a volume.
    ///
    /// # Errors
    /// If its socket cannot be made or its name is taken; says what to do.
    pub(super) fn open(&self, name: &str, handle: &VolumeHandle) -> Result<(), String> {
        let volume = handle.volume();
        let mut path = self.dir.join(format!("{name}.sock"));
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            path = self.dir.join(format!("{volume}.sock"));
        }
        let stop = self.stop.child_token();
        let server = Server::new(Limits::default(), stop.clone());
        server.add(Export::new(name, Arc::new(handle.clone()))).map_err(|e| e.to_string())?;
        let listener = bind_unix(&path).map_err(|e| {
            format!("cannot listen at {}: {e}; remove what is there", path.display())
        })?;
        let uri_tcp = match &self.tcp {
            None => None,
            Some(tcp) => {
                let export = Export::new(name, Arc::new(handle.clone()));
                if let Err(error) = tcp.server.add(export) {
                    // The listener goes with this call; its path must not stay behind.
                    let _ = fs::remove_file(&path);
                    return Err(error.to_string());
                }
                Some(NbdUri::tcp(tcp.host.clone(), tcp.port, name).to_string())
            }
        };
        let uri = NbdUri::unix(path.clone(), name);
        let clients = Arc::new(AtomicU32::new(0));
        self.tasks.spawn(accept(listener, server.clone(), stop.clone(), Arc::clone(&clients)));
        let (name, uri) = (name.to_owned(), uri.to_string());
        self.lock().insert(volume, Open { name, path, uri, uri_tcp, clients, server, stop });
        Ok(())
    }

    /// The door of a volume, if it is open.
    pub(super) fn find(&self, volume: VolumeId) -> Option<Door> {
        self.lock().get(&volume).map(|open| Door {
            uri: open.uri.clone(),
            uri_tcp: open.uri_tcp.clone(),
            clients: open.clients.load(Ordering::Relaxed),
        })
    }

    /// Closes the door of a volume. Requests in flight are finished, or fail; returns when no
    /// client is left.
    pub(super) async fn close(&self, volume: VolumeId) {
        let Some(open) = self.lock().remove(&volume) else { return };
        if let Err(error) = fs::remove_file(&open.path) {
            tracing::warn!(%error, path = %open.path.display(), "cannot remove the socket");
        }
        let unix = async {
            // Not there any more only if the server was stopped, which closed it.
            let _ = open.server.remove(&open.name).await;
            open.stop.cancel();
        };
        let tcp = async {
            if let Some(tcp) = &self.tcp {
                let _ = tcp.server.remove(&open.name).await;
            }
        };
        futures::join!(unix, tcp);
    }

    /// Closes all doors.
    pub(super) async fn close_all(&self) {
        let volumes: Vec<VolumeId> = self.lock().keys().copied().collect();
        futures::future::join_all(volumes.into_iter().map(|volume| self.close(volume))).await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Lets clients in, and counts them, until the door is closed.
async fn accept(
    listener: UnixListener,
    server: Server<VolumeHandle>,
    stop: CancellationToken,
    clients: Arc<AtomicU32>,
) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (server, clients) = (server.clone(), Arc::clone(&clients));
                tasks.spawn(async move {
                    let (reader, writer) = stream.into_split();
                    clients.fetch_add(1, Ordering::Relaxed);
                    server.serve_stream(reader, writer, "unix socket").await;
                    clients.fetch_sub(1, Ordering::Relaxed);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an NBD client");
                // Mostly for want of descriptors; trying at once would only burn time.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}
