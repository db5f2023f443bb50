//! Reads from a repository what a plan is made from: listing, history files, backup descriptors, and WAL as the search asks for it.
//!
//! Owns the order of those requests. Decides nothing: see `plan.rs` and `search.rs`.

use crate::error::{Error, Result};
use crate::plan::{BackupFacts, Piece, PieceSource, RecoveryPlan, WalPath, choose_timeline};
use crate::search::{Fits, PieceBytes, PlanRequest, WalSource, plan_recovery};
use crate::segment_source::SegmentSource;
use crate::settle::{Chain, Continues, Settled};
use crate::survey::windows_of;
use crate::target::RecoveryGoal;
use futures_util::StreamExt;
use repository::backup::BackupDescriptor;
use repository::catalog::Catalog;
use repository::descriptor::WalDescriptor;
use repository::key::{BackupLabel, ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::several::Absence;
use repository::wal::lineage;
use repository::{Repositories, Repository};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wal_format::{DecoderConfig, HistoryEntry, Major, SegmentName, TimelineHistory, TimelineId};

/// Descriptors of backups asked for at the same time.
const BACKUPS_IN_FLIGHT: usize = 8;
/// The same of segments.
const SEGMENTS_IN_FLIGHT: usize = 16;
/// How often a listing is asked for that lacks what is stored, and the pause before each time but the first.
const LISTINGS: u32 = 5;
const LISTING_PAUSE: Duration = Duration::from_secs(1);
/// Holes of a timeline of which the first segment is asked for.
const MAX_HOLES_ASKED: usize = 16;
/// How often a chain is followed again because an earlier segment was taken from another repository.
const MAX_ROUNDS: usize = 32;

/// Everything a plan is made from.
pub struct PlanMaterial {
    /// Names of everything stored.
    pub catalog: Catalog,
    /// The way through WAL.
    pub path: WalPath,
    /// What the plan needs of each backup.
    pub backups: Vec<BackupFacts>,
    /// The descriptor of each backup.
    pub descriptors: BTreeMap<BackupLabel, BackupDescriptor>,
    /// Fetches WAL.
    pub segments: SegmentSource,
    /// Repositories that did not answer, with what was said instead: what they alone hold is not in here.
    pub unanswered: Vec<(String, repository::Error)>,
    decoder: DecoderConfig,
}

impl PlanMaterial {
    /// Reads what is stored of a cluster, for the timeline asked for or the newest one.
    ///
    /// # Errors
    /// `NotFound`: no such cluster, or not that timeline. `Corrupt`: a history file is missing or contradicts itself, a backup descriptor
    /// does. `Unlisted`: the store goes on listing less than it holds. Others from the repository.
    pub async fn gather(
        repository: impl Into<Repositories>,
        policy: &OpenPolicy,
        cluster: ClusterId,
        timeline: Option<TimelineId>,
    ) -> Result<Self> {
        let repository = repository.into();
        let Some(document) = repository.fetch_cluster(cluster).await? else {
            return Err(Error::Unreachable {
                what: format!("cluster {cluster}"),
                reason: "it is not in this repository".into(),
                window: Box::default(),
            });
        };
        let size = document.segment_size()?;
        let segments = SegmentSource {
            repository,
            policy: policy.clone(),
            cluster,
            size,
            settled: Settled::default(),
        };
        let mut listings = 1;
        let (catalog, unanswered, path) = loop {
            let listed = segments.repository.list(cluster).await?;
            let (catalog, unanswered) = (listed.catalog, listed.unanswered);
            let chosen = choose_timeline(&catalog, timeline)?;
            let path = fetch_path(&segments, &catalog, chosen).await?;
            let object = match find_unlisted(&segments, &catalog, &path, timeline.is_none()).await?
            {
                None => break (catalog, unanswered, path),
                Some(key) => key.to_string(),
            };
            if listings == LISTINGS {
                return Err(Error::Unlisted { object });
            }
            tracing::warn!(
                object,
                "the store's listing lacks what is stored: listing again"
            );
            listings += 1;
            tokio::time::sleep(LISTING_PAUSE).await;
        };
        let (backups, descriptors) = fetch_backups(&segments, &catalog).await?;
        let major = descriptors.values().next_back();
        let major = major.and_then(|backup| Major::from_number(u32::from(backup.pg_version)));
        let decoder = DecoderConfig {
            segment_size: size,
            system_identifier: Some(cluster.system_identifier),
            major,
        };
        Ok(Self {
            catalog,
            path,
            backups,
            descriptors,
            segments,
            unanswered,
            decoder,
        })
    }

    /// What a decoder of its WAL must know.
    pub fn decoder(&self) -> DecoderConfig {
        self.decoder
    }

    fn stored_wal(&self) -> StoredWal<'_> {
        StoredWal {
            segments: &self.segments,
            catalog: &self.catalog,
            lineages: &self.path.lineages,
        }
    }

    /// Makes the plan for a target, from the backup named or the best one.
    ///
    /// # Errors
    /// As [`plan_recovery`].
    pub async fn plan(
        &self,
        goal: &RecoveryGoal,
        backup: Option<&BackupLabel>,
    ) -> Result<RecoveryPlan> {
        let request = PlanRequest {
            catalog: &self.catalog,
            path: &self.path,
            backups: &self.backups,
            goal,
            backup,
            decoder: self.decoder,
        };
        match plan_recovery(self, request).await {
            Err(error @ (Error::Unreachable { .. } | Error::Missing { .. })) => {
                Err(self.name_nearest(error, goal).await)
            }
            plan => plan,
        }
    }

    /// Follows the chain of these pieces once; says whether that is to be done again. What follows nothing is left to those who decode it.
    async fn settle_once(&self, pieces: &[Piece]) -> bool {
        let mut chain = Chain::default();
        let described = pieces.iter().cloned().map(|piece| async move {
            match piece.source {
                PieceSource::Sealed => self.descriptor(&piece).await.map(Some),
                PieceSource::Open { .. } => Ok(None),
            }
        });
        let mut described = futures_util::stream::iter(described).buffered(SEGMENTS_IN_FLIGHT);
        for piece in pieces {
            // What cannot be read is told by those who need it.
            let Some(Ok(Some(wal))) = described.next().await else {
                chain = Chain::default();
                continue;
            };
            match chain.follow(self, &self.path, piece, &wal).await {
                Continues::Yes | Continues::As(_) => {}
                Continues::Anew => return false,
                Continues::No(_) => chain = Chain::default(),
            }
        }
        true
    }

    /// A refusal, with the reachable moments around the target. That they cannot be found is no reason for another error.
    async fn name_nearest(&self, refusal: Error, goal: &RecoveryGoal) -> Error {
        let found = windows_of(&self.segments, &self.catalog, &self.backups).await;
        let windows = match found {
            Ok(windows) => windows,
            Err(error) => {
                tracing::debug!("the window could not be read: {error}");
                return refusal;
            }
        };
        let timeline = self.path.history.timeline();
        let mut window = windows.on_path(timeline);
        window.nearest = windows.nearest(goal, timeline);
        match refusal {
            Error::Unreachable { what, reason, .. } => Error::Unreachable {
                what,
                reason,
                window: window.into(),
            },
            Error::Missing { object, reason } => Error::MissingOnTheWay {
                object,
                reason,
                window: window.into(),
            },
            other => other,
        }
    }
}

