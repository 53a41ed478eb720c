//! A record store in the objects of a Kubernetes cluster: one `Record` of `lockstep.dev` per key.
//!
//! Objects are compared and swapped by their `resourceVersion`, which is the number of a change in
//! the store behind the API server: it grows with every change of any object, and is never used
//! twice. Reads name no version, which is what asks for the latest one; nothing is cached, and
//! nothing is watched.

mod object;
mod refusal;

use crate::model::start_of_list;
use crate::remote::Deadlines;
use crate::{
    Entry, Expect, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, Meta, MetaError, Page, PutError, Revision,
    Versioned, check_value, key,
};
use async_trait::async_trait;
use bytes::Bytes;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::ApiResource;
use kube::{Client, Config};
use object::Record;
use refusal::Refusal;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

/// Objects that the API server is asked for at a time.
const CHUNK: u32 = 250;

/// How often a list begins anew because the server forgot the moment that it shows.
const LIST_ATTEMPTS: usize = 3;

/// Why there is no client of an API server.
#[derive(Debug, Error)]
#[error(
    "cannot use Kubernetes as the record store: {0}; run in a pod with a service account, or name \
     a kubeconfig file in KUBECONFIG"
)]
pub struct ConnectError(String);

/// A client of a record store in a namespace of a Kubernetes cluster.
pub struct Kubernetes {
    api: Api<Record>,
    resource: ApiResource,
    address: String,
    deadlines: Deadlines,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Whether a request that found its connection broken may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Never,
    Once,
}

impl Kubernetes {
    /// A client as the surroundings say: by the file that `KUBECONFIG` names, or with the service
    /// account of the pod. `namespace`: where the records are; `None`: in the namespace that the
    /// surroundings name. Connects at the first use. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`] if the surroundings name no cluster, or not how to reach it.
    pub async fn infer(
        namespace: Option<&str>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        let config = Config::infer().await.map_err(|e| ConnectError(e.to_string()))?;
        Self::new(config, namespace, deadlines)
    }

    /// The same for a cluster that is known.
    ///
    /// # Errors
    /// [`ConnectError`] if its certificates or credentials cannot be used.
    pub fn new(
        config: Config,
        namespace: Option<&str>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        let config = careful(config, deadlines);
        let address = config.cluster_url.to_string();
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        let client = Client::try_from(config).map_err(|e| ConnectError(refusal::tell(&e)))?;
        Ok(Self::over(client, &namespace, address, deadlines))
    }

    /// The same over a client of a [`careful`] configuration. `address` is what errors call the
    /// server.
    #[must_use]
    pub fn over(client: Client, namespace: &str, address: String, deadlines: Deadlines) -> Self {
        let resource = object::resource();
        let api = Api::namespaced_with(client, namespace, &resource);
        Self { api, resource, address, deadlines }
    }

    /// When an operation that begins now is to end, with all the requests that it takes.
    fn deadline(&self) -> Instant {
        Instant::now() + self.deadlines.request
    }

