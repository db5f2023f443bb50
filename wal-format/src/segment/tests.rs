//! What is said of segments of every shape.

use super::{Completion, SegmentScanner, SegmentSummary, summarise_segment};
use crate::testing::WalBuilder;
use crate::{
    DecoderConfig, EndReason, Error, InvalidReason, Lsn, Major, SegmentSize, TimelineId, Timestamp,
};
use std::vec;
use std::vec::Vec;

const START: Lsn = Lsn(0x500_0000);
const SEGMENT: usize = 1 << 20;
const LINK: Lsn = Lsn(0x4FF_F000);

fn config() -> DecoderConfig {
    DecoderConfig {
        segment_size: SegmentSize::MIN,
        system_identifier: None,
        major: None,
    }
}

fn builder() -> WalBuilder {
    WalBuilder::new(Major::V17, SegmentSize::MIN, START, LINK)
}

fn segment(number: u64) -> Lsn {
    Lsn(START.0 + number * SEGMENT as u64)
}

/// Each segment alone.
fn alone(bytes: &[u8]) -> Vec<SegmentSummary> {
    let chunks = (0..).zip(bytes.chunks(SEGMENT));
    chunks
        .map(|(number, bytes)| summarise_segment(config(), segment(number), bytes).unwrap())
        .collect()
}

/// All segments as one stream.
fn streamed(bytes: &[u8]) -> Vec<SegmentSummary> {
    let mut scanner = SegmentScanner::new(config(), START).unwrap();
    let mut summaries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let piece = &rest[..rest.len().min(300_007)];
        let taken = scanner.push(piece, |_| {});
        rest = &rest[taken..];
        summaries.extend(scanner.finish_segment());
        assert_eq!(
            scanner.missing() == SEGMENT as u64,
            taken < piece.len() || rest.len().is_multiple_of(SEGMENT)
        );
    }
    summaries
}

#[test]
fn a_chain_over_three_segments() {
    let mut wal = builder();
    let first = wal.commit(5, Timestamp(30));
    wal.abort(6, Timestamp(10));
    wal.commit(7, Timestamp(20));
    wal.fill_to(3 * SEGMENT, 1000);
    let summaries = alone(wal.bytes());
    assert_eq!(streamed(wal.bytes()), {
        // The stream has seen where the records began that end in the second and third segment.
        let mut expected = summaries.clone();
        expected
            .iter_mut()
            .for_each(|summary| summary.transactions.incomplete = false);
        expected
    });
    assert_eq!(summaries[0].first_record, Some(first));
    assert_eq!(summaries[0].first_record_prev, Some(LINK));
    assert_eq!(summaries[0].transactions.count, 3);
    assert_eq!(
        summaries[0].transactions.times,
        Some((Timestamp(10), Timestamp(30)))
    );
    assert!(!summaries[0].transactions.incomplete && summaries[1].transactions.incomplete);
    assert_eq!(summaries[1].transactions.times, None);
    for (number, summary) in summaries.iter().enumerate() {
        assert_eq!(
            (summary.completion, summary.valid_to),
            (Completion::Records, summary.end_lsn),
            "{number}"
        );
        assert_eq!(summary.system_identifier(), Some(0x7412_3456_7890_1234));
        assert_eq!(summary.major, Some(Major::V17));
    }
    for pair in summaries.windows(2) {
        assert_eq!(
            pair[1].first_record_prev, pair[0].last_record,
            "segments chain"
        );
    }
}

#[test]
fn a_record_longer_than_segments() {
    let mut wal = builder();
    let long = wal.data_record(10, 0, 1, &vec![3; 3 * SEGMENT]);
    let commit = wal.commit(2, Timestamp(9));
    wal.switch();
    let summaries = alone(wal.bytes());
    assert_eq!(summaries.len(), 4);
    assert_eq!(
        (summaries[0].first_record, summaries[0].last_record),
        (Some(long), Some(long))
    );
    assert_eq!(summaries[0].first_record_prev, Some(LINK));
    for summary in &summaries[1..3] {
        assert_eq!(
            (
                summary.completion,
                summary.first_record,
                summary.last_record
            ),
            (Completion::Records, None, None)
        );
        assert!(!summary.transactions.incomplete, "no record ends there");
    }
    assert_eq!(
        (summaries[3].completion, summaries[3].first_record),
        (Completion::Switched, Some(commit))
    );
    assert_eq!(summaries[3].first_record_prev, Some(long));
    assert!(summaries[3].transactions.incomplete);
}

#[test]
fn a_switch_completes_a_segment_only_with_zeros() {
    let mut wal = builder();
    wal.commit(2, Timestamp(9));
    let switch = wal.switch();
    let summaries = alone(wal.bytes());
    assert_eq!(
        (summaries[0].completion, summaries[0].last_record),
        (Completion::Switched, Some(switch))
    );
    assert_eq!(summaries[0].valid_to, summaries[0].end_lsn);
    let mut bytes = wal.into_bytes();
    bytes[SEGMENT - 1] = 1;
    let summary = &alone(&bytes)[0];
    let padding = Some((Lsn(switch.0 + 24), InvalidReason::SwitchPadding));
    assert_eq!(
        (summary.completion, summary.invalid_at),
        (Completion::Incomplete, padding)
    );
    // While zeros are missing it is not complete.
    let summary = summarise_segment(config(), START, &bytes[..SEGMENT - 8192]).unwrap();
    assert_eq!(
        (summary.completion, summary.invalid_at),
        (Completion::Incomplete, None)
    );
    assert_eq!(summary.received_to, Lsn(START.0 + (SEGMENT - 8192) as u64));
}

