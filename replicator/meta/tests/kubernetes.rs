//! The record store on Kubernetes objects: what is told about an outcome, and how often a request
//! is sent, when the API server answers strangely. That it keeps the contract is shown against a
//! real one, by `tests/kube/run`.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

use bytes::Bytes;
use lockstep_meta::kubernetes::Kubernetes;
use lockstep_meta::remote::Deadlines;
use lockstep_meta::{Expect, Meta, MetaError, PutError, Revision, list_all};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const DEADLINES: Deadlines =
    Deadlines { connect: Duration::from_secs(5), request: Duration::from_secs(20) };

/// What a server says to one request.
#[derive(Clone, Debug)]
enum Say {
    /// A status and a body.
    Answer(u16, String),
    /// It hangs up.
    Nothing,
}

/// The first line and the body of each request.
type Heard = Arc<Mutex<Vec<(String, String)>>>;

/// A server that says one thing after the other, and the last one again and again.
async fn serve(script: Vec<Say>) -> (Kubernetes, Heard) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heard = Heard::default();
    let all = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            answer(stream, &script, &all).await;
        }
    });
    let config = kube::Config::new(url.parse().unwrap());
    (Kubernetes::new(config, Some("here"), DEADLINES).unwrap(), heard)
}

/// Answers one request and closes the connection.
async fn answer(stream: TcpStream, script: &[Say], heard: &Heard) {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        if let Some(number) = line.to_lowercase().strip_prefix("content-length:") {
            length = number.trim().parse().unwrap();
        }
        head.push(line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let say = {
        let mut heard = heard.lock().unwrap();
        heard.push((head.swap_remove(0), String::from_utf8(body).unwrap()));
        script.get(heard.len() - 1).or(script.last()).cloned()
    };
    if let Some(Say::Answer(code, text)) = say {
        let length = text.len();
        let reply = format!(
            "HTTP/1.1 {code} Some\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{text}"
        );
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

fn status(code: u16, reason: &str, name: &str) -> Say {
    let text = format!(
        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"because",
        "reason":"{reason}","details":{{"name":"{name}","kind":"records"}},"code":{code}}}"#
    );
    Say::Answer(code, text)
}

/// The object of the key `k`, as the server shows it.
fn object(version: &str) -> String {
    format!(
        r#"{{"apiVersion":"lockstep.dev/v1alpha1","kind":"Record",
        "metadata":{{"name":"{NAME}","namespace":"here","resourceVersion":"{version}"}},
        "spec":{{"key":"k","text":"v","change":"00000000-0000-0000-0000-000000000000"}}}}"#
    )
}

/// What the object of the key `k` is called.
const NAME: &str = "k.8254c329a92850f6d539dd376f4816ee";

fn list(objects: &[String], next: &str) -> Say {
    let text = format!(
        r#"{{"apiVersion":"lockstep.dev/v1alpha1","kind":"RecordList",
        "metadata":{{"resourceVersion":"9","continue":"{next}"}},"items":[{}]}}"#,
        objects.join(",")
    );
    Say::Answer(200, text)
}

async fn put(store: &Kubernetes, expected: Expect) -> Result<Revision, PutError> {
    store.put_if("k", expected, Bytes::from_static(b"v")).await
}

fn count(heard: &Heard) -> usize {
    heard.lock().unwrap().len()
}

#[tokio::test]
async fn a_change_that_failed_at_the_server_is_undecided_and_sent_once() {
    for code in [500, 502, 503, 504] {
        let (store, heard) = serve(vec![status(code, "Timeout", "")]).await;
        for expected in [Expect::Absent, Expect::Revision(Revision(7))] {
            let outcome = put(&store, expected).await;
            assert!(matches!(outcome, Err(PutError::Unknown(_))), "{code}: {outcome:?}");
        }
        let outcome = store.delete_if("k", Revision(7)).await;
        assert!(matches!(outcome, Err(PutError::Unknown(_))), "{code}: {outcome:?}");
        assert_eq!(count(&heard), 3, "{code}: a change was sent again");
    }
}

#[tokio::test]
async fn who_hears_nothing_reads_once_more_and_changes_nothing_again() {
    let (store, heard) = serve(vec![Say::Nothing]).await;
    let outcome = put(&store, Expect::Absent).await;
    assert!(matches!(outcome, Err(PutError::Unknown(_))), "{outcome:?}");
    assert_eq!(count(&heard), 1, "a change was sent twice");
    assert!(matches!(store.get("k").await, Err(MetaError::Unavailable(_))));
    assert_eq!(count(&heard), 3);

    let (store, _) = serve(vec![Say::Nothing, Say::Answer(200, object("7"))]).await;
    assert_eq!(store.get("k").await.unwrap().map(|v| v.revision), Some(Revision(7)));
}

