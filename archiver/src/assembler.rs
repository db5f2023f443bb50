//! WAL bytes at an LSN become whole segments, decoded as they pass.
//!
//! Owns the buffer of the open segment, refuses holes, and collects what tail chunks say of themselves. Pure: no sockets, no clock.
//! Does not own decoding (`wal-format`) or storing (`receive.rs`).

use std::collections::VecDeque;

use repository::descriptor::WalDescriptor;
use repository::wal::{describe, describe_segment};
use wal_format::{
    DecoderConfig, Lsn, Record, RecordKind, SegmentName, SegmentNumber, SegmentScanner,
    SegmentSize, SegmentSummary, Step, TimelineId, Timestamp,
};

use crate::{Error, Result};

/// The open segment of a stream.
pub struct Assembler {
    size: SegmentSize,
    timeline: TimelineId,
    lineage: String,
    scanner: SegmentScanner,
    buffer: Vec<u8>,
    chunk: ChunkFacts,
    expected: VecDeque<Lsn>,
    previous: Option<Lsn>,
}

/// A segment whose bytes have all arrived.
pub struct AssembledSegment {
    /// Its name.
    pub name: SegmentName,
    /// Its number.
    pub number: SegmentNumber,
    /// What decoding it said.
    pub summary: SegmentSummary,
    /// What its descriptor says.
    pub descriptor: WalDescriptor,
    /// Its bytes.
    pub plain: Vec<u8>,
}

/// Something in the stream that is not valid WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidWal {
    /// Where.
    pub at: Lsn,
    /// What is wrong.
    pub reason: String,
}

/// What the bytes of the next tail chunk say, so far.
#[derive(Clone, Debug, Default)]
struct ChunkFacts {
    first_record: Option<(Lsn, Lsn)>,
    last_record: Option<Lsn>,
    transactions: u64,
    times: Option<(Timestamp, Timestamp)>,
    incomplete: bool,
    invalid_at: Option<Lsn>,
}

impl Assembler {
    /// Starts at a segment's first byte.
    ///
    /// # Errors
    /// `Bug`: not the start of a segment.
    pub fn new(
        config: DecoderConfig,
        timeline: TimelineId,
        lineage: String,
        start: Lsn,
    ) -> Result<Self> {
        let scanner = SegmentScanner::new(config, start)?;
        let size = config.segment_size;
        let buffer = Vec::with_capacity(size.bytes() as usize);
        let (chunk, expected) = (ChunkFacts::default(), VecDeque::new());
        let previous = None;
        Ok(Self {
            size,
            timeline,
            lineage,
            scanner,
            buffer,
            chunk,
            expected,
            previous,
        })
    }

    /// Names what is stored already and must fit: record starts that tail chunks of the open segment name, which must come again,
    /// and the last record of the segment before, which the first one that comes must follow.
    pub fn expect(&mut self, mut starts: Vec<Lsn>, previous: Option<Lsn>) {
        self.previous = previous;
        // A chunk also names a record that ends in it and began in an earlier segment: from here its start is not seen.
        starts.retain(|start| *start >= self.segment_start());
        starts.sort_unstable();
        starts.dedup();
        self.expected = starts.into();
    }