impl WalSource for PlanMaterial {
    async fn descriptor(&self, piece: &Piece) -> Result<WalDescriptor> {
        self.stored_wal().descriptor(piece).await
    }

    async fn bytes(&self, piece: &Piece) -> Result<PieceBytes> {
        self.stored_wal().bytes(piece).await
    }

    async fn another(&self, piece: &Piece, fits: &Fits<'_>) -> Option<WalDescriptor> {
        self.stored_wal().another(piece, fits).await
    }

    async fn settle(&self, pieces: &[Piece]) {
        if !self.segments.repository.is_several() {
            return;
        }
        for _ in 0..MAX_ROUNDS {
            if self.settle_once(pieces).await {
                break;
            }
        }
    }
}

/// The WAL of a listing, for those who know its timelines.
pub(crate) struct StoredWal<'a> {
    pub(crate) segments: &'a SegmentSource,
    pub(crate) catalog: &'a Catalog,
    /// Of every timeline that is asked for.
    pub(crate) lineages: &'a BTreeMap<TimelineId, String>,
}

impl WalSource for StoredWal<'_> {
    async fn descriptor(&self, piece: &Piece) -> Result<WalDescriptor> {
        let key = &piece.key(self.segments.cluster);
        let repositories = &self.segments.repository;
        // With others to ask, one of another lineage is passed over; the plan refuses it where it is the only one.
        let lineage = self.lineages.get(&piece.name.timeline);
        let lineage = lineage.filter(|_| repositories.is_several());
        let ask = |one: Repository| async move {
            let described = one.fetch_descriptor(key).await;
            let wal = described.map_err(|error| listed(error, &key.to_string()));
            let wal = match wal {
                Ok(descriptor) => descriptor.wal,
                Err(Error::Missing { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let integrity = |reason: &str| Error::Integrity {
                object: key.to_string(),
                reason: reason.into(),
            };
            let wal = wal.ok_or_else(|| integrity("its descriptor says nothing of WAL"))?;
            if lineage.is_some_and(|lineage| *lineage != wal.lineage) {
                return Err(integrity("it is of another timeline with the same number"));
            }
            self.segments.settled.check(piece.name, &wal)?;
            Ok(Some(wal))
        };
        let found = repositories
            .first_given(&key.to_string(), 0, Absence::Proven, ask)
            .await?;
        found.ok_or_else(|| Error::Missing {
            object: key.to_string(),
            reason: "it was listed a moment ago".into(),
        })
    }

    async fn bytes(&self, piece: &Piece) -> Result<PieceBytes> {
        let lineage = self
            .lineages
            .get(&piece.name.timeline)
            .map(String::as_str)
            .unwrap_or_default();
        let gone = || Error::Missing {
            object: piece.name.to_string(),
            reason: "it was listed a moment ago".into(),
        };
        match &piece.source {
            PieceSource::Sealed => {
                let bytes = self
                    .segments
                    .fetch_sealed(piece.name, lineage)
                    .await?
                    .ok_or_else(gone)?;
                Ok(PieceBytes {
                    bytes,
                    length: self.segments.size.bytes(),
                    may_end_torn: false,
                })
            }
            PieceSource::Open { partials, .. } => {
                let objects = self
                    .catalog
                    .timelines
                    .get(&piece.name.timeline)
                    .ok_or_else(gone)?;
                let found = self
                    .segments
                    .fetch_incomplete(piece.name, objects, lineage)
                    .await?
                    .ok_or_else(gone)?;
                Ok(PieceBytes {
                    bytes: found.bytes,
                    length: found.length,
                    may_end_torn: !partials.is_empty(),
                })
            }
        }
    }

    async fn another(&self, piece: &Piece, fits: &Fits<'_>) -> Option<WalDescriptor> {
        let key = &piece.key(self.segments.cluster);
        let ask = |one: Repository| async move {
            let described = one.fetch_descriptor(key).await;
            match described {
                Ok(descriptor) => Ok(descriptor.wal),
                Err(error) if error.class() == repository::ErrorClass::NotFound => Ok(None),
                Err(error) => Err(Error::from(error)),
            }
        };
        let check = |wal: WalDescriptor| {
            let checked = fits(&wal).map_err(|broken| Error::Integrity {
                object: key.to_string(),
                reason: broken.to_string(),
            });
            std::future::ready(checked.map(|()| wal))
        };
        let repositories = &self.segments.repository;
        let found = repositories.other(&key.to_string(), ask, check).await?;
        self.segments.settled.add(piece.name, found.clone());
        Some(found)
    }
}

/// Something that is stored and not listed, and with which the plan would be another one. Asked for is whatever would make the WAL that is listed
/// end early: the segment behind the end of each timeline on the path, the first of a hole, one of which only chunks are listed; and, for
/// the `newest` timeline, the history of the next one.
async fn find_unlisted(
    segments: &SegmentSource,
    catalog: &Catalog,
    path: &WalPath,
    newest: bool,
) -> Result<Option<ObjectKey>> {
    let (cluster, size) = (segments.cluster, segments.size);
    let mut suspects = Vec::new();
    let next = path.history.timeline().get().checked_add(1);
    if let Some(timeline) = next.filter(|_| newest).and_then(TimelineId::new) {
        suspects.push(ObjectKey::History { cluster, timeline });
    }
    for timeline in path.lineages.keys() {
        let left = path.history.switch_point(*timeline);
        let holes = catalog.holes(*timeline, size).into_iter();
        let ends = holes.map(|hole| hole.from).take(MAX_HOLES_ASKED);
        let ends = ends.chain(catalog.wal_end(*timeline, size));
        let mut names: BTreeSet<SegmentName> = ends
            .map(|end| SegmentName::new(*timeline, size.segment(end), size))
            .collect();
        if let Some(objects) = catalog.timelines.get(timeline) {
            let open = objects.tails.keys();
            names.extend(open.filter(|name| !objects.segments.contains_key(name)));
        }
        let on_path = names.into_iter().filter(|name| {
            let start = name.start(size);
            start.is_some_and(|start| left.is_none_or(|left| start < left))
        });
        suspects.extend(on_path.map(|name| ObjectKey::Segment { cluster, name }));
    }
    for key in suspects {
        let found = segments.repository.find_descriptor(&key, Absence::Likely);
        if found.await?.is_some() {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// What every backup says of itself.
pub(crate) async fn fetch_backups(
    segments: &SegmentSource,
    catalog: &Catalog,
) -> Result<(Vec<BackupFacts>, BTreeMap<BackupLabel, BackupDescriptor>)> {
    let fetches = catalog.complete_backups().map(|label| async {
        let cluster = segments.cluster;
        let descriptor = segments.repository.fetch_backup(cluster, label).await?;
        Ok::<_, Error>((label.clone(), descriptor))
    });
    let mut fetched = futures_util::stream::iter(fetches).buffered(BACKUPS_IN_FLIGHT);
    let mut descriptors = BTreeMap::new();
    let mut backups = Vec::new();
    while let Some(found) = fetched.next().await {
        let (label, descriptor) = found?;
        backups.push(BackupFacts::from_descriptor(&descriptor)?);
        descriptors.insert(label, descriptor);
    }
    Ok((backups, descriptors))
}

/// A timeline and its ancestors, with the lineage of each from its own stored history file.
async fn fetch_path(
    segments: &SegmentSource,
    catalog: &Catalog,
    timeline: TimelineId,
) -> Result<WalPath> {
    let (history, bytes) = match timeline {
        TimelineId::FIRST => (TimelineHistory::first(), None),
        _ => {
            let (bytes, history) = segments
                .fetch_history(timeline)
                .await?
                .ok_or_else(|| missing_history(timeline))?;
            (history, Some(bytes))
        }
    };
    let mut lineages = BTreeMap::from([(timeline, lineage(bytes.as_deref()))]);
    for (index, entry) in history.entries().iter().enumerate() {
        let ancestor = entry.timeline;
        if ancestor == TimelineId::FIRST {
            lineages.insert(ancestor, lineage(None));
            continue;
        }
        let objects = catalog.timelines.get(&ancestor);
        let is_needed = objects.is_some_and(|objects| !objects.segments.is_empty());
        let absence = match is_needed {
            true => Absence::Proven,
            false => Absence::Likely,
        };
        match segments.find_history(ancestor, absence, |_| Ok(())).await? {
            Some((bytes, own)) => {
                if !agrees(&own, history.entries().get(..index).unwrap_or_default()) {
                    return Err(Error::Integrity {
                        object: format!("{:08X}.history", timeline.get()),
                        reason: format!(
                            "gives timeline {ancestor} another past than its own history file"
                        ),
                    });
                }
                lineages.insert(ancestor, lineage(Some(&bytes)));
            }
            // Archiving may have begun on a later timeline; then nothing of this one is needed either.
            None if !is_needed => {}
            None => return Err(missing_history(ancestor)),
        }
    }
    Ok(WalPath {
        history,
        lineages,
        segment_size: segments.size,
    })
}

/// Whether an ancestor's own history file tells the past that a descendant's tells of it.
pub(crate) fn agrees(own: &TimelineHistory, told: &[HistoryEntry]) -> bool {
    let places = |entries: &[HistoryEntry]| -> Vec<_> {
        entries
            .iter()
            .map(|entry| (entry.timeline, entry.switch_point))
            .collect()
    };
    places(own.entries()) == places(told)
}

fn missing_history(timeline: TimelineId) -> Error {
    Error::Missing {
        object: format!("{:08X}.history", timeline.get()),
        reason: format!("WAL of timeline {timeline} is stored"),
    }
}

/// What was listed and is gone is missing, and no unknown target.
fn listed(error: repository::Error, object: &str) -> Error {
    match error.class() {
        repository::ErrorClass::NotFound => Error::Missing {
            object: object.to_owned(),
            reason: "it was listed a moment ago".into(),
        },
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::key::ObjectKey;
    use repository::{Store, testing};

    /// The path of timeline 3, of a repository that holds nothing but these histories of timelines 2 and 3.
    async fn path(second: &str, third: &str) -> Result<WalPath> {
        let cluster = ClusterId::new(7412);
        let repository = Repository::new("memory", Store::in_memory());
        let key = ObjectKey::Cluster(cluster);
        let document = testing::cluster_document(7412);
        repository.put_json(&key, &document).await.unwrap();
        for (number, text) in [(2, second), (3, third)] {
            let timeline = TimelineId::new(number).unwrap();
            let key = ObjectKey::History { cluster, timeline };
            let sealed = testing::sealed(key, None, text.as_bytes());
            repository.put(&sealed).await.unwrap();
        }
        let policy = OpenPolicy::default();
        let gathered = PlanMaterial::gather(&repository, &policy, cluster, None).await?;
        Ok(gathered.path)
    }

    #[tokio::test]
    async fn histories_that_tell_two_pasts_of_one_timeline_are_refused() {
        let second = "1\t0/3000500\tx\n";
        let third = "1\t0/3000500\tx\n\n2\t0/5000500\ty\n";
        let found = path(second, third).await.unwrap();
        assert_eq!(found.history.timeline(), TimelineId::new(3).unwrap());
        let other = "1\t0/4000500\tx\n";
        let refused = path(other, third).await.unwrap_err();
        assert!(
            refused.to_string().contains("00000003.history"),
            "{refused}"
        );
    }
}
