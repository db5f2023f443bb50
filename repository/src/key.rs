//! Object keys: [`ObjectKey`] and its path below the repository's root, both ways.
//!
//! This is the only place where a key is spelled. It is pure: it neither lists nor opens anything, and knows nothing of what the
//! objects hold. The layout is that of `docs/repository-format.md`, "Keys".

use std::fmt;
use std::str::FromStr;

use wal_format::{Lsn, SegmentName, TimelineId};

use crate::{Error, Result};

/// Which cluster's objects: the system identifier, and the incarnation a human opened after a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId {
    /// PostgreSQL's system identifier, as `pg_controldata` prints it.
    pub system_identifier: u64,
    /// 0 for the first; `n` for `<system identifier>.<n>`.
    pub incarnation: u32,
}

impl ClusterId {
    /// The first incarnation of a system identifier.
    #[must_use]
    pub fn new(system_identifier: u64) -> Self {
        Self {
            system_identifier,
            incarnation: 0,
        }
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.system_identifier)?;
        if self.incarnation > 0 {
            write!(f, ".{}", self.incarnation)?;
        }
        Ok(())
    }
}

impl FromStr for ClusterId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (identifier, incarnation) = match text.split_once('.') {
            Some((identifier, incarnation)) => {
                (identifier, decimal::<u32>(incarnation).filter(|n| *n > 0))
            }
            None => (text, Some(0)),
        };
        match (decimal::<u64>(identifier), incarnation) {
            (Some(system_identifier), Some(incarnation)) => Ok(Self {
                system_identifier,
                incarnation,
            }),
            _ => Err(invalid(text)),
        }
    }
}

/// A backup's label: `20260123T142811Z-full-3fa9` (UTC start, kind, four random hex digits).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupLabel(String);

impl BackupLabel {
    /// Makes the label of a full backup from its start time and 16 random bits.
    #[must_use]
    pub fn full(start: jiff::Timestamp, random: u16) -> Self {
        Self(format!(
            "{}-full-{random:04x}",
            start.strftime("%Y%m%dT%H%M%SZ")
        ))
    }

    /// The label as it stands in keys.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupLabel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('-');
        let (time, kind, random) = (parts.next(), parts.next(), parts.next());
        let time_fits = time.is_some_and(|time| {
            time.len() == 16
                && time.bytes().enumerate().all(|(i, b)| match i {
                    8 => b == b'T',
                    15 => b == b'Z',
                    _ => b.is_ascii_digit(),
                })
        });
        let kind_fits = kind.is_some_and(|kind| {
            (1..=12).contains(&kind.len()) && kind.bytes().all(|b| b.is_ascii_lowercase())
        });
        let random_fits =
            random.is_some_and(|random| random.len() == 4 && random.bytes().all(is_lower_hex));
        if time_fits && kind_fits && random_fits && parts.next().is_none() {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(text))
        }
    }
}

/// Which tar stream of a backup a part belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Archive {
    /// The data directory itself.
    Base,
    /// A tablespace, by its OID.
    Tablespace(u32),
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Tablespace(oid) => write!(f, "{oid}"),
        }
    }
}

impl FromStr for Archive {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "base" {
            return Ok(Self::Base);
        }
        decimal::<u32>(text)
            .filter(|oid| *oid > 0)
            .map(Self::Tablespace)
            .ok_or_else(|| invalid(text))
    }
}

