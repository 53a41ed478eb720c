//! Volumes made, found again, listed, changed, made larger and removed.

use super::{Run, blocking};
use crate::calls::repeated;
use crate::faults::At;
use crate::model::{Kind, Volume, capability, wanted};
use crate::{data, leaks, process};
use anyhow::{Context as _, bail};
use lockstep_proto::csi;
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use std::time::Duration;
use tonic::Code;

/// How long what was removed may take to be gone: what was taken for a volume by a call that was
/// broken off may be wanted by the next one, and is kept for five minutes.
const GONE_LIMIT: Duration = Duration::from_secs(400);
/// By how much volumes grow: more than a file system may leave of its device.
const MORE: i64 = 24 << 20;
/// Up to how often the size at which one begins.
const TIMES_MAX: i64 = 6;

impl Run {
    /// A name that was never used. There are all sorts.
    pub(super) fn fresh_name(&mut self) -> String {
        self.next += 1;
        match self.next % 3 {
            0 => format!("Datenträger {}", self.next),
            1 => format!("pvc-{}", self.next),
            _ => format!("{}-{}", "x".repeat(100), self.next),
        }
    }

    pub(super) async fn create(&mut self) -> anyhow::Result<()> {
        let kind = *Kind::ALL.choose(&mut self.rng).context("there are kinds")?;
        let repl = self.rng.random_range(1..=3);
        let name = self.fresh_name();
        let request = wanted(&name, kind, repl, kind.bytes());
        let call = repeated(self.controller(), request.clone(), |mut client, request| async move {
            client.create_volume(request).await
        });
        let made = self.call("CreateVolume", At::Controller, call).await?;
        let Some(answer) = self.needed("CreateVolume", made) else { return Ok(()) };
        let volume = answer.volume.context("CreateVolume tells no volume")?;
        if volume.capacity_bytes < kind.bytes() {
            self.violation(&format!("{name} has only {} bytes", volume.capacity_bytes));
        }
        self.told.volumes += 1;
        self.volumes.push(Volume::new(kind, request, volume));
        Ok(())
    }

