//! `lockstep attach` and `lockstep detach`

use lockstep_proto::v1;
use serde_json::json as value;
use tokio::signal::unix::{SignalKind, signal};

use super::args::Attach;
use super::connect::Server;
use super::failure::Failure;
use super::json;
use super::output::Output;

/// Longest `--wait`.
const MAX_WAIT_S: f64 = 3600.0;

/// `attach`
pub(super) async fn attach(server: &Server, out: &Output, wanted: Attach) -> Result<(), Failure> {
    let request = v1::AttachRequest {
        name: wanted.name.clone(),
        device: device(&wanted)?,
        node: wanted.node,
        force: wanted.force,
        wait_ms: wait_ms(wanted.wait)?,
        ..Default::default()
    };
    // Listened for before the volume is attached, so that no Ctrl-C leaves it behind.
    let mut stop = if wanted.export { Some(Stop::listen()?) } else { None };
    let attached = server.control().await?.attach(request).await?.into_inner();
    let value = value!({
        "name": wanted.name,
        "node": attached.node,
        "epoch": attached.epoch,
        "nbd_uri": attached.nbd_uri,
        "nbd_uri_tcp": attached.nbd_uri_tcp,
        "device": attached.device.as_ref().map(json::device),
    });
    out.answer(&value, || match &attached.device {
        Some(device) => device.path.clone(),
        None => attached.nbd_uri.clone(),
    })?;
    if let Some(uri) = attached.nbd_uri_tcp.as_ref().filter(|_| !out.json) {
        Output::remark(&format!("over TCP: {uri}"));
    }
    if let Some(stop) = &mut stop {
        Output::remark(&format!(
            "serving {} on {}; Ctrl-C detaches it",
            wanted.name, attached.node
        ));
        stop.wait().await;
        let request = v1::DetachRequest { name: wanted.name.clone(), force: true, only_node: None };
        server.control().await?.detach(request).await?;
        Output::remark(&format!("detached {}", wanted.name));
    }
    Ok(())
}

/// The block device that is asked for, if one is.
fn device(wanted: &Attach) -> Result<Option<v1::DeviceRequest>, Failure> {
    let implied = wanted.door.is_some() || wanted.ro || wanted.fs.is_some();
    if !(wanted.device || implied || wanted.mount.is_some()) {
        return Ok(None);
    }
    if wanted.fs.is_some() && wanted.ro {
        return Err(Failure::usage("--fs makes a file system, --ro refuses writes: give one"));
    }
    let mount_dir = match &wanted.mount {
        None => String::new(),
        // The daemon's working directory is not the caller's.
        Some(dir) => std::path::absolute(dir)
            .map_err(|e| Failure::usage(format!("--mount {dir}: {e}")))?
            .display()
            .to_string(),
    };
    Ok(Some(v1::DeviceRequest {
        door: wanted.door.clone().unwrap_or_default(),
        read_only: wanted.ro,
        fs: wanted.fs.clone().unwrap_or_default(),
        any_fs: false,
        mount_dir,
        mount_options: wanted.mount_option.clone(),
    }))
}

/// `detach`
pub(super) async fn detach(
    server: &Server,
    out: &Output,
    name: String,
    force: bool,
) -> Result<(), Failure> {
    let request = v1::DetachRequest { name: name.clone(), force, only_node: None };
    let answer = server.control().await?.detach(request).await?.into_inner();
    let value = value!({ "name": name, "was_attached": answer.was_attached });
    out.answer(&value, || match answer.was_attached {
        true => format!("volume {name} is detached"),
        false => format!("volume {name} was not attached"),
    })
}

fn wait_ms(seconds: f64) -> Result<u64, Failure> {
    if !(0.0..=MAX_WAIT_S).contains(&seconds) {
        let message = format!("--wait {seconds}: 0 to {MAX_WAIT_S} seconds are allowed");
        return Err(Failure::usage(message));
    }
    let wait = std::time::Duration::from_secs_f64(seconds);
    // 0 means "the default" to the daemon.
    Ok(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1))
}

/// The signals that end `--export`.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|e| Failure::local(format!("cannot listen for signals: {e}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded_and_never_the_default_by_accident() {
        assert_eq!(wait_ms(0.0), Ok(1));
        assert_eq!(wait_ms(2.5), Ok(2500));
        assert!(wait_ms(-1.0).is_err() && wait_ms(f64::NAN).is_err() && wait_ms(1e9).is_err());
    }
}
