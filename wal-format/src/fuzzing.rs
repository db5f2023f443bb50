//! Bodies of the fuzz targets in `fuzz/`; the same bodies replay the corpora under `cargo test`. They own no formats.
//!
//! Each first makes of its input something that passes the first checks (magic numbers, CRCs, lengths, links), for random bytes would
//! never reach the code behind them; one input in four is left as it is.

use crate::testing::{TestBlock, WalBuilder, control_file_crc, encode_body, main_data};
use crate::{
    Action, BackupHistory, BackupLabel, BlockReference, BodyParts, ControlFile, Decoded,
    DecoderConfig, Glance, Lsn, Major, PAGE_BYTES, RecordBody, RowChange, SegmentName,
    SegmentScanner, SegmentSize, Step, TimelineHistory, TimelineId, Timestamp, WalDecoder,
    WalFileName, summarise_segment,
};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

const START: Lsn = Lsn(0x2_0030_0000);
/// No more WAL than this is made of an input, so that one run stays short.
const MAX_WAL_BYTES: usize = 3 << 20;

/// Reads an input piece by piece; what is missing is zero.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.rest.split_first().unwrap_or((&0, &[]));
        self.rest = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = crate::cursor::split(self.rest, length);
        self.rest = rest;
        bytes
    }
}

/// Makes WAL of an input, and says where it starts and with which configuration it is to be read.
fn wal_of(input: &mut Input<'_>) -> (DecoderConfig, Lsn, Vec<u8>) {
    let mode = input.byte();
    let major = Major::ALL
        .into_iter()
        .nth(usize::from(mode >> 2) % 5)
        .unwrap_or(Major::V18);
    let pages = u64::from(input.byte() % 4);
    let start = Lsn(START
        .0
        .saturating_sub(pages.saturating_mul(u64::from(PAGE_BYTES))));
    let config = DecoderConfig {
        segment_size: SegmentSize::MIN,
        system_identifier: None,
        major: None,
    };
    if mode & 3 == 3 {
        return (config, start, input.rest.to_vec());
    }
    let mut wal = WalBuilder::new(major, SegmentSize::MIN, start, Lsn(0x1_0000_0028));
    while !input.rest.is_empty() && wal.bytes().len() < MAX_WAL_BYTES {
        part_of(input, &mut wal);
    }
    let mut bytes = wal.into_bytes();
    if mode & 3 == 2 {
        damage(&mut bytes, mode, pages);
    }
    (config, start, bytes)
}

/// Overwrites a few bytes whose places depend on the input.
fn damage(bytes: &mut [u8], mode: u8, pages: u64) {
    let mut seed = u64::from(mode)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(pages)
        ^ bytes.len() as u64;
    for _ in 0..3 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at =
            usize::try_from((seed >> 20).checked_rem(bytes.len() as u64).unwrap_or(0)).unwrap_or(0);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= u8::try_from(seed >> 56).unwrap_or(1);
        }
    }
}

/// Writes one record or event.
fn part_of(input: &mut Input<'_>, wal: &mut WalBuilder) {
    let kind = input.byte();
    let length = usize::from(input.byte());
    match kind % 16 {
        // Bodies of the two resource managers that are read, with a CRC that fits.
        0..=4 => {
            let body = input.bytes(length);
            wal.record(kind >> 4 & 1, input.byte(), input.number(), body);
        }
        5..=8 => {
            let data = input.bytes(length);
            wal.data_record(kind >> 4 & 1, input.byte(), input.number(), data);
        }
        9 => {
            // Long lists: mostly the same byte.
            let mut data = input.bytes(length).to_vec();
            data.resize(
                usize::from(input.byte())
                    .saturating_mul(300)
                    .max(data.len()),
                kind,
            );
            data.extend_from_slice(input.bytes(8));
            wal.data_record(1, input.byte() | 0x80, 1, &data);
        }
        10 => {
            wal.record(
                input.byte(),
                input.byte(),
                1,
                &vec![kind; length.saturating_mul(200)],
            );
        }
        11 => {
            wal.switch();
        }
        12 => {
            wal.aborted_record(length.saturating_mul(100), Timestamp(i64::from(kind)));
        }
        13 => wal.timeline = TimelineId::new(u32::from(kind >> 4)).unwrap_or(TimelineId::FIRST),
        14 => wal.raw(input.bytes(length)),
        _ => wal.zeros(length.saturating_mul(64)),
    }
}