/// Everything that can stand in a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// `walden.json`: format version, repository id, creation time.
    Repository,
    /// `RESCUE.md`: how to restore by hand.
    Rescue,
    /// `<cluster>/cluster.json`: what cannot change in a cluster.
    Cluster(ClusterId),
    /// `<cluster>/wal/<timeline>/<log>/<24 hex>.wal`: a complete WAL segment.
    Segment {
        /// Whose.
        cluster: ClusterId,
        /// Which.
        name: SegmentName,
    },
    /// `….<tag>.partial`: the last, partial segment of an ended timeline.
    Partial {
        /// Whose.
        cluster: ClusterId,
        /// Which.
        name: SegmentName,
        /// CRC-32 of the plain bytes.
        tag: u32,
    },
    /// `….<offset>.<tag>.backup`: a backup history file that `archive_command` was given.
    BackupHistory {
        /// Whose.
        cluster: ClusterId,
        /// The segment in which the backup started.
        name: SegmentName,
        /// Offset of the start LSN in that segment.
        offset: u32,
        /// CRC-32 of the plain bytes.
        tag: u32,
    },
    /// `<cluster>/wal/<timeline>.history`: a timeline history file.
    History {
        /// Whose.
        cluster: ClusterId,
        /// The timeline it describes.
        timeline: TimelineId,
    },
    /// `<cluster>/tail/<timeline>/<24 hex>.<from>-<to>.<writer>`: bytes `[from, to)` of a segment that is not sealed yet.
    Tail {
        /// Whose.
        cluster: ClusterId,
        /// Which segment.
        name: SegmentName,
        /// First offset in the segment.
        from: u32,
        /// Offset behind the last byte.
        to: u32,
        /// Random for each process that writes.
        writer: u32,
    },
    /// `<cluster>/backups/<label>/…`: an object of a base backup.
    Backup {
        /// Whose.
        cluster: ClusterId,
        /// Which backup.
        label: BackupLabel,
        /// Which object of it.
        object: BackupObject,
    },
    /// `<cluster>/index/<timeline>/<log>.<tag>`: a roll-up of the descriptors of a log; a cache.
    RollUp {
        /// Whose.
        cluster: ClusterId,
        /// Of which timeline.
        timeline: TimelineId,
        /// Of which log: the middle 8 digits of a segment's name.
        log: u32,
        /// CRC-32 of the object's bytes.
        tag: u32,
    },
    /// `<cluster>/gaps/<timeline>-<from>-<to>.json`: a recorded hole in the WAL.
    Gap {
        /// Whose.
        cluster: ClusterId,
        /// On which timeline.
        timeline: TimelineId,
        /// First missing byte.
        from: Lsn,
        /// First byte behind the hole.
        to: Lsn,
    },
    /// `<cluster>/gaps/<timeline>-<from>-<to>.ack.json`: somebody knows of that hole and says why it may stay.
    GapAck {
        /// Whose.
        cluster: ClusterId,
        /// On which timeline.
        timeline: TimelineId,
        /// First missing byte.
        from: Lsn,
        /// First byte behind the hole.
        to: Lsn,
    },
}

/// The objects of one base backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackupObject {
    /// `started.json`: the claim on the label, before anything else.
    Started,
    /// `backup.json`: the backup descriptor, written last.
    Descriptor,
    /// `manifest`: PostgreSQL's `backup_manifest`, sealed.
    Manifest,
    /// `catalog`: names of databases and relations (`names.rs`), sealed; absent if none could be read.
    Catalog,
    /// `<archive>.<part>`: a slice of a tar stream, sealed.
    Part {
        /// Which tar stream.
        archive: Archive,
        /// Which slice, from 0.
        part: u32,
    },
}

impl ObjectKey {
    /// The cluster the object belongs to; `None` for the repository's own two objects.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        match self {
            Self::Repository | Self::Rescue => None,
            Self::Cluster(cluster)
            | Self::Segment { cluster, .. }
            | Self::Partial { cluster, .. }
            | Self::BackupHistory { cluster, .. }
            | Self::History { cluster, .. }
            | Self::Tail { cluster, .. }
            | Self::Backup { cluster, .. }
            | Self::RollUp { cluster, .. }
            | Self::Gap { cluster, .. }
            | Self::GapAck { cluster, .. } => Some(*cluster),
        }
    }

    /// The kind as descriptors name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Repository => "repository",
            Self::Rescue => "rescue",
            Self::Cluster(_) => "cluster",
            Self::Segment { .. } => "wal",
            Self::Partial { .. } => "partial",
            Self::BackupHistory { .. } => "backup-history",
            Self::History { .. } => "history",
            Self::Tail { .. } => "tail",
            Self::Backup {
                object: BackupObject::Started,
                ..
            } => "backup-claim",
            Self::Backup {
                object: BackupObject::Descriptor,
                ..
            } => "backup",
            Self::Backup {
                object: BackupObject::Manifest,
                ..
            } => "manifest",
            Self::Backup {
                object: BackupObject::Catalog,
                ..
            } => "catalog",
            Self::Backup {
                object: BackupObject::Part { .. },
                ..
            } => "backup-part",
            Self::RollUp { .. } => "index",
            Self::Gap { .. } => "gap",
            Self::GapAck { .. } => "gap-ack",
        }
    }
}

/// Prefix of all WAL of a timeline: segments, partials, backup history files.
#[must_use]
pub fn wal_prefix(cluster: ClusterId, timeline: TimelineId) -> String {
    format!("{cluster}/wal/{:08X}/", timeline.get())
}

