//! Comparing: the volume with the ledger, the copied file with its checksum, copies with copies.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lockstep_attach::nbd::Client;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::args::Input;
use super::content::BLOCK;
use super::ledger::{Findings, Ledger, Span};
use super::workload::read_span;

/// Blocks that are read or written in one piece: 1 MiB.
const PIECE: u64 = 256;
/// Pieces under way.
const PIECES: usize = 8;
/// How long one piece may take. A disk can be slow; a read that never ends must be told as such.
const PIECE_LIMIT: Duration = Duration::from_secs(60);

/// Cuts a span into pieces of at most 1 MiB.
pub fn pieces(span: Span) -> impl Iterator<Item = Span> {
    let end = span.blocks().end;
    let starts = (span.first..end).step_by(usize::try_from(PIECE).unwrap_or(1));
    starts.map(move |first| Span { first, count: PIECE.min(end - first) })
}

/// Copies the file onto the start of the volume, flushes, and returns the file's SHA-256.
pub(super) async fn copy_input(client: &Client, input: &Input) -> anyhow::Result<String> {
    let named = || format!("reading {}", input.path.display());
    let mut file = File::open(&input.path).with_context(named)?.take(input.len);
    let mut hash = Sha256::new();
    let mut read = |span: Span| -> anyhow::Result<(u64, Bytes)> {
        let mut data = vec![0; usize::try_from(span.count)? * BLOCK];
        let mut filled = 0;
        while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).with_context(named)? {
                0 => break,
                len => filled += len,
            }
        }
        hash.update(&data[..filled]);
        Ok((span.first * BLOCK as u64, Bytes::from(data)))
    };
    let writes = stream::iter(pieces(input.span()).map(&mut read)).map_ok(|(offset, data)| {
        let client = client.clone();
        async move { client.write(offset, data, false).await.context("copying the file") }
    });
    writes.try_buffer_unordered(PIECES).try_collect::<()>().await?;
    client.flush().await.context("flushing the copied file")?;
    if file.limit() > 0 {
        bail!("{} became shorter while it was read", input.path.display());
    }
    Ok(hex(hash))
}

/// Reads the copied file back from the volume; returns its SHA-256, and how many blocks it read.
pub(super) async fn input_hash(client: &Client, input: &Input) -> anyhow::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut left = usize::try_from(input.len)?;
    let mut data = std::pin::pin!(read_all(client, input.span()));
    while let Some((_, bytes)) = data.try_next().await? {
        let (file, padding) = bytes.split_at(left.min(bytes.len()));
        hash.update(file);
        left -= file.len();
        if padding.iter().any(|b| *b != 0) {
            bail!("behind the copied file there is something that nobody wrote");
        }
    }
    Ok((hex(hash), input.span().count))
}

/// Compares the whole test area with the ledger.
///
/// # Errors
/// The server fails a read, or is gone.
pub async fn area(client: &Client, ledger: &mut Ledger) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    let mut data = std::pin::pin!(read_all(client, ledger.area()));
    while let Some((span, bytes)) = data.try_next().await? {
        // Nothing is written meanwhile, so it does not matter when the read was issued.
        let reading = ledger.read(span);
        findings.add(ledger.judge(&reading, &bytes));
    }
    Ok(findings)
}

fn read_all(
    client: &Client,
    span: Span,
) -> impl futures::Stream<Item = anyhow::Result<(Span, Bytes)>> {
    let reads = pieces(span).map(|span| {
        let client = client.clone();
        async move {
            let named = || format!("reading block {}", span.first);
            let data = timeout(PIECE_LIMIT, read_span(&client, span)).await;
            let data = data.with_context(|| format!("{}: no answer", named()))?;
            Ok((span, data.with_context(named)?))
        }
    });
    stream::iter(reads).buffered(PIECES)
}

/// A checksum as people write it.
pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a copy differs from the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The copy.
    pub path: PathBuf,
    /// The block; `None`: their lengths differ.
    pub block: Option<u64>,
}

/// Compares files byte by byte with the first; returns the first difference, if there is one.
///
/// # Errors
/// A file cannot be read.
pub fn compare(paths: &[PathBuf]) -> anyhow::Result<Option<Difference>> {
    const CHUNK: usize = 1 << 20;
    let Some((first, others)) = paths.split_first() else { return Ok(None) };
    let (one, len) = open(first)?;
    for path in others {
        let (other, other_len) = open(path)?;
        if other_len != len {
            return Ok(Some(Difference { path: path.clone(), block: None }));
        }
        let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
        for offset in (0..len).step_by(CHUNK) {
            let count = usize::try_from(len - offset)?.min(CHUNK);
            let (a, b) = (&mut a[..count], &mut b[..count]);
            one.read_exact_at(a, offset).with_context(|| first.display().to_string())?;
            other.read_exact_at(b, offset).with_context(|| path.display().to_string())?;
            // Comparing slices is many times faster than looking at each byte.
            if a != b {
                let at = a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count();
                let block = (offset + at as u64) / BLOCK as u64;
                return Ok(Some(Difference { path: path.clone(), block: Some(block) }));
            }
        }
    }
    Ok(None)
}

fn open(path: &Path) -> anyhow::Result<(File, u64)> {
    let named = || format!("cannot compare {}", path.display());
    let file = File::open(path).with_context(named)?;
    let len = file.metadata().with_context(named)?.len();
    Ok((file, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_span_exactly() {
        let all: Vec<Span> = pieces(Span { first: 10, count: 600 }).collect();
        let counts: Vec<u64> = all.iter().map(|s| s.count).collect();
        assert_eq!(counts, [256, 256, 88]);
        assert_eq!(all[2].blocks().end, 610);
    }

    #[test]
    fn one_byte_that_differs_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|n| dir.path().join(n.to_string())).collect();
        let mut data = vec![7; 3 << 20];
        for path in &paths {
            std::fs::write(path, &data).unwrap();
        }
        assert_eq!(compare(&paths).unwrap(), None);
        data[(2 << 20) + 5] ^= 1;
        std::fs::write(&paths[2], &data).unwrap();
        let found = compare(&paths).unwrap();
        assert_eq!(found, Some(Difference { path: paths[2].clone(), block: Some(512) }));
        std::fs::write(&paths[1], b"short").unwrap();
        let found = compare(&paths).unwrap();
        assert_eq!(found, Some(Difference { path: paths[1].clone(), block: None }));
        std::fs::remove_file(&paths[1]).unwrap();
        assert!(compare(&paths).is_err());
    }
}
