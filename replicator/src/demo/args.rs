//! What can be asked of the demonstration.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use lockstep_attach::filesystem::FileSystem;

use super::content::BLOCK;
use super::ledger::Span;
use crate::config::size::parse_size;
use crate::devices;

const MIB: u64 = 1 << 20;
/// Smallest volume on which there is room for the files besides what XFS takes for itself.
const XFS_BYTES_MIN: u64 = 320 * MIB;

/// Show a replicated volume on this machine: daemons are killed and copies compared
///
/// Starts daemons on loopback addresses, copies a file onto a volume, writes to it and kills the
/// daemon that serves it. Another one takes over, a lost copy is built anew, the killed daemon
/// comes back and gets what it missed. Then every block is compared with what was acknowledged,
/// and every copy with every other. Nothing is left behind.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Size of the volume, 32MiB to 8GiB [default: 256MiB, with --device 512MiB]
    #[arg(long, value_parser = size)]
    pub size: Option<u64>,
    /// Do it on a block device with a mounted file system; as root
    #[arg(long)]
    pub device: bool,
    /// Which file system, ext4 or xfs; implies --device [default: ext4]
    #[arg(long, value_name = "TYPE")]
    pub fs: Option<FileSystem>,
    /// Daemons, up to 16; the last one also keeps the record store
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub nodes: u8,
    /// Copies of the volume, 2 to 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub repl: u8,
    /// File that is copied onto the volume first [default: this program]
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Seconds of writing before the kill
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub seconds: u8,
    /// Bytes written per second while a copy is missing; before the kill there is no limit
    /// [default: 8MiB, with --device 2MiB]
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub rate: Option<u64>,
    /// Which random writes; chosen and told if left out
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where the temporary directory is made [default: the system's]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep the directory with the daemons' data and logs
    #[arg(long)]
    pub keep: bool,
    /// Clean up this directory once standard input ends. For the demonstration itself.
    #[arg(long, hide = true, value_name = "DIR", requires = "daemon")]
    pub janitor: Option<PathBuf>,
    /// Program whose processes are to be ended. For the demonstration itself.
    #[arg(long, hide = true, value_name = "FILE")]
    pub daemon: Option<PathBuf>,
    /// The last line of standard output is one JSON object; words for people go to standard error.
    #[arg(skip)]
    pub json: bool,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

/// What is copied onto the start of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Input {
    /// Which file.
    pub(super) path: PathBuf,
    /// How much of it.
    pub(super) len: u64,
}

impl Input {
    /// The blocks that hold it.
    pub(super) fn span(&self) -> Span {
        Span { first: 0, count: self.len.div_ceil(BLOCK as u64) }
    }
}

impl DemoArgs {
    /// Size of the volume.
    pub(super) fn size_bytes(&self) -> u64 {
        let default = if self.file_system().is_some() { 512 * MIB } else { 256 * MIB };
        self.size.unwrap_or(default)
    }

    /// Bytes written per second while a copy is missing. A file system writes more than it is
    /// given.
    pub(super) fn rate_bytes(&self) -> u64 {
        let default = if self.file_system().is_some() { 2 * MIB } else { 8 * MIB };
        self.rate.unwrap_or(default)
    }

    /// The type of the file system, if it is to be on one.
    pub(super) fn file_system(&self) -> Option<String> {
        let fs = self.fs.or(self.device.then_some(FileSystem::Ext4));
        fs.map(|fs| fs.to_string())
    }

