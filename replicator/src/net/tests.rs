use super::*;
use crate::engine::Resolver;
use async_trait::async_trait;
use bytes::Bytes;
use lockstep_core::id::{Epoch, Gen, Seq, VolumeId};
use lockstep_core::message::{Header, Payload};
use lockstep_core::range::BlockRange;
use lockstep_core::wire::{Frame, LinkFrame, Prefix, RejectReason};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(20);
const CLUSTER: Uuid = Uuid::from_u128(1);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(7))
}

fn header(seq: u64) -> Header {
    let (epoch, r#gen) = (Epoch(1), Gen(1));
    Header { volume: volume(), epoch, r#gen, seq: Seq(seq), commit: Seq(0) }
}

fn write(seq: u64, blocks: usize) -> Message<Request> {
    let [fill, ..] = seq.to_le_bytes();
    let payload = Payload::checksummed(Bytes::from(vec![fill; blocks * 4096]));
    let range = BlockRange::new(0, u32::try_from(blocks).unwrap());
    Message { header: header(seq), body: Request::Write { range, fua: false, payload } }
}

/// Answers everything with "done".
#[derive(Debug, Default)]
struct Echo {
    aligned: Mutex<Vec<bool>>,
    gone: Mutex<Vec<Conn>>,
}

impl Service for Echo {
    fn request(&self, from: &Arc<Connection>, message: Message<Request>) {
        if let Request::Write { payload, .. } = &message.body {
            self.aligned.lock().unwrap().push(crate::buf::is_aligned(&payload.data));
        }
        from.push(&Frame::Reply(Message { header: message.header, body: Reply::Done }));
        from.flush();
    }

    fn disconnected(&self, conn: Conn) {
        self.gone.lock().unwrap().push(conn);
    }
}

struct Port {
    addr: SocketAddr,
    echo: Arc<Echo>,
    stop: CancellationToken,
}

impl Port {
    async fn open() -> Self {
        let net = Net::new(Clock::start(), CLUSTER, node("server"));
        let (echo, stop) = (Arc::new(Echo::default()), CancellationToken::new());
        let any = "127.0.0.1:0".parse().unwrap();
        let service: Arc<dyn Service> = echo.clone();
        let server = Server::start(net, any, service, stop.clone()).await.unwrap();
        Self { addr: server.addr(), echo, stop }
    }

    /// What the port answers to these bytes until it closes the connection.
    async fn answer_to(&self, bytes: &[u8]) -> Vec<Frame> {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        // The port may close before everything is sent.
        let _ = stream.write_all(bytes).await;
        let mut frames = Vec::new();
        let reading = async {
            while let Some(frame) = read_frame(&mut stream).await {
                frames.push(frame);
            }
        };
        timeout(LONG, reading).await.expect("the connection is never closed");
        frames
    }

    /// Does the port serve a well-behaved peer?
    async fn assert_serves(&self) {
        let mut client = Client::connect(self.addr, "witness", CLUSTER).await;
        client.connected().await;
        client.ask(write(1, 1));
        assert_eq!(client.reply().await.body, Reply::Done);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn read_frame(stream: &mut TcpStream) -> Option<Frame> {
    let mut header = [0; lockstep_core::wire::HEADER_BYTES];
    stream.read_exact(&mut header).await.ok()?;
    let prefix = Prefix::parse(&header).expect("the port sends frames");
    let mut rest = vec![0; prefix.body_len() + prefix.data_len()];
    stream.read_exact(&mut rest).await.ok()?;
    let mut body = Bytes::from(rest);
    let data = body.split_off(prefix.body_len());
    Some(prefix.finish(body, data).expect("the port sends intact frames"))
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let encoded = wire::encode(frame);
    [encoded.head.as_ref(), encoded.data.as_ref()].concat()
}

fn hello(cluster: Uuid, name: &str, versions: (u16, u16)) -> Frame {
    Frame::Link(LinkFrame::Hello {
        min_version: versions.0,
        max_version: versions.1,
        cluster,
        node: node(name),
        process: 1,
    })
}

/// Asks again and again until there is an answer; panics if there is none for very long.
async fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, asking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// The dialling end, with one volume that uses it.
struct Client {
    peers: Arc<Peers>,
    events: mpsc::UnboundedReceiver<Heard>,
    conn: Option<Arc<Connection>>,
    _stop: tokio_util::sync::DropGuard,
}

#[derive(Debug)]
enum Heard {
    Up(Arc<Connection>),
    Down(Conn),
    Reply(Message<Reply>),
}

struct Forward(mpsc::UnboundedSender<Heard>);

impl Subscriber for Forward {
    fn connected(&self, conn: &Arc<Connection>) {
        let _ = self.0.send(Heard::Up(Arc::clone(conn)));
    }

    fn disconnected(&self, conn: Conn) {
        let _ = self.0.send(Heard::Down(conn));
    }

    fn reply(&self, _: Conn, message: Message<Reply>) {
        let _ = self.0.send(Heard::Reply(message));
    }
}

#[derive(Debug)]
struct At(SocketAddr);

#[async_trait]
impl Resolver for At {
    async fn peer_addr(&self, _: &NodeId) -> Result<SocketAddr, String> {
        Ok(self.0)
    }
}

impl Client {
    async fn connect(addr: SocketAddr, name: &str, cluster: Uuid) -> Self {
        let net = Net::new(Clock::start(), cluster, node(name));
        let stop = CancellationToken::new();
        let peers = Peers::new(net, Arc::new(At(addr)), stop.clone());
        let (forward, events) = mpsc::unbounded_channel();
        peers.connect(&node("server"), User::Primary(volume()), Arc::new(Forward(forward)));
        tokio::task::yield_now().await;
        Self { peers, events, conn: None, _stop: stop.drop_guard() }
    }

    async fn next(&mut self) -> Heard {
        timeout(LONG, self.events.recv()).await.expect("nothing heard").unwrap()
    }

    async fn connected(&mut self) -> Arc<Connection> {
        match self.next().await {
            Heard::Up(conn) => {
                self.conn = Some(Arc::clone(&conn));
                conn
            }
            other => panic!("{other:?} instead of a connection"),
        }
    }

    fn ask(&self, message: Message<Request>) {
        let conn = self.conn.as_ref().unwrap();
        conn.push(&Frame::Request(message));
        conn.flush();
    }

    async fn reply(&mut self) -> Message<Reply> {
        match self.next().await {
            Heard::Reply(message) => message,
            other => panic!("{other:?} instead of a reply"),
        }
    }

    /// Why there is no connection, as soon as there is a reason.
    async fn trouble(&self) -> String {
        wait_for("trouble", || self.peers.trouble(&node("server"))).await
    }
}

#[tokio::test]
async fn requests_are_answered_and_their_data_suits_direct_io() {
    let port = Port::open().await;
    let mut client = Client::connect(port.addr, "client", CLUSTER).await;
    client.connected().await;
    for (seq, blocks) in (1..=100).zip([1, 2, 17, 256].into_iter().cycle()) {
        client.ask(write(seq, blocks));
    }
    for seq in 1..=100 {
        assert_eq!(client.reply().await.header.seq, Seq(seq), "one connection keeps the order");
    }
    let aligned = port.echo.aligned.lock().unwrap().clone();
    assert_eq!(aligned, vec![true; 100]);
}

#[tokio::test]
async fn garbage_closes_its_connection_and_nothing_else() {
    let port = Port::open().await;
    let intact = bytes_of(&hello(CLUSTER, "x", (1, 1)));
    let mut oversized = intact.clone();
    // The announced length of the body, in the header; its checksum no longer fits.
    oversized[52..56].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut cases = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xFF; 100_000],
        oversized,
        bytes_of(&Frame::Request(write(1, 1))),
        bytes_of(&Frame::Link(LinkFrame::Ping { id: 1 })),
        [intact.clone(), intact.clone()].concat(),
    ];
    // Damage in every byte of a hello.
    for i in 0..intact.len() {
        let mut damaged = intact.clone();
        damaged[i] ^= 0x40;
        cases.push(damaged);
    }
    for case in cases {
        let answer = port.answer_to(&case).await;
        let welcomed = answer.iter().any(|f| matches!(f, Frame::Link(LinkFrame::Welcome { .. })));
        let twice = case.len() == 2 * intact.len();
        assert!(!welcomed || twice, "welcomed {case:?}");
        assert!(!answer.iter().any(|f| matches!(f, Frame::Reply(_))), "answered {case:?}");
    }
    port.assert_serves().await;
}

#[tokio::test]
async fn a_frame_cut_short_is_dropped() {
    let port = Port::open().await;
    let greeting = bytes_of(&hello(CLUSTER, "x", (1, 1)));
    let request = bytes_of(&Frame::Request(write(1, 4)));
    for cut in [0, 1, 71, 72, 100, request.len() - 1] {
        let mut stream = TcpStream::connect(port.addr).await.unwrap();
        stream.write_all(&greeting).await.unwrap();
        assert!(matches!(
            read_frame(&mut stream).await,
            Some(Frame::Link(LinkFrame::Welcome { .. }))
        ));
        stream.write_all(&request[..cut]).await.unwrap();
        stream.shutdown().await.unwrap();
        let end = timeout(LONG, read_frame(&mut stream)).await;
        assert!(matches!(end, Ok(None | Some(Frame::Link(LinkFrame::Ping { .. })))), "{end:?}");
    }
    assert_eq!(port.echo.aligned.lock().unwrap().len(), 0, "a part of a request was served");
    port.assert_serves().await;
}

#[tokio::test]
async fn strangers_are_refused_politely() {
    let port = Port::open().await;
    let other = Uuid::from_u128(2);
    let cases = [
        (hello(CLUSTER, "x", (90, 99)), "version"),
        (hello(other, "x", (1, 1)), "cluster"),
        (hello(CLUSTER, "server", (1, 1)), "same node"),
    ];
    for (hello, what) in cases {
        let answer = port.answer_to(&bytes_of(&hello)).await;
        let [Frame::Link(LinkFrame::Reject { reason })] = answer.as_slice() else {
            panic!("{what}: {answer:?}")
        };
        let fits = match reason {
            RejectReason::Version { min, max } => what == "version" && *min == 1 && *max >= 1,
            RejectReason::Cluster => what == "cluster",
            RejectReason::SameNode => what == "same node",
            other => panic!("{what}: {other:?}"),
        };
        assert!(fits, "{what}: {reason:?}");
    }
    let stranger = Client::connect(port.addr, "client", other).await;
    let why = stranger.trouble().await;
    assert!(why.contains("another cluster"), "{why}");
    port.assert_serves().await;
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let port = Port::open().await;
    assert_eq!(port.answer_to(b"").await, vec![]);
    port.assert_serves().await;
}

#[tokio::test]
async fn a_connection_that_is_reset_is_made_anew() {
    let port = Port::open().await;
    let mut client = Client::connect(port.addr, "client", CLUSTER).await;
    let first = client.connected().await;
    first.reset();
    let Heard::Down(down) = client.next().await else { panic!("still up") };
    assert_eq!(down, first.id());
    let second = client.connected().await;
    assert_ne!(second.id(), first.id());
    client.ask(write(5, 1));
    assert_eq!(client.reply().await.header.seq, Seq(5));
    assert_eq!(port.echo.gone.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn heartbeats_keep_an_idle_connection_up() {
    let port = Port::open().await;
    let mut client = Client::connect(port.addr, "client", CLUSTER).await;
    let conn = client.connected().await;
    // Longer than silence is tolerated.
    let idle = Duration::from_millis(lockstep_core::limits::SESSION_DEAD_MS + 500);
    let heard = timeout(idle, client.events.recv()).await;
    assert!(heard.is_err(), "{heard:?}");
    assert!(conn.heard_ms() < 1000, "heard {} ms ago", conn.heard_ms());
}

#[tokio::test]
async fn a_peer_that_is_not_needed_any_more_is_left() {
    let port = Port::open().await;
    let mut client = Client::connect(port.addr, "client", CLUSTER).await;
    client.connected().await;
    client.peers.disconnect(&node("server"), User::Primary(volume()));
    wait_for("the end", || port.echo.gone.lock().unwrap().pop()).await;
    assert_eq!(client.peers.trouble(&node("server")), None);
}

#[tokio::test]
async fn a_peer_that_is_down_is_tried_again_until_it_is_there() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    drop(taken);
    let mut client = Client::connect(addr, "client", CLUSTER).await;
    let why = client.trouble().await;
    assert!(why.contains("cannot connect"), "{why}");
    let net = Net::new(Clock::start(), CLUSTER, node("server"));
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    Server::start(net, addr, Arc::new(Echo::default()), stop).await.unwrap();
    client.connected().await;
    assert_eq!(client.peers.trouble(&node("server")), None);
}
