//! WAL page headers. Whether a page fits where it stands is decided in `stream.rs`.
//!
//! Source: `src/include/access/xlog_internal.h` (`XLogPageHeaderData`, `XLogLongPageHeaderData`), majors 14 to 18. Little-endian.
//!
//! | offset | size | field | |
//! |---|---|---|---|
//! | 0 | 2 | `xlp_magic` | tells the major |
//! | 2 | 2 | `xlp_info` | flags |
//! | 4 | 4 | `xlp_tli` | timeline |
//! | 8 | 8 | `xlp_pageaddr` | LSN of the page's first byte |
//! | 16 | 4 | `xlp_rem_len` | bytes that are left of the record continued from the page before |
//! | 20 | 4 | | padding |
//! | 24 | 8 | `xlp_sysid` | system identifier: this and what follows in long headers only (first page of a segment) |
//! | 32 | 4 | `xlp_seg_size` | segment size in bytes |
//! | 36 | 4 | `xlp_xlog_blcksz` | page size in bytes |

use crate::{Error, Lsn, Major, TimelineId};

/// The size of a WAL page in bytes. Servers compiled with another one are not supported.
#[doc(alias = "XLOG_BLCKSZ")]
pub const PAGE_BYTES: u32 = 8192;

/// The sizes of the two kinds of page header in bytes.
pub(crate) const SHORT_HEADER_BYTES: usize = 24;
pub(crate) const LONG_HEADER_BYTES: usize = 40;

/// The first bytes on the page continue a record from the page before.
pub(crate) const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// The header is a long one.
pub(crate) const LONG_HEADER: u16 = 0x0002;

/// A page header that was found valid at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The position of the page's first byte.
    #[doc(alias = "xlp_pageaddr")]
    pub address: Lsn,
    /// The major that wrote it.
    pub major: Major,
    /// The timeline of the page: the segment's own or, up to a switch point, an ancestor's.
    #[doc(alias = "xlp_tli")]
    pub timeline: TimelineId,
    /// The record bytes that are left from the pages before, if the page begins within a record.
    #[doc(alias = "xlp_rem_len")]
    pub continued: Option<u32>,
    /// Whether the page replaces the continuation of an aborted record.
    #[doc(alias = "XLP_FIRST_IS_OVERWRITE_CONTRECORD")]
    pub overwrites_continuation: bool,
    /// What the first page of a segment says of the cluster.
    pub long: Option<LongHeader>,
}

/// What a long page header says of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// The cluster's system identifier.
    #[doc(alias = "xlp_sysid")]
    pub system_identifier: u64,
    /// The size of a segment in bytes.
    #[doc(alias = "xlp_seg_size")]
    pub segment_bytes: u32,
    /// The size of a WAL page in bytes.
    #[doc(alias = "xlp_xlog_blcksz")]
    pub page_bytes: u32,
}

/// The fields of a short header as they stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawPageHeader {
    pub(crate) magic: u16,
    pub(crate) flags: u16,
    pub(crate) timeline: u32,
    pub(crate) address: Lsn,
    pub(crate) remaining: u32,
}

impl RawPageHeader {
    /// Reads a header, the long part too; that is only meaningful if [`RawPageHeader::header_bytes`] says that there is one.
    #[rustfmt::skip]
    pub(crate) fn parse(bytes: &[u8; LONG_HEADER_BYTES]) -> (Self, LongHeader) {
        let [
            m0, m1, f0, f1, t0, t1, t2, t3, a0, a1, a2, a3, a4, a5, a6, a7, r0, r1, r2, r3, _, _, _, _,
            i0, i1, i2, i3, i4, i5, i6, i7, s0, s1, s2, s3, p0, p1, p2, p3,
        ] = *bytes;
        let short = Self {
            magic: u16::from_le_bytes([m0, m1]),
            flags: u16::from_le_bytes([f0, f1]),
            timeline: u32::from_le_bytes([t0, t1, t2, t3]),
            address: Lsn(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7])),
            remaining: u32::from_le_bytes([r0, r1, r2, r3]),
        };
        let long = LongHeader {
            system_identifier: u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]),
            segment_bytes: u32::from_le_bytes([s0, s1, s2, s3]),
            page_bytes: u32::from_le_bytes([p0, p1, p2, p3]),
        };
        (short, long)
    }

    /// How many bytes the header has: known before anything else of it is believed.
    pub(crate) const fn header_bytes(&self) -> usize {
        if self.flags & LONG_HEADER != 0 && Major::from_page_magic(self.magic).is_some() {
            LONG_HEADER_BYTES
        } else {
            SHORT_HEADER_BYTES
        }
    }
}

impl PageHeader {
    /// Reads the long header that a segment begins with, to learn whose it is. The decoder checks it again, at its place.
    ///
    /// # Errors
    /// [`Error::Truncated`] if there are fewer than 40 bytes, [`Error::PageHeader`] if they are not a long header of a known major.
    pub fn parse_first(bytes: &[u8]) -> Result<(Self, LongHeader), Error> {
        let bytes = bytes.first_chunk().ok_or(Error::Truncated {
            field: "page header",
        })?;
        let (raw, long) = RawPageHeader::parse(bytes);
        let major = Major::from_page_magic(raw.magic).ok_or(Error::PageHeader {
            problem: "magic number of no known major",
        })?;
        if raw.flags & LONG_HEADER == 0 {
            return Err(Error::PageHeader {
                problem: "not the long header of a segment's first page",
            });
        }
        let flags = major.page_flags();
        if raw.flags & !flags.all != 0 {
            return Err(Error::PageHeader {
                problem: "unknown flags",
            });
        }
        let timeline = TimelineId::new(raw.timeline).ok_or(Error::PageHeader {
            problem: "timeline 0",
        })?;
        let header = Self {
            address: raw.address,
            major,
            timeline,
            continued: (raw.flags & FIRST_IS_CONTRECORD != 0).then_some(raw.remaining),
            overwrites_continuation: raw.flags & flags.overwrite_contrecord != 0,
            long: Some(long),
        };
        Ok((header, long))
    }
}
