//! Whether a base backup is wanted, beside receiving and never delaying it: there is none yet, or none was taken behind the last gap. Says
//! so until there is one, and takes it if that is configured.
//!
//! What is wanted is read from the repository each time, so that a restart at any moment loses nothing of it. Owns the question and
//! the patience. Does not own taking a backup (`base_backup`, through [`TakeBackup`]).

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use repository::Repository;
use repository::catalog::GapRange;
use repository::key::{self, ClusterId};
use tokio::sync::{Notify, watch};
use wal_format::{Lsn, SegmentSize};

use super::error_text;
use crate::Result;

/// How often a missing base backup is spoken of.
const REMINDER: Duration = Duration::from_secs(600);
/// Pause before a backup that failed is taken again.
const RETRY: Duration = Duration::from_secs(60);
/// Pause before looking again whether a gap stays open.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Newest backups whose descriptors are read.
const MAX_DESCRIPTORS: usize = 4;

/// Takes a base backup and gives its label. It has to end soon after the channel holds true.
#[derive(Clone)]
pub struct TakeBackup(Arc<Take>);

type Take = dyn Fn(watch::Receiver<bool>) -> BoxFuture<'static, Result<String>> + Send + Sync;

impl TakeBackup {
    /// From a function that does it.
    pub fn new<F, O>(take: F) -> Self
    where
        F: Fn(watch::Receiver<bool>) -> O + Send + Sync + 'static,
        O: Future<Output = Result<String>> + Send + 'static,
    {
        Self(Arc::new(move |stop| Box::pin(take(stop))))
    }
}

impl fmt::Debug for TakeBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TakeBackup")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// WAL alone restores nothing.
    First,
    /// What was written behind this gap cannot be restored.
    Behind(GapRange),
    /// As much, unless the gap is being closed: nothing behind it is stored yet.
    Perhaps,
}

/// Which backup is wanted, given where the newest ones start, what is missing, and where the stored WAL ends.
fn judge(starts: &[Lsn], open_gaps: &[GapRange], end: Option<Lsn>) -> Wanted {
    let last = open_gaps.iter().max_by_key(|gap| gap.to);
    match (starts.iter().max(), last) {
        (None, _) => Wanted::First,
        (Some(newest), Some(gap)) if *newest < gap.to => match end > Some(gap.to) {
            true => Wanted::Behind(*gap),
            false => Wanted::Perhaps,
        },
        (Some(_), _) => Wanted::Nothing,
    }
}

/// What the task needs.
pub(super) struct Keeper {
    /// All that are written to, at least one: what one of them has, the others are filled with.
    pub(super) repositories: Vec<Repository>,
    pub(super) cluster: ClusterId,
    pub(super) size: SegmentSize,
    pub(super) take: Option<TakeBackup>,
    /// Told each time WAL begins to arrive.
    pub(super) receiving: Arc<Notify>,
    pub(super) stop: watch::Receiver<bool>,
}

