//! The push decoder: bytes of WAL in, steps out. Summing up a segment is `segment.rs`'s business; what a record means is `rmgr`'s.
//!
//! It checks what PostgreSQL's `xlogreader.c` checks, in the same order, and holds at most a record header, a page header and the fields of
//! one record kind: bodies are read where they stand. A record that lies whole in one input slice is checked in place; all others
//! go through the states below, byte range by byte range. Both ways give the same steps.

mod bodies;
mod pages;
mod records;

use crate::crc::Crc32c;
use crate::cursor::{Held, all_zero, index, length, split};
use crate::page::{LONG_HEADER_BYTES, PAGE_BYTES};
use crate::record::RECORD_HEADER_BYTES;
use crate::rmgr::KindReader;
use crate::{
    EndReason, Error, InvalidReason, Lsn, Major, Record, RecordBody, RecordHeader, SegmentSize,
    Step, TimelineId,
};
use bodies::BodyCollector;
use records::MAX_SWITCH_TAIL_BYTES;

/// What a decoder must know before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderConfig {
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The cluster's system identifier; if `None`, that of the first long page header is held against the others.
    pub system_identifier: Option<u64>,
    /// The server's major; if `None`, that of the first page is held against the others.
    pub major: Option<Major>,
}

/// What [`WalDecoder::push_records`] says.
#[derive(Debug)]
pub enum Decoded<'a> {
    /// As [`Step::Record`], with its body; without, if it began in bytes given to [`WalDecoder::push`].
    Record(&'a Record, Option<&'a RecordBody<'a>>),
    /// Every other step.
    Other(Step),
}

impl Decoded<'_> {
    /// The step that it is.
    #[must_use]
    pub fn into_step(self) -> Step {
        match self {
            Self::Record(record, _) => Step::Record(record.clone()),
            Self::Other(step) => step,
        }
    }
}

/// A record that has begun and not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRecord {
    /// The position of its first byte.
    pub start: Lsn,
    /// Its header, once all of that has arrived.
    pub header: Option<RecordHeader>,
}

/// Decodes WAL that arrives in pieces of any size. See [`Step`] for what it says.
///
/// After [`Step::Invalid`] and [`Step::EndOfWal`] it passes over everything up to the next segment's start and begins anew there.
#[derive(Debug, Clone)]
pub struct WalDecoder {
    config: DecoderConfig,
    /// Where the next byte of input belongs.
    position: Lsn,
    major: Option<Major>,
    system_identifier: Option<u64>,
    /// Of the last page.
    timeline: Option<TimelineId>,
    /// The start of the last whole record; `None` if none was seen since the decoder began (anew).
    previous: Option<Lsn>,
    /// The end of the last whole record, or where the decoder began.
    chain_end: Lsn,
    state: State,
    page_header: Held<LONG_HEADER_BYTES>,
    /// The record that is being read, in the states that have one.
    start: Lsn,
    header: Held<RECORD_HEADER_BYTES>,
    crc: Crc32c,
    kind: Option<KindReader>,
    body: BodyCollector,
    /// The last bytes of a record that may be the rest of a switch record.
    tail: Held<MAX_SWITCH_TAIL_BYTES>,
    /// The aborted record that the next record must replace.
    aborted: Option<Lsn>,
}

/// What the bytes after the page header are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not known yet: the page header says whether a record continues here.
    Begin,
    /// A record starts here.
    Between,
    /// A record header.
    Header,
    /// A record body.
    Body { left: u32 },
    /// The rest of a record whose start was not seen.
    Tail { left: u32 },
    /// Padding up to the next record.
    Align { left: u32 },
    /// As `Between`, after the rest of a record that may have been a switch.
    AfterTail,
    /// Zeros after a segment switch, up to the segment's end.
    Padding,
    /// Of no interest, up to the segment's end.
    Lost,
}

impl WalDecoder {
    /// A decoder whose first byte of input is the byte at `start`.
    ///
    /// # Errors
    /// [`Error::NotPageStart`] if `start` is not the start of a page.
    pub fn new(config: DecoderConfig, start: Lsn) -> Result<Self, Error> {
        if start.offset_in(PAGE_BYTES) != 0 {
            return Err(Error::NotPageStart(start));
        }
        Ok(Self {
            config,
            position: start,
            major: config.major,
            system_identifier: config.system_identifier,
            timeline: None,
            previous: None,
            chain_end: start,
            state: State::Begin,
            page_header: Held::new(),
            start,
            header: Held::new(),
            crc: Crc32c::new(),
            kind: None,
            body: BodyCollector::default(),
            tail: Held::new(),
            aborted: None,
        })
    }

    /// Where the next byte of input belongs.
    #[must_use]
    pub const fn position(&self) -> Lsn {
        self.position
    }

    /// The cluster's segment size.
    #[must_use]
    pub const fn segment_size(&self) -> SegmentSize {
        self.config.segment_size
    }

    /// The major that wrote the pages, once known.
    #[must_use]
    pub const fn major(&self) -> Option<Major> {
        self.major
    }

    /// The end of the last whole record: up to here the WAL given so far is proven. Before the first record, where decoding began.
    #[must_use]
    pub const fn chain_end(&self) -> Lsn {
        self.chain_end
    }

    /// The start of the last whole record since decoding began (anew).
    #[must_use]
    pub const fn last_record(&self) -> Option<Lsn> {
        self.previous
    }