/// Prefix of the WAL of a timeline in the log (4 GiB of LSNs) of `segment`.
#[must_use]
pub fn log_prefix(cluster: ClusterId, segment: SegmentName) -> String {
    log_folder(cluster, segment)
}

/// Prefix of the WAL of all timelines, and of their history files.
#[must_use]
pub fn all_wal_prefix(cluster: ClusterId) -> String {
    format!("{cluster}/wal/")
}

/// Prefix of the tail chunks of all timelines. Only `listing.rs` lists them: most may be garbage.
#[must_use]
pub(crate) fn tail_prefix(cluster: ClusterId) -> String {
    format!("{cluster}/tail/")
}

/// Prefix of the tail chunks of a timeline.
#[must_use]
pub(crate) fn timeline_tail_prefix(cluster: ClusterId, timeline: TimelineId) -> String {
    format!("{cluster}/tail/{:08X}/", timeline.get())
}

/// Where in `folder` (a prefix) to begin a listing behind everything of `segment`: the name of no object, behind `<24 hex>.` and before the next
/// segment's. Its last character is to spare, as a back end may drop it to be on the safe side.
#[must_use]
pub(crate) fn behind_segment(folder: &str, segment: SegmentName) -> String {
    format!("{folder}{segment}~~")
}

/// Where in `folder` (a prefix) to begin a listing before everything of `segment` and behind earlier ones; `None`: at its beginning.
#[must_use]
pub(crate) fn before_segment(folder: &str, segment: SegmentName) -> Option<String> {
    let (timeline, log) = (segment.timeline, segment.log);
    match (segment.segment.checked_sub(1), log.checked_sub(1)) {
        (Some(before), _) => {
            let before = SegmentName {
                segment: before,
                ..segment
            };
            Some(behind_segment(folder, before))
        }
        (None, Some(log)) => Some(format!("{folder}{:08X}{log:08X}~~", timeline.get())),
        (None, None) => None,
    }
}

/// Prefix of all base backups of a cluster.
#[must_use]
pub fn backups_prefix(cluster: ClusterId) -> String {
    format!("{cluster}/backups/")
}

/// Prefix of the recorded holes of a cluster.
#[must_use]
pub fn gaps_prefix(cluster: ClusterId) -> String {
    format!("{cluster}/gaps/")
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository => f.write_str("walden.json"),
            Self::Rescue => f.write_str("RESCUE.md"),
            Self::Cluster(cluster) => write!(f, "{cluster}/cluster.json"),
            Self::Segment { cluster, name } => {
                write!(f, "{}{name}.wal", log_folder(*cluster, *name))
            }
            Self::Partial { cluster, name, tag } => {
                write!(f, "{}{name}.{tag:08X}.partial", log_folder(*cluster, *name))
            }
            Self::BackupHistory {
                cluster,
                name,
                offset,
                tag,
            } => {
                write!(
                    f,
                    "{}{name}.{offset:08X}.{tag:08X}.backup",
                    log_folder(*cluster, *name)
                )
            }
            Self::History { cluster, timeline } => {
                write!(f, "{cluster}/wal/{:08X}.history", timeline.get())
            }
            Self::Tail {
                cluster,
                name,
                from,
                to,
                writer,
            } => {
                write!(
                    f,
                    "{cluster}/tail/{:08X}/{name}.{from:08X}-{to:08X}.{writer:08X}",
                    name.timeline.get()
                )
            }
            Self::Backup {
                cluster,
                label,
                object,
            } => {
                write!(f, "{cluster}/backups/{label}/")?;
                match object {
                    BackupObject::Started => f.write_str("started.json"),
                    BackupObject::Descriptor => f.write_str("backup.json"),
                    BackupObject::Manifest => f.write_str("manifest"),
                    BackupObject::Catalog => f.write_str("catalog"),
                    BackupObject::Part { archive, part } => write!(f, "{archive}.{part:06}"),
                }
            }
            Self::RollUp {
                cluster,
                timeline,
                log,
                tag,
            } => {
                write!(
                    f,
                    "{cluster}/index/{:08X}/{log:08X}.{tag:08X}",
                    timeline.get()
                )
            }
            Self::Gap {
                cluster,
                timeline,
                from,
                to,
            }
            | Self::GapAck {
                cluster,
                timeline,
                from,
                to,
            } => {
                write!(
                    f,
                    "{cluster}/gaps/{:08X}-{:016X}-{:016X}",
                    timeline.get(),
                    from.as_u64(),
                    to.as_u64()
                )?;
                f.write_str(match self {
                    Self::GapAck { .. } => ".ack.json",
                    _ => ".json",
                })
            }
        }
    }
}

