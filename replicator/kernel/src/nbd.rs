//! The driver `nbd`, over its netlink family: `linux/nbd-netlink.h`.
//!
//! A device takes one socket here, of a pair whose other end its server keeps. The driver holds
//! its end by itself: when the server dies, it reads the end of the stream.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{MsgFlags, recv, setsockopt};

use crate::netlink::{Attributes, Family, attributes, number};

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;

const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// Room in a socket: a large request fits at once, and is not passed on piece by piece.
const SOCKET_BYTES: usize = 2 << 20;

/// A device that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewDevice<'a> {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical and physical block size.
    pub block_bytes: u64,
    /// What the server can do: the NBD protocol's transmission flags.
    pub flags: u16,
    /// How long requests wait for a new socket when the old one is dead, before they fail.
    pub dead_after_s: u64,
    /// A name for it; shown in `/sys/block/nbdN/backend` from Linux 5.14 on, and asked for by
    /// [`Driver::reconnect`].
    pub backend: &'a str,
}

/// A way to give the driver commands.
#[derive(Debug)]
pub struct Driver {
    family: Family,
}

/// A pair of sockets: one for the server, one for the driver.
fn sockets() -> io::Result<(UnixStream, UnixStream)> {
    let (server, kernel) = UnixStream::pair()?;
    for socket in [&server, &kernel] {
        // Without CAP_NET_ADMIN it is only slower.
        let _ = setsockopt(socket, SndBufForce, &SOCKET_BYTES);
    }
    Ok((server, kernel))
}

fn socket_list(socket: BorrowedFd<'_>) -> Attributes {
    // A descriptor is never negative.
    let number = u32::try_from(socket.as_raw_fd()).unwrap_or(u32::MAX);
    Attributes::default().nested(SOCK_ITEM, &Attributes::default().u32(SOCK_FD, number))
}

/// Whether nobody holds the other end of this socket.
fn is_ended(socket: &UnixStream) -> bool {
    let (flags, mut byte) = (MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT, [0]);
    match recv(socket.as_raw_fd(), &mut byte, flags) {
        Ok(length) => length == 0,
        Err(error) => error != Errno::EAGAIN,
    }
}

impl Driver {
    /// Finds the driver.
    ///
    /// # Errors
    /// `ENOENT` if it is not loaded; on Linux 6.1, and no more on 6.12, also in a network namespace
    /// that is not the machine's first.
    pub fn open() -> io::Result<Self> {
        Ok(Self { family: Family::open(FAMILY, VERSION)? })
    }

    /// Makes a device of the first free number, and returns that and the server's socket. Requests
    /// come at once.
    ///
    /// It has no time-out: `NBD_ATTR_TIMEOUT` is zero. The driver then never ends a connection by
    /// itself that still lives, however long an answer takes.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`; else what the kernel says.
    pub fn connect(&self, device: &NewDevice<'_>) -> io::Result<(u32, UnixStream)> {
        let (server, kernel) = sockets()?;
        let wanted = Attributes::default()
            .u64(ATTR_SIZE_BYTES, device.size_bytes)
            .u64(ATTR_BLOCK_SIZE_BYTES, device.block_bytes)
            .u64(ATTR_TIMEOUT, 0)
            .u64(ATTR_SERVER_FLAGS, u64::from(device.flags))
            .u64(ATTR_DEAD_CONN_TIMEOUT, device.dead_after_s)
            .text(ATTR_BACKEND_IDENTIFIER, device.backend)
            .nested(ATTR_SOCKETS, &socket_list(kernel.as_fd()));
        let answers = self.family.call(CMD_CONNECT, &wanted)?;
        let found = answers.iter().flat_map(|answer| attributes(answer));
        let index = found.filter(|(kind, _)| *kind == ATTR_INDEX);
        let index = index.filter_map(|(_, content)| number(content)).next();
        let unsaid = || io::Error::other("the driver did not say which device it made");
        Ok((index.ok_or_else(unsaid)?, server))
    }

    /// Offers a device a new socket, and returns the server's if it was taken. It is if the one
    /// that the device has is dead, which the driver notices a little after its server's end.
    ///
    /// # Errors
    /// `EINVAL` if there is no such device, if its name is another, or if it was disconnected.
    pub fn reconnect(
        &self,
        index: u32,
        backend: &str,
        dead_after_s: u64,
    ) -> io::Result<Option<UnixStream>> {
        let (server, kernel) = sockets()?;
        let wanted = Attributes::default()
            .u32(ATTR_INDEX, index)
            .text(ATTR_BACKEND_IDENTIFIER, backend)
            .u64(ATTR_DEAD_CONN_TIMEOUT, dead_after_s)
            .nested(ATTR_SOCKETS, &socket_list(kernel.as_fd()));
        self.family.call(CMD_RECONFIGURE, &wanted)?;
        // The driver has its own hold on a socket that it took; one that it did not take ends here.
        drop(kernel);
        Ok((!is_ended(&server)).then_some(server))
    }

    /// Gives a device a new size. From Linux 6.12 on it waits until all requests that are under way
    /// have been answered, and keeps all of generic netlink waiting meanwhile.
    ///
    /// # Errors
    /// As [`Driver::reconnect`].
    pub fn resize(&self, index: u32, backend: &str, size_bytes: u64) -> io::Result<()> {
        let wanted = Attributes::default()
            .u32(ATTR_INDEX, index)
            .text(ATTR_BACKEND_IDENTIFIER, backend)
            .u64(ATTR_SIZE_BYTES, size_bytes);
        self.family.call(CMD_RECONFIGURE, &wanted).map(drop)
    }

    /// Ends a device: requests that wait fail, and so do later ones. Its number is free again when
    /// nobody has it open. One that is ended already is no error.
    ///
    /// # Errors
    /// `EINVAL` if there never was a device of this number.
    pub fn disconnect(&self, index: u32) -> io::Result<()> {
        let wanted = Attributes::default().u32(ATTR_INDEX, index);
        self.family.call(CMD_DISCONNECT, &wanted).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_socket_is_at_its_end_when_nobody_holds_the_other() {
        let (server, mut kernel) = sockets().unwrap();
        assert!(!is_ended(&server));
        kernel.write_all(b"a").unwrap();
        assert!(!is_ended(&server), "what was sent is waiting");
        let other = kernel.try_clone().unwrap();
        drop(kernel);
        assert!(!is_ended(&server), "somebody holds it still");
        drop(other);
        assert!(!is_ended(&server), "what was sent can be read");
        let (server, kernel) = sockets().unwrap();
        drop(kernel);
        assert!(is_ended(&server));
    }
}
