//! Bodies of records: the same in any cut, and what they say is what was written.

use super::{Decoded, DecoderConfig, WalDecoder};
use crate::testing::{TestBlock, WalBuilder, encode_body, main_data};
use crate::{
    Action, BlockReference, Error, Fork, ImageCompression, Lsn, Major, RelationLocator,
    SegmentSize, Step, Timestamp, TransactionId,
};
use proptest::prelude::*;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

const START: Lsn = Lsn(0x300_0000);

fn builder(major: Major) -> WalBuilder {
    WalBuilder::new(major, SegmentSize::MIN, START, Lsn(START.0 - 0x40))
}

/// What is seen of one record.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    start: Lsn,
    blocks: Vec<BlockReference>,
    main: Vec<u8>,
    cut: bool,
    origin: Option<u16>,
    top_level: Option<TransactionId>,
    action: String,
}

/// The steps of `bytes` in pieces of those lengths over and over, and the bodies.
fn seen_in(bytes: &[u8], pieces: &[usize]) -> (Vec<Step>, Vec<Result<Seen, Error>>) {
    let config = DecoderConfig {
        segment_size: SegmentSize::MIN,
        system_identifier: None,
        major: None,
    };
    let mut decoder = WalDecoder::new(config, START).unwrap();
    let (mut steps, mut seen) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    for &piece in pieces.iter().cycle() {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        decoder.push_records(now, |decoded| {
            if let Decoded::Record(record, body) = &decoded {
                let body = body.unwrap();
                assert_eq!(body.header(), &record.header);
                seen.push(body.parse().map(|parts| {
                    assert_eq!(parts.first_block(), parts.blocks().next());
                    let first = parts.first_block().map(|block| block.relation);
                    assert_eq!(body.first_relation(), first);
                    Seen {
                        start: record.start,
                        blocks: parts.blocks().collect(),
                        main: parts.main_data().to_vec(),
                        cut: parts.is_main_data_cut(),
                        origin: parts.origin(),
                        top_level: parts.top_level_xid(),
                        action: format!("{:?}", parts.action()),
                    }
                }));
            }
            steps.push(decoded.into_step());
        });
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    (steps, seen)
}

/// The bodies, proven to be the same in several cuts, with the steps that come without bodies.
fn seen(bytes: &[u8]) -> Vec<Result<Seen, Error>> {
    let whole = seen_in(bytes, &[usize::MAX]);
    for pieces in [&[1][..], &[24], &[7, 100, 3], &[8191, 8193], &[100_000]] {
        let cut = seen_in(bytes, pieces);
        assert!(cut == whole, "in pieces of {pieces:?}");
    }
    let mut steps = Vec::new();
    let mut decoder = WalDecoder::new(
        DecoderConfig {
            segment_size: SegmentSize::MIN,
            system_identifier: None,
            major: None,
        },
        START,
    )
    .unwrap();
    decoder.push(bytes, |step| steps.push(step));
    assert_eq!(steps, whole.0);
    whole.1
}

/// A block with an image, and one of the same relation.
fn two_blocks(image_flags: u8) -> Vec<TestBlock> {
    let mut first = TestBlock::new(0, [1663, 5, 16_384], 7, &[1; 300]);
    first.flags = 0x40;
    first.image = Some((vec![0xAA; 6000], 40, image_flags, None));
    let mut second = TestBlock::new(3, [0; 3], 8, &[]);
    second.flags = 0x80 | 0x02;
    vec![first, second]
}

#[test]
fn blocks_origin_and_main_data_are_what_was_written() {
    for (major, flags) in [(Major::V14, 0x05), (Major::V18, 0x03)] {
        let mut wal = builder(major);
        wal.commit(5, Timestamp(1));
        let parts = [&[253, 9, 0][..], &[252, 77, 0, 0, 0]].concat();
        let body = encode_body(&parts, &two_blocks(flags), &[8; 300]);
        let start = wal.record(10, 0x00, 6, &body);
        wal.commit(7, Timestamp(1));
        let all = seen(wal.bytes());
        let relation = RelationLocator {
            tablespace: 1663,
            database: 5,
            relation: 16_384,
        };
        let record = all[1].clone().unwrap();
        assert_eq!(record.start, start);
        assert_eq!(record.main, [8; 300]);
        assert_eq!(
            (record.origin, record.top_level, record.cut),
            (Some(9), Some(TransactionId(77)), false)
        );
        assert_eq!(record.action, "Ok(Insert)");
        let [first, second] = record.blocks[..] else {
            panic!("{record:?}")
        };
        assert_eq!(
            (first.relation, first.fork, first.block, first.id),
            (relation, Fork::Main, 7, 0)
        );
        assert!(first.will_init && first.has_data && first.data_length == 300);
        let image = first.image.unwrap();
        assert_eq!(
            (image.length, image.hole_offset, image.hole_length),
            (6000, 40, 2192)
        );
        assert_eq!((image.apply, image.compression), (true, None));
        assert_eq!(
            (second.relation, second.fork, second.block, second.id),
            (relation, Fork::VisibilityMap, 8, 3)
        );
        assert!(!second.will_init && !second.has_data && second.image.is_none());
    }
}

#[test]
fn compression_follows_the_major() {
    for (major, flags, expected) in [
        (Major::V14, 0x07, Some(ImageCompression::Pglz)),
        (Major::V15, 0x07, Some(ImageCompression::Pglz)),
        (Major::V16, 0x0B, Some(ImageCompression::Lz4)),
        (Major::V18, 0x13, Some(ImageCompression::Zstd)),
    ] {
        let mut block = TestBlock::new(0, [1, 2, 3], 4, &[]);
        block.image = Some((vec![1; 99], 40, flags, Some(1000)));
        let mut wal = builder(major);
        wal.record(0, 0xB0, 0, &encode_body(&[], &[block], &[]));
        let record = seen(wal.bytes())[0].clone().unwrap();
        let image = record.blocks[0].image.unwrap();
        assert_eq!(
            (image.compression, image.hole_length, image.length),
            (expected, 1000, 99)
        );
        assert_eq!(image.apply, major != Major::V14 || flags & 0x04 != 0);
    }
}

#[test]
fn a_head_that_contradicts_itself_is_an_error_and_no_more() {
    let block = |id| TestBlock::new(id, [1, 2, 3], 4, &[5; 10]);
    let mut same = block(0);
    same.flags = 0x80;
    let mut fork = block(0);
    fork.flags = 0x04;
    let mut hole = block(0);
    hole.image = Some((vec![1; 8192], 40, 0x02, None));
    let cases: [Vec<u8>; 9] = [
        encode_body(&[], &[block(1), block(1)], &[]),
        encode_body(&[], &[same], &[]),
        encode_body(&[], &[fork], &[]),
        encode_body(&[], &[hole], &[]),
        encode_body(&[], &[block(33)], &[]),
        encode_body(&[0, 0x20, 0, 0], &[], &[]),
        [encode_body(&[], &[block(0)], &[1]), vec![0]].concat(),
        vec![254, 255, 255, 255, 255, 1],
        vec![251; 3000],
    ];
    for body in cases {
        let mut wal = builder(Major::V18);
        wal.record(10, 0x00, 6, &body);
        wal.commit(7, Timestamp(1));
        let all = seen(wal.bytes());
        assert!(all[0].is_err(), "{body:?}: {:?}", all[0]);
        assert!(all[1].is_ok());
    }
}

#[test]
fn main_data_that_is_too_long_is_cut_and_says_so() {
    // A message longer than is kept of its kind: what comes before it can still be told.
    let mut message = 5_u32.to_le_bytes().to_vec();
    message.extend([1, 0, 0, 0]);
    message.extend(7_u64.to_le_bytes());
    message.extend(100_000_u64.to_le_bytes());
    message.extend(b"walden\0");
    message.extend(vec![b'x'; 100_000]);
    // A prefix that is not kept.
    let mut prefix = message[..8].to_vec();
    prefix.extend(100_000_u64.to_le_bytes());
    prefix.extend(0_u64.to_le_bytes());
    prefix.extend(vec![b'p'; 99_999]);
    prefix.push(0);
    let mut wal = builder(Major::V18);
    wal.data_record(21, 0, 1, &message);
    wal.data_record(21, 0, 1, &prefix);
    let all = seen(wal.bytes());
    let [Ok(first), Ok(second)] = &all[..] else {
        panic!("{all:?}")
    };
    assert!(first.cut && second.cut && first.main.len() == 65_536);
    let bytes: Vec<u8> = b"walden".to_vec();
    let expected: Result<Action<'_>, Error> = Ok(Action::LogicalMessage {
        database: 5,
        transactional: true,
        prefix: &bytes,
        length: 100_000,
    });
    assert_eq!(first.action, format!("{expected:?}"));
    let expected: Result<Action<'_>, Error> = Err(Error::MainDataCut { length: 100_024 });
    assert_eq!(second.action, format!("{expected:?}"));
}