#[tokio::test]
async fn a_change_that_was_sent_away_is_sent_again() {
    let busy = Say::Answer(429, "Too many requests, please try again later.".to_owned());
    let (store, heard) = serve(vec![busy, Say::Answer(201, object("8"))]).await;
    assert_eq!(put(&store, Expect::Absent).await, Ok(Revision(8)));
    let heard = heard.lock().unwrap();
    let [first, second] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!(first, second);
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_leaves_a_change_undecided() {
    for text in ["", "<html>", "{}", r#"{"metadata":{},"spec":{"key":"k"}}"#] {
        let (store, _) = serve(vec![Say::Answer(201, text.to_owned())]).await;
        let outcome = put(&store, Expect::Absent).await;
        assert!(matches!(outcome, Err(PutError::Unknown(_))), "{text:?}: {outcome:?}");
        assert!(matches!(store.get("k").await, Err(MetaError::Unavailable(_))), "{text:?}");
    }
    let (store, _) = serve(vec![Say::Answer(201, object("not a number"))]).await;
    let outcome = put(&store, Expect::Absent).await;
    assert!(matches!(outcome, Err(PutError::Unknown(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_knows_no_records_is_not_one_without_records() {
    for unknown in [status(404, "NotFound", ""), Say::Answer(404, "404 page not found".into())] {
        let (store, _) = serve(vec![unknown]).await;
        assert!(matches!(store.get("k").await, Err(MetaError::Unavailable(_))));
        assert!(matches!(store.list("", None, 0).await, Err(MetaError::Unavailable(_))));
        let outcome = put(&store, Expect::Revision(Revision(7))).await;
        assert!(matches!(outcome, Err(PutError::Unavailable(_))), "{outcome:?}");
        let outcome = store.delete_if("k", Revision(7)).await;
        assert!(matches!(outcome, Err(PutError::Unavailable(_))), "{outcome:?}");
    }
    let (store, _) = serve(vec![status(404, "NotFound", NAME)]).await;
    assert_eq!(store.get("k").await, Ok(None));
    let outcome = store.delete_if("k", Revision(7)).await;
    assert_eq!(outcome, Err(PutError::Conflict { current: None }));
}

#[tokio::test]
async fn a_conflict_tells_what_stands_there() {
    let script = vec![status(409, "AlreadyExists", NAME), Say::Answer(200, object("9"))];
    let (store, _) = serve(script).await;
    let outcome = put(&store, Expect::Absent).await;
    assert_eq!(outcome, Err(PutError::Conflict { current: Some(Revision(9)) }));
    // Refused, but what stands there cannot be read: surely not made, all the same.
    let script = vec![status(409, "Conflict", NAME), status(500, "InternalError", "")];
    let (store, _) = serve(script).await;
    let outcome = put(&store, Expect::Revision(Revision(3))).await;
    assert!(matches!(outcome, Err(PutError::Unavailable(_))), "{outcome:?}");
}

/// The server takes version 0 for any version.
#[tokio::test]
async fn revision_zero_is_never_sent() {
    let (store, heard) = serve(vec![Say::Answer(200, object("9"))]).await;
    let conflict = PutError::Conflict { current: Some(Revision(9)) };
    assert_eq!(put(&store, Expect::Revision(Revision(0))).await, Err(conflict.clone()));
    assert_eq!(store.delete_if("k", Revision(0)).await, Err(conflict));
    let heard = heard.lock().unwrap();
    assert!(heard.iter().all(|(line, _)| line.starts_with("GET ")), "{heard:?}");
}

#[tokio::test]
async fn reads_ask_for_the_latest_and_never_for_a_cached_answer() {
    let (store, heard) = serve(vec![Say::Answer(200, object("9"))]).await;
    store.get("k").await.unwrap();
    let (lister, listed) = serve(vec![list(&[object("9")], "")]).await;
    lister.list("", None, 0).await.unwrap();
    for heard in [heard, listed] {
        let heard = heard.lock().unwrap();
        assert!(heard.iter().all(|(line, _)| !line.contains("resourceVersion")), "{heard:?}");
    }
}

#[tokio::test]
async fn a_list_whose_moment_is_forgotten_begins_anew() {
    let gone = status(410, "Expired", "");
    let script = vec![list(&[], "next"), gone.clone(), list(&[], "next"), list(&[object("9")], "")];
    let (store, heard) = serve(script).await;
    let all = list_all(&store, "").await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(count(&heard), 4);

    let (store, _) = serve(vec![gone]).await;
    assert!(matches!(store.list("", None, 0).await, Err(MetaError::Unavailable(_))));
}

#[tokio::test]
async fn another_keys_object_is_not_read_for_a_key() {
    let strange = object("9").replace(r#""key":"k""#, r#""key":"other""#);
    let (store, _) = serve(vec![Say::Answer(200, strange)]).await;
    let read = store.get("k").await;
    let told = matches!(&read, Err(MetaError::Unavailable(told)) if told.contains("other"));
    assert!(told, "{read:?}");
}
