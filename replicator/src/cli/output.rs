//! Where answers and complaints go.

use std::io::{self, Write as _};

use serde_json::{Value, json};

use super::failure::Failure;

/// How this run talks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// To a program.
    pub(super) json: bool,
}

impl Output {
    /// Prints an answer: `value` to a program, `text` to a person.
    pub(super) fn answer(
        &self,
        value: &Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let line = if self.json { value.to_string() } else { text() };
        Self::print(&format!("{}\n", line.trim_end()))
    }

    /// Writes to standard output at once. A reader that has left is no failure.
    pub(super) fn print(text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(e) => Err(Failure::local(format!("cannot write to standard output: {e}"))),
            Ok(()) => Ok(()),
        }
    }

    /// A remark for people, on standard error.
    pub(super) fn remark(text: &str) {
        // Nobody is left to hear it if this fails.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Says on standard error why the command failed.
    pub(super) fn complain(&self, failure: &Failure) {
        if self.json {
            let value = json!({
                "error": {
                    "code": failure.code,
                    "message": failure.message,
                    "exit": failure.exit(),
                }
            });
            Self::remark(&value.to_string());
        } else {
            Self::remark(&format!("lockstep: {}", failure.message));
        }
    }
}
