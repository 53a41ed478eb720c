//! One operation on a volume, or a snapshot, at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tonic::Status;

/// How long a call waits for the one before it. Then its caller is told to come again, so that
/// calls do not pile up behind one that hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whose turn it is, by volume (or snapshot).
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    patience: Duration,
    all: Arc<Mutex<BTreeMap<String, Arc<Turn<()>>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Turns {
    fn default() -> Self {
        Self { patience: PATIENCE, all: Arc::default() }
    }
}

impl Turns {
    /// Does something with a volume while nobody else does. It goes on if its caller goes away:
    /// what is half done would otherwise be left for nobody.
    ///
    /// # Errors
    /// ABORTED while another operation on this volume takes long, or what `work` says.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        volume: &str,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = Arc::clone(lock(&self.all).entry(volume.to_owned()).or_default());
        let Ok(held) = tokio::time::timeout(self.patience, turn.lock_owned()).await else {
            return Err(Status::aborted(format!(
                "another operation on {volume} is still under way; try again"
            )));
        };
        let (turns, name) = (self.clone(), volume.to_owned());
        let done = tokio::spawn(async move {
            let outcome = work.await;
            turns.end(&name, held);
            outcome
        });
        done.await.map_err(|error| Status::internal(format!("{volume}: {error}")))?
    }

    /// Ends a turn; forgets the volume if nobody waits for the next one.
    fn end(&self, volume: &str, held: OwnedMutexGuard<()>) {
        let mut all = lock(&self.all);
        drop(held);
        // Under the lock nobody new comes; one who waits has a share in it.
        if all.get(volume).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            all.remove(volume);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tonic::Code;

    #[tokio::test]
    async fn the_second_waits_for_the_first_and_nothing_is_kept() {
        let turns = Turns::default();
        let (begin, begun) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let first = turns.run("v", async move {
            begin.send(()).unwrap();
            ended.await.unwrap();
            Ok(1)
        });
        let second = async {
            begun.await.unwrap();
            let second = turns.run("v", async { Ok(2) });
            end.send(()).unwrap();
            second.await
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.unwrap(), second.unwrap()), (1, 2));
        assert!(lock(&turns.all).is_empty());
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told_to_come_again() {
        let turns = Turns { patience: Duration::from_millis(20), ..Turns::default() };
        let hanging = tokio::spawn({
            let turns = turns.clone();
            async move { turns.run("v", std::future::pending::<Result<(), Status>>()).await }
        });
        while lock(&turns.all).is_empty() {
            tokio::task::yield_now().await;
        }
        let refused = turns.run("v", async { Ok(()) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::Aborted);
        assert!(turns.run("w", async { Ok(()) }).await.is_ok());
        hanging.abort();
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_goes_away() {
        let turns = Turns::default();
        let (begin, begun) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let caller = tokio::spawn({
            let turns = turns.clone();
            async move {
                let work = async move {
                    begun.await.unwrap();
                    tell.send(()).unwrap();
                    Ok(())
                };
                turns.run("v", work).await
            }
        });
        while lock(&turns.all).is_empty() {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        caller.abort();
        begin.send(()).unwrap();
        told.await.unwrap();
    }
}
