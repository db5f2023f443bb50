//! A WAL segment's bytes out of the repository, from whatever holds them: the sealed segment, a `.partial`, tail chunks.
//!
//! Owns the checks that tie bytes to a name: LSN range, size, lineage. Does not decide whether absence is a hole (`archive_get.rs`)
//! or whether segments chain (`plan.rs`).

use std::collections::BTreeSet;

use repository::catalog::{TailChunk, TimelineObjects};
use repository::descriptor::{Descriptor, WalDescriptor};
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::several::Absence;
use repository::wal::{ChainLink, lineage};
use repository::{ErrorClass, Repositories, Repository};
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};

use crate::assemble::{AssembledSegment, Chunk, assemble_tail};
use crate::settle::Settled;
use crate::{Error, Result};

/// Largest timeline history file that is read, in bytes.
pub(crate) const MAX_HISTORY_BYTES: usize = 1 << 20;
/// How many segments in which no record starts are passed over in search of the last record before a segment: a record of 1 GiB, the
/// longest there is, fills 1024 segments of 1 MiB.
pub(crate) const MAX_WITHOUT_RECORDS: u32 = 1025;

/// Fetches WAL of one cluster.
#[derive(Clone)]
pub struct SegmentSource {
    /// Where it is: what one of them cannot give, or gives with something else in it, is asked of the next.
    pub repository: Repositories,
    /// How it is opened.
    pub policy: OpenPolicy,
    /// Whose it is.
    pub cluster: ClusterId,
    /// How large its segments are.
    pub size: SegmentSize,
    /// Segments of which repositories hold different forms, and which one is taken.
    pub settled: Settled,
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
        self.find_history(timeline, Absence::Proven, |_| Ok(()))
            .await
    }

    /// The same, absent as `absence` wants it proven, and only a file that passes `fits`.
    ///
    /// # Errors
    /// As [`SegmentSource::fetch_history`].
    pub(crate) async fn find_history(
        &self,
        timeline: TimelineId,
        absence: Absence,
        fits: impl Fn(&[u8]) -> Result<()> + Sync,
    ) -> Result<Option<(Vec<u8>, TimelineHistory)>> {
        let key = ObjectKey::History {
            cluster: self.cluster,
            timeline,
        };
        let mut parsed = None;
        let content = self
            .fetch(&key, MAX_HISTORY_BYTES, absence, |_, content| {
                TimelineHistory::parse(timeline, content).map_err(|error| Error::Integrity {
                    object: key.to_string(),
                    reason: error.to_string(),
                })?;
                fits(content)
            })
            .await?;
        if let Some((_, content)) = &content {
            parsed = TimelineHistory::parse(timeline, content).ok();
        }
        Ok(content.map(|(_, content)| content).zip(parsed))
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
        let as_it_is = |found| std::future::ready(Ok(found));
        self.find_sealed(name, lineage, Absence::Proven, as_it_is)
            .await
    }

    /// The same, absent as `absence` wants it proven, and only a segment that passes `check`.
    ///
    /// # Errors
    /// As [`SegmentSource::fetch_sealed`].
    pub(crate) async fn find_sealed<Checked>(
        &self,
        name: SegmentName,
        lineage: &str,
        absence: Absence,
        check: impl Fn((WalDescriptor, Vec<u8>)) -> Checked,
    ) -> Result<Option<(WalDescriptor, Vec<u8>)>>
    where
        Checked: Future<Output = Result<(WalDescriptor, Vec<u8>)>>,
    {
        let key = &ObjectKey::Segment {
            cluster: self.cluster,
            name,
        };
        let start = self.start(name)?;
        let whole = self.size.bytes() as usize;
        let ask = |one: Repository| async move {
            let Some((descriptor, plain)) = found(one.fetch(key, &self.policy, whole).await)?
            else {
                return Ok(None);
            };
            let end = start.saturating_add(plain.len() as u64);
            let wal = self::check(key, &descriptor, (start, end), lineage)?.clone();
            self.settled.check(name, &wal)?;
            if plain.len() != whole {
                let reason = format!(
                    "{} plain bytes, a segment of this cluster has {whole}",
                    plain.len()
                );
                return Err(Error::Integrity {
                    object: key.to_string(),
                    reason,
                });
            }
            Ok(Some((wal, plain)))
        };
        self.repository
            .first(&key.to_string(), whole as u64, absence, ask, check)
            .await
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
            let follows = |before_it: &WalDescriptor| {
                let mut link = ChainLink {
                    last_record: before_it.last_record,
                };
                link.follow(wal).map_err(|broken| Error::Integrity {
                    object: name.to_string(),
                    reason: format!(
                        "its first record, at {}, follows one at {}, but the last one of {before} is at {}: \
                         two servers wrote them",
                        broken.at, broken.found, broken.expected
                    ),
                })
            };
            let found = match self.settled.get(before) {
                Some(chosen) => follows(&chosen).map(|()| Some(chosen))?,
                None => self.find_before(&key, follows).await?,
            };
            // Expired, or not stored as a whole: nothing to compare with. One in which no record starts says nothing: the one before it does.
            if found.is_none_or(|before_it| before_it.last_record.is_some()) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What a segment says of itself in the first repository in which it is followed as it should be.
    async fn find_before(
        &self,
        key: &ObjectKey,
        follows: impl Fn(&WalDescriptor) -> Result<()> + Sync,
    ) -> Result<Option<WalDescriptor>> {
        let ask = |one: Repository| async move {
            let found = found(one.fetch_descriptor(key).await)?;
            Ok(found.map(|descriptor| descriptor.wal.unwrap_or_default()))
        };
        let check = |before: WalDescriptor| std::future::ready(follows(&before).map(|()| before));
        let (name, absence) = (key.to_string(), Absence::Likely);
        self.repository.first(&name, 0, absence, ask, check).await
    }

    /// Puts a segment together from the partials and tail chunks that `objects` lists. `None` if there are none.
    ///
    /// Chunks that others replace are not read: in sync mode there are thousands.
    ///
    /// # Errors
    /// As [`SegmentSource::fetch_sealed`]; `Corrupt` also if they contradict each other or leave a hole.
    pub async fn fetch_incomplete(
        &self,
        name: SegmentName,
        objects: &TimelineObjects,
        lineage: &str,
    ) -> Result<Option<AssembledSegment>> {
        let needed = objects.needed_chunks(&name);
        let all = objects.tails.get(&name).cloned().unwrap_or_default();
        let is_all = needed.len() == all.len();
        let mut pieces = self.fetch_pieces(name, objects, needed, lineage).await?;
        if pieces.iter().any(|(_, _, plain)| plain.is_none()) && !is_all {
            // Those that it replaced may do.
            pieces = self.fetch_pieces(name, objects, all, lineage).await?;
        }
        // Listed a moment ago; chunks that a sealed segment covers may be removed meanwhile.
        let there = pieces
            .iter()
            .filter_map(|(from, key, plain)| Some((*from, key, plain.as_ref()?)));
        let chunks: Vec<Chunk<'_>> = there
            .map(|(from, key, bytes)| Chunk { key, from, bytes })
            .collect();
        if chunks.is_empty() {
            return Ok(None);
        }
        assemble_tail(&chunks, self.size).map(Some)
    }

    /// Offset, key and bytes of the partials of a segment and of these chunks; no bytes where there is no such object.
    async fn fetch_pieces(
        &self,
        name: SegmentName,
        objects: &TimelineObjects,
        chunks: BTreeSet<TailChunk>,
        lineage: &str,
    ) -> Result<Vec<(u32, String, Option<Vec<u8>>)>> {
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
        let tails = chunks.into_iter().map(|chunk| {
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
            let begin = start.saturating_add(u64::from(from));
            let fits = |descriptor: &Descriptor, plain: &[u8]| {
                let end = begin.saturating_add(plain.len() as u64);
                check(&key, descriptor, (begin, end), lineage).map(drop)
            };
            let limit = self.size.bytes() as usize;
            let fetched = self.fetch(&key, limit, Absence::Proven, fits).await?;
            pieces.push((from, key.to_string(), fetched.map(|(_, plain)| plain)));
        }
        Ok(pieces)
    }

    fn start(&self, name: SegmentName) -> Result<Lsn> {
        name.start(self.size).ok_or_else(|| Error::InvalidRequest {
            what: name.to_string(),
            reason: "no WAL segment of this cluster has this name".into(),
        })
    }

    async fn fetch(
        &self,
        key: &ObjectKey,
        limit: usize,
        absence: Absence,
        fits: impl Fn(&Descriptor, &[u8]) -> Result<()> + Sync,
    ) -> Result<Option<(Descriptor, Vec<u8>)>> {
        let fits = &fits;
        let ask = |one: Repository| async move {
            let fetched = found(one.fetch(key, &self.policy, limit).await)?;
            if let Some((descriptor, plain)) = &fetched {
                fits(descriptor, plain)?;
            }
            Ok(fetched)
        };
        let size = limit as u64;
        self.repository
            .first_given(&key.to_string(), size, absence, ask)
            .await
    }
}

/// Absence as a value.
pub(crate) fn found<T>(result: repository::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.class() == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(error.into()),
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
