//! What a change and a read of a record cost.

use crate::cluster::{Cluster, PATIENT, User};
use anyhow::Context as _;
use bytes::Bytes;
use lockstep_meta::{Expect, Meta};
use serde_json::{Value, json};
use std::time::Instant;

const NAMESPACE: &str = "speed";
const ROUNDS: usize = 500;
const BYTES: usize = 1024;

pub(crate) async fn run(cluster: &Cluster) -> anyhow::Result<Value> {
    cluster.make_namespace(NAMESPACE).await?;
    let store = cluster.store(User::Admin, NAMESPACE, PATIENT).await?;
    let value = Bytes::from(vec![b'x'; BYTES]);
    let mut revision = store.put_if("k", Expect::Absent, value.clone()).await?;
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        revision = store.put_if("k", Expect::Revision(revision), value.clone()).await?;
        puts.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        store.get("k").await?.context("the record is gone")?;
        gets.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(json!({
        "put_ms": quantile(&mut puts, 50),
        "put_p99_ms": quantile(&mut puts, 99),
        "get_ms": quantile(&mut gets, 50),
        "get_p99_ms": quantile(&mut gets, 99),
    }))
}

fn quantile(times: &mut [f64], percent: usize) -> Value {
    times.sort_by(f64::total_cmp);
    let at = times.len() * percent / 100;
    times.get(at).map_or(Value::Null, |ms| json!((ms * 100.0).round() / 100.0))
}