    /// The same request finds the same volume, and one that differs is refused.
    pub(super) async fn create_again(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let larger = csi::CapacityRange { required_bytes: 1 << 40, limit_bytes: 0 };
        let other =
            csi::CreateVolumeRequest { capacity_range: Some(larger), ..volume.wanted.clone() };
        for request in [volume.wanted, other] {
            let is_same = request.capacity_range != Some(larger);
            let call = repeated(self.controller(), request, |mut client, request| async move {
                client.create_volume(request).await
            });
            let made = self.call("CreateVolume again", At::Controller, call).await?;
            if !is_same {
                self.refused("a larger one", Code::AlreadyExists, &made);
            } else if let Some(answer) = self.needed("CreateVolume again", made) {
                let found = answer.volume.context("CreateVolume tells no volume")?;
                let same = (&volume.id, &volume.context, volume.bytes);
                if (&found.volume_id, &found.volume_context, found.capacity_bytes) != same {
                    self.violation(&format!("{} became {found:?}", volume.id));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn delete(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let request = csi::DeleteVolumeRequest { volume_id: volume.id, ..Default::default() };
        let call = repeated(self.controller(), request, |mut client, request| async move {
            client.delete_volume(request).await
        });
        let deleted = self.call("DeleteVolume", At::Controller, call).await?;
        if volume.staged.is_some() {
            self.refused("DeleteVolume of one in use", Code::FailedPrecondition, &deleted);
        } else if self.needed("DeleteVolume", deleted).is_some() {
            self.volumes.remove(which);
        }
        Ok(())
    }

    /// All volumes and snapshots are told, each once, page by page.
    pub(super) async fn list(&mut self) -> anyhow::Result<()> {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let request = csi::ListVolumesRequest { max_entries: 3, starting_token: token };
            let call = repeated(self.controller(), request, |mut client, request| async move {
                client.list_volumes(request).await
            });
            let Some(page) = self.plain("ListVolumes", call).await? else { return Ok(()) };
            found.extend(page.entries.into_iter().filter_map(|e| e.volume).map(|v| v.volume_id));
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        let mut known: Vec<_> = self.volumes.iter().map(|volume| volume.id.clone()).collect();
        known.sort();
        if known != found {
            self.violation(&format!("ListVolumes tells {found:?}, and there are {known:?}"));
        }
        self.list_snapshots().await
    }

    pub(super) async fn modify(&mut self, which: usize) -> anyhow::Result<()> {
        let repl = self.rng.random_range(1..=3u32).to_string();
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: self.volumes[which].id.clone(),
            mutable_parameters: std::iter::once(("repl".to_owned(), repl)).collect(),
            ..Default::default()
        };
        let call = repeated(self.controller(), request, |mut client, request| async move {
            client.controller_modify_volume(request).await
        });
        let modified = self.call("ControllerModifyVolume", At::Controller, call).await?;
        self.needed("ControllerModifyVolume", modified);
        Ok(())
    }

    /// Makes a volume larger, and then what shows it on its node, as a resizer and a kubelet do.
    pub(super) async fn expand(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        if volume.bytes >= TIMES_MAX * volume.kind.bytes() {
            return Ok(());
        }
        let wanted = csi::CapacityRange { required_bytes: volume.bytes + MORE, limit_bytes: 0 };
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(wanted),
            volume_capability: Some(capability(volume.kind)),
            ..Default::default()
        };
        let call = repeated(self.controller(), request, |mut client, request| async move {
            client.controller_expand_volume(request).await
        });
        let grown = self.call("ControllerExpandVolume", At::Controller, call).await?;
        let Some(answer) = self.needed("ControllerExpandVolume", grown) else { return Ok(()) };
        if answer.capacity_bytes < wanted.required_bytes {
            self.violation(&format!("{} has only {} bytes", volume.id, answer.capacity_bytes));
        }
        self.told.expansions += 1;
        self.volumes[which].bytes = answer.capacity_bytes;
        match volume.staged {
            None => Ok(()),
            Some(node) => {
                self.expand_on(which, node).await?;
                self.verify(which).await
            }
        }
    }

    async fn expand_on(&mut self, which: usize, node: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let staging = volume.staging(&self.world.dir, node);
        // A block device is only to be seen where it is published.
        let place = volume.published.first().map(|place| place.display().to_string());
        let place = match place {
            Some(place) => place,
            None if volume.is_block() => return Ok(()),
            None => staging.clone(),
        };
        let request = csi::NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: place,
            staging_target_path: staging,
            capacity_range: Some(csi::CapacityRange {
                required_bytes: volume.bytes,
                limit_bytes: 0,
            }),
            volume_capability: Some(capability(volume.kind)),
            ..Default::default()
        };
        let call = repeated(self.node(node)?, request, |mut client, request| async move {
            client.node_expand_volume(request).await
        });
        let grown = self.call("NodeExpandVolume", At::Node(node), call).await?;
        if !may_grow(volume.kind) {
            // The kernel lets nobody do it here: that is said.
            self.refused("NodeExpandVolume of ext4 here", Code::FailedPrecondition, &grown);
            self.volumes[which].lags = true;
        } else {
            self.needed("NodeExpandVolume", grown);
        }
        Ok(())
    }

    /// What is seen of a volume has its size.
    pub(super) async fn check_size(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let Some(target) = volume.published.first().cloned() else { return Ok(()) };
        let block = volume.is_block();
        let size = match blocking(move || data::size(&target, block)).await? {
            Ok(size) => size,
            Err(error) => {
                self.violation(&format!("{} tells no size: {error}", volume.id));
                return Ok(());
            }
        };
        let bytes = u64::try_from(volume.bytes)?;
        let is_right = match volume.seen {
            _ if block => size == bytes,
            // Some of it goes to the file system itself.
            Some((seen, then)) if !volume.lags && may_grow(volume.kind) => {
                size.saturating_sub(seen) >= u64::try_from(volume.bytes - then)? / 2
            }
            _ => size <= bytes,
        };
        if !is_right {
            let words = format!(
                "{} has {bytes} bytes, {size} are seen, and {:?} were before",
                volume.id, volume.seen
            );
            self.violation(&words);
        }
        if !volume.lags {
            self.volumes[which].seen = Some((size, volume.bytes));
        }
        Ok(())
    }

    /// What the driver tells of a volume's size is what is seen.
    pub(super) async fn ask_for_stats(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let (Some(target), Some(node)) = (volume.published.last().cloned(), volume.staged) else {
            return Ok(());
        };
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: target.display().to_string(),
            ..Default::default()
        };
        let call = repeated(self.node(node)?, request, |mut client, request| async move {
            client.node_get_volume_stats(request).await
        });
        let told = self.plain("NodeGetVolumeStats", call).await?;
        let total = told.and_then(|told| told.usage.first().map(|usage| usage.total));
        let block = volume.is_block();
        let seen = i64::try_from(blocking(move || data::size(&target, block)).await??)?;
        if total != Some(seen) {
            self.violation(&format!("{} has {seen} bytes, and {total:?} are told", volume.id));
        }
        Ok(())
    }

    /// Removes all volumes and snapshots, as an orchestrator does, in any order.
    pub(crate) async fn remove_all(&mut self) -> anyhow::Result<()> {
        while self.volumes.len() + self.snapshots.len() > 0 {
            let volume_next = self.snapshots.is_empty() || self.rng.random_bool(0.5);
            match self.volumes.len().checked_sub(1).filter(|_| volume_next) {
                None if self.snapshots.is_empty() => {}
                None => self.delete_snapshot(0).await?,
                Some(which) => {
                    while !self.volumes[which].published.is_empty() {
                        self.unpublish(which).await?;
                    }
                    if self.volumes[which].staged.is_some() {
                        self.unstage(which).await?;
                    }
                    self.delete(which).await?;
                }
            }
            if self.violations.len() > 20 {
                bail!("too much goes wrong");
            }
        }
        Ok(())
    }

    /// Waits until nothing is left of all volumes.
    pub(crate) async fn nothing_left(&mut self) -> anyhow::Result<()> {
        let dir = self.world.dir.clone();
        process::wait_for(GONE_LIMIT, || leaks::of(&dir).is_empty()).await;
        for left in leaks::of(&dir) {
            self.violation(&format!("left when all was removed: {left}"));
        }
        self.list().await
    }
}

/// Whether what is on a volume can grow while it is mounted, and no ext4 does otherwise: the kernel
/// wants CAP_SYS_RESOURCE for that one, which some machines withhold also from root.
fn may_grow(kind: Kind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    kind != Kind::Ext4 || set.is_some_and(|set| set & (1 << 24) != 0)
}
