//! Volumes on nodes: staged, published, written, read, and taken away again.

use super::{Run, blocking};
use crate::calls::repeated;
use crate::data;
use crate::faults::At;
use crate::model::Volume;
use crate::world::NODES;
use anyhow::{Context as _, bail};
use lockstep_proto::csi;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _};
use std::path::PathBuf;

impl Run {
    pub(super) async fn stage(&mut self, which: usize) -> anyhow::Result<()> {
        let node = self.rng.random_range(0..NODES);
        self.stage_on(which, node).await
    }

    pub(super) async fn stage_on(&mut self, which: usize, node: usize) -> anyhow::Result<()> {
        let request = self.volumes[which].stage(&self.world.dir, node);
        std::fs::create_dir_all(&request.staging_target_path)?;
        let call = repeated(self.node(node)?, request, |mut client, request| async move {
            client.node_stage_volume(request).await
        });
        let staged = self.call("NodeStageVolume", At::Node(node), call).await?;
        if self.needed("NodeStageVolume", staged).is_some() {
            self.volumes[which].staged = Some(node);
            self.volumes[which].lags = false;
        }
        Ok(())
    }

    pub(super) async fn unstage(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let node = volume.staged.context("it is staged")?;
        self.unstage_on(&volume, node).await?;
        self.volumes[which].staged = None;
        Ok(())
    }

    pub(super) async fn unstage_on(&mut self, volume: &Volume, node: usize) -> anyhow::Result<()> {
        let staging_target_path = volume.staging(&self.world.dir, node);
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: staging_target_path.clone(),
        };
        let call = repeated(self.node(node)?, request, |mut client, request| async move {
            client.node_unstage_volume(request).await
        });
        let unstaged = self.call("NodeUnstageVolume", At::Node(node), call).await?;
        if self.needed("NodeUnstageVolume", unstaged).is_none() {
            bail!("{} stays staged", volume.id);
        }
        // Fails if something is in it, or mounted on it.
        std::fs::remove_dir(&staging_target_path).context("the staging path after unstaging")
    }

    pub(super) async fn publish(&mut self, which: usize) -> anyhow::Result<()> {
        let mut volume = self.volumes[which].clone();
        let node = volume.staged.context("it is staged")?;
        self.next += 1;
        let target = self.world.dir.join("pods").join(self.next.to_string());
        std::fs::create_dir_all(self.world.dir.join("pods"))?;
        if !self.is_calm && !volume.is_block() && self.rng.random_bool(0.2) {
            volume.read_only.insert(target.clone());
        }
        let request = volume.publish(&self.world.dir, node, &target);
        let call = repeated(self.node(node)?, request, |mut client, request| async move {
            client.node_publish_volume(request).await
        });
        let published = self.call("NodePublishVolume", At::Node(node), call).await?;
        if self.needed("NodePublishVolume", published).is_some() {
            self.volumes[which].read_only = volume.read_only;
            self.volumes[which].published.push(target);
            self.verify(which).await?;
        }
        Ok(())
    }

    pub(super) async fn unpublish(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let node = volume.staged.context("it is staged")?;
        let place = self.rng.random_range(0..volume.published.len());
        let target = self.volumes[which].published.remove(place);
        self.unpublish_on(&volume.id, node, target).await
    }

    pub(super) async fn unpublish_on(
        &mut self,
        id: &str,
        node: usize,
        target: PathBuf,
    ) -> anyhow::Result<()> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: target.display().to_string(),
        };
        let call = repeated(self.node(node)?, request, |mut client, request| async move {
            client.node_unpublish_volume(request).await
        });
        let unpublished = self.call("NodeUnpublishVolume", At::Node(node), call).await?;
        if self.needed("NodeUnpublishVolume", unpublished).is_none() {
            bail!("{id} stays at {}", target.display());
        }
        if target.exists() {
            self.violation(&format!("{} is left after NodeUnpublishVolume", target.display()));
        }
        Ok(())
    }

    pub(super) async fn write(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let target = volume.writable().choose(&mut self.rng).context("it is published")?.clone();
        let (number, block) = (self.rng.next_u64(), volume.is_block());
        let writing = tokio::spawn(blocking(move || data::write(&target, block, number)));
        // A daemon that is replaced meanwhile is a pause, never an error.
        if !self.is_calm && self.rng.random_bool(0.1) {
            let node = volume.staged.context("it is staged")?;
            self.note("  kill of the daemon under the write");
            self.told.kills += 1;
            let daemon = &mut self.world.nodes[node].daemon;
            daemon.kill().await?;
            daemon.start().await?;
        }
        match writing.await?? {
            Ok(()) => self.volumes[which].legal = vec![Some(number)],
            Err(error) => self.violation(&format!("a write to {} failed: {error}", volume.id)),
        }
        Ok(())
    }

    /// What is on a volume is what may be there, wherever it is published.
    pub(super) async fn verify(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let block = volume.is_block();
        for target in volume.published {
            let (place, wanted) = (target.clone(), volume.read_only.contains(&target));
            if !block && blocking(move || data::is_read_only(&place)).await?? != wanted {
                let place = target.display();
                self.violation(&format!("read-only: wanted is {wanted}, and {place} is not so"));
            }
            let legal = volume.legal.clone();
            match blocking(move || data::look(&target, block, &legal)).await? {
                Ok(None) => {}
                Ok(Some(wrong)) => self.violation(&format!("{}: {wrong}", volume.id)),
                Err(error) => self.violation(&format!("a read of {} failed: {error}", volume.id)),
            }
        }
        self.check_size(which).await?;
        self.ask_for_stats(which).await
    }
}
