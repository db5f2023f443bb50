//! A WAL segment's bytes out of the repository, from whatever holds them: the sealed segment, a `.partial`, tail chunks.
//!
//! Owns the checks that tie bytes to a name: LSN range, size, lineage. Does not decide whether absence is a hole (`archive_get.rs`)
//! or whether segments chain (`plan.rs`).

use repository::catalog::TimelineObjects;
use repository::descriptor::{Descriptor, WalDescriptor};
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::wal::{ChainLink, lineage};
use repository::{ErrorClass, Repository};
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};

use crate::assemble::{AssembledSegment, Chunk, assemble_tail};
use crate::{Error, Result};

/// Largest timeline history file that is read, in bytes.
pub(crate) const MAX_HISTORY_BYTES: usize = 1 << 20;
/// How many segments in which no record starts are passed over in search of the last record before a segment: a record of 1 GiB, the
/// longest there is, fills 1024 segments of 1 MiB.
pub(crate) const MAX_WITHOUT_RECORDS: u32 = 1025;

/// Fetches WAL of one cluster.
#[derive(Clone)]
pub struct SegmentSource {
    /// Where it is.
    pub repository: Repository,
    /// How it is opened.
    pub policy: OpenPolicy,
    /// Whose it is.
    pub cluster: ClusterId,
    /// How large its segments are.
    pub size: SegmentSize,
}

impl SegmentSource {
    /// Fetches a timeline's history file: its bytes, and what they say. `None` if it is proven absent.
    ///
    /// # Errors
    /// `Corrupt`, `Key`; `Retry` and `Config` prove nothing.
    pub async fn fetch_history(
        &self,
        timeline: TimelineId,
    ) -> Result<Option<(Vec<u8>, TimelineHistory)>> {
        let key = ObjectKey::History {
            cluster: self.cluster,
            timeline,
        };
        let Some((_, content)) = self.fetch(&key, MAX_HISTORY_BYTES).await? else {
            return Ok(None);
        };
        let history =
            TimelineHistory::parse(timeline, &content).map_err(|error| Error::Integrity {
                object: key.to_string(),
                reason: error.to_string(),
            })?;
        Ok(Some((content, history)))
    }

    /// The lineage that WAL of a timeline must have, from its history file.
    ///
    /// # Errors
    /// `Corrupt`: the history file is missing. Others as [`SegmentSource::fetch_history`].
    pub async fn fetch_lineage(&self, timeline: TimelineId) -> Result<String> {
        if timeline == TimelineId::FIRST {
            return Ok(lineage(None));
        }
        let history = self.fetch_history(timeline).await?.ok_or_else(|| Error::Missing {
            object: ObjectKey::History { cluster: self.cluster, timeline }.to_string(),
            reason: "WAL of this timeline is stored, and only its history file says what it continues".into(),
        })?;
        Ok(lineage(Some(&history.0)))
    }

    /// Fetches a sealed segment, whole. `None` if it is proven absent.
    ///
    /// # Errors
    /// `Corrupt`: damaged, misplaced, or of another lineage. `Key`. `Retry` and `Config` prove nothing.
    pub async fn fetch_sealed(&self, name: SegmentName, lineage: &str) -> Result<Option<Vec<u8>>> {
        let found = self.fetch_sealed_described(name, lineage).await?;
        Ok(found.map(|(_, plain)| plain))
    }

    /// As [`SegmentSource::fetch_sealed`], with what the object says of its WAL.
    ///
    /// # Errors
    /// As [`SegmentSource::fetch_sealed`].
    pub async fn fetch_sealed_described(
        &self,
        name: SegmentName,
        lineage: &str,
    ) -> Result<Option<(WalDescriptor, Vec<u8>)>> {
        let key = ObjectKey::Segment {
            cluster: self.cluster,
            name,
        };
        let Some((descriptor, plain)) = self.fetch(&key, self.size.bytes() as usize).await? else {
            return Ok(None);
        };
        let start = self.start(name)?;
        let end = start.saturating_add(plain.len() as u64);
        let wal = check(&key, &descriptor, (start, end), lineage)?.clone();
        if plain.len() != self.size.bytes() as usize {
            let reason = format!(
                "{} plain bytes, a segment of this cluster has {}",
                plain.len(),
                self.size.bytes()
            );
            return Err(Error::Integrity {
                object: key.to_string(),
                reason,
            });
        }
        Ok(Some((wal, plain)))
    }

