//! What is stored of a cluster, read before anything is verified: the listing, history files, backup descriptors, and the ways through
//! WAL that they open.
//!
//! Owns whom a problem affects: which backups go through a piece of WAL on their way to which timeline. The rules of paths are `plan.rs`'s.

use super::finding::{Effect, Found, Place, Problem};
use super::reader::{Examined, Reader, Want};
use crate::error::Result;
use crate::gather::agrees;
use crate::plan::{BackupFacts, WalPath};
use crate::segment_source::MAX_HISTORY_BYTES;
use futures_util::StreamExt;
use repository::Repository;
use repository::backup::BackupDescriptor;
use repository::catalog::{Catalog, TimelineObjects};
use repository::cluster::ClusterDocument;
use repository::key::{BackupObject, ClusterId, ObjectKey};
use repository::wal::lineage;
use std::collections::{BTreeMap, BTreeSet};
use std::time::UNIX_EPOCH;
use wal_format::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, Timestamp};

/// Backup descriptors asked for at the same time.
const BACKUPS_IN_FLIGHT: usize = 8;

/// What the listing says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Stored size in bytes.
    pub(crate) size: u64,
    /// When it was written, by the store's clock: microseconds since 1970.
    pub(crate) modified: i64,
}

/// A backup that can be read.
#[derive(Clone, Debug)]
pub(crate) struct KnownBackup {
    pub(crate) facts: BackupFacts,
    pub(crate) descriptor: BackupDescriptor,
}

/// What is stored.
pub(crate) struct Survey {
    pub(crate) cluster: ClusterId,
    pub(crate) size: SegmentSize,
    pub(crate) catalog: Catalog,
    pub(crate) objects: BTreeMap<ObjectKey, Meta>,
    /// Backups that are verified, oldest first.
    pub(crate) backups: Vec<KnownBackup>,
    /// The way to each timeline of which WAL is stored.
    pub(crate) paths: BTreeMap<TimelineId, WalPath>,
    /// Where each stored `.partial` ends: timeline, segment and tag.
    pub(crate) partial_ends: BTreeMap<ObjectKey, Lsn>,
    /// Timelines whose history cannot be read for want of a key.
    pub(crate) sealed_histories: BTreeSet<TimelineId>,
    /// Only WAL from this segment on is verified.
    pub(crate) from: Option<SegmentNumber>,
    /// Why an object that is not there should be.
    pub(crate) gone: &'static str,
}

impl Survey {
    /// Reads it. `since`: only what recoveries to that time or later need.
    ///
    /// # Errors
    /// The store's; `Key` if an identity opens nothing.
    pub(crate) async fn take(
        reader: &Reader<'_>,
        repository: &Repository,
        document: &ClusterDocument,
        since: Option<Timestamp>,
        found: &mut Vec<Found>,
    ) -> Result<Self> {
        let (cluster, size) = (document.id(), document.segment_size()?);
        let listed = repository.list_objects(cluster).await?;
        let catalog = Catalog::from_listing(
            cluster,
            listed.iter().map(|object| (&object.path, object.size)),
        );
        let objects = listed
            .iter()
            .filter_map(|object| {
                let modified = object.last_modified.duration_since(UNIX_EPOCH).ok();
                let modified = modified.and_then(|time| i64::try_from(time.as_micros()).ok());
                let meta = Meta {
                    size: object.size,
                    modified: modified.unwrap_or(0),
                };
                Some((object.path.parse().ok()?, meta))
            })
            .collect();
        let mut survey = Self {
            cluster,
            size,
            catalog,
            objects,
            backups: Vec::new(),
            paths: BTreeMap::new(),
            partial_ends: BTreeMap::new(),
            sealed_histories: BTreeSet::new(),
            from: None,
            gone: "it was listed a moment ago",
        };
        survey.read_backups(reader, repository, found).await?;
        let histories = survey.read_histories(reader, found).await?;
        survey.find_paths(reader, &histories).await?;
        survey.read_partials(reader).await?;
        if let Some(since) = since {
            survey.forget_before(since);
        }
        Ok(survey)
    }

