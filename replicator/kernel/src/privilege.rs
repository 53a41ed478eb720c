//! What a thread may do.

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`, since Linux 2.6.26.
const VERSION_3: u32 = 0x2008_0522;
/// `CAP_SYS_ADMIN`.
const SYS_ADMIN: u32 = 21;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Takes `CAP_SYS_ADMIN` out of what this thread, and no other, may do at present.
///
/// # Errors
/// Those of `capget` and `capset`, which a seccomp filter may forbid.
pub fn renounce_admin() -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    let (head, body) = (&raw mut header, sets.as_mut_ptr());
    // SAFETY: version 3 reads a header and writes two sets; pid 0 is the calling thread.
    let got = unsafe { nix::libc::syscall(nix::libc::SYS_capget, head, body) };
    nix::errno::Errno::result(got)?;
    sets[0].effective &= !(1 << SYS_ADMIN);
    // SAFETY: version 3 reads a header and two sets; pid 0 is the calling thread.
    let set = unsafe { nix::libc::syscall(nix::libc::SYS_capset, head, sets.as_ptr()) };
    nix::errno::Errno::result(set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The effective set of this thread, as the kernel tells it.
    fn effective() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn only_the_thread_that_renounces_is_less() {
        let before = effective();
        let after = std::thread::spawn(|| {
            renounce_admin().unwrap();
            effective()
        });
        assert_eq!(after.join().unwrap(), before & !(1 << SYS_ADMIN));
        assert_eq!(effective(), before);
    }
}