fn log_folder(cluster: ClusterId, name: SegmentName) -> String {
    format!("{}{:08X}/", wal_prefix(cluster, name.timeline), name.log)
}

impl FromStr for ObjectKey {
    type Err = Error;

    /// Reads a path below the repository's root. Spelling is strict: a path that would not be printed the same way is refused.
    fn from_str(path: &str) -> Result<Self> {
        let key = parse(path).ok_or_else(|| invalid(path))?;
        if key.to_string() == path {
            Ok(key)
        } else {
            Err(invalid(path))
        }
    }
}

fn parse(path: &str) -> Option<ObjectKey> {
    match path {
        "walden.json" => return Some(ObjectKey::Repository),
        "RESCUE.md" => return Some(ObjectKey::Rescue),
        _ => {}
    }
    let (cluster, rest) = path.split_once('/')?;
    let cluster = cluster.parse::<ClusterId>().ok()?;
    let (folder, rest) = rest.split_once('/').unwrap_or(("", rest));
    match folder {
        "" if rest == "cluster.json" => Some(ObjectKey::Cluster(cluster)),
        "wal" => parse_wal(cluster, rest),
        "tail" => parse_tail(cluster, rest),
        "backups" => parse_backup(cluster, rest),
        "gaps" => parse_gap(cluster, rest),
        "index" => parse_roll_up(cluster, rest),
        _ => None,
    }
}

fn parse_wal(cluster: ClusterId, rest: &str) -> Option<ObjectKey> {
    let mut folders = rest.split('/');
    let first = folders.next()?;
    if let Some(timeline) = first.strip_suffix(".history") {
        return Some(ObjectKey::History {
            cluster,
            timeline: TimelineId::new(hex32(timeline)?)?,
        });
    }
    let (_log, file) = (folders.next()?, folders.next()?);
    let mut pieces = file.split('.');
    let name = pieces.next()?.parse::<SegmentName>().ok()?;
    let pieces: Vec<&str> = pieces.collect();
    match pieces.as_slice() {
        ["wal"] => Some(ObjectKey::Segment { cluster, name }),
        [tag, "partial"] => Some(ObjectKey::Partial {
            cluster,
            name,
            tag: hex32(tag)?,
        }),
        [offset, tag, "backup"] => Some(ObjectKey::BackupHistory {
            cluster,
            name,
            offset: hex32(offset)?,
            tag: hex32(tag)?,
        }),
        _ => None,
    }
}

fn parse_tail(cluster: ClusterId, rest: &str) -> Option<ObjectKey> {
    let (_timeline, file) = rest.split_once('/')?;
    let mut pieces = file.split('.');
    let name = pieces.next()?.parse::<SegmentName>().ok()?;
    let (from, to) = pieces.next()?.split_once('-')?;
    let (from, to, writer) = (hex32(from)?, hex32(to)?, hex32(pieces.next()?)?);
    (from < to).then_some(ObjectKey::Tail {
        cluster,
        name,
        from,
        to,
        writer,
    })
}

fn parse_backup(cluster: ClusterId, rest: &str) -> Option<ObjectKey> {
    let (label, file) = rest.split_once('/')?;
    let label = label.parse::<BackupLabel>().ok()?;
    let object = match file {
        "started.json" => BackupObject::Started,
        "backup.json" => BackupObject::Descriptor,
        "manifest" => BackupObject::Manifest,
        "catalog" => BackupObject::Catalog,
        _ => {
            let (archive, part) = file.split_once('.')?;
            let part = (part.len() == 6 && part.bytes().all(|b| b.is_ascii_digit()))
                .then(|| part.parse().ok())
                .flatten()?;
            BackupObject::Part {
                archive: archive.parse().ok()?,
                part,
            }
        }
    };
    Some(ObjectKey::Backup {
        cluster,
        label,
        object,
    })
}

fn parse_roll_up(cluster: ClusterId, rest: &str) -> Option<ObjectKey> {
    let (timeline, file) = rest.split_once('/')?;
    let (log, tag) = file.split_once('.')?;
    Some(ObjectKey::RollUp {
        cluster,
        timeline: TimelineId::new(hex32(timeline)?)?,
        log: hex32(log)?,
        tag: hex32(tag)?,
    })
}

