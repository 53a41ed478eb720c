//! A client by hand, which sends whatever a test wants.

use std::path::Path;

use lockstep_attach::nbd::proto::{
    self, ChunkHeader, OptionHeader, OptionReplyHeader, RequestHeader, cmd, opt, rep,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::world::soon;

pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) option: u32,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

/// A chunk of a structured reply, or a simple reply as a chunk without type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Simple { error: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, data: Vec<u8> },
}

pub(crate) fn simple(error: u32, cookie: u64) -> Answer {
    Answer::Simple { error, cookie }
}

pub(crate) fn request(command: u16, cookie: u64, offset: u64, length: u32) -> RequestHeader {
    RequestHeader { flags: 0, command, cookie, offset, length }
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

/// Data of INFO and GO.
pub(crate) fn info_data(name: &str, items: &[u16]) -> Vec<u8> {
    let mut data = text(name);
    data.extend_from_slice(&u16::try_from(items.len()).unwrap().to_be_bytes());
    data.extend(items.iter().flat_map(|item| item.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = text(name);
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    data.extend(queries.iter().flat_map(|query| text(query)));
    data
}

impl Raw {
    /// Connects and reads the greeting.
    pub(crate) async fn greeted(socket: &Path) -> Self {
        let mut raw = Self { stream: UnixStream::connect(socket).await.unwrap() };
        let mut expected = proto::INIT_MAGIC.to_be_bytes().to_vec();
        expected.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
        expected.extend_from_slice(&3u16.to_be_bytes());
        assert_eq!(raw.receive(18).await, expected, "the greeting");
        raw
    }

    /// Connects and agrees to fixed newstyle without padding.
    pub(crate) async fn haggling(socket: &Path) -> Self {
        let mut raw = Self::greeted(socket).await;
        raw.send(&3u32.to_be_bytes()).await;
        raw
    }

    /// Connects and enters the transmission phase of `export`.
    pub(crate) async fn transmitting(socket: &Path, export: &str, structured: bool) -> Self {
        let mut raw = Self::haggling(socket).await;
        if structured {
            let replies = raw.ask(opt::STRUCTURED_REPLY, &[]).await;
            assert_eq!(replies[0].kind, rep::ACK);
        }
        let replies = raw.ask(opt::GO, &info_data(export, &[])).await;
        assert_eq!(replies.last().unwrap().kind, rep::ACK, "GO was refused");
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        soon("bytes from the server", self.stream.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    async fn array<const N: usize>(&mut self) -> [u8; N] {
        self.receive(N).await.try_into().unwrap()
    }

    /// Asserts that the server closes the connection without another byte.
    pub(crate) async fn assert_closed(mut self) {
        let mut rest = Vec::new();
        // A reset is a close, too: the server need not read what it refuses.
        let _ = soon("the server closes", self.stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "the server said something before it closed");
    }

    pub(crate) async fn send_option(&mut self, option: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.send(&OptionHeader { option, length }.encode()).await;
        self.send(data).await;
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        let header = OptionReplyHeader::decode(&self.array().await).unwrap();
        let data = self.receive(header.length as usize).await;
        Reply { option: header.option, kind: header.kind, data }
    }

    /// Sends an option and gathers its replies, the final one last.
    pub(crate) async fn ask(&mut self, option: u32, data: &[u8]) -> Vec<Reply> {
        self.send_option(option, data).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.reply().await;
            assert_eq!(reply.option, option);
            let last = reply.kind == rep::ACK || reply.kind & rep::ERROR != 0;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// The final reply's type.
    pub(crate) async fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        self.ask(option, data).await.pop().unwrap().kind
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        match u32::from_be_bytes(self.array().await) {
            proto::SIMPLE_REPLY_MAGIC => Answer::Simple {
                error: u32::from_be_bytes(self.array().await),
                cookie: u64::from_be_bytes(self.array().await),
            },
            proto::STRUCTURED_REPLY_MAGIC => {
                let ChunkHeader { flags, kind, cookie, length } =
                    ChunkHeader::decode_after_magic(&self.array().await);
                let data = self.receive(length as usize).await;
                Answer::Chunk { flags, kind, cookie, data }
            }
            magic => panic!("a reply starts with {magic:#x}"),
        }
    }

    /// Sends a request without payload and returns the first answer.
    pub(crate) async fn call(&mut self, header: RequestHeader) -> Answer {
        self.send(&header.encode()).await;
        self.answer().await
    }

    /// Asserts that the connection is in step: a flush is answered.
    pub(crate) async fn assert_alive(&mut self) {
        let cookie = 0xfeed_beef;
        assert_eq!(self.call(request(cmd::FLUSH, cookie, 0, 0)).await, simple(0, cookie));
    }
}
