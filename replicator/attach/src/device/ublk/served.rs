//! A device while it is served.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use futures::future::BoxFuture;
use nix::libc;

use super::make::{control, is_gone, stop_and_remove};
use super::request::SECTOR_BYTES;
use super::serve::Server;
use super::{blocking, refused};
use crate::backend::BLOCK_BYTES;
use crate::device::others::{others, wait_for_others};
use crate::device::{Device, DeviceError, Token};

/// A device of this door.
pub(super) struct UblkDevice {
    token: Token,
    id: u32,
    server: Server,
}

impl UblkDevice {
    pub(super) fn new(token: Token, id: u32, server: Server) -> Self {
        Self { token, id, server }
    }

    async fn stop(&self, holder: Option<File>) -> Result<(), DeviceError> {
        let id = self.id;
        let stopped = blocking("stop a device", move || {
            let stopped = control()?.stop(id);
            // Before the device is removed, which on older kernels waits for whoever has it open.
            drop(holder);
            match stopped {
                Err(error) if !is_gone(&error) => {
                    Err(refused(format!("cannot stop ublk device {id}"), error))
                }
                _ => Ok(()),
            }
        });
        stopped.await?;
        // Stopped, it has no request left; its thread ends by itself, or did not hear of it.
        self.server.abandon();
        self.server.join().await;
        Ok(())
    }
}

impl Device for UblkDevice {
    fn token(&self) -> &Token {
        &self.token
    }

    fn resize(&self, size_bytes: u64) -> BoxFuture<'_, Result<(), DeviceError>> {
        let (id, device) = (self.id, self.token.device.display().to_string());
        Box::pin(blocking("grow a device", move || {
            if !size_bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
                let what = format!("{device} to {size_bytes} bytes: whole blocks of 4096 only");
                return Err(refused(what, io::ErrorKind::InvalidInput.into()));
            }
            control()?.update_size(id, size_bytes / SECTOR_BYTES).map_err(|error| {
                let what = match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::EINVAL) => format!(
                        "{device} cannot grow while it is attached: that needs Linux 6.16; \
                         detach the volume and attach it again"
                    ),
                    _ => format!("{device} does not grow"),
                };
                refused(what, error)
            })
        }))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        let path = self.token.device.clone();
        Box::pin(async move {
            let holder = blocking("close a device", move || hold(&path)).await?;
            self.stop(holder).await?;
            let id = self.id;
            blocking("remove a device", move || stop_and_remove(&mut control()?, id)).await
        })
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.server.release())
    }

    fn fail(&self) -> BoxFuture<'_, ()> {
        self.server.fail();
        let id = self.id;
        Box::pin(async move {
            let removed = match self.stop(None).await {
                Ok(()) => {
                    // On kernels before 6.9 this lasts until nobody has it open; nobody waits.
                    std::thread::spawn(move || {
                        let removed = control().and_then(|mut c| stop_and_remove(&mut c, id));
                        if let Err(error) = removed {
                            tracing::warn!(%error, "a failed device stays behind");
                        }
                    });
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, "a device that should fail");
            }
        })
    }
}

/// Opens a device so that nobody can mount it any more. Nothing if it is gone. It is not flushed
/// here: a daemon that waits for its own device could not even be killed.
fn hold(path: &Path) -> Result<Option<File>, DeviceError> {
    let device = path.display().to_string();
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path) {
        Ok(file) => {
            wait_for_others(path).map_err(|by| DeviceError::Busy { device: device.clone(), by })?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let by = others(path).unwrap_or_else(|| "somebody holds it".to_owned());
            Err(DeviceError::Busy { device, by })
        }
        Err(error) => Err(refused(format!("cannot open {device}"), error)),
    }
}
