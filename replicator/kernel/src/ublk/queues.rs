//! Serving one device: all its queues in one ring, used by one thread.
//!
//! One ring and one thread for a whole device, and not one for each queue, for the sake of the
//! next server: `FETCH_REQ` of all requests is then one system call, which a kill cannot cut in
//! two. A server that dies while it takes a device over has fetched nothing or everything. Before
//! Linux 6.16 a device of which only some queues were fetched makes the driver dereference null
//! at the next `START_USER_RECOVERY`.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut as _, BytesMut};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::uapi::{
    DESCRIPTOR_BYTES, Descriptor, QUEUE_DEPTH_MAX, QUEUES_MAX, descriptors_at, io_command,
    io_command_bytes, payload_at,
};

/// What the thread that serves a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request came; its descriptor is there to be read.
    Request {
        /// The queue.
        queue: u16,
        /// The request's number within it.
        tag: u16,
    },
    /// No request will come under this number any more: the device was stopped, or an answer was
    /// not taken.
    Ended {
        /// The queue.
        queue: u16,
        /// The request's number within it.
        tag: u16,
        /// What the driver said: `ENODEV` when the device was stopped.
        errno: i32,
    },
    /// Somebody rang the [`Bell`].
    Bell,
}

/// Wakes the thread that serves a device. It may be rung from any thread.
#[derive(Clone, Debug)]
pub struct Bell(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    counter: EventFd,
    /// It was rung since the thread last began to look what is there.
    rung: AtomicBool,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let counter = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self(Arc::new(Inside { counter, rung: AtomicBool::new(false) })))
    }

    /// Wakes the thread; what was done before is seen by it after [`Bell::hush`].
    pub fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::AcqRel) {
            // It fails when the counter is full, after 2^64 rings that nobody looked at.
            let _ = self.0.counter.write(1);
        }
    }

    /// Said by the thread before it looks what is there, so that what comes later rings again.
    pub fn hush(&self) {
        self.0.rung.swap(false, Ordering::AcqRel);
    }
}

/// User data of the bell in the ring; requests have their queue and tag.
const BELL: u64 = u64::MAX;

/// The side of a device that serves it. Dropping it ends the service as a crash would: the kernel
/// keeps what is not answered for the next server.
///
/// All but [`Bell`] must happen on the thread that made it; but **while requests may come, drop it
/// after that thread has ended**, on another. A request on its way to a thread that lives is given
/// to it even when the ring is being closed: nobody would answer it, and the driver would wait for
/// that for ever. One on its way to a thread that has ended is kept for the next server.
pub struct Queues {
    ring: Option<IoUring<squeue::Entry, cqueue::Entry>>,
    bell: Bell,
    queues: u16,
    depth: u16,
    device: Option<File>,
    descriptors: Vec<Mapping>,
}

impl Queues {
    /// A ring that can serve so many queues of such a depth.
    ///
    /// # Errors
    /// Those of `io_uring_setup` and `eventfd`.
    pub fn new(queues: u16, depth: u16) -> io::Result<Self> {
        if queues == 0 || queues > QUEUES_MAX || depth == 0 || depth > QUEUE_DEPTH_MAX / 8 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // One entry per request and one for the bell: more can never be waiting to be submitted.
        let entries = (u32::from(queues) * u32::from(depth) + 1).next_power_of_two();
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .build(entries)?;
        let bell = Bell::new()?;
        let ring = Some(ring);
        let mut all = Self { ring, bell, queues, depth, device: None, descriptors: Vec::new() };
        all.watch_bell()?;
        Ok(all)
    }

    /// Something to wake this thread by.
    #[must_use]
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Opens `/dev/ublkcN` and fetches all requests of all queues, in one system call.
    ///
    /// # Errors
    /// Those of `open`: `EBUSY` while another server has it, `ENOENT` where nobody makes device
    /// nodes. Those of the driver: `EBUSY` or `EINVAL` when it is not to be fetched now.
    pub fn fetch(&mut self, path: &Path) -> io::Result<()> {
        assert!(self.device.is_none(), "a device is opened once");
        let device = OpenOptions::new().read(true).write(true).open(path)?;
        let file = types::Fd(device.as_raw_fd());
        self.device = Some(device);
        for queue in 0..self.queues {
            for tag in 0..self.depth {
                self.push(&io_entry(file, io_command::FETCH_REQ, queue, tag, 0));
            }
        }
        self.submit(0)?;
        // No request comes before the device is started: what has ended was refused.
        let ends = self.ring.iter_mut().flat_map(|ring| ring.completion());
        let refused = ends.filter(|end| end.user_data() != BELL).map(|end| end.result()).next();
        refused.map_or(Ok(()), |result| Err(io::Error::from_raw_os_error(-result)))
    }

