//! Objects that are small and not a link of any chain: claims, gaps, acknowledgements and roll-ups, whose plain documents are parsed, and backup history files.
//! And whether `cluster.json` says the same as the backups.
//!
//! Owns what each document must say of its own place. Backups' descriptors and history files, which everything else stands on, are read by
//! `survey.rs`.

use super::Job;
use super::finding::{Found, Place, Problem};
use super::memory::Memory;
use super::reader::{Examined, Want};
use super::survey::{KnownBackup, Survey};
use crate::error::Result;
use repository::Error as Stored;
use repository::Repository;
use repository::backup::BackupClaim;
use repository::catalog::GapRange;
use repository::cluster::ClusterDocument;
use repository::descriptor::FORMAT;
use repository::key::{BackupObject, ObjectKey};
use wal_format::{Lsn, TimelineId};

/// Largest backup history file.
const MAX_BACKUP_HISTORY_BYTES: usize = 1 << 20;

/// Looks at each of them.
pub(crate) async fn check_documents(
    job: &Job<'_>,
    repository: &Repository,
    memory: &mut Memory,
) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for (key, meta) in &job.survey.objects {
        let name = key.to_string();
        let is_sealed = matches!(key, ObjectKey::BackupHistory { .. });
        if is_sealed && memory.knows(&name, *meta, job.enough) {
            job.reader.remembered();
            continue;
        }
        let seen = match key {
            ObjectKey::BackupHistory { .. } => {
                let limit = MAX_BACKUP_HISTORY_BYTES;
                job.reader.examine(key, limit, Want::Checked).await?
            }
            ObjectKey::Backup {
                object: BackupObject::Started,
                ..
            }
            | ObjectKey::Gap { .. }
            | ObjectKey::GapAck { .. }
            | ObjectKey::RollUp { .. } => match check_document(repository, key).await {
                Ok(()) => {
                    job.reader.count_read(meta.size);
                    continue;
                }
                Err(error) => job.reader.judge(key, error)?,
            },
            _ => continue,
        };
        let (problem, detail) = match seen {
            Examined::Good { depth, .. } => {
                if let Some(depth) = depth {
                    memory.note(&name, *meta, depth);
                }
                continue;
            }
            Examined::Bad(problem, detail) => (problem, detail),
            Examined::Gone => (Problem::Missing, "it was listed a moment ago".to_owned()),
        };
        memory.forget(&name);
        found.push(Found {
            object: name,
            place: match key {
                ObjectKey::RollUp { .. } => Place::Cache,
                _ => Place::Nowhere,
            },
            lsn: None,
            problem,
            detail,
        });
    }
    Ok(found)
}

/// Parses a document and holds it against its key.
async fn check_document(
    repository: &Repository,
    key: &ObjectKey,
) -> std::result::Result<(), Stored> {
    match key {
        ObjectKey::RollUp { .. } => repository.fetch_roll_up(key).await.map(drop),
        ObjectKey::Gap {
            cluster,
            timeline,
            from,
            to,
        } => {
            let range = gap(*timeline, *from, *to);
            repository.fetch_gap(*cluster, range).await.map(drop)
        }
        ObjectKey::GapAck {
            cluster,
            timeline,
            from,
            to,
        } => {
            let range = gap(*timeline, *from, *to);
            let acknowledged = repository.fetch_acknowledgement(*cluster, range);
            acknowledged.await.map(drop)
        }
        ObjectKey::Backup { label, .. } => {
            let claim: BackupClaim = repository.fetch_json(key).await?;
            let key = key.to_string();
            if claim.label != label.as_str() {
                let found = format!("the claim on {}", claim.label);
                return Err(Stored::Misplaced { key, found });
            }
            match claim.format > FORMAT {
                true => Err(Stored::FromTheFuture {
                    key,
                    what: format!("format {}", claim.format),
                }),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn gap(timeline: TimelineId, from: Lsn, to: Lsn) -> GapRange {
    GapRange { timeline, from, to }
}

/// Whether the cluster's document and its backups say the same of the size of segments. A backup that alone says otherwise is told in `found`;
/// what is given back is the cluster's own document, if no backup agrees with it.
pub(crate) fn check_cluster(
    document: &ClusterDocument,
    survey: &Survey,
    found: &mut Vec<Found>,
) -> Option<Found> {
    let fits =
        |backup: &&KnownBackup| backup.descriptor.wal_segment_size == document.wal_segment_size;
    let any_fits = survey.backups.iter().any(|backup| fits(&backup));
    let contradiction = |key: ObjectKey, place, detail| Found {
        object: key.to_string(),
        place,
        lsn: None,
        problem: Problem::Contradiction,
        detail,
    };
    let cluster = survey.cluster;
    for other in survey.backups.iter().filter(|backup| !fits(backup)) {
        let (said, label) = (other.descriptor.wal_segment_size, &other.facts.label);
        if !any_fits {
            let detail = format!(
                "it says that WAL segments have {} bytes, backup {label} says {said}",
                document.wal_segment_size
            );
            return Some(contradiction(
                ObjectKey::Cluster(cluster),
                Place::Cluster,
                detail,
            ));
        }
        let detail = format!(
            "it says that WAL segments have {said} bytes, cluster.json and other backups say {}",
            document.wal_segment_size
        );
        let key = ObjectKey::Backup {
            cluster,
            label: label.clone(),
            object: BackupObject::Descriptor,
        };
        found.push(contradiction(key, Place::Backup(label.to_string()), detail));
    }
    None
}
