//! What the program is told.

use std::path::PathBuf;
use std::time::Duration;

use lockstep_attach::device::{Choice, Kind};

/// What the program is told.
pub(crate) struct Options {
    pub(crate) door: Kind,
    pub(crate) size_bytes: u64,
    pub(crate) file: Option<PathBuf>,
    pub(crate) null: bool,
    pub(crate) queues: u16,
    pub(crate) read_only: bool,
    pub(crate) write_through: bool,
    pub(crate) name: String,
    pub(crate) token: Option<PathBuf>,
    pub(crate) resume: Option<PathBuf>,
    pub(crate) run_dir: PathBuf,
    pub(crate) delay: Duration,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            door: Kind::Fuse,
            size_bytes: 1 << 30,
            file: None,
            null: false,
            queues: 2,
            read_only: false,
            write_through: false,
            name: "device-memory".to_owned(),
            token: None,
            resume: None,
            run_dir: "/run/device-memory".into(),
            delay: Duration::ZERO,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--door" => match value()?.parse()? {
                    Choice::Only(kind) => options.door = kind,
                    Choice::Auto => return Err("--door ublk, nbd or fuse".to_owned()),
                },
                "--size" => options.size_bytes = number(&value()?)?,
                "--queues" => {
                    options.queues = u16::try_from(number(&value()?)?).unwrap_or(u16::MAX);
                }
                "--delay-us" => options.delay = Duration::from_micros(number(&value()?)?),
                "--file" => options.file = Some(value()?.into()),
                "--token" => options.token = Some(value()?.into()),
                "--resume" => options.resume = Some(value()?.into()),
                "--run-dir" => options.run_dir = value()?.into(),
                "--name" => options.name = value()?,
                "--null" => options.null = true,
                "--read-only" => options.read_only = true,
                "--write-through" => options.write_through = true,
                _ => return Err(format!("no argument {argument}; see the head of main.rs")),
            }
        }
        Ok(options)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}