    /// First byte behind the last one taken.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.segment_start()
            .saturating_add(self.buffer.len() as u64)
    }

    /// The open segment's first byte.
    #[must_use]
    pub fn segment_start(&self) -> Lsn {
        self.scanner.segment_start()
    }

    /// The open segment's number.
    #[must_use]
    pub fn number(&self) -> SegmentNumber {
        self.size.segment(self.segment_start())
    }

    /// The open segment's name.
    #[must_use]
    pub fn name(&self) -> SegmentName {
        SegmentName::new(self.timeline, self.number(), self.size)
    }

    /// The open segment's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Length of the open segment so far.
    #[must_use]
    pub fn offset(&self) -> u32 {
        // The buffer never grows over a segment, whose size is a u32.
        u32::try_from(self.buffer.len()).unwrap_or(u32::MAX)
    }

    /// Whether the open segment has all its bytes: [`Assembler::take_segment`] before more are pushed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.buffer.len() == self.size.bytes() as usize
    }

    /// Takes bytes that start at `start`, up to the end of the open segment. Returns how many, and what in them is not valid WAL.
    ///
    /// # Errors
    /// `Retry`: they do not start where the last ones ended. `Conflict`: records that were received before have not come again.
    pub fn push(&mut self, start: Lsn, data: &[u8]) -> Result<(usize, Option<InvalidWal>)> {
        if start != self.position() {
            return Err(Error::Protocol {
                during: "streaming".into(),
                reason: format!(
                    "WAL at {start} arrived where {} was expected",
                    self.position()
                ),
            });
        }
        let (mut invalid, mut missing) = (None, None);
        let (chunk, expected) = (&mut self.chunk, &mut self.expected);
        let previous = &mut self.previous;
        let taken = self.scanner.push(data, |step| match step {
            Step::Record(record) => {
                chunk.note(record);
                let broken = previous.take().filter(|last| !follows(record, *last));
                missing = missing.or(broken);
                while let Some(next) = expected.front().filter(|next| **next <= record.start) {
                    if *next < record.start {
                        missing.get_or_insert(*next);
                    }
                    expected.pop_front();
                }
            }
            Step::ContinuedRecordEnd { .. } => chunk.incomplete = true,
            Step::Invalid { at, reason } => {
                chunk.invalid_at = Some(*at);
                invalid = Some(InvalidWal {
                    at: *at,
                    reason: reason.to_string(),
                });
            }
            _ => {}
        });
        self.buffer.extend_from_slice(&data[..taken]);
        // All that is expected is of this segment.
        let missing = missing.or(self.expected.front().copied().filter(|_| self.is_full()));
        if let Some(at) = missing {
            return Err(Error::Diverged { at });
        }
        Ok((taken, invalid))
    }

    /// Describes the tail chunk `[from, to)`, `to` being the open segment's length, and starts collecting for the next.
    pub fn describe_chunk(&mut self, from: u32) -> WalDescriptor {
        let facts = std::mem::take(&mut self.chunk);
        let end = self.position();
        if from == 0 {
            return describe(&self.scanner.summary(), end, &self.lineage);
        }
        let utc = |time: Timestamp| repository::wal::utc(time);
        WalDescriptor {
            start_lsn: self.segment_start().saturating_add(u64::from(from)),
            end_lsn: end,
            lineage: self.lineage.clone(),
            first_record: facts.first_record.map(|(start, _)| start),
            first_record_prev: facts.first_record.map(|(_, previous)| previous),
            first_record_overwrites: None,
            last_record: facts.last_record,
            transactions: Some(facts.transactions),
            time_min: facts.times.and_then(|(min, _)| utc(min)),
            time_max: facts.times.and_then(|(_, max)| utc(max)),
            incomplete: facts.incomplete,
            invalid_at: facts.invalid_at,
        }
    }

    /// Takes the full segment and goes on with the next in `spare`, a buffer to reuse. `None` while bytes are missing.
    pub fn take_segment(&mut self, spare: Option<Vec<u8>>) -> Option<AssembledSegment> {
        let (name, number) = (self.name(), self.number());
        let summary = self.scanner.finish_segment()?;
        let mut next = spare.unwrap_or_default();
        next.clear();
        next.reserve_exact(self.size.bytes() as usize);
        self.chunk = ChunkFacts::default();
        self.expected.clear();
        let plain = std::mem::replace(&mut self.buffer, next);
        let descriptor = describe_segment(&summary, &self.lineage);
        Some(AssembledSegment {
            name,
            number,
            summary,
            descriptor,
            plain,
        })
    }

    /// Ends the timeline, after which nothing more is taken: the open segment's bytes before `switch_point`, described; `None` if it does not lie within it (the
    /// server may have sent more than the timeline had).
    ///
    /// # Errors
    /// `Retry`: the switch point is not in the open segment or behind what was received.
    pub fn take_partial(
        &mut self,
        config: DecoderConfig,
        switch_point: Lsn,
    ) -> Result<Option<AssembledSegment>> {
        let start = self.segment_start();
        if switch_point <= start {
            return Ok(None);
        }
        let length = switch_point
            .distance_from(start)
            .and_then(|length| usize::try_from(length).ok());
        let Some(length) = length.filter(|length| *length <= self.buffer.len()) else {
            return Err(Error::Protocol {
                during: "streaming".into(),
                reason: format!(
                    "the timeline ended at {switch_point}, with WAL received from {start} to {}",
                    self.position()
                ),
            });
        };
        let (name, number) = (self.name(), self.number());
        let mut plain = std::mem::take(&mut self.buffer);
        plain.truncate(length);
        let mut scanner = SegmentScanner::new(config, start)?;
        scanner.push(&plain, |_| {});
        let summary = scanner.summary();
        let descriptor = describe(&summary, switch_point, &self.lineage);
        Ok(Some(AssembledSegment {
            name,
            number,
            summary,
            descriptor,
            plain,
        }))
    }
}

