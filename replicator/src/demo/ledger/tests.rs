use super::*;

const AREA: Span = Span { first: 100, count: 8 };

fn span(first: u64, count: u64) -> Span {
    Span { first, count }
}

fn ledger() -> Ledger {
    Ledger::new(Content::new(1), AREA)
}

/// A volume that does what it is told.
struct Disk(Vec<u8>);

impl Disk {
    fn new() -> Self {
        Self(vec![0; 8 * BLOCK])
    }

    fn bytes(&mut self, span: Span) -> &mut [u8] {
        let from = usize::try_from(span.first - AREA.first).unwrap() * BLOCK;
        &mut self.0[from..from + usize::try_from(span.count).unwrap() * BLOCK]
    }
}

fn write(ledger: &mut Ledger, disk: &mut Disk, span: Span) -> Version {
    let (version, data) = ledger.write(span);
    disk.bytes(span).copy_from_slice(&data);
    ledger.acked(version, false);
    version
}

fn look(ledger: &mut Ledger, disk: &mut Disk) -> Findings {
    let reading = ledger.read(AREA);
    ledger.judge(&reading, disk.bytes(AREA))
}

#[test]
fn what_was_written_last_is_expected() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    assert!(look(&mut ledger, &mut disk).is_clean());
    write(&mut ledger, &mut disk, span(100, 4));
    write(&mut ledger, &mut disk, span(102, 4));
    let findings = look(&mut ledger, &mut disk);
    assert!(findings.is_clean(), "{findings:?}");
    assert_eq!(findings.blocks, 8);
}

#[test]
fn a_lost_write_is_found_and_counted_once() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    write(&mut ledger, &mut disk, span(100, 2));
    let before = disk.0.clone();
    let lost = write(&mut ledger, &mut disk, span(100, 2));
    disk.0 = before;
    let findings = look(&mut ledger, &mut disk);
    assert_eq!(findings.lost, BTreeSet::from([lost]));
    assert_eq!((findings.lost_flushed_blocks, findings.corrupt.len()), (0, 0));
    assert_eq!(findings.words.len(), 2);
}

#[test]
fn a_write_lost_in_spite_of_a_flush_is_told_apart() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    let empty = disk.0.clone();
    write(&mut ledger, &mut disk, span(100, 1));
    let flush = ledger.flush();
    // Settled after the flush began: the flush need not cover it.
    write(&mut ledger, &mut disk, span(101, 1));
    ledger.flushed(flush);
    disk.0.copy_from_slice(&empty);
    assert_eq!(look(&mut ledger, &mut disk).lost_flushed_blocks, 1);
    // Also if an un-flushed write came on top.
    write(&mut ledger, &mut disk, span(100, 1));
    disk.0 = empty;
    assert_eq!(look(&mut ledger, &mut disk).lost_flushed_blocks, 1);
}

#[test]
fn foreign_content_is_corrupt() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    write(&mut ledger, &mut disk, span(100, 2));
    let (head, tail) = disk.0.split_at_mut(BLOCK);
    head.copy_from_slice(&tail[..BLOCK]);
    assert_eq!(look(&mut ledger, &mut disk).corrupt, BTreeSet::from([100]));
}

#[test]
fn of_two_writes_at_the_same_time_either_may_win() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    let (first, old) = ledger.write(span(100, 1));
    let (second, new) = ledger.write(span(100, 1));
    ledger.acked(first, false);
    ledger.acked(second, false);
    for data in [&old, &new] {
        disk.bytes(span(100, 1)).copy_from_slice(data);
        assert!(look(&mut ledger, &mut disk).is_clean());
    }
    disk.bytes(span(100, 1)).fill(0);
    assert_eq!(look(&mut ledger, &mut disk).lost, BTreeSet::from([second]));
    // A later write leaves neither.
    write(&mut ledger, &mut disk, span(100, 1));
    disk.bytes(span(100, 1)).copy_from_slice(&old);
    assert!(!look(&mut ledger, &mut disk).is_clean());
}

#[test]
fn a_read_may_see_what_is_written_meanwhile() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    let (version, data) = ledger.write(span(100, 1));
    let reading = ledger.read(span(100, 1));
    assert!(ledger.judge(&reading, disk.bytes(span(100, 1))).is_clean());
    disk.bytes(span(100, 1)).copy_from_slice(&data);
    assert!(ledger.judge(&reading, disk.bytes(span(100, 1))).is_clean());
    ledger.acked(version, false);
    write(&mut ledger, &mut disk, span(100, 1));
    assert!(ledger.judge(&reading, disk.bytes(span(100, 1))).is_clean());
    // But one that begins now may not see the old.
    let reading = ledger.read(span(100, 1));
    assert!(!ledger.judge(&reading, &data).is_clean());
}

#[test]
fn an_unanswered_write_is_there_or_not_and_stays_so() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    write(&mut ledger, &mut disk, span(100, 4));
    let (version, data) = ledger.write(span(102, 4));
    ledger.mark_absence();
    ledger.unanswered(version);
    assert_eq!(ledger.uncertain(), [span(102, 4)]);
    assert_eq!(ledger.missed_blocks(), 4);
    // Block by block: the first two are there.
    disk.bytes(span(102, 2)).copy_from_slice(&data[..2 * BLOCK]);
    assert!(look(&mut ledger, &mut disk).is_clean());
    let reading = ledger.read(span(102, 4));
    let decided = ledger.decide(&reading, disk.bytes(span(102, 4)));
    assert_eq!(decided, (2, 2));
    assert!(ledger.uncertain().is_empty());
    assert!(ledger.is_frozen(span(101, 2)) && !ledger.is_frozen(span(100, 2)));
    assert!(look(&mut ledger, &mut disk).is_clean());
    // It may not appear later.
    disk.bytes(span(105, 1)).copy_from_slice(&data[3 * BLOCK..]);
    assert!(!look(&mut ledger, &mut disk).is_clean());
}

#[test]
fn what_an_absent_copy_misses_is_counted() {
    let (mut ledger, mut disk) = (ledger(), Disk::new());
    write(&mut ledger, &mut disk, span(100, 2));
    ledger.mark_absence();
    write(&mut ledger, &mut disk, span(101, 2));
    write(&mut ledger, &mut disk, span(101, 2));
    ledger.end_absence();
    write(&mut ledger, &mut disk, span(105, 2));
    assert_eq!(ledger.missed_blocks(), 2);
}