/// Any cut of any WAL gives the same steps, in WAL order.
pub fn wal_stream(data: &[u8]) {
    let mut input = Input { rest: data };
    let piece = usize::from(input.byte())
        .saturating_mul(37)
        .saturating_add(1);
    let (config, start, bytes) = wal_of(&mut input);
    let decode = |piece: usize| {
        let mut steps = Vec::new();
        if let Ok(mut decoder) = WalDecoder::new(config, start) {
            for piece in bytes.chunks(piece) {
                decoder.push(piece, |step| steps.push(step));
            }
            assert_eq!(decoder.position(), start.saturating_add(bytes.len() as u64));
            assert!(decoder.chain_end() <= decoder.position().saturating_add(7));
        }
        steps
    };
    let steps = decode(usize::MAX);
    assert_eq!(steps, decode(piece));
    let mut end = Lsn(0);
    for step in &steps {
        if let Step::Record(record) = step {
            assert!(record.start >= end && record.end > record.start);
            end = record.end;
        }
    }
}

/// What is said of a segment fits together, and does not depend on whether it came alone.
pub fn segment_summary(data: &[u8]) {
    let mut input = Input { rest: data };
    let piece = usize::from(input.byte())
        .saturating_mul(511)
        .saturating_add(1);
    let (config, _, mut bytes) = wal_of(&mut input);
    let size = config.segment_size.bytes() as usize;
    bytes.resize(bytes.len().next_multiple_of(size), 0);
    let Ok(mut scanner) = SegmentScanner::new(config, START) else {
        return;
    };
    for (number, segment) in (0_u64..).zip(bytes.chunks(size)) {
        for piece in segment.chunks(piece) {
            assert_eq!(scanner.push(piece, |_| {}), piece.len());
        }
        let start = START.saturating_add(number.saturating_mul(size as u64));
        let finished = scanner.finish_segment();
        assert!(finished.is_some(), "a whole segment was given");
        let Some(streamed) = finished else { return };
        assert_eq!(
            (streamed.start_lsn, streamed.received_to),
            (start, streamed.end_lsn)
        );
        assert!(streamed.valid_to >= start && streamed.valid_to <= streamed.end_lsn);
        assert!(!streamed.is_complete() || streamed.valid_to == streamed.end_lsn);
        assert!(streamed.first_record <= streamed.last_record);
        assert!(
            streamed
                .last_record
                .is_none_or(|lsn| lsn >= start && lsn < streamed.end_lsn)
        );
        assert!(
            !streamed.is_complete()
                || (streamed.invalid_at.is_none() && streamed.end_of_wal.is_none())
        );
        let alone = summarise_segment(config, start, segment);
        assert!(number != 0 || alone == Ok(streamed));
    }
}

