//! The catalogue: what a listing of a cluster's objects says, without opening one.
//!
//! Owns the grouping of keys by timeline and backup and the questions that names alone answer. Pure: it neither lists nor fetches.
//! Does not own what descriptors say (`descriptor.rs`) or whether a chain holds (`pitr`).

use std::collections::{BTreeMap, BTreeSet};

use wal_format::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::key::{BackupLabel, BackupObject, ClusterId, ObjectKey};

/// A cluster's objects by what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// WAL by timeline.
    pub timelines: BTreeMap<TimelineId, TimelineObjects>,
    /// Base backups by label, which sorts by start time; begun ones included.
    pub backups: BTreeMap<BackupLabel, BackupObjects>,
    /// Recorded holes, closed ones included: see [`Catalog::open_gaps`].
    pub gaps: BTreeSet<GapRange>,
    /// Those of them that somebody has acknowledged.
    pub acknowledged: BTreeSet<GapRange>,
    /// Roll-ups by timeline and log: tag and stored size in bytes. Several may exist.
    pub roll_ups: BTreeMap<(TimelineId, u32), BTreeSet<(u32, u64)>>,
    /// Objects whose path is no key of format 1; counted, never touched. One among tail chunks that are not listed is not counted either.
    pub unknown: u64,
}

/// The WAL of one timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimelineObjects {
    /// Whether its history file is stored (timeline 1 has none).
    pub history: bool,
    /// Sealed segments and their stored size in bytes.
    pub segments: BTreeMap<SegmentName, u64>,
    /// Last, partial segments: name, tag and stored size in bytes. Several may exist.
    pub partials: BTreeSet<PartialObject>,
    /// Tail chunks by segment. Listings leave out those of segments that are sealed, but several together may hold some.
    pub tails: BTreeMap<SegmentName, BTreeSet<TailChunk>>,
}

impl TimelineObjects {
    /// The tail chunks of a segment that it takes to have all of their bytes, by their start: of each writer the fewest that reach as far
    /// as all of its chunks do, since later ones replace earlier ones; all of its chunks if they leave a hole. What different writers
    /// stored is for the reader to compare.
    #[must_use]
    pub fn needed_chunks(&self, name: &SegmentName) -> BTreeSet<TailChunk> {
        let mut writers: BTreeMap<u32, Vec<TailChunk>> = BTreeMap::new();
        for chunk in self.tails.get(name).into_iter().flatten() {
            writers.entry(chunk.writer).or_default().push(*chunk);
        }
        let needed = writers.into_values().flat_map(|chunks| {
            let begin = chunks.iter().map(|chunk| chunk.from).min();
            let end = chunks.iter().map(|chunk| chunk.to).max();
            let (mut reach, mut fewest) = (begin.unwrap_or(0), Vec::new());
            // In order of their start: all that begin within what is reached are looked at before one is taken.
            let mut rest = chunks.iter().peekable();
            while end.is_some_and(|end| reach < end) {
                let mut best: Option<TailChunk> = None;
                while let Some(chunk) = rest.next_if(|chunk| chunk.from <= reach) {
                    if best.is_none_or(|best| best.to < chunk.to) {
                        best = Some(*chunk);
                    }
                }
                match best.filter(|best| best.to > reach) {
                    Some(best) => {
                        reach = best.to;
                        fewest.push(best);
                    }
                    None => return chunks,
                }
            }
            fewest
        });
        needed.collect()
    }
}

/// A stored `.partial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartialObject {
    /// Which segment.
    pub name: SegmentName,
    /// CRC-32 of its plain bytes.
    pub tag: u32,
}

/// A stored tail chunk: bytes `[from, to)` of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailChunk {
    /// First offset in the segment.
    pub from: u32,
    /// Offset behind the last byte.
    pub to: u32,
    /// The process that wrote it.
    pub writer: u32,
}

/// The objects of one base backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupObjects {
    /// Whether its descriptor stands: only then the backup exists.
    pub complete: bool,
    /// Whether its catalogue snapshot stands.
    pub names: bool,
    /// Stored bytes of parts, manifest and catalogue snapshot.
    pub stored_bytes: u64,
}

