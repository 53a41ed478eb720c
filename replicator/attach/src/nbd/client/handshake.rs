//! The client's side of the negotiation.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{ClientError, ExportFacts, ListedExport};
use crate::nbd::inbox::Inbox;
use crate::nbd::limits::{OPTION_BYTES_MAX, STRING_BYTES_MAX};
use crate::nbd::outbox::Outbox;
use crate::nbd::proto::{
    BASE_ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, OPTION_MAGIC, OptionHeader,
    OptionReplyHeader, info, opt, rep,
};

/// A server with more exports than this is not listed in full.
const REPLIES_MAX: usize = 65_536;

pub(super) struct Handshake<R, W> {
    pub(super) inbox: Inbox<R>,
    pub(super) outbox: Outbox<W>,
}

/// One reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.data).into_owned();
        if !text.is_empty() {
            return text;
        }
        match self.kind {
            rep::ERR_UNSUP => "not supported".to_owned(),
            rep::ERR_POLICY => "not allowed".to_owned(),
            rep::ERR_UNKNOWN => "no such export".to_owned(),
            rep::ERR_SHUTDOWN => "shutting down".to_owned(),
            kind => format!("reply type {kind:#x}"),
        }
    }
}

fn lost(error: &io::Error) -> ClientError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return ClientError::Disconnected("the server hung up during the handshake".to_owned());
    }
    ClientError::Disconnected(format!("the connection broke during the handshake: {error}"))
}

fn odd(why: &str) -> ClientError {
    ClientError::Protocol(why.to_owned())
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Handshake<R, W> {
    pub(super) async fn begin(inbox: Inbox<R>, outbox: Outbox<W>) -> Result<Self, ClientError> {
        let mut this = Self { inbox, outbox };
        let magic = u64::from_be_bytes(this.exact().await?);
        let style = u64::from_be_bytes(this.exact().await?);
        if magic != INIT_MAGIC || style != OPTION_MAGIC {
            return Err(odd("the greeting is not that of a newstyle server"));
        }
        let flags = u16::from_be_bytes(this.exact().await?);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(odd("the server does not offer fixed newstyle negotiation"));
        }
        let reply = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        this.outbox.put(&reply.to_be_bytes());
        this.flush().await?;
        Ok(this)
    }

    async fn exact<const N: usize>(&mut self) -> Result<[u8; N], ClientError> {
        self.inbox.exact().await.map_err(|error| lost(&error))
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        self.outbox.flush().await.map_err(|error| lost(&error))
    }

    async fn send(&mut self, option: u32, data: &[u8]) -> Result<(), ClientError> {
        let length = u32::try_from(data.len()).map_err(|_| odd("the option is too long"))?;
        self.outbox.put(&OptionHeader { option, length }.encode());
        self.outbox.put(data);
        self.flush().await
    }

    async fn reply(&mut self, option: u32) -> Result<Reply, ClientError> {
        let header = OptionReplyHeader::decode(&self.exact().await?)
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        if header.option != option || header.length > OPTION_BYTES_MAX {
            return Err(odd("a reply to an option does not fit it"));
        }
        let mut data = vec![0; header.length as usize];
        self.inbox.read_into(&mut data).await.map_err(|error| lost(&error))?;
        Ok(Reply { kind: header.kind, data })
    }

    /// Sends an option and gathers its replies up to the final one, which is returned apart.
    async fn ask(&mut self, option: u32, data: &[u8]) -> Result<(Vec<Reply>, Reply), ClientError> {
        self.send(option, data).await?;
        let mut replies = Vec::new();
        while replies.len() < REPLIES_MAX {
            let reply = self.reply(option).await?;
            if reply.kind == rep::ACK || reply.kind & rep::ERROR != 0 {
                return Ok((replies, reply));
            }
            replies.push(reply);
        }
        Err(odd("the replies to an option do not end"))
    }

    /// Agrees on an export; the transmission phase has begun on success.
    pub(super) async fn go(
        &mut self,
        export: &str,
        structured: bool,
    ) -> Result<ExportFacts, ClientError> {
        if export.len() > STRING_BYTES_MAX {
            return Err(ClientError::Unsupported("export names are limited to 4096 bytes"));
        }
        let mut facts = ExportFacts::default();
        if structured {
            let (_, end) = self.ask(opt::STRUCTURED_REPLY, &[]).await?;
            facts.structured = end.kind == rep::ACK;
        }
        if facts.structured {
            let data = [text(export), vec![0, 0, 0, 1], text(BASE_ALLOCATION)].concat();
            let (contexts, end) = self.ask(opt::SET_META_CONTEXT, &data).await?;
            facts.base_allocation = end.kind == rep::ACK && !contexts.is_empty();
        }
        let mut data = text(export);
        let items = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
        data.extend_from_slice(&[0, 3]);
        data.extend(items.iter().flat_map(|item| item.to_be_bytes()));
        let (replies, end) = self.ask(opt::GO, &data).await?;
        if end.kind != rep::ACK {
            let what = format!("export {export:?}");
            return Err(ClientError::Refused { what, why: end.text() });
        }
        let mut sized = false;
        for reply in replies.iter().filter(|reply| reply.kind == rep::INFO) {
            sized |= learn(&mut facts, &reply.data)?;
        }
        if sized { Ok(facts) } else { Err(odd("the server did not tell the size of the export")) }
    }

    pub(super) async fn list(&mut self) -> Result<Vec<ListedExport>, ClientError> {
        let (replies, end) = self.ask(opt::LIST, &[]).await?;
        if end.kind != rep::ACK {
            let what = "a list of its exports".to_owned();
            return Err(ClientError::Refused { what, why: end.text() });
        }
        replies.iter().map(|reply| listed(&reply.data)).collect()
    }

    pub(super) async fn abort(&mut self) -> Result<(), ClientError> {
        self.send(opt::ABORT, &[]).await
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

fn listed(data: &[u8]) -> Result<ListedExport, ClientError> {
    let split = data
        .split_first_chunk::<4>()
        .and_then(|(length, rest)| rest.split_at_checked(u32::from_be_bytes(*length) as usize));
    let (name, description) = split.ok_or_else(|| odd("an entry of the list is too short"))?;
    let read = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(ListedExport { name: read(name), description: read(description) })
}

/// Takes in one information item. True: it told the size.
fn learn(facts: &mut ExportFacts, item: &[u8]) -> Result<bool, ClientError> {
    let Some((kind, data)) = item.split_first_chunk::<2>() else {
        return Err(odd("an information item has no type"));
    };
    let read = || String::from_utf8_lossy(data).into_owned();
    match u16::from_be_bytes(*kind) {
        info::EXPORT => {
            let parts = data.split_first_chunk::<8>();
            let parts = parts.and_then(|(size, rest)| Some((size, rest.first_chunk::<2>()?)));
            let (size, flags) = parts.ok_or_else(|| odd("the export's facts are too short"))?;
            facts.size_bytes = u64::from_be_bytes(*size);
            facts.flags = u16::from_be_bytes(*flags);
            return Ok(true);
        }
        info::NAME => facts.name = Some(read()),
        info::DESCRIPTION if !data.is_empty() => facts.description = Some(read()),
        info::BLOCK_SIZE => {
            let mut sizes = [0; 3];
            let (found, _) = data.as_chunks::<4>();
            for (size, found) in sizes.iter_mut().zip(found) {
                *size = u32::from_be_bytes(*found);
            }
            facts.block_sizes = Some(sizes);
        }
        _ => {}
    }
    Ok(false)
}
