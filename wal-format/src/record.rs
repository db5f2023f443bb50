//! WAL record headers. What a record means is read in `rmgr`; its way over pages in `stream.rs`.
//!
//! Source: `src/include/access/xlogrecord.h` (`XLogRecord`), majors 14 to 18. Little-endian. Records start at multiples of 8.
//!
//! | offset | size | field | |
//! |---|---|---|---|
//! | 0 | 4 | `xl_tot_len` | bytes of the record, this header included |
//! | 4 | 4 | `xl_xid` | transaction |
//! | 8 | 8 | `xl_prev` | LSN of the record before |
//! | 16 | 1 | `xl_info` | high half: the resource manager's; low half: flags |
//! | 17 | 1 | `xl_rmid` | resource manager |
//! | 18 | 2 | | padding |
//! | 20 | 4 | `xl_crc` | CRC-32C of the body, then of the 20 bytes before this field |

use crate::crc::HEADER_BYTES;
use crate::step::InvalidReason;
use crate::{Lsn, Major, RecordKind};
use core::fmt;

/// The size of a record header in bytes.
pub(crate) const RECORD_HEADER_BYTES: usize = 24;
const RECORD_HEADER_LENGTH: u32 = 24;

/// The number of a transaction (32 bits, wraps around). 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId(pub u32);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The header of a WAL record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the record including its header, without page headers.
    #[doc(alias = "xl_tot_len")]
    pub total_length: u32,
    /// The transaction that wrote it; 0 if none.
    #[doc(alias = "xl_xid")]
    pub xid: TransactionId,
    /// The start of the record before.
    #[doc(alias = "xl_prev")]
    pub previous: Lsn,
    /// The resource manager's own bits (high half) and flags (low half).
    #[doc(alias = "xl_info")]
    pub info: u8,
    /// Which resource manager wrote it: see [`resource_manager_name`](crate::resource_manager_name).
    #[doc(alias = "xl_rmid")]
    pub resource_manager: u8,
    /// The CRC-32C it was written with.
    #[doc(alias = "xl_crc")]
    pub crc: u32,
}

impl RecordHeader {
    #[inline]
    pub(crate) fn parse(bytes: &[u8; RECORD_HEADER_BYTES]) -> Self {
        let [
            l0,
            l1,
            l2,
            l3,
            x0,
            x1,
            x2,
            x3,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            info,
            rmid,
            _,
            _,
            c0,
            c1,
            c2,
            c3,
        ] = *bytes;
        Self {
            total_length: u32::from_le_bytes([l0, l1, l2, l3]),
            xid: TransactionId(u32::from_le_bytes([x0, x1, x2, x3])),
            previous: Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            resource_manager: rmid,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// The bytes that the CRC covers after the body.
    #[inline]
    pub(crate) fn crc_covered(bytes: &[u8; RECORD_HEADER_BYTES]) -> &[u8; HEADER_BYTES] {
        bytes.first_chunk().unwrap_or(&[0; HEADER_BYTES])
    }

    /// Bytes after the header.
    #[inline]
    pub(crate) const fn body_length(&self) -> u32 {
        self.total_length.saturating_sub(RECORD_HEADER_LENGTH)
    }

    /// What is wrong with the header of a record at `start` that follows the one at `previous`, if anything is.
    ///
    /// The same checks as `ValidXLogRecordHeader` in `xlogreader.c`.
    #[inline]
    pub(crate) fn problem(
        &self,
        start: Lsn,
        previous: Option<Lsn>,
        major: Major,
    ) -> Option<InvalidReason> {
        if let Some(reason) = length_problem(self.total_length, major) {
            return Some(reason);
        }
        if !major.has_resource_manager(self.resource_manager) {
            return Some(InvalidReason::ResourceManager {
                found: self.resource_manager,
            });
        }
        let fits = previous.map_or(self.previous < start, |previous| self.previous == previous);
        (!fits).then_some(InvalidReason::Previous {
            expected: previous,
            found: self.previous,
        })
    }
}

/// What is wrong with a record of that length, if anything is. (Length 0 is the end of WAL; the caller has asked before.)
#[inline]
pub(crate) fn length_problem(total_length: u32, major: Major) -> Option<InvalidReason> {
    let valid = RECORD_HEADER_LENGTH..=major.max_record_length();
    (!valid.contains(&total_length)).then_some(InvalidReason::Length {
        found: total_length,
    })
}

/// A whole record whose CRC was found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The position of its first byte.
    pub start: Lsn,
    /// Where the next record may start: after its last byte, rounded up to a multiple of 8. At a page's end this is the next page's first
    /// byte, whose header comes before the next record; after a segment switch it is *not* the next record's place.
    pub end: Lsn,
    /// Its header.
    pub header: RecordHeader,
    /// What it means, if that matters to recovery.
    pub kind: Option<RecordKind>,
}
