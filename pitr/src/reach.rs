//! Computes how far each backup reaches and where WAL is missing (pure), from names, history files and as many descriptors as were read.
//!
//! Owns the rules by which a backup goes on from its stretch of WAL (`stretches.rs`) into those of the timelines that branch off where it is
//! unbroken. Does not own the words of the answer (`window.rs`), reads nothing (`survey.rs`), and leaves the proof of one recovery's
//! chain to `plan.rs`.

use crate::plan::BackupFacts;
use crate::stretches::{Evidence, Stretch, WalMap};
use crate::window::{
    BackupWindow, End, Hole, Promise, PromiseReason, Reach, SegmentRun, TimelineNode, Windows,
};
use repository::catalog::GapRange;
use repository::descriptor::WalDescriptor;
use repository::wal::ChainLink;
use std::collections::{BTreeMap, BTreeSet};
use wal_format::{Lsn, SegmentNumber, TimelineId, Timestamp};

/// Where stretches end although the next segment is stored: that segment, and the last ones before it that say anything of their records;
/// and segments that are said not to be valid.
pub(crate) fn find_broken(
    evidence: Evidence<'_>,
) -> Vec<(wal_format::SegmentName, Vec<wal_format::SegmentName>)> {
    let map = WalMap::new(evidence);
    let mut broken = Vec::new();
    for (timeline, stretches) in &map.stretches {
        for stretch in stretches {
            let segment = match &stretch.ends {
                End::Broken { segment, .. } => *segment,
                End::Invalid { at } => map.name(*timeline, map.size().segment(*at)),
                End::Stored | End::Missing { .. } => continue,
            };
            let mut before = Vec::new();
            let mut number = segment.number(map.size());
            while let Some(previous) = number.and_then(SegmentNumber::previous) {
                if previous < stretch.first {
                    break;
                }
                let name = map.name(*timeline, previous);
                before.push(name);
                let known = evidence.wal.sealed.get(&name);
                if known.is_none_or(|wal| wal.first_record.is_some()) {
                    break;
                }
                number = Some(previous);
            }
            broken.push((segment, before));
        }
    }
    broken
}

/// What is known of transactions in a segment.
enum Newest {
    At(Timestamp),
    NoneHere,
    Unknown,
}

/// The answer.
#[must_use]
pub fn find_windows(evidence: Evidence<'_>) -> Windows {
    let map = WalMap::new(evidence);
    let mut newest_before = BTreeMap::new();
    let mut backups: Vec<BackupFacts> = evidence.backups.to_vec();
    backups.sort_by(|one, other| {
        (one.stopped, one.stop_lsn, &one.label).cmp(&(other.stopped, other.stop_lsn, &other.label))
    });
    let mut backups: Vec<BackupWindow> = backups
        .into_iter()
        .map(|backup| map.window(backup))
        .collect();
    for reach in backups
        .iter_mut()
        .flat_map(|backup| backup.reaches.iter_mut())
    {
        // The oldest backup looks back furthest, and comes first.
        let found = newest_before
            .entry((reach.timeline, reach.end))
            .or_insert_with(|| map.newest_in(&reach.legs, reach.end));
        let first = reach.legs.first().map(|leg| leg.first);
        reach.newest_transaction =
            found.and_then(|(number, time)| (Some(number) >= first).then_some(time));
    }
    let promise = backups
        .iter()
        .filter(|backup| !backup.reaches.is_empty())
        .min_by_key(|backup| backup.backup.stop_lsn)
        .map(|backup| Promise {
            moment: backup.from(),
            backup: backup.backup.label.clone(),
            reason: PromiseReason::OldestBackup,
        });
    Windows {
        holes: map.holes(),
        timelines: map.nodes(),
        backups,
        promise,
    }
}