    /// Maps the descriptors of the requests. After [`Queues::fetch`]: until then nobody else can
    /// serve the device, and a mapping before it would keep the next server of a device that was
    /// not fetched from making its own.
    ///
    /// # Errors
    /// Those of `mmap`.
    pub fn map(&mut self) -> io::Result<()> {
        let device = self.device.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let page = page_bytes();
        let bytes = usize::from(self.depth) * DESCRIPTOR_BYTES;
        let len = NonZeroUsize::new(bytes.next_multiple_of(page)).ok_or(Errno::EINVAL)?;
        for queue in 0..self.queues {
            let at = descriptors_at(queue, page as u64);
            self.descriptors.push(Mapping::new(device, len, at)?);
        }
        Ok(())
    }

    /// Submits what is waiting to be submitted, waits for events and appends them.
    ///
    /// # Errors
    /// Those of `io_uring_enter` that waiting again does not help against.
    pub fn wait(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        self.submit(1)?;
        let mut rearm = false;
        if let Some(ring) = &mut self.ring {
            for end in ring.completion() {
                if end.user_data() == BELL {
                    rearm |= !cqueue::more(end.flags());
                    events.push(Event::Bell);
                } else {
                    events.push(event(end.user_data(), end.result()));
                }
            }
        }
        if rearm { self.watch_bell() } else { Ok(()) }
    }

    /// The request that came under this number.
    ///
    /// # Panics
    /// When there is no such number.
    #[must_use]
    pub fn descriptor(&self, queue: u16, tag: u16) -> Descriptor {
        assert!(queue < self.queues && tag < self.depth, "a number of this device");
        let at = usize::from(tag) * DESCRIPTOR_BYTES;
        let mapping = &self.descriptors[usize::from(queue)];
        let [op_flags, sectors, low, high] = mapping.words(at);
        let first_sector = u64::from_ne_bytes(join(low, high));
        Descriptor::decode(op_flags, sectors, first_sector)
    }

    /// Answers a request: a negative errno, or the number of bytes that were read or written; and
    /// asks for the next one. Submitted by the next [`Queues::wait`] or [`Queues::flush`].
    ///
    /// # Panics
    /// When more answers are given than there are requests.
    pub fn answer(&mut self, queue: u16, tag: u16, result: i32) {
        let Some(device) = &self.device else { return };
        let file = types::Fd(device.as_raw_fd());
        self.push(&io_entry(file, io_command::COMMIT_AND_FETCH_REQ, queue, tag, result));
    }

