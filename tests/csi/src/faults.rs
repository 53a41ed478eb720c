//! What befalls a call: it comes more than once at a time, or somebody dies in its midst.

use crate::calls::{is_passing, settled};
use crate::ops::Run;
use crate::world::NODES;
use rand::RngExt as _;
use std::time::Duration;
use tonic::{Response, Status};

/// How many calls that are alike come at once.
const AT_ONCE: usize = 3;
/// Somebody dies at most so long after the call.
const KILL_MS: u64 = 60;

/// Whom a call goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Controller,
    Node(usize),
}

/// What befalls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Twice,
    KillDriver,
    KillDaemon,
}

async fn wait_until_it_is_under_way(delay: Duration) {
    tokio::time::sleep(delay).await;
}

impl Run {
    fn choose_fault(&mut self) -> Fault {
        match self.rng.random_range(0..20) {
            _ if self.is_calm => Fault::None,
            0 | 1 => Fault::Twice,
            2 => Fault::KillDriver,
            3 => Fault::KillDaemon,
            _ => Fault::None,
        }
    }

    /// Makes a call, whatever befalls it, until it has an outcome that stays. If it comes more than
    /// once, all have the same.
    pub(crate) async fn call<T, A>(
        &mut self,
        what: &str,
        at: At,
        call: impl Fn() -> A,
    ) -> anyhow::Result<Result<T, Status>>
    where
        T: Clone + PartialEq + std::fmt::Debug + Send + 'static,
        A: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let fault = self.choose_fault();
        match fault {
            Fault::None => {}
            Fault::Twice => return self.at_once(what, call).await,
            Fault::KillDriver | Fault::KillDaemon => {
                let first = tokio::spawn(call());
                let delay = Duration::from_millis(self.rng.random_range(0..KILL_MS));
                wait_until_it_is_under_way(delay).await;
                self.note(&format!("  {fault:?} of {at:?} after {delay:?}"));
                self.kill_one(fault, at).await?;
                let first = first.await?.map(Response::into_inner);
                let last = settled(what, call).await?;
                self.compare(what, &first, &last);
                return Ok(last);
            }
        }
        settled(what, call).await
    }

    async fn kill_one(&mut self, fault: Fault, at: At) -> anyhow::Result<()> {
        self.told.kills += 1;
        let world = &mut self.world;
        let process = match (fault, at) {
            (Fault::KillDaemon, At::Node(node)) => &mut world.nodes[node].daemon,
            // The one it asks, or one that has to do its part.
            (Fault::KillDaemon, At::Controller) => {
                &mut world.nodes[self.rng.random_range(0..NODES)].daemon
            }
            (_, At::Node(node)) => &mut world.nodes[node].driver,
            (_, At::Controller) => &mut world.controller,
        };
        process.kill().await?;
        process.start().await
    }

    async fn at_once<T, A>(
        &mut self,
        what: &str,
        call: impl Fn() -> A,
    ) -> anyhow::Result<Result<T, Status>>
    where
        T: Clone + PartialEq + std::fmt::Debug + Send + 'static,
        A: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.told.at_once += 1;
        self.note("  several at once");
        let calls: Vec<_> = (0..AT_ONCE).map(|_| tokio::spawn(call())).collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await?.map(Response::into_inner));
        }
        let last = settled(what, call).await?;
        for answer in &answers {
            self.compare(what, answer, &last);
        }
        Ok(last)
    }

    /// An answer is that of the last of calls that are alike, unless it says that the same call may
    /// have another one soon. By that orchestrators know what may have been done.
    fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        answer: &Result<T, Status>,
        last: &Result<T, Status>,
    ) {
        let same = match (answer, last) {
            (Ok(answer), Ok(last)) => answer == last,
            (Err(status), _) if is_passing(status) => true,
            (Err(status), Err(last)) => status.code() == last.code(),
            _ => false,
        };
        if !same {
            self.violation(&format!("{what}: one answer is {answer:?}, another {last:?}"));
        }
    }
}
