//! From a repository to what a plan is made of: the catalogue, the backups, the way through WAL, and the bytes a search asks for.
//!
//! Owns the order of these requests. Does not decide anything (`plan.rs`, `search.rs`).

use std::collections::BTreeMap;

use repository::backup::BackupDescriptor;
use repository::catalog::{Catalog, TimelineObjects};
use repository::descriptor::WalDescriptor;
use repository::key::{BackupLabel, ObjectKey};
use repository::wal::lineage;
use wal_format::{DecoderConfig, Major, TimelineHistory, TimelineId};

use crate::plan::{BackupFacts, Piece, PieceSource, RecoveryPlan, WalPath, choose_timeline};
use crate::search::{PieceBytes, PlanRequest, WalSource, plan_recovery};
use crate::segment_source::SegmentSource;
use crate::target::RecoveryGoal;
use crate::{Error, Result};

/// A plan, and the descriptor of the backup that it begins with.
#[derive(Clone, Debug)]
pub struct LoadedPlan {
    /// The plan.
    pub plan: RecoveryPlan,
    /// The backup's descriptor.
    pub backup: BackupDescriptor,
}

/// Makes a plan from what the repository holds now.
///
/// # Errors
/// `NotFound`: the target, backup or timeline cannot be reached or is not there, with the window. `Corrupt`: an object on the way is
/// missing or contradicts the others. `Key`, `Retry`, `Config` from the repository.
pub async fn load_plan(
    source: &SegmentSource,
    goal: &RecoveryGoal,
    timeline: Option<TimelineId>,
    backup: Option<&BackupLabel>,
) -> Result<LoadedPlan> {
    let catalog = source.repository.list(source.cluster).await?;
    let descriptors = fetch_backups(source, &catalog).await?;
    let facts = descriptors
        .iter()
        .map(BackupFacts::from_descriptor)
        .collect::<Result<Vec<_>>>()?;
    let timeline = choose_timeline(&catalog, timeline)?;
    let path = fetch_path(source, timeline).await?;
    let major = descriptors
        .last()
        .and_then(|backup| Major::from_number(u32::from(backup.pg_version)));
    let decoder = DecoderConfig {
        segment_size: source.size,
        system_identifier: Some(source.cluster.system_identifier),
        major,
    };
    let request = PlanRequest {
        catalog: &catalog,
        path: &path,
        backups: &facts,
        goal,
        backup,
        decoder,
    };
    let plan = plan_recovery(source, request).await?;
    let chosen = descriptors
        .into_iter()
        .find(|descriptor| descriptor.label == plan.backup.label.as_str());
    let backup = chosen.ok_or_else(|| Error::Missing {
        object: format!("backup {}", plan.backup.label),
        reason: "the plan begins with it".into(),
    })?;
    Ok(LoadedPlan { plan, backup })
}

/// Descriptors of every backup that exists, oldest first.
///
/// # Errors
/// As [`load_plan`].
pub async fn fetch_backups(
    source: &SegmentSource,
    catalog: &Catalog,
) -> Result<Vec<BackupDescriptor>> {
    let mut descriptors = Vec::new();
    for label in catalog.complete_backups() {
        descriptors.push(
            source
                .repository
                .fetch_backup(source.cluster, label)
                .await?,
        );
    }
    Ok(descriptors)
}

/// The way to a timeline, with the lineage of each timeline on it.
///
/// # Errors
/// `Corrupt`: a history file is missing or cannot be read. Others from the repository.
pub async fn fetch_path(source: &SegmentSource, timeline: TimelineId) -> Result<WalPath> {
    let mut lineages = BTreeMap::new();
    let history = match timeline {
        TimelineId::FIRST => {
            lineages.insert(timeline, lineage(None));
            TimelineHistory::first()
        }
        _ => {
            let key = ObjectKey::History {
                cluster: source.cluster,
                timeline,
            };
            let fetched = source.fetch_history(timeline).await?;
            let (content, history) = fetched.ok_or_else(|| Error::Missing {
                object: key.to_string(),
                reason: "only it says what the timeline continues".into(),
            })?;
            lineages.insert(timeline, lineage(Some(&content)));
            history
        }
    };
    for entry in history.entries() {
        lineages.insert(entry.timeline, source.fetch_lineage(entry.timeline).await?);
    }
    Ok(WalPath {
        history,
        lineages,
        segment_size: source.size,
    })
}

impl WalSource for SegmentSource {
    async fn descriptor(&self, piece: &Piece) -> Result<WalDescriptor> {
        let key = piece.key(self.cluster);
        let descriptor = self.repository.fetch_descriptor(&key).await?;
        descriptor.wal.ok_or_else(|| Error::Integrity {
            object: key.to_string(),
            reason: "its descriptor says nothing of WAL".into(),
        })
    }

    async fn bytes(&self, piece: &Piece) -> Result<PieceBytes> {
        let lineage = self.fetch_lineage(piece.name.timeline).await?;
        let missing = || Error::Missing {
            object: piece.name.to_string(),
            reason: "it was listed a moment ago".into(),
        };
        match &piece.source {
            PieceSource::Sealed => {
                let bytes = self
                    .fetch_sealed(piece.name, &lineage)
                    .await?
                    .ok_or_else(missing)?;
                Ok(PieceBytes {
                    length: self.size.bytes(),
                    bytes,
                    may_end_torn: false,
                })
            }
            PieceSource::Open { tail, partials } => {
                let mut objects = TimelineObjects::default();
                objects
                    .tails
                    .insert(piece.name, tail.iter().copied().collect());
                objects.partials = partials.iter().copied().collect();
                let segment = self
                    .fetch_incomplete(piece.name, &objects, &lineage)
                    .await?
                    .ok_or_else(missing)?;
                Ok(PieceBytes {
                    bytes: segment.bytes,
                    length: segment.length,
                    may_end_torn: !partials.is_empty(),
                })
            }
        }
    }
}
