//! How a key and its value lie in an object.

use crate::Revision;
use bytes::Bytes;
use k8s_openapi::ByteString;
use kube::api::{ApiResource, NotUsed, Object, ObjectMeta};
use kube::core::GroupVersionKind;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use uuid::Uuid;

/// An object as the API server keeps it.
pub(super) type Record = Object<Spec, NotUsed>;

/// The key's directories are labels, so that the server can leave out what a list is not after:
/// the first part of the key, and the first two.
const DIRECTORY_LABELS: [&str; 2] = ["lockstep.dev/in", "lockstep.dev/in-2"];

/// Most bytes a label's value has.
const MAX_LABEL_BYTES: usize = 63;

/// How much of a key stands readably in the name of its object. Names have at most 253 bytes.
const MAX_READABLE_BYTES: usize = 200;

/// What the object says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    /// The key, since a name can neither hold all of them nor be read back.
    pub(super) key: String,
    /// The value if it is text, so that people can read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    /// The value if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base64: Option<ByteString>,
    /// Another one with each put: to write what an object says already is no change to the API
    /// server, and would not give a new revision.
    pub(super) change: String,
}

/// What the API server calls these objects.
pub(super) fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("lockstep.dev", "v1alpha1", "Record");
    ApiResource::from_gvk_with_plural(&kind, "records")
}

/// An object to be sent.
pub(super) fn build(
    resource: &ApiResource,
    key: &str,
    value: &Bytes,
    expected: Option<Revision>,
    change: Uuid,
) -> Record {
    let (text, base64) = match std::str::from_utf8(value) {
        Ok(text) if is_short_as_text(text) => (Some(text.to_owned()), None),
        _ => (None, Some(ByteString(value.to_vec()))),
    };
    let spec = Spec { key: key.to_owned(), text, base64, change: change.to_string() };
    let mut object = Record::new(&name(key), resource, spec);
    object.metadata = ObjectMeta {
        labels: Some(labels(key)),
        resource_version: expected.map(|revision| revision.0.to_string()),
        ..object.metadata
    };
    object
}

/// The value that an object holds, or what is wrong with the object.
pub(super) fn value(spec: Spec) -> Result<Bytes, String> {
    match (spec.text, spec.base64) {
        (Some(text), None) => Ok(Bytes::from(text)),
        (None, Some(bytes)) => Ok(Bytes::from(bytes.0)),
        (Some(_), Some(_)) => Err("it has both spec.text and spec.base64".to_owned()),
        (None, None) => Err("it has neither spec.text nor spec.base64".to_owned()),
    }
}

/// The revision of an object: the API server's number for the change that wrote it.
pub(super) fn revision(meta: &ObjectMeta) -> Result<Revision, String> {
    let version = meta.resource_version.as_deref().unwrap_or_default();
    match version.parse() {
        Ok(number) if number > 0 => Ok(Revision(number)),
        _ => Err(format!("its resourceVersion {version:?} is no number")),
    }
}

/// Whether the value is no longer as text than in base64, as the server writes it: what JSON and
/// HTML would misread is six bytes long there.
fn is_short_as_text(text: &str) -> bool {
    let length = |c: char| match c {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => 6,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    };
    text.chars().map(length).sum::<usize>() <= text.len().div_ceil(3) * 4
}

