//! The one error type of the crate. It owns no policy: every variant means "these bytes or this text are not what they claim to be".

use crate::Lsn;
use core::fmt;

/// Input that is not a valid instance of the format it was read as.
///
/// All variants are of the class *corrupt* but [`Error::SegmentSize`], [`Error::Lsn`] and [`Error::FileName`], which usually come from text that
/// a person or a server gave, and [`Error::MainDataCut`]. The end of WAL is not an error: see the decoder's steps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Not a WAL segment size: a power of two from 1 MiB to 1 GiB, in bytes.
    SegmentSize(u32),
    /// Not an LSN in the form `X/X`.
    Lsn,
    /// Not the name of a file that PostgreSQL keeps in `pg_wal`.
    FileName,
    /// A decoder can only begin at the start of a page, a segment scanner at the start of a segment.
    NotPageStart(Lsn),
    /// More bytes than a segment has.
    SegmentOverflow {
        /// The size of a segment in bytes.
        segment_bytes: u32,
    },
    /// Not the header that a WAL segment begins with.
    PageHeader {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A timeline history file that contradicts itself or cannot be read.
    History {
        /// Line in the file, from 1; 0 if it is the file as a whole.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A `backup_label` or backup history file that cannot be read.
    BackupLabel {
        /// Line in the file, from 1; 0 if it is the file as a whole.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A `pg_control` that cannot be read.
    ControlFile {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A `pg_control` of a version of PostgreSQL that is not known here.
    ControlFileVersion {
        /// The version of the file's layout.
        control: u32,
        /// The version of the system catalogs.
        catalog: u32,
    },
    /// A `pg_control` whose CRC-32C does not fit its bytes.
    ControlFileCrc {
        /// The CRC that is stored in the file.
        stored: u32,
        /// The CRC of the bytes in the file.
        computed: u32,
    },
    /// The body of a record whose CRC is right is not what its kind requires.
    RecordBody {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// What was asked for is in a part of a record's main data that is not kept, because it is too long. Not corrupt.
    MainDataCut {
        /// The length of the main data in bytes.
        length: u32,
    },
    /// The input ended inside a structure.
    Truncated {
        /// The field that was cut.
        field: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SegmentSize(bytes) => {
                write!(
                    f,
                    "{bytes} bytes is not a WAL segment size (a power of two from 1 MiB to 1 GiB)"
                )
            }
            Self::Lsn => {
                f.write_str("not an LSN (expected two hexadecimal numbers, as in 0/16B3740)")
            }
            Self::FileName => f.write_str("not the name of a WAL file"),
            Self::NotPageStart(lsn) => write!(f, "{lsn} is not where a WAL page or segment starts"),
            Self::SegmentOverflow { segment_bytes } => {
                write!(f, "more bytes than the {segment_bytes} of a WAL segment")
            }
            Self::PageHeader { problem } => write!(f, "WAL page header: {problem}"),
            Self::History { line, problem } => {
                write!(f, "timeline history file, line {line}: {problem}")
            }
            Self::BackupLabel { line, problem } => {
                write!(f, "backup label, line {line}: {problem}")
            }
            Self::ControlFile { problem } => write!(f, "pg_control: {problem}"),
            Self::ControlFileVersion { control, catalog } => {
                write!(
                    f,
                    "pg_control: version {control} with catalogs {catalog} is not supported"
                )
            }
            Self::ControlFileCrc { stored, computed } => {
                write!(
                    f,
                    "pg_control: CRC {stored:08X} stored, {computed:08X} computed"
                )
            }
            Self::RecordBody { problem } => write!(f, "record body: {problem}"),
            Self::MainDataCut { length } => {
                write!(
                    f,
                    "record with {length} bytes of main data, which are not kept in full"
                )
            }
            Self::Truncated { field } => write!(f, "input ends before the end of {field}"),
        }
    }
}

impl core::error::Error for Error {}
