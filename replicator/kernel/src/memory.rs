//! Keeping a process able to run while the machine's memory is full of pages that only this
//! process can write back.

use std::io;

use nix::sys::mman::{MlockAllFlags, mlockall};

/// `PR_SET_IO_FLUSHER` of `linux/prctl.h`, since Linux 5.6.
const PR_SET_IO_FLUSHER: nix::libc::c_int = 57;

/// Tells the kernel that this thread, and those it starts from now on, write back pages of others:
/// their allocations never wait for write-back, and they are throttled by their own devices only.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`, `EINVAL` before Linux 5.6.
pub fn become_io_flusher() -> io::Result<()> {
    set_io_flusher(true)
}

/// Takes [`become_io_flusher`] back for this thread, for a process that inherited it but serves no
/// device itself.
///
/// # Errors
/// As [`become_io_flusher`].
pub fn end_io_flusher() -> io::Result<()> {
    set_io_flusher(false)
}

fn set_io_flusher(set: bool) -> io::Result<()> {
    let (set, unused) = (nix::libc::c_ulong::from(set), 0 as nix::libc::c_ulong);
    // SAFETY: this prctl takes plain numbers and touches no memory of the process.
    let outcome = unsafe { nix::libc::prctl(PR_SET_IO_FLUSHER, set, unused, unused, unused) };
    nix::errno::Errno::result(outcome)?;
    Ok(())
}

/// Asks never to be chosen when memory is so short that a process is killed: killing who writes
/// dirty pages back frees none of them. Children inherit it.
///
/// # Errors
/// `EACCES` without `CAP_SYS_RESOURCE`.
pub fn never_kill_for_memory() -> io::Result<()> {
    // OOM_SCORE_ADJ_MIN of `linux/oom.h`.
    std::fs::write("/proc/self/oom_score_adj", "-1000")
}

/// Has all threads allocate from at most so many heaps; says whether the allocator knows of that.
/// glibc gives up to eight of them to each processor, and what a thread frees in one serves no
/// other: large buffers that pass from thread to thread are then held many times over.
///
/// Heaps that are there already stay, so it is called before threads are started.
#[must_use]
pub fn limit_heaps(most: u8) -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: this takes plain numbers, and glibc takes its own lock for it.
        unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, most.into()) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    {
        let _ = most;
        false
    }
}

/// Keeps all memory of the process, present and future, from being swapped out. Pages count once
/// they are touched, not when they are mapped.
///
/// # Errors
/// `EPERM` or `ENOMEM` beyond `RLIMIT_MEMLOCK`, `EINVAL` before Linux 4.4.
pub fn lock_memory() -> io::Result<()> {
    let all = MlockAllFlags::MCL_CURRENT
        | MlockAllFlags::MCL_FUTURE
        | MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    mlockall(all)?;
    Ok(())
}
