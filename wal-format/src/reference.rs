//! The slow decoder that the fast one is held against: it sees all bytes at once, copies every record together, and knows one way only.
//!
//! Written from `xlogreader.c`'s rules and not from `stream.rs`; it uses another CRC implementation.

use crate::page::RawPageHeader;
use crate::rmgr::{KindReader, is_switch};
use crate::{
    DecoderConfig, EndReason, InvalidReason, Lsn, Major, PageHeader, Record, RecordHeader,
    RecordKind, Step, TimelineId,
};
use std::vec::Vec;

const PAGE: u64 = 8192;
const MAX: u32 = 0x3FFF_FFFF;

enum Stop {
    /// The bytes end here.
    Input,
    Invalid(u64, InvalidReason),
    End(EndReason),
}

struct Reader<'a> {
    config: DecoderConfig,
    start: u64,
    bytes: &'a [u8],
    major: Option<Major>,
    system_identifier: Option<u64>,
    timeline: Option<TimelineId>,
    steps: Vec<Step>,
    chain_end: u64,
    /// The byte after the last one that was judged.
    position: u64,
}

/// All steps in `bytes`, which begin at `start`.
pub(crate) fn decode(config: DecoderConfig, start: Lsn, bytes: &[u8]) -> Vec<Step> {
    let mut reader = Reader {
        config,
        start: start.0,
        bytes,
        major: config.major,
        system_identifier: config.system_identifier,
        timeline: None,
        steps: Vec::new(),
        chain_end: start.0,
        position: start.0,
    };
    loop {
        reader.chain_end = reader.position;
        reader.timeline = None;
        match reader.run() {
            Stop::Input => return reader.steps,
            Stop::Invalid(at, reason) => reader.steps.push(Step::Invalid {
                at: Lsn(at),
                reason,
            }),
            Stop::End(reason) => {
                let at = Lsn(reader.chain_end);
                reader.steps.push(Step::EndOfWal { at, reason });
            }
        }
        reader.position = reader.position.next_multiple_of(reader.segment());
    }
}