    async fn read_backups(
        &mut self,
        reader: &Reader<'_>,
        repository: &Repository,
        found: &mut Vec<Found>,
    ) -> Result<()> {
        let labels: Vec<_> = self.catalog.complete_backups().cloned().collect();
        let cluster = self.cluster;
        let mut fetched = futures_util::stream::iter(labels.into_iter().map(|label| async {
            let document = repository.fetch_backup(cluster, &label).await;
            (label, document)
        }))
        .buffered(BACKUPS_IN_FLIGHT);
        while let Some((label, document)) = fetched.next().await {
            let key = ObjectKey::Backup {
                cluster,
                label: label.clone(),
                object: BackupObject::Descriptor,
            };
            let mut bad = |problem, detail| {
                found.push(Found {
                    object: key.to_string(),
                    place: Place::Backup(label.to_string()),
                    lsn: None,
                    problem,
                    detail,
                });
            };
            match document {
                Ok(descriptor) => match BackupFacts::from_descriptor(&descriptor) {
                    Ok(facts) => self.backups.push(KnownBackup { facts, descriptor }),
                    Err(error) => bad(Problem::Contradiction, error.to_string()),
                },
                Err(error) => match reader.judge(&key, error)? {
                    Examined::Bad(problem, detail) => bad(problem, detail),
                    Examined::Gone => bad(Problem::Missing, "it was listed a moment ago".into()),
                    Examined::Good { .. } => {}
                },
            }
        }
        drop(fetched);
        self.backups
            .sort_by_key(|backup| (backup.facts.stop_lsn, backup.facts.start_lsn));
        Ok(())
    }

    /// The history files that can be read, with their bytes.
    async fn read_histories(
        &mut self,
        reader: &Reader<'_>,
        found: &mut Vec<Found>,
    ) -> Result<BTreeMap<TimelineId, (TimelineHistory, Vec<u8>)>> {
        let mut histories: BTreeMap<TimelineId, (TimelineHistory, Vec<u8>)> = BTreeMap::new();
        for (timeline, objects) in &self.catalog.timelines {
            let timeline = *timeline;
            if timeline == TimelineId::FIRST {
                continue;
            }
            let key = ObjectKey::History {
                cluster: self.cluster,
                timeline,
            };
            let mut bad = |problem, detail: String| {
                found.push(Found {
                    object: key.to_string(),
                    place: Place::History(timeline),
                    lsn: None,
                    problem,
                    detail,
                });
            };
            if !objects.history {
                let detail = format!(
                    "WAL of timeline {timeline} is stored, and only its history file says what it continues"
                );
                bad(Problem::Missing, detail);
                continue;
            }
            let bytes = match reader
                .examine(&key, MAX_HISTORY_BYTES, Want::ContentsIfOpened)
                .await?
            {
                Examined::Good {
                    plain: Some(bytes), ..
                } => bytes,
                Examined::Good { .. } => {
                    self.sealed_histories.insert(timeline);
                    continue;
                }
                Examined::Bad(problem, detail) => {
                    bad(problem, detail);
                    continue;
                }
                Examined::Gone => {
                    bad(Problem::Missing, "it was listed a moment ago".into());
                    continue;
                }
            };
            match TimelineHistory::parse(timeline, &bytes) {
                Ok(history) => {
                    histories.insert(timeline, (history, bytes));
                }
                Err(error) => bad(Problem::Damaged, error.to_string()),
            }
        }
        for (timeline, (history, _)) in &histories {
            for (index, entry) in history.entries().iter().enumerate() {
                let told = history.entries().get(..index).unwrap_or_default();
                let own = histories.get(&entry.timeline);
                if own.is_some_and(|(own, _)| !agrees(own, told)) {
                    found.push(Found {
                        object: ObjectKey::History {
                            cluster: self.cluster,
                            timeline: *timeline,
                        }
                        .to_string(),
                        place: Place::History(*timeline),
                        lsn: None,
                        problem: Problem::Contradiction,
                        detail: format!(
                            "it gives timeline {} another past than that one's own history file",
                            entry.timeline
                        ),
                    });
                }
            }
        }
        Ok(histories)
    }

    /// A way to each timeline that has WAL. Where the past is not known, a timeline is its own way.
    async fn find_paths(
        &mut self,
        reader: &Reader<'_>,
        histories: &BTreeMap<TimelineId, (TimelineHistory, Vec<u8>)>,
    ) -> Result<()> {
        for (timeline, objects) in &self.catalog.timelines {
            if !has_wal(objects) {
                continue;
            }
            let known = match histories.get(timeline) {
                _ if *timeline == TimelineId::FIRST => Some(TimelineHistory::first()),
                Some((history, _)) => Some(history.clone()),
                None => None,
            };
            let (history, lineages) = match known {
                Some(history) => {
                    let ancestors = history.entries().iter().map(|entry| entry.timeline);
                    let lineages = ancestors.chain([*timeline]).filter_map(|timeline| {
                        let bytes = histories.get(&timeline).map(|(_, bytes)| bytes.as_slice());
                        (timeline == TimelineId::FIRST || bytes.is_some())
                            .then(|| (timeline, lineage(bytes)))
                    });
                    let lineages: BTreeMap<_, _> = lineages.collect();
                    (history, lineages)
                }
                None => {
                    let claimed = self.claimed_lineage(reader, *timeline, objects).await?;
                    let history = TimelineHistory::parse(*timeline, b"")
                        .unwrap_or_else(|_| TimelineHistory::first());
                    (history, BTreeMap::from([(*timeline, claimed)]))
                }
            };
            let path = WalPath {
                history,
                lineages,
                segment_size: self.size,
            };
            self.paths.insert(*timeline, path);
        }
        Ok(())
    }