/// A recorded hole, half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GapRange {
    /// On which timeline.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from: Lsn,
    /// First byte behind it.
    pub to: Lsn,
}

impl Catalog {
    /// Sorts a listing of (path, stored size in bytes). Objects of other clusters are passed over.
    #[must_use]
    pub fn from_listing<P: AsRef<str>>(
        cluster: ClusterId,
        listing: impl IntoIterator<Item = (P, u64)>,
    ) -> Self {
        let mut catalog = Self::default();
        for (path, size) in listing {
            match path.as_ref().parse::<ObjectKey>() {
                Ok(key) if key.cluster() == Some(cluster) => catalog.add(&key, size),
                Ok(_) => {}
                Err(_) => catalog.unknown += 1,
            }
        }
        catalog
    }

    pub(crate) fn add(&mut self, key: &ObjectKey, size: u64) {
        match key {
            ObjectKey::Repository
            | ObjectKey::Rescue
            | ObjectKey::Cluster(_)
            | ObjectKey::BackupHistory { .. } => {}
            ObjectKey::Segment { name, .. } => {
                self.timeline(name.timeline).segments.insert(*name, size);
            }
            ObjectKey::Partial { name, tag, .. } => {
                self.timeline(name.timeline).partials.insert(PartialObject {
                    name: *name,
                    tag: *tag,
                });
            }
            ObjectKey::History { timeline, .. } => self.timeline(*timeline).history = true,
            ObjectKey::Tail {
                name,
                from,
                to,
                writer,
                ..
            } => {
                let chunk = TailChunk {
                    from: *from,
                    to: *to,
                    writer: *writer,
                };
                self.timeline(name.timeline)
                    .tails
                    .entry(*name)
                    .or_default()
                    .insert(chunk);
            }
            ObjectKey::Backup { label, object, .. } => {
                let backup = self.backups.entry(label.clone()).or_default();
                match object {
                    BackupObject::Started => {}
                    BackupObject::Descriptor => backup.complete = true,
                    BackupObject::Catalog => {
                        backup.names = true;
                        backup.stored_bytes += size;
                    }
                    BackupObject::Manifest | BackupObject::Part { .. } => {
                        backup.stored_bytes += size
                    }
                }
            }
            ObjectKey::RollUp {
                timeline, log, tag, ..
            } => {
                let tags = self.roll_ups.entry((*timeline, *log)).or_default();
                tags.insert((*tag, size));
            }
            ObjectKey::Gap {
                timeline, from, to, ..
            } => {
                self.gaps.insert(GapRange {
                    timeline: *timeline,
                    from: *from,
                    to: *to,
                });
            }
            ObjectKey::GapAck {
                timeline, from, to, ..
            } => {
                self.acknowledged.insert(GapRange {
                    timeline: *timeline,
                    from: *from,
                    to: *to,
                });
            }
        }
    }

    /// Adds what another listing of the same cluster holds: of what both have, this one's sizes stay.
    pub fn merge(&mut self, other: Self) {
        for (timeline, theirs) in other.timelines {
            let ours = self.timeline(timeline);
            ours.history |= theirs.history;
            for (name, size) in theirs.segments {
                ours.segments.entry(name).or_insert(size);
            }
            ours.partials.extend(theirs.partials);
            for (name, chunks) in theirs.tails {
                ours.tails.entry(name).or_default().extend(chunks);
            }
        }
        for (label, theirs) in other.backups {
            let ours = self.backups.entry(label).or_default();
            ours.complete |= theirs.complete;
            ours.names |= theirs.names;
            ours.stored_bytes = ours.stored_bytes.max(theirs.stored_bytes);
        }
        self.gaps.extend(other.gaps);
        self.acknowledged.extend(other.acknowledged);
        for (log, tags) in other.roll_ups {
            self.roll_ups.entry(log).or_default().extend(tags);
        }
        self.unknown += other.unknown;
    }

