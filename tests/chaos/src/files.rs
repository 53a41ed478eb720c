//! File systems: made in a file, put on a volume, read back and checked.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use lockstep_attach::nbd::Client;
use tokio::process::Command;

use crate::net::must;
use crate::volume::Fs;

/// What is read or written at once.
const PIECE: usize = 1 << 20;

/// An image of a file system.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Which.
    pub(crate) fs: Fs,
    /// The file.
    pub(crate) path: PathBuf,
}

/// Makes an image with some files in it.
pub(crate) async fn make_image(dir: &Path, fs: Fs) -> anyhow::Result<Image> {
    let name = format!("{fs:?}").to_lowercase();
    let (tree, path) = (dir.join(format!("{name}-tree")), dir.join(format!("{name}-image")));
    std::fs::create_dir_all(&tree)?;
    let mut listing = String::from("/\n0 0\nd--755 0 0\n");
    for number in 0..200_usize {
        let file = tree.join(format!("file-{number}"));
        let line = format!("line of file {number}\n");
        std::fs::write(&file, line.repeat(number * 11 + 1))?;
        listing.push_str(&format!("file-{number} ---644 0 0 {}\n", file.display()));
    }
    listing.push_str("$\n");
    let size = fs.size_bytes();
    File::create(&path)?.set_len(size)?;
    match fs {
        Fs::Ext4 => {
            let mut command = Command::new("mke2fs");
            command.args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(&tree).arg(&path);
            must(&mut command).await?;
        }
        Fs::Xfs => {
            let list = dir.join("xfs-listing");
            std::fs::File::create(&list)?.write_all(listing.as_bytes())?;
            let mut command = Command::new("mkfs.xfs");
            command.args(["-q", "-f", "-s", "size=4096", "-p"]).arg(&list).arg(&path);
            must(&mut command).await?;
        }
    }
    Ok(Image { fs, path })
}

/// Writes an image on the start of a volume; what is all zeroes there stays a hole.
pub(crate) async fn put_image(client: &Client, image: &Image) -> anyhow::Result<()> {
    let file = File::open(&image.path)?;
    let mut piece = vec![0; PIECE];
    for offset in (0..image.fs.size_bytes()).step_by(PIECE) {
        file.read_exact_at(&mut piece, offset)?;
        if piece.iter().any(|byte| *byte != 0) {
            client.write(offset, Bytes::copy_from_slice(&piece), false).await?;
        }
    }
    client.flush().await.context("flushing the image")
}

/// Reads an image back and checks it; says what is wrong with it, if anything is.
///
/// # Errors
/// The volume cannot be read, or the checker not be started.
pub(crate) async fn check_image(client: &Client, image: &Image) -> anyhow::Result<Option<String>> {
    let (original, path) = (File::open(&image.path)?, image.path.with_extension("read"));
    let copy = File::create(&path)?;
    copy.set_len(image.fs.size_bytes())?;
    let mut piece = vec![0; PIECE];
    let mut differs = None;
    for offset in (0..image.fs.size_bytes()).step_by(PIECE) {
        original.read_exact_at(&mut piece, offset)?;
        let read = client.read(offset, u32::try_from(PIECE)?).await?;
        if read != piece {
            differs = differs.or(Some(offset));
        }
        if read.iter().any(|byte| *byte != 0) {
            copy.write_all_at(&read, offset)?;
        }
    }
    if let Some(offset) = differs {
        return Ok(Some(format!("the {:?} image differs at byte {offset}", image.fs)));
    }
    let mut command = match image.fs {
        Fs::Ext4 => Command::new("e2fsck"),
        Fs::Xfs => Command::new("xfs_repair"),
    };
    match image.fs {
        Fs::Ext4 => command.args(["-f", "-n"]),
        Fs::Xfs => command.args(["-n", "-f"]),
    };
    Ok(must(command.arg(&path)).await.err().map(|e| format!("{e:#}")))
}
