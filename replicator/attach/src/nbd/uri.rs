//! NBD URIs: `nbd://host:port/export` and `nbd+unix:///export?socket=/path`.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use super::proto::DEFAULT_PORT;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// A TCP port. An IPv6 host is written here without brackets.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port, 10809 by default.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// A server and one of its exports. The text form is an NBD URI; [`FromStr`] reads it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NbdUri {
    /// Where the server listens.
    pub address: Address,
    /// Name of the export; empty for the server's default.
    pub export: String,
}

/// Why a text is no usable NBD URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is not usable as an NBD URI: {why}")]
pub struct UriError {
    uri: String,
    why: &'static str,
}

impl NbdUri {
    /// An export behind a unix socket.
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self { address: Address::Unix(socket.into()), export: export.into() }
    }

    /// An export behind a TCP port.
    pub fn tcp(host: impl Into<String>, port: u16, export: impl Into<String>) -> Self {
        Self { address: Address::Tcp { host: host.into(), port }, export: export.into() }
    }

    fn parse(uri: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = uri.split_once("://").ok_or("it has no scheme")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = String::from_utf8(decode(export)?).map_err(|_| "the name is no UTF-8")?;
        if export.contains('\0') {
            return Err("the export name contains a NUL");
        }
        let address = match scheme {
            "nbd" => parse_authority(authority)?,
            "nbd+unix" if authority.is_empty() => parse_socket(query)?,
            "nbd+unix" => return Err("a host makes no sense for a unix socket"),
            "nbds" | "nbds+unix" => return Err("TLS is not supported"),
            _ => return Err("the scheme is neither nbd nor nbd+unix"),
        };
        Ok(Self { address, export })
    }
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        Self::parse(uri).map_err(|why| UriError { uri: uri.to_owned(), why })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp { host, port } => {
                if host.contains(':') {
                    write!(f, "nbd://[{host}]")?;
                } else {
                    f.write_str("nbd://")?;
                    encode(f, host.as_bytes(), false)?;
                }
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
                f.write_str("/")?;
                encode(f, self.export.as_bytes(), true)
            }
            Address::Unix(socket) => {
                f.write_str("nbd+unix:///")?;
                encode(f, self.export.as_bytes(), true)?;
                f.write_str("?socket=")?;
                encode(f, socket.as_os_str().as_bytes(), true)
            }
        }
    }
}

fn parse_authority(authority: &str) -> Result<Address, &'static str> {
    if authority.contains('@') {
        return Err("user names are not supported");
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("an IPv6 address lacks its bracket")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("what is in brackets is no IPv6 address");
        }
        let port = rest.strip_prefix(':');
        if port.is_none() && !rest.is_empty() {
            return Err("only a port may follow an address in brackets");
        }
        (host.to_owned(), port)
    } else {
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        let host = String::from_utf8(decode(host)?).map_err(|_| "the host is no UTF-8")?;
        (host, port)
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => port.parse().map_err(|_| "the port is not a number up to 65535")?,
    };
    Ok(Address::Tcp { host, port })
}

fn parse_socket(query: &str) -> Result<Address, &'static str> {
    let mut values = query.split('&').filter_map(|pair| pair.strip_prefix("socket="));
    let socket = values.next_back().filter(|value| !value.is_empty());
    let socket = decode(socket.ok_or("the parameter socket=PATH is missing")?)?;
    Ok(Address::Unix(PathBuf::from(OsString::from_vec(socket))))
}

fn decode(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let wrong = "a % is not followed by two hexadecimal digits";
        let (digits, tail) = tail.split_first_chunk::<2>().ok_or(wrong)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let [high, low] = digits.map(digit);
        bytes.push(high.ok_or(wrong)? * 16 + low.ok_or(wrong)?);
        rest = tail;
    }
    Ok(bytes)
}

fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8], slashes: bool) -> fmt::Result {
    for &byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if plain || (slashes && byte == b'/') {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> NbdUri {
        text.parse().unwrap()
    }

    #[test]
    fn the_forms_of_the_standard_are_understood() {
        assert_eq!(parse("nbd://example.com"), NbdUri::tcp("example.com", 10_809, ""));
        assert_eq!(parse("nbd://example.com/"), NbdUri::tcp("example.com", 10_809, ""));
        assert_eq!(parse("nbd://example.com:99/disk"), NbdUri::tcp("example.com", 99, "disk"));
        assert_eq!(parse("nbd://example.com//disk"), NbdUri::tcp("example.com", 10_809, "/disk"));
        assert_eq!(parse("nbd://[::1]:99/a%20b"), NbdUri::tcp("::1", 99, "a b"));
        assert_eq!(parse("nbd+unix:///disk?socket=/run/nbd.sock"), {
            NbdUri::unix("/run/nbd.sock", "disk")
        });
        assert_eq!(parse("nbd+unix:///?socket=nbd%25.sock"), NbdUri::unix("nbd%.sock", ""));
    }

    #[test]
    fn what_cannot_be_used_is_explained() {
        for (text, why) in [
            ("disk", "no scheme"),
            ("http://host/", "scheme"),
            ("nbds://host/", "TLS"),
            ("nbd:///disk", "host is missing"),
            ("nbd://host:99999/", "port"),
            ("nbd://me@host/", "user"),
            ("nbd://[::1/", "bracket"),
            ("nbd://[::1]x/", "port"),
            ("nbd://[host]/", "IPv6"),
            ("nbd+unix:///disk", "socket=PATH"),
            ("nbd+unix://host/disk?socket=a", "host"),
            ("nbd://host/%4", "hexadecimal"),
            ("nbd://host/%zz", "hexadecimal"),
            ("nbd://host/%00", "NUL"),
            ("nbd://host/%ff", "UTF-8"),
        ] {
            let error = text.parse::<NbdUri>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_reading_agree(
            host in "[a-z0-9.-]{1,20}", port: u16, export in "[^\0]{0,40}", path in "[^\0]{1,40}",
        ) {
            let tcp = NbdUri::tcp(host, port, export.clone());
            prop_assert_eq!(tcp.to_string().parse(), Ok(tcp));
            let unix = NbdUri::unix(path, export);
            prop_assert_eq!(unix.to_string().parse(), Ok(unix));
        }

        #[test]
        fn no_text_can_harm_the_parser(text: String) {
            if let Ok(uri) = text.parse::<NbdUri>() {
                prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            }
        }
    }
}
