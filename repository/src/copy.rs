//! Filling a repository from another one: which objects it lacks, in which order they are stored, and one object's way over.
//!
//! Owns the order in which the target never says more than is true, and the checks of an object on its way: no key is needed, objects are
//! taken over byte for byte. Does not own carrying a whole plan out (`copy/run.rs`) or choosing what to copy (the caller's).

mod run;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use wal_format::SegmentName;

use crate::backup::BackupDescriptor;
use crate::index::RollUp;
use crate::key::{BackupLabel, BackupObject, ClusterId, ObjectKey};
use crate::repo::Stored;
use crate::sealed::Sealed;
use crate::{Error, ErrorClass, Repository};

pub use run::{CopyEvent, CopyLimits, CopyReport, Failed, MAX_NAMED_FAILURES, copy_missing};

/// When an object is stored: a stage begins when everything of the stages before it is durable, so that whatever interrupts a copy leaves
/// a target in which nothing refers to what is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// `cluster.json`: without it there is no cluster.
    Cluster,
    /// Timeline history files, recorded gaps and their acknowledgements: what says how WAL is to be read stands before the WAL.
    Histories,
    /// Sealed segments, partials and backup history files, by position.
    Wal,
    /// Tail chunks, by position.
    Tails,
    /// Everything of a backup but its descriptor: the backup does not exist yet.
    Backups,
    /// `backup.json`: now it does, and the WAL it needs is there.
    BackupDescriptors,
    /// Roll-ups: a cache of what is there.
    RollUps,
}

impl Stage {
    /// When an object is stored; `None` for `walden.json` and `RESCUE.md`, which every repository has of its own.
    #[must_use]
    pub fn of(key: &ObjectKey) -> Option<Self> {
        Some(match key {
            ObjectKey::Repository | ObjectKey::Rescue => return None,
            ObjectKey::Cluster(_) => Self::Cluster,
            ObjectKey::Segment { .. }
            | ObjectKey::Partial { .. }
            | ObjectKey::BackupHistory { .. } => Self::Wal,
            ObjectKey::Tail { .. } => Self::Tails,
            ObjectKey::Backup {
                object: BackupObject::Descriptor,
                ..
            } => Self::BackupDescriptors,
            ObjectKey::Backup { .. } => Self::Backups,
            ObjectKey::RollUp { .. } => Self::RollUps,
            // Histories, gaps, and whatever else is said about WAL.
            _ => Self::Histories,
        })
    }
}

/// An object of the source, with its stored size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which.
    pub key: ObjectKey,
    /// Stored size in bytes.
    pub size: u64,
}

/// What a repository lacks of what another one has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// What is to be stored, in this order; see [`Stage`].
    pub objects: Vec<Item>,
    /// What both have with different sizes: the same contents sealed twice, or a conflict. [`compare_object`] tells.
    pub differing: Vec<Item>,
    /// What both have with the same size.
    pub present: Vec<Item>,
    /// Backups that the source holds unfinished: they do not exist.
    pub unfinished_backups: BTreeSet<BackupLabel>,
    /// Objects of the source whose path is no key of format 1.
    pub unknown: u64,
}

impl Missing {
    /// Keeps what `wanted` says. Documents about the cluster and its timelines should always be.
    pub fn retain(&mut self, wanted: impl Fn(&ObjectKey) -> bool) {
        for items in [&mut self.objects, &mut self.differing, &mut self.present] {
            items.retain(|item| wanted(&item.key));
        }
    }

    /// Stored bytes of what is to be copied.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|item| item.size).sum()
    }
}