    /// Sends a request about the object `name` until it is answered: again while the server is
    /// too busy to take it, and as `repeat` says if the connection broke under it.
    async fn request<T, F>(
        &self,
        until: Instant,
        name: &str,
        repeat: Repeat,
        send: impl Fn() -> F + Sync,
    ) -> Result<T, Refusal>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        let mut may_repeat = repeat == Repeat::Once;
        loop {
            let error = match timeout_at(until, send()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => return Err(Refusal::Undecided(self.late())),
            };
            if may_repeat && refusal::broke(&error) {
                may_repeat = false;
                continue;
            }
            match Refusal::of(&error, name) {
                Refusal::Busy(pause, _) if Instant::now() + pause < until => sleep(pause).await,
                Refusal::Busy(_, told) => return Err(Refusal::NotDone(told)),
                other => return Err(other),
            }
        }
    }

    /// The object of a key.
    async fn find(&self, until: Instant, key: &str) -> Result<Option<Versioned>, MetaError> {
        let name = object::name(key);
        let found = match self.request(until, &name, Repeat::Once, || self.api.get(&name)).await {
            Ok(found) => found,
            Err(Refusal::NoObject) => return Ok(None),
            Err(refusal) => return Err(MetaError::Unavailable(self.blame(refusal))),
        };
        let entry = entry(found).map_err(|fault| MetaError::Unavailable(self.broken(&fault)))?;
        if entry.key != key {
            let other = format!("record {name} holds key {:?} instead of {key:?}", entry.key);
            return Err(MetaError::Unavailable(self.broken(&other)));
        }
        Ok(Some(Versioned { value: entry.value, revision: entry.revision }))
    }

    /// Makes a change that the server makes only in one state of the key, or says in which state
    /// the key is instead.
    async fn change<T, F>(
        &self,
        key: &str,
        expected: Option<Revision>,
        send: impl Fn() -> F + Sync,
    ) -> Result<T, PutError>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        let (name, until) = (object::name(key), self.deadline());
        loop {
            // To the API server, version 0 means any.
            let outcome = if expected == Some(Revision(0)) {
                Err(Refusal::OtherState)
            } else {
                self.request(until, &name, Repeat::Never, &send).await
            };
            match outcome {
                Ok(done) => return Ok(done),
                Err(Refusal::OtherState) => {}
                Err(Refusal::NoObject) => return Err(PutError::Conflict { current: None }),
                Err(Refusal::Undecided(told)) => {
                    return Err(PutError::Unknown(self.blame(Refusal::Undecided(told))));
                }
                Err(refusal) => return Err(PutError::Unavailable(self.blame(refusal))),
            }
            let current = self.find(until, key).await?.map(|found| found.revision);
            if current != expected {
                return Err(PutError::Conflict { current });
            }
            // Back in the expected state, which is that there is none: another one came and went.
            if Instant::now() >= until {
                let told = format!("{}: {key} keeps coming and going", self.address);
                return Err(PutError::Unavailable(told));
            }
        }
    }

    /// One page, as of one moment.
    async fn page(
        &self,
        until: Instant,
        prefix: &str,
        start: Bound<&str>,
        limit: usize,
    ) -> Result<Page, Refusal> {
        let mut wanted = ListParams::default().limit(CHUNK);
        wanted.label_selector = object::selector(prefix);
        let mut first = FirstEntries::new(limit);
        loop {
            let chunk = self.request(until, "", Repeat::Once, || self.api.list(&wanted)).await?;
            for record in chunk.items.into_iter().filter(is_ours) {
                let key = record.spec.key.as_str();
                if key.starts_with(prefix) && is_after(start, key) {
                    let entry = entry(record);
                    first.add(entry.map_err(|fault| Refusal::NotDone(self.broken(&fault)))?);
                }
            }
            // The server shows the moment of the first chunk in all that follow.
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                return Ok(first.page());
            }
        }
    }

    fn late(&self) -> String {
        format!("no answer within {} ms", self.deadlines.request.as_millis())
    }

    fn broken(&self, fault: &str) -> String {
        format!("{fault}; Lockstep did not write it so: restore it, or delete it")
    }

    fn blame(&self, refusal: Refusal) -> String {
        let told = match refusal {
            Refusal::Busy(_, told) | Refusal::NotDone(told) | Refusal::Undecided(told) => told,
            Refusal::OtherState => "the object is in another state".to_owned(),
            Refusal::NoObject => "there is no such object".to_owned(),
            Refusal::Expired => "the list took longer than the server remembers".to_owned(),
        };
        format!("API server {}: {told}", self.address)
    }
}

/// A configuration whose clients send each request once at most: what was sent again after a lost
/// answer would meet its own first outcome, and be told for another's.
#[must_use]
pub fn careful(mut config: Config, deadlines: Deadlines) -> Config {
    config.default_retry = false;
    config.connect_timeout = Some(deadlines.connect);
    config.read_timeout = None;
    config.write_timeout = None;
    config
}

