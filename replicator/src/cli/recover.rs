//! `lockstep volume recover`

use std::io::{self, BufRead, IsTerminal};

use lockstep_proto::v1;
use serde_json::json;

use super::connect::Server;
use super::failure::Failure;
use super::json;
use super::output::Output;

/// `volume recover`
pub(super) async fn recover(
    server: &Server,
    out: &Output,
    wanted: v1::RecoverVolumeRequest,
    yes: bool,
) -> Result<(), Failure> {
    let mut client = server.control().await?;
    if wanted.force && !yes {
        let look = v1::RecoverVolumeRequest { force: false, ..wanted.clone() };
        let losses = client.recover_volume(look).await?.into_inner().losses;
        confirm(&wanted, &losses)?;
    }
    let answer = client.recover_volume(wanted.clone()).await?.into_inner();
    let volume = answer.volume.as_ref().map(json::volume);
    let done = wanted.force || wanted.acknowledge;
    let value = json!({ "done": done, "losses": answer.losses, "volume": volume });
    out.answer(&value, || text(&wanted, &answer.losses))
}

fn text(wanted: &v1::RecoverVolumeRequest, losses: &[String]) -> String {
    let v1::RecoverVolumeRequest { name, replica, force, acknowledge } = wanted;
    if *acknowledge {
        return format!("volume {name}: what may have been lost is shown no more\n");
    }
    let list = list(losses);
    if *force {
        format!(
            "volume {name} goes on from the copy {replica}:\n{list}\
             next: lockstep attach {name}, then check what is on it\n"
        )
    } else {
        format!(
            "going on from the copy {replica} of volume {name} would mean:\n{list}\
             nothing was done; to do it:\n  \
             lockstep volume recover {name} --replica {replica} --force\n"
        )
    }
}

fn list(losses: &[String]) -> String {
    losses.iter().map(|loss| format!("  - {loss}\n")).collect()
}

/// Asks whoever sits there. Nobody there is a no.
fn confirm(wanted: &v1::RecoverVolumeRequest, losses: &[String]) -> Result<(), Failure> {
    let name = &wanted.name;
    if !io::stdin().is_terminal() {
        let why = "it gives up data: say --yes if nobody is there to be asked";
        return Err(Failure::usage(why));
    }
    // On standard error: the answer on standard output is what was done.
    Output::remark(&format!(
        "going on from the copy {} of volume {name} means:\n{}type the volume's name to do it \
         ({name}):",
        wanted.replica,
        list(losses)
    ));
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    if read.is_ok() && line.trim() == name {
        return Ok(());
    }
    Err(Failure::usage("nothing was done"))
}