    /// Checks that the records of a segment continue those of the WAL before it, as far as that is stored: PostgreSQL takes a record
    /// that does not for the end of WAL. `timeline_at` names the timeline that owns a byte on the way to this segment.
    ///
    /// # Errors
    /// `Corrupt`: they do not. Others prove nothing.
    pub async fn check_link(
        &self,
        name: SegmentName,
        wal: &WalDescriptor,
        timeline_at: impl Fn(Lsn) -> Result<TimelineId>,
    ) -> Result<()> {
        if wal.first_record.is_none() {
            return Ok(());
        }
        let mut number = name.number(self.size);
        for _ in 0..MAX_WITHOUT_RECORDS {
            number = number.and_then(wal_format::SegmentNumber::previous);
            let Some(before) = number else {
                return Ok(());
            };
            let last_byte = self.size.end(before).saturating_sub(1);
            let before = SegmentName::new(timeline_at(last_byte)?, before, self.size);
            let key = ObjectKey::Segment {
                cluster: self.cluster,
                name: before,
            };
            let descriptor = match self.repository.fetch_descriptor(&key).await {
                // Expired, or not stored as a whole: nothing to compare with.
                Err(error) if error.class() == ErrorClass::NotFound => return Ok(()),
                descriptor => descriptor?,
            };
            let Some(last_record) = descriptor.wal.and_then(|wal| wal.last_record) else {
                continue;
            };
            let mut link = ChainLink {
                last_record: Some(last_record),
            };
            return link.follow(wal).map_err(|broken| Error::Integrity {
                object: name.to_string(),
                reason: format!(
                    "its first record, at {}, follows one at {}, but the last one of {before} is at {}: \
                     two servers wrote them",
                    broken.at, broken.found, broken.expected
                ),
            });
        }
        Ok(())
    }

    /// Puts a segment together from the partials and tail chunks that `objects` lists. `None` if there are none.
    ///
    /// # Errors
    /// As [`SegmentSource::fetch_sealed`]; `Corrupt` also if they contradict each other or leave a hole.
    pub async fn fetch_incomplete(
        &self,
        name: SegmentName,
        objects: &TimelineObjects,
        lineage: &str,
    ) -> Result<Option<AssembledSegment>> {
        let cluster = self.cluster;
        let partials = objects
            .partials
            .iter()
            .filter(|partial| partial.name == name);
        let partials = partials.map(|partial| {
            (
                0,
                ObjectKey::Partial {
                    cluster,
                    name,
                    tag: partial.tag,
                },
            )
        });
        let tails = objects.tails.get(&name).into_iter().flatten();
        let tails = tails.map(|chunk| {
            let (from, to, writer) = (chunk.from, chunk.to, chunk.writer);
            (
                from,
                ObjectKey::Tail {
                    cluster,
                    name,
                    from,
                    to,
                    writer,
                },
            )
        });
        let start = self.start(name)?;
        let mut pieces = Vec::new();
        for (from, key) in partials.chain(tails) {
            // Listed a moment ago; chunks that a sealed segment covers may be removed meanwhile.
            let Some((descriptor, plain)) = self.fetch(&key, self.size.bytes() as usize).await?
            else {
                continue;
            };
            let begin = start.saturating_add(u64::from(from));
            let end = begin.saturating_add(plain.len() as u64);
            check(&key, &descriptor, (begin, end), lineage)?;
            pieces.push((from, key.to_string(), plain));
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        let chunks: Vec<Chunk<'_>> = pieces
            .iter()
            .map(|(from, key, bytes)| Chunk {
                key,
                from: *from,
                bytes,
            })
            .collect();
        assemble_tail(&chunks, self.size).map(Some)
    }

    fn start(&self, name: SegmentName) -> Result<Lsn> {
        name.start(self.size).ok_or_else(|| Error::InvalidRequest {
            what: name.to_string(),
            reason: "no WAL segment of this cluster has this name".into(),
        })
    }

    async fn fetch(&self, key: &ObjectKey, limit: usize) -> Result<Option<(Descriptor, Vec<u8>)>> {
        match self.repository.fetch(key, &self.policy, limit).await {
            Ok(fetched) => Ok(Some(fetched)),
            Err(error) if error.class() == ErrorClass::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Ties an object to its place in WAL.
///
/// # Errors
/// `Corrupt`: it says that it holds another stretch, or it is of another lineage.
pub(crate) fn check<'a>(
    key: &ObjectKey,
    descriptor: &'a Descriptor,
    range: (Lsn, Lsn),
    lineage: &str,
) -> Result<&'a WalDescriptor> {
    let integrity = |reason: String| Error::Integrity {
        object: key.to_string(),
        reason,
    };
    let wal = descriptor
        .wal
        .as_ref()
        .ok_or_else(|| integrity("its descriptor says nothing of WAL".into()))?;
    if (wal.start_lsn, wal.end_lsn) != range {
        return Err(integrity(format!(
            "it says that it holds {} to {}",
            wal.start_lsn, wal.end_lsn
        )));
    }
    if wal.lineage != lineage {
        return Err(integrity(
            "it is of another lineage: a timeline of the same number with another history".into(),
        ));
    }
    Ok(wal)
}
