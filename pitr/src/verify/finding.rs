//! What verification finds: the object, the place, what is wrong, whom it affects and what to do (pure).
//!
//! Owns the words. Looking is the business of the files beside this one.

use super::survey::Survey;
use serde::Serialize;
use std::fmt;
use wal_format::{Lsn, TimelineId};

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// It is not there.
    Missing,
    /// Its bytes are not those that were stored.
    Damaged,
    /// It is the object of another key.
    Misplaced,
    /// It was written by a later version.
    LaterVersion,
    /// It is not encrypted, although an identity was given.
    Unencrypted,
    /// The identities that open other objects do not open it.
    WrongKey,
    /// It is of a timeline of the same number with another history.
    Lineage,
    /// Its records do not continue those before it.
    Chain,
    /// WAL in it is not valid.
    InvalidWal,
    /// What it says of itself, or of others, is not so.
    Contradiction,
    /// A data page does not have its checksum.
    PageChecksum,
}

/// Where a problem is, so that it can be told whom it affects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// WAL of a timeline from a position on.
    Wal(TimelineId, Lsn),
    /// A timeline's history file.
    History(TimelineId),
    /// A backup, by its label.
    Backup(String),
    /// What every backup of the cluster stands on.
    Cluster,
    /// What can be made again from the rest.
    Cache,
    /// Nothing that a recovery needs.
    Nowhere,
}

/// Something that is wrong, as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) object: String,
    pub(crate) place: Place,
    pub(crate) lsn: Option<Lsn>,
    pub(crate) problem: Problem,
    pub(crate) detail: String,
}

/// Something that is wrong, with what it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Key of the object.
    pub object: String,
    /// The position in WAL, if it has one.
    #[serde(serialize_with = "optional_text")]
    pub lsn: Option<Lsn>,
    /// The kind of problem.
    pub problem: Problem,
    /// What exactly.
    pub detail: String,
    /// The backups that lose by it; none if nothing that can be recovered needs the object.
    pub affects: Vec<Effect>,
    /// What to do.
    pub advice: String,
}

/// What a backup loses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Effect {
    /// Its label.
    pub backup: String,
    /// The timeline to which it would recover; `None`: to any.
    pub timeline: Option<u32>,
    /// It can still be recovered to targets before this position; `None`: not at all.
    #[serde(serialize_with = "optional_text")]
    pub usable_to: Option<Lsn>,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backup {}", self.backup)?;
        match self.usable_to {
            Some(lsn) => write!(f, " recovers only to targets before {lsn}")?,
            None => f.write_str(" cannot be recovered")?,
        }
        match self.timeline {
            Some(timeline) => write!(f, " on timeline {timeline}"),
            None => Ok(()),
        }
    }
}

impl Found {
    /// Adds whom it affects and what to do.
    pub(crate) fn conclude(self, survey: &Survey) -> Finding {
        let affects = match &self.place {
            Place::Wal(timeline, lsn) => survey.effects(*timeline, *lsn),
            Place::History(timeline) => survey.effects_of_history(*timeline),
            Place::Backup(label) => Survey::effects_of_backup(label),
            Place::Cluster => survey.effects_of_cluster(),
            Place::Cache | Place::Nowhere => Vec::new(),
        };
        let advice = advice(&self, &affects);
        Finding {
            object: self.object,
            lsn: self.lsn,
            problem: self.problem,
            detail: self.detail,
            affects,
            advice,
        }
    }
}

fn advice(found: &Found, affects: &[Effect]) -> String {
    let another_copy =
        "put the object back from another repository or an older version of it in the store";
    match (&found.place, found.problem) {
        (_, Problem::LaterVersion) => "verify with the version of Walden that wrote it".to_owned(),
        (_, Problem::WrongKey) => "give the identity it was encrypted for as well".to_owned(),
        (_, Problem::Unencrypted) => {
            "find out who stored it; --allow-plain accepts it if that is as it should be".to_owned()
        }
        (Place::Wal(..), _) if affects.is_empty() => {
            "no backup needs it: nothing is lost by it".to_owned()
        }
        (Place::Wal(..), Problem::InvalidWal) => {
            "recovery ends there: take a new base backup now (walden backup), and check the server's disks and memory".to_owned()
        }
        (Place::Wal(..), _) => format!(
            "{another_copy}, or store the segment again with walden archive-push if the server still has it; \
             else take a new base backup now (walden backup)"
        ),
        (Place::History(_), _) => format!(
            "{another_copy}, or store the file again with walden archive-push: the server keeps it in pg_wal"
        ),
        (Place::Backup(_), Problem::PageChecksum) => {
            "the page was damaged on the server before the backup: check the server's disks and that table".to_owned()
        }
        (Place::Backup(_), _) => {
            format!("{another_copy}; else take a new base backup (walden backup)")
        }
        (Place::Cluster, _) => another_copy.to_owned(),
        (Place::Cache, _) => {
            "no recovery needs it: delete it, walden run makes it again".to_owned()
        }
        (Place::Nowhere, _) => "no recovery needs it".to_owned(),
    }
}

fn optional_text<T: fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
