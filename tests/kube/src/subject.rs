//! The record store on Kubernetes objects, under the suite that all record stores pass.

use crate::cluster::{Cluster, PATIENT, User};
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use kube::client::{Body, ClientBuilder};
use lockstep_meta::conformance::{Subject, suite};
use lockstep_meta::kubernetes::Kubernetes;
use lockstep_meta::{Expect, Meta, MetaError, Page, PutError, Revision, Versioned, async_trait};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task;
use tower::{BoxError, Service};

/// Runs the suite; says how many checks held.
pub(crate) async fn run(cluster: &Arc<tokio::sync::Mutex<Cluster>>) -> anyhow::Result<usize> {
    let number = AtomicUsize::new(0);
    let report = suite(async || {
        let namespace = format!("suite-{}", number.fetch_add(1, Ordering::SeqCst));
        InNamespace::new(cluster, &namespace).await
    });
    let report = report.await?;
    ensure!(report.skipped.is_empty(), "not examined: {:?}", report.skipped);
    Ok(report.held.len())
}

/// A store that is empty at first, or why there is none.
struct InNamespace {
    cluster: Arc<tokio::sync::Mutex<Cluster>>,
    store: Arc<dyn Meta>,
    losses: Losses,
}

impl InNamespace {
    async fn new(cluster: &Arc<tokio::sync::Mutex<Cluster>>, namespace: &str) -> Self {
        let losses = Losses::default();
        let store = make_store(&*cluster.lock().await, namespace, &losses).await;
        let store = store.unwrap_or_else(|error| Arc::new(NoStore(format!("{error:#}"))));
        Self { cluster: Arc::clone(cluster), store, losses }
    }
}

async fn make_store(
    cluster: &Cluster,
    namespace: &str,
    losses: &Losses,
) -> anyhow::Result<Arc<dyn Meta>> {
    cluster.make_namespace(namespace).await.context("making a namespace")?;
    let config = cluster.config(User::Admin, PATIENT).await?;
    let address = config.cluster_url.to_string();
    let layer = tower::layer::layer_fn(|inner| Losing { inner, losses: losses.clone() });
    let client = ClientBuilder::try_from(config)?.with_layer(&layer).build();
    Ok(Arc::new(Kubernetes::over(client, namespace, address, PATIENT)))
}

#[async_trait]
impl Subject for InNamespace {
    fn store(&self) -> Arc<dyn Meta> {
        Arc::clone(&self.store)
    }

    async fn restart(&mut self) -> Result<bool, String> {
        let mut cluster = self.cluster.lock().await;
        cluster.restart().await.map_err(|error| format!("{error:#}"))?;
        Ok(true)
    }

    fn lose_next_outcome(&self, is_made: bool) -> bool {
        self.losses.set(Some(if is_made { Lost::Answer } else { Lost::Request }));
        true
    }
}

/// What is lost of the next change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Request,
    Answer,
}

#[derive(Clone, Debug, Default)]
struct Losses(Arc<Mutex<Option<Lost>>>);

impl Losses {
    fn set(&self, lost: Option<Lost>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lost;
    }

    fn take(&self) -> Option<Lost> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Loses requests that change something, or their answers, as a network does.
struct Losing<S> {
    inner: S,
    losses: Losses,
}

impl<S, B> Service<http::Request<Body>> for Losing<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_change = request.method() != http::Method::GET;
        let lost = if is_change { self.losses.take() } else { None };
        let cut = || BoxError::from(io::Error::from(io::ErrorKind::ConnectionReset));
        if lost == Some(Lost::Request) {
            return Box::pin(async move { Err(cut()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if lost == Some(Lost::Answer) { Err(cut()) } else { Ok(answer) }
        })
    }
}

/// In place of a store that could not be made: the first check tells why.
#[derive(Debug)]
struct NoStore(String);

#[async_trait]
impl Meta for NoStore {
    async fn get(&self, _key: &str) -> Result<Option<Versioned>, MetaError> {
        Err(MetaError::Unavailable(self.0.clone()))
    }

    async fn put_if(
        &self,
        _key: &str,
        _expected: Expect,
        _value: Bytes,
    ) -> Result<Revision, PutError> {
        Err(PutError::Unavailable(self.0.clone()))
    }

    async fn delete_if(&self, _key: &str, _expected: Revision) -> Result<(), PutError> {
        Err(PutError::Unavailable(self.0.clone()))
    }

    async fn list(
        &self,
        _prefix: &str,
        _after: Option<&str>,
        _limit: usize,
    ) -> Result<Page, MetaError> {
        Err(MetaError::Unavailable(self.0.clone()))
    }
}
