//! The peer port: takes connections of other nodes and hands their requests to the replicas here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::id::NodeId;
use lockstep_core::link::Role;
use lockstep_core::wire::{Frame, RejectReason};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Handler, run};
use super::{Net, Service};

/// Most connections at the same time, handshakes included: more than a cluster has nodes.
const CONNECTIONS_MAX: usize = 4096;
/// Pause after the system refused to accept, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The peer port.
#[derive(Debug)]
pub(crate) struct Server {
    addr: SocketAddr,
}

impl Server {
    /// Listens and serves until `stop` is cancelled.
    ///
    /// # Errors
    /// If the port can't be had.
    pub(crate) async fn start(
        net: Arc<Net>,
        addr: SocketAddr,
        service: Arc<dyn Service>,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let accepting = Accepting {
            net,
            handler: Arc::new(Accepted { service, by_node: Mutex::default() }),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            stop,
        };
        tokio::spawn(accepting.run(listener));
        Ok(Self { addr })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

struct Accepting {
    net: Arc<Net>,
    handler: Arc<Accepted>,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Accepting {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, addr)) => self.serve(stream, addr),
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a peer's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, addr: SocketAddr) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::warn!(%addr, "too many connections: one refused");
            return;
        };
        let net = Arc::clone(&self.net);
        let (handler, stop) = (Arc::clone(&self.handler), self.stop.clone());
        tokio::spawn(async move {
            let params = net.link_params(Role::Acceptor, None);
            let ended = run(&net, stream, params, &stop, handler.as_ref()).await;
            tracing::info!(%addr, why = %ended, "connection of a peer ended");
            drop(slot);
        });
    }
}

/// The accepting end of all connections.
struct Accepted {
    service: Arc<dyn Service>,
    /// The newest connection of each node.
    by_node: Mutex<BTreeMap<NodeId, Arc<Connection>>>,
}

impl Accepted {
    fn by_node(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Connection>>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Accepted {
    fn up(&self, conn: &Arc<Connection>) -> Result<(), RejectReason> {
        tracing::info!(peer = %conn.peer(), conn = %conn.id(), "peer connected");
        // A node dials again only when its old connection is dead to it, or it was restarted.
        let old = self.by_node().insert(conn.peer().clone(), Arc::clone(conn));
        if let Some(old) = old {
            old.reset();
        }
        Ok(())
    }

    fn frame(&self, conn: &Arc<Connection>, frame: Frame) -> Result<(), &'static str> {
        match frame {
            Frame::Request(message) => {
                self.service.request(conn, message);
                Ok(())
            }
            Frame::Reply(_) => Err("a reply to what was never asked"),
            Frame::Link(_) => Ok(()),
        }
    }

    fn down(&self, conn: &Arc<Connection>) {
        let mut by_node = self.by_node();
        if by_node.get(conn.peer()).is_some_and(|newest| newest.id() == conn.id()) {
            by_node.remove(conn.peer());
        }
        drop(by_node);
        self.service.disconnected(conn.id());
    }
}
