//! `global/pg_control`, read only. Nothing here writes one.
//!
//! Source: `src/include/catalog/pg_control.h` (`ControlFileData`), majors 14 to 18, on 64-bit little-endian machines. The file is 8192 bytes,
//! the rest zeros.
//!
//! | offset | size | field | | offset | size | field |
//! |---|---|---|---|---|---|---|
//! | 0 | 8 | system identifier | | 184 | 4 | `max_worker_processes` |
//! | 8 | 4 | version of this layout | | 188 | 4 | `max_wal_senders` |
//! | 12 | 4 | version of the catalogs | | 192 | 4 | `max_prepared_transactions` |
//! | 16 | 4 | state | | 196 | 4 | `max_locks_per_transaction` |
//! | 24 | 8 | time, seconds since 1970 | | 200 | 1 | `track_commit_timestamp` |
//! | 32 | 8 | last checkpoint's LSN | | 204 | 4 | maximum alignment |
//! | 40 | 88 | its copy | | 208 | 8 | the double 1234567 |
//! | 128 | 8 | LSN of unlogged relations | | 216 | 4 | block size |
//! | 136 | 8 | minimum recovery point | | 220 | 4 | blocks per relation file |
//! | 144 | 4 | its timeline | | 224 | 4 | WAL page size |
//! | 152 | 8 | backup start | | 228 | 4 | WAL segment size |
//! | 160 | 8 | backup end | | 232 | 16 | limits of names, indexes, TOAST, large objects |
//! | 168 | 1 | backup end record required | | 248 | 1 | float8 by value |
//! | 172 | 4 | `wal_level` | | 252 | 4 | data checksum version |
//! | 176 | 1 | `wal_log_hints` | | 256 | 1 | signedness of char, since 18 |
//! | 180 | 4 | `max_connections` | | 256 or 257 | 32 | nonce |
//! | | | | | 288, 292 since 18 | 4 | CRC-32C of all before |

use crate::crc::Crc32c;
use crate::cursor::{Cursor, split};
use crate::rmgr::parse_checkpoint;
use crate::{
    Checkpoint, Error, Lsn, Major, Parameters, SegmentSize, TimelineId, Timestamp, WalLevel,
};
use core::fmt;

/// What `pg_control` says of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The major of the server, from the two versions.
    pub major: Major,
    /// The version of the file's layout.
    #[doc(alias = "pg_control_version")]
    pub control_version: u32,
    /// The version of the system catalogs.
    #[doc(alias = "catalog_version_no")]
    pub catalog_version: u32,
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// What the server was doing.
    pub state: ClusterState,
    /// When the file was last written, to the second.
    pub time: Timestamp,
    /// The start of the last checkpoint's record.
    pub checkpoint_lsn: Lsn,
    /// A copy of that checkpoint.
    pub checkpoint: Checkpoint,
    /// A recovery may not end before this; 0/0 if none is under way.
    pub minimum_recovery_point: Lsn,
    /// The timeline of that position; `None` if no recovery is under way.
    pub minimum_recovery_timeline: Option<TimelineId>,
    /// The redo LSN of the backup from which the cluster is being recovered, until that backup's end is reached; else 0/0.
    pub backup_start: Lsn,
    /// The end of that backup if a standby took it; else 0/0.
    pub backup_end: Lsn,
    /// Whether the backup's end record must be seen before the cluster may be opened.
    pub backup_end_required: bool,
    /// The settings that a standby or restored server must not go below.
    pub parameters: Parameters,
    /// The alignment that the server was compiled for, in bytes.
    pub maximum_alignment: u32,
    /// The size of a data block in bytes.
    pub block_bytes: u32,
    /// Blocks in one file of a large relation.
    pub relation_segment_blocks: u32,
    /// The size of a WAL page in bytes.
    pub wal_block_bytes: u32,
    /// The size of a WAL segment.
    pub wal_segment_size: SegmentSize,
    /// 0 if data pages carry no checksums.
    pub data_checksum_version: u32,
}

/// What the server was doing when it wrote `pg_control`.
#[doc(alias = "DBState")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterState {
    /// Starting.
    Startup,
    /// Shut down.
    ShutDown,
    /// Shut down during recovery.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering after a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a standby.
    InArchiveRecovery,
    /// Running.
    InProduction,
}

