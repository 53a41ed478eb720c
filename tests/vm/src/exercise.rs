//! Random operations on a file through all the ways a file can be reached: buffered, direct and
//! mapped. A model in memory says what each read must find.

mod subject;

use std::collections::VecDeque;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::aligned::BLOCK;
use crate::pattern;
use crate::say;
use subject::{Subject, Way};

/// Operations that are told when something is wrong.
const TOLD: usize = 60;

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file; it is made anew.
    file: PathBuf,
    /// The same seed gives the same operations.
    #[arg(long)]
    seed: u64,
    /// How many operations.
    #[arg(long, default_value_t = 2000)]
    operations: u64,
    /// The file never grows beyond this.
    #[arg(long, default_value_t = 1 << 20)]
    max_bytes: usize,
}

/// One operation. Lengths and offsets are bytes.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Read {
        way: Way,
        offset: usize,
        len: usize,
    },
    Write {
        way: Way,
        offset: usize,
        len: usize,
        seed: u64,
    },
    Truncate {
        len: usize,
    },
    Punch {
        offset: usize,
        len: usize,
    },
    Zero {
        offset: usize,
        len: usize,
        grow: bool,
    },
    Fsync {
        data_only: bool,
    },
    /// Reads everything from the device anew.
    Forget,
    Reopen,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut subject = Subject::create(&args.file)?;
    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut model = Vec::new();
    let mut last = VecDeque::with_capacity(TOLD);
    for number in 0..args.operations {
        let operation = choose(&mut rng, &model, args.max_bytes);
        if last.len() == TOLD {
            last.pop_front();
        }
        last.push_back((number, operation));
        if let Err(error) = apply(operation, &mut subject, &mut model) {
            return Err(error.context(story(args, &last)));
        }
    }
    let end = Operation::Forget;
    apply(end, &mut subject, &mut model).with_context(|| story(args, &last))?;
    say(&format!("{} operations, seed {}: all as the model says", args.operations, args.seed));
    Ok(())
}

fn story(args: &Args, last: &VecDeque<(u64, Operation)>) -> String {
    let mut story = format!("{}, seed {}; the last operations:\n", args.file.display(), args.seed);
    for (number, operation) in last {
        story.push_str(&format!("  {number} {operation:?}\n"));
    }
    story
}

fn choose(rng: &mut StdRng, model: &[u8], max: usize) -> Operation {
    let way = match rng.random_range(0..3) {
        0 => Way::Buffered,
        1 => Way::Direct,
        _ => Way::Mapped,
    };
    let offset = rng.random_range(0..max);
    let len = rng.random_range(1..=(max - offset).min(96 << 10));
    match rng.random_range(0..100) {
        0..30 => read(way, offset, len, model.len()),
        30..70 => write(way, offset, len, model.len(), rng.random()),
        70..76 => Operation::Truncate { len: offset },
        76..84 => Operation::Punch { offset, len },
        84..90 => Operation::Zero { offset, len, grow: rng.random() },
        90..96 => Operation::Fsync { data_only: rng.random() },
        96..98 => Operation::Forget,
        _ => Operation::Reopen,
    }
}

/// A read that is possible: direct ones are of whole blocks, mapped ones within the file.
fn read(way: Way, offset: usize, len: usize, size: usize) -> Operation {
    let (offset, len) = match way {
        Way::Direct => (offset / BLOCK * BLOCK, len.next_multiple_of(BLOCK)),
        Way::Mapped if offset + len > size => return read(Way::Buffered, offset, len, size),
        Way::Mapped | Way::Buffered => (offset, len),
    };
    Operation::Read { way, offset, len }
}

fn write(way: Way, offset: usize, len: usize, size: usize, seed: u64) -> Operation {
    let (offset, len) = match way {
        Way::Direct => (offset / BLOCK * BLOCK, len.next_multiple_of(BLOCK)),
        Way::Mapped if offset + len > size => return write(Way::Buffered, offset, len, size, seed),
        Way::Mapped | Way::Buffered => (offset, len),
    };
    Operation::Write { way, offset, len, seed }
}

fn apply(operation: Operation, subject: &mut Subject, model: &mut Vec<u8>) -> Result<()> {
    match operation {
        Operation::Read { way, offset, len } => {
            let seen = subject.read(way, offset, len)?;
            let end = (offset + len).min(model.len());
            compare(offset, &seen, model.get(offset..end).unwrap_or_default())?;
        }
        Operation::Write { way, offset, len, seed } => {
            let data = pattern::bytes(seed, len);
            subject.write(way, offset, &data)?;
            grow(model, offset + len);
            put(model, offset, &data)?;
        }
        Operation::Truncate { len } => {
            subject.truncate(len)?;
            model.resize(len, 0);
        }
        Operation::Punch { offset, len } => {
            subject.punch(offset, len)?;
            zero(model, offset, len);
        }
        Operation::Zero { offset, len, grow: growing } => {
            subject.zero(offset, len, growing)?;
            if growing {
                grow(model, offset + len);
            }
            zero(model, offset, len);
        }
        Operation::Fsync { data_only } => subject.fsync(data_only)?,
        Operation::Forget => {
            subject.forget()?;
            compare(0, &subject.read_all()?, model)?;
        }
        Operation::Reopen => subject.reopen()?,
    }
    let size = subject.len()?;
    if size != model.len() as u64 {
        bail!("the file has {size} bytes, the model has {}", model.len());
    }
    Ok(())
}

fn grow(model: &mut Vec<u8>, len: usize) {
    if model.len() < len {
        model.resize(len, 0);
    }
}

fn put(model: &mut [u8], offset: usize, data: &[u8]) -> Result<()> {
    let place = model.get_mut(offset..offset + data.len()).context("the model is too small")?;
    place.copy_from_slice(data);
    Ok(())
}

fn zero(model: &mut [u8], offset: usize, len: usize) {
    let end = (offset + len).min(model.len());
    if let Some(place) = model.get_mut(offset..end) {
        place.fill(0);
    }
}

fn compare(offset: usize, seen: &[u8], wanted: &[u8]) -> Result<()> {
    if seen == wanted {
        return Ok(());
    }
    if seen.len() != wanted.len() {
        bail!("at {offset}: {} bytes were read, {} are there", seen.len(), wanted.len());
    }
    let differs = |(seen, wanted): &(&u8, &u8)| seen != wanted;
    let count = seen.iter().zip(wanted).filter(differs).count();
    let first = seen.iter().zip(wanted).position(|pair| differs(&pair)).unwrap_or_default();
    let tell =
        |bytes: &[u8]| format!("{:02x?}", bytes.iter().skip(first).take(16).collect::<Vec<_>>());
    bail!(
        "at {}: {count} bytes are wrong; seen {}, wanted {}",
        offset + first,
        tell(seen),
        tell(wanted)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &tempfile::TempDir, seed: u64) -> Args {
        Args { file: dir.path().join("file"), seed, operations: 300, max_bytes: 256 << 10 }
    }

    #[test]
    fn a_file_of_this_machine_is_as_the_model_says() {
        // A file system that takes direct requests, which /tmp may not be.
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        for seed in 0..3 {
            run(&args(&dir, seed)).unwrap();
        }
    }

    #[test]
    fn a_wrong_byte_is_noticed() {
        let error = compare(4096, &[0, 1, 2, 4], &[0, 1, 2, 3]).unwrap_err().to_string();
        assert!(error.starts_with("at 4099: 1 bytes are wrong"), "{error}");
        assert!(compare(0, &[0], &[0, 0]).is_err());
        assert!(compare(0, &[7], &[7]).is_ok());
    }
}
