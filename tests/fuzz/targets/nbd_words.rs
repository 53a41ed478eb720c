//! What an NBD client says, in bytes.

use super::input::Input;

pub(crate) const STRUCTURED_REPLY: u32 = 8;
pub(crate) const GO: u32 = 7;

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(data);
    out
}

/// The data of GO for the export `disk`.
pub(crate) fn go_disk() -> Vec<u8> {
    [&4_u32.to_be_bytes()[..], b"disk", &[0, 0]].concat()
}

/// A request, well-formed but for its fields.
pub(crate) struct Said {
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) length: u32,
}

/// A request whose fields are made of a few bytes, so that most of them are sensible, with its
/// payload.
pub(crate) fn request(input: &mut Input<'_>, cookie: u64, out: &mut Vec<u8>) -> Said {
    let command = input.below(9);
    let flags = if input.below(4) == 0 { u16::from(input.u8()) } else { 0 };
    let block = u64::from(input.below(18));
    let (offset, length) = match input.below(8) {
        0 => (input.u64(), input.u32() & 0x0200_1fff),
        _ => (block * 4096, u32::from(input.below(5)) * 4096),
    };
    let (offset, length) = if command == 3 { (0, 0) } else { (offset, length) };
    out.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    if command == 1 {
        let byte = input.u8();
        out.resize(out.len() + (length as usize).min(1 << 17), byte);
    }
    Said { command, cookie, length }
}