    /// Submits what is waiting to be submitted.
    ///
    /// # Errors
    /// As [`Queues::wait`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.submit(0)
    }

    /// Appends the payload of a write to `buffer`, which is not moved if it has the room.
    ///
    /// # Errors
    /// Those of the driver: `EINVAL` when no such request is under way.
    pub fn read_payload(
        &self,
        queue: u16,
        tag: u16,
        len: u32,
        buffer: &mut BytesMut,
    ) -> io::Result<()> {
        let device = self.device.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        buffer.reserve(len as usize);
        let mut done = 0;
        while done < len {
            let at = payload_at(queue, tag, done).cast_signed();
            let room = buffer.spare_capacity_mut().as_mut_ptr().cast::<nix::libc::c_void>();
            let want = (len - done) as usize;
            // SAFETY: `reserve` made room for `len` bytes, `done` of which are filled and not
            // spare any more; the kernel writes at most `want` bytes at `room`.
            let got = unsafe { nix::libc::pread(device.as_raw_fd(), room, want, at) };
            let got = Errno::result(got)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let got = usize::try_from(got).map_err(|_| Errno::EIO)?;
            assert!(got <= want, "no more than was asked for");
            // SAFETY: the kernel has just filled these bytes.
            unsafe { buffer.advance_mut(got) };
            done += u32::try_from(got).map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }

    /// Writes part of the payload of a read, `offset` bytes from its beginning.
    ///
    /// # Errors
    /// As [`Queues::read_payload`].
    pub fn write_payload(
        &self,
        queue: u16,
        tag: u16,
        offset: u32,
        mut data: &[u8],
    ) -> io::Result<()> {
        let device = self.device.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut at = offset;
        while !data.is_empty() {
            let place = payload_at(queue, tag, at).cast_signed();
            let done = nix::sys::uio::pwrite(device, data, place)?;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = data.get(done..).unwrap_or_default();
            at += u32::try_from(done).map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }

    fn watch_bell(&mut self) -> io::Result<()> {
        let file = types::Fd(self.bell.0.counter.as_raw_fd());
        let readable = u32::from(nix::libc::POLLIN.cast_unsigned());
        self.push(&opcode::PollAdd::new(file, readable).multi(true).build().user_data(BELL));
        self.submit(0)
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let Some(ring) = &mut self.ring else { return };
        // SAFETY: no entry of this module points at memory of the process; the files they name
        // are open until the ring is closed.
        let pushed = unsafe { ring.submission().push(entry) };
        assert!(pushed.is_ok(), "each number has at most one entry, and the ring has room for all");
    }

    fn submit(&mut self, want: usize) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        loop {
            match ring.submit_and_wait(want) {
                Ok(_) if ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(nix::libc::EINTR | nix::libc::EAGAIN | nix::libc::EBUSY) => {
                        // Completions that are there already are reason enough to return.
                        if ring.submission().is_empty() && !ring.completion().is_empty() {
                            return Ok(());
                        }
                        std::thread::yield_now();
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        // The ring first: with it the driver's commands end. Then the file can be released, which
        // the mappings and the descriptor also hold.
        self.ring = None;
        self.descriptors.clear();
        self.device = None;
    }
}

fn io_entry(file: types::Fd, command: u32, queue: u16, tag: u16, result: i32) -> squeue::Entry {
    opcode::UringCmd16::new(file, command)
        .cmd(io_command_bytes(queue, tag, result))
        .build()
        .user_data(u64::from(queue) << 16 | u64::from(tag))
}

fn event(user_data: u64, result: i32) -> Event {
    let [low, high, next, top, ..] = user_data.to_le_bytes();
    let (tag, queue) = (u16::from_le_bytes([low, high]), u16::from_le_bytes([next, top]));
    if result == 0 {
        Event::Request { queue, tag }
    } else {
        Event::Ended { queue, tag, errno: -result }
    }
}

fn join(low: u32, high: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&low.to_ne_bytes());
    bytes[4..].copy_from_slice(&high.to_ne_bytes());
    bytes
}

fn page_bytes() -> usize {
    let asked = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    asked.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4096)
}

/// Memory that the driver writes and this process reads.
struct Mapping {
    start: std::ptr::NonNull<nix::libc::c_void>,
    len: NonZeroUsize,
}

// SAFETY: it is memory of the process, not of a thread, and only read.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(device: &File, len: NonZeroUsize, at: u64) -> io::Result<Self> {
        let at = i64::try_from(at).map_err(|_| Errno::EINVAL)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, flags, device, at) }?;
        Ok(Self { start, len })
    }

    /// Four words at `at`.
    fn words(&self, at: usize) -> [u32; 4] {
        assert!(at.is_multiple_of(4) && at + 16 <= self.len.get(), "within the mapping");
        // SAFETY: aligned and within the mapping, which lives as long as `self`. The driver wrote
        // the words before it sent the request and leaves them alone until the answer; volatile,
        // because for the compiler nobody writes them.
        let word = |n: usize| unsafe {
            self.start.as_ptr().cast::<u8>().add(at).cast::<u32>().add(n).read_volatile()
        };
        [word(0), word(1), word(2), word(3)]
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; nobody has a pointer into it.
        let unmapped = unsafe { munmap(self.start, self.len.get()) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bell_wakes_once_for_many_rings_and_again_after_a_look() {
        let mut queues = Queues::new(2, 8).unwrap();
        let bell = queues.bell();
        let ringer = std::thread::spawn(move || {
            bell.ring();
            bell.ring();
            bell
        });
        let mut events = Vec::new();
        queues.wait(&mut events).unwrap();
        let bell = ringer.join().unwrap();
        assert_eq!(events, [Event::Bell]);
        events.clear();
        bell.hush();
        bell.ring();
        queues.wait(&mut events).unwrap();
        assert_eq!(events, [Event::Bell]);
    }

    #[test]
    fn ends_are_told_by_their_result() {
        let data = 3 << 16 | 127;
        assert_eq!(event(data, 0), Event::Request { queue: 3, tag: 127 });
        assert_eq!(event(data, -19), Event::Ended { queue: 3, tag: 127, errno: 19 });
    }

    #[test]
    fn sizes_that_no_device_has_are_refused() {
        assert!(Queues::new(0, 8).is_err());
        assert!(Queues::new(1, 0).is_err());
        assert!(Queues::new(QUEUES_MAX + 1, 8).is_err());
    }
}