/// Whether a record is where a reader of its key looks for it.
fn is_ours(record: &Record) -> bool {
    let name = record.metadata.name.as_deref().unwrap_or_default();
    let is_ours = name == object::name(&record.spec.key);
    if !is_ours {
        tracing::warn!(name, "a record that Lockstep did not write is not read; delete it");
    }
    is_ours
}

fn is_after(start: Bound<&str>, key: &str) -> bool {
    match start {
        Bound::Included(first) => key >= first,
        Bound::Excluded(last) => key > last,
        Bound::Unbounded => true,
    }
}

/// What an object says, or what is wrong with it.
fn entry(record: Record) -> Result<Entry, String> {
    let name = record.metadata.name.clone().unwrap_or_default();
    let broken = |fault: String| format!("record {name} cannot be read: {fault}");
    let revision = object::revision(&record.metadata).map_err(broken)?;
    let key = record.spec.key.clone();
    let value = object::value(record.spec).map_err(broken)?;
    Ok(Entry { key, value, revision })
}

/// The entries that come first by their keys, of all that are added in any order: no more than a
/// page shows, and one that tells that there are more.
struct FirstEntries {
    limit: usize,
    entries: BTreeMap<String, Entry>,
    bytes: usize,
}

impl FirstEntries {
    fn new(limit: usize) -> Self {
        let limit = if limit == 0 { MAX_PAGE_ENTRIES } else { limit.min(MAX_PAGE_ENTRIES) };
        Self { limit, entries: BTreeMap::new(), bytes: 0 }
    }

    fn add(&mut self, entry: Entry) {
        self.bytes += size(&entry);
        if let Some(before) = self.entries.insert(entry.key.clone(), entry) {
            self.bytes -= size(&before);
        }
        while let Some((_, last)) = self.entries.last_key_value() {
            let others = self.bytes - size(last);
            if self.entries.len() <= self.limit + 1 && others <= MAX_PAGE_BYTES {
                return;
            }
            self.entries.pop_last();
            self.bytes = others;
        }
    }

    fn page(self) -> Page {
        let rows = self.entries.into_values().map(Ok::<_, std::convert::Infallible>);
        let Ok(page) = Page::collect(rows, self.limit);
        page
    }
}

fn size(entry: &Entry) -> usize {
    entry.key.len() + entry.value.len()
}

#[async_trait]
impl Meta for Kubernetes {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError> {
        key::check(key)?;
        self.find(self.deadline(), key).await
    }

    async fn put_if(
        &self,
        key: &str,
        expected: Expect,
        value: Bytes,
    ) -> Result<Revision, PutError> {
        key::check(key)?;
        check_value(&value)?;
        let expected = match expected {
            Expect::Absent => None,
            Expect::Revision(revision) => Some(revision),
        };
        let object = object::build(&self.resource, key, &value, expected, Uuid::new_v4());
        let (name, how) = (object::name(key), PostParams::default());
        let written = if expected.is_none() {
            self.change(key, expected, || self.api.create(&how, &object)).await?
        } else {
            self.change(key, expected, || self.api.replace(&name, &how, &object)).await?
        };
        object::revision(&written.metadata)
            .map_err(|fault| PutError::Unknown(format!("record {name} was written, but {fault}")))
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<(), PutError> {
        key::check(key)?;
        let name = object::name(key);
        let preconditions =
            Preconditions { resource_version: Some(expected.0.to_string()), uid: None };
        let how = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let left = self.change(key, Some(expected), || self.api.delete(&name, &how)).await?;
        if left.is_left() {
            let told = format!("record {name} is held by its finalizers; remove them");
            return Err(PutError::Unknown(told));
        }
        Ok(())
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, MetaError> {
        let start = start_of_list(prefix, after)?;
        let (until, mut refusal) = (self.deadline(), Refusal::Expired);
        for _ in 0..LIST_ATTEMPTS {
            match self.page(until, prefix, start, limit).await {
                Ok(page) => return Ok(page),
                Err(Refusal::Expired) => {}
                Err(other) => {
                    refusal = other;
                    break;
                }
            }
        }
        Err(MetaError::Unavailable(self.blame(refusal)))
    }
}
