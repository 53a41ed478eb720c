//! What must not be done before, or at the same time as, something else.

use std::collections::BTreeSet;

use bytes::Bytes;
use lockstep_core::guest::GuestOp;
use lockstep_core::id::{Epoch, Gen, Seq, VolumeId};
use lockstep_core::message::{Header, Message, Payload, Request};
use lockstep_core::planted::{Bug, Planted};
use lockstep_core::range::BlockRange;
use lockstep_core::wire::{Frame, encode};
use uuid::Uuid;

use super::play::{Play, acknowledgements, proves};

fn sends<'a>(lines: &'a [String], what: &str) -> Vec<&'a String> {
    lines.iter().filter(|l| l.starts_with("n1 > n2") && l.contains(what)).collect()
}

/// A stream was cut into stripes over several connections and put together wrongly.
#[test]
fn pitfall_13_a_damaged_or_reordered_stream_is_taken_for_data() {
    let frame = |byte: u8, seq: u64| {
        let payload = Payload::checksummed(Bytes::from(vec![byte; 4096]));
        let header = Header {
            volume: VolumeId(Uuid::from_u128(5)),
            epoch: Epoch(3),
            r#gen: Gen(4),
            seq: Seq(seq),
            commit: Seq(1),
        };
        let body = Request::Write { range: BlockRange::new(9, 1), fua: false, payload };
        encode(&Frame::Request(Message { header, body }))
    };
    let good = frame(7, 2);
    assert!(good.clone().decode().is_ok());
    // No bit of head or body may flip, nor one here and there of the data.
    for bit in 0..good.head.len() * 8 {
        let mut head = good.head.to_vec();
        head[bit / 8] ^= 1 << (bit % 8);
        let mut bad = good.clone();
        bad.head = Bytes::from(head);
        assert!(bad.decode().is_err(), "bit {bit} of the head");
    }
    for bit in (0..good.data.len() * 8).step_by(41) {
        let mut data = good.data.to_vec();
        data[bit / 8] ^= 1 << (bit % 8);
        let mut bad = good.clone();
        bad.data = Bytes::from(data);
        assert!(bad.decode().is_err(), "bit {bit} of the data");
    }
    // The data of one frame behind the head of another is not taken, either.
    let mut mixed = good;
    mixed.data = frame(8, 3).data;
    assert!(mixed.decode().is_err(), "data of another frame");
}

/// A guest changed its page while it was being written, and each mirror got another version.
#[test]
fn pitfall_15_page_modified_during_write() {
    let mut play = Play::new(Planted::NONE);
    play.run(&["create n1 n2 n3 min=2", "claim n1", "advance 20"]);
    let data = Bytes::from(vec![9; 8192]);
    let (start, end) = (data.as_ptr() as usize, data.as_ptr() as usize + data.len());
    let payload = Payload::checksummed(data);
    let range = BlockRange::new(1, 2);
    let sent = play.payloads_of("n1", GuestOp::Write { range, fua: false, payload });
    assert_eq!(sent.len(), 3, "to each copy");
    for payload in &sent {
        // The same private copy goes to all, which nobody can write to: it has no other owner.
        let at = payload.data.as_ptr() as usize;
        assert!(at >= start && at < end, "another copy of the guest's data was sent");
        assert!(payload.is_intact());
    }
    let different: BTreeSet<&[u32]> = sent.iter().map(|p| p.crcs.as_slice()).collect();
    assert_eq!(different.len(), 1);
}

