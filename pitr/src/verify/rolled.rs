//! Which segments of a timeline need not be asked what they say of themselves, because a roll-up says it.
//!
//! Owns how far a roll-up is believed: not where it touches what is read from the objects themselves (the neighbours of such a segment, the
//! end, the first segment of a branch), nor where what it says does not hold. There the objects are asked, and a roll-up that said
//! something else of one is not believed in anything. So a wrong roll-up is never a finding about WAL.

use super::Job;
use super::reader::{Examined, Want};
use crate::error::Result;
use crate::plan::{ChainProof, Piece, PieceSource, WalPath};
use futures_util::StreamExt;
use repository::descriptor::WalDescriptor;
use std::collections::{BTreeMap, BTreeSet};
use wal_format::{SegmentName, SegmentNumber};

/// Descriptors asked for at the same time.
const IN_FLIGHT: usize = 32;
/// How often what is left to believe is looked through; beyond that every object is asked.
const MAX_ROUNDS: usize = 64;

/// What roll-ups say of those segments of `path`'s newest timeline of which no more than the descriptor is wanted. What is not in the
/// answer has to be read.
pub(crate) async fn believable(
    job: &Job<'_>,
    path: &WalPath,
    segments: &[(SegmentName, SegmentNumber, Want)],
) -> Result<BTreeMap<SegmentName, WalDescriptor>> {
    let wanted = segments
        .iter()
        .filter(|(_, _, want)| *want == Want::Descriptor);
    let mut told: BTreeMap<SegmentName, WalDescriptor> = wanted
        .filter_map(|(name, _, _)| Some((*name, job.rolled.get(name)?.clone())))
        .collect();
    let numbers: Vec<(SegmentName, SegmentNumber)> = segments
        .iter()
        .map(|(name, number, _)| (*name, *number))
        .collect();
    let mut asked = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        let mut doubtful = doubtful(path, &numbers, &told);
        doubtful.retain(|name| !asked.contains(name));
        if doubtful.is_empty() {
            job.reader.rolled_up((told.len() - asked.len()) as u64);
            return Ok(told);
        }
        let mut answers = futures_util::stream::iter(doubtful.into_iter().map(|name| async move {
            let key = job.segment_key(name);
            (name, job.reader.examine(&key, 0, Want::Descriptor).await)
        }))
        .buffered(IN_FLIGHT);
        while let Some((name, answer)) = answers.next().await {
            let said = match answer? {
                Examined::Good { descriptor, .. } => descriptor.wal,
                Examined::Bad(..) | Examined::Gone => None,
            };
            if said.as_ref() == told.get(&name) && said.is_some() {
                asked.insert(name);
            } else {
                told.retain(|other, _| other.log != name.log);
                asked.retain(|other: &SegmentName| other.log != name.log);
            }
        }
    }
    Ok(BTreeMap::new())
}

