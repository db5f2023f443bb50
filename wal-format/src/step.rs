//! What the decoder says about the bytes it was given. How it finds out is in `stream.rs`.

use crate::{Lsn, Major, PageHeader, Record, TimelineId};
use core::fmt;

/// One thing found in WAL. Steps come in WAL order and do not depend on how the bytes were cut into pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// A valid page header. (Pages after a segment switch give none.)
    Page(PageHeader),
    /// A whole record, its CRC found right. Given when its last byte arrives.
    Record(Record),
    /// The end of a record whose start was not seen: it began before the decoder did.
    ContinuedRecordEnd {
        /// Where the next record may start, as [`Record::end`].
        end: Lsn,
    },
    /// A record that a crash cut; the page at `overwritten_at` holds other records instead of its rest.
    AbortedRecord {
        /// The record's start, if it was seen.
        start: Option<Lsn>,
        /// The page.
        overwritten_at: Lsn,
    },
    /// A segment switch: zeros follow up to `next`.
    Switch {
        /// The start of the switch record; `None` if it began before the decoder did.
        record: Option<Lsn>,
        /// The start of the next segment.
        next: Lsn,
    },
    /// WAL ends: not an error. Nothing more is decoded before the next segment's start.
    EndOfWal {
        /// The end of the last whole record (or where decoding began).
        at: Lsn,
        /// What was found instead of WAL.
        reason: EndReason,
    },
    /// The bytes are not valid WAL. Nothing more is decoded before the next segment's start.
    Invalid {
        /// The start of the record or page that is not valid.
        at: Lsn,
        /// What is wrong with it.
        reason: InvalidReason,
    },
}

/// What was found where WAL ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// Zeros: never written.
    Zeros,
    /// A page of a segment file that was written before and is being used again.
    RecycledPage {
        /// The address that the page carries.
        address: Lsn,
    },
    /// A page of an older timeline than the page before, left from before a switch.
    OlderTimeline {
        /// The timeline that the page carries.
        timeline: TimelineId,
    },
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::RecycledPage { address } => write!(f, "a recycled page of {address}"),
            Self::OlderTimeline { timeline } => {
                write!(f, "a page of the older timeline {timeline}")
            }
        }
    }
}

/// Why bytes are not valid WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidReason {
    /// The page's magic number is of no known major.
    PageMagic {
        /// The number.
        found: u16,
    },
    /// The page is of another major than expected or than the pages before.
    PageMajor {
        /// The major expected.
        expected: Major,
        /// The page's major.
        found: Major,
    },
    /// The page's flags have bits that its major does not define.
    PageFlags {
        /// The flags.
        found: u16,
    },
    /// The first page of a segment has no long header.
    LongHeaderMissing,
    /// The page is of another cluster.
    SystemIdentifier {
        /// The identifier expected.
        expected: u64,
        /// The page's.
        found: u64,
    },
    /// The page is of a cluster with another segment size.
    SegmentSize {
        /// The size that the page gives, in bytes.
        found: u32,
    },
    /// The page is of a server compiled with another WAL page size.
    PageSize {
        /// The size that the page gives, in bytes.
        found: u32,
    },
    /// The page is of timeline 0.
    PageTimeline,
    /// The page should continue a record and does not say so.
    ContinuationMissing,
    /// The page says that it continues a record, but none is open.
    ContinuationUnexpected,
    /// The page continues a record with another number of bytes than it lacks.
    ContinuationLength {
        /// The bytes it lacks; `None` if its start was not seen.
        expected: Option<u32>,
        /// The bytes that the page says.
        found: u32,
    },
    /// The record's length is impossible.
    Length {
        /// The length.
        found: u32,
    },
    /// The record's link to the record before is wrong.
    Previous {
        /// The start of the record before; `None` if it is not known (the link must at least point back).
        expected: Option<Lsn>,
        /// The link.
        found: Lsn,
    },
    /// No resource manager has the record's number.
    ResourceManager {
        /// The number.
        found: u8,
    },
    /// The record's bytes do not fit its CRC.
    Crc {
        /// The CRC in the record.
        stored: u32,
        /// The CRC of its bytes.
        computed: u32,
    },
    /// The record's CRC is right, but its body is not what its kind requires.
    Body,
    /// The page that overwrites an aborted record does not begin with a record that names it.
    OverwriteMissing {
        /// The start of the aborted record.
        aborted: Lsn,
    },
    /// Something other than zeros follows a segment switch.
    SwitchPadding,
}

impl fmt::Display for InvalidReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PageMagic { found } => {
                write!(f, "page magic {found:04X} is of no known major version")
            }
            Self::PageMajor { expected, found } => {
                write!(f, "page of PostgreSQL {found}, expected {expected}")
            }
            Self::PageFlags { found } => write!(f, "page flags {found:04X}"),
            Self::LongHeaderMissing => f.write_str("first page of a segment without a long header"),
            Self::SystemIdentifier { expected, found } => {
                write!(f, "page of system identifier {found}, expected {expected}")
            }
            Self::SegmentSize { found } => {
                write!(f, "page of a cluster with segments of {found} bytes")
            }
            Self::PageSize { found } => {
                write!(f, "WAL page size of {found} bytes is not supported")
            }
            Self::PageTimeline => f.write_str("page of timeline 0"),
            Self::ContinuationMissing => f.write_str("page does not continue the record before it"),
            Self::ContinuationUnexpected => {
                f.write_str("page continues a record that does not exist")
            }
            Self::ContinuationLength {
                expected: Some(expected),
                found,
            } => {
                write!(
                    f,
                    "page continues a record with {found} bytes, {expected} are left"
                )
            }
            Self::ContinuationLength {
                expected: None,
                found,
            } => {
                write!(f, "page continues a record with {found} bytes")
            }
            Self::Length { found } => write!(f, "record length {found}"),
            Self::Previous {
                expected: Some(expected),
                found,
            } => {
                write!(f, "record links back to {found}, expected {expected}")
            }
            Self::Previous {
                expected: None,
                found,
            } => write!(f, "record links back to {found}"),
            Self::ResourceManager { found } => write!(f, "resource manager {found}"),
            Self::Crc { stored, computed } => {
                write!(f, "record CRC {stored:08X} stored, {computed:08X} computed")
            }
            Self::Body => f.write_str("record body is not what its kind requires"),
            Self::OverwriteMissing { aborted } => {
                write!(
                    f,
                    "page does not begin with a record that replaces the one at {aborted}"
                )
            }
            Self::SwitchPadding => f.write_str("bytes other than zero after a segment switch"),
        }
    }
}
