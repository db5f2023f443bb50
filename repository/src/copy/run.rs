//! Carrying a copy out: several objects at a time, stage after stage, and what came of it.
//!
//! Owns the bounds of memory and of what is reported, and what an object that did not get over holds back. Does not own the order
//! (`copy.rs`) or the requests (`repo.rs`).

use std::collections::BTreeSet;

use futures_util::StreamExt;
use tokio::sync::Semaphore;
use wal_format::TimelineId;

use super::{CopyError, Item, Missing, Stage, compare_object, copy_object, lacking};
use crate::key::{BackupLabel, BackupObject, ClusterId, ObjectKey};
use crate::repo::Stored;
use crate::{Error, ErrorClass, Repository};

/// Objects that did not get over that a report names; the others are counted.
pub const MAX_NAMED_FAILURES: usize = 100;
/// Objects without an answer one after the other after which a store counts as gone: what is left is another run's.
const MAX_UNANSWERED: u32 = 8;
/// Unit of the memory that is shared out, in bytes.
const GRAIN: u64 = 64 << 10;

/// How much is under way at a time.
#[derive(Clone, Copy, Debug)]
pub struct CopyLimits {
    /// Objects.
    pub objects: usize,
    /// Stored bytes; an object that is larger goes alone.
    pub bytes: u64,
}

impl Default for CopyLimits {
    fn default() -> Self {
        Self {
            objects: 8,
            bytes: 256 << 20,
        }
    }
}

/// What is told while a copy runs.
#[derive(Debug)]
pub enum CopyEvent<'a> {
    /// An object is over, or was there.
    Done(&'a Item),
    /// An object is not.
    Failed(&'a Failed),
}

/// An object that did not get over.
#[derive(Debug)]
pub struct Failed {
    /// Which.
    pub key: ObjectKey,
    /// Why; `None`: it was held back because another one that it needs failed.
    pub error: Option<CopyError>,
}

/// What came of a copy.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// Objects copied.
    pub copied: u64,
    /// Their stored bytes.
    pub copied_bytes: u64,
    /// Objects that were there with the same contents, although the listing had them missing or of another size.
    pub already: u64,
    /// Objects that stand on both sides with different contents: both stay.
    pub conflicts: u64,
    /// Objects that are damaged or gone in the source, or damaged in the target.
    pub damaged: u64,
    /// Objects held back because one they need did not get over.
    pub held_back: u64,
    /// Objects that a store did not give or take; another run may.
    pub unanswered: u64,
    /// Objects the source no longer had when they were asked for, and did not need to have.
    pub gone: u64,
    /// What failed, at most [`MAX_NAMED_FAILURES`].
    pub failures: Vec<Failed>,
    /// The run ended early, as a store no longer answered.
    pub gave_up: bool,
}

impl CopyReport {
    /// Whether everything that was to be copied is in the target, and nothing contradicts.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        (
            self.conflicts,
            self.damaged,
            self.held_back,
            self.unanswered,
        ) == (0, 0, 0, 0)
    }
}

/// What objects that failed hold back.
#[derive(Default)]
struct Held {
    clusters: BTreeSet<ClusterId>,
    /// Their WAL would be read under another history.
    timelines: BTreeSet<(ClusterId, TimelineId)>,
    backups: BTreeSet<(ClusterId, BackupLabel)>,
}

impl Held {
    fn add(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Cluster(cluster) => {
                self.clusters.insert(*cluster);
            }
            ObjectKey::History { cluster, timeline } => {
                self.timelines.insert((*cluster, *timeline));
            }
            // The names are a service; a restore does not need them.
            ObjectKey::Backup {
                object: BackupObject::Catalog,
                ..
            } => {}
            ObjectKey::Backup { cluster, label, .. } => {
                self.backups.insert((*cluster, label.clone()));
            }
            _ => {}
        }
    }

    fn holds(&self, key: &ObjectKey) -> bool {
        let timeline = match key {
            ObjectKey::Segment { name, .. }
            | ObjectKey::Partial { name, .. }
            | ObjectKey::BackupHistory { name, .. }
            | ObjectKey::Tail { name, .. } => Some(name.timeline),
            ObjectKey::RollUp { timeline, .. } => Some(*timeline),
            _ => None,
        };
        key.cluster().is_some_and(|cluster| {
            self.clusters.contains(&cluster)
                || timeline.is_some_and(|timeline| self.timelines.contains(&(cluster, timeline)))
                || match key {
                    ObjectKey::Backup {
                        label,
                        object: BackupObject::Descriptor,
                        ..
                    } => self.backups.contains(&(cluster, label.clone())),
                    _ => false,
                }
        })
    }
}

