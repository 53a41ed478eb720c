//! A copy comes back, and gets what it missed: all of it, and nothing older.

use lockstep_core::planted::Bug;

use super::play::{Play, acknowledgements, proves};

/// The copy being filled was forgotten among the writers when the volume was attached anew.
#[test]
fn pitfall_04_rebuilding_child_missing_from_writers_after_republish() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=3", "claim n1"]);
        play.run(&["write n1 0+4 a", "write n1 300+4 a", "write n1 600+4 a", "advance 20"]);
        // n3 is being filled when the primary is killed.
        play.run(&["hold n3 n1", "add n3"]);
        pass_until_filling(play, "n1");
        play.run(&["kill n1", "release n3 n1"]);
        assert!(!play.record().contains("n3:in-sync"), "{}", play.record());
        // It is being filled anew, and no further than that, when the guest writes.
        play.run(&["hold n3 n2", "claim n2", "advance 3000"]);
        pass_until_filling(play, "n2");
        play.run(&["write n2 900+1 b", "advance 5"]);
        assert!(play.at(&["n2 > n3", "WRITE 900+1"]).is_some(), "{}", play.said().join("\n"));
        play.run(&["release n3 n2", "start n1", "advance 10000"]);
        let all = "0=a 1=a 2=a 3=a 300=a 301=a 302=a 303=a 600=a 601=a 602=a 603=a 900=b";
        play.assert_all_hold(all);
        assert!(play.record().contains("n1:in-sync n2:in-sync n3:in-sync"));
    }
    proves(scene, &[Bug::NoForward]);
}

/// Lets n3's answers to this primary through, one by one, until it is being compared or filled.
fn pass_until_filling(play: &mut Play, primary: &str) {
    let to = format!("{primary} > n3  ");
    let pass = format!("pass n3 {primary}");
    let filling = |line: &String| {
        line.starts_with(&to) && ["DIGEST", "RESYNC"].iter().any(|kind| line.contains(kind))
    };
    for _ in 0..20 {
        if !play.said().iter().any(filling) {
            play.run(&[&pass, "advance 1"]);
        }
    }
    assert!(play.said().iter().any(filling), "{}", play.said().join("\n"));
}

/// Writes between a fault and the start of the log of changes were in no log.
#[test]
fn pitfall_05_writes_between_fault_and_start_of_the_change_log() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=2", "claim n1", "write n1 0+1 a", "advance 20"]);
        // n3 is gone, nobody knows it yet, and writes are under way.
        play.run(&["hold n1 n3", "write n1 1+1 b", "write n1 300+1 c", "kill n3"]);
        play.run(&["write n1 2+1 d", "advance 2000", "write n1 3+1 e", "advance 2000"]);
        assert!(play.record().contains("n3:out"));
        play.run(&["release n1 n3", "start n3", "advance 5000"]);
        play.assert_all_hold("0=a 1=b 2=d 3=e 300=c");
    }
    proves(scene, &[Bug::NoRingRestamp]);
}

/// The note of what a copy had missed was cleared when it rejoined, before it had got it.
#[test]
fn pitfall_06_rejoining_clears_what_was_missed() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+1 a", "advance 20"]);
        play.run(&["kill n2", "write n1 1+1 b", "advance 3000"]);
        // It comes back for a moment, gets nothing, and is gone again, twice.
        for write in ["write n1 2+1 c", "write n1 3+1 d"] {
            play.run(&["hold n2 n1", "start n2", "advance 20", "kill n2", "release n2 n1"]);
            play.run(&[write, "advance 3000"]);
        }
        // Whoever serves the volume meanwhile, and however often.
        play.run(&["kill n1", "start n1", "claim n1", "advance 5000"]);
        let since: Vec<&str> = play
            .said()
            .iter()
            .filter_map(|line| line.split("n2:out@").nth(1)?.split(' ').next())
            .collect();
        assert!(
            since.iter().all(|s| *s == since[0]),
            "what it missed first is forgotten: {since:?}"
        );
        play.run(&["start n2", "advance 5000"]);
        play.assert_all_hold("0=a 1=b 2=c 3=d");
    }
    proves(scene, &[Bug::RaiseSince]);
}

/// A peer in a certain state got neither the data nor the note that it lacks it.
#[test]
fn pitfall_08_peer_gets_neither_data_nor_a_note() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+1 a", "advance 20"]);
        play.run(&["kill n2", "write n1 1+1 b", "advance 3000", "hold n2 n1", "start n2"]);
        // In whatever state the returning copy is, what is written has it as a target or is in what
        // it will be given.
        for write in 0..8 {
            play.run(&[&format!("write n1 {}+1 {}", 300 + write, 'c')]);
            play.run(&["release n2 n1", "hold n2 n1", "advance 5"]);
        }
        play.run(&["release n2 n1", "advance 5000"]);
        let all: Vec<String> = (300..308).map(|block| format!("{block}=c")).collect();
        play.assert_all_hold(&format!("0=a 1=b {}", all.join(" ")));
        assert!(play.record().contains("n2:in-sync"), "{}", play.record());
    }
    proves(scene, &[]);

    // Before it is named in sync it is required: a flush that it did not answer is not answered.
    fn required(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+1 a", "advance 20"]);
        play.run(&["kill n2", "write n1 1+1 b", "advance 3000", "hold n2 n1", "start n2"]);
        pass_until_closing_flush(play);
        let said = play.run(&["write n1 9+1 c", "flush n1", "advance 100"]);
        assert_eq!(acknowledgements(&said), 0, "{}", said.join("\n"));
    }
    proves(required, &[Bug::NoCatching]);
}

