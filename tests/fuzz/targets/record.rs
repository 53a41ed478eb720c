//! The record, as it is read from the record store.

use lockstep_core::id::{Epoch, Gen, InstanceId, Lineage, NodeId, ReplicaId};
use lockstep_core::record::{Chosen, PrimaryRef, Record, RecordError};
use uuid::Uuid;

/// What is read is valid, is written as it was read, and can be changed in every way.
pub(crate) fn target(data: &[u8]) {
    let Ok(record) = Record::from_bytes(data) else { return };
    assert_eq!(record.validate(), Ok(()));
    assert_eq!(Record::from_bytes(&record.to_bytes()).as_ref(), Ok(&record), "not as written");
    change(&record, 3);
}

/// Every transition from here, and from where it leads.
fn change(record: &Record, depth: u32) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let txn = Uuid::from_u128(u128::from(depth));
    let node = NodeId::new("n").expect("a name");
    let primary = PrimaryRef { node: node.clone(), instance: InstanceId(txn) };
    let mut next = vec![record.claim(primary, txn), record.close(txn)];
    let members: Vec<ReplicaId> = record.in_sync().map(|r| r.rid).collect();
    next.push(record.open(&members, txn));
    let new = ReplicaId(Uuid::from_u128(77));
    next.extend(record.add_new(new, node, "p".to_owned(), txn));
    for entry in &record.replicas {
        next.extend(record.remove(entry.rid, txn));
        next.extend(record.release(entry.rid, txn));
        next.extend(record.forget(entry.rid, txn));
        if !record.is_in_sync(entry.rid) {
            next.push(record.add(entry.rid, txn));
            next.extend(members.iter().map(|leaves| record.swap(*leaves, entry.rid, txn)));
        }
    }
    next.extend(record.want(record.repl, 1, txn));
    next.push(record.acknowledge_loss(txn));
    for (epoch, r#gen) in [(Epoch(3), Gen(5)), (Epoch(u64::MAX), Gen(u32::MAX))] {
        next.push(record.mark_put_back(epoch, txn));
        for entry in &record.replicas {
            let (replica, lineage) = (entry.rid, record.lineage);
            let chosen = Chosen { replica, lineage, promised: epoch, r#gen };
            next.extend(record.force(chosen, Lineage(txn), txn));
        }
    }
    for after in next {
        assert!(after.r#gen >= record.r#gen && after.epoch >= record.epoch, "back in time");
        assert!(after.in_sync().next().is_some(), "nobody knows who has the data");
        if let Err(why) = after.validate() {
            assert!(is_used_up(&why), "{why} after a transition of {record:?}");
        }
        if after.validate().is_ok() && after.primary.is_some() {
            change(&after, depth);
        }
    }
}

/// Has a number reached its end? Whoever reads such a record refuses it.
fn is_used_up(why: &RecordError) -> bool {
    let ends = ["used up", "the epoch is out of range", "the attachment number is out of range"];
    ends.iter().any(|end| why.to_string().contains(end))
}
