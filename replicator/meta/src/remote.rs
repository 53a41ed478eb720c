//! A record store owned by another daemon, reached over gRPC.

use crate::server::MAX_MESSAGE_BYTES;
use crate::{
    Entry, Expect, Meta, MetaError, Page, PutError, Revision, Versioned, check_value, key,
    model::start_of_list,
};
use async_trait::async_trait;
use bytes::Bytes;
use lockstep_proto::v1;
use lockstep_proto::v1::meta_client::MetaClient;
use std::error::Error;
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Response, Status};

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection to be made. Less than `request`, so that a change that could not even be
    /// sent is told from one that got no answer.
    pub connect: Duration,
    /// For a whole operation.
    pub request: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), request: Duration::from_secs(5) }
    }
}

/// The address of a record store is not one.
#[derive(Debug, Error)]
#[error(
    "{address:?} is not the address of a record store: {source}; write http://host:port or \
     unix:///path/to/socket"
)]
pub struct AddressError {
    address: String,
    source: tonic::transport::Error,
}

/// A client of a record store that [`crate::server`] serves.
#[derive(Clone, Debug)]
pub struct Remote {
    client: MetaClient<Channel>,
    address: String,
    deadlines: Deadlines,
}

impl Remote {
    /// A client for `http://host:port` or `unix:///path/to/socket`. Connects at the first use, and
    /// again whenever the connection is lost. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`AddressError`] if the address cannot be parsed.
    pub fn new(address: &str, deadlines: Deadlines) -> Result<Self, AddressError> {
        let bad = |source| AddressError { address: address.to_owned(), source };
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(bad)?
            .connect_timeout(deadlines.connect)
            .tcp_nodelay(true)
            // A host that died silently is found out while an operation waits for it.
            .http2_keep_alive_interval(deadlines.connect)
            .keep_alive_timeout(deadlines.connect);
        let client = MetaClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { client, address: address.to_owned(), deadlines })
    }

    /// Asks a question, a second time if the connection broke under the first.
    async fn read<A, F>(
        &self,
        ask: impl Fn(MetaClient<Channel>) -> F + Sync,
    ) -> Result<A, MetaError>
    where
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let question = async {
            match ask(self.client.clone()).await {
                Err(status) if broke(&status) => ask(self.client.clone()).await,
                answer => answer,
            }
        };
        match timeout(self.deadlines.request, question).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(MetaError::Unavailable(self.blame(&status))),
            Err(_) => Err(MetaError::Unavailable(self.late())),
        }
    }

    /// Asks for a change, once: what was sent and not answered stays undecided.
    async fn change<A>(
        &self,
        answer: impl Future<Output = Result<Response<A>, Status>> + Send,
    ) -> Result<A, PutError> {
        match timeout(self.deadlines.request, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if never_arrived(&status) => {
                Err(PutError::Unavailable(self.blame(&status)))
            }
            Ok(Err(status)) => Err(PutError::Unknown(self.blame(&status))),
            Err(_) => Err(PutError::Unknown(self.late())),
        }
    }

    fn late(&self) -> String {
        let waited = self.deadlines.request.as_millis();
        format!("{} did not answer within {waited} ms", self.address)
    }

    fn blame(&self, status: &Status) -> String {
        let address = &self.address;
        if status.code() == Code::Unimplemented {
            return format!("{address} serves no record store; use the daemon that owns it");
        }
        let mut text = format!("{address}: {}", status.message());
        let mut cause = status.source();
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        text
    }

    fn refused(&self, refused: v1::Refused, key: &str, bytes: usize) -> PutError {
        match refused.reason() {
            v1::RefusalReason::TooLarge => PutError::TooLarge { bytes },
            v1::RefusalReason::BadKey => PutError::BadKey {
                key: key.to_owned(),
                reason: "the record store's owner does not take it; is it an older version?",
            },
            v1::RefusalReason::Unavailable | v1::RefusalReason::Unspecified => {
                PutError::Unavailable(format!("{}: {}", self.address, refused.message))
            }
        }
    }

    fn without_outcome(&self) -> PutError {
        PutError::Unknown(format!("{} answered without an outcome", self.address))
    }
}

/// Whether the connection failed, rather than the server answered.
fn broke(status: &Status) -> bool {
    status.source().is_some() && !never_connected(status)
}

/// Whether the request surely changed nothing: there was no connection, or no such service.
fn never_arrived(status: &Status) -> bool {
    never_connected(status) || status.code() == Code::Unimplemented
}

fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn conflict(conflict: &v1::Conflict) -> PutError {
    PutError::Conflict { current: conflict.current_revision.map(Revision) }
}

fn entry(entry: v1::Entry) -> Entry {
    Entry { key: entry.key, value: entry.value, revision: Revision(entry.revision) }
}

#[async_trait]
impl Meta for Remote {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError> {
        key::check(key)?;
        let ask = |mut client: MetaClient<Channel>| {
            let request = v1::GetRequest { key: key.to_owned() };
            async move { client.get(request).await }
        };
        let found = self.read(ask).await?.entry;
        Ok(found.map(|e| Versioned { value: e.value, revision: Revision(e.revision) }))
    }

    async fn put_if(
        &self,
        key: &str,
        expected: Expect,
        value: Bytes,
    ) -> Result<Revision, PutError> {
        use v1::put_if_response::Outcome;
        key::check(key)?;
        check_value(&value)?;
        let expected_revision = match expected {
            Expect::Absent => None,
            Expect::Revision(revision) => Some(revision.0),
        };
        let bytes = value.len();
        let request = v1::PutIfRequest { key: key.to_owned(), expected_revision, value };
        let mut client = self.client.clone();
        match self.change(client.put_if(request)).await?.outcome {
            Some(Outcome::Revision(revision)) => Ok(Revision(revision)),
            Some(Outcome::Conflict(found)) => Err(conflict(&found)),
            Some(Outcome::Refused(refused)) => Err(self.refused(refused, key, bytes)),
            None => Err(self.without_outcome()),
        }
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<(), PutError> {
        use v1::delete_response::Outcome;
        key::check(key)?;
        let request = v1::DeleteRequest { key: key.to_owned(), expected_revision: expected.0 };
        let mut client = self.client.clone();
        match self.change(client.delete(request)).await?.outcome {
            Some(Outcome::Deleted(_)) => Ok(()),
            Some(Outcome::Conflict(found)) => Err(conflict(&found)),
            Some(Outcome::Refused(refused)) => Err(self.refused(refused, key, 0)),
            None => Err(self.without_outcome()),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, MetaError> {
        // Checked here too, so that a bad one is never mistaken for an unreachable store.
        start_of_list(prefix, after)?;
        // More than fits is as good as no limit.
        let limit = u32::try_from(limit).unwrap_or(0);
        let ask = |mut client: MetaClient<Channel>| {
            let after = after.map(str::to_owned);
            let request = v1::ListRequest { prefix: prefix.to_owned(), after, limit };
            async move { client.list(request).await }
        };
        let page = self.read(ask).await?;
        Ok(Page { entries: page.entries.into_iter().map(entry).collect(), next: page.next })
    }
}
