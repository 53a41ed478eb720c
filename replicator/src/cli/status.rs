//! `lockstep status`

use std::io::IsTerminal as _;
use std::time::Duration;

use lockstep_proto::v1;

use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::{json, node, volume, words};

/// `status`
pub(super) async fn status(
    server: &Server,
    out: &Output,
    watch: bool,
    interval_ms: u64,
) -> Result<(), Failure> {
    let mut client = server.control().await?;
    loop {
        let answer = client.status(v1::StatusRequest {}).await.map_err(Failure::from);
        if !watch {
            let status = answer?.into_inner();
            return out.answer(&json::status(&status), || text(&status));
        }
        if !out.json && std::io::stdout().is_terminal() {
            // Back to the upper left corner, and everything below it gone.
            Output::print("\x1b[H\x1b[2J")?;
        }
        match answer {
            Ok(status) => {
                let status = status.into_inner();
                out.answer(&json::status(&status), || text(&status))?;
            }
            // A daemon that restarts is worth waiting for.
            Err(failure) => out.complain(&failure),
        }
        tokio::time::sleep(Duration::from_millis(interval_ms.max(100))).await;
    }
}

fn text(status: &v1::StatusResponse) -> String {
    let mut text = node::table(&status.nodes);
    text.push('\n');
    if status.volumes.is_empty() {
        text.push_str("no volumes; next: lockstep volume create NAME --size 10GiB\n");
        return text;
    }
    text.push_str(&volume::table(&status.volumes));
    let ailing: Vec<_> =
        status.volumes.iter().filter(|v| words::health(v.health) != "healthy").collect();
    if !ailing.is_empty() {
        text.push('\n');
    }
    for volume in ailing {
        text.push_str(&format!("{}: {}\n", volume.name, volume.health_reason));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cluster_says_what_to_do_next() {
        assert!(text(&v1::StatusResponse::default()).contains("lockstep volume create"));
    }

    #[test]
    fn ailing_volumes_are_explained() {
        let volume = |name: &str, health, reason: &str| v1::VolumeStatus {
            name: name.to_owned(),
            health: i32::from(health),
            health_reason: reason.to_owned(),
            ..Default::default()
        };
        let status = v1::StatusResponse {
            volumes: vec![
                volume("good", v1::Health::Healthy, "all is well"),
                volume("bad", v1::Health::Degraded, "n2 is lost"),
            ],
            ..Default::default()
        };
        let text = text(&status);
        assert!(text.contains("bad: n2 is lost") && !text.contains("all is well"), "{text}");
    }
}
