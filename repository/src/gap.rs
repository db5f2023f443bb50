//! Recorded holes in the WAL: their document, its acknowledgement, and storing both.
//!
//! Plain documents, and therefore hints: whether a restore can pass is decided by the WAL that is stored. Owns their fields and their names
//! for people. Does not own what is missing (`catalog.rs`) or when a hole is recorded (`archiver`).

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wal_format::{Lsn, TimelineId};

use crate::catalog::GapRange;
use crate::cluster::check_version;
use crate::descriptor::{FORMAT, text};
use crate::key::{ClusterId, ObjectKey, gaps_prefix};
use crate::{Error, ErrorClass, Repository, Result, Stored};

/// Longest `why`, `by` and `reason`, in bytes; what is longer is cut.
const MAX_TEXT_BYTES: usize = 4096;

/// `gaps/….json`: a recorded hole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapDocument {
    /// Stored format, 1.
    pub format: u32,
    /// What a reader must understand; an unknown entry is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// On which timeline.
    pub timeline: u32,
    /// First missing byte.
    #[serde(with = "text")]
    pub from: Lsn,
    /// First byte behind it.
    #[serde(with = "text")]
    pub to: Lsn,
    /// How it was lost: what the server said, and what became of the slot.
    pub why: String,
    /// When that was found; absent from what the first versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Timestamp>,
}

/// `gaps/….ack.json`: who knows of a hole, and why it may stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapAcknowledgement {
    /// Stored format, 1.
    pub format: u32,
    /// What a reader must understand; an unknown entry is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub acknowledged: Timestamp,
}

/// A recorded hole with what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedGap {
    /// What was missing when it was recorded.
    pub range: GapRange,
    /// Its document.
    pub document: GapDocument,
    /// Its acknowledgement.
    pub acknowledgement: Option<GapAcknowledgement>,
}

/// Prints a hole's id: its name below `gaps/` without the suffix.
impl fmt::Display for GapRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:08X}-{:016X}-{:016X}",
            self.timeline.get(),
            self.from.as_u64(),
            self.to.as_u64()
        )
    }
}

/// Reads a hole's id, as it is printed.
impl FromStr for GapRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Keys are spelled in one place: an id is the name of a key.
        match format!("1/gaps/{text}.json").parse() {
            Ok(ObjectKey::Gap {
                timeline, from, to, ..
            }) => Ok(Self { timeline, from, to }),
            _ => Err(Error::InvalidKey {
                path: text.to_owned(),
            }),
        }
    }
}

impl GapRange {
    /// Key of its document.
    #[must_use]
    pub fn key(&self, cluster: ClusterId) -> ObjectKey {
        let Self { timeline, from, to } = *self;
        ObjectKey::Gap {
            cluster,
            timeline,
            from,
            to,
        }
    }

    /// Key of its acknowledgement.
    #[must_use]
    pub fn ack_key(&self, cluster: ClusterId) -> ObjectKey {
        let Self { timeline, from, to } = *self;
        ObjectKey::GapAck {
            cluster,
            timeline,
            from,
            to,
        }
    }
}

impl GapDocument {
    /// What is recorded of a hole.
    #[must_use]
    pub fn new(range: GapRange, why: &str, now: Timestamp) -> Self {
        Self {
            format: FORMAT,
            requires: Vec::new(),
            timeline: range.timeline.get(),
            from: range.from,
            to: range.to,
            why: cut(why),
            recorded: Some(now),
        }
    }
}

