//! The commits of WAL that a timeline wrote after a later one had left it: what a failover has cost.
//!
//! Owns reading them out of the WAL. Which stretch lies beyond a switch point is the caller's to know.

use crate::error::Result;
use crate::gather::PlanMaterial;
use crate::plan::plan_pieces;
use crate::search::{WalSource, stored_bytes};
use crate::window::Commit;
use repository::Repository;
use repository::key::ClusterId;
use repository::sealed::OpenPolicy;
use wal_format::{Lsn, RecordKind, Step, TimelineId, WalDecoder};

/// Most segments that are read: beyond, the count is a lower bound.
const MAX_SEGMENTS: usize = 64;

/// What was found in a stretch of WAL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftCommits {
    /// How many transactions committed there.
    pub count: u64,
    /// The last of them in WAL order.
    pub last: Option<Commit>,
    /// All of the stretch was read; else there may be more.
    pub is_whole: bool,
}

/// Counts the commits of `timeline` whose records start in `[from, to)`.
///
/// # Errors
/// Class `Key`: no key opens the WAL. `NotFound`, `Corrupt`: it is not stored, or damaged. Others from the repository.
pub async fn count_commits(
    repository: &Repository,
    policy: &OpenPolicy,
    cluster: ClusterId,
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
) -> Result<LeftCommits> {
    let material = PlanMaterial::gather(repository, policy, cluster, Some(timeline)).await?;
    let pieces = plan_pieces(&material.catalog, &material.path, from).pieces;
    let mut found = LeftCommits::default();
    let Some(first) = pieces.first() else {
        return Ok(found);
    };
    let mut decoder = WalDecoder::new(material.decoder(), first.start).map_err(|error| {
        crate::error::Error::Integrity {
            object: first.name.to_string(),
            reason: error.to_string(),
        }
    })?;
    let mut reached = first.start;
    for piece in pieces.iter().take(MAX_SEGMENTS) {
        let content = material.bytes(piece).await?;
        let bytes = stored_bytes(piece, &content);
        decoder.push(bytes, |step| {
            if let Step::Record(record) = step
                && let Some(
                    RecordKind::Commit { xid, time } | RecordKind::CommitPrepared { xid, time, .. },
                ) = record.kind
                && record.start >= from
                && record.start < to
            {
                found.count += 1;
                found.last = Some(Commit {
                    time,
                    xid: xid.0,
                    lsn: record.start,
                    end: record.end,
                });
            }
        });
        reached = piece.start.saturating_add(bytes.len() as u64);
        if reached >= to {
            break;
        }
    }
    found.is_whole = reached >= to;
    Ok(found)
}
