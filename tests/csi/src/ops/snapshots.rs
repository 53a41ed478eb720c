//! Snapshots, and volumes that begin with one or with another volume.

use super::{Run, blocking};
use crate::calls::repeated;
use crate::data;
use crate::faults::At;
use crate::model::{Kind, Snapshot, Volume, wanted};
use anyhow::Context as _;
use lockstep_proto::csi;
use lockstep_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _};
use tokio::task::JoinHandle;
use tonic::Code;

/// How much larger than its source a volume may be made.
const MORE: i64 = 24 << 20;

/// A write that is under way.
struct Writing {
    number: u64,
    done: JoinHandle<anyhow::Result<std::io::Result<()>>>,
}

impl Run {
    /// Begins to write to a volume, if it can be, now and then.
    fn begin_writing(&mut self, volume: &Volume) -> Option<Writing> {
        let target = volume.writable().choose(&mut self.rng)?.clone();
        if self.rng.random_bool(0.3) {
            return None;
        }
        let (number, block) = (self.rng.next_u64(), volume.is_block());
        let done = tokio::spawn(blocking(move || data::write(&target, block, number)));
        Some(Writing { number, done })
    }

    async fn end_writing(&mut self, which: usize, writing: Writing) -> anyhow::Result<()> {
        match writing.done.await?? {
            Ok(()) => self.volumes[which].legal = vec![Some(writing.number)],
            Err(error) => {
                let id = &self.volumes[which].id;
                let words = format!("a write to {id} beside a snapshot failed: {error}");
                self.violation(&words);
            }
        }
        Ok(())
    }

    /// A snapshot, also of a volume that is being written. It has all that was acknowledged before
    /// it was asked for; of what was under way it may have anything.
    pub(super) async fn snapshot(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let wanted = csi::CreateSnapshotRequest {
            source_volume_id: volume.id.clone(),
            name: self.fresh_name(),
            ..Default::default()
        };
        let writing = self.begin_writing(&volume);
        let mut legal = volume.legal.clone();
        legal.extend(writing.as_ref().map(|writing| Some(writing.number)));
        let call = repeated(self.controller(), wanted.clone(), |mut client, request| async move {
            client.create_snapshot(request).await
        });
        let taken = self.call("CreateSnapshot", At::Controller, call).await?;
        if let Some(writing) = writing {
            self.end_writing(which, writing).await?;
        }
        let Some(answer) = self.needed("CreateSnapshot", taken) else { return Ok(()) };
        let told = answer.snapshot.context("CreateSnapshot tells no snapshot")?;
        let is_right = told.source_volume_id == volume.id
            && told.size_bytes == volume.bytes
            && told.ready_to_use
            && told.creation_time.is_some();
        if !is_right {
            self.violation(&format!("of {} with {} bytes: {told:?}", volume.id, volume.bytes));
        }
        self.told.snapshots += 1;
        self.snapshots.push(Snapshot { told, wanted, kind: volume.kind, legal });
        Ok(())
    }

    /// The same request finds the same snapshot, and one of another volume is refused.
    pub(super) async fn snapshot_again(&mut self, which: usize) -> anyhow::Result<()> {
        let snapshot = self.snapshots[which].clone();
        let source = &snapshot.wanted.source_volume_id;
        let there = self.volumes.iter().any(|volume| volume.id == *source);
        let another = self.volumes.iter().find(|volume| volume.id != *source);
        let other = another.map(|volume| csi::CreateSnapshotRequest {
            source_volume_id: volume.id.clone(),
            ..snapshot.wanted.clone()
        });
        let same = Some(snapshot.wanted.clone()).filter(|_| there);
        for request in same.into_iter().chain(other) {
            let is_same = request == snapshot.wanted;
            let call = repeated(self.controller(), request, |mut client, request| async move {
                client.create_snapshot(request).await
            });
            let taken = self.call("CreateSnapshot again", At::Controller, call).await?;
            if !is_same {
                self.refused("a snapshot of another volume", Code::AlreadyExists, &taken);
            } else if let Some(answer) = self.needed("CreateSnapshot again", taken)
                && answer.snapshot.as_ref() != Some(&snapshot.told)
            {
                self.violation(&format!("{:?} became {answer:?}", snapshot.told));
            }
        }
        Ok(())
    }

