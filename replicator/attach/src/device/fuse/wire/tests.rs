use super::*;
use proptest::prelude::*;

fn request(opcode: u32, arguments: &[u8], payload: usize) -> (Vec<u8>, usize) {
    let len = HEADER_BYTES + arguments.len() + payload;
    let head = Bytes::default().u32(u32::try_from(len).unwrap()).u32(opcode).u64(77).u64(ROOT);
    let mut bytes = head.zeroes(16).0;
    bytes.extend_from_slice(arguments);
    (bytes, len)
}

fn understood(opcode: u32, arguments: &[u8], payload: usize) -> Request {
    let (bytes, len) = request(opcode, arguments, payload);
    let (unique, request) = parse(&bytes, len).unwrap();
    assert_eq!(unique, 77);
    request
}

fn write_in(len: u32, flags: i32) -> Vec<u8> {
    let flags = u32::try_from(flags).unwrap();
    Bytes::default().u64(0).u64(8192).u32(len).u32(0).u64(0).u32(flags).u32(0).0
}

#[test]
fn data_requests_are_understood() {
    let read = Bytes::default().u64(0).u64(4096).u32(12_288).zeroes(20).0;
    assert_eq!(understood(15, &read, 0), Request::Read { offset: 4096, len: 12_288 });
    let write = Request::Write { offset: 8192, len: 4096, sync: false };
    assert_eq!(understood(16, &write_in(4096, nix::libc::O_RDWR), 4096), write);
    let write = Request::Write { offset: 8192, len: 4096, sync: true };
    assert_eq!(understood(16, &write_in(4096, nix::libc::O_DSYNC), 4096), write);
    let allocate = |mode: u32| Bytes::default().u64(0).u64(4096).u64(8192).u32(mode).u32(0).0;
    let zero = |no_hole| Request::Zero { offset: 4096, len: 8192, no_hole };
    assert_eq!(understood(43, &allocate(0x03), 0), zero(false));
    assert_eq!(understood(43, &allocate(0x11), 0), zero(true));
    assert_eq!(understood(43, &allocate(0x08), 0), Request::Refused(nix::libc::EOPNOTSUPP));
    assert_eq!(understood(20, &[0; 16], 0), Request::Fsync);
}

#[test]
fn what_lies_about_its_length_is_refused() {
    let refused = Request::Refused(nix::libc::EINVAL);
    assert_eq!(understood(16, &write_in(8192, 0), 4096), refused);
    assert_eq!(understood(16, &write_in(DATA_BYTES_MAX + 1, 0), 0x0010_0001), refused);
    assert_eq!(understood(15, &[0; 12], 0), refused);
    let (bytes, len) = request(20, &[0; 16], 0);
    assert_eq!(parse(&bytes, len + 1).unwrap(), (77, refused));
    assert_eq!(parse(bytes.get(..39).unwrap(), 39), Err(Malformed { len: 39 }));
}

#[test]
fn others_are_refused_or_need_no_answer() {
    assert_eq!(understood(1, b"name\0", 0), Request::Refused(nix::libc::ENOSYS));
    assert_eq!(understood(36, &[0; 8], 0), Request::Refused(nix::libc::ENOSYS));
    assert_eq!(understood(4, &[0; 40], 0), Request::Refused(nix::libc::EPERM));
    assert_eq!(understood(2, &[0; 8], 0), Request::Silent);
    assert_eq!(understood(42, &[0; 8], 0), Request::Silent);
    assert_eq!(understood(18, &[0; 24], 0), Request::Done);
}

#[test]
fn the_greeting_takes_what_is_wanted_and_offered() {
    let greet = |flags: u64| {
        let [low, high] = [flags & 0xffff_ffff, flags >> 32].map(|f| u32::try_from(f).unwrap());
        let arguments = Bytes::default().u32(7).u32(45).u32(131_072).u32(low).u32(high).zeroes(44);
        match understood(26, &arguments.0, 0) {
            Request::Init(init) => init,
            other => panic!("{other:?}"),
        }
    };
    let all = greet(u64::MAX);
    let answer = all.answer().unwrap();
    assert_eq!(answer.len(), 64);
    assert_eq!(u32_at(&answer, 4), Some(40));
    let want = u32::try_from(init::WANTED & 0xffff_ffff).unwrap();
    assert_eq!(u32_at(&answer, 12), Some(want));
    assert_eq!(u32_at(&answer, 20), Some(DATA_BYTES_MAX));
    assert_eq!(u32_at(&answer, 32), Some(1 << 7));
    assert!(greet(init::NEEDED).answer().is_ok());
    assert_eq!(greet(init::ASYNC_DIO).answer(), Err(nix::libc::EPROTO));
}

#[test]
fn answers_are_as_long_as_their_structures() {
    assert_eq!(attributes(1 << 30).len(), 16 + 88);
    assert_eq!(opened().len(), 16);
    assert_eq!(written(4096).len(), 8);
    assert_eq!(statistics(1 << 30).len(), 80);
    assert_eq!(invalidate().len(), 40);
    assert_eq!(u32_at(&invalidate(), 0), Some(40));
    assert_eq!(resend().first_chunk(), Some(&16_u32.to_ne_bytes()));
    assert_eq!(failure(9, 5).get(4..8), Some(&(-5_i32).to_ne_bytes()[..]));
    assert_eq!(u32_at(&success(9, 100), 0), Some(116));
    assert_eq!(u64_at(&attributes(12_288), 24), Some(12_288));
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..120), opcode in 0..60_u32) {
        let _ = parse(&bytes, bytes.len());
        let (mut bytes, len) = (bytes, 40);
        if bytes.len() >= 8 {
            let told = u32::try_from(bytes.len()).unwrap();
            bytes.splice(0..8, [told.to_ne_bytes(), opcode.to_ne_bytes()].concat());
        }
        let len = bytes.len().max(len);
        let shown = bytes.get(..bytes.len().min(HEAD_BYTES)).unwrap();
        if let Ok((_, Request::Write { len: data, .. })) = parse(shown, len) {
            prop_assert_eq!(data as usize + HEAD_BYTES, len);
        }
    }
}