fn parse_gap(cluster: ClusterId, rest: &str) -> Option<ObjectKey> {
    let name = rest.strip_suffix(".json")?;
    let (name, is_ack) = match name.strip_suffix(".ack") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let mut pieces = name.split('-');
    let timeline = TimelineId::new(hex32(pieces.next()?)?)?;
    let (from, to) = (hex64(pieces.next()?)?, hex64(pieces.next()?)?);
    let (from, to) = (Lsn::new(from), Lsn::new(to));
    pieces.next().is_none().then_some(match is_ack {
        true => ObjectKey::GapAck {
            cluster,
            timeline,
            from,
            to,
        },
        false => ObjectKey::Gap {
            cluster,
            timeline,
            from,
            to,
        },
    })
}

fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let plain = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn hex32(text: &str) -> Option<u32> {
    (text.len() == 8 && text.bytes().all(is_upper_hex))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

fn hex64(text: &str) -> Option<u64> {
    (text.len() == 16 && text.bytes().all(is_upper_hex))
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

fn is_upper_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'A'..=b'F').contains(&b)
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

fn invalid(text: &str) -> Error {
    Error::InvalidKey {
        path: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: &[&str] = &[
        "walden.json",
        "RESCUE.md",
        "7412345678901234567/cluster.json",
        "7412345678901234567.2/cluster.json",
        "7412345678901234567/wal/00000001/0000000A/000000010000000A000000FE.wal",
        "7412345678901234567/wal/00000001/0000000A/000000010000000A000000FE.DEADBEEF.partial",
        "7412345678901234567/wal/00000001/0000000A/000000010000000A000000FE.00000028.DEADBEEF.backup",
        "7412345678901234567/wal/00000002.history",
        "7412345678901234567/tail/00000001/000000010000000A000000FE.00000000-00FF0000.0A1B2C3D",
        "7412345678901234567/backups/20260123T142811Z-full-3fa9/started.json",
        "7412345678901234567/backups/20260123T142811Z-full-3fa9/backup.json",
        "7412345678901234567/backups/20260123T142811Z-full-3fa9/manifest",
        "7412345678901234567/backups/20260123T142811Z-full-3fa9/catalog",
        "7412345678901234567/backups/20260123T142811Z-full-3fa9/base.000000",
        "7412345678901234567/backups/20260123T142811Z-full-3fa9/16385.000123",
        "7412345678901234567/index/00000001/0000000A.DEADBEEF",
        "7412345678901234567/gaps/00000001-0000000001000000-0000000002000000.json",
        "7412345678901234567/gaps/00000001-0000000001000000-0000000002000000.ack.json",
    ];

    #[test]
    fn every_key_reads_back_as_it_is_printed() {
        for path in PATHS {
            let key: ObjectKey = path.parse().unwrap();
            assert_eq!(key.to_string(), *path);
        }
    }

    #[test]
    fn refuses_other_spellings() {
        for path in [
            "",
            "walden.JSON",
            "07412/cluster.json",
            "7412.0/cluster.json",
            "7412/wal/00000001/0000000B/000000010000000A000000FE.wal",
            "7412/wal/00000002/0000000A/000000010000000A000000FE.wal",
            "7412/wal/00000001/0000000A/000000010000000a000000fe.wal",
            "7412/wal/00000000.history",
            "7412/index/00000000/0000000A.DEADBEEF",
            "7412/index/00000001/0000000A.deadbeef",
            "7412/index/00000001/0000000A.DEADBEEF.1",
            "7412/wal/00000001/0000000A/000000010000000A000000FE.wal/x",
            "7412/tail/00000001/000000010000000A000000FE.00000010-00000010.0A1B2C3D",
            "7412/backups/20260123T142811Z-full-3fa9/base.0",
            "7412/backups/../../etc/base.000000",
            "7412/backups/20260123T142811Z-full-3fa9/0.000000",
            "7412/backups/2026-01-23T142811Z-full-3fa9/manifest",
            "7412/gaps/00000001-0000000001000000-0000000002000000.ack",
            "7412/gaps/00000001-0000000001000000-0000000002000000.ack.ack.json",
            "7412/gaps/00000001-0000000001000000.json",
        ] {
            assert!(path.parse::<ObjectKey>().is_err(), "{path}");
        }
    }

    #[test]
    fn label_states_utc_start() {
        let start: jiff::Timestamp = "2026-01-23T14:28:11.9Z".parse().unwrap();
        assert_eq!(
            BackupLabel::full(start, 0x3fa9).as_str(),
            "20260123T142811Z-full-3fa9"
        );
    }
}
