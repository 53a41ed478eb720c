//! Which nodes answer can be told while the record store cannot be read.

use super::*;

async fn names(node: &Node) -> Result<Vec<String>, Status> {
    let all = node.admin.who_answers(100).await?;
    Ok(all.into_iter().map(|status| status.name).collect())
}

#[tokio::test]
async fn nodes_are_asked_while_the_record_store_is_away_and_new_ones_are_found() {
    let node = Node::start().await;
    assert_eq!(names(&node).await.unwrap(), ["n1"]);
    node.meta.cut_off(true);
    assert_eq!(names(&node).await.unwrap(), ["n1"], "as it was a moment ago");
    node.meta.cut_off(false);
    let nowhere = "127.0.0.1:1".to_owned();
    let name = NodeId::new("n2").unwrap();
    let other = NodeObject::new(name, nowhere.clone(), nowhere, Uuid::new_v4());
    node.admin.inner.catalog.put_node(&other).await.unwrap();
    let begin = std::time::Instant::now();
    while names(&node).await.unwrap() != ["n1", "n2"] {
        assert!(begin.elapsed() < LONG, "a new node is not found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn a_record_store_that_is_slow_is_not_asked_by_everybody_at_once() {
    let node =
        Node::introduced(TempDir::new().unwrap(), Arc::new(Faulty::over_memory()), Uuid::new_v4())
            .await;
    node.meta.hold_reads(true);
    let before = node.admin.inner.tasks.len();
    let mut asked: Vec<_> = (0..8).map(|_| Box::pin(node.admin.nodes_lately())).collect();
    for one in &mut asked {
        assert!(futures::poll!(one).is_pending());
    }
    assert_eq!(node.admin.inner.tasks.len() - before, 1, "one reads for all");
    node.meta.cut_off(true);
    node.meta.hold_reads(false);
    for told in futures::future::join_all(asked).await {
        assert_eq!(told.unwrap_err().code(), Code::Unavailable);
    }
    node.meta.cut_off(false);
    assert_eq!(names(&node).await.unwrap(), ["n1"], "the next one reads");
    node.stop().await;
}
