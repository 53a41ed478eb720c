//! Generic netlink, as much of it as a driver's few commands need: a family is found by its name,
//! a command carries attributes, and the kernel answers with messages and an acknowledgement.
//!
//! It is here and not a crate of others because of its size: three kinds of attributes out, two
//! messages in. All numbers are in the machine's own byte order.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Message types and flags of `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Attribute types have two bits for other purposes; this one says that attributes are inside.
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The family that knows the others, of `linux/genetlink.h`.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Length of a message's header, and of generic netlink's own behind it.
const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// Length of an attribute's header.
const ATTRIBUTE_HEADER: usize = 4;
/// Everything starts at a multiple of this.
const ALIGN: usize = 4;

/// More than any answer to what is asked here.
const ANSWER_BYTES_MAX: usize = 32 * 1024;

/// Attributes of a command, one behind the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// Appends an attribute. Its content is ours, and short.
    pub(crate) fn bytes(mut self, kind: u16, content: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + content.len());
        assert!(length.is_ok(), "an attribute of {} bytes", content.len());
        self.0.extend_from_slice(&length.unwrap_or_default().to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Text, with the NUL behind it that the kernel wants.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn nested(self, kind: u16, inside: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inside.0)
    }
}

/// Kind and content of each attribute in `bytes`, up to the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((length, kind)) = pair(bytes) {
        let length = usize::from(length);
        let Some(content) = bytes.get(ATTRIBUTE_HEADER..length) else { break };
        found.push((kind & NLA_TYPE_MASK, content));
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    found
}

fn pair(bytes: &[u8]) -> Option<(u16, u16)> {
    let (first, rest) = bytes.split_first_chunk::<2>()?;
    let second = rest.first_chunk::<2>()?;
    Some((u16::from_ne_bytes(*first), u16::from_ne_bytes(*second)))
}

/// The number in an attribute's content, if it is that long.
pub(crate) fn number(content: &[u8]) -> Option<u32> {
    content.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// What a received message is.
#[derive(Debug, PartialEq, Eq)]
enum Message<'a> {
    /// An answer: its attributes.
    Content(&'a [u8]),
    /// The command is done, with this error number; none is zero.
    Done(i32),
}

/// The messages in `bytes`, up to the first that does not fit.
fn messages(mut bytes: &[u8]) -> Vec<Message<'_>> {
    let mut found = Vec::new();
    while let Some(length) = number(bytes) {
        let length = length as usize;
        let Some(content) = bytes.get(MESSAGE_HEADER..length) else { break };
        let kind = bytes.get(4..).and_then(pair).map(|(kind, _)| kind);
        if kind == Some(NLMSG_ERROR) {
            let Some(code) = content.first_chunk::<4>() else { break };
            found.push(Message::Done(i32::from_ne_bytes(*code)));
        } else if let Some(content) = content.get(GENERIC_HEADER..) {
            found.push(Message::Content(content));
        }
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    found
}

fn request(family: u16, version: u8, command: u8, attributes: &Attributes) -> Vec<u8> {
    let length = MESSAGE_HEADER + GENERIC_HEADER + attributes.0.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and sender: one command is under way at a time, and the kernel fills in the
    // rest.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[command, version, 0, 0]);
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// A family of commands, and a socket to give them through.
#[derive(Debug)]
pub(crate) struct Family {
    socket: OwnedFd,
    id: u16,
    version: u8,
}

impl Family {
    /// Finds a family.
    ///
    /// # Errors
    /// `ENOENT` if there is none of this name, in this network namespace.
    pub(crate) fn open(name: &str, version: u8) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        let control = Self { socket, id: GENL_ID_CTRL, version: 2 };
        let wanted = Attributes::default().text(CTRL_ATTR_FAMILY_NAME, name);
        let answers = control.call(CTRL_CMD_GETFAMILY, &wanted)?;
        let found = answers.iter().flat_map(|answer| attributes(answer));
        let id = found.filter(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
        let id = id.filter_map(|(_, content)| content.first_chunk::<2>()).next();
        let id = id.map(|bytes| u16::from_ne_bytes(*bytes));
        let id = id.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { id, version, ..control })
    }

    /// Gives a command and waits until it is done. Returns the attributes of each answer.
    ///
    /// # Errors
    /// What the kernel says of it.
    pub(crate) fn call(&self, command: u8, attributes: &Attributes) -> io::Result<Vec<Vec<u8>>> {
        let bytes = request(self.id, self.version, command, attributes);
        let socket = self.socket.as_raw_fd();
        send(socket, &bytes, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let length = recv(socket, &mut buffer, MsgFlags::empty())?;
            for message in messages(buffer.get(..length).unwrap_or_default()) {
                match message {
                    Message::Content(content) => answers.push(content.to_vec()),
                    Message::Done(0) => return Ok(answers),
                    Message::Done(code) => {
                        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inside = Attributes::default().u32(1, 7).text(2, "ab");
        let all = Attributes::default().u64(3, 9).nested(4, &inside).bytes(5, &[]);
        assert_eq!(all.0.len() % ALIGN, 0);
        let read = attributes(&all.0);
        assert_eq!(read.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(read[0].1, 9u64.to_ne_bytes());
        assert_eq!(read[2].1, []);
        let inside = attributes(read[1].1);
        assert_eq!(number(inside[0].1), Some(7));
        assert_eq!(inside[1], (2, &b"ab\0"[..]));
    }

    #[test]
    fn whatever_comes_is_read_within_its_bounds() {
        let whole = request(9, 1, 2, &Attributes::default().u64(3, 9).text(4, "abc"));
        for cut in 0..whole.len() {
            let cut = &whole[..cut];
            assert!(messages(cut).is_empty(), "a message was read from a part of it");
            attributes(cut);
        }
        // Lengths that are too small or too large end the reading, and never the program.
        for length in [0u8, 1, 3, 4, 15, 16, 19, 255] {
            let mut bytes = whole.clone();
            bytes[0] = length;
            messages(&bytes);
            attributes(&bytes);
            attributes(&bytes[MESSAGE_HEADER..]);
        }
    }

    #[test]
    fn an_answer_is_told_from_an_acknowledgement() {
        let mut bytes = request(9, 1, 2, &Attributes::default().u32(1, 5));
        bytes.extend_from_slice(&20u32.to_ne_bytes());
        bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(&(-22i32).to_ne_bytes());
        let found = messages(&bytes);
        assert_eq!(found.len(), 2);
        let Message::Content(content) = found[0] else { panic!("{found:?}") };
        assert_eq!(attributes(content), [(1, &5u32.to_ne_bytes()[..])]);
        assert_eq!(found[1], Message::Done(-22));
    }

    #[test]
    fn the_kernel_is_asked_for_a_family() {
        // This one finds itself; nobody has the other.
        let control = Family::open("nlctrl", 2).unwrap();
        assert_eq!(control.id, GENL_ID_CTRL);
        let none = Family::open("no-such-family", 1).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
