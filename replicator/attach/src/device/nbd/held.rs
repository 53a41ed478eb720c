//! Devices that a new daemon has got hold of, but does not serve yet.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::control::{Control, reconnect};

/// How long a device is tried to be got hold of. The driver has long noticed that the daemon before
/// this one is dead, if it is; and if not, the volume's own take-over says so.
const HOLD_MAX: Duration = Duration::from_millis(200);

/// This side's sockets of such devices, by the devices' names. Clones are the same.
///
/// Nobody reads them: what the kernel sends waits there. So nothing is begun, and what is lost with
/// a socket that is dropped is sent again to the next one.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    sockets: Arc<Mutex<BTreeMap<String, UnixStream>>>,
}

impl Held {
    /// Gives a device a new socket, if its old one is dead.
    pub(super) async fn get<C: Control>(&self, name: &str, control: &C) {
        match timeout(HOLD_MAX, reconnect(control)).await {
            Ok(Ok(socket)) => drop(self.lock().insert(name.to_owned(), socket)),
            Ok(Err(error)) => tracing::debug!(name, %error, "it takes no socket yet"),
            Err(_) => tracing::debug!(name, "somebody seems to serve it still"),
        }
    }

    /// The socket of a device, for who serves it or ends it.
    pub(super) fn take(&self, name: &str) -> Option<UnixStream> {
        self.lock().remove(name)
    }

    /// It is changed by single inserts and removals: whole even after a panic.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, UnixStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read as _, Write as _};

    use super::*;

    /// A driver in which the old daemon's socket dies after some offers.
    #[derive(Clone)]
    struct Driver {
        refusals: Arc<Mutex<u32>>,
        theirs: Arc<Mutex<Option<UnixStream>>>,
    }

    impl Driver {
        fn new(refusals: u32) -> Self {
            Self { refusals: Arc::new(Mutex::new(refusals)), theirs: Arc::default() }
        }
    }

    impl Control for Driver {
        fn reconnect(&self) -> io::Result<Option<UnixStream>> {
            let mut refusals = self.refusals.lock().unwrap();
            if *refusals > 0 {
                *refusals -= 1;
                return Ok(None);
            }
            let (ours, theirs) = UnixStream::pair()?;
            *self.theirs.lock().unwrap() = Some(theirs);
            Ok(Some(ours))
        }

        fn disconnect(&self) -> io::Result<()> {
            Ok(())
        }

        fn resize(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_is_sent_to_a_held_device_waits_for_who_serves_it() {
        let (held, driver) = (Held::default(), Driver::new(2));
        held.get("a", &driver).await;
        let mut kernel = driver.theirs.lock().unwrap().take().unwrap();
        kernel.write_all(b"sent again").unwrap();
        assert!(held.take("b").is_none(), "it is another's");
        let mut socket = held.clone().take("a").unwrap();
        let mut sent = [0; 10];
        socket.read_exact(&mut sent).unwrap();
        assert_eq!(&sent, b"sent again");
        assert!(held.take("a").is_none(), "it has one server");
    }

    #[tokio::test]
    async fn a_device_that_somebody_serves_is_left_to_the_take_over() {
        let (held, driver) = (Held::default(), Driver::new(u32::MAX));
        let limit = timeout(10 * HOLD_MAX, held.get("a", &driver));
        limit.await.expect("it gives up");
        assert!(held.take("a").is_none());
    }

    #[tokio::test]
    async fn the_kernel_notices_when_a_held_device_is_given_up() {
        let (held, driver) = (Held::default(), Driver::new(0));
        held.get("a", &driver).await;
        let mut kernel = driver.theirs.lock().unwrap().take().unwrap();
        drop(held);
        assert_eq!(kernel.read(&mut [0]).unwrap(), 0);
    }
}
