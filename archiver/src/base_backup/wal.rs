//! Whether the repositories hold the WAL that a base backup needs, each by itself, and waiting until they do.
//!
//! Reads names only: a listing of what lies behind the place where the last look ended. Does not read what objects say of themselves:
//! that a chain holds is proven by whoever restores (`pitr`).

use std::time::{Duration, Instant};

use repository::catalog::TimelineObjects;
use repository::cluster::ClusterDocument;
use repository::key::ClusterId;
use repository::manifest::WalRange;
use repository::{ErrorClass, Repository};
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineId};

use super::holders::Holders;
use super::{BackupEvent, Observe};
use crate::upload::error_text;
use crate::{Error, Result};

/// First pause between two looks.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where to look: in every repository that has all of the backup so far.
#[derive(Clone, Copy)]
pub(super) struct StoredWal<'a> {
    pub(super) holders: &'a Holders,
    pub(super) cluster: ClusterId,
    pub(super) size: SegmentSize,
}

impl StoredWal<'_> {
    /// Waits until the WAL of `ranges` (as a manifest has them) is stored, for at most `patience` without any of it arriving. Who does not get
    /// it while another one has it is let go: a backup without its WAL is none.
    ///
    /// # Errors
    /// As [`WalIn::wait_for`], of the last one.
    pub(super) async fn wait_for(
        self,
        ranges: &[WalRange],
        patience: Duration,
        observe: Observe<'_>,
    ) -> Result<()> {
        let wait = |number| self.in_one(number).wait_for(ranges, patience, observe);
        self.holders.each(wait).await.map(drop)
    }

    /// End of the WAL stored for a timeline from the log of `near` on, where most is stored.
    pub(super) async fn end(self, timeline: TimelineId, near: Lsn) -> Result<Option<Lsn>> {
        let ends = self
            .holders
            .each(|number| self.in_one(number).end(timeline, near));
        Ok(ends.await?.into_values().flatten().max())
    }

    fn in_one(&self, number: usize) -> WalIn<'_> {
        WalIn {
            repository: &self.holders.uploader().repositories()[number],
            cluster: self.cluster,
            size: self.size,
        }
    }
}

/// Whether a repository holds the WAL of `ranges` now.
///
/// # Errors
/// `WalNotStored`; `Config`, `Corrupt` from the store.
pub async fn require_wal(
    repository: &Repository,
    cluster: &ClusterDocument,
    ranges: &[WalRange],
) -> Result<()> {
    let stored = WalIn {
        repository,
        cluster: cluster.id(),
        size: cluster.segment_size()?,
    };
    stored.wait_for(ranges, Duration::ZERO, &|_| {}).await
}

/// Where to look: in one repository.
#[derive(Clone, Copy)]
struct WalIn<'a> {
    repository: &'a Repository,
    cluster: ClusterId,
    size: SegmentSize,
}