    /// Whether a segment is stored sealed, so that nothing needs its tail chunks.
    #[must_use]
    pub fn is_sealed(&self, name: SegmentName) -> bool {
        let objects = self.timelines.get(&name.timeline);
        objects.is_some_and(|objects| objects.segments.contains_key(&name))
    }

    /// Forgets the tail chunks of segments that are stored sealed.
    pub(crate) fn forget_covered(&mut self) {
        for TimelineObjects {
            segments, tails, ..
        } in self.timelines.values_mut()
        {
            tails.retain(|name, _| !segments.contains_key(name));
        }
    }

    fn timeline(&mut self, timeline: TimelineId) -> &mut TimelineObjects {
        self.timelines.entry(timeline).or_default()
    }

    /// What of a stretch of WAL is in no sealed segment, in order. One that ends within a segment (where the timeline was left) also counts
    /// as stored to its end by that segment's `.partial`. Walks over what is stored, whatever the stretch claims to be.
    #[must_use]
    pub fn missing_in(&self, stretch: GapRange, size: SegmentSize) -> Vec<GapRange> {
        let Some(objects) = self.timelines.get(&stretch.timeline) else {
            return without(stretch, []);
        };
        let name = |lsn| SegmentName::new(stretch.timeline, size.segment(lsn), size);
        let last = name(stretch.to);
        let range = |number| GapRange {
            timeline: stretch.timeline,
            from: size.start(number),
            to: size.end(number),
        };
        let sealed = objects.segments.range(name(stretch.from)..);
        let sealed = sealed
            .map(|(name, _)| name)
            .take_while(|name| **name <= last);
        let partials = objects.partials.iter().map(|partial| &partial.name);
        let partials = partials.filter(|name| **name == last);
        let stored = sealed.chain(partials).filter_map(|name| name.number(size));
        without(stretch, stored.map(range))
    }

    /// What is still missing of the recorded holes, in order, each with the hole as it was recorded.
    #[must_use]
    pub fn open_gaps(&self, size: SegmentSize) -> Vec<(GapRange, GapRange)> {
        let gaps = self.gaps.iter().filter(|gap| gap.from < gap.to);
        gaps.flat_map(|gap| {
            let missing = self.missing_in(*gap, size);
            missing.into_iter().map(|missing| (missing, *gap))
        })
        .collect()
    }

    /// What of a stretch is in no recorded hole, in order.
    #[must_use]
    pub fn unrecorded_in(&self, stretch: GapRange) -> Vec<GapRange> {
        let gaps = self.gaps.iter().copied();
        without(stretch, gaps.filter(|gap| gap.timeline == stretch.timeline))
    }

    /// Labels of the backups that exist, oldest first.
    pub fn complete_backups(&self) -> impl DoubleEndedIterator<Item = &BackupLabel> {
        self.backups
            .iter()
            .filter(|(_, backup)| backup.complete)
            .map(|(label, _)| label)
    }

    /// End of the WAL that is stored for a timeline: behind its last segment or, if they reach further, its tail chunks.
    /// `None` if nothing of it is stored. Says nothing about holes before it.
    #[must_use]
    pub fn wal_end(&self, timeline: TimelineId, size: SegmentSize) -> Option<Lsn> {
        let objects = self.timelines.get(&timeline)?;
        let sealed = objects
            .segments
            .keys()
            .next_back()
            .and_then(|name| Some(size.end(name.number(size)?)));
        let tail = objects.tails.iter().next_back().and_then(|(name, chunks)| {
            let reach = chunks.iter().map(|chunk| chunk.to).max()?;
            name.start(size)?.checked_add(u64::from(reach))
        });
        sealed.max(tail)
    }

