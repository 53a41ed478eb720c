//! The key `label`: labels of the node, each `KEY=VALUE`. Keys and values are as Kubernetes has
//! them, so that those of a Node object can be passed on.

use std::collections::BTreeMap;

use lockstep_core::cluster::locality::{is_label_key, is_label_value};

use super::ConfigError;

/// The label that tells a node's zone: the key `zone` is short for it.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

const SHAPE: &str = "KEY=VALUE is needed, as in rack=7";

/// Reads texts of the form `KEY=VALUE`, each key once.
pub(super) fn read_texts<'a>(
    texts: impl Iterator<Item = &'a str>,
    source: &str,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut labels = BTreeMap::new();
    for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
        let Some((key, value)) = text.split_once('=') else {
            return Err(bad(source, text, SHAPE));
        };
        is_label_key(key)
            .and_then(|()| is_label_value(value))
            .map_err(|why| bad(source, text, why))?;
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(bad(source, text, "this label is given twice; give it once"));
        }
    }
    Ok(labels)
}

/// Reads `label = ["KEY=VALUE"]` or a table `[label]`.
pub(super) fn read_toml(
    value: &toml::Value,
    source: &str,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let text = |value: &toml::Value| value.as_str().map(str::to_owned);
    let texts: Option<Vec<String>> = match value {
        toml::Value::Array(all) => all.iter().map(text).collect(),
        toml::Value::Table(all) => {
            all.iter().map(|(key, value)| Some(format!("{key}={}", text(value)?))).collect()
        }
        other => text(other).map(|text| vec![text]),
    };
    let texts = texts.ok_or_else(|| bad(source, &value.to_string(), SHAPE))?;
    read_texts(texts.iter().map(String::as_str), source)
}

pub(super) fn bad(source: &str, value: &str, why: &str) -> ConfigError {
    ConfigError::BadValue {
        key: "label",
        source_name: source.to_owned(),
        value: value.to_owned(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_as_kubernetes_has_them() {
        let read = |texts: &[&str]| read_texts(texts.iter().copied(), "--label");
        let found = read(&["rack=7", "example.com/row=a_b.c", "empty="]).unwrap();
        assert_eq!(found.get("example.com/row").map(String::as_str), Some("a_b.c"));
        assert_eq!(found.len(), 3);
        let long = format!("{}=1", "k".repeat(64));
        for bad in ["rack", "=7", "-rack=7", "a//b=1", "A.b/c=1", "rack=a b", "rack=-", &long] {
            let why = read(&[bad]).unwrap_err().to_string();
            assert!(why.contains("--label: label = `"), "{why}");
        }
        assert!(read(&["rack=7", "rack=8"]).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn a_file_has_a_list_or_a_table() {
        let read = |text: &str| {
            let table: toml::Table = text.parse().unwrap();
            read_toml(&table["label"], "file")
        };
        let one = BTreeMap::from([("rack".to_owned(), "7".to_owned())]);
        assert_eq!(read("label = ['rack=7']").unwrap(), one);
        assert_eq!(read("[label]\nrack = '7'").unwrap(), one);
        assert_eq!(read("label = 'rack=7'").unwrap(), one);
        assert!(read("label = 7").is_err());
        assert!(read("[label]\nrack = 7").is_err());
    }
}