/// Writes one record: a body as it stands, or one whose head fits.
fn record_of(input: &mut Input<'_>, wal: &mut WalBuilder) {
    let kind = input.byte();
    let manager = match input.byte() % 24 {
        extension @ 22.. => extension.saturating_add(110),
        built_in => built_in,
    };
    let info = input.byte();
    let length = usize::from(input.byte());
    let mut bytes = input.bytes(length).to_vec();
    if kind & 0x10 != 0 {
        // Over pages and segments, and longer than is kept.
        bytes.resize(
            bytes
                .len()
                .saturating_add(usize::from(kind).saturating_mul(900)),
            kind,
        );
    }
    let block = |id: u8, input: &mut Input<'_>| {
        let mut block = TestBlock::new(id, [input.byte().into(), 5, input.number()], 9, &[]);
        block.flags = input.byte() & 0xC3;
        block.data = vec![id; usize::from(input.byte())];
        block.image = (block.flags & 1 != 0).then(|| {
            let hole = input.byte();
            let compressed = (hole & 0x0C != 0 && hole & 1 != 0).then_some(100);
            (
                vec![hole; 5000],
                u16::from(hole & 1),
                hole & 0x0F,
                compressed,
            )
        });
        block
    };
    let body = match kind & 3 {
        0 => bytes,
        1 => main_data(&bytes),
        count => {
            let blocks: Vec<TestBlock> = (0..count).map(|id| block(id, input)).collect();
            let parts: &[u8] = if kind & 4 != 0 {
                &[253, 1, 0, 252, 8, 0, 0, 0]
            } else {
                &[]
            };
            encode_body(parts, &blocks, &bytes)
        }
    };
    wal.record(manager, info, 7, &body);
}

/// Any cut of any WAL gives the same bodies, and what they say fits together.
pub fn record_body(data: &[u8]) {
    let mut input = Input { rest: data };
    let mode = input.byte();
    let major = Major::ALL
        .into_iter()
        .nth(usize::from(mode) % 5)
        .unwrap_or(Major::V18);
    let piece = usize::from(input.byte())
        .saturating_mul(61)
        .saturating_add(1);
    let mut wal = WalBuilder::new(major, SegmentSize::MIN, START, Lsn(0x1_0000_0028));
    while !input.rest.is_empty() && wal.bytes().len() < MAX_WAL_BYTES {
        record_of(&mut input, &mut wal);
    }
    let bytes = wal.into_bytes();
    let config = DecoderConfig {
        segment_size: SegmentSize::MIN,
        system_identifier: None,
        major: None,
    };
    let decode = |piece: usize| {
        let mut seen = Vec::new();
        if let Ok(mut decoder) = WalDecoder::new(config, START) {
            for piece in bytes.chunks(piece) {
                decoder.push_records(piece, |decoded| {
                    let told = match &decoded {
                        Decoded::Record(_, body) => {
                            body.map(|body| body.parse().map(|parts| told_by(body, &parts)))
                        }
                        Decoded::Other(_) => None,
                    };
                    seen.push((decoded.into_step(), told));
                });
            }
        }
        seen
    };
    assert!(decode(usize::MAX) == decode(piece));
}

/// What a body says, as text; checks what must always hold.
fn told_by(body: &RecordBody<'_>, parts: &BodyParts<'_>) -> String {
    let blocks: Vec<BlockReference> = parts.blocks().collect();
    let first = blocks.first().map(|block| block.relation);
    assert_eq!(body.first_relation(), first);
    if let Ok(action) = parts.action() {
        let told = match action {
            Action::Insert => Glance::Row(RowChange::Inserted),
            Action::Delete => Glance::Row(RowChange::Deleted),
            Action::Update { .. } => Glance::Row(RowChange::Updated),
            Action::ConfirmInsert
            | Action::LockRow
            | Action::HeapUpkeep
            | Action::Recovery(_)
            | Action::FullPageImages { .. }
            | Action::NextOid(_)
            | Action::FullPageWrites(_)
            | Action::CheckpointRedo { .. } => Glance::Blocks,
            // Of kinds that tell something in other majors.
            Action::Other => parts.header().glance(),
            _ => Glance::Action,
        };
        assert_eq!(parts.header().glance(), told);
    }
    assert_eq!(parts.blocks().len(), blocks.len());
    assert_eq!(parts.first_block(), blocks.first().copied());
    assert!(blocks.is_sorted_by_key(|block| block.id));
    let of_blocks: u32 = blocks
        .iter()
        .map(|block| {
            let image = block.image.map_or(0, |image| image.length);
            u32::from(image).saturating_add(u32::from(block.data_length))
        })
        .fold(0, u32::saturating_add);
    let data = of_blocks.saturating_add(parts.main_data_length());
    assert!(data <= parts.header().body_length());
    let main = parts.main_data();
    assert_eq!(
        parts.is_main_data_cut(),
        main.len() != crate::cursor::index(parts.main_data_length())
    );
    let origin = (parts.origin(), parts.top_level_xid());
    let class_row = parts.inserted_class_row();
    // Its lists are read to their ends.
    format!(
        "{origin:?} {blocks:?} {} {:?} {class_row:?}",
        main.len(),
        parts.action()
    )
}

