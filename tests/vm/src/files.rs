//! Files that are durable one after the other, and what was told of them to somebody outside.
//!
//! The ledger has two lines for each change: `begin …` before it, `done` when it is durable by
//! `fsync`. After a power cut every change that is done must be there. The one that was only begun
//! may be there or not, but nothing in between: new content comes by `rename`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::pattern;
use crate::say;

/// Names of one round.
const NAMES: u32 = 40;
/// Largest file.
const MAX_BYTES: usize = 48 << 10;
/// One record of the round's log, as a database would append it.
const RECORD: usize = 4096;

/// What to write.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the files are made.
    dir: PathBuf,
    /// Where each change is told: a file, or a port that leads out of the machine.
    #[arg(long)]
    ledger: PathBuf,
    /// Files of other rounds are not touched.
    #[arg(long)]
    round: u32,
    /// The same seed gives the same changes.
    #[arg(long)]
    seed: u64,
    /// Ends after so many changes; else it goes on until it is stopped.
    #[arg(long)]
    changes: Option<u64>,
}

/// What to compare.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Where the files are.
    dir: PathBuf,
    /// The ledgers, one for each round.
    ledgers: Vec<PathBuf>,
}

/// A change of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put { name: String, len: usize, seed: u64 },
    Delete { name: String },
    Append { name: String, number: u64, seed: u64 },
}

impl Change {
    fn line(&self) -> String {
        match self {
            Self::Put { name, len, seed } => format!("begin put {name} {len} {seed}"),
            Self::Delete { name } => format!("begin delete {name}"),
            Self::Append { name, number, seed } => format!("begin append {name} {number} {seed}"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        match *words.as_slice() {
            ["begin", "put", name, len, seed] => {
                let (len, seed) = (len.parse().ok()?, seed.parse().ok()?);
                Some(Self::Put { name: name.to_owned(), len, seed })
            }
            ["begin", "delete", name] => Some(Self::Delete { name: name.to_owned() }),
            ["begin", "append", name, number, seed] => {
                let (number, seed) = (number.parse().ok()?, seed.parse().ok()?);
                Some(Self::Append { name: name.to_owned(), number, seed })
            }
            _ => None,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Put { name, .. } | Self::Delete { name } | Self::Append { name, .. } => name,
        }
    }
}

/// Makes changes until it is stopped.
pub(crate) fn run(args: &Args) -> Result<()> {
    let at = || args.ledger.display().to_string();
    let mut ledger = File::options().write(true).open(&args.ledger).with_context(at)?;
    let mut rng = StdRng::seed_from_u64(args.seed ^ u64::from(args.round) << 32);
    let mut records = 0;
    for number in 0.. {
        if args.changes.is_some_and(|most| number >= most) {
            break;
        }
        let name = format!("{}-{}", args.round, rng.random_range(0..NAMES));
        let seed = rng.random();
        let change = match rng.random_range(0..10) {
            0..5 => Change::Put { name, len: rng.random_range(0..MAX_BYTES), seed },
            5 => Change::Delete { name },
            _ => {
                records += 1;
                Change::Append { name: format!("{}-log", args.round), number: records, seed }
            }
        };
        ledger.write_all(format!("{}\n", change.line()).as_bytes()).with_context(at)?;
        apply(&args.dir, &change).with_context(|| change.line())?;
        ledger.write_all(b"done\n").with_context(at)?;
    }
    Ok(())
}

/// Makes one change; it is durable when this returns.
fn apply(dir: &Path, change: &Change) -> Result<()> {
    let path = dir.join(change.name());
    match change {
        Change::Put { len, seed, .. } => {
            let part = path.with_extension("part");
            let mut file = File::create(&part)?;
            file.write_all(&pattern::bytes(*seed, *len))?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(dir)?.sync_all()?;
        }
        Change::Delete { .. } => {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => File::open(dir)?.sync_all()?,
            };
        }
        Change::Append { number, seed, .. } => {
            let mut file = File::options().append(true).create(true).open(&path)?;
            file.write_all(&pattern::bytes(*seed, RECORD))?;
            file.sync_data()?;
            if *number == 1 {
                File::open(dir)?.sync_all()?;
            }
        }
    }
    Ok(())
}

/// What a name may hold: one of these, `None` for no file.
#[derive(Debug, Default)]
struct Allowed {
    contents: Vec<Option<(usize, u64)>>,
}

/// Everything that ledgers tell.
#[derive(Debug, Default)]
struct Told {
    files: BTreeMap<String, Allowed>,
    /// Seeds of the records that are durable, in order.
    logs: BTreeMap<String, Vec<u64>>,
}

impl Told {
    fn add(&mut self, ledger: &str) -> Result<()> {
        let mut begun: Option<Change> = None;
        // A line without its end was on its way when the power went.
        for line in ledger.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match (line.trim_end_matches('\r'), begun.take()) {
                ("done", Some(change)) => self.done(change),
                (line, None) => {
                    let change = Change::parse(line);
                    begun =
                        Some(change.with_context(|| format!("not a line of a ledger: {line}"))?);
                }
                (line, Some(change)) => bail!("{change:?} is not done, but then comes: {line}"),
            }
        }
        // Done or not, nobody knows.
        match begun {
            Some(Change::Put { name, len, seed }) => self.file(name).push(Some((len, seed))),
            Some(Change::Delete { name }) => self.file(name).push(None),
            Some(Change::Append { .. }) | None => {}
        }
        Ok(())
    }