/// What `to` lacks of what `from` has; both are listings of (path, stored size in bytes) of the same clusters.
#[must_use]
pub fn missing<F: AsRef<str>, T: AsRef<str>>(
    from: impl IntoIterator<Item = (F, u64)>,
    to: impl IntoIterator<Item = (T, u64)>,
) -> Missing {
    let mut found = Missing::default();
    let mut objects = Vec::new();
    for (path, size) in from {
        match path.as_ref().parse::<ObjectKey>() {
            Ok(key) if Stage::of(&key).is_some() => objects.push(Item { key, size }),
            Ok(_) => {}
            Err(_) => found.unknown += 1,
        }
    }
    let known: BTreeMap<ObjectKey, u64> = to
        .into_iter()
        .filter_map(|(path, size)| Some((path.as_ref().parse().ok()?, size)))
        .collect();
    let sealed: BTreeSet<(ClusterId, SegmentName)> = objects
        .iter()
        .map(|item| &item.key)
        .chain(known.keys())
        .filter_map(|key| match key {
            ObjectKey::Segment { cluster, name } => Some((*cluster, *name)),
            _ => None,
        })
        .collect();
    let finished: BTreeSet<(ClusterId, BackupLabel)> = objects
        .iter()
        .filter_map(|item| match &item.key {
            ObjectKey::Backup {
                cluster,
                label,
                object: BackupObject::Descriptor,
            } => Some((*cluster, label.clone())),
            _ => None,
        })
        .collect();
    for item in objects {
        match &item.key {
            ObjectKey::Tail { cluster, name, .. } if sealed.contains(&(*cluster, *name)) => {
                // A sealed segment of the target covers it; listings leave out those that one of the source does.
                continue;
            }
            ObjectKey::Backup { cluster, label, .. }
                if !finished.contains(&(*cluster, label.clone())) =>
            {
                found.unfinished_backups.insert(label.clone());
                continue;
            }
            _ => {}
        }
        match known.get(&item.key) {
            None => found.objects.push(item),
            Some(size) if *size == item.size => found.present.push(item),
            Some(_) => found.differing.push(item),
        }
    }
    found
        .objects
        .sort_by_cached_key(|item| (Stage::of(&item.key), place(&item.key), item.key.clone()));
    found
}

/// Where in WAL an object belongs: log and segment, timelines side by side.
fn place(key: &ObjectKey) -> Option<(u32, u32)> {
    match key {
        ObjectKey::Segment { name, .. }
        | ObjectKey::Partial { name, .. }
        | ObjectKey::BackupHistory { name, .. }
        | ObjectKey::Tail { name, .. } => Some((name.log, name.segment)),
        _ => None,
    }
}

/// Why an object did not get over: which side failed is what a caller acts on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source did not give it, or gave something that is not what it should be: another source may.
    #[error("read from {repository}")]
    From {
        /// The source's name.
        repository: String,
        /// What happened.
        #[source]
        source: Error,
    },
    /// The target did not take it, or holds something else (class `Conflict`), which stays.
    #[error("write to {repository}")]
    To {
        /// The target's name.
        repository: String,
        /// What happened.
        #[source]
        source: Error,
    },
}

impl CopyError {
    /// What can be done about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::From { source, .. } | Self::To { source, .. } => source.class(),
        }
    }

    fn from(from: &Repository, source: Error) -> Self {
        Self::From {
            repository: from.name().to_owned(),
            source,
        }
    }

    fn to(to: &Repository, source: Error) -> Self {
        Self::To {
            repository: to.name().to_owned(),
            source,
        }
    }
}

