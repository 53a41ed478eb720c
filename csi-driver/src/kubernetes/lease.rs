//! The lease by which one of several controllers acts.

use super::{is_conflict, is_not_found, refused};
use crate::leader::{Leader, Lease as Seen, Step, Term, step};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// Name of the object.
const NAME: &str = "lockstep-controller";

/// Holds the lease, or waits for it.
pub(crate) struct Candidate {
    me: String,
    term: Term,
    leases: Api<Lease>,
    tell: watch::Sender<Option<Instant>>,
    /// The lease as it was, and since when it is so.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    /// One that is called `me`, in a namespace of `client`'s cluster.
    pub(crate) fn new(client: Client, namespace: &str, me: String, term: Term) -> (Self, Leader) {
        let (tell, leader) = Leader::new();
        let leases = Api::namespaced(client, namespace);
        (Self { me, term, leases, tell, seen: None }, leader)
    }

    /// Stands for ever, or until it is told to stop: then it gives the lease back.
    pub(crate) async fn stand(mut self, mut stop: watch::Receiver<bool>) {
        let mut told = None;
        while !*stop.borrow() {
            let outcome = tokio::time::timeout(self.term.duration, self.once()).await;
            let late = || Err(Status::deadline_exceeded("the API server does not answer"));
            let why = outcome.unwrap_or_else(|_| late()).err().map(|s| s.message().to_owned());
            // Once for each reason: it is tried again and again.
            if let Some(why) = why.as_ref().filter(|why| told.as_ref() != Some(*why)) {
                tracing::warn!(why, "the controllers' lease cannot be kept now");
            }
            told = why;
            // Whichever is first; also if nobody can tell it any more.
            let _ = tokio::time::timeout(self.term.renew, stop.changed()).await;
        }
        let led = self.tell.borrow().is_some();
        self.tell.send_replace(None);
        if led && let Err(status) = self.give_back().await {
            tracing::info!(why = status.message(), "the lease ends by itself");
        }
    }

    /// Looks at the lease, and renews or takes it.
    async fn once(&mut self) -> Result<(), Status> {
        let begun = Instant::now();
        let found = match self.leases.get(NAME).await {
            Ok(lease) => Some(lease),
            Err(error) if is_not_found(&error) => None,
            Err(error) => return Err(refused("the controllers' lease cannot be read", &error)),
        };
        let version = found.as_ref().and_then(|l| l.metadata.resource_version.clone());
        let version = version.unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, begun));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, at)| begun - *at);
        let spec = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let next = step(&self.me, &seen(&spec), unchanged);
        if next == Step::Wait {
            self.lose(spec.holder_identity.as_deref());
            return Ok(());
        }
        let taken = next == Step::Take;
        let spec = self.spec(spec, taken);
        if self.put(found, spec).await? {
            if self.tell.send_replace(Some(self.term.end(begun))).is_none() {
                tracing::info!(me = self.me, "this controller acts from now on");
            }
        } else {
            self.lose(None);
        }
        Ok(())
    }

    fn lose(&self, to: Option<&str>) {
        if self.tell.send_replace(None).is_some() {
            tracing::warn!(to, "another controller acts from now on");
        }
    }

    fn spec(&self, before: LeaseSpec, taken: bool) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let transitions = before.lease_transitions.unwrap_or(0);
        let seconds = self.term.duration.as_millis().div_ceil(1000);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(seconds).ok(),
            renew_time: Some(now.clone()),
            acquire_time: if taken { Some(now) } else { before.acquire_time.clone() },
            lease_transitions: Some(transitions.saturating_add(i32::from(taken))),
            ..before
        }
    }

    /// Changes the lease that was read. Returns whether it was still so.
    async fn put(&self, found: Option<Lease>, spec: LeaseSpec) -> Result<bool, Status> {
        let how = PostParams::default();
        let put = match found {
            Some(lease) => {
                let lease = Lease { spec: Some(spec), ..lease };
                self.leases.replace(NAME, &how, &lease).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..Default::default() };
                self.leases.create(&how, &Lease { metadata, spec: Some(spec) }).await
            }
        };
        match put {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(false),
            Err(error) => Err(refused("the controllers' lease cannot be renewed", &error)),
        }
    }

    async fn give_back(&self) -> Result<(), Status> {
        let found = self.leases.get(NAME).await;
        let lease = found.map_err(|e| refused("the controllers' lease cannot be read", &e))?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_ref() == Some(&self.me) {
            let spec = LeaseSpec { holder_identity: Some(String::new()), ..spec };
            self.put(Some(lease), spec).await?;
        }
        Ok(())
    }
}

fn seen(spec: &LeaseSpec) -> Seen {
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
    Seen {
        holder: spec.holder_identity.clone(),
        duration: Duration::from_secs(seconds.unwrap_or_default()),
    }
}
