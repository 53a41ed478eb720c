//! Our client against servers that fail it.

use std::path::PathBuf;

use bytes::Bytes;
use lockstep_attach::nbd::proto::{
    self, ChunkHeader, OptionReplyHeader, RequestHeader, chunk, opt, rep, tx,
};
use lockstep_attach::nbd::{Client, ClientError, ConnectOptions, NbdUri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::world::{MIB, memory_world, soon};

const PLAIN: ConnectOptions = ConnectOptions { structured: false, depth: 16 };

/// Accepts one client and plays the handshake of a server with one export of a MiB.
async fn play_handshake(listener: UnixListener, options: usize) -> UnixStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(&proto::INIT_MAGIC.to_be_bytes()).await.unwrap();
    stream.write_all(&proto::OPTION_MAGIC.to_be_bytes()).await.unwrap();
    stream.write_all(&3u16.to_be_bytes()).await.unwrap();
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await.unwrap();
    for _ in 0..options {
        let mut header = [0; proto::OPTION_BYTES];
        stream.read_exact(&mut header).await.unwrap();
        let header = proto::OptionHeader::decode(&header).unwrap();
        let mut data = vec![0; header.length as usize];
        stream.read_exact(&mut data).await.unwrap();
        let option = header.option;
        if option == opt::GO {
            let flags = tx::HAS_FLAGS | tx::SEND_FLUSH;
            let info = [&[0, 0][..], &MIB.to_be_bytes(), &flags.to_be_bytes()].concat();
            let reply = OptionReplyHeader { option, kind: rep::INFO, length: 12 };
            stream.write_all(&[&reply.encode()[..], &info].concat()).await.unwrap();
        }
        let ack = OptionReplyHeader { option, kind: rep::ACK, length: 0 };
        stream.write_all(&ack.encode()).await.unwrap();
    }
    stream
}

async fn read_request(stream: &mut UnixStream) -> RequestHeader {
    let mut header = [0; proto::REQUEST_BYTES];
    stream.read_exact(&mut header).await.unwrap();
    RequestHeader::decode(&header).unwrap()
}

fn listener() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (dir, path, listener)
}

#[tokio::test]
async fn a_missing_server_is_named() {
    let uri = NbdUri::unix("/nonexistent/nbd.sock", "disk");
    let error = Client::connect(&uri).await.unwrap_err().to_string();
    assert!(error.contains("nbd+unix:///disk?socket=/nonexistent/nbd.sock"), "{error}");
}

#[tokio::test]
async fn something_else_than_nbd_is_recognised() {
    let (_dir, path, listener) = listener();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.9 and some more").await.unwrap();
    });
    let error = Client::connect(&NbdUri::unix(path, "")).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol(_)), "{error}");
    server.await.unwrap();
}

#[tokio::test]
async fn every_request_learns_of_a_disconnect() {
    let (_dir, path, listener) = listener();
    let server = tokio::spawn(async move {
        let mut stream = play_handshake(listener, 1).await;
        for _ in 0..3 {
            read_request(&mut stream).await;
        }
    });
    let client = Client::connect_with(&NbdUri::unix(path, "x"), PLAIN).await.unwrap();
    let reads = (0..3u64).map(|number| client.read(number * 4096, 4096));
    for read in soon("the reads fail", futures::future::join_all(reads)).await {
        let error = read.unwrap_err();
        assert!(error.to_string().contains("server closed the connection"), "{error}");
    }
    let error = client.flush().await.unwrap_err();
    assert!(matches!(error, ClientError::Disconnected(_)), "later requests, too: {error}");
    assert!(client.close().await.is_err());
    server.await.unwrap();
}

/// What a client says to one read that is answered with `reply`.
async fn told(reply: impl FnOnce(u64) -> Vec<u8>) -> String {
    let (_dir, path, listener) = listener();
    let options = ConnectOptions { structured: true, depth: 1 };
    let uri = NbdUri::unix(path, "x");
    let (client, mut stream) =
        tokio::join!(Client::connect_with(&uri, options), play_handshake(listener, 3));
    let client = client.unwrap();
    let read = tokio::spawn(async move { client.read(0, 8192).await });
    let cookie = read_request(&mut stream).await.cookie;
    stream.write_all(&reply(cookie)).await.unwrap();
    soon("the read fails", read).await.unwrap().unwrap_err().to_string()
}

fn data_chunk(cookie: u64, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let header = ChunkHeader { flags, kind: chunk::OFFSET_DATA, cookie, length: 8 + len };
    [&header.encode()[..], &offset.to_be_bytes(), &vec![1; len as usize]].concat()
}

#[tokio::test]
async fn lies_of_a_server_are_noticed() {
    let lie = |words: &'static str, error: String| {
        assert!(error.contains(words), "expected {words:?} in {error:?}");
    };
    lie("starts with", told(|_| vec![0xff; 64]).await);
    lie("cookie", told(|cookie| data_chunk(cookie + 1, chunk::DONE, 0, 8192)).await);
    lie("not asked for", told(|cookie| data_chunk(cookie, chunk::DONE, 4096, 8192)).await);
    lie("brought 4096", told(|cookie| data_chunk(cookie, chunk::DONE, 0, 4096)).await);
    let unknown =
        |cookie| ChunkHeader { flags: chunk::DONE, kind: 77, cookie, length: 0 }.encode().to_vec();
    lie("does not belong", told(unknown).await);
    let long_text = |cookie| {
        let header = ChunkHeader { flags: chunk::DONE, kind: chunk::ERROR, cookie, length: 6 };
        [&header.encode()[..], &[0, 0, 0, 5, 0, 9]].concat()
    };
    lie("longer than its chunk", told(long_text).await);
}

#[tokio::test]
async fn an_error_chunk_with_an_offset_is_an_error() {
    let error = told(|cookie| {
        let data = data_chunk(cookie, 0, 0, 4096);
        let kind = chunk::ERROR_OFFSET;
        let header = ChunkHeader { flags: chunk::DONE, kind, cookie, length: 18 };
        let payload = [&[0, 0, 0, 5, 0, 4][..], b"rust", &4096u64.to_be_bytes()].concat();
        [data, header.encode().to_vec(), payload].concat()
    })
    .await;
    assert!(error.contains("input/output error (rust)"), "{error}");
}

#[tokio::test]
async fn an_abandoned_request_does_not_disturb_the_others() {
    let (world, _) = memory_world(MIB).await;
    let options = ConnectOptions { structured: true, depth: 1 };
    let client = Client::connect_with(&world.unix("disk"), options).await.unwrap();
    for _ in 0..100 {
        let abandoned = tokio::spawn({
            let client = client.clone();
            async move { client.read(0, 1 << 20).await }
        });
        tokio::task::yield_now().await;
        abandoned.abort();
        client.write(0, Bytes::from(vec![1; 4096]), false).await.unwrap();
    }
    client.close().await.unwrap();
}

#[tokio::test]
async fn exports_are_listed() {
    let (world, backend) = memory_world(MIB).await;
    world.add("another", &backend);
    for uri in [world.unix(""), world.tcp("")] {
        let exports = Client::list(&uri).await.unwrap();
        let names: Vec<_> = exports.iter().map(|export| export.name.as_str()).collect();
        assert_eq!(names, ["another", "disk"]);
    }
}
