//! A file seen as memory, by copies in and out of it. For tests of what a mapped file shows.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

/// A shared mapping of the first bytes of a file, for reading and writing.
///
/// The file must not be made shorter than the mapping while it lives: touching what is gone ends
/// the process by `SIGBUS`.
#[derive(Debug)]
pub struct FileMap {
    start: NonNull<nix::libc::c_void>,
    len: usize,
}

impl FileMap {
    /// Maps the first `len` bytes, as `mmap` with `MAP_SHARED`.
    ///
    /// # Errors
    /// `InvalidInput` if `len` is zero or beyond the end of the file; else what the kernel says.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
        let size = NonZeroUsize::new(len).ok_or_else(wrong)?;
        if file.metadata()?.len() < len as u64 {
            return Err(wrong());
        }
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses a free place, so nothing of the process is mapped over.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { start, len })
    }

    /// Copies what stands at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` beyond the mapping's end.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        let from = self.place(offset, to.len())?;
        // SAFETY: `place` has checked that the range is mapped. The two do not overlap, because
        // nobody has a reference into the mapping. What another process changes meanwhile changes
        // which bytes are seen, and any byte is a valid `u8`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    /// `InvalidInput` beyond the mapping's end.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> io::Result<()> {
        let to = self.place(offset, from.len())?;
        // SAFETY: as for `read`; the mapping is writable.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        Ok(())
    }

    /// Waits until everything written is with the device, as `msync` with `MS_SYNC`.
    ///
    /// # Errors
    /// What the kernel says: `EIO` if it could not be written.
    pub fn flush(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping itself.
        unsafe { msync(self.start, self.len, MsFlags::MS_SYNC) }?;
        Ok(())
    }

    fn place(&self, offset: usize, len: usize) -> io::Result<NonNull<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `offset` is within the one object that was mapped, or just behind it.
        Ok(unsafe { self.start.cast::<u8>().add(offset) })
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping itself, which nobody can reach any more.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_mapping_and_its_file_are_the_same() {
        let path = std::env::temp_dir().join(format!("lockstep-map-{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(10_000).unwrap();
        assert!(FileMap::new(&file, 0).is_err());
        assert!(FileMap::new(&file, 10_001).is_err());
        let mut map = FileMap::new(&file, 10_000).unwrap();
        file.write_all_at(b"abc", 5000).unwrap();
        map.write(5003, b"def").unwrap();
        map.flush().unwrap();
        let mut seen = [0; 6];
        map.read(5000, &mut seen).unwrap();
        assert_eq!(&seen, b"abcdef");
        file.read_exact_at(&mut seen, 5000).unwrap();
        assert_eq!(&seen, b"abcdef");
        assert!(map.read(9_995, &mut seen).is_err());
        assert!(map.write(usize::MAX, b"x").is_err());
    }
}