#[test]
fn a_record_begun_without_bodies_ends_without_one() {
    let mut wal = builder(Major::V18);
    wal.record(10, 0, 1, &main_data(&[1; 500]));
    wal.record(10, 0, 1, &main_data(&[2; 500]));
    let config = DecoderConfig {
        segment_size: SegmentSize::MIN,
        system_identifier: None,
        major: None,
    };
    let mut decoder = WalDecoder::new(config, START).unwrap();
    let (before, after) = wal.bytes().split_at(200);
    decoder.push(before, |_| {});
    let mut bodies = Vec::new();
    decoder.push_records(after, |decoded| {
        if let Decoded::Record(_, body) = decoded {
            bodies.push(body.map(|body| body.parse().unwrap().main_data().to_vec()));
        }
    });
    assert_eq!(bodies, [None, Some(vec![2; 500])]);
}

/// A record of any shape: resource manager, bits, blocks, main data.
fn record() -> impl Strategy<Value = (u8, u8, Vec<u8>)> {
    let block = (any::<bool>(), 0_u16..9000, 0_u16..2000, any::<u32>());
    let blocks = proptest::collection::vec(block, 0..6);
    let main = prop_oneof![0_usize..40, 0_usize..400, 0_usize..80_000];
    (0_u8..22, any::<u8>(), blocks, main).prop_map(|(manager, info, blocks, main)| {
        let blocks: Vec<TestBlock> = (0_u8..)
            .zip(blocks)
            .map(|(id, (image, image_length, data_length, number))| {
                let data = vec![id; usize::from(data_length)];
                let mut block = TestBlock::new(id, [1663, 5, number], number, &data);
                block.image =
                    image.then(|| (vec![0x11; usize::from(image_length)], 24, 0x03, None));
                block
            })
            .collect();
        // The kinds that are checked while they pass would end the decoding.
        let manager = if manager < 2 { 10 } else { manager };
        (manager, info, encode_body(&[], &blocks, &vec![0x02; main]))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_split_gives_the_same_bodies(
        records in proptest::collection::vec(record(), 1..20),
        pieces in proptest::collection::vec(1_usize..20_000, 1..8),
    ) {
        let mut wal = builder(Major::V17);
        for (manager, info, body) in &records {
            wal.record(*manager, *info, 7, body);
        }
        let expected = seen_in(wal.bytes(), &[usize::MAX]);
        prop_assert_eq!(expected.1.len(), records.len());
        prop_assert!(expected.1.iter().all(Result::is_ok));
        prop_assert!(seen_in(wal.bytes(), &pieces) == expected);
    }
}