    /// What backups or WAL of a timeline say of its history, where that cannot be read.
    async fn claimed_lineage(
        &self,
        reader: &Reader<'_>,
        timeline: TimelineId,
        objects: &TimelineObjects,
    ) -> Result<String> {
        let backup = self
            .backups
            .iter()
            .find(|backup| backup.facts.timeline == timeline);
        if let Some(backup) = backup {
            return Ok(backup.facts.lineage.clone());
        }
        for name in objects.segments.keys().take(BACKUPS_IN_FLIGHT) {
            let key = ObjectKey::Segment {
                cluster: self.cluster,
                name: *name,
            };
            if let Examined::Good { descriptor, .. } =
                reader.examine(&key, 0, Want::Descriptor).await?
                && let Some(wal) = descriptor.wal
            {
                return Ok(wal.lineage);
            }
        }
        Ok(String::new())
    }

    async fn read_partials(&mut self, reader: &Reader<'_>) -> Result<()> {
        let keys = self.objects.keys();
        let partials: Vec<ObjectKey> = keys
            .filter(|key| matches!(key, ObjectKey::Partial { .. }))
            .cloned()
            .collect();
        for key in partials {
            if let Examined::Good { descriptor, .. } =
                reader.examine(&key, 0, Want::Descriptor).await?
                && let Some(wal) = descriptor.wal
            {
                self.partial_ends.insert(key, wal.end_lsn);
            }
        }
        Ok(())
    }

    /// Keeps the backup that serves targets at `since`, and what came after it.
    fn forget_before(&mut self, since: Timestamp) {
        let serves = self
            .backups
            .iter()
            .rposition(|backup| backup.facts.stopped <= since);
        self.backups.drain(..serves.unwrap_or(0));
        let first = self.backups.iter().map(|backup| backup.facts.start_lsn);
        self.from = first.min().map(|lsn| self.size.segment(lsn));
    }

    /// Whether a segment is among those that are verified.
    pub(crate) fn is_wanted(&self, number: SegmentNumber) -> bool {
        self.from.is_none_or(|from| number >= from)
    }

    /// The ways on which a backup can be recovered: to its own timeline and to those that descend from it.
    pub(crate) fn paths_of(&self, backup: &BackupFacts) -> impl Iterator<Item = &WalPath> {
        self.paths.values().filter(|path| path.holds(backup))
    }

    /// The backups whose recovery goes through WAL of `timeline` at `lsn`.
    pub(crate) fn effects(&self, timeline: TimelineId, lsn: Lsn) -> Vec<Effect> {
        let number = self.size.segment(lsn);
        let mut effects = Vec::new();
        for backup in &self.backups {
            let facts = &backup.facts;
            for path in self.paths_of(facts) {
                let goes_through = path.history.contains(timeline)
                    && path.timeline_of_segment(number) == timeline
                    && number >= self.size.segment(facts.start_lsn);
                if goes_through {
                    effects.push(Effect {
                        backup: facts.label.to_string(),
                        timeline: Some(path.history.timeline().get()),
                        usable_to: (lsn >= facts.stop_lsn).then_some(lsn),
                    });
                }
            }
        }
        effects
    }

    /// The backups that cannot be recovered to a timeline without its history file.
    pub(crate) fn effects_of_history(&self, timeline: TimelineId) -> Vec<Effect> {
        let older = self
            .backups
            .iter()
            .filter(|backup| backup.facts.timeline <= timeline);
        older
            .map(|backup| Effect {
                backup: backup.facts.label.to_string(),
                timeline: Some(timeline.get()),
                usable_to: None,
            })
            .collect()
    }

    /// All of them.
    pub(crate) fn effects_of_cluster(&self) -> Vec<Effect> {
        let labels = self.backups.iter().map(|backup| &backup.facts.label);
        labels
            .flat_map(|label| Self::effects_of_backup(label.as_str()))
            .collect()
    }

    /// A backup that cannot be laid out.
    pub(crate) fn effects_of_backup(label: &str) -> Vec<Effect> {
        vec![Effect {
            backup: label.to_owned(),
            timeline: None,
            usable_to: None,
        }]
    }
}

fn has_wal(objects: &TimelineObjects) -> bool {
    !objects.segments.is_empty() || !objects.tails.is_empty() || !objects.partials.is_empty()
}
