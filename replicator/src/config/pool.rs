//! The key `pool`: one text or one table for each pool.

use std::path::PathBuf;

use super::ConfigError;
use super::size::parse_size;
use crate::engine::PoolConfig;

const SHAPE: &str = "NAME=DIR[,capacity=SIZE][,reserve=SIZE][,overcommit=PERCENT] is needed, with \
    a name of 1 to 63 of a-z 0-9 - and an absolute directory";
const OVERCOMMIT: &str = "overcommit is a whole number of percent from 100 to 10000, as in 200%";

fn bad(source: &str, value: &str, why: &str) -> ConfigError {
    ConfigError::BadValue {
        key: "pool",
        source_name: source.to_owned(),
        value: value.to_owned(),
        why: why.to_owned(),
    }
}

/// Reads texts of the form `NAME=DIR[,capacity=SIZE][,reserve=SIZE][,overcommit=PERCENT]`.
pub(super) fn read_texts<'a>(
    texts: impl Iterator<Item = &'a str>,
    source: &str,
) -> Result<Vec<PoolConfig>, ConfigError> {
    texts.map(|text| read_text(text.trim(), source)).collect()
}

fn read_text(text: &str, source: &str) -> Result<PoolConfig, ConfigError> {
    let mut parts = text.split(',');
    let (name, dir) = parts
        .next()
        .and_then(|first| first.split_once('='))
        .ok_or_else(|| bad(source, text, SHAPE))?;
    let mut pool = PoolConfig {
        name: name.to_owned(),
        dir: PathBuf::from(dir),
        capacity_bytes: None,
        reserve_bytes: 0,
        overcommit_percent: 100,
    };
    for part in parts {
        let (option, size) = part.split_once('=').ok_or_else(|| bad(source, text, SHAPE))?;
        if option == "overcommit" {
            pool.overcommit_percent = percent(size).ok_or_else(|| bad(source, text, OVERCOMMIT))?;
            continue;
        }
        let bytes = parse_size(size).map_err(|e| bad(source, text, &e.to_string()))?;
        match option {
            "capacity" => pool.capacity_bytes = Some(bytes),
            "reserve" => pool.reserve_bytes = bytes,
            _ => return Err(bad(source, text, SHAPE)),
        }
    }
    check(pool, source, text)
}

/// Reads `pool = ["…"]` or `[[pool]]` with the keys name, dir, capacity, reserve and overcommit.
pub(super) fn read_toml(value: &toml::Value, source: &str) -> Result<Vec<PoolConfig>, ConfigError> {
    let whole = value.to_string();
    match value {
        toml::Value::String(text) => Ok(vec![read_text(text, source)?]),
        toml::Value::Array(items) => items
            .iter()
            .map(|item| match item {
                toml::Value::String(text) => read_text(text, source),
                toml::Value::Table(table) => read_table(table, source),
                other => Err(bad(source, &other.to_string(), SHAPE)),
            })
            .collect(),
        _ => Err(bad(source, &whole, SHAPE)),
    }
}

fn read_table(table: &toml::Table, source: &str) -> Result<PoolConfig, ConfigError> {
    let whole = table.to_string().replace('\n', " ");
    let known = ["name", "dir", "capacity", "reserve", "overcommit"];
    if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
        let why = format!("a pool has no key `{key}`; known are {}", known.join(", "));
        return Err(bad(source, &whole, &why));
    }
    let text = |key: &str| match table.get(key) {
        Some(toml::Value::String(text)) => Some(text.clone()),
        Some(toml::Value::Integer(number)) => Some(number.to_string()),
        _ => None,
    };
    let size = |key: &str| match text(key) {
        Some(text) => {
            parse_size(&text).map(Some).map_err(|e| bad(source, &whole, &format!("{key}: {e}")))
        }
        None if table.contains_key(key) => {
            Err(bad(source, &whole, &format!("{key} is a size, as in \"10GiB\"")))
        }
        None => Ok(None),
    };
    let pool = PoolConfig {
        name: text("name").ok_or_else(|| bad(source, &whole, "a pool needs a name"))?,
        dir: text("dir").ok_or_else(|| bad(source, &whole, "a pool needs a dir"))?.into(),
        capacity_bytes: size("capacity")?,
        reserve_bytes: size("reserve")?.unwrap_or(0),
        overcommit_percent: match (table.contains_key("overcommit"), text("overcommit")) {
            (false, _) => 100,
            (true, told) => told
                .and_then(|told| percent(&told))
                .ok_or_else(|| bad(source, &whole, OVERCOMMIT))?,
        },
    };
    check(pool, source, &whole)
}

fn percent(text: &str) -> Option<u32> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|percent| (100..=10_000).contains(percent))
}

fn check(pool: PoolConfig, source: &str, text: &str) -> Result<PoolConfig, ConfigError> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let name_ok = (1..=63).contains(&pool.name.len()) && pool.name.bytes().all(legal);
    if !name_ok || !pool.dir.is_absolute() {
        return Err(bad(source, text, SHAPE));
    }
    if pool.capacity_bytes == Some(0) {
        return Err(bad(source, text, "a capacity of 0 holds nothing; leave it out for all space"));
    }
    Ok(pool)
}