    fn file(&mut self, name: String) -> &mut Vec<Option<(usize, u64)>> {
        let allowed = self.files.entry(name).or_default();
        if allowed.contents.is_empty() {
            allowed.contents.push(None);
        }
        &mut allowed.contents
    }

    fn done(&mut self, change: Change) {
        match change {
            Change::Put { name, len, seed } => *self.file(name) = vec![Some((len, seed))],
            Change::Delete { name } => *self.file(name) = vec![None],
            Change::Append { name, seed, .. } => self.logs.entry(name).or_default().push(seed),
        }
    }
}

/// Compares all files with what was told.
pub(crate) fn check(args: &CheckArgs) -> Result<()> {
    let mut told = Told::default();
    for ledger in &args.ledgers {
        let at = || ledger.display().to_string();
        told.add(&fs::read_to_string(ledger).with_context(at)?).with_context(at)?;
    }
    let mut wrong = Vec::new();
    for (name, allowed) in &told.files {
        let path = args.dir.join(name);
        let found = path.try_exists()?.then(|| fs::read(&path)).transpose();
        let found = found.with_context(|| format!("{} cannot be read", path.display()))?;
        let fits = |content: &Option<(usize, u64)>| {
            found == content.map(|(len, seed)| pattern::bytes(seed, len))
        };
        if !allowed.contents.iter().any(fits) {
            let found =
                found.map_or("nothing".to_owned(), |bytes| format!("{} bytes", bytes.len()));
            wrong.push(format!("{name}: {found} found, durable was one of {:?}", allowed.contents));
        }
    }
    let mut records = 0;
    for (name, seeds) in &told.logs {
        let found = fs::read(args.dir.join(name)).unwrap_or_default();
        let mut parts = found.chunks(RECORD);
        for (number, seed) in seeds.iter().enumerate() {
            if parts.next() != Some(pattern::bytes(*seed, RECORD).as_slice()) {
                wrong.push(format!("{name}: record {number} of {} is lost", seeds.len()));
            }
            records += 1;
        }
    }
    if !wrong.is_empty() {
        bail!("{} are wrong:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    say(&format!("{} names and {records} records are right", told.files.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path) -> CheckArgs {
        let (files, ledger) = (dir.join("files"), dir.join("ledger"));
        fs::create_dir(&files).unwrap();
        fs::write(&ledger, "").unwrap();
        let args = Args {
            dir: files.clone(),
            ledger: ledger.clone(),
            round: 3,
            seed: 7,
            changes: Some(60),
        };
        run(&args).unwrap();
        CheckArgs { dir: files, ledgers: vec![ledger] }
    }

    #[test]
    fn what_is_durable_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let args = written(dir.path());
        check(&args).unwrap();
        let log = args.dir.join("3-log");
        let len = fs::metadata(&log).unwrap().len();
        File::options().write(true).open(&log).unwrap().set_len(len - 1).unwrap();
        assert!(check(&args).unwrap_err().to_string().contains("is lost"));
    }

    #[test]
    fn a_file_that_is_missing_or_changed_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let args = written(dir.path());
        let ledger = fs::read_to_string(&args.ledgers[0]).unwrap();
        let mut told = Told::default();
        told.add(&ledger).unwrap();
        let full = told.files.iter().find(|(_, allowed)| allowed.contents[0].is_some());
        let path = args.dir.join(full.unwrap().0);
        let before = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(check(&args).is_err());
        fs::write(&path, [before.as_slice(), b"x"].concat()).unwrap();
        assert!(check(&args).is_err());
        fs::write(&path, before).unwrap();
        check(&args).unwrap();
    }

    #[test]
    fn a_change_that_was_only_begun_may_be_there_or_not() {
        let mut told = Told::default();
        told.add("begin put a 5 1\ndone\nbegin put a 6 2\ndon").unwrap();
        assert_eq!(told.files["a"].contents, [Some((5, 1)), Some((6, 2))]);
        told.add("begin delete a\ndone\n").unwrap();
        assert_eq!(told.files["a"].contents, [None]);
        assert!(told.add("gibberish\n").is_err());
    }
}
