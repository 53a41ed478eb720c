//! What the keeper remembers between two looks.

use lockstep_core::cluster::trim::Wanted;
use lockstep_core::id::{InstanceId, VolumeId};
use lockstep_core::primary::Phase;
use uuid::Uuid;

use super::super::tests::Node;
use super::{Attachment, Memory, key_of};
use crate::engine::PrimaryInfo;

const WANTED: Wanted = Wanted { repl: 3, min_in_sync: 2 };
const ONE: Wanted = Wanted { repl: 1, min_in_sync: 1 };

fn attachment(volume: u128, instance: u128) -> Attachment {
    (VolumeId(Uuid::from_u128(volume)), InstanceId(Uuid::from_u128(instance)))
}

fn calm() -> Memory {
    let mut memory = Memory::default();
    memory.note_calm(attachment(1, 10), Some(&WANTED));
    memory
}

#[test]
fn a_volume_is_calm_from_the_look_that_found_nothing_to_do() {
    assert!(!Memory::default().is_calm(attachment(1, 10), Some(&WANTED)));
    assert!(calm().is_calm(attachment(1, 10), Some(&WANTED)));
    assert!(!calm().is_calm(attachment(2, 10), Some(&WANTED)), "another volume");
}

/// The daemon that was asked for other numbers of copies may not have reached this one: the primary
/// knows nothing of it, and all copies are as the old numbers want them.
#[test]
fn other_wishes_end_the_calm_although_nobody_told_the_primary() {
    for other in [Wanted { repl: 2, ..WANTED }, Wanted { min_in_sync: 1, ..WANTED }] {
        assert!(!calm().is_calm(attachment(1, 10), Some(&other)), "{other:?}");
    }
}

#[test]
fn a_new_attachment_is_looked_at() {
    assert!(!calm().is_calm(attachment(1, 11), Some(&WANTED)));
}

#[test]
fn what_is_not_known_to_be_wanted_is_never_calm() {
    assert!(!calm().is_calm(attachment(1, 10), None), "its volume was not listed");
    let mut memory = Memory::default();
    memory.note_calm(attachment(1, 10), None);
    assert!(!memory.is_calm(attachment(1, 10), None));
}

#[test]
fn volumes_that_are_not_attached_here_any_more_are_forgotten() {
    let mut memory = calm();
    memory.forget_all_but(&[]);
    assert!(!memory.is_calm(attachment(1, 10), Some(&WANTED)));
}

/// A look may come between its being attached and its being at work.
#[tokio::test]
async fn a_volume_that_was_not_looked_at_yet_is_not_calm() {
    let node = Node::start().await;
    node.create().await.unwrap();
    node.attach(false).await.unwrap();
    let there = node.admin.inner.engine.list_primaries().await.remove(0);
    let mut claiming = there.clone();
    claiming.core.phase = Phase::Claiming;
    let instance = InstanceId(Uuid::from_u128(10));
    let other = PrimaryInfo { instance, ..there.clone() };
    let mut memory = Memory::default();
    for early in [claiming, other] {
        node.admin.look_after(std::slice::from_ref(&early), &mut memory).await.unwrap();
        assert!(!memory.is_calm(key_of(&early), Some(&ONE)), "{early:?}");
    }
    node.admin.look_after(std::slice::from_ref(&there), &mut memory).await.unwrap();
    assert!(memory.is_calm(key_of(&there), Some(&ONE)));
    node.stop().await;
}