/// A buffer was given back to the guest when the write was acknowledged, while it was still being
/// sent to a slower mirror.
#[test]
fn pitfall_16_buffer_reused_before_the_last_send() {
    let payload = Payload::checksummed(Bytes::from(vec![3; 4096]));
    let range = BlockRange::new(0, 1);
    let op = GuestOp::Write { range, fua: false, payload };
    let mut play = Play::new(Planted::NONE);
    play.run(&["create n1 n2 n3 min=1", "claim n1", "advance 20"]);
    let sent = play.payloads_of("n1", op);
    let header = Header {
        volume: VolumeId(Uuid::from_u128(5)),
        epoch: Epoch(1),
        r#gen: Gen(1),
        seq: Seq(2),
        commit: Seq(1),
    };
    let queued: Vec<_> = sent
        .into_iter()
        .map(|payload| {
            let body = Request::Write { range, fua: false, payload };
            encode(&Frame::Request(Message { header, body }))
        })
        .collect();
    // The volume is gone, and with it every other owner of the data; what is queued keeps it.
    drop(play);
    for frame in queued {
        assert!(frame.data.iter().all(|byte| *byte == 3));
        assert!(frame.decode().is_ok(), "the data changed while it was queued");
    }
}

/// A small write overtook a large one that had been put aside, and was then overwritten by it.
#[test]
fn pitfall_17_small_write_overtakes_a_large_one() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "advance 20", "hold n2 n1"]);
        play.run(&["write n1 0+600 a"]);
        let said = play.run(&["write n1 300+1 b", "read n1 300+1", "zero n1 599+2"]);
        assert!(sends(&said, "WRITE 300+1").is_empty(), "{}", said.join("\n"));
        assert!(sends(&said, "ZERO").is_empty(), "{}", said.join("\n"));
        assert!(!said.iter().any(|l| l.contains("READ")), "{}", said.join("\n"));
        // What does not overlap need not wait.
        let said = play.run(&["write n1 700+1 c"]);
        assert_eq!(sends(&said, "WRITE 700+1").len(), 1);
        let said = play.run(&["release n2 n1", "advance 100"]);
        assert_eq!(acknowledgements(&said), 4, "{}", said.join("\n"));
        let copies = play.copies();
        assert!(copies.iter().all(|(_, content)| content.contains(" 300=b ")), "{copies:?}");
        assert!(copies.iter().all(|(_, content)| !content.contains("599=")), "{copies:?}");
    }
    proves(scene, &[Bug::NoRangeLock]);
}

/// The search for what a write depends on stopped at a flush: it overtook an older write beyond it.
#[test]
fn pitfall_18_dependency_search_stopped_at_a_flush() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 min=1 repl=2", "claim n1", "advance 20", "hold n2 n1"]);
        play.run(&["write n1 0+4 a", "flush n1"]);
        let said = play.run(&["write n1 2+1 b"]);
        assert!(sends(&said, "WRITE 2+1").is_empty(), "{}", said.join("\n"));
        play.run(&["release n2 n1", "advance 100"]);
        play.assert_all_hold("0=a 1=a 2=b 3=a");
    }
    proves(scene, &[Bug::NoRangeLock]);
}

/// A request was cut into parts; the error of one was covered by the success of the last.
#[test]
fn pitfall_11_error_of_one_part_overwritten_by_success_of_the_last() {
    use lockstep_core::store::{StoreError, StoreOp, StoreReply};
    use lockstep_store::{DiskError, DiskOpKind};

    use super::files::Replica;

    // Two pieces of one read, and two of one resync: whichever fails, first or last, both have.
    for fails in [0, 1] {
        for mutates in [false, true] {
            let mut replica = Replica::new();
            assert_eq!(replica.get(replica.write(0, 600, 1)), Ok(StoreReply::Done));
            let blocks = [BlockRange::new(0, 2), BlockRange::new(300, 2)].into_iter().collect();
            let op = if mutates {
                replica.resync(&[0, 1, 300, 301], 5)
            } else {
                StoreOp::Read { blocks }
            };
            let mut seen = 0;
            let result = replica.get_with(op, |kind| {
                let part = match kind {
                    DiskOpKind::Read { .. } => !mutates,
                    DiskOpKind::Write { file, .. } => {
                        mutates && *file == lockstep_store::File::Data
                    }
                    _ => false,
                };
                let this = part && seen == fails;
                seen += usize::from(part);
                if this { Some(DiskError::Io) } else { None }
            });
            assert_eq!(seen, 2, "the operation has two parts");
            assert_eq!(result, Err(StoreError::Io), "part {fails} failed, mutates: {mutates}");
        }
    }
}