impl Reader<'_> {
    fn segment(&self) -> u64 {
        u64::from(self.config.segment_size.bytes())
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>, Stop> {
        let from = (self.position - self.start) as usize;
        let bytes = self.bytes.get(from..from + count).ok_or(Stop::Input)?;
        self.position += count as u64;
        Ok(bytes.to_vec())
    }

    fn run(&mut self) -> Stop {
        match self.try_run() {
            Ok(never) => match never {},
            Err(stop) => stop,
        }
    }

    fn try_run(&mut self) -> Result<core::convert::Infallible, Stop> {
        let mut previous = None;
        let mut aborted = None;
        let address = self.position;
        let page = self.page()?;
        if let Some(found) = page.continued {
            if found == 0 || found > MAX {
                let reason = InvalidReason::ContinuationLength {
                    expected: None,
                    found,
                };
                return Err(Stop::Invalid(address, reason));
            }
            let mut tail = Vec::new();
            let at_segment_start = address.is_multiple_of(self.segment());
            if self.gather(&mut tail, found as usize, None)? {
                self.position = self.position.next_multiple_of(8);
                self.chain_end = self.position;
                self.steps.push(Step::ContinuedRecordEnd {
                    end: Lsn(self.position),
                });
                if at_segment_start && Self::switch_tail(&tail) {
                    let back = self.position;
                    if self.take(24)?.iter().all(|&b| b == 0) {
                        self.switch(None)?;
                    } else {
                        self.position = back;
                    }
                }
            }
        }
        loop {
            if self.position.is_multiple_of(PAGE) {
                let address = self.position;
                if self.page()?.continued.is_some() {
                    return Err(Stop::Invalid(
                        address,
                        InvalidReason::ContinuationUnexpected,
                    ));
                }
            }
            let start = self.position;
            let major = self.major.ok_or(Stop::Input)?;
            let mut record = self.take(24.min(PAGE - start % PAGE) as usize)?;
            let total = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            if total == 0 {
                return Err(Stop::End(EndReason::Zeros));
            }
            if total < 24 || total > major.max_record_length() {
                return Err(Stop::Invalid(start, InvalidReason::Length { found: total }));
            }
            let whole = self.gather_header(&mut record, total, start)?;
            if whole {
                self.check_header(&record, start, previous, major)?;
            }
            if !whole || !self.gather(&mut record, total as usize, Some(start))? {
                aborted = Some(start);
                continue;
            }
            let header = Self::header(&record);
            let computed = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
            if computed != header.crc {
                let reason = InvalidReason::Crc {
                    stored: header.crc,
                    computed,
                };
                return Err(Stop::Invalid(start, reason));
            }
            let kind = KindReader::new(&header, major).map(|mut reader| {
                reader.feed(&record[24..]);
                reader.finish()
            });
            let kind = kind
                .transpose()
                .map_err(|()| Stop::Invalid(start, InvalidReason::Body))?;
            if let Some(aborted) = aborted.take() {
                match kind {
                    Some(RecordKind::OverwriteContrecord { overwritten, .. })
                        if overwritten.0 == aborted => {}
                    _ => {
                        let reason = InvalidReason::OverwriteMissing {
                            aborted: Lsn(aborted),
                        };
                        return Err(Stop::Invalid(start, reason));
                    }
                }
            }
            let end = self.position.next_multiple_of(8);
            self.chain_end = end;
            previous = Some(Lsn(start));
            let switch = kind == Some(RecordKind::Switch);
            self.steps.push(Step::Record(Record {
                start: Lsn(start),
                end: Lsn(end),
                header,
                kind,
            }));
            if switch {
                self.switch(Some(Lsn(start)))?;
            }
            self.position = self.position.next_multiple_of(8);
        }
    }

    /// Completes a record's 24 bytes; false if the record was aborted.
    fn gather_header(
        &mut self,
        record: &mut Vec<u8>,
        total: u32,
        start: u64,
    ) -> Result<bool, Stop> {
        if record.len() == 24 {
            Ok(true)
        } else {
            self.gather_until(record, 24, total as usize, Some(start))
        }
    }

    /// Appends bytes until `record` has `total`, over any pages; false if a page overwrites the rest.
    fn gather(
        &mut self,
        record: &mut Vec<u8>,
        total: usize,
        start: Option<u64>,
    ) -> Result<bool, Stop> {
        self.gather_until(record, total, total, start)
    }

    fn gather_until(
        &mut self,
        record: &mut Vec<u8>,
        until: usize,
        total: usize,
        start: Option<u64>,
    ) -> Result<bool, Stop> {
        while record.len() < until {
            if self.position.is_multiple_of(PAGE) {
                let address = self.position;
                let page = self.page()?;
                if page.overwrites_continuation {
                    let start = start.map(Lsn);
                    self.steps.push(Step::AbortedRecord {
                        start,
                        overwritten_at: Lsn(address),
                    });
                    return Ok(false);
                }
                let expected = (total - record.len()) as u32;
                match page.continued {
                    None => return Err(Stop::Invalid(address, InvalidReason::ContinuationMissing)),
                    Some(found) if found != expected => {
                        let expected = Some(expected);
                        let reason = InvalidReason::ContinuationLength { expected, found };
                        return Err(Stop::Invalid(address, reason));
                    }
                    Some(_) => {}
                }
            }
            record.extend(self.take(1)?);
        }
        Ok(true)
    }

    fn header(record: &[u8]) -> RecordHeader {
        let mut bytes = [0; 24];
        bytes.copy_from_slice(&record[..24]);
        RecordHeader::parse(&bytes)
    }

    fn check_header(
        &self,
        record: &[u8],
        start: u64,
        previous: Option<Lsn>,
        major: Major,
    ) -> Result<(), Stop> {
        let header = Self::header(record);
        let manager = header.resource_manager;
        if manager > 21 && (manager < 128 || major == Major::V14) {
            return Err(Stop::Invalid(
                start,
                InvalidReason::ResourceManager { found: manager },
            ));
        }
        let fits = match previous {
            Some(previous) => header.previous == previous,
            None => header.previous.0 < start,
        };
        if fits {
            return Ok(());
        }
        let reason = InvalidReason::Previous {
            expected: previous,
            found: header.previous,
        };
        Err(Stop::Invalid(start, reason))
    }

    fn switch_tail(tail: &[u8]) -> bool {
        let Some(at) = tail.len().checked_sub(8) else {
            return false;
        };
        (tail.len() == 8 || tail.len() == 16)
            && is_switch(tail[at + 1], tail[at])
            && tail[at + 2] == 0
            && tail[at + 3] == 0
    }

    /// Reads the zeros after a switch record.
    fn switch(&mut self, record: Option<Lsn>) -> Result<(), Stop> {
        let next = self.chain_end.next_multiple_of(self.segment());
        self.steps.push(Step::Switch {
            record,
            next: Lsn(next),
        });
        while self.position < next {
            if self.position.is_multiple_of(PAGE) {
                let address = self.position;
                if self.take(24)?.iter().any(|&b| b != 0) {
                    self.position = address;
                    let steps = self.steps.len();
                    match self.page() {
                        Ok(page) if page.continued.is_some() => {
                            return Err(Stop::Invalid(
                                address,
                                InvalidReason::ContinuationUnexpected,
                            ));
                        }
                        Ok(_) => self.steps.truncate(steps),
                        Err(Stop::Input) => return Err(Stop::Input),
                        Err(_) => return Err(Stop::Invalid(address, InvalidReason::SwitchPadding)),
                    }
                }
            } else if self.take(1)? != [0] {
                return Err(Stop::Invalid(self.chain_end, InvalidReason::SwitchPadding));
            }
        }
        Ok(())
    }

    /// Reads and judges the page header at the position.
    fn page(&mut self) -> Result<PageHeader, Stop> {
        let address = self.position;
        let mut bytes = self.take(24)?;
        if bytes.iter().all(|&b| b == 0) {
            return Err(Stop::End(EndReason::Zeros));
        }
        let invalid = |reason| Err(Stop::Invalid(address, reason));
        let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
        let Some(major) = Major::from_page_magic(magic) else {
            return invalid(InvalidReason::PageMagic { found: magic });
        };
        let is_long = bytes[2] & 2 != 0;
        if is_long {
            bytes.extend(self.take(16)?);
        }
        bytes.resize(40, 0);
        let mut array = [0; 40];
        array.copy_from_slice(&bytes);
        let (raw, long) = RawPageHeader::parse(&array);
        if raw.address.0 != address {
            return Err(Stop::End(EndReason::RecycledPage {
                address: raw.address,
            }));
        }
        match self.major {
            Some(expected) if expected != major => {
                return invalid(InvalidReason::PageMajor {
                    expected,
                    found: major,
                });
            }
            _ => {}
        }
        if raw.flags > 0xF {
            return invalid(InvalidReason::PageFlags { found: raw.flags });
        }
        if !is_long && address.is_multiple_of(self.segment()) {
            return invalid(InvalidReason::LongHeaderMissing);
        }
        if is_long {
            let found = long.system_identifier;
            match self.system_identifier {
                Some(expected) if expected != found => {
                    return invalid(InvalidReason::SystemIdentifier { expected, found });
                }
                _ => {}
            }
            if u64::from(long.segment_bytes) != self.segment() {
                return invalid(InvalidReason::SegmentSize {
                    found: long.segment_bytes,
                });
            }
            if long.page_bytes != 8192 {
                return invalid(InvalidReason::PageSize {
                    found: long.page_bytes,
                });
            }
        }
        let Some(timeline) = TimelineId::new(raw.timeline) else {
            return invalid(InvalidReason::PageTimeline);
        };
        if self.timeline.is_some_and(|before| before > timeline) {
            return Err(Stop::End(EndReason::OlderTimeline { timeline }));
        }
        self.major = Some(major);
        self.timeline = Some(timeline);
        if is_long {
            self.system_identifier = Some(long.system_identifier);
        }
        let page = PageHeader {
            address: raw.address,
            major,
            timeline,
            continued: (raw.flags & 1 != 0).then_some(raw.remaining),
            overwrites_continuation: raw.flags & 8 != 0,
            long: is_long.then_some(long),
        };
        self.steps.push(Step::Page(page));
        Ok(page)
    }
}