    pub(super) async fn delete_snapshot(&mut self, which: usize) -> anyhow::Result<()> {
        let snapshot_id = self.snapshots[which].told.snapshot_id.clone();
        let request = csi::DeleteSnapshotRequest { snapshot_id, ..Default::default() };
        let call = repeated(self.controller(), request, |mut client, request| async move {
            client.delete_snapshot(request).await
        });
        let deleted = self.call("DeleteSnapshot", At::Controller, call).await?;
        if self.needed("DeleteSnapshot", deleted).is_some() {
            self.snapshots.remove(which);
        }
        Ok(())
    }

    /// A volume that begins with a snapshot.
    pub(super) async fn restore(&mut self, which: usize) -> anyhow::Result<()> {
        let snapshot = self.snapshots[which].clone();
        let snapshot_id = snapshot.told.snapshot_id;
        let source = Type::Snapshot(SnapshotSource { snapshot_id });
        let begun = self.begun_with(source, snapshot.kind, snapshot.told.size_bytes).await?;
        if let Some(volume) = begun {
            self.volumes.push(Volume { legal: snapshot.legal, ..volume });
        }
        Ok(())
    }

    /// A volume that begins with what another one has, also while that one is written.
    pub(super) async fn clone_volume(&mut self, which: usize) -> anyhow::Result<()> {
        let volume = self.volumes[which].clone();
        let source = Type::Volume(VolumeSource { volume_id: volume.id.clone() });
        let writing = self.begin_writing(&volume);
        let mut legal = volume.legal.clone();
        legal.extend(writing.as_ref().map(|writing| Some(writing.number)));
        let begun = self.begun_with(source, volume.kind, volume.bytes).await?;
        if let Some(writing) = writing {
            self.end_writing(which, writing).await?;
        }
        if let Some(begun) = begun {
            self.volumes.push(Volume { legal, ..begun });
        }
        Ok(())
    }

    async fn begun_with(
        &mut self,
        source: Type,
        kind: Kind,
        bytes: i64,
    ) -> anyhow::Result<Option<Volume>> {
        let more = if self.rng.random_bool(0.4) { MORE } else { 0 };
        let name = self.fresh_name();
        let source = csi::VolumeContentSource { r#type: Some(source) };
        // Where its copies begin the snapshot has to be: there may be fewer than are asked for.
        for repl in [self.rng.random_range(1..=3), 1] {
            let request = csi::CreateVolumeRequest {
                volume_content_source: Some(source.clone()),
                ..wanted(&name, kind, repl, bytes + more)
            };
            let sent = request.clone();
            let call = repeated(self.controller(), sent, |mut client, request| async move {
                client.create_volume(request).await
            });
            let made = self.call("CreateVolume with content", At::Controller, call).await?;
            let too_many = [Code::ResourceExhausted, Code::FailedPrecondition];
            if repl > 1 && made.as_ref().is_err_and(|s| too_many.contains(&s.code())) {
                self.note(&format!("  {repl} copies are too many"));
                continue;
            }
            let Some(answer) = self.needed("CreateVolume with content", made) else {
                return Ok(None);
            };
            let volume = answer.volume.context("CreateVolume tells no volume")?;
            if volume.capacity_bytes < bytes + more || volume.content_source != Some(source) {
                self.violation(&format!("{name} with {} bytes is {volume:?}", bytes + more));
            }
            self.told.volumes += 1;
            self.told.clones += 1;
            return Ok(Some(Volume::new(kind, request, volume)));
        }
        Ok(None)
    }

    /// All snapshots are told, each once, page by page; also those of one volume.
    pub(super) async fn list_snapshots(&mut self) -> anyhow::Result<()> {
        let source_volume_id = match self.volumes.choose(&mut self.rng) {
            Some(volume) if self.rng.random_bool(0.5) => volume.id.clone(),
            _ => String::new(),
        };
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let request = csi::ListSnapshotsRequest {
                max_entries: 3,
                starting_token: token,
                source_volume_id: source_volume_id.clone(),
                ..Default::default()
            };
            let call = repeated(self.controller(), request, |mut client, request| async move {
                client.list_snapshots(request).await
            });
            let Some(page) = self.plain("ListSnapshots", call).await? else { return Ok(()) };
            found.extend(page.entries.into_iter().filter_map(|entry| entry.snapshot));
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        let of_it = |snapshot: &&Snapshot| {
            source_volume_id.is_empty() || snapshot.told.source_volume_id == source_volume_id
        };
        let mut known: Vec<_> =
            self.snapshots.iter().filter(of_it).map(|snapshot| snapshot.told.clone()).collect();
        known.sort_by(|a, b| a.snapshot_id.cmp(&b.snapshot_id));
        if known != found {
            self.violation(&format!("ListSnapshots tells {found:?}, and there are {known:?}"));
        }
        Ok(())
    }
}
