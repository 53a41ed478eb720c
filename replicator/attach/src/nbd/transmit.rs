//! The transmission phase: one task receives, executes and replies for one connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::buffer::aligned;
use super::command::{self, Agreed, Answer, Refusal};
use super::inbox::Inbox;
use super::limits::{Limits, PAYLOAD_BYTES_MAX};
use super::negotiate::Session;
use super::outbox::Outbox;
use super::proto::{BadMagic, RequestHeader, cmd};
use super::reply::put_reply;
use crate::backend::{Backend, Errno};

/// How a transmission came to its end.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said goodbye, or closed the connection between two requests.
    Left,
    /// The export was removed or the server stopped.
    Stopped,
    /// The connection broke, or the client broke the protocol.
    Failed(TransmitError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TransmitError {
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error("connection closed in the middle of a request")]
    Truncated,
    #[error(transparent)]
    BadMagic(#[from] BadMagic),
}

/// A request whose payload has not arrived in full.
struct Partial {
    header: RequestHeader,
    payload: BytesMut,
    /// Bytes still to be received and thrown away, for a payload too large to keep.
    excess: usize,
}

impl Partial {
    fn new(header: RequestHeader) -> Self {
        if header.length > PAYLOAD_BYTES_MAX {
            return Self { header, payload: BytesMut::new(), excess: header.length as usize };
        }
        Self { header, payload: aligned(header.length as usize), excess: 0 }
    }

    /// Bytes that the payload will have.
    fn wanted(&self) -> usize {
        if self.header.length > PAYLOAD_BYTES_MAX { 0 } else { self.header.length as usize }
    }
}

type Running = BoxFuture<'static, (u64, Result<Answer, Errno>)>;

/// One connection in its transmission phase.
///
/// The requests in `waiting` are exactly those with a future in `running`; a reply is queued when
/// a request leaves `waiting`, so every request is answered once, or not at all if its client is
/// gone.
pub(crate) struct Transmission<B, R, W> {
    session: Session<B>,
    agreed: Agreed,
    limits: Limits,
    inbox: Inbox<R>,
    outbox: Outbox<W>,
    partial: Option<Partial>,
    running: FuturesUnordered<Running>,
    waiting: BTreeMap<u64, RequestHeader>,
    waiting_bytes: u64,
    next_number: u64,
    refused_before: bool,
}

impl<B, R, W> Transmission<B, R, W>
where
    B: Backend,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    pub(crate) fn new(
        session: Session<B>,
        limits: Limits,
        inbox: Inbox<R>,
        outbox: Outbox<W>,
    ) -> Self {
        let agreed =
            Agreed { structured: session.structured, base_allocation: session.base_allocation };
        Self {
            session,
            agreed,
            limits,
            inbox,
            outbox,
            partial: None,
            running: FuturesUnordered::new(),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            next_number: 0,
            refused_before: false,
        }
    }

    /// Serves the connection to its end. On return no request of it is being executed.
    pub(crate) async fn run(mut self) -> End {
        let stop = self.session.visit.stop().clone();
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            end = self.serve() => Some(end),
        };
        let end = match end {
            Some(end) => end,
            None => {
                self.stop().await;
                End::Stopped
            }
        };
        assert!(self.running.is_empty(), "a request outlived its connection");
        end
    }

    async fn serve(&mut self) -> End {
        let end = match self.exchange().await {
            Ok(()) => End::Left,
            Err(error) => End::Failed(error),
        };
        // The client may be gone, but what it asked for is not called back half-way.
        self.finish_running().await;
        self.part().await;
        end
    }

    /// Receives and answers until the client leaves. May be dropped between polls: everything
    /// that has happened is in `self`.
    async fn exchange(&mut self) -> Result<(), TransmitError> {
        loop {
            while let Some((header, payload)) = self.next_request()? {
                if header.command == cmd::DISC {
                    return Ok(());
                }
                self.admit(header, payload);
            }
            let receiving = self.may_receive();
            assert!(receiving || !self.running.is_empty() || !self.outbox.is_empty());
            tokio::select! {
                biased;
                Some((number, outcome)) = self.running.next(), if !self.running.is_empty() => {
                    self.complete(number, outcome);
                }
                sent = self.outbox.flush(), if !self.outbox.is_empty() => sent?,
                more = fill(&mut self.inbox, &mut self.partial), if receiving => {
                    if !more? {
                        return self.closed();
                    }
                }
            }
        }
    }

    /// Whether a request of any size would stay within the limits, or has begun to arrive.
    fn may_receive(&self) -> bool {
        let held = self.waiting_bytes + self.outbox.queued_bytes();
        let room = self.waiting.len() < self.limits.requests_max
            && held + u64::from(PAYLOAD_BYTES_MAX) <= self.limits.bytes_max;
        room || self.partial.is_some()
    }

    fn closed(&self) -> Result<(), TransmitError> {
        if self.partial.is_some() || !self.inbox.available().is_empty() {
            return Err(TransmitError::Truncated);
        }
        Ok(())
    }

    /// The next request, if it is here in full and within the limits.
    fn next_request(&mut self) -> Result<Option<(RequestHeader, Bytes)>, BadMagic> {
        if self.partial.is_none() {
            if !self.may_receive() {
                return Ok(None);
            }
            let Some(bytes) = self.inbox.take() else { return Ok(None) };
            let header = RequestHeader::decode(&bytes)?;
            if !command::has_payload(&header) {
                return Ok(Some((header, Bytes::new())));
            }
            self.partial = Some(Partial::new(header));
        }
        let arrived = self.partial.take_if(|partial| {
            let skipped = partial.excess.min(self.inbox.available().len());
            self.inbox.consume(skipped);
            partial.excess -= skipped;
            let wanted = partial.wanted();
            partial.excess == 0 && self.inbox.move_into(&mut partial.payload, wanted)
        });
        Ok(arrived.map(|partial| (partial.header, partial.payload.freeze())))
    }

    fn admit(&mut self, header: RequestHeader, payload: Bytes) {
        let facts = self.session.visit.export().backend.info();
        if let Err(refusal) = command::check(&header, self.agreed, &facts) {
            self.refuse(&header, refusal);
            return;
        }
        let command = command::command(&header, payload);
        let number = self.next_number;
        self.next_number += 1;
        let backend = Arc::clone(&self.session.visit.export().backend);
        self.running.push(Box::pin(async move {
            let outcome = command::execute(&*backend, command).await;
            (number, outcome)
        }));
        self.waiting_bytes += command::weight(&header);
        self.waiting.insert(number, header);
    }

    fn refuse(&mut self, header: &RequestHeader, refusal: Refusal) {
        let RequestHeader { command, flags, offset, length, .. } = *header;
        let export = &self.session.visit.export().name;
        let Refusal { errno, why } = refusal;
        // One line per connection: a client that asks once wrongly mostly goes on doing so.
        if self.refused_before {
            tracing::debug!(export, command, flags, offset, length, %errno, "refused: {why}");
        } else {
            tracing::info!(
                export, command, flags, offset, length, %errno,
                "refused a request, later ones of this connection are logged as debug: {why}"
            );
        }
        self.refused_before = true;
        put_reply(&mut self.outbox, self.agreed.structured, header, Err((errno, why)));
    }

    fn complete(&mut self, number: u64, outcome: Result<Answer, Errno>) {
        let Some(header) = self.waiting.remove(&number) else {
            unreachable!("a request completes once")
        };
        self.waiting_bytes -= command::weight(&header);
        let outcome = outcome.map_err(|errno| (errno, failure(errno)));
        put_reply(&mut self.outbox, self.agreed.structured, &header, outcome);
    }

    /// Waits for all running requests, sending replies as long as somebody takes them.
    async fn finish_running(&mut self) {
        let mut sending = true;
        while !self.running.is_empty() {
            tokio::select! {
                biased;
                Some((number, outcome)) = self.running.next() => self.complete(number, outcome),
                sent = self.outbox.flush(), if sending && !self.outbox.is_empty() => {
                    sending = sent.is_ok();
                }
            }
        }
    }

    /// Sends the last replies to a client that may not be listening any more.
    async fn part(&mut self) {
        let goodbye = async {
            self.outbox.flush().await?;
            self.outbox.shutdown().await
        };
        if let Ok(Err(error)) = timeout(self.limits.linger, goodbye).await {
            tracing::debug!(%error, "the last replies were not taken");
        }
    }

    /// Ends the connection from this side: what does not finish soon fails with `ESHUTDOWN`.
    async fn stop(&mut self) {
        if timeout(self.limits.drain, self.finish_running()).await.is_err() {
            self.fail_running();
            self.part().await;
            // Closing a socket on unread requests could destroy the replies under way.
            let farewell = timeout(self.limits.linger, self.inbox.discard_to_end());
            if !matches!(farewell.await, Ok(Ok(()))) {
                tracing::debug!("the client did not close its side");
            }
        } else {
            self.part().await;
        }
    }

    fn fail_running(&mut self) {
        self.running.clear();
        self.waiting_bytes = 0;
        for header in std::mem::take(&mut self.waiting).into_values() {
            let outcome = Err((Errno::Shutdown, failure(Errno::Shutdown)));
            put_reply(&mut self.outbox, self.agreed.structured, &header, outcome);
        }
    }
}

/// Receives once, towards the payload that is under way if there is one.
async fn fill<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    partial: &mut Option<Partial>,
) -> io::Result<bool> {
    match partial {
        Some(partial) if partial.excess == 0 => {
            let wanted = partial.wanted();
            inbox.fill_payload(&mut partial.payload, wanted).await
        }
        _ => inbox.fill().await,
    }
}

/// What a client is told beside the number of an error.
fn failure(errno: Errno) -> &'static str {
    match errno {
        Errno::NotPermitted => "the volume is read-only",
        Errno::Io => "the volume could not do it; see the server's log",
        Errno::NoMemory => "the server is out of memory",
        Errno::Invalid => "the volume refused the request",
        Errno::NoSpace => "no space is left for the volume",
        Errno::Overflow => "the request is too large",
        Errno::NotSupported => "it cannot be done, or not as fast as was asked",
        Errno::Shutdown => "the volume is being detached",
    }
}
