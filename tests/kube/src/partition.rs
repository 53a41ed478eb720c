//! A node is cut off and lives on: once its volume is taken over, its pod acknowledges nothing.

use crate::killed::{moved, wait_until_whole};
use crate::lab::{LIMIT, Lab};
use crate::process::wait_for;
use crate::writers::{Ack, Writers};
use anyhow::{Context as _, ensure};
use k8s_openapi::jiff::Timestamp;

const SPACE: &str = "partition";
const COPIES: usize = 3;
/// So many more writes elsewhere are waited for, before it is judged.
const MORE: usize = 100;

pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<String> {
    let mut writers = Writers::start(lab, SPACE, 1, "lockstep-3").await?;
    let pod = writers.pods.first().context("there is one")?.clone();
    let before = writers.whereabouts(lab, &pod).await?;
    wait_until_whole(lab, &before.volume, COPIES).await?;
    let number = lab.number_of(&before.node)?;
    let cut = Timestamp::now();
    lab.node(number)?.cut().await?;
    let seconds = moved(lab, &writers, &pod, &before, cut).await?;
    let goes_on = async || {
        let new = writers.acks(lab, &pod).into_iter().filter(|ack| ack.uid != before.uid);
        new.count() > MORE
    };
    ensure!(wait_for(LIMIT, goes_on).await, "the new pod does not go on");
    ensure!(lab.node(number)?.is_up(), "the node that was cut off is not alive");
    writers.note(lab);
    let (old, new): (Vec<Ack>, Vec<Ack>) =
        writers.acks(lab, &pod).into_iter().partition(|ack| ack.uid == before.uid);
    let last = old.iter().map(|ack| ack.at).max().context("the old pod wrote")?;
    let first = new.iter().map(|ack| ack.at).min().context("the new pod wrote")?;
    ensure!(last < first, "the old pod acknowledged a write at {last}, the new one at {first}");
    lab.node(number)?.heal().await?;
    lab.wait_until_ready(number).await?;
    wait_until_whole(lab, &before.volume, COPIES).await?;
    let acked = writers.verify(lab).await?;
    writers.end(lab).await?;
    let silent = last.until(first)?.total(k8s_openapi::jiff::Unit::Second)?;
    Ok(format!(
        "first write elsewhere {seconds:.1} s after the cut; the pod that lived on acknowledged \
         its last one {silent:.1} s before that; none of {acked} lost"
    ))
}
