//! The push decoder: bytes of WAL in, steps out. Summing up a segment is `segment.rs`'s business; what a record means is `rmgr`'s.
//!
//! It checks what PostgreSQL's `xlogreader.c` checks, in the same order, and holds at most a record header, a page header and the fields of
//! one record kind: bodies are read where they stand. A record that lies whole in one input slice is checked in place; all others
//! go through the states below, byte range by byte range. Both ways give the same steps.

use crate::crc::Crc32c;
use crate::cursor::{Held, aligned, all_zero, index, length, split};
use crate::page::{
    FIRST_IS_CONTRECORD, LONG_HEADER, LONG_HEADER_BYTES, PAGE_BYTES, RawPageHeader,
    SHORT_HEADER_BYTES,
};
use crate::record::{RECORD_HEADER_BYTES, length_problem};
use crate::rmgr::{KindReader, is_switch};
use crate::{
    EndReason, Error, InvalidReason, LongHeader, Lsn, Major, PageHeader, Record, RecordHeader,
    RecordKind, SegmentSize, Step, TimelineId,
};

/// The longest tail of a record whose start was not seen that is believed: as [`Major::max_record_length`] at most.
const MAX_CONTINUED_BYTES: u32 = 0x3FFF_FFFF;
/// A switch record is a bare header that starts at a multiple of 8, so at most this much of it lies in the next segment.
const MAX_SWITCH_TAIL_BYTES: u32 = 16;

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
    /// The last bytes of a record that may be the rest of a switch record.
    tail: Held<16>,
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
    pub fn push(&mut self, input: &[u8], mut sink: impl FnMut(Step)) {
        let mut input = input;
        while !input.is_empty() {
            if self.config.segment_size.offset(self.position) == 0 && self.page_header.len() == 0 {
                self.enter_segment();
            }
            input = if self.state == State::Lost {
                let left = self.position.left_in(self.config.segment_size.bytes());
                self.pass(input, left)
            } else if self.position.offset_in(PAGE_BYTES) == 0 || self.page_header.len() > 0 {
                self.page(input, &mut sink)
            } else {
                let (payload, rest) = split(input, index(self.position.left_in(PAGE_BYTES)));
                let mut payload = payload;
                while !payload.is_empty() && self.state != State::Lost {
                    payload = self.payload(payload, &mut sink);
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

    /// Collects a page header and acts on it.
    fn page<'a>(&mut self, input: &'a [u8], sink: &mut impl FnMut(Step)) -> &'a [u8] {
        let mut rest = input;
        for want in [SHORT_HEADER_BYTES, LONG_HEADER_BYTES] {
            let (taken, whole) = self.page_header.fill(rest, want);
            rest = self.pass(rest, length(taken));
            if !whole {
                return rest;
            }
            let (raw, long) = RawPageHeader::parse(self.page_header.array());
            if raw.header_bytes() == want {
                let address = self.position.saturating_sub(want as u64);
                let zeros = all_zero(self.page_header.bytes());
                self.page_header.clear();
                self.enter_page(
                    address,
                    zeros,
                    &raw,
                    (want == LONG_HEADER_BYTES).then_some(long),
                    sink,
                );
                return rest;
            }
        }
        rest
    }

    /// Acts on a whole page header.
    fn enter_page(
        &mut self,
        address: Lsn,
        zeros: bool,
        raw: &RawPageHeader,
        long: Option<LongHeader>,
        sink: &mut impl FnMut(Step),
    ) {
        let padding = self.state == State::Padding;
        if zeros && padding {
            return;
        }
        if zeros {
            return self.end_of_wal(EndReason::Zeros, sink);
        }
        let page = match self.check_page(address, raw, long) {
            Ok(page) => page,
            // Servers write zeros after a switch; whatever else there is was there before.
            Err(_) if padding => return self.invalid(address, InvalidReason::SwitchPadding, sink),
            Err(Misfit::End(reason)) => return self.end_of_wal(reason, sink),
            Err(Misfit::Invalid(reason)) => return self.invalid(address, reason, sink),
        };
        self.major = Some(page.major);
        self.timeline = Some(page.timeline);
        if let Some(long) = long {
            self.system_identifier = Some(long.system_identifier);
        }
        if !padding {
            sink(Step::Page(page));
        }
        if let Err(reason) = self.continue_on(&page, sink) {
            self.invalid(address, reason, sink);
        }
    }

    /// Whether the page belongs where it stands: `XLogReaderValidatePageHeader`.
    fn check_page(
        &self,
        address: Lsn,
        raw: &RawPageHeader,
        long: Option<LongHeader>,
    ) -> Result<PageHeader, Misfit> {
        let Some(major) = Major::from_page_magic(raw.magic) else {
            return Err(InvalidReason::PageMagic { found: raw.magic }.into());
        };
        if raw.address != address {
            return Err(Misfit::End(EndReason::RecycledPage {
                address: raw.address,
            }));
        }
        if let Some(expected) = self.major.filter(|&expected| expected != major) {
            return Err(InvalidReason::PageMajor {
                expected,
                found: major,
            }
            .into());
        }
        let flags = major.page_flags();
        if raw.flags & !flags.all != 0 {
            return Err(InvalidReason::PageFlags { found: raw.flags }.into());
        }
        if raw.flags & LONG_HEADER == 0 && self.config.segment_size.offset(address) == 0 {
            return Err(InvalidReason::LongHeaderMissing.into());
        }
        if let Some(long) = long {
            let found = long.system_identifier;
            if let Some(expected) = self.system_identifier.filter(|&expected| expected != found) {
                return Err(InvalidReason::SystemIdentifier { expected, found }.into());
            }
            if long.segment_bytes != self.config.segment_size.bytes() {
                return Err(InvalidReason::SegmentSize {
                    found: long.segment_bytes,
                }
                .into());
            }
            if long.page_bytes != PAGE_BYTES {
                return Err(InvalidReason::PageSize {
                    found: long.page_bytes,
                }
                .into());
            }
        }
        let timeline = TimelineId::new(raw.timeline).ok_or(InvalidReason::PageTimeline)?;
        if self.timeline.is_some_and(|before| timeline < before) {
            return Err(Misfit::End(EndReason::OlderTimeline { timeline }));
        }
        Ok(PageHeader {
            address,
            major,
            timeline,
            continued: (raw.flags & FIRST_IS_CONTRECORD != 0).then_some(raw.remaining),
            overwrites_continuation: raw.flags & flags.overwrite_contrecord != 0,
            long,
        })
    }

    /// Joins a valid page to what came before it.
    fn continue_on(
        &mut self,
        page: &PageHeader,
        sink: &mut impl FnMut(Step),
    ) -> Result<(), InvalidReason> {
        let expected = match self.state {
            State::Begin => match page.continued {
                None => {
                    self.state = State::Between;
                    return Ok(());
                }
                Some(left) if (1..=MAX_CONTINUED_BYTES).contains(&left) => {
                    self.tail.clear();
                    self.state = State::Tail { left };
                    return Ok(());
                }
                Some(found) => {
                    return Err(InvalidReason::ContinuationLength {
                        expected: None,
                        found,
                    });
                }
            },
            State::Header if self.header.len() > 0 => {
                let total = RecordHeader::parse(self.header.array()).total_length;
                total.saturating_sub(length(self.header.len()))
            }
            State::Body { left } | State::Tail { left } => left,
            _ if page.continued.is_some() => return Err(InvalidReason::ContinuationUnexpected),
            _ => return Ok(()),
        };
        if page.overwrites_continuation {
            let start = self.open_record().map(|record| record.start);
            self.aborted = start;
            self.kind = None;
            self.header.clear();
            self.state = State::Between;
            sink(Step::AbortedRecord {
                start,
                overwritten_at: page.address,
            });
            return Ok(());
        }
        match page.continued {
            None => Err(InvalidReason::ContinuationMissing),
            Some(found) if found != expected => Err(InvalidReason::ContinuationLength {
                expected: Some(expected),
                found,
            }),
            Some(_) => Ok(()),
        }
    }

    /// Takes bytes of a page after its header, at least one.
    fn payload<'a>(&mut self, input: &'a [u8], sink: &mut impl FnMut(Step)) -> &'a [u8] {
        match self.state {
            State::Between => self.records(input, sink),
            State::Header => self.record_header(input, sink),
            State::Body { left } => {
                let (body, rest) = split(input, index(left));
                self.crc.update(body);
                if let Some(kind) = &mut self.kind {
                    kind.feed(body);
                }
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

    /// Records that lie whole in the input: the fast path. The first that does not is left to the other states.
    fn records<'a>(&mut self, input: &'a [u8], sink: &mut impl FnMut(Step)) -> &'a [u8] {
        let mut rest = input;
        let Some(major) = self.major else {
            // Every page header sets it.
            return self.pass(input, PAGE_BYTES);
        };
        while let Some((head, _)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() {
            let header = RecordHeader::parse(head);
            let Some((record, after)) = rest.split_at_checked(aligned(header.total_length)) else {
                break;
            };
            let Some((_, body)) = split(record, index(header.total_length))
                .0
                .split_first_chunk::<RECORD_HEADER_BYTES>()
            else {
                break;
            };
            let start = self.position;
            if let Some(reason) = header.problem(start, self.previous, major) {
                self.invalid(start, reason, sink);
                return rest;
            }
            self.crc.reset();
            self.crc.update(body);
            self.crc.update(RecordHeader::crc_covered(head));
            self.kind = KindReader::new(&header, major);
            if let Some(kind) = &mut self.kind {
                kind.feed(body);
            }
            self.position = start.saturating_add(record.len() as u64);
            self.start = start;
            self.finish_record(&header, self.position, sink);
            rest = after;
            if self.state != State::Between {
                return rest;
            }
        }
        if !rest.is_empty() {
            self.start = self.position;
            self.header.clear();
            self.state = State::Header;
        }
        rest
    }

    /// Collects a record header, which may lie on two pages.
    fn record_header<'a>(&mut self, input: &'a [u8], sink: &mut impl FnMut(Step)) -> &'a [u8] {
        let Some(major) = self.major else {
            return self.pass(input, PAGE_BYTES);
        };
        let on_first_page = index(self.start.left_in(PAGE_BYTES)).min(RECORD_HEADER_BYTES);
        let want = if self.header.len() < on_first_page {
            on_first_page
        } else {
            RECORD_HEADER_BYTES
        };
        let (taken, whole) = self.header.fill(input, want);
        let rest = self.pass(input, length(taken));
        if !whole {
            return rest;
        }
        self.judge_header(major, sink);
        rest
    }

    /// Judges as much of a record header as lies on the page.
    fn judge_header(&mut self, major: Major, sink: &mut impl FnMut(Step)) {
        let header = RecordHeader::parse(self.header.array());
        if header.total_length == 0 {
            return self.end_of_wal(EndReason::Zeros, sink);
        }
        let whole = self.header.len() == RECORD_HEADER_BYTES;
        let problem = if whole {
            header.problem(self.start, self.previous, major)
        } else {
            length_problem(header.total_length, major)
        };
        if let Some(reason) = problem {
            return self.invalid(self.start, reason, sink);
        }
        if whole {
            self.crc.reset();
            self.kind = KindReader::new(&header, major);
            self.state = State::Body {
                left: header.body_length(),
            };
            if header.body_length() == 0 {
                self.end_record(sink);
            }
        }
    }

    /// Ends a record that was read in pieces: its last byte is the one before the position.
    fn end_record(&mut self, sink: &mut impl FnMut(Step)) {
        self.crc
            .update(RecordHeader::crc_covered(self.header.array()));
        let header = RecordHeader::parse(self.header.array());
        self.header.clear();
        self.state = State::Between;
        let end = self.align();
        self.finish_record(&header, end, sink);
    }

    /// The next record's place after the position, with the state that leads there.
    fn align(&mut self) -> Lsn {
        let left = self.position.record_padding();
        if left != 0 {
            self.state = State::Align { left };
        }
        self.position.saturating_add(u64::from(left))
    }

    /// Judges a record whose bytes have all been read.
    fn finish_record(&mut self, header: &RecordHeader, end: Lsn, sink: &mut impl FnMut(Step)) {
        let start = self.start;
        let computed = self.crc.finish();
        if computed != header.crc {
            return self.invalid(
                start,
                InvalidReason::Crc {
                    stored: header.crc,
                    computed,
                },
                sink,
            );
        }
        let kind = match self.kind.take().map(KindReader::finish).transpose() {
            Ok(kind) => kind,
            Err(()) => return self.invalid(start, InvalidReason::Body, sink),
        };
        if let Some(aborted) = self.aborted.take() {
            let replaces = matches!(&kind, Some(RecordKind::OverwriteContrecord { overwritten, .. }) if *overwritten == aborted);
            if !replaces {
                return self.invalid(start, InvalidReason::OverwriteMissing { aborted }, sink);
            }
        }
        self.previous = Some(start);
        self.chain_end = end;
        let switch = matches!(kind, Some(RecordKind::Switch));
        sink(Step::Record(Record {
            start,
            end,
            header: *header,
            kind,
        }));
        if switch {
            self.enter_padding(Some(start), sink);
        }
    }

    /// A switch record ended before `chain_end`.
    fn enter_padding(&mut self, record: Option<Lsn>, sink: &mut impl FnMut(Step)) {
        let size = self.config.segment_size;
        let next = size.end(size.segment_before(self.chain_end));
        if self.chain_end < next {
            // The record's own padding is zero too.
            self.state = State::Padding;
        }
        sink(Step::Switch { record, next });
    }

    /// Passes over the rest of a record whose start was not seen.
    fn tail<'a>(&mut self, input: &'a [u8], left: u32, sink: &mut impl FnMut(Step)) -> &'a [u8] {
        let (bytes, rest) = split(input, index(left));
        let size = self.config.segment_size;
        if size.offset(self.position).saturating_add(left)
            <= LONG_HEADER_BYTES as u32 + MAX_SWITCH_TAIL_BYTES
        {
            self.tail.fill(bytes, index(MAX_SWITCH_TAIL_BYTES));
        }
        self.position = self.position.saturating_add(bytes.len() as u64);
        let left = left.saturating_sub(length(bytes.len()));
        self.state = State::Tail { left };
        if left == 0 {
            self.state = State::Between;
            let end = self.align();
            self.chain_end = end;
            if may_be_switch(self.tail.bytes()) {
                self.header.clear();
                self.start = end;
                self.state = State::AfterTail;
            }
            sink(Step::ContinuedRecordEnd { end });
        }
        rest
    }

    /// After what may be the rest of a switch record: zeros tell that it was.
    fn after_tail<'a>(&mut self, input: &'a [u8], sink: &mut impl FnMut(Step)) -> &'a [u8] {
        let (taken, whole) = self.header.fill(input, RECORD_HEADER_BYTES);
        let rest = self.pass(input, length(taken));
        if whole {
            if all_zero(self.header.bytes()) {
                self.enter_padding(None, sink);
            } else {
                // The header is held already: go on as if it had just come.
                self.state = State::Header;
                if let Some(major) = self.major {
                    self.judge_header(major, sink);
                }
            }
        }
        rest
    }

    fn end_of_wal(&mut self, reason: EndReason, sink: &mut impl FnMut(Step)) {
        self.lose();
        sink(Step::EndOfWal {
            at: self.chain_end,
            reason,
        });
    }

    fn invalid(&mut self, at: Lsn, reason: InvalidReason, sink: &mut impl FnMut(Step)) {
        self.lose();
        sink(Step::Invalid { at, reason });
    }

    /// Gives up until the next segment's start.
    fn lose(&mut self) {
        self.state = State::Lost;
        self.kind = None;
        self.header.clear();
    }
}

/// Why a page does not belong where it stands.
enum Misfit {
    End(EndReason),
    Invalid(InvalidReason),
}

impl From<InvalidReason> for Misfit {
    fn from(reason: InvalidReason) -> Self {
        Self::Invalid(reason)
    }
}

/// Whether the last bytes of a record may be those of a switch record: a bare header of the resource manager XLOG.
///
/// Only asked of what a segment begins with, and only believed if nothing but zeros follows.
fn may_be_switch(tail: &[u8]) -> bool {
    match tail {
        [info, manager, 0, 0, _, _, _, _]
        | [_, _, _, _, _, _, _, _, info, manager, 0, 0, _, _, _, _] => is_switch(*manager, *info),
        _ => false,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
