//! A primary's questions to the record store, with their time limit.

use std::sync::Arc;
use std::time::Duration;

use lockstep_core::id::{Revision, VolumeId};
use lockstep_core::limits::CAS_TIMEOUT_MS;
use lockstep_core::primary::{MetaOp, MetaResult};
use lockstep_core::record::Record;
use lockstep_meta::{Expect, Meta, PutError};
use tokio::time::timeout;

use super::record_key;

const LIMIT: Duration = Duration::from_millis(CAS_TIMEOUT_MS);

/// Asks one question. Every trouble is told to the log here; the primary asks again.
pub(super) async fn ask(meta: Arc<dyn Meta>, volume: VolumeId, op: MetaOp) -> MetaResult {
    match op {
        MetaOp::Get => get(meta, volume).await,
        MetaOp::PutIf { expected, record } => put(meta, volume, expected, &record).await,
    }
}

async fn get(meta: Arc<dyn Meta>, volume: VolumeId) -> MetaResult {
    let found = match timeout(LIMIT, meta.get(&record_key(volume))).await {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None)) => return MetaResult::Read(None),
        Ok(Err(e)) => {
            tracing::warn!(%volume, error = %e, "cannot read the volume's record; trying on");
            return MetaResult::Unavailable;
        }
        Err(_) => {
            tracing::warn!(%volume, "the record store does not answer; trying on");
            return MetaResult::Unavailable;
        }
    };
    match Record::from_bytes(&found.value) {
        Ok(record) => MetaResult::Read(Some((record, found.revision))),
        Err(e) => {
            tracing::error!(%volume, error = %e, "cannot use the volume's record; trying on");
            MetaResult::Unavailable
        }
    }
}

async fn put(
    meta: Arc<dyn Meta>,
    volume: VolumeId,
    expected: Revision,
    record: &Record,
) -> MetaResult {
    let key = record_key(volume);
    let value = record.to_bytes().into();
    match timeout(LIMIT, meta.put_if(&key, Expect::Revision(expected), value)).await {
        Ok(Ok(revision)) => MetaResult::Written(revision),
        Ok(Err(PutError::Conflict { .. })) => MetaResult::Conflict,
        Ok(Err(e @ PutError::Unknown(_))) => {
            tracing::warn!(%volume, error = %e, "the fate of a record's change is unknown");
            MetaResult::Unknown
        }
        Ok(Err(e)) => {
            tracing::warn!(%volume, error = %e, "cannot change the volume's record; trying on");
            MetaResult::Unavailable
        }
        Err(_) => {
            tracing::warn!(%volume, "the record store did not answer a change in time");
            MetaResult::Unknown
        }
    }
}
