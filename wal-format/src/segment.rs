//! What one WAL segment holds, summed up from the decoder's steps. Whether segments of an archive chain is decided elsewhere, from these sums.

use crate::cursor::{index, split};
use crate::{
    DecoderConfig, EndReason, Error, InvalidReason, LongHeader, Lsn, Major, RecordKind, Step,
    TimelineId, Timestamp, WalDecoder,
};
use alloc::vec::Vec;

/// What one segment, or its beginning, holds.
///
/// The same bytes give the same summary whether they came alone or after the segment before, but for the transactions whose records began
/// there: see [`Transactions::incomplete`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSummary {
    /// The position of the segment's first byte.
    pub start_lsn: Lsn,
    /// The position after its last byte.
    pub end_lsn: Lsn,
    /// The position after the last byte that was given.
    pub received_to: Lsn,
    /// How far the WAL is valid: [`SegmentSummary::end_lsn`] if complete, else the end of the last whole record.
    pub valid_to: Lsn,
    /// Whether the record chain fills the segment.
    pub completion: Completion,
    /// The first record that starts in the segment (the last one may continue in the next).
    pub first_record: Option<Lsn>,
    /// The start of the record before it, as it says; `None` also if its header continues in the next segment.
    pub first_record_prev: Option<Lsn>,
    /// The record whose continuation a crash cut and that the first record replaces. The segment before ends in that record; the first record's
    /// link leads to the one before it.
    pub first_record_overwrites: Option<Lsn>,
    /// The last record that starts in the segment.
    pub last_record: Option<Lsn>,
    /// The transactions whose last record ends in the segment.
    pub transactions: Transactions,
    /// The first thing that is not valid WAL: nothing after it was looked at.
    pub invalid_at: Option<(Lsn, InvalidReason)>,
    /// Where WAL ends in the segment, if it does.
    pub end_of_wal: Option<(Lsn, EndReason)>,
    /// The major that wrote the pages.
    pub major: Option<Major>,
    /// What the first page says of the cluster.
    pub long_header: Option<LongHeader>,
    /// The timelines of the valid pages, without repetition, in order. Those before the last are of ancestors.
    pub page_timelines: Vec<TimelineId>,
}

impl SegmentSummary {
    /// Whether the segment may be archived under its own name.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        !matches!(self.completion, Completion::Incomplete)
    }

    /// The cluster's system identifier, from the first page.
    #[must_use]
    pub fn system_identifier(&self) -> Option<u64> {
        self.long_header.map(|long| long.system_identifier)
    }

    /// The timeline of the first page.
    #[must_use]
    pub fn first_page_timeline(&self) -> Option<TimelineId> {
        self.page_timelines.first().copied()
    }

    /// The timeline of the last valid page.
    #[must_use]
    pub fn last_page_timeline(&self) -> Option<TimelineId> {
        self.page_timelines.last().copied()
    }
}

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The record chain runs to the last byte; its last record may continue in the next segment.
    Records,
    /// The record chain ends in a segment switch, and zeros follow.
    Switched,
    /// Neither: WAL ends before, or something is not valid, or not all bytes were given.
    Incomplete,
}

/// The ends of transactions in a segment: commits and aborts, of prepared transactions too. Times are not monotonic in WAL order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transactions {
    /// How many.
    pub count: u64,
    /// The earliest time and the latest; `None` if there are none.
    pub times: Option<(Timestamp, Timestamp)>,
    /// Whether a record ends here whose start was not seen: it may be one more.
    pub incomplete: bool,
}

impl Transactions {
    fn note(&mut self, time: Timestamp) {
        self.count = self.count.saturating_add(1);
        self.times = Some(match self.times {
            None => (time, time),
            Some((min, max)) => (min.min(time), max.max(time)),
        });
    }
}

/// Sums up segments one after the other as their bytes arrive. One segment's file alone goes to [`summarise_segment`].
#[derive(Debug, Clone)]
pub struct SegmentScanner {
    decoder: WalDecoder,
    start: Lsn,
    facts: Facts,
}

/// What the steps in the current segment said.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// Start, link and what it replaces.
    first_record: Option<(Lsn, Option<Lsn>, Option<Lsn>)>,
    last_record: Option<Lsn>,
    transactions: Transactions,
    switched: bool,
    invalid_at: Option<(Lsn, InvalidReason)>,
    end_of_wal: Option<(Lsn, EndReason)>,
    major: Option<Major>,
    long_header: Option<LongHeader>,
    page_timelines: Vec<TimelineId>,
}

impl SegmentScanner {
    /// A scanner whose first byte of input is the first byte of the segment at `segment_start`.
    ///
    /// # Errors
    /// [`Error::NotPageStart`] if that is not the start of a segment.
    pub fn new(config: DecoderConfig, segment_start: Lsn) -> Result<Self, Error> {
        if config.segment_size.offset(segment_start) != 0 {
            return Err(Error::NotPageStart(segment_start));
        }
        let decoder = WalDecoder::new(config, segment_start)?;
        Ok(Self {
            decoder,
            start: segment_start,
            facts: Facts::default(),
        })
    }

