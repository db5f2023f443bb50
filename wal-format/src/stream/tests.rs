//! The decoder against the reference, and named cases of damaged, recycled and cut WAL.

use super::{DecoderConfig, WalDecoder};
use crate::testing::{WalBuilder, encode_record, main_data};
use crate::{
    EndReason, InvalidReason, Lsn, Major, RecordKind, SegmentSize, Step, TimelineId, Timestamp,
    TransactionId, reference,
};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const START: Lsn = Lsn(0x300_0000);
const SEGMENT: usize = 1 << 20;

fn config() -> DecoderConfig {
    DecoderConfig {
        segment_size: SegmentSize::MIN,
        system_identifier: None,
        major: None,
    }
}

fn builder() -> WalBuilder {
    WalBuilder::new(Major::V18, SegmentSize::MIN, START, Lsn(START.0 - 0x40))
}

/// The steps of `bytes` given in pieces of those lengths, over and over.
fn steps_in(start: Lsn, bytes: &[u8], pieces: &[usize]) -> Vec<Step> {
    let mut decoder = WalDecoder::new(config(), start).unwrap();
    let mut steps = Vec::new();
    let mut rest = bytes;
    for &piece in pieces.iter().cycle() {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        decoder.push(now, |step| steps.push(step));
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(decoder.position(), start.saturating_add(bytes.len() as u64));
    steps
}

/// The steps of `bytes`, proven to be the same in several cuts and in the reference.
fn steps(bytes: &[u8]) -> Vec<Step> {
    steps_from(START, bytes)
}

fn steps_from(start: Lsn, bytes: &[u8]) -> Vec<Step> {
    let expected = reference::decode(config(), start, bytes);
    for pieces in [
        &[usize::MAX][..],
        &[1],
        &[8192],
        &[24],
        &[7, 100, 3],
        &[8191, 8193],
        &[131_072],
    ] {
        assert_eq!(
            steps_in(start, bytes, pieces),
            expected,
            "in pieces of {pieces:?}"
        );
    }
    expected
}

/// The same steps without pages.
fn without_pages(steps: &[Step]) -> Vec<Step> {
    steps
        .iter()
        .filter(|step| !matches!(step, Step::Page(_)))
        .cloned()
        .collect()
}

fn starts(steps: &[Step]) -> Vec<Lsn> {
    let record = |step: &Step| match step {
        Step::Record(record) => Some(record.start),
        _ => None,
    };
    steps.iter().filter_map(record).collect()
}

fn last(steps: &[Step]) -> &Step {
    steps.last().unwrap()
}

#[test]
fn finds_every_record_that_was_written() {
    let mut wal = builder();
    let mut written = Vec::new();
    for i in 0..3000_u32 {
        // Lengths that put record starts and header splits at every offset of a page.
        written.push(wal.record(10, 0, i, &vec![i as u8; (i as usize * 37) % 700]));
    }
    written.push(wal.record(10, 0, 1, &vec![9; 100_000]));
    written.push(wal.record(10, 0, 1, &vec![9; 2 * SEGMENT + 5000]));
    let steps = steps(wal.bytes());
    assert_eq!(starts(&steps), written);
    assert!(
        steps
            .iter()
            .all(|step| matches!(step, Step::Page(_) | Step::Record(_)))
    );
    let Step::Record(record) = last(&steps) else {
        panic!("{:?}", last(&steps))
    };
    assert_eq!(record.end, wal.position());
    assert_eq!(record.header.total_length as usize, 24 + 2 * SEGMENT + 5000);
}

#[test]
fn every_split_of_a_header_over_two_pages_is_read() {
    for on_first_page in [8, 16, 24, 32] {
        let mut wal = builder();
        let gap = 8192 - 40 - 24 - on_first_page;
        wal.record(10, 0, 1, &vec![1; gap]);
        assert_eq!(wal.bytes().len(), 8192 - on_first_page);
        let start = wal.commit(77, Timestamp(123));
        wal.commit(78, Timestamp(124));
        let steps = steps(wal.bytes());
        let commit = steps.iter().find_map(|step| match step {
            Step::Record(record) if record.start == start => record.kind.clone(),
            _ => None,
        });
        assert_eq!(
            commit,
            Some(RecordKind::Commit {
                xid: TransactionId(77),
                time: Timestamp(123)
            })
        );
        assert_eq!(starts(&steps).len(), 3);
    }
}

#[test]
fn a_record_begun_before_is_passed_over() {
    let mut wal = builder();
    wal.record(10, 0, 1, &vec![1; 20_000]);
    let commit = wal.commit(5, Timestamp(1));
    let second_page = Lsn(START.0 + 8192);
    let steps = steps_from(second_page, &wal.bytes()[8192..]);
    assert_eq!(
        without_pages(&steps)[0],
        Step::ContinuedRecordEnd { end: commit }
    );
    assert_eq!(starts(&steps), [commit]);
}

#[test]
fn only_page_starts_are_accepted() {
    assert!(WalDecoder::new(config(), Lsn(START.0 + 1)).is_err());
    assert!(WalDecoder::new(config(), Lsn(START.0 + 8192)).is_ok());
}

#[test]
fn a_switch_is_followed_by_zeros_and_the_next_segment() {
    let mut wal = builder();
    wal.commit(5, Timestamp(1));
    let switch = wal.switch();
    let next = Lsn(START.0 + SEGMENT as u64);
    assert_eq!(wal.position(), next);
    let after = wal.commit(6, Timestamp(2));
    let found = steps(wal.bytes());
    assert_eq!(starts(&found).len(), 3);
    assert!(found.contains(&Step::Switch {
        record: Some(switch),
        next
    }));
    assert_eq!(starts(&found)[2], after);
    // Any other byte in the zeros is told, wherever it is, and the next segment is read all the same.
    for at in [200, 8191, 8192, 8200, 8216, 100_000, SEGMENT - 1] {
        let mut bytes = wal.bytes().to_vec();
        bytes[at] = 1;
        let found = steps(&bytes);
        let told = |step: &Step| {
            matches!(
                step,
                Step::Invalid {
                    reason: InvalidReason::SwitchPadding,
                    ..
                }
            )
        };
        assert!(found.iter().any(told), "{at}: {found:?}");
        assert_eq!(starts(&found)[2], after, "{at}");
    }
}

#[test]
fn a_switch_over_a_segment_boundary_pads_the_next_segment() {
    for on_first in [8, 16] {
        let mut wal = builder();
        while wal.bytes().len() < SEGMENT - 8192 {
            wal.record(10, 0, 1, &[2; 1000]);
        }
        let gap = SEGMENT - wal.bytes().len() - 24 - on_first;
        let gap = if gap > 8192 - 24 { gap - 24 } else { gap };
        wal.record(10, 0, 1, &vec![3; gap]);
        assert_eq!(wal.bytes().len(), SEGMENT - on_first);
        let switch = wal.switch();
        let next = Lsn(START.0 + 2 * SEGMENT as u64);
        assert_eq!(wal.position(), next);
        wal.commit(9, Timestamp(1));
        assert!(steps(wal.bytes()).contains(&Step::Switch {
            record: Some(switch),
            next
        }));
        // Alone, the second segment's first bytes look like the rest of a switch record, and zeros follow.
        let alone = steps_from(Lsn(START.0 + SEGMENT as u64), &wal.bytes()[SEGMENT..]);
        assert!(
            alone.contains(&Step::Switch { record: None, next }),
            "{alone:?}"
        );
        assert_eq!(starts(&alone).len(), 1);
    }
}

#[test]
fn an_aborted_record_is_replaced() {
    let mut wal = builder();
    let before = wal.commit(5, Timestamp(1));
    wal.record(10, 0, 1, &[0; 3000]);
    let aborted = wal.aborted_record(30_000, Timestamp(2));
    let after = wal.commit(6, Timestamp(3));
    let found = steps(wal.bytes());
    let overwritten_at = Lsn(START.0 + 8192);
    assert!(found.contains(&Step::AbortedRecord {
        start: Some(aborted),
        overwritten_at
    }));
    assert_eq!(
        (starts(&found)[0], *starts(&found).last().unwrap()),
        (before, after)
    );
    assert!(found.iter().any(|step| matches!(
        step,
        Step::Record(record) if record.kind == Some(RecordKind::OverwriteContrecord { overwritten: aborted, time: Timestamp(2) })
    )));
    // From the page after the abort on, nothing is missing.
    assert_eq!(
        starts(&steps_from(overwritten_at, &wal.bytes()[8192..])).len(),
        2
    );
}

#[test]
fn the_page_that_replaces_a_record_must_name_it() {
    let mut wal = builder();
    wal.commit(5, Timestamp(1));
    let aborted = wal.aborted_record(30_000, Timestamp(2));
    let mut bytes = wal.bytes()[..8192 + 24].to_vec();
    let mut data = (aborted.0 + 8).to_le_bytes().to_vec();
    data.extend([0; 8]);
    bytes.extend(encode_record(
        0,
        0xD0,
        0,
        Lsn(START.0 + 40),
        &main_data(&data),
    ));
    let at = Lsn(START.0 + 8192 + 24);
    assert_eq!(
        last(&steps(&bytes)),
        &Step::Invalid {
            at,
            reason: InvalidReason::OverwriteMissing { aborted }
        }
    );
}

#[test]
fn wal_ends_at_zeros_and_at_recycled_pages() {
    let mut wal = builder();
    wal.commit(5, Timestamp(1));
    let end = wal.position();
    let mut zeros = wal.clone();
    zeros.zeros(SEGMENT - wal.bytes().len());
    assert_eq!(
        last(&steps(zeros.bytes())),
        &Step::EndOfWal {
            at: end,
            reason: EndReason::Zeros
        }
    );

    // The rest of the file is what it held under an older name: valid pages and records of 0/1000000.
    let mut old = WalBuilder::new(
        Major::V18,
        SegmentSize::MIN,
        Lsn(0x100_0000),
        Lsn(0xFF_0000),
    );
    old.fill_to(SEGMENT, 300);
    let mut recycled = wal.clone();
    recycled.fill_to(8192, 50);
    let whole = recycled.bytes().len();
    recycled.raw(&old.bytes()[whole..]);
    let found = steps(recycled.bytes());
    let reason = EndReason::RecycledPage {
        address: Lsn(0x100_2000),
    };
    assert!(
        matches!(last(&found), Step::EndOfWal { reason: found, .. } if *found == reason),
        "{found:?}"
    );

    // Wholly recycled: not one record of it is believed.
    let reason = EndReason::RecycledPage {
        address: Lsn(0x100_0000),
    };
    assert_eq!(steps(old.bytes()), [Step::EndOfWal { at: START, reason }]);
}

#[test]
fn a_page_of_an_older_timeline_ends_wal() {
    let mut wal = builder();
    wal.timeline = TimelineId::new(2).unwrap();
    wal.fill_to(8192, 48);
    wal.timeline = TimelineId::FIRST;
    wal.fill_to(16_384, 48);
    let found = steps(wal.bytes());
    assert!(matches!(
        last(&found),
        Step::EndOfWal {
            reason: EndReason::OlderTimeline { .. },
            ..
        }
    ));
}

/// Applies `damage` to three segments of records and gives the first step that is not a page or a record.
fn damaged(damage: impl FnOnce(&mut Vec<u8>)) -> Option<Step> {
    let mut wal = builder();
    wal.fill_to(3 * SEGMENT, 1000);
    let mut bytes = wal.into_bytes();
    damage(&mut bytes);
    let found = steps(&bytes);
    let bad = found
        .iter()
        .position(|step| !matches!(step, Step::Page(_) | Step::Record(_)));
    if let Some(bad) = bad {
        // Nothing is read before the next segment, and that is read again.
        let Some(Step::Page(page)) = found.get(bad + 1) else {
            panic!("{:?}", found.get(bad + 1))
        };
        assert_eq!(page.address.0 % SEGMENT as u64, 0);
        assert!(found.len() > bad + 500);
    }
    bad.map(|bad| found[bad].clone())
}

#[test]
fn damage_is_named_and_the_next_segment_read_again() {
    let invalid = |at: u64, reason| {
        Some(Step::Invalid {
            at: Lsn(START.0 + at),
            reason,
        })
    };
    let put = |at: usize, new: &'static [u8]| {
        damaged(move |bytes| bytes[at..at + new.len()].copy_from_slice(new))
    };
    assert_eq!(damaged(|_| {}), None);
    assert_eq!(
        put(8192, &[1, 2]),
        invalid(8192, InvalidReason::PageMagic { found: 0x0201 })
    );
    let (expected, found) = (Major::V18, Major::V15);
    assert_eq!(
        put(8192, &[0x10, 0xD1]),
        invalid(8192, InvalidReason::PageMajor { expected, found })
    );
    assert_eq!(
        put(8194, &[0x11]),
        invalid(8192, InvalidReason::PageFlags { found: 0x11 })
    );
    assert_eq!(
        put(8194, &[0]),
        invalid(8192, InvalidReason::ContinuationMissing)
    );
    assert_eq!(put(8196, &[0]), invalid(8192, InvalidReason::PageTimeline));
    assert_eq!(
        put(SEGMENT + 2, &[1]),
        invalid(SEGMENT as u64, InvalidReason::LongHeaderMissing)
    );
    assert_eq!(
        put(32, &[0, 0, 0, 1]),
        invalid(0, InvalidReason::SegmentSize { found: 16 << 20 })
    );
    assert_eq!(
        put(36, &[0, 0x40]),
        invalid(0, InvalidReason::PageSize { found: 16384 })
    );
    let told = put(SEGMENT + 24, &[0]);
    assert!(
        matches!(
            told,
            Some(Step::Invalid {
                reason: InvalidReason::SystemIdentifier { .. },
                ..
            })
        ),
        "{told:?}"
    );
    let told = put(8192 + 16, &[1]);
    assert!(
        matches!(
            told,
            Some(Step::Invalid {
                reason: InvalidReason::ContinuationLength { .. },
                ..
            })
        ),
        "{told:?}"
    );
    let told = put(2, &[3, 0]);
    assert!(
        matches!(
            told,
            Some(Step::Invalid {
                reason: InvalidReason::ContinuationLength { .. },
                ..
            })
        ),
        "{told:?}"
    );
    // The first record is at 40, the second at 40 + 1024.
    assert_eq!(
        put(1064, &[23, 0]),
        invalid(1064, InvalidReason::Length { found: 23 })
    );
    let huge = InvalidReason::Length { found: 0x4000_0000 };
    assert_eq!(put(1064, &[0, 0, 0, 0x40]), invalid(1064, huge));
    // 1 GiB less one is the length of no record of 18 either; one that may be is found out on the next page.
    let huge = InvalidReason::Length { found: 0x3FFF_FFFF };
    assert_eq!(put(1064, &[0xFF, 0xFF, 0xFF, 0x3F]), invalid(1064, huge));
    let told = put(1064, &[0, 0, 0, 0x3F]);
    assert!(
        matches!(
            told,
            Some(Step::Invalid {
                reason: InvalidReason::ContinuationLength { .. },
                ..
            })
        ),
        "{told:?}"
    );
    let previous = InvalidReason::Previous {
        expected: Some(Lsn(START.0 + 40)),
        found: Lsn(START.0 + 41),
    };
    assert_eq!(put(1064 + 8, &[41]), invalid(1064, previous));
    assert_eq!(
        put(1064 + 17, &[22]),
        invalid(1064, InvalidReason::ResourceManager { found: 22 })
    );
    let told = put(1064 + 500, &[1]);
    assert!(
        matches!(
            told,
            Some(Step::Invalid {
                reason: InvalidReason::Crc { .. },
                ..
            })
        ),
        "{told:?}"
    );
    assert_eq!(
        put(1064, &[0, 0, 0, 0]).map(|step| matches!(step, Step::EndOfWal { .. })),
        Some(true)
    );
}

