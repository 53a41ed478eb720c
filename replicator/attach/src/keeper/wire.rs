//! What a keeper and its clients say: lines of JSON.

use serde::{Deserialize, Serialize};

/// Longest line, either way: a list of a thousand names.
pub(crate) const LINE_BYTES_MAX: usize = 256 * 1024;
/// Longest name, and longest note.
const TEXT_BYTES_MAX: usize = 200;
/// Most files kept: more than a node has volumes.
pub(crate) const KEPT_MAX: usize = 1000;

/// A request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub(crate) enum Ask {
    /// Keep the file attached under this name, instead of what was kept under it, if anything.
    Keep { name: String, note: String },
    /// Give the file of this name. It stays kept.
    Fetch { name: String },
    /// Close the file of this name.
    Forget { name: String },
    /// Tell all names.
    List,
    /// Hold this connection, and say one more line before ending in good order.
    Watch,
}

/// An answer.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// There was a file of that name.
    #[serde(default)]
    pub(crate) found: bool,
    /// What was noted with it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    /// The names asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
}

impl Ask {
    /// Reads a line, and checks it.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        let ask: Self = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let text = match &ask {
            Self::Keep { name, note } => [name.as_str(), note.as_str()],
            Self::Fetch { name } | Self::Forget { name } => [name.as_str(), ""],
            Self::List | Self::Watch => return Ok(ask),
        };
        if text.iter().any(|text| text.len() > TEXT_BYTES_MAX) || text.first() == Some(&"") {
            return Err(format!("a name has 1 to {TEXT_BYTES_MAX} bytes, a note not more"));
        }
        Ok(ask)
    }
}

/// A value as a line.
pub(crate) fn line<T: Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_written() {
        let asks = [
            Ask::Keep { name: "a".into(), note: "b".into() },
            Ask::Fetch { name: "a".into() },
            Ask::Forget { name: "a".into() },
            Ask::List,
            Ask::Watch,
        ];
        for ask in asks {
            assert_eq!(Ask::parse(&line(&ask).unwrap()).unwrap(), ask);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!(r#"{{"do":"fetch","name":"{}"}}"#, "x".repeat(TEXT_BYTES_MAX + 1));
        for text in ["", "{}", "[]", r#"{"do":"eat"}"#, r#"{"do":"fetch","name":""}"#, &long] {
            assert!(Ask::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
