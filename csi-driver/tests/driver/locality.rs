//! The label of a volume is where its copies are, and moves with them.

use crate::fake::{Fake, copy};
use crate::program::PATIENCE;
use crate::volumes::{scene, wanted};
use lockstep_proto::csi;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Code;

const KEY: &str = "lockstep.node-restriction.kubernetes.io/p-1";

fn labelled(fake: &Fake) -> Vec<String> {
    let labels = fake.labels.lock().unwrap();
    let ours = labels.there.iter().filter(|(_, key)| key == KEY);
    ours.map(|(node, _)| node.clone()).collect()
}

async fn wait_for(fake: &Fake, nodes: &[&str]) {
    let begin = Instant::now();
    while labelled(fake) != nodes {
        assert!(begin.elapsed() < PATIENCE, "on {:?}, not on {nodes:?}", labelled(fake));
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_label_is_there_before_the_volume_is_told_of() {
    let mut scene = scene().await;
    scene.fake.labels.lock().unwrap().broken = true;
    let refused = scene.client.create_volume(wanted("v")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    scene.fake.labels.lock().unwrap().broken = false;
    let made = scene.client.create_volume(wanted("v")).await.unwrap().into_inner();
    assert_eq!(labelled(&scene.fake), ["n1"]);
    assert_eq!(*scene.fake.made.lock().unwrap(), 1, "the same volume, and the same key");
    assert_eq!(made.volume.unwrap().accessible_topology[0].segments[KEY], "replica");
}

#[tokio::test]
async fn it_moves_with_the_copy_and_goes_with_the_last_volume() {
    let mut scene = scene().await;
    for name in ["v", "w"] {
        scene.client.create_volume(wanted(name)).await.unwrap();
    }
    let fake = scene.fake.clone();
    let copies_on = |node: &str| {
        for volume in fake.volumes.lock().unwrap().values_mut() {
            volume.replicas = vec![copy(node)];
        }
    };
    copies_on("n2");
    wait_for(&fake, &["n2"]).await;
    assert_eq!(fake.labels.lock().unwrap().changes, ["+n1", "+n2", "-n1"], "first the new node");

    // Somebody takes it off.
    fake.labels.lock().unwrap().there.clear();
    wait_for(&fake, &["n2"]).await;

    for (name, left) in [("v", &["n2"][..]), ("w", &[])] {
        let volume_id = name.to_owned();
        let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
        scene.client.delete_volume(request).await.unwrap();
        wait_for(&fake, left).await;
    }
}

#[tokio::test]
async fn a_volume_for_which_locality_is_a_wish_is_reached_from_everywhere() {
    let mut scene = scene().await;
    let parameters = BTreeMap::from([("locality".to_owned(), "preferred".to_owned())]);
    let request = csi::CreateVolumeRequest { parameters, ..wanted("v") };
    let made = scene.client.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(made.accessible_topology, []);
    assert_eq!(labelled(&scene.fake), ["n1"], "pods are still told where a copy is");
}
