//! Looks at the volume again and again, and waits until it looks as it should.

use std::time::Duration;

use anyhow::{anyhow, bail};
use lockstep_proto::v1::VolumeStatus;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::control::Control;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What was seen last.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The volume; `None`: not seen yet.
    pub(super) volume: Option<VolumeStatus>,
    /// Why the last look failed, if it did.
    pub(super) error: Option<String>,
}

/// A task that looks, ended when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    seen: watch::Receiver<Seen>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    /// Begins to look at a volume.
    pub(super) fn begin(control: Control, name: &'static str) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            while !sender.is_closed() {
                match control.volume(name).await {
                    Ok(volume) => {
                        sender.send_replace(Seen { volume: Some(volume), error: None });
                    }
                    Err(error) => {
                        sender.send_modify(|seen| seen.error = Some(error.to_string()));
                    }
                }
                sleep(PAUSE).await;
            }
        }));
        Self { seen, _task: task }
    }

    /// What is seen, for others to look at too.
    pub(super) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Waits until the volume is as wanted; `what` tells it in words.
    pub(super) async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&VolumeStatus) -> bool,
    ) -> anyhow::Result<VolumeStatus> {
        let fits = |seen: &Seen| seen.error.is_none() && seen.volume.as_ref().is_some_and(&wanted);
        let found = match timeout(limit, self.seen.wait_for(fits)).await {
            Ok(Ok(seen)) => Some(seen.volume.clone()),
            Ok(Err(_)) => bail!("nobody looks at the volume any more"),
            Err(_) => None,
        };
        match found {
            Some(volume) => volume.ok_or_else(|| anyhow!("the volume was not seen")),
            None => bail!("{what}: not within {limit:?}; {}", self.last_words()),
        }
    }

    fn last_words(&self) -> String {
        let seen = self.seen.borrow();
        match (&seen.error, &seen.volume) {
            (Some(error), _) => error.clone(),
            (None, Some(volume)) => volume.health_reason.clone(),
            (None, None) => "the volume was never seen".to_owned(),
        }
    }
}
