//! A volume that is in use somewhere is asked for elsewhere, or its node dies.

use super::Run;
use crate::calls::{repeated, settled};
use crate::leaks;
use crate::world::NODES;
use anyhow::{Context as _, bail};
use rand::RngExt as _;
use std::time::{Duration, Instant};
use tonic::Code;

impl Run {
    /// Another node asks for a volume that is in use: it is told who has it, and nothing happens
    /// to that one.
    pub(super) async fn steal(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let node = (volume.staged.context("it is staged")? + 1) % NODES;
        let request = volume.stage(&self.world.dir, node);
        std::fs::create_dir_all(&request.staging_target_path)?;
        let call = repeated(self.node(node)?, request, |mut client, request| async move {
            client.node_stage_volume(request).await
        });
        let stolen = settled("NodeStageVolume elsewhere", call).await?;
        self.refused("NodeStageVolume elsewhere", Code::FailedPrecondition, &stolen);
        // An orchestrator takes this refusal for final, and unstages nothing.
        let staging = volume.staging(&self.world.dir, node);
        for left in leaks::on_node(&self.world.dir, node, &volume.id, &staging) {
            self.violation(&format!("left after a refusal: {left}"));
        }
        self.unstage_on(&volume, node).await?;
        if volume.writable().is_empty() { Ok(()) } else { self.write(which).await }
    }

    /// A daemon or a driver is replaced, in good order or not, under whatever is in use.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        let node = self.rng.random_range(0..NODES);
        let (of_driver, in_order) = (self.rng.random_bool(0.3), self.rng.random_bool(0.5));
        self.note(&format!("  driver: {of_driver}, of node {node}, in good order: {in_order}"));
        self.told.kills += u32::from(!in_order);
        let node = &mut self.world.nodes[node];
        let process = if of_driver { &mut node.driver } else { &mut node.daemon };
        if in_order {
            process.stop().await?
        } else {
            process.kill().await?
        }
        process.start().await
    }

    /// The node of a volume dies; another one takes the volume over, with all that was written.
    /// The first one comes back, and is told to clean up.
    pub(super) async fn hand_over(&mut self, which: usize) -> anyhow::Result<()> {
        let mut volume = self.volumes[which].clone();
        let from = volume.staged.context("it is staged")?;
        // The last node owns the record store, without which nobody takes anything over.
        if from == NODES - 1 {
            return Ok(());
        }
        let to = NODES - 1;
        self.told.kills += 2;
        self.world.nodes[from].driver.kill().await?;
        self.world.nodes[from].daemon.kill().await?;
        let begin = Instant::now();
        let request = volume.stage(&self.world.dir, to);
        std::fs::create_dir_all(&request.staging_target_path)?;
        let call = repeated(self.node(to)?, request, |mut client, request| async move {
            client.node_stage_volume(request).await
        });
        // One with a single copy on the dead node has to wait for it.
        let wait =
            tokio::time::timeout(Duration::from_secs(10), settled("a take-over", call)).await;
        let took_ms = begin.elapsed().as_millis();
        self.world.nodes[from].daemon.start().await?;
        self.world.nodes[from].driver.start().await?;
        match wait {
            Ok(staged) => {
                if self.needed("a take-over", staged?).is_none() {
                    bail!("{} was not taken over", volume.id);
                }
                self.told.longest_handover_ms = self.told.longest_handover_ms.max(took_ms);
            }
            Err(_) => {
                self.note("  it waits for its only copy");
                let request = volume.stage(&self.world.dir, to);
                let call = repeated(self.node(to)?, request, |mut client, request| async move {
                    client.node_stage_volume(request).await
                });
                let staged = settled("a take-over that waited", call).await?;
                if let Err(status) = staged {
                    // The node was back first, and has it again.
                    self.note(&format!("  {}", status.message()));
                    return self.unstage_on(&volume, to).await;
                }
            }
        }
        self.told.handovers += 1;
        self.note(&format!("  taken over after {took_ms} ms"));
        for target in std::mem::take(&mut volume.published) {
            self.unpublish_on(&volume.id, from, target).await?;
        }
        self.unstage_on(&volume, from).await?;
        volume.staged = Some(to);
        self.volumes[which] = volume;
        self.publish(which).await
    }
}
