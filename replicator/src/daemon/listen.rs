//! The sockets of a daemon, apart from those of peers, which are the engine's.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lockstep_attach::nbd::bind_unix;
use lockstep_meta::server::Service as MetaService;
use lockstep_proto::v1::control_server::ControlServer;
use lockstep_proto::v1::meta_server::MetaServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::admin::Admin;
use crate::config::Config;

/// Sockets that are taken before anything else is done, so that a daemon that cannot have them
/// changes nothing.
pub(super) struct Listeners {
    pub(super) admin: TcpListener,
    pub(super) admin_addr: SocketAddr,
    pub(super) socket: UnixListener,
    /// With the host and port that clients are told.
    pub(super) nbd: Option<(TcpListener, String, u16)>,
}

impl Listeners {
    pub(super) async fn bind(config: &Config) -> anyhow::Result<Self> {
        let (admin, admin_addr) = tcp("admin_listen", config.admin_listen).await?;
        let nbd = match config.nbd_listen {
            None => None,
            Some(listen) => {
                let (listener, addr) = tcp("nbd_listen", listen).await?;
                let told = advertised(config.nbd_address.as_deref(), addr);
                let (host, port) = told.rsplit_once(':').unwrap_or((&told, ""));
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                Some((listener, host, port.parse().unwrap_or(addr.port())))
            }
        };
        if let Some(dir) = config.socket.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make {} for `socket`", dir.display()))?;
        }
        let path = config.socket.display();
        let socket = bind_unix(&config.socket).with_context(|| {
            format!("cannot listen at socket = {path}; does another daemon run with this socket?")
        })?;
        Ok(Self { admin, admin_addr, socket, nbd })
    }
}

/// How long an address may be taken by what is left of the daemon before this one: a child that it
/// was just making when it was killed has its sockets and files until it becomes its program.
const TAKEN_LIMIT: Duration = Duration::from_secs(1);
const TAKEN_PAUSE: Duration = Duration::from_millis(5);

async fn bind_soon(listen: SocketAddr) -> io::Result<TcpListener> {
    let begin = Instant::now();
    loop {
        match TcpListener::bind(listen).await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < TAKEN_LIMIT => {}
            outcome => return outcome,
        }
        tokio::time::sleep(TAKEN_PAUSE).await;
    }
}

async fn tcp(key: &str, listen: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = bind_soon(listen).await.with_context(|| {
        format!("cannot listen at {key} = {listen}; is the port in use, the address local?")
    })?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

/// What others are told: the address that was configured, else the one listened on.
pub(super) fn advertised(configured: Option<&str>, listened: SocketAddr) -> String {
    configured.map_or_else(|| listened.to_string(), str::to_owned)
}

/// Serves the admin API, and the record store if this daemon owns it, until `stop`.
pub(super) async fn serve<I, S>(
    control: ControlServer<Admin>,
    meta: Option<MetaServer<MetaService>>,
    incoming: I,
    stop: CancellationToken,
) where
    I: Stream<Item = std::io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let served = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(control)
        .add_optional_service(meta)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the admin API is not served any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_taken_for_a_moment_is_waited_for() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = taken.local_addr().unwrap();
        let mut bound = Box::pin(bind_soon(addr));
        assert!(futures::poll!(&mut bound).is_pending());
        drop(taken);
        assert_eq!(bound.await.unwrap().local_addr().unwrap(), addr);
    }

    #[tokio::test]
    async fn an_address_that_stays_taken_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = tcp("admin_listen", taken.local_addr().unwrap()).await.unwrap_err();
        assert!(refused.to_string().contains("is the port in use"), "{refused}");
    }
}
