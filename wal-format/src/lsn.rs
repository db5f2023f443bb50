//! Positions in WAL and their arithmetic: LSN, segment size, segment number. Names of files are in `file_name.rs`.
//!
//! One of the two files that may compute with numbers from input; nothing here can overflow or divide by zero.

use crate::Error;
use core::fmt;
use core::str::FromStr;

/// A position in WAL: the byte's number from the beginning of the cluster's WAL. Prints as `X/X`.
#[doc(alias = "XLogRecPtr")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which PostgreSQL uses for "none": no record starts there.
    pub const INVALID: Self = Self(0);

    /// The position of byte number `position`.
    #[must_use]
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    /// The byte's number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether it is anything but [`Lsn::INVALID`].
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The position `bytes` later; `None` past the last possible one.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(position) => Some(Self(position)),
            None => None,
        }
    }

    /// The position `bytes` later, at most the last possible one.
    #[must_use]
    pub const fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// The position `bytes` earlier, at least `0/0`.
    #[must_use]
    pub const fn saturating_sub(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }

    /// Bytes from `earlier` to here; `None` if `earlier` is later.
    #[must_use]
    pub const fn distance_from(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// The bytes from the last multiple of `unit` (a power of two) to here.
    pub(crate) const fn offset_in(self, unit: u32) -> u32 {
        low_bits(self.0, unit)
    }

    /// The bytes from here to the next multiple of `unit` (a power of two): from 1 to `unit`.
    pub(crate) const fn left_in(self, unit: u32) -> u32 {
        unit.saturating_sub(low_bits(self.0, unit))
    }

    /// The bytes from here to the next multiple of 8, where a record may start: from 0 to 7.
    pub(crate) const fn record_padding(self) -> u32 {
        low_bits(self.0.wrapping_neg(), 8)
    }
}

/// `value` modulo `unit`, a power of two.
#[expect(clippy::cast_possible_truncation, reason = "the mask is below 2^32")]
const fn low_bits(value: u64, unit: u32) -> u32 {
    (value & (unit.saturating_sub(1) as u64)) as u32
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    /// Reads `X/X`, each side 1 to 8 hexadecimal digits of either case.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (high, low) = text.split_once('/').ok_or(Error::Lsn)?;
        let half = |digits: &str| -> Result<u64, Error> {
            if digits.is_empty()
                || digits.len() > 8
                || !digits.bytes().all(|b| b.is_ascii_hexdigit())
            {
                return Err(Error::Lsn);
            }
            u64::from_str_radix(digits, 16).map_err(|_| Error::Lsn)
        };
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// The size of a cluster's WAL segments, fixed at initdb: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize {
    bytes: u32,
}

impl SegmentSize {
    /// What initdb uses if not told otherwise: 16 MiB.
    pub const DEFAULT: Self = Self { bytes: 16 << 20 };
    /// The smallest: 1 MiB.
    pub const MIN: Self = Self { bytes: 1 << 20 };
    /// The largest: 1 GiB.
    pub const MAX: Self = Self { bytes: 1 << 30 };

    /// A segment size of `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::SegmentSize`] unless it is a power of two from 1 MiB to 1 GiB.
    pub const fn new(bytes: u32) -> Result<Self, Error> {
        if bytes.is_power_of_two() && bytes >= Self::MIN.bytes && bytes <= Self::MAX.bytes {
            Ok(Self { bytes })
        } else {
            Err(Error::SegmentSize(bytes))
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.bytes
    }

    /// The segment that holds the byte at `lsn`. At a boundary this is the segment that begins there.
    #[must_use]
    pub const fn segment(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0 >> self.bytes.trailing_zeros())
    }

    /// The segment that holds the byte before `lsn`. At a boundary this is the segment that ends there; for `0/0` it is the first one.
    #[must_use]
    pub const fn segment_before(self, lsn: Lsn) -> SegmentNumber {
        self.segment(Lsn(lsn.0.saturating_sub(1)))
    }

    /// The position of the segment's first byte (the last possible position for a segment beyond all positions).
    #[must_use]
    pub const fn start(self, segment: SegmentNumber) -> Lsn {
        Lsn(segment.0.saturating_mul(self.bytes as u64))
    }

    /// The position after the segment's last byte: the next segment's start.
    #[must_use]
    pub const fn end(self, segment: SegmentNumber) -> Lsn {
        self.start(segment.next())
    }

    /// The offset of `lsn` in its segment, in bytes.
    #[must_use]
    pub const fn offset(self, lsn: Lsn) -> u32 {
        lsn.offset_in(self.bytes)
    }

    /// How many segments share the middle 8 digits of a segment's name (4 GiB of WAL).
    #[must_use]
    pub const fn segments_per_log(self) -> u64 {
        (1_u64 << 32) >> self.bytes.trailing_zeros()
    }

