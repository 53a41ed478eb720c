//! Who has the data, and who says so.

use lockstep_core::id::{Lineage, NodeId, ReplicaId, VolumeId};
use lockstep_core::planted::Bug;
use lockstep_core::record::{NewVolume, Record};
use uuid::Uuid;

use super::play::{Play, acknowledgements, proves};

/// A mirror answered its guest, and recorded only afterwards that one side had failed. A crash in
/// between left a record that called both sides good.
#[test]
fn pitfall_01_io_acked_before_failed_child_recorded() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=2", "claim n1", "write n1 0+1 a", "advance 20"]);
        play.run(&["kill n3", "store down"]);
        let mut said = play.run(&["write n1 1+1 b", "advance 1500", "write n1 2+1 c"]);
        said.extend(play.run(&["store up", "advance 1000"]));
        let removal = said.iter().position(|l| l.contains("puts") && l.contains("n3:out"));
        let answer = said.iter().position(|l| l.ends_with(": done"));
        let (removal, answer) = (removal.expect("a removal"), answer.expect("an answer"));
        assert!(removal < answer, "acknowledged before the removal:\n{}", said.join("\n"));
    }
    proves(scene, &[Bug::AckBeforeRemoval]);
}

/// The record could not be written, and the data path went on without the failed copy.
#[test]
fn pitfall_02_data_path_goes_on_though_the_record_was_not_written() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 repl=2 min=1", "claim n1", "advance 20"]);
        play.run(&["store down", "kill n2"]);
        let said = play.run(&["write n1 0+1 a", "flush n1", "advance 60000"]);
        assert_eq!(acknowledgements(&said), 0, "acknowledged by one copy of two");
        assert!(play.at(&["n1 is Suspended"]).is_some());
        // When it is known who has the data, the guest goes on.
        let said = play.run(&["store up", "advance 1000"]);
        assert_eq!(acknowledgements(&said), 2, "{said:?}");
    }
    proves(scene, &[Bug::AckBeforeRemoval]);
}

/// A volume grew while a copy could not be reached, which was taken to have the space; when it had
/// not, what was new existed in too few places, or the copy could never come back.
#[test]
fn pitfall_14_growth_takes_for_granted_that_who_is_away_has_the_space() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=2", "claim n1", "pool n3 full", "cut n1 n3"]);
        play.run(&["resize n1 1280"]);
        assert!(play.record().contains("g3 primary=n1 n1:in-sync"), "{}", play.record());
        // It is a member no more: now the volume may grow.
        play.run(&["advance 2000", "write n1 1279+1 a"]);
        assert!(play.record().contains("1280 blocks n1:in-sync n2:in-sync n3:out"));
        // It comes back as soon as there is room, and has it all then.
        play.run(&["heal n1 n3", "advance 20000"]);
        assert!(play.record().contains("n3:out"), "{}", play.record());
        play.run(&["pool n3 usual", "advance 20000"]);
        assert!(play.record().contains("n3:in-sync"), "{}", play.record());
        play.assert_all_hold("1279=a");
    }
    proves(scene, &[Bug::ExpandUnextended, Bug::AdmitShort]);
}

/// The last good copy failed, too, and was recorded as faulty: nobody knew who had the data.
#[test]
fn pitfall_03_last_healthy_replica_recorded_as_faulty() {
    let mut play = Play::new(Default::default());
    play.run(&["create n1 n2 repl=2 min=1", "claim n1", "write n1 0+1 a", "kill n2"]);
    play.run(&["advance 3000", "write n1 1+1 b", "cut n1 n1", "advance 60000"]);
    assert!(play.record().contains("n1:in-sync n2:out"), "{}", play.record());
    // Neither the failed nor the outdated one takes its place.
    play.run(&["kill n1", "start n2", "claim n2", "advance 60000"]);
    assert!(play.record().contains("n1:in-sync n2:out"), "{}", play.record());
    assert_eq!(play.at(&["n2 is Active"]), None);

    let record = one_copy();
    let rid = record.replicas[0].rid;
    assert_eq!(record.remove(rid, Uuid::nil()), None, "the last one can't be removed");
    assert!(record.forget(rid, Uuid::nil()).is_err(), "nor forgotten");
    let nobody = Record { replicas: Vec::new(), ..record };
    assert!(nobody.validate().is_err(), "a record that names nobody is refused");
}

fn one_copy() -> Record {
    let node = NodeId::new("n1").expect("a name");
    let new = NewVolume {
        uid: VolumeId(Uuid::from_u128(1)),
        lineage: Lineage(Uuid::from_u128(2)),
        blocks: 1000,
        repl: 1,
        min_in_sync: 1,
        replicas: vec![(ReplicaId(Uuid::from_u128(3)), node, "p".to_owned())],
    };
    Record::create(new, Uuid::nil()).expect("a valid volume")
}