impl WalIn<'_> {
    /// Waits until the WAL of `ranges` (as a manifest has them) is stored, for at most `patience` without any of it arriving.
    ///
    /// # Errors
    /// `WalNotStored`; `Config`, `Corrupt` from the store, whose outages are waited out.
    async fn wait_for(
        self,
        ranges: &[WalRange],
        patience: Duration,
        observe: Observe<'_>,
    ) -> Result<()> {
        for range in needed(ranges, self.size) {
            self.wait_for_range(range, patience, observe).await?;
        }
        Ok(())
    }

    async fn wait_for_range(
        self,
        range: WalRange,
        patience: Duration,
        observe: Observe<'_>,
    ) -> Result<()> {
        let (mut stored, mut last_advance, mut pause) = (range.start, Instant::now(), FIRST_PAUSE);
        while stored < range.end {
            match self.stored_to(range.timeline, stored, range.end).await {
                Ok(now) if now > stored => {
                    (stored, last_advance, pause) = (now, Instant::now(), FIRST_PAUSE);
                    continue;
                }
                Ok(_) => {}
                Err(error) if error.class() == ErrorClass::Retry => {
                    tracing::warn!(error = error_text(&error), "cannot list stored WAL");
                }
                Err(error) => return Err(error),
            }
            if last_advance.elapsed() >= patience {
                return Err(Error::WalNotStored {
                    timeline: range.timeline,
                    stored,
                    needed: range.end,
                    after: patience,
                });
            }
            observe(BackupEvent::WaitingForWal {
                timeline: range.timeline,
                stored,
                needed: range.end,
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    /// How far WAL is stored without a hole from `from` on.
    async fn stored_to(self, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<Lsn> {
        let objects = self.list(timeline, from).await?;
        Ok(contiguous_to(&objects, timeline, self.size, from, to))
    }

    async fn end(self, timeline: TimelineId, near: Lsn) -> Result<Option<Lsn>> {
        // From the log's beginning: what lies before `near` is an answer too.
        let log = Lsn::new(near.as_u64() & !u64::from(u32::MAX));
        let objects = self.list(timeline, log).await?;
        let size = self.size;
        let sealed = objects.segments.keys().next_back();
        let sealed = sealed.and_then(|name| Some(size.end(name.number(size)?)));
        let tails = objects.tails.iter().next_back().and_then(|(name, chunks)| {
            let reach = chunks.iter().map(|chunk| chunk.to).max()?;
            Some(name.start(size)?.saturating_add(u64::from(reach)))
        });
        Ok(sealed.max(tails))
    }

    /// What is stored of a timeline from the segment of `at` on.
    async fn list(self, timeline: TimelineId, at: Lsn) -> Result<TimelineObjects> {
        let segment = SegmentName::new(timeline, self.size.segment(at), self.size);
        let mut found = (self.repository.list_wal_from(self.cluster, segment)).await?;
        Ok(found.timelines.remove(&timeline).unwrap_or_default())
    }
}

/// What has to be stored, by whole segments: an older timeline's last segment, cut by the switch, is repeated in the first one of the
/// next, so it is not asked for.
fn needed(ranges: &[WalRange], size: SegmentSize) -> impl Iterator<Item = WalRange> {
    let last = ranges.len().saturating_sub(1);
    let range = move |(index, range): (usize, &WalRange)| WalRange {
        timeline: range.timeline,
        start: size.start(size.segment(range.start)),
        end: match index == last {
            true => range.end,
            false => size.start(size.segment(range.end)),
        },
    };
    ranges
        .iter()
        .enumerate()
        .map(range)
        .collect::<Vec<_>>()
        .into_iter()
}

/// How far the WAL is stored without a hole from `from`, which lies in a segment whose bytes before it are stored, up to the first
/// segment's end that reaches `to`.
fn contiguous_to(
    objects: &TimelineObjects,
    timeline: TimelineId,
    size: SegmentSize,
    from: Lsn,
    to: Lsn,
) -> Lsn {
    let mut stored = from;
    while stored < to {
        let number = size.segment(stored);
        let name = SegmentName::new(timeline, number, size);
        if objects.segments.contains_key(&name) {
            stored = size.end(number);
            continue;
        }
        // Sorted by their first byte, so a chunk that begins behind the reach leaves a hole.
        let mut reach = 0;
        for chunk in objects.tails.get(&name).into_iter().flatten() {
            if chunk.from > reach {
                break;
            }
            reach = reach.max(chunk.to);
        }
        let end = size.start(number).saturating_add(u64::from(reach));
        if end < size.end(number) {
            return stored.max(end);
        }
        stored = size.end(number);
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::catalog::Catalog;

    const MIB: u64 = 1 << 20;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    #[test]
    fn segments_and_tail_chunks_cover_without_holes_or_not_at_all() {
        let check = |paths: &[&str], from: u64, to: u64, expected: u64| {
            let cluster = ClusterId::new(7);
            let listing = paths.iter().map(|path| (format!("7/{path}"), 1));
            let mut catalog = Catalog::from_listing(cluster, listing);
            assert_eq!(catalog.unknown, 0, "{paths:?}");
            let objects = catalog.timelines.remove(&timeline(1)).unwrap_or_default();
            let (from, to) = (Lsn::new(from), Lsn::new(to));
            let stored = contiguous_to(&objects, timeline(1), size(), from, to);
            assert_eq!(stored, Lsn::new(expected), "{paths:?}");
        };
        const TWO: &str = "wal/00000001/00000000/000000010000000000000002.wal";
        const FOUR: &str = "wal/00000001/00000000/000000010000000000000004.wal";
        let tail = |from: u32, to: u32| {
            format!("tail/00000001/000000010000000000000003.{from:08X}-{to:08X}.00000001")
        };
        check(&[], 2 * MIB, 3 * MIB, 2 * MIB);
        check(&[TWO], 2 * MIB, 2 * MIB + 77, 3 * MIB);
        check(&[TWO, FOUR], 2 * MIB, 5 * MIB, 3 * MIB);
        check(&[FOUR], 2 * MIB, 5 * MIB, 2 * MIB);
        let (a, b, c) = (tail(0, 0x100), tail(0x100, 0x200), tail(0x280, 0x300));
        check(&[TWO, &a, &b, &c], 2 * MIB, 5 * MIB, 3 * MIB + 0x200);
        check(&[TWO, &b, &c], 2 * MIB, 5 * MIB, 3 * MIB);
        let long = tail(0, 0x290);
        check(&[TWO, &a, &b, &c, &long], 2 * MIB, 5 * MIB, 3 * MIB + 0x300);
        let full = tail(0x200, MIB as u32);
        check(&[&a, &b, &full, FOUR], 3 * MIB, 9 * MIB, 5 * MIB);
        // What was seen before stays.
        check(&[], 3 * MIB + 5, 9 * MIB, 3 * MIB + 5);
    }

    #[test]
    fn a_switch_inside_a_segment_is_asked_of_the_new_timeline() {
        let range = |number, start, end| WalRange {
            timeline: timeline(number),
            start: Lsn::new(start),
            end: Lsn::new(end),
        };
        let found: Vec<_> = needed(
            &[
                range(1, 2 * MIB + 40, 5 * MIB + 9),
                range(2, 5 * MIB + 9, 6 * MIB + 1),
            ],
            size(),
        )
        .collect();
        assert_eq!(
            found,
            [range(1, 2 * MIB, 5 * MIB), range(2, 5 * MIB, 6 * MIB + 1)]
        );
    }
}