    /// Stretches between stored segments of one timeline in which no segment is stored, half-open; what may be missing before
    /// the first or behind the last is not among them.
    #[must_use]
    pub fn holes(&self, timeline: TimelineId, size: SegmentSize) -> Vec<GapRange> {
        let Some(objects) = self.timelines.get(&timeline) else {
            return Vec::new();
        };
        let later = objects
            .segments
            .keys()
            .chain(objects.tails.keys())
            .collect::<BTreeSet<_>>();
        let mut holes = Vec::new();
        let mut expected: Option<Lsn> = None;
        for number in later.into_iter().filter_map(|name| name.number(size)) {
            let start = size.start(number);
            if let Some(from) = expected.filter(|from| *from < start) {
                holes.push(GapRange {
                    timeline,
                    from,
                    to: start,
                });
            }
            expected = Some(size.end(number));
        }
        holes
    }
}

/// What is left of a stretch without others of its timeline, which come in the order of their starts.
fn without(stretch: GapRange, others: impl IntoIterator<Item = GapRange>) -> Vec<GapRange> {
    let mut left = Vec::new();
    let mut from = stretch.from;
    for other in others {
        if other.from > from && from < stretch.to {
            left.push(GapRange {
                from,
                to: other.from.min(stretch.to),
                ..stretch
            });
        }
        from = from.max(other.to);
    }
    if from < stretch.to {
        left.push(GapRange { from, ..stretch });
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(paths: &[&str]) -> Catalog {
        Catalog::from_listing(
            "7412".parse().unwrap(),
            paths.iter().map(|path| (*path, 10)),
        )
    }

    #[test]
    fn chunks_that_later_ones_replace_are_not_needed() {
        let check = |chunks: &[(u32, u32, u32)], needed: &[(u32, u32, u32)]| {
            let name: SegmentName = "000000010000000000000005".parse().unwrap();
            let set = |chunks: &[(u32, u32, u32)]| -> BTreeSet<TailChunk> {
                let chunk = |(from, to, writer): &(u32, u32, u32)| TailChunk {
                    from: *from,
                    to: *to,
                    writer: *writer,
                };
                chunks.iter().map(chunk).collect()
            };
            let mut objects = TimelineObjects::default();
            objects.tails.insert(name, set(chunks));
            assert_eq!(objects.needed_chunks(&name), set(needed), "{chunks:?}");
        };
        check(&[], &[]);
        check(&[(0, 4, 1), (4, 9, 1)], &[(0, 4, 1), (4, 9, 1)]);
        check(
            &[(0, 4, 1), (4, 9, 1), (0, 12, 1), (12, 20, 1)],
            &[(0, 12, 1), (12, 20, 1)],
        );
        check(
            &[(0, 4, 1), (4, 9, 1), (9, 12, 1), (4, 14, 1), (14, 15, 1)],
            &[(0, 4, 1), (4, 14, 1), (14, 15, 1)],
        );
        // A hole is for the reader to find.
        check(
            &[(0, 4, 1), (0, 6, 1), (8, 9, 1)],
            &[(0, 4, 1), (0, 6, 1), (8, 9, 1)],
        );
        // What another process stored over the same bytes may differ.
        check(
            &[(0, 9, 1), (0, 4, 2), (4, 7, 2), (0, 7, 2)],
            &[(0, 9, 1), (0, 7, 2)],
        );
    }

    #[test]
    fn groups_a_listing() {
        let catalog = catalog(&[
            "walden.json",
            "7412/cluster.json",
            "7412/wal/00000001/00000000/000000010000000000000001.wal",
            "7412/wal/00000001/00000000/000000010000000000000004.wal",
            "7412/wal/00000001/00000000/notes.txt",
            "7412/wal/00000002.history",
            "7412/tail/00000001/000000010000000000000005.00000000-00000100.0A1B2C3D",
            "7412/tail/00000001/000000010000000000000005.00000100-00000180.0A1B2C3D",
            "7412/backups/20260123T142811Z-full-3fa9/started.json",
            "7412/backups/20260123T142811Z-full-3fa9/base.000000",
            "7412/backups/20260124T142811Z-full-3fa9/base.000000",
            "7412/backups/20260124T142811Z-full-3fa9/backup.json",
            "7412/gaps/00000001-0000000002000000-0000000004000000.json",
            "7413/wal/00000001/00000000/000000010000000000000009.wal",
        ]);
        let (size, first) = (SegmentSize::DEFAULT, TimelineId::FIRST);
        assert_eq!(catalog.unknown, 1);
        assert_eq!(
            catalog
                .complete_backups()
                .map(BackupLabel::as_str)
                .collect::<Vec<_>>(),
            ["20260124T142811Z-full-3fa9"]
        );
        assert_eq!(catalog.wal_end(first, size), Some(Lsn::new(0x500_0180)));
        let hole = GapRange {
            timeline: first,
            from: Lsn::new(0x200_0000),
            to: Lsn::new(0x400_0000),
        };
        assert_eq!(catalog.holes(first, size), [hole]);
        assert_eq!(catalog.gaps.iter().copied().collect::<Vec<_>>(), [hole]);
        assert!(catalog.timelines[&TimelineId::new(2).unwrap()].history);
    }

    fn range(from: u64, to: u64) -> GapRange {
        GapRange {
            timeline: TimelineId::FIRST,
            from: Lsn::new(from),
            to: Lsn::new(to),
        }
    }

    #[test]
    fn what_is_stored_of_a_hole_closes_it() {
        const MIB: u64 = 1 << 20;
        let sealed = |n: u64| format!("7412/wal/00000001/00000000/0000000100000000{n:08X}.wal");
        let open = |gap: GapRange, segments: &[u64], partial: bool| {
            let mut paths: Vec<String> = segments.iter().map(|n| sealed(*n)).collect();
            let (from, to) = (gap.from.as_u64(), gap.to.as_u64());
            paths.push(format!("7412/gaps/00000001-{from:016X}-{to:016X}.json"));
            let partial = partial.then(|| {
                "7412/wal/00000001/00000000/000000010000000000000008.DEADBEEF.partial".to_owned()
            });
            paths.extend(partial);
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let open = catalog(&paths).open_gaps(SegmentSize::MIN);
            assert!(open.iter().all(|(_, recorded)| *recorded == gap));
            open.into_iter().map(|(open, _)| open).collect::<Vec<_>>()
        };
        let gap = range(5 * MIB + 77, 9 * MIB);
        assert_eq!(open(gap, &[], false), [gap]);
        assert_eq!(open(gap, &[4, 9], false), [gap]);
        assert_eq!(open(gap, &[5, 6, 7, 8], false), []);
        assert_eq!(open(gap, &[5, 8], false), [range(6 * MIB, 8 * MIB)]);
        assert_eq!(
            open(gap, &[3, 7], false),
            [range(5 * MIB + 77, 7 * MIB), range(8 * MIB, 9 * MIB)]
        );
        // The timeline was left within segment 8.
        let left = range(7 * MIB, 8 * MIB + 99);
        assert_eq!(open(left, &[7], false), [range(8 * MIB, 8 * MIB + 99)]);
        assert_eq!(open(left, &[7], true), []);
        // Whatever the name of a hole claims, no more is walked over than is stored.
        let claimed = range(0, u64::MAX);
        assert_eq!(open(claimed, &[1], false).len(), 2);
    }

    #[test]
    fn a_hole_is_recorded_once() {
        let gaps = catalog(&[
            "7412/gaps/00000001-0000000000200000-0000000000400000.json",
            "7412/gaps/00000001-0000000000400000-0000000000500000.json",
            "7412/gaps/00000002-0000000000500000-0000000000900000.json",
            "7412/gaps/00000001-0000000000200000-0000000000400000.ack.json",
        ]);
        assert_eq!(gaps.gaps.len(), 3);
        assert_eq!(
            gaps.acknowledged.iter().copied().collect::<Vec<_>>(),
            [range(0x20_0000, 0x40_0000)]
        );
        assert_eq!(gaps.unrecorded_in(range(0x20_0000, 0x50_0000)), []);
        assert_eq!(
            gaps.unrecorded_in(range(0x10_0000, 0x60_0000)),
            [range(0x10_0000, 0x20_0000), range(0x50_0000, 0x60_0000)]
        );
    }
}