/// Copies one object of `size` stored bytes. It is checked against its descriptor before it is stored, and stored only if nothing stands
/// at its key: the same archived contents there are success. A `backup.json` is the caller's to hold back until its parts are over.
///
/// # Errors
/// `From` `NotFound`: the source has it no longer. `From` `Corrupt`: not what it says it is. `To` `Conflict`: other contents are there.
/// Others from the stores.
pub async fn copy_object(
    from: &Repository,
    to: &Repository,
    key: &ObjectKey,
    size: u64,
) -> Result<Stored, CopyError> {
    let limit = usize::try_from(size).unwrap_or(usize::MAX);
    let source = |error| CopyError::from(from, error);
    let target = |error| CopyError::to(to, error);
    let bytes = from.fetch_stored(key, limit).await.map_err(source)?;
    if is_sealed(key) {
        let place = key.clone();
        let checked = tokio::task::spawn_blocking(move || Sealed::from_stored(place, bytes));
        let sealed = match checked.await {
            Ok(sealed) => sealed.map_err(source)?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        return to.put(&sealed).await.map_err(target);
    }
    match key {
        ObjectKey::RollUp { .. } => {
            RollUp::parse(key, &bytes).map_err(source)?;
            to.put_roll_up_bytes(key, bytes).await.map_err(target)
        }
        ObjectKey::Cluster(cluster) => {
            // Read as what it must be; made at another moment it is the same cluster still.
            let ours = from.fetch_cluster(*cluster).await.map_err(source)?;
            match to.put_document(key, bytes).await {
                Err(error) if error.class() == ErrorClass::Conflict => {
                    let theirs = to.fetch_cluster(*cluster).await.map_err(target)?;
                    match ours
                        .zip(theirs)
                        .and_then(|(ours, theirs)| ours.difference(&theirs))
                    {
                        None => Ok(Stored::Already),
                        Some(what) => Err(target(Error::AlreadyStored {
                            key: key.to_string(),
                            what: what.to_owned(),
                        })),
                    }
                }
                stored => stored.map_err(target),
            }
        }
        _ => {
            serde_json::from_slice::<Value>(&bytes).map_err(|error| {
                source(Error::Damaged {
                    key: key.to_string(),
                    what: format!("it cannot be read: {error}"),
                })
            })?;
            to.put_document(key, bytes).await.map_err(target)
        }
    }
}

/// Whether an object that both sides have is the same archived contents: two small requests for a sealed one.
///
/// # Errors
/// As [`copy_object`].
pub async fn compare_object(
    from: &Repository,
    to: &Repository,
    item: &Item,
) -> Result<(), CopyError> {
    let key = &item.key;
    if is_sealed(key) {
        let (ours, theirs) = tokio::join!(from.fetch_descriptor(key), to.fetch_descriptor(key));
        let ours = ours.map_err(|error| CopyError::from(from, error))?;
        let theirs = theirs.map_err(|error| CopyError::to(to, error))?;
        return match ours.difference(&theirs) {
            None => Ok(()),
            Some(what) => Err(CopyError::to(
                to,
                Error::AlreadyStored {
                    key: key.to_string(),
                    what: what.to_owned(),
                },
            )),
        };
    }
    if let ObjectKey::RollUp { .. } = key {
        // Its key holds its checksum: either it is this one, or it is damaged.
        let theirs = to.fetch_roll_up(key).await;
        return theirs.map(drop).map_err(|error| CopyError::to(to, error));
    }
    copy_object(from, to, key, item.size).await.map(drop)
}

/// An object that a backup's descriptor lists and nobody has: then the backup is not whole.
#[must_use]
pub fn lacking(
    cluster: ClusterId,
    label: &BackupLabel,
    backup: &BackupDescriptor,
    has: impl Fn(&ObjectKey) -> bool,
) -> Option<ObjectKey> {
    let parts = backup.parts.iter().map(|part| BackupObject::Part {
        archive: part.archive,
        part: part.part,
    });
    parts
        .chain([BackupObject::Manifest])
        .map(|object| ObjectKey::Backup {
            cluster,
            label: label.clone(),
            object,
        })
        .find(|key| !has(key))
}

/// Whether an object carries a descriptor and checksums of its own.
fn is_sealed(key: &ObjectKey) -> bool {
    matches!(
        key,
        ObjectKey::Segment { .. }
            | ObjectKey::Partial { .. }
            | ObjectKey::BackupHistory { .. }
            | ObjectKey::History { .. }
            | ObjectKey::Tail { .. }
            | ObjectKey::Backup {
                object: BackupObject::Manifest | BackupObject::Catalog | BackupObject::Part { .. },
                ..
            }
    )
}

#[cfg(test)]
#[path = "copy/tests.rs"]
mod tests;
