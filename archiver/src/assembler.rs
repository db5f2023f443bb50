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
    /// The open segment's chunks that no later one replaces, by the offset of their first byte, in order.
    chunks: Vec<(u32, ChunkFacts)>,
    expected: VecDeque<Lsn>,
    transactions: Vec<ExpectedTransactions>,
    previous: Option<Lsn>,
}

/// What is stored already and must fit what comes. Nothing of it needs a key: descriptors say it.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Record starts that tail chunks of the open segment name: they must come again.
    pub records: Vec<Lsn>,
    /// Those chunks: commits and aborts in them, and the times of these, must come again.
    pub chunks: Vec<WalDescriptor>,
    /// The last record of the segment before, if it is known: the first that comes must follow it.
    pub previous: Option<Lsn>,
}

/// Commits and aborts that end in `(from, to]`: how many a stored chunk says there are, from when to when, and those that came.
struct ExpectedTransactions {
    from: Lsn,
    to: Lsn,
    stored: Transactions,
    came: Transactions,
    /// A record ended here whose kind was not seen: nothing can be compared.
    is_unsure: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Transactions {
    number: u64,
    times: Option<(jiff::Timestamp, jiff::Timestamp)>,
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
        Ok(Self {
            size,
            timeline,
            lineage,
            scanner,
            buffer,
            chunk: ChunkFacts::default(),
            chunks: Vec::new(),
            expected: VecDeque::new(),
            transactions: Vec::new(),
            previous: None,
        })
    }

