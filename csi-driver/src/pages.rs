//! Answers in pages: sorted by name, and a token that says after which name to go on. So a page is
//! never wrong when volumes come and go in between: none is told twice, and none that is there all
//! the time is missed.

use crate::{names, refuse};
use tonic::Status;

/// Beginning of every token, with the version of its form.
const PREFIX: &str = "after.1.";
/// Entries of a page, if the caller sets no limit: an answer has to fit into one message.
const MAX_ENTRIES: usize = 1000;

/// What part is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    after: Option<String>,
    entries: usize,
}

impl Page {
    /// Reads a request.
    ///
    /// # Errors
    /// ABORTED if the token is none of ours, INVALID_ARGUMENT if the number is negative.
    pub(crate) fn new(max_entries: i32, token: &str) -> Result<Self, Status> {
        let entries = usize::try_from(max_entries).map_err(|_| {
            refuse::bad("max_entries", &max_entries.to_string(), "0 or more is allowed")
        })?;
        let entries = if entries == 0 { MAX_ENTRIES } else { entries.min(MAX_ENTRIES) };
        if token.is_empty() {
            return Ok(Self { after: None, entries });
        }
        let name = token.strip_prefix(PREFIX).filter(|name| names::is_volume_name(name));
        let Some(name) = name else {
            return Err(Status::aborted(format!(
                "starting_token = {:?}: it comes from no answer; begin again without one",
                names::shown(token)
            )));
        };
        Ok(Self { after: Some(name.to_owned()), entries })
    }

    /// The entries of this page, and the token for the next one; empty if there is none.
    pub(crate) fn cut<T>(&self, mut all: Vec<T>, name: impl Fn(&T) -> &str) -> (Vec<T>, String) {
        all.sort_by(|a, b| name(a).cmp(name(b)));
        if let Some(after) = &self.after {
            all.retain(|entry| name(entry) > after.as_str());
        }
        let more = all.len() > self.entries;
        all.truncate(self.entries);
        let next = all.last().filter(|_| more).map(|last| format!("{PREFIX}{}", name(last)));
        (all, next.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn pages_follow_each_other_also_when_entries_come_and_go() {
        let cut = |max, token: &str, all: &[&str]| {
            let all = all.iter().map(|name| (*name).to_owned()).collect();
            Page::new(max, token).unwrap().cut(all, |name: &String| name)
        };
        let (first, token) = cut(2, "", &["c", "a", "d", "b"]);
        assert_eq!(first, ["a", "b"]);
        // The last of the page is gone, one came before and one after it.
        let (second, token) = cut(2, &token, &["c", "a", "d", "aa", "bb"]);
        assert_eq!(second, ["bb", "c"]);
        let (third, token) = cut(2, &token, &["c", "a", "d"]);
        assert_eq!((third, token), (vec!["d".to_owned()], String::new()));
        let (all, token) = cut(0, "", &["b", "a"]);
        assert_eq!((all.len(), token.as_str()), (2, ""));
        assert_eq!(cut(2, "", &["b", "a"]).1, "", "a full last page is the last");
    }

    #[test]
    fn strange_tokens_are_aborted() {
        for token in ["invalid-token", "after.1.", "after.1.A", "after.2.a", "a"] {
            assert_eq!(Page::new(0, token).unwrap_err().code(), Code::Aborted, "{token}");
        }
        assert_eq!(Page::new(-1, "").unwrap_err().code(), Code::InvalidArgument);
    }
}
