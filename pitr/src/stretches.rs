//! What is stored of each timeline as unbroken stretches of segments (pure), from names and as many descriptors as were read.
//!
//! Owns what belongs together: numbers without a hole, one lineage, records that link, nothing that failed validation. Each segment is
//! looked at once, however many backups and timelines there are. What backups can be recovered to follows in `reach.rs`.

use crate::plan::{BackupFacts, BrokenChain, stored_names};
use crate::window::End;
use repository::catalog::{Catalog, PartialObject, TailChunk, TimelineObjects};
use repository::descriptor::WalDescriptor;
use repository::wal::ChainLink;
use std::collections::{BTreeMap, BTreeSet};
use wal_format::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};

/// A timeline's history file that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHistory {
    /// What it says.
    pub history: TimelineHistory,
    /// Its lineage.
    pub lineage: String,
}

/// What stored WAL says of itself, as far as it was read. What is not here is believed by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalFacts {
    /// Of sealed segments.
    pub sealed: BTreeMap<SegmentName, WalDescriptor>,
    /// Of partial segments: without it nothing is known of how far one reaches.
    pub partials: BTreeMap<PartialObject, WalDescriptor>,
    /// Of tail chunks.
    pub tails: BTreeMap<(SegmentName, TailChunk), WalDescriptor>,
    /// Sealed segments that are damaged, or not what they should be, as far as their headers show, and why.
    pub damaged: BTreeMap<SegmentName, String>,
}

/// What the answer is made from.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Names of everything stored.
    pub catalog: &'a Catalog,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The history files that could be read; timeline 1 has none.
    pub histories: &'a BTreeMap<TimelineId, KnownHistory>,
    /// Every backup that exists.
    pub backups: &'a [BackupFacts],
    /// Descriptors.
    pub wal: &'a WalFacts,
}

/// Segments of one timeline that follow each other.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    pub(crate) first: SegmentNumber,
    /// The first one that is not there as a whole.
    pub(crate) next: SegmentNumber,
    pub(crate) end: Lsn,
    pub(crate) ends: End,
    pub(crate) proven: bool,
}

pub(crate) struct WalMap<'a> {
    pub(crate) evidence: Evidence<'a>,
    pub(crate) stretches: BTreeMap<TimelineId, Vec<Stretch>>,
    /// Each timeline's own segments, complete or not.
    numbers: BTreeMap<TimelineId, BTreeSet<SegmentNumber>>,
    /// What branches off a timeline, and where.
    pub(crate) children: BTreeMap<TimelineId, Vec<(TimelineId, Lsn)>>,
}

impl<'a> WalMap<'a> {
    pub(crate) fn new(evidence: Evidence<'a>) -> Self {
        let mut map = Self {
            evidence,
            stretches: BTreeMap::new(),
            numbers: BTreeMap::new(),
            children: BTreeMap::new(),
        };
        for (timeline, known) in evidence.histories {
            if let Some(entry) = known.history.entries().last()
                && map.agrees_with_parent(&known.history, entry.timeline)
            {
                let children = map.children.entry(entry.timeline).or_default();
                children.push((*timeline, entry.switch_point));
            }
        }
        let mentioned: BTreeSet<TimelineId> = (evidence.catalog.timelines.keys())
            .chain(map.children.keys())
            .copied()
            .collect();
        for timeline in &mentioned {
            let numbers = map.own_numbers(*timeline);
            map.numbers.insert(*timeline, numbers);
        }
        for timeline in mentioned {
            let stretches = map.stretches_of(timeline);
            map.stretches.insert(timeline, stretches);
        }
        map
    }

    pub(crate) fn size(&self) -> SegmentSize {
        self.evidence.segment_size
    }

