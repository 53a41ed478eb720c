//! One operation on a volume, or a snapshot, at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::Status;

/// How long the kernel may take to tell of a mount or to change one. One whose volume waits may
/// take for ever.
const KERNEL: Duration = Duration::from_secs(20);
/// How long a call waits for the one before it. Then its caller is told to come again, so that
/// calls do not pile up behind one that hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whose turn it is, by volume (or snapshot).
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    patience: Duration,
    kernel: Duration,
    all: Arc<Mutex<BTreeMap<String, Arc<Turn<()>>>>>,
}

/// The turn of whoever has it; it ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Held(Arc<Own>);

#[derive(Debug)]
struct Own {
    turns: Turns,
    volume: String,
    /// Always there until the end.
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut all = lock(&self.turns.all);
        drop(self.guard.take());
        // Under the lock nobody new comes; one who waits has a share in it.
        if all.get(&self.volume).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            all.remove(&self.volume);
        }
    }
}

impl Held {
    /// Does something in the kernel that may wait for a device. The turn lasts until it is done,
    /// also if its caller is told that it takes too long: whoever comes again must not wait for the
    /// same device beside it, nor do the same once more.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED if it takes long, or what `work` says.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (held, limit) = (self.clone(), self.0.turns.kernel);
        let done = spawn_blocking(move || {
            let outcome = work();
            drop(held);
            outcome
        });
        match timeout(limit, done).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the kernel did not answer within {} s; the volume may wait for its copies",
                limit.as_secs()
            ))),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Turns {
    fn default() -> Self {
        Self { patience: PATIENCE, kernel: KERNEL, all: Arc::default() }
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
        self.run_held(volume, |_| work).await
    }

    /// As [`Self::run`], for work that may hand its turn on.
    ///
    /// # Errors
    /// The same.
    pub(crate) async fn run_held<T: Send + 'static, W>(
        &self,
        volume: &str,
        work: impl FnOnce(Held) -> W,
    ) -> Result<T, Status>
    where
        W: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let turn = Arc::clone(lock(&self.all).entry(volume.to_owned()).or_default());
        let Ok(guard) = timeout(self.patience, turn.lock_owned()).await else {
            return Err(Status::aborted(format!(
                "another operation on {volume} is still under way; try again"
            )));
        };
        let own = Own { turns: self.clone(), volume: volume.to_owned(), guard: Some(guard) };
        let held = Held(Arc::new(own));
        let work = work(held.clone());
        let done = tokio::spawn(async move {
            let outcome = work.await;
            drop(held);
            outcome
        });
        done.await.map_err(|error| Status::internal(format!("{volume}: {error}")))?
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
    async fn a_turn_lasts_until_the_kernel_has_answered() {
        let short = Duration::from_millis(20);
        let turns = Turns { patience: short, kernel: short, ..Turns::default() };
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let hanging = turns.run_held("v", |held| async move {
            held.blocking(move || {
                let _ = ended.recv();
                Ok(())
            })
            .await
        });
        assert_eq!(hanging.await.unwrap_err().code(), Code::DeadlineExceeded);
        let refused = turns.run("v", async { Ok(()) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::Aborted);
        end.send(()).unwrap();
        while !lock(&turns.all).is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(turns.run("v", async { Ok(()) }).await.is_ok());
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