/// A history that can be read is written so that it reads the same, and its answers agree with each other.
pub fn history_file(data: &[u8]) {
    let mut input = Input { rest: data };
    let timeline = TimelineId::new(input.number()).unwrap_or(TimelineId::FIRST);
    let Ok(history) = TimelineHistory::parse(timeline, input.rest) else {
        return;
    };
    assert_eq!(
        TimelineHistory::parse(timeline, &history.encode()).as_ref(),
        Ok(&history)
    );
    assert!(history.contains(timeline));
    for entry in history.entries() {
        let begin = history.begin(entry.timeline);
        assert!(begin.is_some_and(|begin| begin <= entry.switch_point));
        assert_eq!(
            history.switch_point(entry.timeline),
            Some(entry.switch_point)
        );
        assert!(history.timeline_at(entry.switch_point) > entry.timeline);
    }
}

/// Any `pg_control` with a right CRC is read or refused.
pub fn control_file(data: &[u8]) {
    let mut input = Input { rest: data };
    let mode = input.byte();
    let mut bytes = input.rest.to_vec();
    if mode & 3 != 3 {
        let major = Major::ALL
            .into_iter()
            .nth(usize::from(mode >> 2) % 5)
            .unwrap_or(Major::V18);
        bytes.resize(
            bytes
                .len()
                .max(major.control_crc_offset().saturating_add(4)),
            0,
        );
        let versions = [
            major.control_version().to_le_bytes(),
            major.catalog_version().to_le_bytes(),
        ]
        .concat();
        if let Some(place) = bytes.get_mut(8..16) {
            place.copy_from_slice(&versions);
        }
        if let Some(place) = bytes.get_mut(208..216) {
            place.copy_from_slice(&1_234_567.0_f64.to_le_bytes());
        }
        control_file_crc(&mut bytes, major);
    }
    if let Ok(control) = ControlFile::parse(&bytes) {
        assert!(SegmentSize::new(control.wal_segment_size.bytes()).is_ok());
        assert!(control.state.to_string().len() > 3);
    }
}

/// A label that can be read is written so that it reads the same.
pub fn backup_label(data: &[u8]) {
    if let Ok(label) = BackupLabel::parse(data) {
        assert_eq!(BackupLabel::parse(label.encode().as_bytes()), Ok(label));
    }
    if let Ok(history) = BackupHistory::parse(data) {
        assert_eq!(
            BackupHistory::parse(history.encode().as_bytes()),
            Ok(history)
        );
    }
}

/// A name that can be read prints as it was, and means one segment of each size at most.
pub fn file_name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    let Ok(name) = text.parse::<WalFileName>() else {
        return;
    };
    assert_eq!(name.to_string(), text);
    if let WalFileName::Segment(segment) | WalFileName::Partial(segment) = name {
        for size in [SegmentSize::MIN, SegmentSize::DEFAULT, SegmentSize::MAX] {
            if let Some(number) = segment.number(size) {
                assert_eq!(SegmentName::new(segment.timeline, number, size), segment);
                assert_eq!(
                    segment.start(size).map(|lsn| size.segment(lsn)),
                    Some(number)
                );
            }
        }
    }
}
