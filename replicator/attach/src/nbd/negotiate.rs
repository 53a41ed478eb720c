//! The handshake: from a fresh connection to an agreed export, or to a polite refusal.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::export::{Export, Live, Registry, Visit};
use super::inbox::Inbox;
use super::limits::{Limits, OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX};
use super::option::{ContextRequest, InfoRequest, Malformed, parse_name};
use super::outbox::Outbox;
use super::proto::{
    self, BASE_ALLOCATION, BadMagic, OptionHeader, OptionReplyHeader, info, opt, rep,
};
use crate::backend::{BLOCK_BYTES, Backend};

/// The number of the one metadata context there is.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;

/// What client and server agreed on.
pub(crate) struct Session<B> {
    pub(crate) visit: Visit<B>,
    /// Reads are answered with structured replies.
    pub(crate) structured: bool,
    /// `BLOCK_STATUS` may be asked for.
    pub(crate) base_allocation: bool,
}

/// Why a handshake ended without a session, other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    BadMagic(#[from] BadMagic),
    #[error("client flags {0:#x} are unknown: the client is too new or no NBD client")]
    UnknownClientFlags(u32),
    #[error("option {0} from a client that did not agree to fixed newstyle negotiation")]
    NotFixed(u32),
    #[error("more options than the limit of {0}")]
    TooManyOptions(u32),
    #[error("option {option} carries {length} bytes, more than the limit of {OPTION_BYTES_MAX}")]
    OptionTooBig { option: u32, length: u32 },
    #[error("the export asked for by EXPORT_NAME is not available: {0}")]
    Unavailable(&'static str),
}

/// What one option leads to.
enum Next<B> {
    Continue,
    Leave,
    Transmit(Visit<B>),
}

/// Runs the handshake. None: the client ended it.
pub(crate) async fn negotiate<B, R, W>(
    registry: &Registry<B>,
    limits: &Limits,
    inbox: &mut Inbox<R>,
    outbox: &mut Outbox<W>,
) -> Result<Option<Session<B>>, HandshakeError>
where
    B: Backend,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let flags = proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES;
    outbox.put(&proto::INIT_MAGIC.to_be_bytes());
    outbox.put(&proto::OPTION_MAGIC.to_be_bytes());
    outbox.put(&flags.to_be_bytes());
    outbox.flush().await?;
    let client_flags = u32::from_be_bytes(inbox.exact().await?);
    if client_flags & !u32::from(flags) != 0 {
        return Err(HandshakeError::UnknownClientFlags(client_flags));
    }
    let has = |flag: u16| client_flags & u32::from(flag) != 0;
    let mut haggling = Haggling {
        registry,
        inbox,
        outbox,
        fixed: has(proto::FLAG_FIXED_NEWSTYLE),
        no_zeroes: has(proto::FLAG_NO_ZEROES),
        structured: false,
        context_of: None,
    };
    for _ in 0..limits.options_max {
        let next = haggling.option().await?;
        haggling.outbox.flush().await?;
        match next {
            Next::Continue => {}
            Next::Leave => return Ok(None),
            Next::Transmit(visit) => return Ok(Some(haggling.agreed(visit))),
        }
    }
    Err(HandshakeError::TooManyOptions(limits.options_max))
}

struct Haggling<'a, B, R, W> {
    registry: &'a Registry<B>,
    inbox: &'a mut Inbox<R>,
    outbox: &'a mut Outbox<W>,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// Name of the export for which `base:allocation` was chosen.
    context_of: Option<String>,
}

