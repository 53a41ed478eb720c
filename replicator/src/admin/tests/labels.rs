//! Placements, and labels that are put on nodes.

use super::*;

fn change(node: &str, key: &str, value: Option<&str>) -> v1::LabelNodesRequest {
    let (node, key, value) = (node.to_owned(), key.to_owned(), value.map(str::to_owned));
    v1::LabelNodesRequest { changes: vec![v1::LabelChange { node, key, value }] }
}

#[tokio::test]
async fn volumes_on_the_same_nodes_that_were_placed_alike_share_a_placement() {
    let node = Node::start().await;
    let make = async |name: &str, spread: &str| {
        let request = v1::CreateVolumeRequest {
            name: name.to_owned(),
            size_bytes: 1 << 20,
            repl: 1,
            spread: spread.to_owned(),
            ..Default::default()
        };
        node.admin.create_for(request, &CancellationToken::new()).await.unwrap().placement_id
    };
    let first = make("v", "").await;
    assert!(first.starts_with("p-"), "{first}");
    assert_eq!(make("w", "").await, first);
    assert_ne!(make("x", "rack").await, first);
    assert_eq!(make("v", "").await, first, "a retry tells the same");
    for name in ["v", "w", "x"] {
        node.admin.delete(name).await.unwrap();
    }
    node.stop().await;
}

#[tokio::test]
async fn labels_are_put_and_taken_off_whatever_becomes_of_writes() {
    let node = Node::start().await;
    let told = async || {
        let mut survey = node.admin.survey_all().await.unwrap();
        node.admin.mark_labels(&mut survey).await.unwrap();
        survey.remove("n1").unwrap().labels
    };
    for fault in FAULTS {
        for (value, expected) in [(Some("1"), Some("1")), (None, None)] {
            let what = format!("{fault:?} {value:?}");
            let request = change("n1", "x/p", value);
            node.meta.fail_next_write(fault);
            persist(&what, || node.admin.label_nodes(&request)).await;
            persist(&what, || node.admin.label_nodes(&request)).await;
            assert_eq!(told().await.get("x/p").map(String::as_str), expected, "{what}");
        }
    }
    let all = node.admin.label_nodes(&v1::LabelNodesRequest::default()).await.unwrap();
    assert_eq!(all.nodes, [], "none is left");
    node.stop().await;
}

#[tokio::test]
async fn what_a_daemon_was_told_and_nodes_nobody_knows_are_not_labelled() {
    let node = Node::start().await;
    for (request, code) in [
        (change("n1", "rack", Some("8")), Code::FailedPrecondition),
        (change("n2", "x/p", Some("1")), Code::NotFound),
        (change("n1", "x//p", Some("1")), Code::InvalidArgument),
    ] {
        assert_eq!(node.admin.label_nodes(&request).await.unwrap_err().code(), code);
    }
    node.admin.label_nodes(&change("n2", "x/p", None)).await.unwrap();
    let own = node.admin.own_node().await;
    assert_eq!(own.labels.get("rack").map(String::as_str), Some("7"));
    node.stop().await;
}
