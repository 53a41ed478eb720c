//! What is on a device.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::{FileSystemError, failed, programs};

/// How much at the start and at the end of a device must be zeroes if it is blank: partition
/// tables, superblocks and most other signatures are there.
const EDGE_BYTES: u64 = 1 << 20;
/// How many blocks in between are looked at.
const SAMPLES: u64 = 256;
const BLOCK: u64 = 4096;

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing is known to be there, and what was read is all zeroes.
    Blank,
    /// A file system of this type, as `blkid` calls it.
    FileSystem(String),
    /// Something else, in words.
    Other(String),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("nothing"),
            Self::FileSystem(fs) => write!(f, "a file system of type {fs}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Looks at what is on a device: asks `blkid` for signatures, and reads its first and its last MiB
/// and some blocks in between.
///
/// # Errors
/// If it cannot be read, or `blkid` cannot be asked.
pub fn content(device: &Path) -> Result<Content, FileSystemError> {
    // blkid tells a device that it cannot open from a blank one by nothing.
    let cannot = |e| failed("cannot read", device, e);
    let file = open(device).map_err(cannot)?;
    let ended = programs::run(&programs::BLKID, &["-p", "-o", "export"], &[], device)?;
    match ended.code {
        Some(0) => return Ok(understand(&ended.output)),
        Some(2) => {}
        Some(8) => {
            let several = "more than one signature (wipefs shows them)";
            return Ok(Content::Other(several.to_owned()));
        }
        _ => return Err(ended.failed()),
    }
    Ok(match first_data(&file).map_err(cannot)? {
        None => Content::Blank,
        Some(at) => Content::Other(format!("data of no known kind, such as at byte {at},")),
    })
}

/// Past the page cache, which may hold what an earlier device of this name had, where that can be.
fn open(device: &Path) -> io::Result<File> {
    let direct = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(device);
    match direct {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => File::open(device),
        outcome => outcome,
    }
}

/// Size of a device or file.
pub(super) fn size_bytes(device: &Path) -> Result<u64, FileSystemError> {
    let size = File::open(device).and_then(|mut file| file.seek(SeekFrom::End(0)));
    size.map_err(|e| failed("cannot read", device, e))
}

/// Where there is a block that is not all zeroes, of those that are looked at.
fn first_data(file: &File) -> io::Result<Option<u64>> {
    let size = (&*file).seek(SeekFrom::End(0))?;
    let edge = EDGE_BYTES.min(size);
    let step = (size / SAMPLES / BLOCK).max(1) * BLOCK;
    let samples = (1..SAMPLES).map(|n| (n * step, BLOCK)).filter(|(at, len)| at + len <= size);
    // Its start on a multiple of the block size, as direct reads need it.
    let last = (size - edge) / BLOCK * BLOCK;
    let spans = [(0, edge), (last, size - last)].into_iter().chain(samples);
    let room = usize::try_from(EDGE_BYTES + BLOCK).map_err(io::Error::other)?;
    let mut buffer = vec![0_u8; room + 4096];
    let aligned = buffer.as_ptr().align_offset(4096);
    let aligned = if aligned > 4096 { 0 } else { aligned };
    for (at, len) in spans {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let data = &mut buffer[aligned..aligned + len];
        file.read_exact_at(data, at)?;
        if let Some(found) = data.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + u64::try_from(found).unwrap_or_default()));
        }
    }
    Ok(None)
}

/// What `blkid -o export` tells, as `KEY=value` in lines.
fn understand(output: &str) -> Content {
    let value = |key: &str| {
        let mut lines = output.lines().filter_map(|line| line.split_once('='));
        lines.find(|(k, _)| *k == key).map(|(_, v)| v.to_owned())
    };
    match (value("TYPE"), value("USAGE"), value("PTTYPE")) {
        (Some(fs), Some(usage), _) if usage == "filesystem" => Content::FileSystem(fs),
        (Some(other), _, _) => Content::Other(format!("data of type {other}")),
        (None, _, Some(table)) => Content::Other(format!("a partition table ({table})")),
        (None, ..) => Content::Other("a signature that blkid does not name".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_blkid_tells_is_understood() {
        let fs = "DEVNAME=/dev/loop0\nUUID=1-2\nBLOCK_SIZE=4096\nTYPE=xfs\nUSAGE=filesystem\n";
        assert_eq!(understand(fs), Content::FileSystem("xfs".to_owned()));
        for (told, shown) in [
            ("TYPE=crypto_LUKS\nUSAGE=crypto\n", "crypto_LUKS"),
            ("TYPE=LVM2_member\nUSAGE=raid\n", "LVM2_member"),
            ("PTUUID=1\nPTTYPE=gpt\n", "partition table (gpt)"),
            ("DEVNAME=/dev/x\n", "does not name"),
            ("", "does not name"),
        ] {
            let understood = understand(told);
            assert!(matches!(understood, Content::Other(_)), "{told:?}");
            assert!(understood.to_string().contains(shown), "{understood}");
        }
    }

    #[test]
    fn a_byte_at_either_end_and_a_stretch_in_between_are_found() {
        let mib = 1 << 20;
        for size in [4096, 12 * 1024, mib + 4096, 64 * mib, 3 * mib + 777] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(size).unwrap();
            assert_eq!(first_data(file.as_file()).unwrap(), None, "{size}");
            for at in [0, size / 2, size - 1, size - 4096, (mib - 1).min(size - 1)] {
                file.seek(SeekFrom::Start(at)).unwrap();
                // A stretch wide enough to hold one of the blocks looked at.
                let stretch = if at == size / 2 { size / 64 + 1 } else { 1 };
                let stretch = usize::try_from(stretch.min(size - at)).unwrap();
                file.write_all(&vec![7; stretch]).unwrap();
                assert!(first_data(file.as_file()).unwrap().is_some(), "{size} {at}");
                file.as_file().set_len(0).unwrap();
                file.as_file().set_len(size).unwrap();
            }
        }
    }

    #[test]
    fn an_empty_file_is_blank_and_a_missing_one_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(first_data(file.as_file()).unwrap(), None);
        let error = content(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