impl Keeper {
    /// Runs until it is dropped, or until asked to stop.
    pub(super) async fn keep(mut self) {
        // A backup counts only once its WAL is stored: nothing is taken before WAL arrives.
        let mut is_receiving = false;
        loop {
            let pause = match self.ask().await {
                Ok(Wanted::Nothing) => None,
                Ok(Wanted::First) => {
                    tracing::warn!(
                        "no base backup yet: WAL alone restores nothing; take one with: walden backup"
                    );
                    Some(REMINDER)
                }
                Ok(Wanted::Perhaps) => Some(LOOK_AGAIN),
                Ok(Wanted::Behind(gap)) => self.close_behind(gap, is_receiving).await,
                Err(error) => {
                    tracing::debug!(
                        error = error_text(&error),
                        "the list of backups could not be read"
                    );
                    Some(RETRY)
                }
            };
            let receiving = Arc::clone(&self.receiving);
            tokio::select! {
                () = sleep(pause) => {}
                () = receiving.notified() => is_receiving = true,
                _ = self.stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn close_behind(&self, gap: GapRange, is_receiving: bool) -> Option<Duration> {
        let (from, to) = (gap.from, gap.to);
        let Some(take) = &self.take else {
            tracing::error!(%from, %to,
                "no base backup was taken since the last gap: what was written behind it cannot be restored; take one with: walden backup");
            return Some(REMINDER);
        };
        if !is_receiving {
            return None;
        }
        tracing::info!(%from, %to, "taking a base backup, because WAL was lost (backup.on_gap)");
        match take.0(self.stop.clone()).await {
            Ok(label) => {
                tracing::info!(label, "took a base backup behind the gap");
                // Another gap may have opened meanwhile.
                Some(Duration::ZERO)
            }
            Err(error) => {
                tracing::error!(
                    error = error_text(&error),
                    retry_seconds = RETRY.as_secs(),
                    "the base backup behind the gap failed: until there is one, what is written now cannot be restored"
                );
                Some(RETRY)
            }
        }
    }

    async fn ask(&self) -> Result<Wanted> {
        let (mut wanted, mut failed) = (None, None);
        for repository in &self.repositories {
            match self.ask_one(repository).await {
                Ok(Wanted::Nothing) => return Ok(Wanted::Nothing),
                Ok(one) => wanted = wanted.or(Some(one)),
                Err(error) => failed = Some(error),
            }
        }
        match (wanted, failed) {
            (None, Some(error)) => Err(error),
            (wanted, _) => Ok(wanted.unwrap_or(Wanted::Nothing)),
        }
    }

    async fn ask_one(&self, repository: &Repository) -> Result<Wanted> {
        let cluster = self.cluster;
        let gaps = repository
            .list_below(cluster, &key::gaps_prefix(cluster))
            .await?;
        let catalog = match gaps.gaps.is_empty() {
            true => {
                let prefix = key::backups_prefix(cluster);
                repository.list_below(cluster, &prefix).await?
            }
            // Whether they are closed shows in the WAL alone.
            false => repository.list(cluster).await?,
        };
        let open = catalog.open_gaps(self.size);
        let open: Vec<GapRange> = open.into_iter().map(|(gap, _)| gap).collect();
        let mut starts = Vec::new();
        let newest = catalog.complete_backups().rev();
        for label in newest.take(MAX_DESCRIPTORS) {
            if open.is_empty() {
                // That there is one is enough.
                return Ok(Wanted::Nothing);
            }
            starts.push(repository.fetch_backup(cluster, label).await?.start_lsn);
        }
        let timelines = catalog.timelines.keys();
        let ends = timelines.filter_map(|timeline| catalog.wal_end(*timeline, self.size));
        Ok(judge(&starts, &open, ends.max()))
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal_format::TimelineId;

    #[test]
    fn a_backup_is_wanted_until_one_starts_behind_the_last_gap() {
        let gap = |from, to| GapRange {
            timeline: TimelineId::FIRST,
            from: Lsn::new(from),
            to: Lsn::new(to),
        };
        let (one, two) = (gap(10, 20), gap(30, 40));
        let judge = |starts: &[u64], open: &[GapRange], end| {
            let starts: Vec<Lsn> = starts.iter().copied().map(Lsn::new).collect();
            super::judge(&starts, open, Some(Lsn::new(end)))
        };
        assert_eq!(judge(&[], &[], 50), Wanted::First);
        assert_eq!(judge(&[], &[one], 50), Wanted::First);
        assert_eq!(judge(&[5], &[], 50), Wanted::Nothing);
        assert_eq!(judge(&[5], &[one], 21), Wanted::Behind(one));
        assert_eq!(judge(&[5], &[one], 20), Wanted::Perhaps);
        assert_eq!(judge(&[20], &[one], 50), Wanted::Nothing);
        assert_eq!(judge(&[25, 5], &[two, one], 50), Wanted::Behind(two));
        assert_eq!(judge(&[45, 5], &[one, two], 50), Wanted::Nothing);
    }
}