/// Segments whose own word is needed, given what roll-ups say (pure).
fn doubtful(
    path: &WalPath,
    segments: &[(SegmentName, SegmentNumber)],
    told: &BTreeMap<SegmentName, WalDescriptor>,
) -> BTreeSet<SegmentName> {
    let size = path.segment_size;
    let mut doubtful = BTreeSet::new();
    let mut proof = ChainProof::default();
    // Those since the last one in which a record starts, that one included: what the next one follows.
    let mut before: Vec<SegmentName> = Vec::new();
    let mut expected = None;
    let mut after_unread = false;
    for (name, number) in segments {
        let start = size.start(*number);
        if expected != Some(start) {
            (proof, after_unread) = (ChainProof::default(), false);
            before.clear();
        }
        expected = Some(size.end(*number));
        let Some(wal) = told.get(name) else {
            doubtful.extend(before.drain(..));
            (proof, after_unread) = (ChainProof::default(), true);
            continue;
        };
        let piece = Piece {
            name: *name,
            start,
            source: PieceSource::Sealed,
            cut: None,
        };
        if proof.check(path, &piece, wal).is_err() {
            doubtful.insert(*name);
            doubtful.extend(before.drain(..));
            proof = ChainProof::after(wal.last_record);
        }
        let is_branch = path.first_segment(name.timeline) == Some(*number);
        if after_unread || (is_branch && path.history.parent().is_some()) {
            doubtful.insert(*name);
        }
        if wal.first_record.is_some() {
            before.clear();
            after_unread = false;
        }
        before.push(*name);
    }
    // What is not sealed yet continues the last one.
    doubtful.extend(before);
    doubtful
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal_format::{Lsn, SegmentSize, TimelineHistory, TimelineId};

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn name(number: u64) -> SegmentName {
        SegmentName::new(TimelineId::FIRST, SegmentNumber::new(number), SIZE)
    }

    fn wal(number: u64) -> WalDescriptor {
        let start = |number| SIZE.start(SegmentNumber::new(number));
        WalDescriptor {
            start_lsn: start(number),
            end_lsn: start(number + 1),
            first_record: Some(start(number).saturating_add(40)),
            first_record_prev: Some(start(number - 1).saturating_add(80)),
            last_record: Some(start(number).saturating_add(80)),
            ..WalDescriptor::default()
        }
    }

    /// Segments 10 to 29 are stored, except 20; `change` what roll-ups say of them.
    fn check(change: impl Fn(&mut BTreeMap<SegmentName, WalDescriptor>), expected: &[u64]) {
        let path = WalPath {
            history: TimelineHistory::first(),
            lineages: BTreeMap::from([(TimelineId::FIRST, String::new())]),
            segment_size: SIZE,
        };
        let stored = (10..30).filter(|number| *number != 20);
        let segments: Vec<_> = stored
            .map(|number| (name(number), SegmentNumber::new(number)))
            .collect();
        let mut told = segments
            .iter()
            .map(|(name, number)| (*name, wal(number.as_u64())))
            .collect();
        change(&mut told);
        let found: Vec<SegmentName> = doubtful(&path, &segments, &told).into_iter().collect();
        let expected: Vec<SegmentName> = expected.iter().map(|number| name(*number)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_end_and_what_touches_an_unread_segment_are_asked() {
        check(|_| {}, &[29]);
        check(|told| drop(told.remove(&name(15))), &[14, 16, 29]);
        check(|told| drop(told.remove(&name(10))), &[11, 29]);
        check(|told| told.clear(), &[]);
    }

    #[test]
    fn what_does_not_hold_is_asked_together_with_what_it_should_follow() {
        let edit = |number: u64, edit: fn(&mut WalDescriptor), expected: &[u64]| {
            check(|told| edit(told.get_mut(&name(number)).unwrap()), expected);
        };
        edit(
            13,
            |wal| wal.first_record_prev = Some(Lsn::new(7)),
            &[12, 13, 29],
        );
        edit(13, |wal| wal.last_record = Some(Lsn::new(7)), &[13, 14, 29]);
        edit(
            13,
            |wal| wal.invalid_at = Some(wal.start_lsn),
            &[12, 13, 29],
        );
        edit(13, |wal| wal.lineage = "x".into(), &[12, 13, 29]);
        edit(13, |wal| wal.end_lsn = wal.start_lsn, &[12, 13, 29]);
    }

    #[test]
    fn segments_in_which_no_record_starts_are_asked_with_those_around_them() {
        let silent = |told: &mut BTreeMap<SegmentName, WalDescriptor>, number| {
            let wal = told.get_mut(&name(number)).unwrap();
            (wal.first_record, wal.first_record_prev, wal.last_record) = (None, None, None);
        };
        let break_at = |told: &mut BTreeMap<SegmentName, WalDescriptor>, number| {
            told.get_mut(&name(number)).unwrap().first_record_prev = Some(Lsn::new(7));
        };
        check(
            |told| {
                silent(told, 13);
                silent(told, 14);
                break_at(told, 15);
            },
            &[12, 13, 14, 15, 29],
        );
        check(
            |told| {
                silent(told, 13);
                told.remove(&name(12));
                told.get_mut(&name(14)).unwrap().first_record_prev = None;
            },
            &[11, 13, 14, 29],
        );
    }
}
