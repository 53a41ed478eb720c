//! The NBD client, and a server which answers anything.

use bytes::Bytes;
use lockstep_attach::ZeroMode;
use lockstep_attach::nbd::{Client, ConnectOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::input::Input;

/// The input is what the server says: after a greeting and an agreement, or from the start.
pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let how = input.u8();
    let structured = how & 1 != 0;
    let mut words = Vec::new();
    if how & 2 != 0 {
        words.extend_from_slice(b"NBDMAGICIHAVEOPT\0\x03");
    }
    if how & 4 != 0 {
        if structured {
            reply(&mut words, 8, 1, &[]);
            let context = [&1_u32.to_be_bytes()[..], b"base:allocation"].concat();
            reply(&mut words, 10, 4, &context);
            reply(&mut words, 10, 1, &[]);
        }
        let export = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[0x0f, 0xff]].concat();
        reply(&mut words, 7, 3, &export);
        reply(&mut words, 7, 1, &[]);
    }
    speak(&mut input, how & 8 != 0, &mut words);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without I/O needs nothing of the system");
    runtime.block_on(converse(words, structured));
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&0x0003_e889_0455_65a9_u64.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(data);
}

/// Replies whose heads are right, or any bytes.
fn speak(input: &mut Input<'_>, framed: bool, out: &mut Vec<u8>) {
    if !framed {
        out.extend_from_slice(input.0);
        return;
    }
    while !input.is_empty() && out.len() < 1 << 20 {
        let cookie = 1 + u64::from(input.below(6));
        if input.flag() {
            out.extend_from_slice(&0x6744_6698_u32.to_be_bytes());
            out.extend_from_slice(&u32::from(input.below(3)).to_be_bytes());
            out.extend_from_slice(&cookie.to_be_bytes());
            let data = usize::from(input.below(3)) * 4096;
            out.resize(out.len() + data, input.u8());
            continue;
        }
        let kinds = [0, 1, 2, 5, 0x8001, 0x8002, 3, 9];
        let (flags, kind) = (input.below(3), kinds[usize::from(input.below(8))]);
        let length = usize::from(input.u8());
        let mut data = input.take(length).to_vec();
        if input.flag() {
            data.resize(data.len() + 4096 * usize::from(input.below(4)), 1);
        }
        out.extend_from_slice(&0x668e_33ef_u32.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&u16::to_be_bytes(kind));
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&data);
    }
}

/// Every call of the client ends, with an answer or an error; none of them panics.
async fn converse(words: Vec<u8>, structured: bool) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut hears, mut says) = tokio::io::split(far);
    let server = async {
        let _ = says.write_all(&words).await;
        let _ = says.shutdown().await;
        let mut heard = Vec::new();
        let _ = hears.read_to_end(&mut heard).await;
    };
    let (reader, writer) = tokio::io::split(near);
    let client = async {
        let options = ConnectOptions { structured, depth: 8 };
        let Ok(client) = Client::over(reader, writer, "disk", options).await else { return };
        let data = Bytes::from(vec![3; 8192]);
        let (read, write, zero, flush, status) = tokio::join!(
            client.read(0, 8192),
            client.write(8192, data, false),
            client.zero(0, 4096, ZeroMode::default()),
            client.flush(),
            client.block_status(0, 1 << 20, false),
        );
        assert!(read.is_err() || read.is_ok_and(|data| data.len() == 8192));
        drop((write, zero, flush, status));
        drop(client.close().await);
    };
    tokio::join!(server, client);
}