    /// The decoder behind it.
    #[must_use]
    pub const fn decoder(&self) -> &WalDecoder {
        &self.decoder
    }

    /// The start of the current segment.
    #[must_use]
    pub const fn segment_start(&self) -> Lsn {
        self.start
    }

    /// Bytes that the current segment lacks.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.end()
            .distance_from(self.decoder.position())
            .unwrap_or(0)
    }

    /// Takes bytes up to the current segment's end and says how many it took; `observer` sees every step.
    pub fn push(&mut self, input: &[u8], mut observer: impl FnMut(&Step)) -> usize {
        let left = u32::try_from(self.missing()).unwrap_or(u32::MAX);
        let (input, _) = split(input, index(left));
        let Self {
            decoder,
            facts,
            start,
        } = self;
        decoder.push(input, |step| {
            facts.note(&step, *start);
            observer(&step);
        });
        input.len()
    }

    /// The current segment so far.
    #[must_use]
    pub fn summary(&self) -> SegmentSummary {
        let facts = self.facts.clone();
        let end = self.end();
        let full = self.decoder.position() >= end;
        let broken = facts.invalid_at.is_some() || facts.end_of_wal.is_some();
        let completion = match (full && !broken, facts.switched) {
            (false, _) => Completion::Incomplete,
            (true, true) => Completion::Switched,
            (true, false) => Completion::Records,
        };
        // Before the segment is full, a record that has only begun proves nothing yet.
        let open = self
            .decoder
            .open_record()
            .filter(|open| full && open.start >= self.start);
        let open_first =
            open.map(|open| (open.start, open.header.map(|header| header.previous), None));
        let first = facts.first_record.or(open_first);
        let complete = completion != Completion::Incomplete;
        SegmentSummary {
            start_lsn: self.start,
            end_lsn: end,
            received_to: self.decoder.position(),
            valid_to: if complete {
                end
            } else {
                self.decoder.chain_end().max(self.start)
            },
            completion,
            first_record: first.map(|(start, _, _)| start),
            first_record_prev: first.and_then(|(_, previous, _)| previous),
            first_record_overwrites: first.and_then(|(_, _, overwrites)| overwrites),
            last_record: open.map(|open| open.start).or(facts.last_record),
            transactions: facts.transactions,
            invalid_at: facts.invalid_at,
            end_of_wal: facts.end_of_wal,
            major: facts.major,
            long_header: facts.long_header,
            page_timelines: facts.page_timelines,
        }
    }

    /// The summary of the current segment, once all its bytes were given; goes on to the next one. `None` while bytes are missing.
    pub fn finish_segment(&mut self) -> Option<SegmentSummary> {
        if self.missing() != 0 {
            return None;
        }
        let summary = self.summary();
        self.start = summary.end_lsn;
        self.facts = Facts::default();
        Some(summary)
    }

    fn end(&self) -> Lsn {
        self.start
            .saturating_add(u64::from(self.decoder.segment_size().bytes()))
    }
}

impl Facts {
    fn note(&mut self, step: &Step, segment_start: Lsn) {
        match step {
            Step::Page(page) => {
                self.major = Some(page.major);
                self.long_header = self.long_header.or(page.long);
                if self.page_timelines.last() != Some(&page.timeline) {
                    self.page_timelines.push(page.timeline);
                }
            }
            Step::Record(record) => {
                if record.start >= segment_start {
                    self.last_record = Some(record.start);
                    if self.first_record.is_none() {
                        let overwrites = match record.kind {
                            Some(RecordKind::OverwriteContrecord { overwritten, .. }) => {
                                Some(overwritten)
                            }
                            _ => None,
                        };
                        self.first_record =
                            Some((record.start, Some(record.header.previous), overwrites));
                    }
                }
                if let Some(
                    RecordKind::Commit { time, .. }
                    | RecordKind::Abort { time, .. }
                    | RecordKind::CommitPrepared { time, .. }
                    | RecordKind::AbortPrepared { time, .. },
                ) = record.kind
                {
                    self.transactions.note(time);
                }
            }
            Step::ContinuedRecordEnd { .. } => self.transactions.incomplete = true,
            Step::Switch { .. } => self.switched = true,
            Step::EndOfWal { at, reason } => self.end_of_wal = Some((*at, *reason)),
            Step::Invalid { at, reason } => self.invalid_at = Some((*at, *reason)),
            Step::AbortedRecord { .. } => {}
        }
    }
}

/// Sums up one segment's bytes, or the beginning of them, alone.
///
/// # Errors
/// [`Error::NotPageStart`] if `segment_start` is not the start of a segment, [`Error::SegmentOverflow`] if there are more bytes than one has.
pub fn summarise_segment(
    config: DecoderConfig,
    segment_start: Lsn,
    bytes: &[u8],
) -> Result<SegmentSummary, Error> {
    let mut scanner = SegmentScanner::new(config, segment_start)?;
    if scanner.push(bytes, |_| {}) != bytes.len() {
        return Err(Error::SegmentOverflow {
            segment_bytes: config.segment_size.bytes(),
        });
    }
    Ok(scanner.summary())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