impl GapAcknowledgement {
    /// Who knows of a hole, and why it may stay.
    #[must_use]
    pub fn new(by: &str, reason: &str, now: Timestamp) -> Self {
        Self {
            format: FORMAT,
            requires: Vec::new(),
            by: cut(by),
            reason: cut(reason),
            acknowledged: now,
        }
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

impl Repository {
    /// Records a hole. One that is recorded already stays as it is.
    ///
    /// # Errors
    /// `Retry`, `Config` from the store: it is not recorded.
    pub async fn record_gap(
        &self,
        cluster: ClusterId,
        range: GapRange,
        document: &GapDocument,
    ) -> Result<Stored> {
        let put = self.put_json(&range.key(cluster), document).await;
        match put {
            // Its range is its key: in other words, then.
            Err(error) if error.class() == ErrorClass::Conflict => Ok(Stored::Already),
            put => put,
        }
    }

    /// Acknowledges a hole. The first acknowledgement stays.
    ///
    /// # Errors
    /// `Conflict`: somebody else has, or in other words. `Retry`, `Config` from the store: it is not acknowledged.
    pub async fn acknowledge_gap(
        &self,
        cluster: ClusterId,
        range: GapRange,
        acknowledgement: &GapAcknowledgement,
    ) -> Result<Stored> {
        self.put_json(&range.ack_key(cluster), acknowledgement)
            .await
    }

    /// Fetches the recorded holes of a cluster with what is said of them, by timeline and position.
    ///
    /// # Errors
    /// `Corrupt`: a document that cannot be read or names another hole; `Config`: made by a later version; `Retry`, `Config` from the store.
    pub async fn fetch_gaps(&self, cluster: ClusterId) -> Result<Vec<RecordedGap>> {
        let catalog = self.list_below(cluster, &gaps_prefix(cluster)).await?;
        let mut gaps = Vec::new();
        for range in catalog.gaps {
            let document = self.fetch_gap(cluster, range).await?;
            let acknowledgement = match catalog.acknowledged.contains(&range) {
                true => Some(self.fetch_acknowledgement(cluster, range).await?),
                false => None,
            };
            gaps.push(RecordedGap {
                range,
                document,
                acknowledgement,
            });
        }
        Ok(gaps)
    }

    /// Fetches the document of a recorded hole.
    ///
    /// # Errors
    /// `NotFound`: it is not recorded; as [`Repository::fetch_gaps`].
    pub async fn fetch_gap(&self, cluster: ClusterId, range: GapRange) -> Result<GapDocument> {
        let key = range.key(cluster);
        let document: GapDocument = self.fetch_json(&key).await?;
        check_version(&key.to_string(), document.format, &document.requires)?;
        let found = TimelineId::new(document.timeline).map(|timeline| GapRange {
            timeline,
            from: document.from,
            to: document.to,
        });
        if found != Some(range) {
            return Err(Error::Misplaced {
                key: key.to_string(),
                found: format!(
                    "a gap of timeline {} from {} to {}",
                    document.timeline, document.from, document.to
                ),
            });
        }
        Ok(document)
    }

    /// Fetches the acknowledgement of a hole.
    ///
    /// # Errors
    /// `NotFound`: nobody has; as [`Repository::fetch_gaps`].
    pub async fn fetch_acknowledgement(
        &self,
        cluster: ClusterId,
        range: GapRange,
    ) -> Result<GapAcknowledgement> {
        let key = range.ack_key(cluster);
        let document: GapAcknowledgement = self.fetch_json(&key).await?;
        check_version(&key.to_string(), document.format, &document.requires)?;
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_they_are_printed() {
        const ID: &str = "0000000A-0000000301000077-0000000302000000";
        let range: GapRange = ID.parse().unwrap();
        assert_eq!(range.to_string(), ID);
        assert_eq!(
            (range.timeline.get(), range.from.to_string()),
            (10, "3/1000077".to_owned())
        );
        for bad in [
            "",
            "0000000A-0000000301000077",
            "0/1-0/2",
            "../00000001-0000000301000077-0000000302000000",
            "0000000A-0000000301000077-0000000302000000.ack",
        ] {
            assert!(bad.parse::<GapRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn documents_of_the_first_version_are_read() {
        let old =
            r#"{"format":1,"timeline":1,"from":"0/3000077","to":"0/5000000","why":"removed"}"#;
        let read: GapDocument = serde_json::from_str(old).unwrap();
        assert_eq!(
            (read.from.as_u64(), read.recorded, read.why.as_str()),
            (0x300_0077, None, "removed")
        );
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let long = "ä".repeat(MAX_TEXT_BYTES);
        let document = GapAcknowledgement::new(&long, "x", Timestamp::UNIX_EPOCH);
        assert_eq!(document.by.len(), MAX_TEXT_BYTES);
    }
}
