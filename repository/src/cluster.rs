//! The documents that say what a repository and a cluster are: `walden.json`, `cluster.json` and `RESCUE.md`.
//!
//! Owns their fields and the text of `RESCUE.md`. They are plain and therefore hints. Does not own storing them (`repo.rs`).

use serde::{Deserialize, Serialize};
use wal_format::SegmentSize;

use crate::descriptor::{FORMAT, text};
use crate::key::ClusterId;
use crate::{Error, Result};

/// How to restore by hand: written at `init`, for people who have the keys and no Walden.
pub const RESCUE: &str = include_str!("rescue.md");

/// `walden.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryDocument {
    /// Stored format, 1.
    pub format: u32,
    /// What a reader must understand; an unknown entry is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Random identity of the repository, 32 hex digits.
    pub repository_id: String,
    /// When it was made.
    pub created: jiff::Timestamp,
}

/// `cluster.json`: what cannot change in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDocument {
    /// Stored format, 1.
    pub format: u32,
    /// What a reader must understand; an unknown entry is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// PostgreSQL's system identifier.
    #[serde(with = "text")]
    pub system_identifier: u64,
    /// 0 for the first incarnation.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub incarnation: u32,
    /// The incarnation this one continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// PostgreSQL's major version when the cluster was first seen.
    pub pg_version: u16,
    /// Bytes in a page of a relation.
    pub block_size: u32,
    /// Bytes in a WAL segment.
    pub wal_segment_size: u32,
    /// When the cluster was first seen.
    pub created: jiff::Timestamp,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl ClusterDocument {
    /// The cluster these facts belong to.
    #[must_use]
    pub fn id(&self) -> ClusterId {
        ClusterId {
            system_identifier: self.system_identifier,
            incarnation: self.incarnation,
        }
    }

    /// The WAL segment size.
    ///
    /// # Errors
    /// `Corrupt`: no size PostgreSQL can have.
    pub fn segment_size(&self) -> Result<SegmentSize> {
        SegmentSize::new(self.wal_segment_size).map_err(|error| Error::Damaged {
            key: format!("{}/cluster.json", self.id()),
            what: error.to_string(),
        })
    }

    /// Names the first fact in which two documents of one cluster differ; times do not count.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            (self.id() != other.id(), "system identifier"),
            (self.block_size != other.block_size, "block size"),
            (
                self.wal_segment_size != other.wal_segment_size,
                "WAL segment size",
            ),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// Refuses documents of a later version.
///
/// # Errors
/// `Config`: a later format or an unknown requirement.
pub(crate) fn check_version(key: &str, format: u32, requires: &[String]) -> Result<()> {
    let what = match requires.first() {
        _ if format > FORMAT => format!("format {format}"),
        Some(requirement) => format!("it requires {requirement:?}"),
        None => return Ok(()),
    };
    Err(Error::FromTheFuture {
        key: key.to_owned(),
        what,
    })
}