/// Lets n2's answers through, one by one, until its resync has sent it the closing flush.
fn pass_until_closing_flush(play: &mut Play) {
    let closing = |play: &Play| {
        let resynced = play.at(&["n1 > n2", "RESYNC"]).unwrap_or(usize::MAX);
        play.said().iter().skip(resynced).any(|l| l.starts_with("n1 > n2  COMPLETE"))
    };
    for _ in 0..20 {
        if !closing(play) {
            play.run(&["pass n2 n1", "advance 1"]);
        }
    }
    assert!(closing(play), "{}", play.said().join("\n"));
}

/// The answer to a block of the resync cleared the note of a newer write to the same block.
#[test]
fn pitfall_09_resync_answer_clears_a_newer_writes_note() {
    proves(between_read_and_write, &[Bug::ResyncWithoutLock]);
}

/// n1's own copy is brought back from n2, whose answers come one by one; the guest writes to a
/// block of the window when its older content was read from n2 and is not yet written to n1.
fn between_read_and_write(play: &mut Play) {
    play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+2 a", "advance 20"]);
    play.run(&["cut n1 n1", "write n1 0+2 b", "advance 3000", "hold n2 n1", "heal n1 n1"]);
    for _ in 0..20 {
        if play.at(&["n1 > n2", "READ"]).is_none() {
            play.run(&["pass n2 n1", "advance 1"]);
        }
    }
    assert!(play.at(&["n1 > n2", "READ"]).is_some(), "{}", play.said().join("\n"));
    play.run(&["write n1 1+1 c", "release n2 n1", "advance 5000"]);
    assert!(play.record().contains("n1:in-sync n2:in-sync"), "{}", play.record());
    play.assert_all_hold("0=b 1=c");
}

/// Writes around the part that was just being repaired were lost; the target stopped half-way, and
/// the repair went on as if it had not.
#[test]
fn pitfall_21_writes_lost_around_what_is_being_repaired() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+8 a", "advance 20"]);
        play.run(&["kill n2", "write n1 2+4 b", "advance 3000", "start n2", "hold n2 n1"]);
        // The window is compared; the guest writes before, in and after it.
        play.run(&["write n1 1+2 c", "write n1 5+2 d", "write n1 9+1 e", "advance 5"]);
        // The target stops in the midst of it, and comes back.
        play.run(&["kill n2", "release n2 n1", "advance 100", "start n2", "advance 10000"]);
        play.assert_all_hold("0=a 1=c 2=c 3=b 4=b 5=d 6=d 7=a 9=e");
    }
    proves(scene, &[]);

    // All was compared when it stops, and the guest goes on meanwhile.
    fn almost_done(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+2 a", "advance 20"]);
        play.run(&["kill n2", "write n1 0+1 b", "advance 3000", "hold n2 n1", "start n2"]);
        pass_until_closing_flush(play);
        play.run(&["kill n2", "write n1 1+1 c", "release n2 n1", "start n2", "advance 10000"]);
        assert!(play.record().contains("n2:in-sync"), "{}", play.record());
        play.assert_all_hold("0=b 1=c");
    }
    proves(almost_done, &[Bug::ResumeResync]);
    proves(between_read_and_write, &[Bug::ResyncWithoutLock]);
}

/// What was rebuilt had another granularity than what was written: called healthy, and corrupt.
#[test]
fn pitfall_23_rebuilt_and_healthy_but_different() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=3", "claim n1"]);
        // Single blocks at the borders of regions and beside zeroes, the end of the volume too.
        for at in [0, 1, 255, 256, 257, 511, 513, 767, 768, 1023] {
            play.run(&[&format!("write n1 {at}+1 x")]);
        }
        play.run(&["write n1 100+60 y", "zero n1 110+7", "zero n1 255+1", "advance 20"]);
        play.run(&["kill n2", "zero n1 120+1", "write n1 1022+1 z", "advance 3000"]);
        play.run(&["start n2", "add n3", "advance 10000"]);
        assert!(play.record().contains("n1:in-sync n2:in-sync n3:in-sync"), "{}", play.record());
        let copies = play.copies();
        let first = copies[0].1.clone();
        assert!(first.contains("119=y 121=y") && first.contains("1022=z 1023=x"), "{first}");
        assert!(!first.contains(" 255=") && !first.contains(" 110="), "{first}");
        play.assert_all_hold(&first);
    }
    proves(scene, &[Bug::SkipOlderStamps, Bug::LongDiscard]);

    // What only the target has is replaced, too, whether it remembers it or was restarted since.
    fn target_has_more(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "write n1 0+1 a", "advance 20"]);
        play.run(&["hold n1 n1", "write n1 300+1 x", "kill n1", "cut n1 n2", "release n1 n1"]);
        play.run(&["start n1", "claim n1", "advance 5000"]);
        assert!(play.record().contains("n1:in-sync n2:out"), "{}", play.record());
    }
    fn remembered(play: &mut Play) {
        target_has_more(play);
        play.run(&["heal n1 n2", "advance 5000"]);
        play.assert_all_hold("0=a");
    }
    fn restarted(play: &mut Play) {
        target_has_more(play);
        play.run(&["kill n2", "start n2", "heal n1 n2", "advance 5000"]);
        play.assert_all_hold("0=a");
    }
    proves(remembered, &[Bug::IgnoreTargetRing]);
    proves(restarted, &[Bug::IgnoreTargetLog]);
}
