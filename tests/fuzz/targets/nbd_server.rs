//! An NBD server that serves one client which says anything.

use std::sync::Arc;

use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::nbd::{Export, Limits, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::input::Input;
use super::nbd_words::{GO, STRUCTURED_REPLY, Said, go_disk, option, request};

const SIZE_BYTES: u64 = 64 * 1024;

/// How much of the conversation is polite.
enum Manner {
    /// Nothing: the input is what the client sends.
    Raw,
    /// The client agrees to fixed newstyle; its options are the input.
    Haggling,
    /// The handshake is done; requests are the input.
    Transmitting { structured: bool },
    /// The client skips the handshake, and its requests are well-formed: each has one answer.
    Attached,
}

pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let manner = match input.below(6) {
        0 => Manner::Raw,
        1 | 2 => Manner::Haggling,
        3 => Manner::Transmitting { structured: false },
        4 => Manner::Transmitting { structured: true },
        _ => Manner::Attached,
    };
    let chunk = 1 + usize::from(input.u8()) * 8;
    let mut said = Vec::new();
    let words = words(&mut input, &manner, &mut said);
    let attached = matches!(manner, Manner::Attached);
    let answer = runtime().block_on(converse(&words, chunk, attached));
    if attached {
        check_answers(&answer, said);
    }
}

fn runtime() -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime without I/O needs nothing of the system")
}

fn words(input: &mut Input<'_>, manner: &Manner, said: &mut Vec<Said>) -> Vec<u8> {
    let mut out = Vec::new();
    if !matches!(manner, Manner::Raw | Manner::Attached) {
        out.extend_from_slice(&3_u32.to_be_bytes());
    }
    if let Manner::Transmitting { structured } = manner {
        if *structured {
            out.extend_from_slice(&option(STRUCTURED_REPLY, &[]));
        }
        out.extend_from_slice(&option(GO, &go_disk()));
    }
    match manner {
        Manner::Raw => out.extend_from_slice(input.0),
        Manner::Haggling => {
            while !input.is_empty() {
                let (kind, length) = (input.below(14), usize::from(input.u8()));
                let data =
                    if input.below(3) == 0 { go_disk() } else { input.take(length).to_vec() };
                out.extend_from_slice(&option(u32::from(kind), &data));
            }
        }
        Manner::Transmitting { .. } | Manner::Attached => {
            while !input.is_empty() && said.len() < 64 {
                let cookie = said.len() as u64;
                said.push(request(input, cookie, &mut out));
                if input.below(32) == 31 {
                    out.extend_from_slice(input.take(8));
                }
            }
        }
    }
    out
}

/// Sends the words in pieces and takes what is answered, until the server hangs up.
async fn converse(words: &[u8], chunk: usize, attached: bool) -> Vec<u8> {
    let limits = Limits {
        requests_max: 4,
        linger: std::time::Duration::from_millis(20),
        ..Limits::default()
    };
    let server = Server::new(limits, CancellationToken::new());
    let backend = Arc::new(MemoryBackend::new(SIZE_BYTES));
    server.add(Export::new("disk", backend)).expect("a good export");
    let (near, far) = tokio::io::duplex(1 << 16);
    let (reader, writer) = tokio::io::split(far);
    let serve = async {
        if attached {
            let served = server.serve_attached("disk", reader, writer).await;
            served.expect("the export is there");
        } else {
            server.serve_stream(reader, writer, "fuzzer").await;
        }
    };
    let (mut from_server, mut to_server) = tokio::io::split(near);
    let speak = async {
        for piece in words.chunks(chunk.max(words.len() / 256)) {
            if to_server.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // The server may have hung up already.
        let _ = to_server.shutdown().await;
    };
    let listen = async {
        let mut answer = Vec::new();
        let _ = from_server.read_to_end(&mut answer).await;
        answer
    };
    let ((), (), answer) = tokio::join!(serve, speak, listen);
    answer
}

/// The answers of a server that was asked in good order: simple replies, one for each request,
/// up to the first that was cut off or told the server to leave.
fn check_answers(answer: &[u8], said: Vec<Said>) {
    let mut input = Input(answer);
    let mut answered = vec![false; said.len()];
    while !input.is_empty() {
        let head = input.take(16);
        assert_eq!(head.len(), 16, "an answer is cut off");
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes(), "not a simple reply");
        let error = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let cookie = head[8..].iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        // A client that slips in other bytes may have asked under any cookie.
        let Ok(index) = usize::try_from(cookie) else { return };
        let Some(of) = said.get(index) else { return };
        assert_eq!(of.cookie, cookie);
        assert!(!answered[index], "request {cookie} was answered twice");
        answered[index] = true;
        if of.command == 0 && error == 0 {
            let data = input.take(of.length as usize);
            assert_eq!(data.len(), of.length as usize, "data of a read is cut off");
        }
    }
}