/// Compares what both have with different sizes, then copies what the target lacks. An object that cannot be copied is named, what
/// needs it is held back, and the rest goes on. Interrupted anywhere, the next run continues with what is missing then.
pub async fn copy_missing(
    from: &Repository,
    to: &Repository,
    missing: &Missing,
    limits: CopyLimits,
    tell: &(dyn Fn(CopyEvent<'_>) + Sync),
) -> CopyReport {
    let mut report = CopyReport::default();
    let mut held = Held::default();
    let memory = Semaphore::new(permits(limits.bytes));
    let mut unanswered = 0;
    let mut comparisons = futures_util::stream::iter(&missing.differing)
        .map(|item| async move { (item, compare_object(from, to, item).await) })
        .buffered(limits.objects.max(1));
    while let Some((item, compared)) = comparisons.next().await {
        match compared {
            Ok(()) => {
                report.already += 1;
                unanswered = 0;
                tell(CopyEvent::Done(item));
            }
            Err(error) => {
                held.add(&item.key);
                if report.fail(item, Some(error), &mut unanswered, tell) {
                    return report;
                }
            }
        }
    }
    drop(comparisons);
    let mut there: BTreeSet<&ObjectKey> = missing
        .present
        .iter()
        .chain(&missing.differing)
        .map(|item| &item.key)
        .collect();
    for stage in missing
        .objects
        .chunk_by(|one, next| Stage::of(&one.key) == Stage::of(&next.key))
    {
        let wanted = stage.iter().filter(|item| {
            let holds = held.holds(&item.key);
            if holds {
                report.fail(item, None, &mut 0, tell);
            }
            !holds
        });
        let wanted: Vec<&Item> = wanted.collect();
        let (known, memory) = (&there, &memory);
        let mut copies = futures_util::stream::iter(wanted)
            .map(|item| async move {
                let share = permits(item.size.min(limits.bytes));
                // The semaphore is never closed.
                let _share = memory
                    .acquire_many(u32::try_from(share).unwrap_or(u32::MAX))
                    .await;
                if let Err(error) = check_backup(from, to, &item.key, known).await {
                    return (item, Err(error));
                }
                (item, copy_object(from, to, &item.key, item.size).await)
            })
            .buffered(limits.objects.max(1));
        let mut over = Vec::new();
        while let Some((item, copied)) = copies.next().await {
            match copied {
                Ok(stored) => {
                    unanswered = 0;
                    over.push(&item.key);
                    match stored {
                        Stored::New => {
                            report.copied += 1;
                            report.copied_bytes += item.size;
                        }
                        Stored::Already => report.already += 1,
                    }
                    tell(CopyEvent::Done(item));
                }
                // Removed since it was listed, because something that covers it was stored: the next run finds that.
                Err(CopyError::From { source, .. })
                    if source.class() == ErrorClass::NotFound && may_vanish(&item.key) =>
                {
                    report.gone += 1;
                    tell(CopyEvent::Done(item));
                }
                Err(error) => {
                    held.add(&item.key);
                    if report.fail(item, Some(error), &mut unanswered, tell) {
                        return report;
                    }
                }
            }
        }
        drop(copies);
        there.extend(over);
    }
    report
}

impl CopyReport {
    /// Counts a failure; `true` when it is time to give up.
    fn fail(
        &mut self,
        item: &Item,
        error: Option<CopyError>,
        unanswered: &mut u32,
        tell: &(dyn Fn(CopyEvent<'_>) + Sync),
    ) -> bool {
        let class = error.as_ref().map(CopyError::class);
        match class {
            None => self.held_back += 1,
            Some(ErrorClass::Conflict) => self.conflicts += 1,
            Some(ErrorClass::Corrupt | ErrorClass::NotFound) => self.damaged += 1,
            Some(_) => self.unanswered += 1,
        }
        let failed = Failed {
            key: item.key.clone(),
            error,
        };
        tell(CopyEvent::Failed(&failed));
        if self.failures.len() < MAX_NAMED_FAILURES {
            self.failures.push(failed);
        }
        match class {
            None | Some(ErrorClass::Conflict | ErrorClass::Corrupt | ErrorClass::NotFound) => false,
            Some(_) => {
                *unanswered += 1;
                self.gave_up = *unanswered >= MAX_UNANSWERED;
                self.gave_up
            }
        }
    }
}

/// A backup's descriptor says that its parts are there: they must be.
async fn check_backup(
    from: &Repository,
    to: &Repository,
    key: &ObjectKey,
    known: &BTreeSet<&ObjectKey>,
) -> Result<(), CopyError> {
    let ObjectKey::Backup {
        cluster,
        label,
        object: BackupObject::Descriptor,
    } = key
    else {
        return Ok(());
    };
    let backup = from
        .fetch_backup(*cluster, label)
        .await
        .map_err(|error| CopyError::from(from, error))?;
    match lacking(*cluster, label, &backup, |key| known.contains(key)) {
        None => Ok(()),
        Some(part) => Err(CopyError::from(
            from,
            Error::NotFound {
                location: format!(
                    "{}/{part}, which backup.json lists and {} lacks too",
                    from.url(),
                    to.name()
                ),
            },
        )),
    }
}

/// Whether an object may be removed by what makes it superfluous.
fn may_vanish(key: &ObjectKey) -> bool {
    matches!(key, ObjectKey::Tail { .. } | ObjectKey::RollUp { .. })
}

fn permits(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(GRAIN)).unwrap_or(Semaphore::MAX_PERMITS)
}
