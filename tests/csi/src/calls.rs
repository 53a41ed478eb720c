//! Calls to drivers, repeated as an orchestrator repeats them.

use anyhow::bail;
use std::time::{Duration, Instant};
use tonic::{Code, Response, Status};

/// How long a call may take to come to its end, however often it is repeated.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// Whether the same call may have another outcome soon.
pub(crate) fn is_passing(status: &Status) -> bool {
    let broken = std::error::Error::source(status).is_some();
    broken || matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded)
}

/// A call that can be made any number of times.
pub(crate) fn repeated<C: Clone, Q: Clone, A>(
    client: C,
    request: Q,
    call: impl Fn(C, Q) -> A,
) -> impl Fn() -> A {
    move || call(client.clone(), request.clone())
}

/// Repeats a call until it has an outcome that stays.
///
/// # Errors
/// If it has none in time.
pub(crate) async fn settled<T, A>(
    what: &str,
    call: impl Fn() -> A,
) -> anyhow::Result<Result<T, Status>>
where
    A: Future<Output = Result<Response<T>, Status>>,
{
    let begin = Instant::now();
    loop {
        let refused = match tokio::time::timeout(LIMIT, call()).await {
            Ok(Ok(answer)) => return Ok(Ok(answer.into_inner())),
            Ok(Err(status)) => status,
            Err(_) => bail!("{what} has no answer after {} s", LIMIT.as_secs()),
        };
        if !is_passing(&refused) {
            return Ok(Err(refused));
        }
        if begin.elapsed() > LIMIT {
            bail!("{what} does not come to its end: {:?}: {}", refused.code(), refused.message());
        }
        wait_a_moment().await;
    }
}

async fn wait_a_moment() {
    tokio::time::sleep(PAUSE).await;
}