/// The name of the object of a key: what of it may stand in a name, for people, and a hash of it,
/// which makes the name its own.
pub(super) fn name(key: &str) -> String {
    let readable: String = key
        .bytes()
        .take(MAX_READABLE_BYTES)
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b.to_ascii_lowercase()) } else { '-' })
        .collect();
    let mut name = readable.trim_matches('-').to_owned();
    if !name.is_empty() {
        name.push('.');
    }
    for byte in Sha256::digest(key.as_bytes()).iter().take(16) {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The directories of a key as labels. Several directories may share a label: it is for leaving
/// out most of what a list is not after, not for telling keys apart.
fn labels(key: &str) -> BTreeMap<String, String> {
    directories(key).map(|(label, directory)| (label.to_owned(), label_value(directory))).collect()
}

/// What asks the server for all keys that may begin with a prefix; `None`: for all there are.
pub(super) fn selector(prefix: &str) -> Option<String> {
    let (label, directory) = directories(prefix).last()?;
    Some(format!("{label}={}", label_value(directory)))
}

/// The first directories that a key, or a prefix of one, is in, with their labels.
fn directories(key: &str) -> impl Iterator<Item = (&'static str, &str)> {
    let ends = key.match_indices('/').map(|(at, _)| at);
    DIRECTORY_LABELS.into_iter().zip(ends).filter_map(|(label, end)| Some((label, key.get(..end)?)))
}

fn label_value(directory: &str) -> String {
    let value: String = directory
        .bytes()
        .take(MAX_LABEL_BYTES)
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b) } else { '-' })
        .collect();
    value.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_VALUE_BYTES;
    use crate::key::{self, MAX_KEY_BYTES};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn is_object_name(name: &str) -> bool {
        let is_inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(is_inside)
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        name.len() <= 253 && name.split('.').all(is_part)
    }

    fn is_label_value(value: &str) -> bool {
        let is_end = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
        value.len() <= 63
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && is_end(value.bytes().next())
            && is_end(value.bytes().last())
    }

    #[test]
    fn names_are_readable_and_their_own() {
        let name_of = name("volume/Pvc_1");
        assert!(name_of.starts_with("volume-pvc-1."), "{name_of}");
        let keys = ["a/b", "a.b", "a-b", "A/b", "-", "_", "a", "a-", "...", "volume/.x"];
        let names: BTreeSet<_> = keys.iter().map(|key| name(key)).collect();
        assert_eq!(names.len(), keys.len());
        assert!(names.iter().all(|name| is_object_name(name)), "{names:?}");
        assert!(is_object_name(&name(&"k".repeat(MAX_KEY_BYTES))));
    }

    #[test]
    fn values_come_back_and_are_readable_if_they_are_text() {
        let resource = resource();
        let object = |value: &'static [u8]| {
            build(&resource, "k", &Bytes::from_static(value), None, Uuid::nil()).spec
        };
        let text = object(br#"{"epoch":1}"#);
        assert_eq!(text.text.as_deref(), Some(r#"{"epoch":1}"#));
        assert_eq!(value(text), Ok(Bytes::from_static(br#"{"epoch":1}"#)));
        for bytes in [&b"\xff"[..], b"<<<<", b"\0\0\0\0"] {
            let spec = object(bytes);
            assert_eq!(spec.text, None, "{bytes:?}");
            assert_eq!(value(spec), Ok(Bytes::from_static(bytes)));
        }
        assert!(value(Spec::default()).is_err());
        let both = Spec { base64: Some(ByteString(vec![])), ..object(b"x") };
        assert!(value(both).is_err());
    }

    /// etcd takes requests of a mebibyte and a half.
    #[test]
    fn the_longest_value_fits_into_a_request() {
        let resource = resource();
        for byte in *b"\xff<\"a" {
            let value = Bytes::from(vec![byte; MAX_VALUE_BYTES]);
            let key = "k".repeat(MAX_KEY_BYTES);
            let object = build(&resource, &key, &value, Some(Revision(u64::MAX)), Uuid::max());
            let length = serde_json::to_vec(&object).unwrap().len();
            assert!(length < 1_500_000, "{length} bytes of {byte}");
        }
    }

    #[test]
    fn revisions_are_numbers() {
        let version = |version: &str| {
            revision(&ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            })
        };
        assert_eq!(version("17"), Ok(Revision(17)));
        for bad in ["", "0", "-1", "abc", "99999999999999999999"] {
            assert!(version(bad).is_err(), "{bad:?}");
        }
        assert!(revision(&ObjectMeta::default()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// A list that asks the server for less than all misses nothing.
        #[test]
        fn a_selector_finds_every_key_of_its_prefix(key in "[a-cA/._-]{1,80}", cut in 0..80usize) {
            prop_assume!(key::check(&key).is_ok());
            let labels = labels(&key);
            prop_assert!(labels.values().all(|value| is_label_value(value)), "{labels:?}");
            prop_assert!(is_object_name(&name(&key)));
            let prefix = key.get(..cut.min(key.len())).unwrap();
            if let Some(selector) = selector(prefix) {
                let (label, value) = selector.split_once('=').unwrap();
                prop_assert_eq!(labels.get(label).map(String::as_str), Some(value));
            }
        }
    }
}
