//! The decoder's way from record to record: whole ones in place, others header first, then body, over any number of pages.

use super::{Sink, State, WalDecoder};
use crate::cursor::{aligned, all_zero, index, length, split};
use crate::page::PAGE_BYTES;
use crate::record::{RECORD_HEADER_BYTES, length_problem};
use crate::rmgr::{KindReader, is_switch};
use crate::{
    EndReason, InvalidReason, Lsn, Major, Record, RecordBody, RecordHeader, RecordKind, Step,
};

/// A switch record is a bare header that starts at a multiple of 8, so at most this much of it lies in the next segment, after the page
/// header: up to this offset.
pub(super) const MAX_SWITCH_TAIL_BYTES: usize = 16;
const MAX_SWITCH_TAIL_OFFSET: u32 = 56;

impl WalDecoder {
    /// Records that lie whole in the input: the fast path. The first that does not is left to the other states.
    pub(super) fn records<'a, S: Sink>(&mut self, input: &'a [u8], sink: &mut S) -> &'a [u8] {
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
            let computed = self.crc.record(body, RecordHeader::crc_covered(head));
            // Asked first, because a reader is large to move and few records need one.
            if KindReader::may_read(&header) {
                self.kind = KindReader::new(&header, major);
                if let Some(kind) = &mut self.kind {
                    kind.feed(body);
                }
            }
            self.position = start.saturating_add(record.len() as u64);
            self.start = start;
            let body = S::BODIES.then(|| RecordBody::whole(&header, major, body));
            self.finish_record(&header, computed, self.position, body.as_ref(), sink);
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
    pub(super) fn record_header<'a>(&mut self, input: &'a [u8], sink: &mut impl Sink) -> &'a [u8] {
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
    fn judge_header<S: Sink>(&mut self, major: Major, sink: &mut S) {
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
            self.body.begin(if S::BODIES {
                Some((header, major))
            } else {
                None
            });
            self.state = State::Body {
                left: header.body_length(),
            };
            if header.body_length() == 0 {
                self.end_record(sink);
            }
        }
    }

    /// Ends a record that was read in pieces: its last byte is the one before the position.
    pub(super) fn end_record(&mut self, sink: &mut impl Sink) {
        self.crc
            .update(RecordHeader::crc_covered(self.header.array()));
        let computed = self.crc.finish();
        let header = RecordHeader::parse(self.header.array());
        self.header.clear();
        self.state = State::Between;
        let end = self.align();
        // Taken out, for the body borrows from it; its buffer is used again.
        let body = core::mem::take(&mut self.body);
        self.finish_record(&header, computed, end, body.body().as_ref(), sink);
        self.body = body;
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
    #[inline(always)]
    fn finish_record(
        &mut self,
        header: &RecordHeader,
        computed: u32,
        end: Lsn,
        body: Option<&RecordBody<'_>>,
        sink: &mut impl Sink,
    ) {
        if computed != header.crc || self.kind.is_some() || self.aborted.is_some() {
            return self.finish_rare(header, computed, end, body, sink);
        }
        let start = self.start;
        self.previous = Some(start);
        self.chain_end = end;
        let record = Record {
            start,
            end,
            header: *header,
            kind: None,
        };
        sink.record(record, body);
    }

    /// The same for a record whose CRC may be wrong, of a kind that is read, or that must replace another.
    #[cold]
    fn finish_rare(
        &mut self,
        header: &RecordHeader,
        computed: u32,
        end: Lsn,
        body: Option<&RecordBody<'_>>,
        sink: &mut impl Sink,
    ) {
        let start = self.start;
        if computed != header.crc {
            let stored = header.crc;
            return self.invalid(start, InvalidReason::Crc { stored, computed }, sink);
        }
        let kind = match self.kind.take().map(KindReader::finish) {
            None => None,
            Some(Ok(kind)) => Some(kind),
            Some(Err(())) => return self.invalid(start, InvalidReason::Body, sink),
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
        let record = Record {
            start,
            end,
            header: *header,
            kind,
        };
        sink.record(record, body);
        if switch {
            self.enter_padding(Some(start), sink);
        }
    }

    /// A switch record ended before `chain_end`.
    fn enter_padding(&mut self, record: Option<Lsn>, sink: &mut impl Sink) {
        let size = self.config.segment_size;
        let next = size.end(size.segment_before(self.chain_end));
        if self.chain_end < next {
            // The record's own padding is zero too.
            self.state = State::Padding;
        }
        sink.step(Step::Switch { record, next });
    }

    /// Passes over the rest of a record whose start was not seen.
    pub(super) fn tail<'a>(
        &mut self,
        input: &'a [u8],
        left: u32,
        sink: &mut impl Sink,
    ) -> &'a [u8] {
        let (bytes, rest) = split(input, index(left));
        let size = self.config.segment_size;
        if size.offset(self.position).saturating_add(left) <= MAX_SWITCH_TAIL_OFFSET {
            self.tail.fill(bytes, MAX_SWITCH_TAIL_BYTES);
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
            sink.step(Step::ContinuedRecordEnd { end });
        }
        rest
    }

    /// After what may be the rest of a switch record: zeros tell that it was.
    pub(super) fn after_tail<'a>(&mut self, input: &'a [u8], sink: &mut impl Sink) -> &'a [u8] {
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
