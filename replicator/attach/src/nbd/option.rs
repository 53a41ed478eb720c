//! The data of negotiation options, taken apart.

use super::limits::{QUERIES_MAX, STRING_BYTES_MAX};

/// Why an option's data was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It contradicts itself or is no text.
    Invalid(&'static str),
    /// It asks for too much at once.
    TooBig(&'static str),
}

/// Data of `INFO` and `GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest {
    pub(crate) name: String,
    pub(crate) items: Vec<u16>,
}

impl InfoRequest {
    pub(crate) fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(data);
        let name = cursor.string()?;
        let count = cursor.u16()?;
        let items = (0..count).map(|_| cursor.u16()).collect::<Result<Vec<_>, _>>()?;
        cursor.end()?;
        Ok(Self { name, items })
    }
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContextRequest {
    pub(crate) name: String,
    pub(crate) queries: Vec<String>,
}

impl ContextRequest {
    pub(crate) fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(data);
        let name = cursor.string()?;
        let count = cursor.u32()?;
        if count as usize > QUERIES_MAX {
            return Err(Malformed::TooBig("too many metadata context queries"));
        }
        let queries = (0..count).map(|_| cursor.string()).collect::<Result<Vec<_>, _>>()?;
        cursor.end()?;
        if queries.iter().any(|query| !query.contains(':')) {
            return Err(Malformed::Invalid("a metadata context query has no namespace"));
        }
        Ok(Self { name, queries })
    }
}

/// Data that is nothing but an export name.
pub(crate) fn parse_name(data: &[u8]) -> Result<String, Malformed> {
    if data.len() > STRING_BYTES_MAX {
        return Err(Malformed::TooBig("a string is longer than 4096 bytes"));
    }
    match std::str::from_utf8(data) {
        Ok(name) if !name.contains('\0') => Ok(name.to_owned()),
        _ => Err(Malformed::Invalid("a string is not UTF-8 text")),
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(length).ok_or(TRUNCATED)?;
        self.0 = rest;
        parse_name(text)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Invalid("bytes are left over behind the option's data"))
        }
    }
}

const TRUNCATED: Malformed = Malformed::Invalid("the option's data ends too early");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap();
        [&length.to_be_bytes()[..], text.as_bytes()].concat()
    }

    #[test]
    fn info_requests_are_read_to_the_last_byte() {
        let mut data = [string("disk"), vec![0, 2, 0, 3, 0, 1]].concat();
        let expected = InfoRequest { name: "disk".into(), items: vec![3, 1] };
        assert_eq!(InfoRequest::parse(&data), Ok(expected));
        for short in 0..data.len() {
            assert_eq!(InfoRequest::parse(&data[..short]), Err(TRUNCATED), "{short} bytes");
        }
        data.push(0);
        assert!(matches!(InfoRequest::parse(&data), Err(Malformed::Invalid(_))));
    }

    #[test]
    fn context_requests_are_read_to_the_last_byte() {
        let data = [
            string("disk"),
            vec![0, 0, 0, 2],
            string("base:allocation"),
            string("qemu:dirty-bitmap:x"),
        ]
        .concat();
        let parsed = ContextRequest::parse(&data).unwrap();
        assert_eq!(parsed.queries, ["base:allocation", "qemu:dirty-bitmap:x"]);
        for short in 0..data.len() {
            assert_eq!(ContextRequest::parse(&data[..short]), Err(TRUNCATED), "{short} bytes");
        }
    }

    #[test]
    fn what_no_honest_client_sends_is_refused() {
        let no_namespace = [string(""), vec![0, 0, 0, 1], string("allocation")].concat();
        assert!(matches!(ContextRequest::parse(&no_namespace), Err(Malformed::Invalid(_))));
        let many = [string(""), vec![0xff; 4]].concat();
        assert!(matches!(ContextRequest::parse(&many), Err(Malformed::TooBig(_))));
        assert!(matches!(parse_name(&[b'a'; 4097]), Err(Malformed::TooBig(_))));
        assert!(matches!(parse_name(&[0xff, 0xfe]), Err(Malformed::Invalid(_))));
        assert!(matches!(parse_name(b"a\0b"), Err(Malformed::Invalid(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_can_harm_the_parsers(data: Vec<u8>) {
            let _ = parse_name(&data);
            let _ = ContextRequest::parse(&data);
            if let Ok(request) = InfoRequest::parse(&data) {
                prop_assert_eq!(data.len(), 6 + request.name.len() + 2 * request.items.len());
            }
        }
    }
}