impl<B, R, W> Haggling<'_, B, R, W>
where
    B: Backend,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    fn agreed(&self, visit: Visit<B>) -> Session<B> {
        let base_allocation =
            self.structured && self.context_of.as_ref() == Some(&visit.export().name);
        Session { visit, structured: self.structured, base_allocation }
    }

    /// Receives one option and queues its replies.
    async fn option(&mut self) -> Result<Next<B>, HandshakeError> {
        let OptionHeader { option, length } = OptionHeader::decode(&self.inbox.exact().await?)?;
        if !self.fixed && option != opt::EXPORT_NAME {
            return Err(HandshakeError::NotFixed(option));
        }
        if length > OPTION_BYTES_MAX {
            self.reply_text(option, rep::ERR_TOO_BIG, "the option's data is too long");
            self.outbox.flush().await?;
            return Err(HandshakeError::OptionTooBig { option, length });
        }
        let mut data = vec![0; length as usize];
        self.inbox.read_into(&mut data).await?;
        match option {
            opt::EXPORT_NAME => return self.export_name(&data).await.map(Next::Transmit),
            opt::ABORT => {
                self.reply(option, rep::ACK, &[]);
                return Ok(Next::Leave);
            }
            opt::GO => return Ok(self.go(&data).await),
            opt::LIST => self.list(&data),
            opt::INFO => self.info(&data),
            opt::STRUCTURED_REPLY => self.structured_reply(&data),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta_context(option, &data),
            opt::STARTTLS => self.reply_text(option, rep::ERR_UNSUP, "TLS is not supported"),
            _ => self.reply_text(option, rep::ERR_UNSUP, "the option is not supported"),
        }
        Ok(Next::Continue)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        let Ok(length) = u32::try_from(data.len()) else {
            unreachable!("replies are made of strings of at most 4096 bytes")
        };
        self.outbox.put(&OptionReplyHeader { option, kind, length }.encode());
        self.outbox.put(data);
    }

    fn reply_text(&mut self, option: u32, kind: u32, text: &str) {
        self.reply(option, kind, text.as_bytes());
    }

    fn refuse(&mut self, option: u32, malformed: Malformed) {
        match malformed {
            Malformed::Invalid(why) => self.reply_text(option, rep::ERR_INVALID, why),
            Malformed::TooBig(why) => self.reply_text(option, rep::ERR_TOO_BIG, why),
        }
    }

    async fn export_name(&mut self, data: &[u8]) -> Result<Visit<B>, HandshakeError> {
        let unavailable = HandshakeError::Unavailable;
        let name = parse_name(data).map_err(|_| unavailable("the name is malformed"))?;
        let live = self.registry.find(&name).ok_or(unavailable("there is none of this name"))?;
        let visit = live.enter().await.ok_or(unavailable("it is being removed"))?;
        let export = visit.export();
        let facts = export.backend.info();
        let flags = export.transmission_flags(&facts, self.structured);
        self.outbox.put(&facts.size_bytes.to_be_bytes());
        self.outbox.put(&flags.to_be_bytes());
        if !self.no_zeroes {
            self.outbox.put(&[0; 124]);
        }
        Ok(visit)
    }

    fn list(&mut self, data: &[u8]) {
        if !data.is_empty() {
            self.reply_text(opt::LIST, rep::ERR_INVALID, "LIST takes no data");
            return;
        }
        for (name, description) in self.registry.list() {
            let length = u32::try_from(name.len()).unwrap_or(0).to_be_bytes();
            let entry = [&length[..], name.as_bytes(), description.as_bytes()].concat();
            self.reply(opt::LIST, rep::SERVER, &entry);
        }
        self.reply(opt::LIST, rep::ACK, &[]);
    }

    /// The export an `INFO` or `GO` is about; None once the client has been told why not.
    fn wanted(&mut self, option: u32, data: &[u8]) -> Option<(Arc<Live<B>>, InfoRequest)> {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(malformed) => {
                self.refuse(option, malformed);
                return None;
            }
        };
        let Some(live) = self.registry.find(&request.name) else {
            self.unknown(option, &request.name);
            return None;
        };
        Some((live, request))
    }

    fn unknown(&mut self, option: u32, name: &str) {
        if name.is_empty() {
            let why = "there is no default export: name one of those that LIST shows";
            self.reply_text(option, rep::ERR_UNKNOWN, why);
        } else {
            self.reply_text(option, rep::ERR_UNKNOWN, "there is no export of this name");
        }
    }

    fn info(&mut self, data: &[u8]) {
        if let Some((live, request)) = self.wanted(opt::INFO, data) {
            self.tell(opt::INFO, &live.export, &request);
        }
    }

    async fn go(&mut self, data: &[u8]) -> Next<B> {
        let Some((live, request)) = self.wanted(opt::GO, data) else { return Next::Continue };
        let Some(visit) = live.enter().await else {
            self.reply_text(opt::GO, rep::ERR_SHUTDOWN, "the export is being removed");
            return Next::Continue;
        };
        self.tell(opt::GO, visit.export(), &request);
        Next::Transmit(visit)
    }

    /// Queues what is to be said about an export. Block sizes are always told; name and
    /// description only on request.
    fn tell(&mut self, option: u32, export: &Export<B>, request: &InfoRequest) {
        let facts = export.backend.info();
        let flags = export.transmission_flags(&facts, self.structured);
        let mut item = info::EXPORT.to_be_bytes().to_vec();
        item.extend_from_slice(&facts.size_bytes.to_be_bytes());
        item.extend_from_slice(&flags.to_be_bytes());
        self.reply(option, rep::INFO, &item);

        let mut item = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [BLOCK_BYTES, BLOCK_BYTES, PAYLOAD_BYTES_MAX] {
            item.extend_from_slice(&size.to_be_bytes());
        }
        self.reply(option, rep::INFO, &item);

        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if request.items.contains(&kind) {
                let item = [&kind.to_be_bytes()[..], text.as_bytes()].concat();
                self.reply(option, rep::INFO, &item);
            }
        }
        self.reply(option, rep::ACK, &[]);
    }

    fn structured_reply(&mut self, data: &[u8]) {
        if data.is_empty() {
            self.structured = true;
            self.reply(opt::STRUCTURED_REPLY, rep::ACK, &[]);
        } else {
            let why = "STRUCTURED_REPLY takes no data";
            self.reply_text(opt::STRUCTURED_REPLY, rep::ERR_INVALID, why);
        }
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) {
        let setting = option == opt::SET_META_CONTEXT;
        if setting {
            self.context_of = None;
        }
        if !self.structured {
            let why = "ask for structured replies before metadata contexts";
            return self.reply_text(option, rep::ERR_INVALID, why);
        }
        let request = match ContextRequest::parse(data) {
            Ok(request) => request,
            Err(malformed) => return self.refuse(option, malformed),
        };
        let Some(live) = self.registry.find(&request.name) else {
            return self.unknown(option, &request.name);
        };
        let asked = |query: &String| query == BASE_ALLOCATION || (!setting && query == "base:");
        let all = !setting && request.queries.is_empty();
        if all || request.queries.iter().any(asked) {
            let id = if setting { BASE_ALLOCATION_ID } else { 0 };
            let context = [&id.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat();
            self.reply(option, rep::META_CONTEXT, &context);
            if setting {
                self.context_of = Some(live.export.name.clone());
            }
        }
        self.reply(option, rep::ACK, &[]);
    }
}