#[test]
fn wal_that_ends_within_a_segment_is_incomplete() {
    let mut wal = builder();
    let last = wal.commit(2, Timestamp(9));
    let end = wal.position();
    wal.zeros(SEGMENT - wal.bytes().len());
    let summary = &alone(wal.bytes())[0];
    assert_eq!(
        (summary.completion, summary.valid_to),
        (Completion::Incomplete, end)
    );
    assert_eq!(
        (summary.end_of_wal, summary.invalid_at),
        (Some((end, EndReason::Zeros)), None)
    );
    assert_eq!(
        (summary.last_record, summary.transactions.count),
        (Some(last), 1)
    );
    assert_eq!(summary.received_to, summary.end_lsn);
}

#[test]
fn a_cut_segment_counts_whole_records_only() {
    let mut wal = builder();
    let commit = wal.commit(2, Timestamp(9));
    let end = wal.position();
    wal.data_record(10, 0, 1, &vec![3; 30_000]);
    let summary = summarise_segment(config(), START, &wal.bytes()[..20_000]).unwrap();
    assert_eq!((summary.valid_to, summary.last_record), (end, Some(commit)));
    assert_eq!((summary.end_of_wal, summary.invalid_at), (None, None));
    let nothing = summarise_segment(config(), START, &[]).unwrap();
    assert_eq!(
        (nothing.valid_to, nothing.completion),
        (START, Completion::Incomplete)
    );
}

#[test]
fn a_record_aborted_in_the_next_segment_leaves_this_one_complete() {
    let mut wal = builder();
    while wal.bytes().len() < SEGMENT - 3000 {
        wal.record(10, 0, 1, &[8; 2000]);
    }
    let whole = wal.previous();
    let aborted = wal.aborted_record(20_000, Timestamp(1));
    assert!(wal.position() > segment(1) && aborted < segment(1));
    wal.fill_to(2 * SEGMENT, 1000);
    let summaries = alone(wal.bytes());
    assert_eq!(
        (summaries[0].completion, summaries[0].last_record),
        (Completion::Records, Some(aborted))
    );
    assert_eq!(summaries[1].first_record_prev, Some(whole));
    assert_eq!(
        summaries[1].first_record_overwrites,
        Some(aborted),
        "so the segments chain"
    );
    let mut expected = summaries.clone();
    expected
        .iter_mut()
        .for_each(|summary| summary.transactions.incomplete = false);
    assert_eq!(streamed(wal.bytes()), expected);
}

#[test]
fn an_invalid_record_is_told_and_the_next_segment_is_its_own() {
    let mut wal = builder();
    wal.fill_to(2 * SEGMENT, 1000);
    let mut bytes = wal.into_bytes();
    bytes[500_000] ^= 4;
    for summaries in [alone(&bytes), streamed(&bytes)] {
        let Some((lsn, InvalidReason::Crc { .. })) = summaries[0].invalid_at else {
            panic!("{:?}", summaries[0])
        };
        assert_eq!(
            (summaries[0].valid_to, summaries[0].completion),
            (lsn, Completion::Incomplete)
        );
        assert!(summaries[0].last_record < Some(lsn));
        assert_eq!(
            (summaries[1].completion, summaries[1].invalid_at),
            (Completion::Records, None)
        );
    }
}

#[test]
fn page_timelines_are_listed_once() {
    let mut wal = builder();
    for timeline in [1, 1, 3, 4] {
        wal.timeline = TimelineId::new(timeline).unwrap();
        for _ in 0..4 {
            wal.data_record(10, 0, 1, &[0; 3000]);
        }
    }
    let summary = summarise_segment(config(), START, wal.bytes()).unwrap();
    let numbers: Vec<u32> = summary
        .page_timelines
        .iter()
        .map(|timeline| timeline.get())
        .collect();
    assert_eq!(numbers, [1, 3, 4]);
    assert_eq!(summary.first_page_timeline(), Some(TimelineId::FIRST));
    assert_eq!(summary.last_page_timeline(), TimelineId::new(4));
}

#[test]
fn places_and_sizes_are_checked() {
    assert_eq!(
        summarise_segment(config(), Lsn(START.0 + 8192), &[]),
        Err(Error::NotPageStart(Lsn(START.0 + 8192)))
    );
    let long = summarise_segment(config(), START, &vec![0; SEGMENT + 1]);
    assert_eq!(
        long,
        Err(Error::SegmentOverflow {
            segment_bytes: 1 << 20
        })
    );
    let mut scanner = SegmentScanner::new(config(), START).unwrap();
    assert_eq!(scanner.push(&vec![0; SEGMENT + 5], |_| {}), SEGMENT);
    assert_eq!(scanner.push(&[0], |_| {}), 0);
    assert!(scanner.finish_segment().is_some());
    assert_eq!(
        (scanner.segment_start(), scanner.finish_segment()),
        (segment(1), None)
    );
}
