//! What is written to volumes: bytes that follow from a number; and what may be found there.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// How much is written at once.
const BYTES: usize = 192 << 10;
/// Of two writes, of which one was under way, each page is of one or the other.
const PAGE: usize = 4096;

/// What each page of what is written may be, by the numbers of writes; `None` is as if nothing was
/// ever written. Never empty.
pub(crate) type Legal = Vec<Option<u64>>;

fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    SmallRng::seed_from_u64(number).fill_bytes(&mut bytes);
    bytes
}

/// The file that is written to where a volume is published.
fn file(target: &Path, block: bool) -> PathBuf {
    if block { target.to_owned() } else { target.join("data") }
}

/// Writes, and makes it durable.
pub(crate) fn write(target: &Path, block: bool, number: u64) -> std::io::Result<()> {
    let mut file = File::options().write(true).create(!block).open(file(target, block))?;
    file.write_all(&content(number))?;
    file.sync_all()
}

/// What is wrong with what is there, if anything.
pub(crate) fn look(target: &Path, block: bool, legal: &Legal) -> std::io::Result<Option<String>> {
    let blank = legal.contains(&None);
    let mut found = Vec::new();
    match File::open(file(target, block)) {
        Ok(file) => file.take(u64::try_from(BYTES).unwrap_or(u64::MAX)).read_to_end(&mut found)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && blank && !block => 0,
        Err(error) => return Err(error),
    };
    if found.len() != BYTES && (block || !blank) {
        return Ok(Some(format!("{} bytes, not {BYTES}", found.len())));
    }
    let contents: Vec<Vec<u8>> = legal.iter().flatten().map(|number| content(*number)).collect();
    for (page, bytes) in found.chunks(PAGE).enumerate() {
        let at = page * PAGE;
        let is_of = |content: &Vec<u8>| content.get(at..at + bytes.len()) == Some(bytes);
        let is_blank = blank && bytes.iter().all(|byte| *byte == 0);
        if !is_blank && !contents.iter().any(is_of) {
            return Ok(Some(format!("page {page} is of none of {legal:?}")));
        }
    }
    Ok(None)
}

/// Whether the file system at a place cannot be written there.
pub(crate) fn is_read_only(target: &Path) -> std::io::Result<bool> {
    let found = nix::sys::statvfs::statvfs(target)?;
    Ok(found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// The size of what is seen at a place: of the device, or of the file system.
pub(crate) fn size(target: &Path, block: bool) -> std::io::Result<u64> {
    if block {
        return File::open(target)?.seek(SeekFrom::End(0));
    }
    let found = nix::sys::statvfs::statvfs(target)?;
    Ok(found.blocks().saturating_mul(found.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn each_page_has_to_be_of_a_write_that_is_legal() {
        let dir = tempfile::tempdir().unwrap();
        let told = |legal: &[Option<u64>]| look(dir.path(), false, &legal.to_vec());
        assert!(told(&[None]).unwrap().is_none(), "nothing was written, and nothing is there");
        assert!(told(&[Some(1)]).is_err());
        write(dir.path(), false, 1).unwrap();
        assert!(told(&[Some(1)]).unwrap().is_none());
        assert!(told(&[Some(2)]).unwrap().is_some());
        assert!(told(&[None]).unwrap().is_some());
        let file = File::options().write(true).open(file(dir.path(), false)).unwrap();
        file.write_all_at(&content(2)[PAGE..2 * PAGE], 4096).unwrap();
        assert!(told(&[Some(1)]).unwrap().is_some());
        assert!(told(&[Some(1), Some(2)]).unwrap().is_none());
        file.set_len(8192).unwrap();
        assert!(told(&[Some(1), Some(2)]).unwrap().is_some(), "it is too short");
        assert!(told(&[None, Some(1), Some(2)]).unwrap().is_none());
        file.write_all_at(&[7], 8191).unwrap();
        assert!(told(&[None, Some(1), Some(2)]).unwrap().is_some(), "a torn page");
    }
}
