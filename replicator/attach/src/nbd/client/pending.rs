//! Requests that wait for their replies.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ClientError;
use crate::backend::{Errno, Extent};

/// What a successful reply must bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Nothing,
    Data { offset: u64, len: u32 },
    Extents,
}

/// What it brought.
#[derive(Debug)]
pub(super) enum Payload {
    None,
    Data(BytesMut),
    Extents(Vec<Extent>),
}

/// A request in flight and what has been received of its reply.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) expected: Expected,
    /// Room for all the data of a read, made when the first of it arrives.
    pub(super) data: BytesMut,
    /// How much of `data` has been received.
    pub(super) received: u64,
    pub(super) extents: Vec<Extent>,
    pub(super) error: Option<(Errno, String)>,
    reply: oneshot::Sender<Result<Payload, ClientError>>,
    /// Given back when the reply is complete, even if nobody waits for it any more.
    _slot: OwnedSemaphorePermit,
}

impl Waiter {
    pub(super) fn new(
        expected: Expected,
        reply: oneshot::Sender<Result<Payload, ClientError>>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            expected,
            data: BytesMut::new(),
            received: 0,
            extents: Vec::new(),
            error: None,
            reply,
            _slot: slot,
        }
    }

    /// The place for `len` bytes at `offset` of the export, if they belong to this read.
    pub(super) fn place(&mut self, offset: u64, len: u64) -> Option<&mut [u8]> {
        let Expected::Data { offset: first, len: whole } = self.expected else { return None };
        let start = usize::try_from(offset.checked_sub(first)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        if end > whole as usize {
            return None;
        }
        if self.data.is_empty() {
            self.data = BytesMut::zeroed(whole as usize);
        }
        self.received += len;
        self.data.get_mut(start..end)
    }

    /// Hands the result to the caller.
    ///
    /// # Errors
    /// What is missing in a reply that claims success.
    pub(super) fn finish(self) -> Result<(), String> {
        let outcome = match (self.error, self.expected) {
            (Some((errno, text)), _) => {
                let text = if text.is_empty() { text } else { format!(" ({text})") };
                Err(ClientError::Failed { errno, text })
            }
            (None, Expected::Nothing) => Ok(Payload::None),
            (None, Expected::Data { len, .. }) if self.received == u64::from(len) => {
                Ok(Payload::Data(self.data))
            }
            (None, Expected::Data { len, .. }) => {
                return Err(format!("a read of {len} bytes brought {}", self.received));
            }
            (None, Expected::Extents) if !self.extents.is_empty() => {
                Ok(Payload::Extents(self.extents))
            }
            (None, Expected::Extents) => return Err("a status without extents".to_owned()),
        };
        // The caller may have given up.
        let _ = self.reply.send(outcome);
        Ok(())
    }

    fn fail(self, error: ClientError) {
        let _ = self.reply.send(Err(error));
    }
}

/// All requests in flight, until the connection ends.
#[derive(Debug, Default)]
pub(super) struct Pending {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiters: BTreeMap<u64, Waiter>,
    /// Why there will be no more replies.
    closed: Option<String>,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, cookie: u64, waiter: Waiter) -> Result<(), ClientError> {
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(ClientError::Disconnected(why.clone()));
        }
        let before = state.waiters.insert(cookie, waiter);
        assert!(before.is_none(), "cookies are not reused");
        Ok(())
    }

    /// Takes a request out while its reply is received.
    pub(super) fn take(&self, cookie: u64) -> Option<Waiter> {
        self.lock().waiters.remove(&cookie)
    }

    /// Puts a request back whose reply has more chunks to come.
    pub(super) fn put_back(&self, cookie: u64, waiter: Waiter) {
        let mut state = self.lock();
        match &state.closed {
            Some(why) => waiter.fail(ClientError::Disconnected(why.clone())),
            None => {
                state.waiters.insert(cookie, waiter);
            }
        }
    }

    /// Ends the connection for every request, now and later. The first reason counts.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.lock();
        let why = state.closed.get_or_insert_with(|| why.to_owned()).clone();
        for waiter in std::mem::take(&mut state.waiters).into_values() {
            waiter.fail(ClientError::Disconnected(why.clone()));
        }
    }

    pub(super) fn closed(&self) -> Option<String> {
        self.lock().closed.clone()
    }
}