/// Both sides had the same generation id after the primary was lost, so nothing was synchronised,
/// although one side had writes that the other had not.
#[test]
fn pitfall_07_same_generation_taken_for_same_content() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=2", "claim n1", "write n1 5+1 a", "advance 20"]);
        // Only n1 and n2 get the second write, in the very same generation.
        play.run(&["hold n1 n3", "write n1 5+1 b", "kill n1", "release n1 n3"]);
        play.run(&["claim n2", "advance 3000", "start n1", "advance 3000"]);
        play.assert_all_hold("5=b");
    }
    proves(scene, &[Bug::NoRepair]);
}

/// A new generation id never reached the peer, which went on under the old one: the two diverged.
#[test]
fn pitfall_12_new_generation_never_reached_the_peer() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=1", "claim n1", "write n1 0+1 a", "advance 20"]);
        // n3 hears nothing of the generation that excludes it, nor of n2's claim.
        play.run(&["hold n1 n3", "write n1 1+1 b", "cut n1 n3", "advance 3000"]);
        play.run(&["release n1 n3", "write n1 2+1 c", "kill n1", "claim n2", "advance 3000"]);
        assert!(play.at(&["n2 puts", "n3:in-sync"]).is_some(), "{:?}", play.said());
        play.run(&["start n1", "advance 5000", "write n2 3+1 d", "advance 100"]);
        play.assert_all_hold("0=a 1=b 2=c 3=d");
    }
    proves(scene, &[Bug::NoRingRestamp]);
}

/// The copy with the highest counter of writes was taken for the best one; it was not.
#[test]
fn pitfall_22_best_copy_chosen_by_a_counter() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 repl=2 min=1", "claim n1", "write n1 0+1 a", "advance 20"]);
        // n2 alone gets many writes that are not acknowledged, n1 and the record do without it.
        play.run(&["hold n1 n1", "write n1 1+1 x", "write n1 2+1 x", "write n1 3+1 x"]);
        play.run(&["cut n1 n2", "release n1 n1", "advance 3000", "write n1 9+1 b"]);
        play.run(&["kill n1", "claim n2", "advance 60000"]);
        assert_eq!(play.at(&["n2 is Active"]), None, "the copy that is out was taken");
        // Only the one that the record names will do.
        play.run(&["heal n1 n2", "start n1", "advance 5000"]);
        assert!(play.at(&["n2 is Active"]).is_some(), "{}", play.said().join("\n"));
        play.assert_all_hold("0=a 1=x 2=x 3=x 9=b");
    }
    proves(scene, &[Bug::SourceFromOutside]);
}

/// After two partitions in a row a stale copy was promoted, and acknowledged writes were gone.
#[test]
fn pitfall_27_stale_copy_promoted_after_two_partitions() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 repl=3 min=1", "claim n1", "write n1 0+1 a", "advance 20"]);
        // First n3 is cut off, then n1 and n2 are gone for whoever sits with n3.
        play.run(&["cut n1 n3", "cut n2 n3", "write n1 1+1 b", "advance 3000"]);
        assert!(play.record().contains("n3:out"), "{}", play.record());
        let said = play.run(&["claim n3", "advance 60000", "read n3 0+2"]);
        assert_eq!(play.at(&["n3 is Active"]), None, "{}", said.join("\n"));
        play.run(&["heal n2 n3", "advance 5000"]);
        let said = play.run(&["read n3 0+2"]);
        assert!(said.iter().any(|line| line.ends_with(": ab")), "{}", said.join("\n"));
    }
    proves(scene, &[Bug::SourceFromOutside]);
}

/// The last copy in sync came back from a crash with less than it had acknowledged, and was taken
/// for the truth while another one knew better.
#[test]
fn pitfall_30_last_in_sync_replica_restarts_unclean() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+1 a", "advance 20"]);
        // n2 restarts unclean while its removal can't be recorded, with a write that it never got.
        play.run(&["store down", "hold n1 n2", "write n1 1+1 b", "kill n2", "start n2"]);
        play.run(&["release n1 n2", "cut n1 n2", "heal n1 n2"]);
        let said = play.run(&["flush n1", "advance 1000"]);
        assert_eq!(acknowledgements(&said), 0, "acknowledged with an unclean member");
        play.run(&["store up", "advance 5000"]);
        play.assert_all_hold("0=a 1=b");
        // And the source of a promotion is the one that is not unclean.
        play.run(&["write n1 2+1 c", "kill n2", "start n2", "claim n2", "advance 5000"]);
        play.assert_all_hold("0=a 1=b 2=c");
    }
    proves(scene, &[Bug::ResumeUnclean]);
}
