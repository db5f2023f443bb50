//! A WAL segment's bytes out of the repository, from whatever holds them: the sealed segment, a `.partial`, tail chunks.
//!
//! Owns the checks that tie bytes to a name: LSN range, size, lineage. Does not decide whether absence is a hole (`archive_get.rs`)
//! or whether segments chain (`plan.rs`).

use repository::catalog::TimelineObjects;
use repository::descriptor::Descriptor;
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::wal::lineage;
use repository::{ErrorClass, Repository};
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};

use crate::assemble::{AssembledSegment, Chunk, assemble_tail};
use crate::{Error, Result};

/// Largest timeline history file that is read, in bytes.
const MAX_HISTORY_BYTES: usize = 1 << 20;

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
        let key = ObjectKey::Segment {
            cluster: self.cluster,
            name,
        };
        let Some((descriptor, plain)) = self.fetch(&key, self.size.bytes() as usize).await? else {
            return Ok(None);
        };
        let start = self.start(name)?;
        let end = start.saturating_add(plain.len() as u64);
        self.check(&key, &descriptor, (start, end), lineage)?;
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
        Ok(Some(plain))
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
            self.check(&key, &descriptor, (begin, end), lineage)?;
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

    fn check(
        &self,
        key: &ObjectKey,
        descriptor: &Descriptor,
        range: (Lsn, Lsn),
        lineage: &str,
    ) -> Result<()> {
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
                "it is of another lineage: a timeline of the same number with another history"
                    .into(),
            ));
        }
        Ok(())
    }
}