impl ClusterState {
    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

impl fmt::Display for ClusterState {
    /// As `pg_controldata` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

impl ControlFile {
    /// Reads the bytes of a `pg_control`: at least its used part.
    ///
    /// # Errors
    /// [`Error::ControlFileVersion`] if the major is not known, [`Error::ControlFileCrc`] if the bytes are damaged (or the server was writing
    /// them: read again), [`Error::Truncated`] and [`Error::ControlFile`] if they are no `pg_control` of a server that can be handled.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut cursor = Cursor::new(bytes);
        let system_identifier = cursor.u64("system identifier")?;
        let control_version = cursor.u32("pg_control version")?;
        let catalog_version = cursor.u32("catalog version")?;
        let major = Major::from_catalog_version(control_version, catalog_version).ok_or(
            Error::ControlFileVersion {
                control: control_version,
                catalog: catalog_version,
            },
        )?;
        check_crc(bytes, major)?;
        let fail = |problem| Error::ControlFile { problem };
        let state = ClusterState::from_number(cursor.u32("state")?).ok_or(fail("unknown state"))?;
        cursor.u32("padding")?;
        let time = Timestamp::from_unix_seconds(cursor.i64("time")?);
        let checkpoint_lsn = Lsn(cursor.u64("checkpoint")?);
        let checkpoint = parse_checkpoint(&mut cursor, major)?;
        cursor.u64("unlogged LSN")?;
        let minimum_recovery_point = Lsn(cursor.u64("minimum recovery point")?);
        let minimum_recovery_timeline = TimelineId::new(cursor.u32("minimum recovery timeline")?);
        cursor.u32("padding")?;
        let backup_start = Lsn(cursor.u64("backup start")?);
        let backup_end = Lsn(cursor.u64("backup end")?);
        let backup_end_required = cursor.bool(3, "backup end required")?;
        let wal_level =
            WalLevel::from_number(cursor.i32("wal_level")?).ok_or(fail("unknown wal_level"))?;
        let parameters = Parameters {
            wal_level,
            wal_log_hints: cursor.bool(3, "wal_log_hints")?,
            max_connections: cursor.i32("max_connections")?,
            max_worker_processes: cursor.i32("max_worker_processes")?,
            max_wal_senders: cursor.i32("max_wal_senders")?,
            max_prepared_transactions: cursor.i32("max_prepared_transactions")?,
            max_locks_per_transaction: cursor.i32("max_locks_per_transaction")?,
            track_commit_timestamp: cursor.bool(3, "track_commit_timestamp")?,
        };
        let maximum_alignment = cursor.u32("maximum alignment")?;
        if cursor.u64("double")? != 1_234_567.0_f64.to_bits() {
            return Err(fail(
                "written on a machine with other floating-point numbers",
            ));
        }
        let block_bytes = cursor.u32("block size")?;
        let relation_segment_blocks = cursor.u32("blocks per relation file")?;
        let wal_block_bytes = cursor.u32("WAL page size")?;
        let wal_segment_size = SegmentSize::new(cursor.u32("WAL segment size")?)?;
        cursor.take(16, "limits")?;
        cursor.bool(3, "float8 by value")?;
        let data_checksum_version = cursor.u32("data checksum version")?;
        Ok(Self {
            major,
            control_version,
            catalog_version,
            system_identifier,
            state,
            time,
            checkpoint_lsn,
            checkpoint,
            minimum_recovery_point,
            minimum_recovery_timeline,
            backup_start,
            backup_end,
            backup_end_required,
            parameters,
            maximum_alignment,
            block_bytes,
            relation_segment_blocks,
            wal_block_bytes,
            wal_segment_size,
            data_checksum_version,
        })
    }
}

fn check_crc(bytes: &[u8], major: Major) -> Result<(), Error> {
    let (covered, rest) = split(bytes, major.control_crc_offset());
    let stored = Cursor::new(rest).u32("CRC")?;
    let mut crc = Crc32c::new();
    crc.update(covered);
    let computed = crc.finish();
    if stored == computed {
        Ok(())
    } else {
        Err(Error::ControlFileCrc { stored, computed })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{ClusterState, ControlFile};
    use crate::testing::{control_file, control_file_crc};
    use crate::{Error, Lsn, Major, SegmentSize, WalLevel};

    #[test]
    fn reads_each_major() {
        for major in Major::ALL {
            let control = ControlFile::parse(&control_file(major, 77)).unwrap();
            assert_eq!((control.major, control.system_identifier), (major, 77));
            assert_eq!(control.state, ClusterState::ShutDown);
            assert_eq!(control.checkpoint.redo, Lsn(0x0300_0028));
            assert_eq!(control.checkpoint.wal_level.is_some(), major >= Major::V17);
            assert_eq!(control.parameters.wal_level, WalLevel::Replica);
            assert_eq!(control.wal_segment_size, SegmentSize::DEFAULT);
            assert_eq!(control.data_checksum_version, 1);
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        for major in [Major::V16, Major::V18] {
            let whole = control_file(major, 77);
            for length in 0..whole.len() {
                assert!(ControlFile::parse(&whole[..length]).is_err(), "{length}");
            }
            for at in 0..whole.len() * 8 {
                let mut bytes = whole.clone();
                bytes[at / 8] ^= 1 << (at % 8);
                assert!(ControlFile::parse(&bytes).is_err(), "bit {at}");
            }
        }
    }

    #[test]
    fn refuses_what_no_supported_server_writes() {
        let with = |at: usize, value: &[u8]| {
            let mut bytes = control_file(Major::V18, 77);
            bytes[at..at + value.len()].copy_from_slice(value);
            control_file_crc(&mut bytes, Major::V18);
            ControlFile::parse(&bytes).unwrap_err()
        };
        assert_eq!(
            with(8, &[1]),
            Error::ControlFileVersion {
                control: 0x701,
                catalog: 202_506_291
            }
        );
        assert!(matches!(with(16, &[7]), Error::ControlFile { .. }));
        assert!(matches!(with(172, &[9]), Error::ControlFile { .. }));
        assert!(matches!(with(214, &[0]), Error::ControlFile { .. }));
        assert_eq!(with(228, &[1]), Error::SegmentSize((16 << 20) + 1));
        let crc = ControlFile::parse(&[control_file(Major::V18, 77), std::vec![0; 8192]].concat());
        assert!(crc.is_ok(), "the rest of the file does not count");
    }
}