    /// Names what is stored already and must fit what comes next, from the open segment's first byte on.
    pub fn expect(&mut self, stored: Expected) {
        self.previous = stored.previous;
        // A chunk also names a record that ends in it and began in an earlier segment: from here its start is not seen.
        let mut starts = stored.records;
        starts.retain(|start| *start >= self.segment_start());
        starts.sort_unstable();
        starts.dedup();
        self.expected = starts.into();
        let chunks = stored.chunks.iter();
        self.transactions = chunks.filter_map(ExpectedTransactions::of).collect();
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
        let (previous, transactions) = (&mut self.previous, &mut self.transactions);
        let taken = self.scanner.push(data, |step| match step {
            Step::Record(record) => {
                chunk.note(record);
                if let Some(time) = transaction_time(record) {
                    for stored in transactions.iter_mut() {
                        stored.note(record.end, time);
                    }
                }
                let broken = previous.take().filter(|last| !follows(record, *last));
                missing = missing.or(broken);
                while let Some(next) = expected.front().filter(|next| **next <= record.start) {
                    if *next < record.start {
                        missing.get_or_insert(*next);
                    }
                    expected.pop_front();
                }
            }
            Step::ContinuedRecordEnd { end } => {
                chunk.incomplete = true;
                let here = transactions.iter_mut().filter(|stored| stored.holds(*end));
                here.for_each(|stored| stored.is_unsure = true);
            }
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
        let missing = missing
            .or(self.expected.front().copied().filter(|_| self.is_full()))
            .or(self.other_transactions());
        if let Some(at) = missing {
            return Err(Error::Diverged { at });
        }
        Ok((taken, invalid))
    }

    /// Where a stored chunk begins all of whose bytes have come again, with other commits or aborts in them.
    fn other_transactions(&mut self) -> Option<Lsn> {
        let position = self.position();
        let came = |stored: &mut ExpectedTransactions| stored.to <= position;
        let other =
            |stored: &ExpectedTransactions| !stored.is_unsure && stored.came != stored.stored;
        let compared = self.transactions.extract_if(.., came);
        compared.filter(other).map(|stored| stored.from).min()
    }

    /// Describes the tail chunk `[from, to)`, `to` being the open segment's length, and starts collecting for the next. It begins where the last
    /// one ended, or with one that was described before: then it replaces that one and those behind it, and says what they said.
    pub fn describe_chunk(&mut self, from: u32) -> WalDescriptor {
        let mut facts = std::mem::take(&mut self.chunk);
        while let Some((_, before)) = self.chunks.pop_if(|(start, _)| *start >= from) {
            facts = before.and(facts);
        }
        self.chunks.push((from, facts.clone()));
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
        self.chunks.clear();
        self.expected.clear();
        self.transactions.clear();
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

/// When the transaction that `record` ends was committed or aborted.
fn transaction_time(record: &Record) -> Option<Timestamp> {
    match record.kind {
        Some(
            RecordKind::Commit { time, .. }
            | RecordKind::Abort { time, .. }
            | RecordKind::CommitPrepared { time, .. }
            | RecordKind::AbortPrepared { time, .. },
        ) => Some(time),
        _ => None,
    }
}

impl ExpectedTransactions {
    /// `None` if the chunk's descriptor does not know all of its transactions, or not which of two chunks they are of.
    fn of(chunk: &WalDescriptor) -> Option<Self> {
        // A record ends with its last byte, and the next may start at the next multiple of 8: what lies between is told apart by neither.
        let is_aligned = |lsn: Lsn| lsn.as_u64().is_multiple_of(8);
        let is_whole = !chunk.incomplete && chunk.invalid_at.is_none();
        let number = chunk.transactions.filter(|_| is_whole)?;
        let times = chunk.time_min.zip(chunk.time_max);
        (is_aligned(chunk.start_lsn) && is_aligned(chunk.end_lsn)).then_some(Self {
            from: chunk.start_lsn,
            to: chunk.end_lsn,
            stored: Transactions { number, times },
            came: Transactions::default(),
            is_unsure: false,
        })
    }

    fn holds(&self, end: Lsn) -> bool {
        self.from < end && end <= self.to
    }

    fn note(&mut self, end: Lsn, time: Timestamp) {
        if !self.holds(end) {
            return;
        }
        self.came.number += 1;
        if let Some(time) = repository::wal::utc(time) {
            self.came.times = Some(match self.came.times {
                None => (time, time),
                Some((min, max)) => (min.min(time), max.max(time)),
            });
        }
    }
}

impl ChunkFacts {
    /// What both say, `next` being of the bytes behind these.
    fn and(self, next: Self) -> Self {
        let times = self.times.zip(next.times);
        let times = times.map(|(ours, theirs)| (ours.0.min(theirs.0), ours.1.max(theirs.1)));
        Self {
            first_record: self.first_record.or(next.first_record),
            last_record: next.last_record.or(self.last_record),
            transactions: self.transactions + next.transactions,
            times: times.or(self.times).or(next.times),
            incomplete: self.incomplete || next.incomplete,
            invalid_at: self.invalid_at.or(next.invalid_at),
        }
    }

    fn note(&mut self, record: &Record) {
        self.first_record
            .get_or_insert((record.start, record.header.previous));
        self.last_record = Some(record.start);
        if let Some(time) = transaction_time(record) {
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
            assembler.expect(Expected {
                records: expected.to_vec(),
                previous,
                ..Expected::default()
            });
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
        assembler.expect(Expected {
            records: vec![last.saturating_add(800)],
            ..Expected::default()
        });
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
        again.expect(Expected {
            records: vec![across, chunk.last_record.unwrap()],
            chunks: vec![chunk],
            previous: Some(across),
        });
        assert_eq!(diverged(again.push(border, &wal[taken..])), None);
    }

    /// As `tail.rs` has it: what was stored in pieces is stored once more as a whole.
    #[test]
    fn a_chunk_that_replaces_others_says_what_they_said() {
        let mut wal = builder();
        let mut starts = Vec::new();
        let mut ends = Vec::new();
        for time in [5, 3, 9, 4, 6] {
            starts.push(wal.commit(7, Timestamp::from_unix_micros(time * 1_000_000)));
            ends.push(wal.position());
        }
        let wal = wal.into_bytes();
        let offset = |lsn: Lsn| u32::try_from(lsn.distance_from(START).unwrap()).unwrap();
        let mut source = assembler(START);
        let mut described = Vec::new();
        for (index, end) in ends.iter().enumerate() {
            let at = source.position();
            let to = offset(*end) as usize;
            source.push(at, &wal[offset(at) as usize..to]).unwrap();
            // The last one replaces all but the first.
            let from = match index {
                4 => offset(ends[0]),
                _ => offset(at),
            };
            described.push(source.describe_chunk(from));
        }
        let whole = described.pop().unwrap();
        let second = |time: i64| jiff::Timestamp::from_second(time).ok();
        assert_eq!((whole.start_lsn, whole.end_lsn), (ends[0], ends[4]));
        assert_eq!(whole.first_record, Some(starts[1]));
        assert_eq!(whole.first_record_prev, Some(starts[0]));
        assert_eq!(whole.last_record, Some(starts[4]));
        assert_eq!(whole.transactions, Some(4));
        assert_eq!((whole.time_min, whole.time_max), (second(3), second(9)));

        let mut again = assembler(START);
        again.expect(Expected {
            chunks: vec![described.remove(0), whole],
            ..Expected::default()
        });
        assert_eq!(diverged(again.push(START, &wal)), None);
    }

    #[test]
    fn the_commits_of_a_stored_chunk_must_come_again_with_their_times() {
        let wal_of = |times: &[i64], fillers: usize| {
            let mut wal = builder();
            for time in times {
                wal.commit(7, Timestamp::from_unix_micros(*time));
            }
            for _ in 0..fillers {
                wal.data_record(10, 0, 7, &[1; 100]);
            }
            wal.into_bytes()
        };
        let first = wal_of(&[5_000_000, 3_000_000, 4_000_000], 0);
        // Two chunks: the second has the last commit.
        let cut = wal_of(&[5_000_000, 3_000_000], 0).len();
        let mut source = assembler(START);
        source.push(START, &first[..cut]).unwrap();
        let mut chunks = vec![source.describe_chunk(0)];
        let at = source.position();
        source.push(at, &first[cut..]).unwrap();
        chunks.push(source.describe_chunk(u32::try_from(cut).unwrap()));
        assert_eq!(
            chunks
                .iter()
                .map(|chunk| chunk.transactions)
                .sum::<Option<u64>>(),
            Some(3)
        );
        let compared = |wal: &[u8], chunks: &[WalDescriptor], pieces: usize| {
            let mut assembler = assembler(START);
            assembler.expect(Expected {
                chunks: chunks.to_vec(),
                ..Expected::default()
            });
            let mut at = None;
            for piece in wal.chunks(pieces) {
                at = at.or(diverged(assembler.push(assembler.position(), piece)));
            }
            at
        };
        // Same positions each time: only the times tell.
        for pieces in [8, 40, first.len()] {
            assert_eq!(compared(&first, &chunks, pieces), None);
            let later = wal_of(&[5_000_000, 3_000_000, 4_000_001], 9);
            assert_eq!(compared(&later, &chunks, pieces), Some(at), "{pieces}");
            let earlier = wal_of(&[5_000_000, 2_999_999, 4_000_000], 0);
            assert_eq!(compared(&earlier, &chunks, pieces), Some(START));
        }
        let fewer = wal_of(&[5_000_000, 3_000_000], 9);
        assert_eq!(compared(&fewer, &chunks, fewer.len()), Some(at));
        // What a descriptor does not know is not held against anybody.
        let unknown = |change: fn(&mut WalDescriptor)| {
            let mut chunks = chunks.clone();
            chunks.iter_mut().for_each(change);
            compared(&fewer, &chunks, fewer.len())
        };
        assert_eq!(unknown(|chunk| chunk.transactions = None), None);
        assert_eq!(unknown(|chunk| chunk.incomplete = true), None);
    }
}