    /// The segment that is number `segment` of log `log`; `None` if a log has fewer.
    pub(crate) const fn number_in_log(self, log: u32, segment: u32) -> Option<SegmentNumber> {
        if (segment as u64) < self.segments_per_log() {
            // At most 2^32 logs of at most 2^12 segments.
            Some(SegmentNumber(
                (log as u64)
                    .saturating_mul(self.segments_per_log())
                    .saturating_add(segment as u64),
            ))
        } else {
            None
        }
    }

    /// The log of the segment and its number in the log: the middle and the last 8 digits of its name.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a log has at most 2^12 segments; a log number is cut as PostgreSQL cuts it"
    )]
    pub(crate) const fn log_and_segment(self, segment: SegmentNumber) -> (u32, u32) {
        let shift = 32_u32.saturating_sub(self.bytes.trailing_zeros());
        (
            (segment.0 >> shift) as u32,
            (segment.0 & self.segments_per_log().saturating_sub(1)) as u32,
        )
    }
}

/// The number of a segment, counted from the beginning of the cluster's WAL.
#[doc(alias = "XLogSegNo")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(u64);

impl SegmentNumber {
    /// Segment `number`.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The segment after this one (the last possible number is followed by itself).
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The segment before this one, if any.
    #[must_use]
    pub const fn previous(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Lsn, SegmentNumber, SegmentSize};
    use crate::Error;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn prints_as_postgresql_does_and_reads_padded_forms() {
        assert_eq!(Lsn(0x9001C0).to_string(), "0/9001C0");
        assert_eq!(Lsn(0x16_0000_000A).to_string(), "16/A");
        for text in ["0/9001C0", "0/009001C0", "0/9001c0", "00000000/009001C0"] {
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn(0x9001C0)), "{text}");
        }
        for text in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "0/0/0",
            "0/G",
            "0/+1",
            "0/-1",
            " 0/1",
            "0/1 ",
            "000000000/0",
            "0/123456789",
        ] {
            assert_eq!(text.parse::<Lsn>(), Err(Error::Lsn), "{text:?}");
        }
    }

    #[test]
    fn accepts_only_the_segment_sizes_of_initdb() {
        for shift in 0..32 {
            let bytes = 1_u32 << shift;
            assert_eq!(
                SegmentSize::new(bytes).is_ok(),
                (20..=30).contains(&shift),
                "{bytes}"
            );
        }
        for bytes in [0, 3 << 20, (16 << 20) + 1, u32::MAX] {
            assert_eq!(SegmentSize::new(bytes), Err(Error::SegmentSize(bytes)));
        }
    }

    #[test]
    fn a_boundary_belongs_to_the_segment_asked_for() {
        let size = SegmentSize::DEFAULT;
        let boundary = Lsn(3 << 24);
        assert_eq!(size.segment(boundary), SegmentNumber(3));
        assert_eq!(size.segment_before(boundary), SegmentNumber(2));
        assert_eq!(
            size.segment(Lsn(boundary.0 + 1)),
            size.segment_before(Lsn(boundary.0 + 1))
        );
        assert_eq!(size.segment_before(Lsn(0)), SegmentNumber(0));
        assert_eq!(
            (size.start(SegmentNumber(3)), size.end(SegmentNumber(2))),
            (boundary, boundary)
        );
        assert_eq!(size.segments_per_log(), 256);
        assert_eq!(SegmentSize::MAX.segments_per_log(), 4);
        assert_eq!(SegmentNumber(0).previous(), None);
    }

    #[test]
    fn nothing_overflows_at_the_end_of_the_range() {
        for size in [SegmentSize::MIN, SegmentSize::DEFAULT, SegmentSize::MAX] {
            assert_eq!(size.end(SegmentNumber(u64::MAX)), Lsn(u64::MAX));
            assert_eq!(
                size.segment(Lsn(u64::MAX)).as_u64(),
                u64::MAX / u64::from(size.bytes())
            );
        }
        assert_eq!(SegmentNumber(u64::MAX).next(), SegmentNumber(u64::MAX));
        assert_eq!(Lsn(u64::MAX).checked_add(1), None);
        assert_eq!(Lsn(5).distance_from(Lsn(6)), None);
    }

    proptest! {
        #[test]
        fn text_round_trips(position: u64) {
            prop_assert_eq!(Lsn(position).to_string().parse::<Lsn>().unwrap(), Lsn(position));
        }

        #[test]
        fn segment_and_offset_give_the_position_back(position in 0..u64::MAX >> 1, shift in 20_u32..=30) {
            let (lsn, size) = (Lsn(position), SegmentSize::new(1 << shift).unwrap());
            let segment = size.segment(lsn);
            prop_assert_eq!(size.start(segment).checked_add(u64::from(size.offset(lsn))), Some(lsn));
            let (log, in_log) = size.log_and_segment(segment);
            prop_assert_eq!(u64::from(log), (position >> 32) & 0xFFFF_FFFF);
            prop_assert_eq!(size.number_in_log(log, in_log), Some(segment));
        }
    }
}
