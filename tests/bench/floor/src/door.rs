//! The door: reads are local, all else goes to all copies.

use std::io::{BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;

use crate::copies::Copies;
use crate::file::{DirectFile, Room};
use crate::wire::{Kind, Request, negotiate};
use crate::workers::{BUFFER_BYTES, Source, Threads, carry_out, lock, work};

/// Where answers go: to the client of the moment.
#[derive(Clone, Default)]
struct Client(Arc<Mutex<Option<UnixStream>>>);

impl Client {
    fn answer(&self, bytes: &[u8]) -> anyhow::Result<()> {
        lock(&self.0).as_mut().context("the client went away too early")?.write_all(bytes)?;
        Ok(())
    }
}

/// The requests of one client after the other.
struct Clients {
    listener: UnixListener,
    size_bytes: u64,
    reader: Option<BufReader<UnixStream>>,
    client: Client,
}

impl Clients {
    fn accept(&mut self) -> anyhow::Result<()> {
        let (mut stream, _) = self.listener.accept()?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, stream.try_clone()?);
        if negotiate(&mut reader, &mut stream, self.size_bytes)? {
            *lock(&self.client.0) = Some(stream);
            self.reader = Some(reader);
        }
        Ok(())
    }
}

impl Source for Clients {
    fn next(&mut self, room: &mut Room) -> anyhow::Result<Option<Request>> {
        loop {
            if let Some(reader) = &mut self.reader {
                if let Some(request) = Request::read(reader, room)? {
                    return Ok(Some(request));
                }
                self.reader = None;
            }
            self.accept()?;
        }
    }
}

/// Serves one client after the other until something fails.
pub(crate) fn serve(
    listener: UnixListener,
    file: Arc<DirectFile>,
    ports: &[u16],
) -> anyhow::Result<()> {
    let client = Client::default();
    let (copies, answers) = Copies::connect(ports)?;
    let copies = Arc::new(copies);
    let (threads, first) = Threads::new();
    for from in answers {
        let (copies, client) = (Arc::clone(&copies), client.clone());
        threads.start(move || copies.collect(from, |bytes| client.answer(bytes)));
    }
    let size_bytes = file.size_bytes();
    let clients = Clients { listener, size_bytes, reader: None, client: client.clone() };
    let alone = ports.is_empty();
    work(&threads, clients, move |request: &Request, room: &mut Room| {
        if request.kind == Kind::Read || alone {
            return client.answer(carry_out(&file, request, room)?);
        }
        let payload_bytes = request.payload_bytes();
        copies.send(request.cookie, room.with_header(&request.bytes, payload_bytes))
    });
    first.recv()?
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener};
    use std::path::Path;
    use std::thread;

    use super::*;
    use crate::wire::read_done;
    use crate::workers::serve_copy;

    const SIZE_BYTES: u64 = 1 << 20;

    fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    }

    /// A copy in a file, and its port. It serves one connection.
    fn start_copy(file: Arc<DirectFile>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let end = stream.try_clone().unwrap();
            let _ = serve_copy(stream, file);
            // As when a process ends.
            end.shutdown(Shutdown::Both)
        });
        port
    }

    /// Wants the export, and returns the connection when it may be used.
    fn choose(socket: &Path, size_bytes: u64) -> UnixStream {
        let mut client = UnixStream::connect(socket).unwrap();
        client.write_all(&[0, 0, 0, 3]).unwrap();
        for option in [8_u8, 7] {
            client.write_all(b"IHAVEOPT\0\0\0").unwrap();
            client.write_all(&[option, 0, 0, 0, 0]).unwrap();
        }
        let mut said = [0; 18 + 20 + 32 + 20];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(&said[18 + 12..18 + 16], &[0x80, 0, 0, 1], "option 8 is not supported");
        assert_eq!(&said[18 + 20 + 22..18 + 20 + 30], &size_bytes.to_be_bytes());
        client
    }

    #[test]
    fn a_write_is_on_all_copies_and_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..3).map(|i| dir.path().join(i.to_string())).collect();
        let files: Vec<_> = paths
            .iter()
            .map(|path| Arc::new(DirectFile::open(path, SIZE_BYTES).unwrap()))
            .collect();
        let ports: Vec<_> = files.iter().map(|file| start_copy(Arc::clone(file))).collect();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let local = Arc::clone(&files[0]);
        thread::spawn(move || serve(listener, local, &ports));
        let mut client = choose(&socket, SIZE_BYTES);

        client.write_all(&request(1, 7, 8192, 4096)).unwrap();
        client.write_all(&[0xab; 4096]).unwrap();
        assert_eq!(read_done(&mut client).unwrap(), Some(7));
        for path in &paths {
            let content = std::fs::read(path).unwrap();
            let written: Vec<_> = content.iter().map(|byte| *byte == 0xab).collect();
            let wanted: Vec<_> = (0..content.len()).map(|i| (8192..12288).contains(&i)).collect();
            assert_eq!(written, wanted, "{}", path.display());
        }
        client.write_all(&request(3, 8, 0, 0)).unwrap();
        assert_eq!(read_done(&mut client).unwrap(), Some(8));
        client.write_all(&request(0, 9, 8192, 8192)).unwrap();
        assert_eq!(read_done(&mut client).unwrap(), Some(9));
        let mut content = [1; 8192];
        client.read_exact(&mut content).unwrap();
        assert_eq!((&content[..4096], &content[4096..]), (&[0xab; 4096][..], &[0; 4096][..]));
        // The next one is served, too.
        drop(client);
        choose(&socket, SIZE_BYTES);
    }

    #[test]
    fn a_write_that_fails_ends_copy_and_door() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name| Arc::new(DirectFile::open(&dir.path().join(name), SIZE_BYTES).unwrap());
        let port = start_copy(open("copy"));
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let local = open("local");
        let door = thread::spawn(move || serve(listener, local, &[port]));
        let mut client = choose(&socket, SIZE_BYTES);
        // No file reaches so far.
        client.write_all(&request(1, 7, 1 << 63, 4096)).unwrap();
        client.write_all(&[0; 4096]).unwrap();
        assert!(door.join().unwrap().is_err());
    }
}