    /// Refuses what cannot work, naming what can.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if !(2..=5).contains(&self.repl) {
            bail!("--repl {}: 2 to 5 copies are possible", self.repl);
        }
        if !(self.repl..=16).contains(&self.nodes) {
            bail!("--nodes {}: {} (as many as copies) to 16 are possible", self.nodes, self.repl);
        }
        let size = self.size_bytes();
        if !(32 * MIB..=8192 * MIB).contains(&size) || !size.is_multiple_of(MIB) {
            bail!("--size {size}: whole MiB from 32MiB to 8GiB are possible");
        }
        if self.fs == Some(FileSystem::Xfs) && size < XFS_BYTES_MIN {
            bail!("--size {size}: xfs needs at least {}MiB", XFS_BYTES_MIN / MIB);
        }
        let rate = self.rate_bytes();
        if rate < 256 << 10 {
            bail!("--rate {rate}: at least 256KiB are needed to get anywhere");
        }
        if !(1..=60).contains(&self.seconds) {
            bail!("--seconds {}: 1 to 60 are possible", self.seconds);
        }
        self.input().map(drop)
    }

    /// Refuses what this machine cannot do.
    pub(super) fn check_machine(&self) -> anyhow::Result<()> {
        if self.file_system().is_none() {
            return Ok(());
        }
        if !nix::unistd::geteuid().is_root() {
            bail!("--device needs root, to make a block device and to mount it");
        }
        let probes = devices::probes(&std::env::temp_dir());
        if !probes.iter().any(|probe| probe.usable) {
            let why = probes.iter().map(|probe| format!("{}: {}", probe.kind, probe.why));
            let why: Vec<_> = why.collect();
            bail!("--device: this machine has no door to a block device: {}", why.join("; "));
        }
        Ok(())
    }

    /// The file to copy. Of the program itself as much as fits a quarter of the volume.
    pub(super) fn input(&self) -> anyhow::Result<Input> {
        let path = match &self.input {
            Some(path) => path.clone(),
            None => std::env::current_exe().context("cannot find this program's file")?,
        };
        let facts = std::fs::metadata(&path)
            .with_context(|| format!("cannot read --input {}", path.display()))?;
        if !facts.is_file() || facts.len() == 0 {
            bail!("--input {}: a file with something in it is needed", path.display());
        }
        if self.input.is_none() {
            return Ok(Input { path, len: facts.len().min(self.size_bytes() / 4) });
        }
        if facts.len() > self.size_bytes() / 2 {
            bail!(
                "--input {}: its {} bytes need more than half of the volume's {}; raise --size",
                path.display(),
                facts.len(),
                self.size_bytes()
            );
        }
        Ok(Input { path, len: facts.len() })
    }

    /// The blocks that are written at random.
    pub(super) fn area(&self, input: &Input) -> Span {
        let first = input.span().count;
        Span { first, count: self.size_bytes() / BLOCK as u64 - first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: DemoArgs,
    }

    fn parse(words: &[&str]) -> DemoArgs {
        Line::try_parse_from([&["demo"], words].concat()).unwrap().args
    }

    #[test]
    fn the_defaults_are_possible() {
        let args = parse(&[]);
        args.check().unwrap();
        let input = args.input().unwrap();
        let area = args.area(&input);
        assert_eq!(area.first, input.span().count);
        assert_eq!(area.blocks().end, args.size_bytes() / 4096);
        assert!(area.count >= args.size_bytes() / 4096 / 2);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (words, named) in [
            (["--repl", "1"], "--repl"),
            (["--repl", "6"], "--repl"),
            (["--nodes", "2"], "--nodes"),
            (["--nodes", "17"], "--nodes"),
            (["--size", "1MiB"], "--size"),
            (["--size", "9GiB"], "--size"),
            (["--size", "33554433"], "--size"),
            (["--rate", "1"], "--rate"),
            (["--seconds", "0"], "--seconds"),
        ] {
            let error = parse(&words).check().unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
        let small = parse(&["--fs", "xfs", "--size", "300MiB"]).check().unwrap_err().to_string();
        assert!(small.contains("xfs needs at least 320MiB"), "{small}");
        let missing = parse(&["--input", "/nowhere/at/all"]).input().unwrap_err();
        assert!(missing.to_string().contains("/nowhere/at/all"));
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(17 << 20).unwrap();
        let name = file.path().to_str().unwrap();
        let large = parse(&["--input", name, "--size", "32MiB"]).input().unwrap_err();
        assert!(large.to_string().contains("--size"));
    }
}
