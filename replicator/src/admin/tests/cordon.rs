//! Nodes that are cordoned.

use super::*;

#[tokio::test]
async fn a_cordon_is_noted_and_undone_whatever_becomes_of_writes() {
    let node = Node::start().await;
    let told = async || node.admin.survey_all().await.unwrap().remove("n1").unwrap().cordoned;
    let request = |undo| v1::CordonNodeRequest { node: "n1".to_owned(), undo };
    for fault in FAULTS {
        for undo in [false, true] {
            let what = format!("{fault:?} {undo}");
            node.meta.fail_next_write(fault);
            persist(&what, || node.admin.cordon_node(request(undo))).await;
            persist(&what, || node.admin.cordon_node(request(undo))).await;
            assert_eq!(told().await, !undo, "{what}");
        }
    }
    let other = v1::CordonNodeRequest { node: "n2".to_owned(), undo: false };
    assert_eq!(node.admin.cordon_node(other).await.unwrap_err().code(), Code::NotFound);
    node.stop().await;
}

#[tokio::test]
async fn a_cordoned_node_gets_a_copy_that_no_other_node_can_have() {
    let node = Node::start().await;
    let request = v1::CordonNodeRequest { node: "n1".to_owned(), undo: false };
    node.admin.cordon_node(request).await.unwrap();
    let survey = node.admin.survey_all().await.unwrap();
    let all = super::super::survey::candidates(&survey, "default", "zone");
    assert!(!all.is_empty() && all.iter().all(|candidate| candidate.cordoned));
    let request = v1::CreateVolumeRequest {
        name: "v".to_owned(),
        size_bytes: 1 << 20,
        repl: 1,
        ..Default::default()
    };
    node.admin.create_for(request, &CancellationToken::new()).await.unwrap();
    node.admin.delete("v").await.unwrap();
    node.stop().await;
}
