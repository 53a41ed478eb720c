//! What other nodes ask of this one.

use std::sync::Arc;

use lockstep_core::id::Conn;
use lockstep_core::message::{Message, Request};

use super::path::ReplyPath;
use super::primary::Input;
use super::replicas::Replicas;
use super::{Primaries, locked};
use crate::net::{Connection, Service};

/// Requests of primaries on other nodes, for the replicas of this one.
pub(super) struct Incoming {
    pub(super) replicas: Arc<Replicas>,
    pub(super) primaries: Primaries,
}

impl Service for Incoming {
    fn request(&self, from: &Arc<Connection>, message: Message<Request>) {
        warn(&self.primaries, &message);
        self.replicas.submit(ReplyPath::Remote(Arc::clone(from)), message);
    }

    fn disconnected(&self, conn: Conn) {
        self.replicas.disconnected(conn);
    }
}

/// Tells the primary of this node that another one's claim stands in the record: it does before a
/// promise is asked for. One whose every request is under way would hear nothing of it until it
/// gives its sessions up; its guest must not wait for that to get its errors.
fn warn(primaries: &Primaries, message: &Message<Request>) {
    if matches!(message.body, Request::Promise { .. })
        && let Some(primary) = locked(primaries).get(&message.header.volume)
    {
        primary.send(Input::RecordChanged);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use lockstep_core::id::{Epoch, Gen, InstanceId, Lineage, ReplicaId, Seq, VolumeId};
    use lockstep_core::message::Header;
    use lockstep_core::primary::Phase;
    use tokio::sync::{mpsc, watch};
    use uuid::Uuid;

    use super::*;
    use crate::door::VolumeHandle;

    #[test]
    fn a_promise_asked_for_elsewhere_has_the_primary_here_look_at_its_record() {
        let volume = VolumeId(Uuid::from_u128(1));
        let (inputs, mut heard) = mpsc::unbounded_channel();
        let (_tell, phase) = watch::channel(Phase::Active);
        let size = Arc::new(AtomicU64::new(1 << 20));
        let instance = InstanceId(Uuid::from_u128(2));
        let handle = VolumeHandle::new(volume, instance, phase, inputs, size);
        let primaries = Primaries::default();
        locked(&primaries).insert(volume, handle);

        let message = |volume, body| {
            let header =
                Header { volume, epoch: Epoch(5), r#gen: Gen(5), seq: Seq(1), commit: Seq(0) };
            Message { header, body }
        };
        let promise = || Request::Promise {
            replica: ReplicaId(Uuid::from_u128(3)),
            lineage: Lineage(Uuid::from_u128(4)),
            parent: None,
            at_least: Epoch(0),
            instance,
            attach_seq: 1,
        };
        warn(&primaries, &message(volume, Request::Flush));
        warn(&primaries, &message(VolumeId(Uuid::from_u128(9)), promise()));
        assert!(heard.try_recv().is_err(), "nobody has claimed its volume");
        warn(&primaries, &message(volume, promise()));
        assert!(matches!(heard.try_recv(), Ok(Input::RecordChanged)));
    }
}
