//! Every rule about what a client may ask.

use super::*;

const SIZE: u64 = 1 << 20;
const FACTS: ExportInfo = ExportInfo { size_bytes: SIZE, read_only: false };
const ALL: Agreed = Agreed { structured: true, base_allocation: true };
const OLD: Agreed = Agreed { structured: false, base_allocation: false };
const RANGED: [u16; 6] =
    [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS];

fn header(command: u16, offset: u64, length: u32) -> RequestHeader {
    RequestHeader { flags: 0, command, cookie: 1, offset, length }
}

fn verdict(header: RequestHeader, agreed: Agreed) -> Option<Errno> {
    check(&header, agreed, &FACTS).err().map(|refusal| refusal.errno)
}

#[test]
fn ranges_must_be_aligned_and_inside() {
    for command in RANGED {
        assert_eq!(verdict(header(command, 0, 4096), ALL), None, "{command}");
        assert_eq!(verdict(header(command, SIZE - 4096, 4096), ALL), None, "{command}");
        assert_eq!(verdict(header(command, 512, 4096), ALL), Some(Errno::Invalid), "{command}");
        assert_eq!(verdict(header(command, 0, 512), ALL), Some(Errno::Invalid), "{command}");
        let beyond = match command {
            cmd::WRITE | cmd::WRITE_ZEROES => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        for offset in [SIZE, SIZE - 4096, u64::MAX - 4095] {
            let refused = verdict(header(command, offset, 8192), ALL);
            assert_eq!(refused, Some(beyond), "{command} at {offset}");
        }
    }
}

#[test]
fn a_range_may_end_where_numbers_end() {
    let facts = ExportInfo { size_bytes: u64::MAX - 4095, read_only: false };
    assert_eq!(check(&header(cmd::READ, u64::MAX - 8191, 4096), ALL, &facts), Ok(()));
    assert!(check(&header(cmd::READ, u64::MAX - 4095, 4096), ALL, &facts).is_err());
}

#[test]
fn only_reads_and_writes_are_limited_to_a_payload() {
    let facts = ExportInfo { size_bytes: 1 << 40, read_only: false };
    let long = PAYLOAD_BYTES_MAX + 4096;
    let errno = |command, agreed| {
        check(&header(command, 0, long), agreed, &facts).err().map(|refusal| refusal.errno)
    };
    assert_eq!(errno(cmd::READ, ALL), Some(Errno::Overflow));
    assert_eq!(errno(cmd::READ, OLD), Some(Errno::Invalid));
    assert_eq!(errno(cmd::WRITE, ALL), Some(Errno::Invalid));
    for command in [cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS] {
        assert_eq!(errno(command, ALL), None, "{command}");
    }
    assert_eq!(check(&header(cmd::WRITE, 0, PAYLOAD_BYTES_MAX), ALL, &facts), Ok(()));
}

#[test]
fn flags_belong_to_commands() {
    let own = |command| match command {
        cmd::READ => flag::FUA | flag::DF,
        cmd::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
        cmd::BLOCK_STATUS => flag::FUA | flag::REQ_ONE,
        _ => flag::FUA,
    };
    for command in RANGED.into_iter().chain([cmd::FLUSH]) {
        for bit in 0..16 {
            let flags = 1 << bit;
            let length = if command == cmd::FLUSH { 0 } else { 4096 };
            let accepted = verdict(RequestHeader { flags, ..header(command, 0, length) }, ALL);
            let expected = (own(command) & flags == 0).then_some(Errno::Invalid);
            assert_eq!(accepted, expected, "command {command}, bit {bit}");
        }
    }
    let unfragmented = RequestHeader { flags: flag::DF, ..header(cmd::READ, 0, 4096) };
    assert_eq!(verdict(unfragmented, OLD), Some(Errno::Invalid), "DF was not negotiated");
}

#[test]
fn a_read_only_export_is_not_changed() {
    let facts = ExportInfo { read_only: true, ..FACTS };
    for command in RANGED {
        let errno = check(&header(command, 0, 4096), ALL, &facts).err().map(|r| r.errno);
        let changes = matches!(command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES);
        assert_eq!(errno, changes.then_some(Errno::NotPermitted), "{command}");
    }
    assert_eq!(check(&header(cmd::FLUSH, 0, 0), ALL, &facts), Ok(()));
}

#[test]
fn oddities_have_an_answer() {
    assert_eq!(verdict(header(cmd::FLUSH, 4096, 0), ALL), Some(Errno::Invalid));
    assert_eq!(verdict(header(cmd::FLUSH, 0, 4096), ALL), Some(Errno::Invalid));
    assert_eq!(verdict(header(cmd::BLOCK_STATUS, 0, 4096), OLD), Some(Errno::Invalid));
    assert_eq!(verdict(header(cmd::BLOCK_STATUS, 0, 0), ALL), Some(Errno::Invalid));
    for unknown in [8, 9, 0x7fff, 0xffff] {
        assert_eq!(verdict(header(unknown, 0, 0), ALL), Some(Errno::Invalid));
    }
    for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        let empty = header(command, 4096, 0);
        assert_eq!(verdict(empty, ALL), None);
        assert_eq!(super::command(&empty, Bytes::new()), Command::Nothing);
    }
}
