//! The decoder's way from page to page: what a page header must say at its place, and how the page joins what came before it.

use super::{Sink, State, WalDecoder};
use crate::cursor::{all_zero, length};
use crate::page::{
    FIRST_IS_CONTRECORD, LONG_HEADER, LONG_HEADER_BYTES, PAGE_BYTES, RawPageHeader,
    SHORT_HEADER_BYTES,
};
use crate::{
    EndReason, InvalidReason, LongHeader, Lsn, Major, PageHeader, RecordHeader, Step, TimelineId,
};

/// The longest tail of a record whose start was not seen that is believed: the length of the longest record of any major.
const MAX_CONTINUED_BYTES: u32 = 0x3FFF_FFFF;

impl WalDecoder {
    /// Collects a page header and acts on it.
    pub(super) fn page<'a>(&mut self, input: &'a [u8], sink: &mut impl Sink) -> &'a [u8] {
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
        sink: &mut impl Sink,
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
            sink.step(Step::Page(page));
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
        sink: &mut impl Sink,
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
            sink.step(Step::AbortedRecord {
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
