//! Nodes are killed at random while a guest writes; nothing acknowledged may be lost.

use super::cluster::*;
use crate::engine::*;
use bytes::Bytes;
use lockstep_attach::Backend;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

/// Rounds in a normal run; `LOCKSTEP_CHAOS_ROUNDS` asks for more.
const ROUNDS: u64 = 3;
/// Few blocks, so that writes overlap often.
const BLOCKS: u64 = 600;
const WRITERS: u64 = 6;

/// A small random sequence; the seed is printed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What each block may hold: the number of the last acknowledged write, and those since.
#[derive(Debug, Default)]
struct Ledger {
    acked: BTreeMap<u64, u64>,
    maybe: BTreeMap<u64, Vec<u64>>,
}

impl Ledger {
    fn issue(&mut self, n: u64, block: u64) {
        self.maybe.entry(block).or_default().push(n);
    }

    /// One writer at a time has a block, so what it issued before is overwritten now.
    fn acknowledge(&mut self, n: u64, block: u64) {
        self.acked.insert(block, n);
        self.maybe.remove(&block);
    }

    /// Checks a block; what was read is the truth from now on.
    fn check(&mut self, block: u64, found: &[u8]) {
        let acked = self.acked.get(&block).copied().unwrap_or(0);
        let maybe = self.maybe.remove(&block).unwrap_or_default();
        let content = |n: u64| if n == 0 { vec![0; BLOCK] } else { pattern(n, block) };
        let legal = std::iter::once(acked).chain(maybe.iter().copied());
        let held = legal.clone().find(|n| content(*n) == found);
        let all: Vec<u64> = legal.collect();
        let held = held.unwrap_or_else(|| panic!("block {block}: none of the writes {all:?}"));
        self.acked.insert(block, held);
    }
}

/// Writes to its own share of the blocks until the volume fails.
async fn guest(
    handle: VolumeHandle,
    ledger: Arc<Mutex<Ledger>>,
    numbers: Arc<AtomicU64>,
    share: u64,
    mut dice: Dice,
) {
    loop {
        let count = 1 + dice.roll(8);
        let block = share * (BLOCKS / WRITERS) + dice.roll(BLOCKS / WRITERS - count);
        let n = numbers.fetch_add(1, Ordering::Relaxed);
        let blocks = block..block + count;
        blocks.clone().for_each(|b| ledger.lock().unwrap().issue(n, b));
        let data: Vec<u8> = blocks.clone().flat_map(|b| pattern(n, b)).collect();
        let fua = dice.roll(4) == 0;
        if handle.write(block * BLOCK as u64, Bytes::from(data), fua).await.is_err() {
            return;
        }
        blocks.clone().for_each(|b| ledger.lock().unwrap().acknowledge(n, b));
        if dice.roll(20) == 0 && handle.flush().await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nothing_acknowledged_is_lost_however_nodes_die() {
    let rounds = std::env::var("LOCKSTEP_CHAOS_ROUNDS").ok().and_then(|r| r.parse().ok());
    let seed = u64::from_le_bytes(Uuid::new_v4().as_bytes()[..8].try_into().unwrap()) | 1;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut cluster = Cluster::start(3).await;
    let volume = cluster.volume(4, &[1, 2, 3], 2).await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let numbers = Arc::new(AtomicU64::new(1));
    let mut primary = 1;
    for round in 0..rounds.unwrap_or(ROUNDS) {
        let handle = cluster.attach(primary, volume).await;
        for block in 0..BLOCKS {
            let found = read(&handle, block, 1).await;
            ledger.lock().unwrap().check(block, &found);
        }
        let guests: Vec<_> = (0..WRITERS)
            .map(|share| {
                let dice = Dice(dice.roll(u64::MAX) | 1);
                let (ledger, numbers) = (Arc::clone(&ledger), Arc::clone(&numbers));
                tokio::spawn(guest(handle.clone(), ledger, numbers, share, dice))
            })
            .collect();
        let goal = numbers.load(Ordering::Relaxed) + 100 + dice.roll(2000);
        wait_for("writes", async || (numbers.load(Ordering::Relaxed) >= goal).then_some(())).await;
        let victim = u8::try_from(1 + dice.roll(3)).unwrap();
        println!("round {round}: primary {primary}, kill {victim}");
        cluster.kill(victim).await;
        if victim == primary {
            primary = 1 + primary % 3;
            cluster.attach(primary, volume).await;
        } else {
            // Writes go on without it.
            let goal = numbers.load(Ordering::Relaxed) + 200;
            let on = async || (numbers.load(Ordering::Relaxed) >= goal).then_some(());
            wait_for("writes without the copy", on).await;
            if dice.roll(2) == 0 {
                primary = (1..=3).find(|i| *i != victim && *i != primary).unwrap();
            }
        }
        cluster.up(victim).await;
        cluster.attach(primary, volume).await;
        cluster.in_sync(volume, 3).await;
        if instance_is(&cluster, primary, &handle) {
            cluster.on(primary).detach(volume, false, LONG).await.unwrap();
        }
        for guest in guests {
            timeout(LONG, guest).await.expect("a guest hangs").unwrap();
        }
    }
    let handle = cluster.attach(primary, volume).await;
    for block in 0..BLOCKS {
        let found = read(&handle, block, 1).await;
        ledger.lock().unwrap().check(block, &found);
    }
    cluster.on(primary).detach(volume, false, LONG).await.unwrap();
    let copies: Vec<Vec<u8>> = (1..=3).map(|i| cluster.data(i, volume)).collect();
    assert!(copies[0] == copies[1] && copies[1] == copies[2], "copies differ");
}

/// Is this still the attachment of the node?
fn instance_is(cluster: &Cluster, i: u8, handle: &VolumeHandle) -> bool {
    let attached = cluster.on(i).attached(handle.volume());
    attached.is_some_and(|other| other.instance() == handle.instance())
}
