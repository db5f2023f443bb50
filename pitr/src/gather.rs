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
use repository::key::{BackupLabel, ClusterId};
use repository::sealed::OpenPolicy;
use repository::several::Absence;
use repository::wal::lineage;
use repository::{Repositories, Repository};
use std::collections::BTreeMap;
use wal_format::{DecoderConfig, HistoryEntry, Major, TimelineHistory, TimelineId};

/// Descriptors of backups asked for at the same time.
const BACKUPS_IN_FLIGHT: usize = 8;
/// The same of segments.
const SEGMENTS_IN_FLIGHT: usize = 16;
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
    /// does. Others from the repository.
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
        let listed = segments.repository.list(cluster).await?;
        let (catalog, unanswered) = (listed.catalog, listed.unanswered);
        let timeline = choose_timeline(&catalog, timeline)?;
        let path = fetch_path(&segments, &catalog, timeline).await?;
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