#[test]
fn a_body_that_breaks_its_promise_is_invalid() {
    // A commit without a time, one that promises more subtransactions than it has, a checkpoint that is too short.
    let info = |bits: u32, rest: &[u8]| [&[0; 8][..], &bits.to_le_bytes(), rest].concat();
    let cases: [(u8, u8, Vec<u8>); 7] = [
        (1, 0x00, vec![]),
        (1, 0x00, main_data(&[0; 7])),
        (1, 0x80, main_data(&info(2, &[255, 255, 255, 255]))),
        (1, 0x80, main_data(&info(1, &[0; 4]))),
        (1, 0xB0, main_data(&info(0, &[]))),
        (0, 0x10, main_data(&[1; 87])),
        (1, 0x00, vec![255, 9, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (manager, info, body) in cases {
        let mut wal = builder();
        wal.record(manager, info, 3, &body);
        let found = steps(wal.bytes());
        let expected = Step::Invalid {
            at: Lsn(START.0 + 40),
            reason: InvalidReason::Body,
        };
        assert_eq!(last(&found), &expected, "{manager} {info:X} {body:?}");
    }
}

#[test]
fn truncation_at_any_byte_gives_a_prefix_of_the_steps() {
    let mut wal = builder();
    wal.commit(1, Timestamp(1));
    wal.record(10, 0, 1, &vec![1; 8100 - 40 - 64]);
    wal.commit(2, Timestamp(2));
    wal.restore_point(Timestamp(3), "here");
    wal.aborted_record(9000, Timestamp(4));
    wal.commit(3, Timestamp(4));
    let whole = steps_in(START, wal.bytes(), &[usize::MAX]);
    assert!(whole.len() > 8);
    for length in 0..=wal.bytes().len() {
        let cut = steps_in(START, &wal.bytes()[..length], &[usize::MAX]);
        assert_eq!(cut, whole[..cut.len()], "{length}");
        assert_eq!(
            cut,
            reference::decode(config(), START, &wal.bytes()[..length]),
            "{length}"
        );
    }
}

#[test]
fn long_lists_do_not_hide_the_prepared_transaction() {
    for (major, item) in [(Major::V15, 12), (Major::V17, 12), (Major::V18, 16)] {
        let mut data = 99_i64.to_le_bytes().to_vec();
        data.extend(0x1FF_u32.to_le_bytes());
        data.extend([0; 8]);
        for (count, bytes) in [(30_000_u32, 4), (1000, 12), (500, item), (700, 16)] {
            data.extend(count.to_le_bytes());
            data.extend(vec![0xEE; count as usize * bytes]);
        }
        data.extend(4711_u32.to_le_bytes());
        data.extend(b"name\0\0\0\0");
        data.extend([7; 16]);
        let mut wal = WalBuilder::new(major, SegmentSize::MIN, START, Lsn(8));
        wal.data_record(1, 0x80 | 0x30, 5, &data);
        let found = steps(wal.bytes());
        let Step::Record(record) = last(&found) else {
            panic!("{:?}", last(&found))
        };
        let gid = Some("name".into());
        let expected = RecordKind::CommitPrepared {
            xid: TransactionId(4711),
            time: Timestamp(99),
            gid,
        };
        assert_eq!(record.kind, Some(expected), "{major}");
    }
}

/// A stretch of WAL of any shape.
#[derive(Debug, Clone)]
enum Part {
    Record(u16),
    Large(u32),
    Commit,
    Switch,
    Aborted(u16),
    Timeline,
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        30 => (0..400_u16).prop_map(Part::Record),
        4 => (0..60_000_u32).prop_map(Part::Large),
        8 => Just(Part::Commit),
        1 => Just(Part::Switch),
        2 => (0..20_000_u16).prop_map(Part::Aborted),
        1 => Just(Part::Timeline),
    ]
}

fn build(parts: &[Part], skip: u16) -> WalBuilder {
    // Near a segment's end, so that a few parts reach the next one.
    let start = Lsn(START.0 + SEGMENT as u64 - 8192 * (1 + u64::from(skip % 4)));
    let mut wal = WalBuilder::new(Major::V16, SegmentSize::MIN, start, START);
    wal.commit(3, Timestamp(4));
    for part in parts {
        match part {
            Part::Record(length) => {
                wal.record(10, 0x20, 3, &vec![*length as u8; usize::from(*length)]);
            }
            Part::Large(length) => {
                wal.record(11, 0, 3, &vec![1; *length as usize]);
            }
            Part::Commit => {
                wal.commit(4, Timestamp(5));
            }
            Part::Switch => {
                wal.switch();
            }
            Part::Aborted(length) => {
                wal.aborted_record(usize::from(*length), Timestamp(6));
            }
            Part::Timeline => wal.timeline = TimelineId::new(wal.timeline.get() + 1).unwrap(),
        }
    }
    wal
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_split_gives_the_steps_of_the_reference(
        parts in proptest::collection::vec(part(), 1..60),
        skip: u16,
        pieces in proptest::collection::vec(1_usize..20_000, 1..8),
        cut: prop::sample::Index,
    ) {
        let wal = build(&parts, skip);
        let bytes = &wal.bytes()[..cut.index(wal.bytes().len() + 1)];
        let start = Lsn(wal.position().0 - wal.bytes().len() as u64);
        let expected = reference::decode(config(), start, bytes);
        let broken = |step: &Step| matches!(step, Step::Invalid { .. } | Step::EndOfWal { .. });
        prop_assert!(!expected.iter().any(broken), "{:?}", expected);
        prop_assert_eq!(&steps_in(start, bytes, &pieces), &expected);
        prop_assert_eq!(&steps_in(start, bytes, &[usize::MAX]), &expected);
    }

    #[test]
    fn damaged_wal_gives_the_steps_of_the_reference(
        parts in proptest::collection::vec(part(), 1..40),
        skip: u16,
        pieces in proptest::collection::vec(1_usize..20_000, 1..8),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let wal = build(&parts, skip);
        let start = Lsn(wal.position().0 - wal.bytes().len() as u64);
        let mut bytes = wal.into_bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let expected = reference::decode(config(), start, &bytes);
        prop_assert_eq!(&steps_in(start, &bytes, &pieces), &expected);
    }

    #[test]
    fn any_flipped_bit_of_a_record_is_detected(
        lengths in proptest::collection::vec(0_usize..3000, 2..12),
        at: prop::sample::Index,
        bit in 0_u8..8,
    ) {
        let mut wal = builder();
        for length in &lengths {
            wal.record(10, 0, 3, &vec![7; *length]);
        }
        let mut bytes = wal.into_bytes();
        let whole = starts(&steps_in(START, &bytes, &[usize::MAX]));
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let found = steps_in(START, &bytes, &[usize::MAX]);
        // Padding between records and in headers, and a few bits of page headers, carry nothing.
        let harmless = starts(&found) == whole;
        let told = found.iter().any(|step| matches!(step, Step::Invalid { .. } | Step::EndOfWal { .. }));
        let shorter = starts(&found).len() < whole.len();
        prop_assert!(harmless || told || shorter, "byte {} bit {}", at, bit);
        if harmless {
            let intact = record_bytes_are_intact(&bytes, &lengths);
            prop_assert!(intact, "byte {} bit {}", at, bit);
        }
    }
}

/// Whether all record bodies still hold what was written: nothing but padding or a page header was changed.
fn record_bytes_are_intact(bytes: &[u8], lengths: &[usize]) -> bool {
    let mut clean = builder();
    for length in lengths {
        clean.record(10, 0, 3, &vec![7; *length]);
    }
    let start = |at: usize| at % 8192;
    let in_header = |at: usize| start(at) < if at < 8192 { 40 } else { 24 };
    (0..bytes.len())
        .filter(|&at| bytes[at] != clean.bytes()[at])
        .all(|at| in_header(at) || clean.bytes()[at] == 0)
}
