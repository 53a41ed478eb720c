//! `lockstep volume scrub`

use std::process::ExitCode;
use std::time::Duration;

use lockstep_proto::v1;

use super::connect::Server;
use super::failure::Failure;
use super::json;
use super::output::Output;
use crate::config::size::Size;

const PAUSE: Duration = Duration::from_millis(500);

/// `volume scrub`
pub(super) async fn scrub(
    server: &Server,
    out: &Output,
    name: String,
    wait: bool,
) -> Result<ExitCode, Failure> {
    let mut client = server.control().await?;
    let begun = client.scrub_volume(v1::ScrubVolumeRequest { name: name.clone() }).await?;
    let mut volume = told(begun.into_inner().volume)?;
    while wait && !is_over(&volume)? {
        tokio::time::sleep(PAUSE).await;
        let asked = client.get_volume(v1::GetVolumeRequest { name: name.clone() }).await?;
        volume = told(asked.into_inner().volume)?;
    }
    out.answer(&json::volume(&volume), || {
        let result = volume.scrub.as_ref().map_or_else(String::new, words);
        let next =
            if wait { String::new() } else { format!("next: lockstep volume show {name}\n") };
        format!("volume {name}: {result}\n{next}")
    })?;
    let well = |scrub: v1::Scrub| {
        let whole = scrub.done_bytes == scrub.total_bytes;
        whole && scrub.unreadable_blocks == 0 && scrub.diverged_blocks == 0
    };
    let failed = wait && !volume.scrub.is_some_and(well);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Is the scrub over? Fails if nobody knows of it any more.
fn is_over(volume: &v1::VolumeStatus) -> Result<bool, Failure> {
    let over = volume.scrub.map(|scrub| scrub.ended_ms.is_some());
    over.ok_or_else(|| {
        let name = &volume.name;
        Failure::local(format!("volume {name} was detached or taken over before it was scrubbed"))
    })
}

fn told(volume: Option<v1::VolumeStatus>) -> Result<v1::VolumeStatus, Failure> {
    volume.ok_or_else(|| Failure::local("the daemon did not tell the volume's status"))
}

/// How a scrub goes, or went.
pub(super) fn words(scrub: &v1::Scrub) -> String {
    let v1::Scrub { done_bytes, total_bytes, .. } = *scrub;
    let whole = done_bytes >= total_bytes;
    let mut text = match (scrub.ended_ms, whole) {
        (None, _) => {
            let percent = match u128::from(total_bytes) {
                0 => 0,
                total => (u128::from(done_bytes) * 100 / total).min(100),
            };
            format!("a scrub is under way, {percent} % of {}", Size(total_bytes))
        }
        (Some(ms), true) => {
            format!("scrubbed {} s ago, in {} s", ms / 1000, scrub.took_ms.div_ceil(1000))
        }
        (Some(ms), false) => format!(
            "a scrub was broken off {} s ago after {} of {}",
            ms / 1000,
            Size(done_bytes),
            Size(total_bytes)
        ),
    };
    text.push_str(match (scrub.mended_blocks, scrub.unreadable_blocks + scrub.diverged_blocks) {
        (0, 0) => ": no bad block was found",
        _ => ":",
    });
    let mut found = Vec::new();
    if scrub.mended_blocks > 0 {
        found.push(format!("{} bad blocks mended", scrub.mended_blocks));
    }
    if scrub.unreadable_blocks > 0 {
        let n = scrub.unreadable_blocks;
        found.push(format!(
            "{n} that no copy can give: restore what was in them, and write it again"
        ));
    }
    if scrub.diverged_blocks > 0 {
        let n = scrub.diverged_blocks;
        found.push(format!("{n} in which copies differ: see the log of the node, and report it"));
    }
    if !found.is_empty() {
        text.push(' ');
        text.push_str(&found.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_tells_how_it_goes_and_went() {
        let running = v1::Scrub { done_bytes: 1 << 20, total_bytes: 4 << 20, ..Default::default() };
        assert_eq!(words(&running), "a scrub is under way, 25 % of 4 MiB: no bad block was found");
        let done = v1::Scrub { done_bytes: 4 << 20, ended_ms: Some(2100), took_ms: 3, ..running };
        assert_eq!(words(&done), "scrubbed 2 s ago, in 1 s: no bad block was found");
        let bad = v1::Scrub { mended_blocks: 3, unreadable_blocks: 1, ..done };
        assert!(words(&bad).contains(": 3 bad blocks mended; 1 that no copy can give"));
        let cut = v1::Scrub { done_bytes: 1 << 20, ..done };
        assert!(words(&cut).contains("broken off 2 s ago after 1 MiB of 4 MiB"));
    }
}
