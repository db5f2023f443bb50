//! The documents of a base backup: `started.json`, the claim, and `backup.json`, the backup descriptor.
//!
//! Owns their fields. Both are plain JSON and therefore hints: a restore takes start, stop and timeline from the sealed manifest and
//! `backup_label` and checks every file against the manifest. Does not own how parts are cut (`archiver`) or restored (`pitr`).

use serde::{Deserialize, Serialize};
use wal_format::Lsn;

use crate::descriptor::{optional_crc, text};
use crate::key::Archive;

/// Largest plain part: the tar stream is cut every 32 MiB, a multiple of tar's 512-byte blocks, so no tar header is ever split.
pub const PART_BYTES: usize = 32 << 20;

/// Largest manifest of PostgreSQL's that is stored and read back: about 150 bytes a file, so enough for 1.7 million files.
pub const MAX_MANIFEST_BYTES: usize = 256 << 20;

/// `started.json`: says that a label is taken, by whom and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupClaim {
    /// Stored format, 1.
    pub format: u32,
    /// The label.
    pub label: String,
    /// When the backup was begun.
    pub started: jiff::Timestamp,
    /// Host that runs it.
    pub host: String,
}

/// `backup.json`: the backup exists when this exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDescriptor {
    /// Stored format, 1.
    pub format: u32,
    /// What a reader must understand; an unknown entry is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// The label.
    pub label: String,
    /// `full`.
    pub kind: String,
    /// PostgreSQL's system identifier.
    #[serde(with = "text")]
    pub system_identifier: u64,
    /// PostgreSQL's major version.
    pub pg_version: u16,
    /// The server's whole version, such as `18.6`.
    pub server_version: String,
    /// WAL segment size in bytes.
    pub wal_segment_size: u32,
    /// Timeline the backup was taken on.
    pub timeline: u32,
    /// Lineage of that timeline, as in WAL descriptors.
    pub lineage: String,
    /// Where WAL replay of the backup starts.
    #[serde(with = "text")]
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent.
    #[serde(with = "text")]
    pub stop_lsn: Lsn,
    /// When it began.
    pub started: jiff::Timestamp,
    /// When its last byte was received.
    pub stopped: jiff::Timestamp,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<TablespaceDescriptor>,
    /// Every part, in order of archive and number.
    pub parts: Vec<PartDescriptor>,
    /// Plain bytes of PostgreSQL's manifest.
    #[serde(with = "text")]
    pub manifest_size: u64,
    /// Plain bytes of all parts.
    #[serde(with = "text")]
    pub plain_size: u64,
    /// Bytes stored for it: parts, manifest and catalogue snapshot.
    #[serde(with = "text")]
    pub stored_size: u64,
}

/// A tablespace of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceDescriptor {
    /// Its OID, which names its archive.
    pub oid: u32,
    /// Where it was on the server.
    pub location: String,
}

/// One slice of a tar stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartDescriptor {
    /// Which stream.
    #[serde(with = "text")]
    pub archive: Archive,
    /// Which slice, from 0.
    pub part: u32,
    /// Plain size in bytes.
    pub plain_size: u32,
    /// Stored size in bytes, header included.
    pub stored_size: u32,
    /// CRC-32 of the plain bytes, 8 hex digits in JSON; absent with `descriptor = "minimal"`.
    #[serde(
        default,
        with = "optional_crc",
        skip_serializing_if = "Option::is_none"
    )]
    pub plain_crc32: Option<u32>,
    /// Name of the first member whose tar header stands in this part, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_member: Option<String>,
    /// The member that the part before left open, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continued: Option<ContinuedMember>,
}

/// A member of the tar stream that continues from the part before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinuedMember {
    /// Its name in the stream.
    pub name: String,
    /// Offset in the file of the part's first byte; equal to `size` when only padding is left.
    #[serde(with = "text")]
    pub offset: u64,
    /// Size of the whole file in bytes.
    #[serde(with = "text")]
    pub size: u64,
    /// Permission bits of the file.
    pub mode: u32,
}
