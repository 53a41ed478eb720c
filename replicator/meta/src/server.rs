//! Serves any record store over gRPC.

use crate::{Entry, Expect, Meta, MetaError, PutError, Revision};
use async_trait::async_trait;
use lockstep_proto::v1;
use lockstep_proto::v1::meta_server::MetaServer;
use std::sync::Arc;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Most bytes a message of this service may have: a page and its frame fit with room to spare.
pub(crate) const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Answers the RPCs of `Meta` from a store in this process.
#[derive(Clone, Debug)]
pub struct Service {
    store: Arc<dyn Meta>,
}

/// The gRPC service for a store, to be added to a tonic server.
#[must_use]
pub fn service(store: Arc<dyn Meta>) -> MetaServer<Service> {
    MetaServer::new(Service { store })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Serves a store, and nothing else, on a socket until `stop` is done and the requests that had
/// begun are answered.
///
/// # Errors
/// If the socket fails.
pub async fn serve(
    listener: TcpListener,
    store: Arc<dyn Meta>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(service(store))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await
}

#[async_trait]
impl v1::meta_server::Meta for Service {
    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let key = request.into_inner().key;
        let found = self.store.get(&key).await.map_err(read_status)?;
        let entry = found.map(|v| v1::Entry { key, value: v.value, revision: v.revision.0 });
        Ok(Response::new(v1::GetResponse { entry }))
    }

    async fn put_if(
        &self,
        request: Request<v1::PutIfRequest>,
    ) -> Result<Response<v1::PutIfResponse>, Status> {
        use v1::put_if_response::Outcome;
        let v1::PutIfRequest { key, expected_revision, value } = request.into_inner();
        let expected = expected_revision.map_or(Expect::Absent, |r| Expect::Revision(Revision(r)));
        let outcome = match self.store.put_if(&key, expected, value).await {
            Ok(revision) => Outcome::Revision(revision.0),
            Err(error) => match refusal(error)? {
                Refusal::Conflict(conflict) => Outcome::Conflict(conflict),
                Refusal::Refused(refused) => Outcome::Refused(refused),
            },
        };
        Ok(Response::new(v1::PutIfResponse { outcome: Some(outcome) }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        use v1::delete_response::Outcome;
        let v1::DeleteRequest { key, expected_revision } = request.into_inner();
        let outcome = match self.store.delete_if(&key, Revision(expected_revision)).await {
            Ok(()) => Outcome::Deleted(v1::Deleted {}),
            Err(error) => match refusal(error)? {
                Refusal::Conflict(conflict) => Outcome::Conflict(conflict),
                Refusal::Refused(refused) => Outcome::Refused(refused),
            },
        };
        Ok(Response::new(v1::DeleteResponse { outcome: Some(outcome) }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let v1::ListRequest { prefix, after, limit } = request.into_inner();
        let limit = usize::try_from(limit).unwrap_or(0);
        let page = self.store.list(&prefix, after.as_deref(), limit).await.map_err(read_status)?;
        let entries = page.entries.into_iter().map(entry_message).collect();
        Ok(Response::new(v1::ListResponse { entries, next: page.next }))
    }
}

fn entry_message(entry: Entry) -> v1::Entry {
    v1::Entry { key: entry.key, value: entry.value, revision: entry.revision.0 }
}

/// Why a change was surely not made.
enum Refusal {
    Conflict(v1::Conflict),
    Refused(v1::Refused),
}

/// Sorts a failed change: refused for sure, or undecided, which alone is a gRPC error.
fn refusal(error: PutError) -> Result<Refusal, Status> {
    let message = error.to_string();
    let reason = match error {
        PutError::Conflict { current } => {
            let current_revision = current.map(|r| r.0);
            return Ok(Refusal::Conflict(v1::Conflict { current_revision }));
        }
        PutError::Unknown(reason) => return Err(Status::unknown(reason)),
        PutError::Unavailable(message) => {
            let reason = v1::RefusalReason::Unavailable.into();
            return Ok(Refusal::Refused(v1::Refused { reason, message }));
        }
        PutError::TooLarge { .. } => v1::RefusalReason::TooLarge,
        PutError::BadKey { .. } => v1::RefusalReason::BadKey,
    };
    Ok(Refusal::Refused(v1::Refused { reason: reason.into(), message }))
}

fn read_status(error: MetaError) -> Status {
    match error {
        MetaError::BadKey { .. } => Status::invalid_argument(error.to_string()),
        MetaError::Unavailable(reason) => Status::unavailable(reason),
    }
}
