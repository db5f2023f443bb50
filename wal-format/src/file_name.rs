//! Names of the files in `pg_wal`: segments, `.partial`, timeline history, backup history. Keys of stored objects are not made here.
//!
//! Source: `src/include/access/xlog_internal.h` (`XLogFileName`, `TLHistoryFileName`, `BackupHistoryFileName`), majors 14 to 18.

use crate::{Error, Lsn, SegmentNumber, SegmentSize, TimelineId};
use core::fmt;
use core::str::FromStr;

/// The name of a WAL segment: 24 upper-case hexadecimal digits, 8 each for timeline, log and segment in the log.
///
/// Which bytes of WAL it means depends on the cluster's segment size, which the name does not carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline that wrote the file (its pages may be of an ancestor).
    pub timeline: TimelineId,
    /// The middle 8 digits: the high half of the segment's LSNs.
    pub log: u32,
    /// The last 8 digits: which segment of those 4 GiB.
    pub segment: u32,
}

impl SegmentName {
    /// The name of segment `number` on `timeline`.
    #[must_use]
    pub const fn new(timeline: TimelineId, number: SegmentNumber, size: SegmentSize) -> Self {
        let (log, segment) = size.log_and_segment(number);
        Self {
            timeline,
            log,
            segment,
        }
    }

    /// The segment's number; `None` if no segment of that size has this name (the last 8 digits are too large).
    #[must_use]
    pub const fn number(self, size: SegmentSize) -> Option<SegmentNumber> {
        size.number_in_log(self.log, self.segment)
    }

    /// The position of the segment's first byte; `None` if no segment of that size has this name.
    #[must_use]
    pub const fn start(self, size: SegmentSize) -> Option<Lsn> {
        match self.number(size) {
            Some(number) => Some(size.start(number)),
            None => None,
        }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:08X}{:08X}{:08X}",
            self.timeline.get(),
            self.log,
            self.segment
        )
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (timeline, rest) = take_hex(text)?;
        let (log, rest) = take_hex(rest)?;
        let (segment, rest) = take_hex(rest)?;
        if !rest.is_empty() {
            return Err(Error::FileName);
        }
        Ok(Self {
            timeline: TimelineId::new(timeline).ok_or(Error::FileName)?,
            log,
            segment,
        })
    }
}

/// The name of any file that PostgreSQL archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A complete WAL segment: `000000010000000000000003`.
    Segment(SegmentName),
    /// The last segment of an ended timeline: `000000010000000000000003.partial`.
    Partial(SegmentName),
    /// A timeline history file: `00000002.history`.
    History(TimelineId),
    /// A backup history file: `000000010000000000000003.00000028.backup`.
    BackupHistory {
        /// The segment in which the backup's start LSN lies.
        segment: SegmentName,
        /// The offset of the start LSN in that segment, in bytes.
        offset: u32,
    },
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.get()),
            Self::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalFileName {
    type Err = Error;

    /// Reads exactly the names that PostgreSQL writes: upper-case digits, no path.
    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((stem, suffix)) = text.split_once('.') else {
            return Ok(Self::Segment(text.parse()?));
        };
        if suffix == "partial" {
            return Ok(Self::Partial(stem.parse()?));
        }
        if suffix == "history" {
            let (timeline, rest) = take_hex(stem)?;
            let timeline = TimelineId::new(timeline).filter(|_| rest.is_empty());
            return Ok(Self::History(timeline.ok_or(Error::FileName)?));
        }
        let digits = suffix.strip_suffix(".backup").ok_or(Error::FileName)?;
        let (offset, rest) = take_hex(digits)?;
        if !rest.is_empty() {
            return Err(Error::FileName);
        }
        Ok(Self::BackupHistory {
            segment: stem.parse()?,
            offset,
        })
    }
}

/// Takes 8 upper-case hexadecimal digits off the front.
fn take_hex(text: &str) -> Result<(u32, &str), Error> {
    let (digits, rest) = text.split_at_checked(8).ok_or(Error::FileName)?;
    if !digits
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
    {
        return Err(Error::FileName);
    }
    Ok((
        u32::from_str_radix(digits, 16).map_err(|_| Error::FileName)?,
        rest,
    ))
}

#[cfg(test)]
mod tests {
    use super::{SegmentName, WalFileName};
    use crate::{Error, Lsn, SegmentNumber, SegmentSize, TimelineId};
    use proptest::prelude::*;
    use std::string::ToString;

    fn name(timeline: u32, log: u32, segment: u32) -> SegmentName {
        SegmentName {
            timeline: TimelineId::new(timeline).unwrap(),
            log,
            segment,
        }
    }

    #[test]
    fn reads_and_prints_each_kind() {
        let cases = [
            (
                "000000010000000A000000FF",
                WalFileName::Segment(name(1, 10, 255)),
            ),
            (
                "000000010000000A000000FF.partial",
                WalFileName::Partial(name(1, 10, 255)),
            ),
            (
                "0000000A.history",
                WalFileName::History(TimelineId::new(10).unwrap()),
            ),
            (
                "000000020000000000000003.00000028.backup",
                WalFileName::BackupHistory {
                    segment: name(2, 0, 3),
                    offset: 0x28,
                },
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<WalFileName>(), Ok(expected));
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn refuses_what_postgresql_does_not_write() {
        for text in [
            "",
            ".",
            ".history",
            "00000001000000000000000",
            "0000000100000000000000010",
            "00000001000000000000000a",
            "000000000000000000000001",
            "00000000.history",
            "000000010.history",
            "0000001.history",
            "00000001.History",
            "000000010000000000000001.",
            "000000010000000000000001.partial.partial",
            "000000010000000000000001.backup",
            "000000010000000000000001.0000002.backup",
            "000000010000000000000001.000000280.backup",
            "00000001.00000028.backup",
            "../0000010000000000000001",
            "+00000010000000000000001",
            "0000000100000000000000é",
            "é0000001.history",
        ] {
            assert_eq!(
                text.parse::<WalFileName>(),
                Err(Error::FileName),
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_segment_size_decides_what_a_name_means() {
        let last = name(1, 2, 0xFF);
        assert_eq!(
            last.number(SegmentSize::DEFAULT),
            Some(SegmentNumber::new(2 * 256 + 255))
        );
        assert_eq!(last.start(SegmentSize::DEFAULT), Some(Lsn(0x2_FF00_0000)));
        assert_eq!(last.start(SegmentSize::MIN), Some(Lsn(0x2_0FF0_0000)));
        assert_eq!(last.number(SegmentSize::MAX), None);
        assert_eq!(name(1, 2, 0x100).number(SegmentSize::DEFAULT), None);
        assert_eq!(
            name(1, u32::MAX, 0xFFF).start(SegmentSize::MIN),
            Some(Lsn(0xFFFF_FFFF_FFF0_0000))
        );
    }

    proptest! {
        #[test]
        fn number_round_trips(timeline in 1_u32.., number in 0_u64..1 << 34, shift in 20_u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let name = SegmentName::new(TimelineId::new(timeline).unwrap(), SegmentNumber::new(number), size);
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
            prop_assert_eq!(name.number(size), Some(SegmentNumber::new(number)));
        }

        #[test]
        fn any_text_is_refused_or_printed_back(text in "[0-9A-Fa-f]{0,26}(\\.[0-9A-F]{0,9})?(\\.partial|\\.history|\\.backup)?") {
            if let Ok(name) = text.parse::<WalFileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