    /// The record that has begun and not ended, if its start was seen.
    #[must_use]
    pub fn open_record(&self) -> Option<OpenRecord> {
        match self.state {
            State::Header if self.header.len() > 0 => Some(OpenRecord {
                start: self.start,
                header: None,
            }),
            State::Body { .. } => Some(OpenRecord {
                start: self.start,
                header: Some(RecordHeader::parse(self.header.array())),
            }),
            _ => None,
        }
    }

    /// Whether decoding has stopped until the next segment's start.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    /// Decodes the next bytes.
    pub fn push(&mut self, input: &[u8], sink: impl FnMut(Step)) {
        self.decode(input, &mut Steps(sink));
    }

    /// Decodes the next bytes and gives each record with its body: the same steps, and bodies that do not depend on how the bytes were cut either.
    ///
    /// Nothing of a record is moved or read before it is asked for, so this is also the fast way to look at all records.
    pub fn push_records(&mut self, input: &[u8], sink: impl FnMut(Decoded<'_>)) {
        self.decode(input, &mut Bodies(sink));
    }

    fn decode(&mut self, input: &[u8], sink: &mut impl Sink) {
        let mut input = input;
        while !input.is_empty() {
            if self.config.segment_size.offset(self.position) == 0 && self.page_header.len() == 0 {
                self.enter_segment();
            }
            input = if self.state == State::Lost {
                let left = self.position.left_in(self.config.segment_size.bytes());
                self.pass(input, left)
            } else if self.position.offset_in(PAGE_BYTES) == 0 || self.page_header.len() > 0 {
                self.page(input, sink)
            } else {
                let (payload, rest) = split(input, index(self.position.left_in(PAGE_BYTES)));
                let mut payload = payload;
                while !payload.is_empty() && self.state != State::Lost {
                    payload = self.payload(payload, sink);
                }
                self.position = self.position.saturating_add(payload.len() as u64);
                rest
            };
        }
    }

    /// Leaves the states that last to a segment's end.
    const fn enter_segment(&mut self) {
        match self.state {
            State::Padding => self.state = State::Between,
            State::Lost => {
                self.state = State::Begin;
                self.previous = None;
                self.timeline = None;
                self.aborted = None;
                self.chain_end = self.position;
            }
            _ => {}
        }
    }

    /// Moves over up to `count` bytes.
    fn pass<'a>(&mut self, input: &'a [u8], count: u32) -> &'a [u8] {
        let (passed, rest) = split(input, index(count));
        self.position = self.position.saturating_add(passed.len() as u64);
        rest
    }

    /// Takes bytes of a page after its header, at least one.
    fn payload<'a>(&mut self, input: &'a [u8], sink: &mut impl Sink) -> &'a [u8] {
        match self.state {
            State::Between => self.records(input, sink),
            State::Header => self.record_header(input, sink),
            State::Body { left } => {
                let (body, rest) = split(input, index(left));
                self.crc.update(body);
                if let Some(kind) = &mut self.kind {
                    kind.feed(body);
                }
                self.body.feed(body);
                self.state = State::Body {
                    left: left.saturating_sub(length(body.len())),
                };
                self.position = self.position.saturating_add(body.len() as u64);
                if self.state == (State::Body { left: 0 }) {
                    self.end_record(sink);
                }
                rest
            }
            State::Tail { left } => self.tail(input, left, sink),
            State::Align { left } => {
                let rest = self.pass(input, left);
                let left = left.saturating_sub(length(input.len().saturating_sub(rest.len())));
                self.state = if left == 0 {
                    State::Between
                } else {
                    State::Align { left }
                };
                rest
            }
            State::AfterTail => self.after_tail(input, sink),
            State::Padding => {
                let rest = self.pass(input, PAGE_BYTES);
                if !all_zero(input) {
                    self.invalid(self.chain_end, InvalidReason::SwitchPadding, sink);
                }
                rest
            }
            // A page header comes first in `Begin`; `Lost` is passed over before.
            State::Begin | State::Lost => self.pass(input, PAGE_BYTES),
        }
    }

    fn end_of_wal(&mut self, reason: EndReason, sink: &mut impl Sink) {
        self.lose();
        sink.step(Step::EndOfWal {
            at: self.chain_end,
            reason,
        });
    }

    fn invalid(&mut self, at: Lsn, reason: InvalidReason, sink: &mut impl Sink) {
        self.lose();
        sink.step(Step::Invalid { at, reason });
    }

    /// Gives up until the next segment's start.
    fn lose(&mut self) {
        self.state = State::Lost;
        self.kind = None;
        self.header.clear();
    }
}

/// Who is told the steps.
trait Sink {
    /// Whether the bodies of records are wanted.
    const BODIES: bool;

    fn step(&mut self, step: Step);

    fn record(&mut self, record: Record, body: Option<&RecordBody<'_>>);
}

struct Steps<F>(F);

impl<F: FnMut(Step)> Sink for Steps<F> {
    const BODIES: bool = false;

    #[inline]
    fn step(&mut self, step: Step) {
        (self.0)(step);
    }

    #[inline]
    fn record(&mut self, record: Record, _: Option<&RecordBody<'_>>) {
        (self.0)(Step::Record(record));
    }
}

struct Bodies<F>(F);

impl<F: FnMut(Decoded<'_>)> Sink for Bodies<F> {
    const BODIES: bool = true;

    #[inline]
    fn step(&mut self, step: Step) {
        (self.0)(Decoded::Other(step));
    }

    #[inline]
    fn record(&mut self, record: Record, body: Option<&RecordBody<'_>>) {
        (self.0)(Decoded::Record(&record, body));
    }
}

#[cfg(test)]
mod body_tests;
#[cfg(test)]
mod tests;