impl WalMap<'_> {
    fn window(&self, backup: BackupFacts) -> BackupWindow {
        let timeline = backup.timeline;
        let mut reaches = Vec::new();
        let mut unusable = None;
        if let Some(lacking) = self.lacking_history(timeline) {
            unusable = Some(format!("{:08X}.history is missing", lacking.get()));
        } else if self
            .lineage(timeline)
            .is_some_and(|lineage| lineage != backup.lineage)
        {
            unusable = Some(format!(
                "it was taken on another timeline {timeline} than the stored history file"
            ));
        } else {
            let from = self.size().segment(backup.start_lsn);
            self.follow(&backup, timeline, from, &[], true, &mut reaches);
            let furthest = reaches.iter().max_by_key(|reach| reach.end);
            if !reaches.iter().any(|reach| reach.end >= backup.stop_lsn) {
                let why = match furthest {
                    Some(reach) if reach.ends.is_gap() => reach.ends.to_string(),
                    Some(reach) => format!("WAL is stored up to {} only", reach.end),
                    None => format!("{} is missing", self.name(timeline, from)),
                };
                unusable = Some(format!(
                    "it is consistent at {}, and {why}",
                    backup.stop_lsn
                ));
            }
            reaches.retain(|reach| reach.end >= backup.stop_lsn);
            reaches.sort_by_key(|reach| std::cmp::Reverse(reach.timeline));
        }
        BackupWindow {
            backup,
            reaches,
            unusable,
        }
    }

    /// Goes on from segment `from` of a timeline, and into those that branch off it. A timeline's parent has a lower number, so this ends.
    fn follow(
        &self,
        backup: &BackupFacts,
        timeline: TimelineId,
        from: SegmentNumber,
        legs: &[SegmentRun],
        proven: bool,
        reaches: &mut Vec<Reach>,
    ) {
        let size = self.size();
        let stretch = self.stretch_at(timeline, from);
        if let Some(stretch) = stretch.filter(|stretch| stretch.end > size.start(from)) {
            let mut legs = legs.to_vec();
            legs.push(SegmentRun {
                timeline,
                first: from,
                last: size.segment_before(stretch.end),
            });
            reaches.push(Reach {
                timeline,
                legs,
                end: stretch.end,
                ends: stretch.ends.clone(),
                proven: proven && stretch.proven,
                newest_transaction: None,
                last_commit: None,
            });
        } else if !legs.is_empty() && self.has_wal(timeline) {
            let later = self.next_stored(timeline, from);
            let segments = later.map_or(1, |later| later.as_u64().saturating_sub(from.as_u64()));
            reaches.push(Reach {
                timeline,
                legs: legs.to_vec(),
                end: size.start(from),
                ends: End::Missing {
                    first: self.name(timeline, from),
                    segments: segments.max(1),
                },
                proven,
                newest_transaction: None,
                last_commit: None,
            });
        }
        for (child, at) in self.children.get(&timeline).into_iter().flatten() {
            if (timeline == backup.timeline && backup.stop_lsn > *at)
                || self.lacking_history(*child).is_some()
            {
                continue;
            }
            let begins = size.segment(*at);
            let mut legs = legs.to_vec();
            let mut proven = proven;
            if begins > from {
                let Some(stretch) = stretch.filter(|stretch| stretch.next >= begins) else {
                    continue;
                };
                legs.push(SegmentRun {
                    timeline,
                    first: from,
                    last: size.segment_before(size.start(begins)),
                });
                proven &= stretch.proven;
                if let Some(reason) = self.broken_join(stretch, (timeline, begins), *child) {
                    reaches.push(Reach {
                        timeline: *child,
                        legs,
                        end: size.start(begins),
                        ends: End::Broken {
                            segment: self.name(*child, begins),
                            reason,
                        },
                        proven,
                        newest_transaction: None,
                        last_commit: None,
                    });
                    continue;
                }
            }
            if !self.branches_have_wal(*child) {
                self.follow_empty(timeline, (*child, *at), from, &legs, stretch, reaches);
                continue;
            }
            self.follow(backup, *child, begins.max(from), &legs, proven, reaches);
        }
    }

    /// A timeline of which nothing but the history is stored: following it ends where its parent's WAL does, at the latest where it
    /// branches off.
    fn follow_empty(
        &self,
        parent: TimelineId,
        (child, at): (TimelineId, Lsn),
        from: SegmentNumber,
        legs: &[SegmentRun],
        stretch: Option<&Stretch>,
        reaches: &mut Vec<Reach>,
    ) {
        let Some(stretch) = stretch else {
            return;
        };
        let begins = self.size().segment(at);
        let mut legs = legs.to_vec();
        let rest = begins.max(from);
        if stretch.end > self.size().start(rest) {
            legs.push(SegmentRun {
                timeline: parent,
                first: rest,
                last: rest,
            });
        }
        let end = stretch.end.min(at);
        reaches.push(Reach {
            timeline: child,
            legs,
            end,
            ends: match stretch.end >= at {
                true => End::Stored,
                false => stretch.ends.clone(),
            },
            proven: stretch.proven,
            newest_transaction: None,
            last_commit: None,
        });
    }

    /// Whether a child's first segment does not follow the parent's segment before it.
    fn broken_join(
        &self,
        stretch: &Stretch,
        (parent, begins): (TimelineId, SegmentNumber),
        child: TimelineId,
    ) -> Option<String> {
        let wal = &self.evidence.wal.sealed;
        let next = wal.get(&self.name(child, begins))?;
        let mut number = begins.previous()?;
        while number >= stretch.first {
            let before = wal.get(&self.name(parent, number))?;
            if before.last_record.is_some() {
                let mut link = ChainLink {
                    last_record: before.last_record,
                };
                let broken = self.misfit(child, begins, next, &mut link)?;
                return Some(broken.to_string());
            }
            number = number.previous()?;
        }
        None
    }

    /// The newest commit or abort before `end`, and the segment it was found in.
    fn newest_in(&self, legs: &[SegmentRun], end: Lsn) -> Option<(SegmentNumber, Timestamp)> {
        for leg in legs.iter().rev() {
            let mut number = leg.last;
            while number >= leg.first {
                match self.newest(leg.timeline, number, end) {
                    Newest::At(time) => return Some((number, time)),
                    Newest::NoneHere => {}
                    Newest::Unknown => return None,
                }
                number = match number.previous() {
                    Some(before) => before,
                    None => break,
                };
            }
        }
        None
    }

    fn newest(&self, timeline: TimelineId, number: SegmentNumber, end: Lsn) -> Newest {
        let name = self.name(timeline, number);
        let Some(objects) = self.objects(timeline) else {
            return Newest::Unknown;
        };
        let wal = self.evidence.wal;
        let sealed = objects.segments.contains_key(&name);
        let mut described: Vec<Option<&WalDescriptor>> = Vec::new();
        if sealed {
            described.push(wal.sealed.get(&name));
        } else {
            let chunks = objects.tails.get(&name).into_iter().flatten();
            described.extend(chunks.map(|chunk| wal.tails.get(&(name, *chunk))));
            let partials = objects.partials.iter().filter(|one| one.name == name);
            described.extend(partials.map(|partial| wal.partials.get(partial)));
        }
        let mut newest = Newest::NoneHere;
        for wal in described {
            let Some(wal) = wal else {
                return Newest::Unknown;
            };
            // What lies behind the end is not reached: the object's times say nothing of what lies before it. Its own invalid end is
            // counted already.
            if wal.end_lsn > end && wal.invalid_at != Some(end) {
                return Newest::Unknown;
            }
            let time = wal
                .time_max
                .map(|time| Timestamp::from_unix_micros(time.as_microsecond()));
            newest = match (newest, time) {
                (Newest::At(known), Some(time)) => Newest::At(known.max(time)),
                (_, Some(time)) => Newest::At(time),
                (newest, None) if wal.transactions == Some(0) && !wal.incomplete => newest,
                (Newest::At(known), None) => Newest::At(known),
                (_, None) => return Newest::Unknown,
            };
        }
        newest
    }

    /// The open holes. A recorded one that was filled later is closed; one between stored segments counts whether or not it was recorded,
    /// once. That only a part of a segment is there is none before a later one is sealed: the rest may be on its way.
    fn holes(&self) -> Vec<Hole> {
        let size = self.size();
        let catalog = self.evidence.catalog;
        let hole = |timeline, from: Lsn, to: Lsn, recorded: Option<GapRange>| Hole {
            timeline,
            from,
            to,
            first_missing: self.name(timeline, size.segment(from)),
            segments: (size.segment_before(to).as_u64())
                .saturating_sub(size.segment(from).as_u64())
                .saturating_add(1),
            recorded: recorded.is_some(),
            acknowledged: recorded.is_some_and(|gap| catalog.acknowledged.contains(&gap)),
        };
        let open = catalog.open_gaps(size).into_iter();
        let recorded: Vec<Hole> = open
            .map(|(gap, recorded)| hole(gap.timeline, gap.from, gap.to, Some(recorded)))
            .collect();
        let mut holes: BTreeSet<Hole> = recorded.iter().cloned().collect();
        for (timeline, stretches) in &self.stretches {
            for stretch in stretches {
                let End::Missing { segments, .. } = stretch.ends else {
                    continue;
                };
                let to = SegmentNumber::new(stretch.next.as_u64().saturating_add(segments));
                let begun = stretch.end > size.start(stretch.next);
                let from = match begun && !self.is_overtaken(*timeline, stretch.next) {
                    true => size.start(stretch.next.next()),
                    false => stretch.end,
                };
                let stretch = GapRange {
                    timeline: *timeline,
                    from,
                    to: size.start(to),
                };
                let unrecorded = catalog.unrecorded_in(stretch);
                holes.extend(
                    unrecorded
                        .iter()
                        .map(|left| hole(*timeline, left.from, left.to, None)),
                );
            }
        }
        holes.into_iter().collect()
    }

    /// Whether a later segment of the timeline is sealed.
    fn is_overtaken(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        let later = self.name(timeline, number.next());
        self.objects(timeline)
            .is_some_and(|objects| objects.segments.range(later..).next().is_some())
    }

    fn nodes(&self) -> Vec<TimelineNode> {
        let nodes = self.stretches.iter().map(|(timeline, stretches)| {
            let entry = self.evidence.histories.get(timeline);
            let entry = entry.and_then(|known| known.history.entries().last());
            let stored: Vec<&Stretch> = stretches
                .iter()
                .filter(|stretch| stretch.end > self.size().start(stretch.first))
                .collect();
            let ends = stored.first().zip(stored.last());
            let newest = stored.iter().rev().find_map(|stretch| {
                let leg = SegmentRun {
                    timeline: *timeline,
                    first: stretch.first,
                    last: self.size().segment_before(stretch.end),
                };
                self.newest_in(&[leg], stretch.end)
            });
            TimelineNode {
                timeline: *timeline,
                parent: entry.map(|entry| (entry.timeline, entry.switch_point)),
                reason: entry.map_or_else(String::new, |entry| entry.reason.clone()),
                is_known: self.lineage(*timeline).is_some(),
                lacks_history: self.lacking_history(*timeline) == Some(*timeline),
                stored: ends.map(|(first, last)| (self.size().start(first.first), last.end)),
                newest_transaction: newest.map(|(_, time)| time),
            }
        });
        nodes.collect()
    }
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
