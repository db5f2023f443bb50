//! How far each backup reaches: the WAL that follows it without interruption, and the newest transaction in it.
//!
//! Works on names and descriptors, without a key. History files are sealed: where they cannot be opened, a window ends with the
//! backup's own timeline. Does not prove the chain (`pitr`'s plan does): it says what there is.

use std::collections::BTreeMap;

use anyhow::Result;
use jiff::Timestamp;
use pitr::plan::{BackupFacts, Piece, PieceSource, WalPath, plan_pieces};
use repository::Repository;
use repository::backup::BackupDescriptor;
use repository::catalog::Catalog;
use repository::cluster::ClusterDocument;
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::wal::lineage;
use serde::Serialize;
use wal_format::{Lsn, SegmentSize, TimelineHistory, TimelineId};

use crate::report::time;

/// Most segments that are looked at, from the end, for the newest transaction.
const MAX_LOOK_BACK: usize = 64;
/// Largest history file.
const MAX_HISTORY_BYTES: usize = 1 << 20;

/// What can be recovered from one backup.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Window {
    /// When the backup ended.
    from_time: Timestamp,
    /// Where it is consistent.
    from_lsn: String,
    /// Newest transaction that is stored; `None`: none after the backup is known.
    to_time: Option<Timestamp>,
    /// End of the WAL that follows without interruption.
    to_lsn: String,
    /// The timeline of that end.
    timeline: u32,
    /// What stops it, if something later is stored.
    ends_at_gap: Option<String>,
}

impl Window {
    /// For people, in one line.
    pub(crate) fn to_text(&self) -> String {
        let newest = match self.to_time {
            Some(newest) => format!("to {}", time(newest)),
            None => "on, no later transaction".to_owned(),
        };
        let mut text = format!(
            "from {} {newest} (WAL {} to {}, timeline {})",
            time(self.from_time),
            self.from_lsn,
            self.to_lsn,
            self.timeline
        );
        if let Some(gap) = &self.ends_at_gap {
            text.push_str(&format!("; ends at a gap: {gap}"));
        }
        text
    }
}

/// What has been read of a cluster so far.
pub(crate) struct Survey<'a> {
    repository: &'a Repository,
    cluster: ClusterId,
    size: SegmentSize,
    catalog: &'a Catalog,
    histories: BTreeMap<TimelineId, Vec<u8>>,
    /// Time of the newest transaction before the end of a timeline's WAL.
    newest: BTreeMap<(TimelineId, Lsn), Option<Timestamp>>,
}

impl<'a> Survey<'a> {
    /// Reads the history files that `policy` opens.
    ///
    /// # Errors
    /// As the store's; a history file that is damaged.
    pub(crate) async fn new(
        repository: &'a Repository,
        cluster: &ClusterDocument,
        catalog: &'a Catalog,
        policy: &OpenPolicy,
    ) -> Result<Self> {
        Ok(Self {
            histories: fetch_histories(policy, repository, cluster, catalog).await?,
            newest: BTreeMap::new(),
            size: cluster.segment_size()?,
            cluster: cluster.id(),
            catalog,
            repository,
        })
    }

    /// What a backup can be recovered to; `None` if the WAL that makes it consistent is not stored.
    ///
    /// # Errors
    /// As the store's; a backup descriptor or history file that contradicts itself.
    pub(crate) async fn window(&mut self, backup: &BackupDescriptor) -> Result<Option<Window>> {
        let facts = BackupFacts::from_descriptor(backup)?;
        let path = self.path_of(&facts)?;
        let found = plan_pieces(self.catalog, &path, facts.start_lsn);
        let Some(last) = found.pieces.last() else {
            return Ok(None);
        };
        let end = match &last.source {
            PieceSource::Sealed => last.start.saturating_add(u64::from(self.size.bytes())),
            PieceSource::Open { tail, partials } => {
                let reach = tail.iter().map(|chunk| chunk.to).max().unwrap_or(0);
                let mut end = last.start.saturating_add(u64::from(reach));
                for partial in partials {
                    let key = ObjectKey::Partial {
                        cluster: self.cluster,
                        name: partial.name,
                        tag: partial.tag,
                    };
                    let described = self.repository.fetch_descriptor(&key).await?;
                    end = end.max(described.wal.unwrap_or_default().end_lsn);
                }
                end
            }
        };
        if end < facts.stop_lsn {
            return Ok(None);
        }
        let timeline = last.name.timeline;
        let to_time = match self.newest.get(&(timeline, end)) {
            Some(known) => *known,
            None => {
                let newest = self.newest_transaction(&found.pieces).await?;
                self.newest.insert((timeline, end), newest);
                newest
            }
        };
        Ok(Some(Window {
            from_time: backup.stopped,
            from_lsn: facts.stop_lsn.to_string(),
            to_time: to_time.filter(|time| *time >= backup.stopped),
            to_lsn: end.to_string(),
            timeline: timeline.get(),
            ends_at_gap: found
                .hole
                .map(|(object, reason)| format!("{object}: {reason}")),
        }))
    }