/// Whether `record` may come after the one at `last`: its link says so, or it replaces that one, which a crash cut.
fn follows(record: &Record, last: Lsn) -> bool {
    let replaces = matches!(record.kind, Some(RecordKind::OverwriteContrecord { overwritten, .. }) if overwritten == last);
    record.header.previous == last || replaces
}

impl ChunkFacts {
    fn note(&mut self, record: &Record) {
        self.first_record
            .get_or_insert((record.start, record.header.previous));
        self.last_record = Some(record.start);
        if let Some(
            RecordKind::Commit { time, .. }
            | RecordKind::Abort { time, .. }
            | RecordKind::CommitPrepared { time, .. }
            | RecordKind::AbortPrepared { time, .. },
        ) = record.kind
        {
            self.transactions += 1;
            self.times = Some(match self.times {
                None => (time, time),
                Some((min, max)) => (min.min(time), max.max(time)),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal_format::Major;
    use wal_format::testing::WalBuilder;

    const SIZE: SegmentSize = SegmentSize::MIN;
    const START: Lsn = Lsn::new(5 << 20);
    const PREVIOUS: Lsn = Lsn::new((5 << 20) - 100);

    fn builder() -> WalBuilder {
        WalBuilder::new(Major::from_number(18).unwrap(), SIZE, START, PREVIOUS)
    }

    fn assembler(start: Lsn) -> Assembler {
        let config = DecoderConfig {
            segment_size: SIZE,
            system_identifier: None,
            major: None,
        };
        Assembler::new(config, TimelineId::FIRST, String::new(), start).unwrap()
    }

    fn bytes_of(records: usize, length: usize) -> (Vec<u8>, Vec<Lsn>) {
        let mut wal = builder();
        let starts = (0..records).map(|_| wal.data_record(10, 0, 7, &vec![1; length]));
        let starts = starts.collect();
        (wal.into_bytes(), starts)
    }

    fn diverged(result: Result<(usize, Option<InvalidWal>)>) -> Option<Lsn> {
        match result {
            Ok(_) => None,
            Err(Error::Diverged { at }) => Some(at),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_was_stored_must_come_again() {
        let (wal, starts) = bytes_of(40, 500);
        let check = |expected: &[Lsn], previous: Option<Lsn>, outcome: Option<Lsn>| {
            let mut assembler = assembler(START);
            assembler.expect(expected.to_vec(), previous);
            assert_eq!(diverged(assembler.push(START, &wal)), outcome);
        };
        check(&starts, Some(PREVIOUS), None);
        check(&[starts[3], starts[39]], None, None);
        let between = starts[7].saturating_add(8);
        check(&[starts[3], between], None, Some(between));
        let other = Lsn::new(PREVIOUS.as_u64() - 8);
        check(&starts, Some(other), Some(other));
    }

    #[test]
    fn a_record_that_is_swallowed_by_the_last_one_of_its_segment_is_missed() {
        let (wal, starts) = bytes_of(6, 250_000);
        let last = *starts
            .iter()
            .rfind(|start| **start < SIZE.end(SIZE.segment(START)))
            .unwrap();
        let mut assembler = assembler(START);
        assembler.expect(vec![last.saturating_add(800)], None);
        let at = diverged(assembler.push(START, &wal));
        assert_eq!(at, Some(last.saturating_add(800)));
    }

    #[test]
    fn a_record_of_the_segment_before_that_a_chunk_names_is_not_waited_for() {
        let (wal, starts) = bytes_of(8, 250_000);
        let border = SIZE.end(SIZE.segment(START));
        let across = *starts.iter().rfind(|start| **start < border).unwrap();
        let mut first = assembler(START);
        let (taken, _) = first.push(START, &wal).unwrap();
        first.take_segment(None).unwrap();
        // A chunk ends within the record, the next one behind it.
        let cut = taken + 1000;
        first.push(border, &wal[taken..cut]).unwrap();
        first.describe_chunk(0);
        first
            .push(border.saturating_add(1000), &wal[cut..cut + 300_000])
            .unwrap();
        let chunk = first.describe_chunk(1000);
        assert_eq!(chunk.first_record, Some(across), "the test tests nothing");

        let mut again = assembler(border);
        again.expect(vec![across, chunk.last_record.unwrap()], Some(across));
        assert_eq!(diverged(again.push(border, &wal[taken..])), None);
    }
}
