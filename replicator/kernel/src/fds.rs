//! Passing open files from process to process, over a unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most files taken from one message; one that brings more is refused.
const FDS_MAX: usize = 8;

/// Sends the beginning of `bytes`, with `fd` attached to its first byte; returns how many bytes
/// went out. The receiver gets a file of its own, which stays open when this process ends.
///
/// # Errors
/// As `sendmsg(2)`; `EAGAIN` if the socket does not block and is full.
pub fn send(stream: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let raw: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let attached: &[ControlMessage<'_>] = if fd.is_some() { &rights } else { &[] };
    let slices = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(stream.as_fd().as_raw_fd(), &slices, attached, flags, None)?)
}

/// Receives bytes into `buffer`, and the last of the files attached to them, closed on exec.
/// Returns how many bytes came; none at the end of the stream.
///
/// # Errors
/// As `recvmsg(2)`; `EAGAIN` if the socket does not block and is empty.
pub fn receive(stream: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(stream.as_fd().as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut last = None;
    for part in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(fds) = part else { continue };
        for fd in fds {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its
            // number, so we are its only owner.
            last = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Ok((message.bytes, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_file_arrives_open() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        assert_eq!(send(&here, b"pipe", Some(writer.as_fd())).unwrap(), 4);
        writer.write_all(b"a").unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (len, fd) = receive(&there, &mut buffer).unwrap();
        assert_eq!(buffer.get(..len).unwrap(), b"pipe");
        let mut writer = std::fs::File::from(fd.unwrap());
        writer.write_all(b"b").unwrap();
        drop(writer);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "ab");
    }

    #[test]
    fn bytes_alone_bring_no_file() {
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, b"plain", None).unwrap();
        let (len, fd) = receive(&there, &mut [0; 16]).unwrap();
        assert!(len == 5 && fd.is_none());
        drop(here);
        assert_eq!(receive(&there, &mut [0; 16]).unwrap().0, 0);
    }
}