    pub(crate) fn objects(&self, timeline: TimelineId) -> Option<&'a TimelineObjects> {
        self.evidence.catalog.timelines.get(&timeline)
    }

    pub(crate) fn name(&self, timeline: TimelineId, number: SegmentNumber) -> SegmentName {
        SegmentName::new(timeline, number, self.size())
    }

    /// A history file must tell the same past as those of the ancestors.
    fn agrees_with_parent(&self, history: &TimelineHistory, parent: TimelineId) -> bool {
        let places = |history: &TimelineHistory| -> Vec<(TimelineId, Lsn)> {
            let entries = history.entries().iter();
            entries
                .map(|entry| (entry.timeline, entry.switch_point))
                .collect()
        };
        let own = places(history);
        let before = own.split_last().map(|(_, before)| before);
        match self.evidence.histories.get(&parent) {
            Some(known) => before == Some(places(&known.history).as_slice()),
            None => true,
        }
    }

    pub(crate) fn lineage(&self, timeline: TimelineId) -> Option<&str> {
        match self.evidence.histories.get(&timeline) {
            Some(known) => Some(&known.lineage),
            None => (timeline == TimelineId::FIRST).then_some(""),
        }
    }

    fn parent(&self, timeline: TimelineId) -> Option<(TimelineId, Lsn)> {
        let entry = self
            .evidence
            .histories
            .get(&timeline)?
            .history
            .entries()
            .last()?;
        Some((entry.timeline, entry.switch_point))
    }

    /// The segment in which a timeline begins, if its past is known.
    fn begin(&self, timeline: TimelineId) -> Option<SegmentNumber> {
        self.parent(timeline).map(|(_, at)| self.size().segment(at))
    }

    fn own_numbers(&self, timeline: TimelineId) -> BTreeSet<SegmentNumber> {
        let begin = self.begin(timeline);
        let names = self.objects(timeline).into_iter().flat_map(stored_names);
        names
            .filter_map(|name| name.number(self.size()))
            .filter(|number| Some(*number) >= begin)
            .collect()
    }

    pub(crate) fn has_wal(&self, timeline: TimelineId) -> bool {
        self.numbers
            .get(&timeline)
            .is_some_and(|numbers| !numbers.is_empty())
    }

    /// The first segment of a timeline from `number` on.
    pub(crate) fn next_stored(
        &self,
        timeline: TimelineId,
        number: SegmentNumber,
    ) -> Option<SegmentNumber> {
        self.numbers.get(&timeline)?.range(number..).next().copied()
    }

    pub(crate) fn branches_have_wal(&self, timeline: TimelineId) -> bool {
        let children = self.children.get(&timeline).into_iter().flatten();
        self.has_wal(timeline)
            || children
                .into_iter()
                .any(|(child, _)| self.branches_have_wal(*child))
    }

    /// WAL of it or of a timeline before it is stored, its history file is not.
    pub(crate) fn lacking_history(&self, timeline: TimelineId) -> Option<TimelineId> {
        let lacks = |timeline: &TimelineId| {
            *timeline != TimelineId::FIRST
                && self
                    .objects(*timeline)
                    .is_some_and(|objects| !objects.history && !objects.segments.is_empty())
        };
        let ancestors = self.evidence.histories.get(&timeline).into_iter();
        let ancestors = ancestors.flat_map(|known| known.history.entries());
        let mut all = ancestors
            .map(|entry| entry.timeline)
            .chain(std::iter::once(timeline));
        all.find(lacks)
    }

    fn stretches_of(&self, timeline: TimelineId) -> Vec<Stretch> {
        let size = self.size();
        // Where a parent's WAL is stored, the child must hold every segment from the one it begins in.
        let mut expected = self.begin(timeline).filter(|_| {
            self.parent(timeline)
                .is_some_and(|(parent, _)| self.has_wal(parent))
        });
        let children = self.children.get(&timeline).into_iter().flatten();
        let required = children
            .filter(|(child, _)| self.branches_have_wal(*child))
            .map(|(_, at)| size.segment(*at))
            .max();
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut link = ChainLink::default();
        // Whether the last stretch may go on.
        let mut is_open = false;
        for number in self.numbers.get(&timeline).into_iter().flatten() {
            let name = self.name(timeline, *number);
            let next = stretches
                .last()
                .filter(|_| is_open)
                .map(|last| last.next)
                .or(expected.take());
            if next.is_some_and(|next| next != *number) {
                self.end_with_hole(timeline, &mut stretches, next, *number);
                is_open = false;
            }
            let sealed = self
                .objects(timeline)
                .is_some_and(|objects| objects.segments.contains_key(&name));
            let wal = self.evidence.wal.sealed.get(&name).filter(|_| sealed);
            if !is_open {
                link = ChainLink::default();
            }
            let damage = self.evidence.wal.damaged.get(&name).filter(|_| sealed);
            let misfit = wal.and_then(|wal| self.misfit(timeline, *number, wal, &mut link));
            let misfit = misfit.map(|broken| broken.to_string());
            if let Some(reason) = damage.cloned().or(misfit) {
                if let Some(last) = stretches.last_mut().filter(|_| is_open) {
                    last.ends = End::Broken {
                        segment: name,
                        reason,
                    };
                }
                is_open = false;
                if damage.is_some() {
                    continue;
                }
                // It may be the beginning of something new.
                link = ChainLink {
                    last_record: wal.and_then(|wal| wal.last_record),
                };
            }
            if !is_open {
                stretches.push(Stretch {
                    first: *number,
                    next: *number,
                    end: size.start(*number),
                    ends: End::Stored,
                    proven: true,
                });
                is_open = true;
            }
            let Some(last) = stretches.last_mut() else {
                continue;
            };
            let (end, invalid) = match (sealed, wal) {
                (true, Some(wal)) => (size.end(*number), wal.invalid_at),
                (true, None) => {
                    last.proven = false;
                    link = ChainLink::default();
                    (size.end(*number), None)
                }
                (false, _) => self.open_end(timeline, *number),
            };
            match invalid {
                Some(at) => {
                    last.end = at.min(end);
                    last.ends = End::Invalid { at };
                    is_open = false;
                }
                None => {
                    last.end = end;
                    if end >= size.end(*number) {
                        last.next = number.next();
                    }
                }
            }
        }
        if let Some(required) = required {
            let next = stretches.last().map(|last| last.next).or(expected);
            if next.is_some_and(|next| next < required)
                && stretches.last().is_none_or(|last| !last.ends.is_gap())
            {
                self.end_with_hole(timeline, &mut stretches, next, required);
            }
        }
        stretches
    }

    /// The last stretch ends because nothing is stored from `next` to `to`. Without a stretch an empty one stands for the hole.
    fn end_with_hole(
        &self,
        timeline: TimelineId,
        stretches: &mut Vec<Stretch>,
        next: Option<SegmentNumber>,
        to: SegmentNumber,
    ) {
        let Some(next) = next else {
            return;
        };
        let ends = End::Missing {
            first: self.name(timeline, next),
            segments: to.as_u64().saturating_sub(next.as_u64()),
        };
        match stretches.last_mut() {
            Some(last) => last.ends = ends,
            None => stretches.push(Stretch {
                first: next,
                next,
                end: self.size().start(next),
                ends,
                proven: true,
            }),
        }
    }

    /// What keeps a sealed segment from following the one before it, if something does.
    pub(crate) fn misfit(
        &self,
        timeline: TimelineId,
        number: SegmentNumber,
        wal: &WalDescriptor,
        link: &mut ChainLink,
    ) -> Option<BrokenChain> {
        let size = self.size();
        let (start, end) = (wal.start_lsn, wal.end_lsn);
        if (start, end) != (size.start(number), size.end(number)) {
            return Some(BrokenChain::Range { start, end });
        }
        let lineage = self.lineage(timeline);
        if lineage.is_some_and(|lineage| lineage != wal.lineage) {
            return Some(BrokenChain::Lineage { timeline });
        }
        link.follow(wal).err().map(BrokenChain::Link)
    }

    /// How far an incomplete segment is there without interruption, and where it is not valid.
    fn open_end(&self, timeline: TimelineId, number: SegmentNumber) -> (Lsn, Option<Lsn>) {
        let (start, name) = (self.size().start(number), self.name(timeline, number));
        let Some(objects) = self.objects(timeline) else {
            return (start, None);
        };
        let wal = self.evidence.wal;
        let mut end = start;
        let mut invalid: Option<Lsn> = None;
        for partial in objects.partials.iter().filter(|one| one.name == name) {
            let described = wal.partials.get(partial);
            end = end.max(described.map_or(start, |wal| wal.end_lsn));
        }
        // Sorted by their beginning.
        for chunk in objects.tails.get(&name).into_iter().flatten() {
            if start.saturating_add(u64::from(chunk.from)) > end {
                break;
            }
            end = end.max(start.saturating_add(u64::from(chunk.to)));
            let at = wal
                .tails
                .get(&(name, *chunk))
                .and_then(|wal| wal.invalid_at);
            invalid = match (invalid, at) {
                (Some(known), Some(at)) => Some(known.min(at)),
                (known, at) => known.or(at),
            };
        }
        (end.min(self.size().end(number)), invalid)
    }

    pub(crate) fn stretch_at(
        &self,
        timeline: TimelineId,
        number: SegmentNumber,
    ) -> Option<&Stretch> {
        let stretches = self.stretches.get(&timeline)?;
        stretches.iter().rev().find(|stretch| {
            stretch.first <= number
                && (number < stretch.next || stretch.end > self.size().start(number))
        })
    }
}
