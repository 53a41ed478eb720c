//! Bodies of frames about the connection. Those of the handshake may grow at their end only.

use super::codec::{Malformed, Reader, Writer};
use super::{Kind, LinkFrame, RejectReason};

pub(super) fn write(frame: &LinkFrame, out: &mut Writer) -> Kind {
    match frame {
        LinkFrame::Hello { min_version, max_version, cluster, node, process } => {
            out.u16(*min_version);
            out.u16(*max_version);
            out.uuid(*cluster);
            out.u64(*process);
            out.node(node);
            Kind::Hello
        }
        LinkFrame::Welcome { version, node, process } => {
            out.u16(*version);
            out.u64(*process);
            out.node(node);
            Kind::Welcome
        }
        LinkFrame::Reject { reason } => {
            write_reason(*reason, out);
            Kind::Reject
        }
        LinkFrame::Ping { id } => {
            out.u64(*id);
            Kind::Ping
        }
        LinkFrame::Pong { id } => {
            out.u64(*id);
            Kind::Pong
        }
    }
}

pub(super) fn read(kind: Kind, reader: &mut Reader<'_>) -> Result<LinkFrame, Malformed> {
    Ok(match kind {
        Kind::Hello => {
            let (min_version, max_version) = (reader.u16()?, reader.u16()?);
            if min_version > max_version {
                return Err(Malformed("the oldest version is above the newest"));
            }
            let (cluster, process) = (reader.uuid()?, reader.u64()?);
            let node = reader.node()?;
            LinkFrame::Hello { min_version, max_version, cluster, node, process }
        }
        Kind::Welcome => {
            let (version, process) = (reader.u16()?, reader.u64()?);
            LinkFrame::Welcome { version, node: reader.node()?, process }
        }
        Kind::Reject => LinkFrame::Reject { reason: read_reason(reader)? },
        Kind::Ping => LinkFrame::Ping { id: reader.u64()? },
        Kind::Pong => LinkFrame::Pong { id: reader.u64()? },
        _ => return Err(Malformed("not about the connection")),
    })
}

/// A code and two versions, which are zero unless the code is that of a version.
fn write_reason(reason: RejectReason, out: &mut Writer) {
    let (code, min, max) = match reason {
        RejectReason::Version { min, max } => (1, min, max),
        RejectReason::Cluster => (2, 0, 0),
        RejectReason::Duplicate => (3, 0, 0),
        RejectReason::Shutdown => (4, 0, 0),
        RejectReason::WrongNode => (5, 0, 0),
        RejectReason::SameNode => (6, 0, 0),
        RejectReason::Unknown(code) => (code, 0, 0),
    };
    out.u8(code);
    out.u16(min);
    out.u16(max);
}

fn read_reason(reader: &mut Reader<'_>) -> Result<RejectReason, Malformed> {
    let (code, min, max) = (reader.u8()?, reader.u16()?, reader.u16()?);
    Ok(match code {
        1 => RejectReason::Version { min, max },
        2 => RejectReason::Cluster,
        3 => RejectReason::Duplicate,
        4 => RejectReason::Shutdown,
        5 => RejectReason::WrongNode,
        6 => RejectReason::SameNode,
        code => RejectReason::Unknown(code),
    })
}