    /// The way to the newest timeline that descends from the backup; its own timeline alone where histories cannot be read.
    fn path_of(&self, backup: &BackupFacts) -> Result<WalPath> {
        for (timeline, bytes) in self.histories.iter().rev() {
            let history = TimelineHistory::parse(*timeline, bytes)?;
            let mut lineages = BTreeMap::from([(*timeline, lineage(Some(bytes)))]);
            for entry in history.entries() {
                let bytes = self.histories.get(&entry.timeline).map(Vec::as_slice);
                lineages.insert(entry.timeline, lineage(bytes));
            }
            let path = WalPath {
                history,
                lineages,
                segment_size: self.size,
            };
            if path.holds(backup) {
                return Ok(path);
            }
        }
        Ok(WalPath {
            history: TimelineHistory::parse(backup.timeline, b"")?,
            lineages: BTreeMap::from([(backup.timeline, backup.lineage.clone())]),
            segment_size: self.size,
        })
    }

    /// Looks back from the end until a piece names a transaction.
    async fn newest_transaction(&self, pieces: &[Piece]) -> Result<Option<Timestamp>> {
        for piece in pieces.iter().rev().take(MAX_LOOK_BACK) {
            let cluster = self.cluster;
            let name = piece.name;
            let keys: Vec<ObjectKey> = match &piece.source {
                PieceSource::Sealed => vec![piece.key(cluster)],
                PieceSource::Open { tail, partials } => {
                    let chunks = tail.iter().map(|chunk| ObjectKey::Tail {
                        cluster,
                        name,
                        from: chunk.from,
                        to: chunk.to,
                        writer: chunk.writer,
                    });
                    let partials = partials.iter().map(|partial| ObjectKey::Partial {
                        cluster,
                        name,
                        tag: partial.tag,
                    });
                    chunks.chain(partials).collect()
                }
            };
            let mut newest = None;
            for key in keys {
                let described = self.repository.fetch_descriptor(&key).await?;
                newest = newest.max(described.wal.and_then(|wal| wal.time_max));
            }
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }
}

/// The history files that can be opened; those that cannot are left out, with a word about it.
async fn fetch_histories(
    policy: &OpenPolicy,
    repository: &Repository,
    cluster: &ClusterDocument,
    catalog: &Catalog,
) -> Result<BTreeMap<TimelineId, Vec<u8>>> {
    let mut histories = BTreeMap::new();
    let stored = catalog
        .timelines
        .iter()
        .filter(|(_, objects)| objects.history);
    let stored: Vec<TimelineId> = stored.map(|(timeline, _)| *timeline).collect();
    if stored.is_empty() {
        return Ok(histories);
    }
    for timeline in stored {
        let key = ObjectKey::History {
            cluster: cluster.id(),
            timeline,
        };
        match repository.fetch(&key, policy, MAX_HISTORY_BYTES).await {
            Ok((_, bytes)) => {
                histories.insert(timeline, bytes);
            }
            Err(error) if error.class() == repository::ErrorClass::Key => {
                tracing::info!(
                    timeline = timeline.get(),
                    "no key for its history: windows end with their own timeline"
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(histories)
}
