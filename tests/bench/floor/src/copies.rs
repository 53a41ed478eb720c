//! The connections of one door to its copies, and what each of them has not answered yet.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Mutex;

use anyhow::{Context as _, bail};

use crate::wire::{done, read_done};
use crate::workers::{BUFFER_BYTES, lock};

pub(crate) struct Copies {
    streams: Vec<Mutex<TcpStream>>,
    /// By cookie: how many copies have not answered.
    pending: Mutex<BTreeMap<u64, usize>>,
}

impl Copies {
    /// Connects to all copies; each connection comes twice, to write to and to read from.
    pub(crate) fn connect(ports: &[u16]) -> anyhow::Result<(Copies, Vec<TcpStream>)> {
        let (mut streams, mut answers) = (Vec::new(), Vec::new());
        for port in ports {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))
                .with_context(|| format!("no copy listens on port {port}"))?;
            stream.set_nodelay(true)?;
            answers.push(stream.try_clone()?);
            streams.push(Mutex::new(stream));
        }
        Ok((Copies { streams, pending: Mutex::default() }, answers))
    }

    /// Sends a request, with its data, to all copies.
    pub(crate) fn send(&self, cookie: u64, bytes: &[u8]) -> anyhow::Result<()> {
        lock(&self.pending).insert(cookie, self.streams.len());
        for stream in &self.streams {
            lock(stream).write_all(bytes)?;
        }
        Ok(())
    }

    /// Gives `answer` the answer to each request that the last copy has answered.
    pub(crate) fn collect(
        &self,
        from: TcpStream,
        answer: impl Fn(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
        while let Some(cookie) = read_done(&mut from)? {
            if self.is_last(cookie) {
                answer(&done(cookie))?;
            }
        }
        bail!("a copy is gone")
    }

    fn is_last(&self, cookie: u64) -> bool {
        let mut pending = lock(&self.pending);
        let Some(left) = pending.get_mut(&cookie) else { return false };
        *left -= 1;
        let last = *left == 0;
        if last {
            pending.remove(&cookie);
        }
        last
    }
}
