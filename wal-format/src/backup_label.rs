//! `backup_label`, and the backup history file (`….backup`) that says the same and where the backup ended.
//!
//! Source: `build_backup_content` in `src/backend/access/transam/xlogbackup.c` (15 to 18) and `xlog.c` (14). Text, one `KEY: value` a line, in this
//! order; lines that are not known are passed over when read.
//!
//! | key | value | where |
//! |---|---|---|
//! | `START WAL LOCATION` | `X/X (file <segment>)` | both |
//! | `STOP WAL LOCATION` | `X/X (file <segment>)` | history |
//! | `CHECKPOINT LOCATION` | `X/X` | both |
//! | `BACKUP METHOD` | `streamed`; up to 14 also `pg_start_backup` | both |
//! | `BACKUP FROM` | `primary` or `standby` | both |
//! | `START TIME` | in the server's `log_timezone` | both |
//! | `LABEL` | text | both |
//! | `START TIMELINE` | decimal | both |
//! | `STOP TIME`, `STOP TIMELINE` | | history |
//! | `INCREMENTAL FROM LSN`, `INCREMENTAL FROM TLI` | `X/X`, decimal | incremental backups, since 17 |

use crate::{Error, Lsn, SegmentName, TimelineId};
use alloc::string::String;
use core::fmt::Write as _;
use core::str::FromStr;

/// The largest file that is read; a label is at most 1 KiB.
const MAX_BYTES: usize = 1 << 16;

/// What `backup_label` says: where recovery from a base backup begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where recovery begins: the redo LSN of the backup's checkpoint.
    pub start: Lsn,
    /// The segment that holds it.
    pub start_segment: SegmentName,
    /// The start of the checkpoint's record.
    pub checkpoint: Lsn,
    /// How the backup was made: `streamed`.
    pub method: String,
    /// Whether a standby was copied; its backup is consistent only at the minimum recovery point in its `pg_control`.
    pub from_standby: bool,
    /// When it began, as the server wrote it, for people.
    pub start_time: String,
    /// Its label, for people; bytes that are not UTF-8 are replaced.
    pub label: String,
    /// The timeline on which it began.
    pub start_timeline: TimelineId,
    /// The backup on which an incremental one builds.
    pub incremental_from: Option<IncrementalFrom>,
}

/// The backup on which an incremental one builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// Its start LSN.
    pub start: Lsn,
    /// Its start timeline.
    pub timeline: TimelineId,
}

/// What a backup history file says: the label, and where and when the backup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupHistory {
    /// What `backup_label` said.
    pub label: BackupLabel,
    /// The end: recovery is consistent after this.
    pub stop: Lsn,
    /// The segment that holds the byte before it.
    pub stop_segment: SegmentName,
    /// When it ended, as the server wrote it, for people.
    pub stop_time: String,
    /// The timeline on which it ended.
    pub stop_timeline: TimelineId,
}

impl BackupLabel {
    /// Reads the content of a `backup_label`.
    ///
    /// # Errors
    /// [`Error::BackupLabel`] if a line is missing, comes twice or cannot be read, or the file is larger than 64 KiB.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let fields = Fields::parse(bytes)?;
        if fields.stop_wal_location.is_some() {
            return Err(Error::BackupLabel {
                line: 0,
                problem: "a backup history file, not a backup_label",
            });
        }
        fields.label()
    }

    /// The content of the file as PostgreSQL writes it. Line ends within texts become blanks.
    #[must_use]
    pub fn encode(&self) -> String {
        self.encode_with(None)
    }

    fn encode_with(&self, history: Option<&BackupHistory>) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: core::fmt::Arguments<'_>| {
            let from = text.len().saturating_add(key.len());
            // Writing to a string cannot fail.
            let _infallible = write!(text, "{key}: {value}");
            let value = text.split_off(from).replace(['\n', '\r'], " ");
            text.push_str(&value);
            text.push('\n');
        };
        line(
            "START WAL LOCATION",
            format_args!("{} (file {})", self.start, self.start_segment),
        );
        if let Some(history) = history {
            line(
                "STOP WAL LOCATION",
                format_args!("{} (file {})", history.stop, history.stop_segment),
            );
        }
        line("CHECKPOINT LOCATION", format_args!("{}", self.checkpoint));
        line("BACKUP METHOD", format_args!("{}", self.method));
        line(
            "BACKUP FROM",
            format_args!(
                "{}",
                if self.from_standby {
                    "standby"
                } else {
                    "primary"
                }
            ),
        );
        line("START TIME", format_args!("{}", self.start_time));
        line("LABEL", format_args!("{}", self.label));
        line("START TIMELINE", format_args!("{}", self.start_timeline));
        if let Some(history) = history {
            line("STOP TIME", format_args!("{}", history.stop_time));
            line("STOP TIMELINE", format_args!("{}", history.stop_timeline));
        }
        if let Some(from) = self.incremental_from {
            line("INCREMENTAL FROM LSN", format_args!("{}", from.start));
            line("INCREMENTAL FROM TLI", format_args!("{}", from.timeline));
        }
        text
    }
}

impl BackupHistory {
    /// Reads the content of a backup history file.
    ///
    /// # Errors
    /// As [`BackupLabel::parse`]. A `backup_label` is refused: it does not say where the backup ended.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let fields = Fields::parse(bytes)?;
        let (stop, stop_segment) = located(fields.stop_wal_location, "no STOP WAL LOCATION")?;
        Ok(Self {
            stop,
            stop_segment,
            stop_time: text(fields.stop_time, "no STOP TIME")?,
            stop_timeline: timeline(fields.stop_timeline, "no STOP TIMELINE")?,
            label: fields.label()?,
        })
    }

    /// The content of the file as PostgreSQL writes it. Line ends within texts become blanks.
    #[must_use]
    pub fn encode(&self) -> String {
        self.label.encode_with(Some(self))
    }
}

/// A value and the line it stands on.
type Value<'a> = Option<(usize, &'a [u8])>;

/// The values as they stand.
#[derive(Default)]
struct Fields<'a> {
    start_wal_location: Value<'a>,
    stop_wal_location: Value<'a>,
    checkpoint_location: Value<'a>,
    backup_method: Value<'a>,
    backup_from: Value<'a>,
    start_time: Value<'a>,
    label: Value<'a>,
    start_timeline: Value<'a>,
    stop_time: Value<'a>,
    stop_timeline: Value<'a>,
    incremental_from_lsn: Value<'a>,
    incremental_from_timeline: Value<'a>,
}

impl<'a> Fields<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::BackupLabel {
                line: 0,
                problem: "larger than 64 KiB",
            });
        }
        let mut fields = Self::default();
        for (number, line) in (1..).zip(bytes.split(|&b| b == b'\n')) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let Some(colon) = line.iter().position(|&b| b == b':') else {
                continue;
            };
            let (key, rest) = line.split_at_checked(colon).unwrap_or((line, &[]));
            let value = rest
                .strip_prefix(b": ")
                .or_else(|| rest.strip_prefix(b":"))
                .unwrap_or(rest);
            let field = match key {
                b"START WAL LOCATION" => &mut fields.start_wal_location,
                b"STOP WAL LOCATION" => &mut fields.stop_wal_location,
                b"CHECKPOINT LOCATION" => &mut fields.checkpoint_location,
                b"BACKUP METHOD" => &mut fields.backup_method,
                b"BACKUP FROM" => &mut fields.backup_from,
                b"START TIME" => &mut fields.start_time,
                b"LABEL" => &mut fields.label,
                b"START TIMELINE" => &mut fields.start_timeline,
                b"STOP TIME" => &mut fields.stop_time,
                b"STOP TIMELINE" => &mut fields.stop_timeline,
                b"INCREMENTAL FROM LSN" => &mut fields.incremental_from_lsn,
                b"INCREMENTAL FROM TLI" => &mut fields.incremental_from_timeline,
                _ => continue,
            };
            // A label with a line end in it could otherwise say something else than the server meant.
            if field.replace((number, value)).is_some() {
                return Err(Error::BackupLabel {
                    line: number,
                    problem: "a line comes twice",
                });
            }
        }
        Ok(fields)
    }

    fn label(&self) -> Result<BackupLabel, Error> {
        let (start, start_segment) = located(self.start_wal_location, "no START WAL LOCATION")?;
        let from_standby = match self.backup_from {
            Some((_, b"primary" | b"master")) => false,
            Some((_, b"standby")) => true,
            Some((line, _)) => {
                return Err(Error::BackupLabel {
                    line,
                    problem: "neither primary nor standby",
                });
            }
            None => {
                return Err(Error::BackupLabel {
                    line: 0,
                    problem: "no BACKUP FROM",
                });
            }
        };
        let incremental_from = match (self.incremental_from_lsn, self.incremental_from_timeline) {
            (None, None) => None,
            (lsn, tli) => Some(IncrementalFrom {
                start: parsed(lsn, "no INCREMENTAL FROM LSN")?,
                timeline: timeline(tli, "no INCREMENTAL FROM TLI")?,
            }),
        };
        Ok(BackupLabel {
            start,
            start_segment,
            checkpoint: parsed(self.checkpoint_location, "no CHECKPOINT LOCATION")?,
            method: text(self.backup_method, "no BACKUP METHOD")?,
            from_standby,
            start_time: text(self.start_time, "no START TIME")?,
            label: text(self.label, "no LABEL")?,
            start_timeline: timeline(self.start_timeline, "no START TIMELINE")?,
            incremental_from,
        })
    }
}

fn text(value: Value<'_>, missing: &'static str) -> Result<String, Error> {
    let (_, bytes) = value.ok_or(Error::BackupLabel {
        line: 0,
        problem: missing,
    })?;
    // A carriage return within a line would not come back from `encode`.
    Ok(String::from_utf8_lossy(bytes).replace('\r', " "))
}

fn parsed<T: FromStr>(value: Value<'_>, missing: &'static str) -> Result<T, Error> {
    let (line, bytes) = value.ok_or(Error::BackupLabel {
        line: 0,
        problem: missing,
    })?;
    let unreadable = Error::BackupLabel {
        line,
        problem: "unreadable value",
    };
    str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(unreadable)
}

fn timeline(value: Value<'_>, missing: &'static str) -> Result<TimelineId, Error> {
    let number = parsed(value, missing)?;
    let line = value.map_or(0, |(line, _)| line);
    TimelineId::new(number).ok_or(Error::BackupLabel {
        line,
        problem: "timeline 0",
    })
}

/// Reads `X/X (file <segment>)`.
fn located(value: Value<'_>, missing: &'static str) -> Result<(Lsn, SegmentName), Error> {
    let (line, bytes) = value.ok_or(Error::BackupLabel {
        line: 0,
        problem: missing,
    })?;
    let split = || {
        let (lsn, file) = str::from_utf8(bytes).ok()?.split_once(" (file ")?;
        Some((lsn.parse().ok()?, file.strip_suffix(')')?.parse().ok()?))
    };
    split().ok_or(Error::BackupLabel {
        line,
        problem: "unreadable WAL location",
    })
}

#[cfg(test)]
mod tests {
    use super::{BackupHistory, BackupLabel, IncrementalFrom};
    use crate::{Error, Lsn, TimelineId};
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    const LABEL: &str = "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n\
        CHECKPOINT LOCATION: 0/4000080\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-01-23 14:28:11 UTC\nLABEL: nightly: 100 %\nSTART TIMELINE: 1\n";
    const HISTORY: &str = "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n\
        STOP WAL LOCATION: 0/4000158 (file 000000010000000000000004)\n\
        CHECKPOINT LOCATION: 0/4000080\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2026-01-23 14:28:11 UTC\nLABEL: x\nSTART TIMELINE: 1\n\
        STOP TIME: 2026-01-23 14:28:12 UTC\nSTOP TIMELINE: 1\n";

    #[test]
    fn reads_and_writes_what_postgresql_wrote() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        assert_eq!(
            (label.start, label.checkpoint),
            (Lsn(0x4000028), Lsn(0x4000080))
        );
        assert_eq!(
            (label.label.as_str(), label.from_standby),
            ("nightly: 100 %", false)
        );
        assert_eq!(label.encode(), LABEL);
        let incremental =
            std::format!("{LABEL}INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(incremental.as_bytes()).unwrap();
        let from = IncrementalFrom {
            start: Lsn(0x2000028),
            timeline: TimelineId::FIRST,
        };
        assert_eq!(label.incremental_from, Some(from));
        assert_eq!(label.encode(), incremental);
        let history = BackupHistory::parse(HISTORY.as_bytes()).unwrap();
        assert_eq!(
            (history.stop, history.label.from_standby),
            (Lsn(0x4000158), true)
        );
        assert_eq!(history.encode(), HISTORY);
    }

    #[test]
    fn each_line_is_needed_once_and_readable() {
        for line in LABEL.lines() {
            let without: String = LABEL
                .lines()
                .filter(|other| *other != line)
                .flat_map(|l| [l, "\n"])
                .collect();
            let error = BackupLabel::parse(without.as_bytes()).unwrap_err();
            assert!(
                matches!(error, Error::BackupLabel { line: 0, .. }),
                "without {line}: {error}"
            );
            let twice = std::format!("{LABEL}{line}\n");
            let error = BackupLabel::parse(twice.as_bytes()).unwrap_err();
            assert!(
                matches!(error, Error::BackupLabel { line: 8, .. }),
                "twice {line}: {error}"
            );
        }
        for (from, to, line) in [
            ("0/4000028 ", "0/400002G ", 1),
            ("000000010000000000000004)", "00000001000000000000004)", 1),
            ("04)", "04", 1),
            ("0/4000080", "", 2),
            ("primary", "elsewhere", 4),
            ("TIMELINE: 1", "TIMELINE: 0", 7),
            ("TIMELINE: 1", "TIMELINE: -1", 7),
        ] {
            let error = BackupLabel::parse(LABEL.replace(from, to).as_bytes()).unwrap_err();
            assert!(
                matches!(error, Error::BackupLabel { line: found, .. } if found == line),
                "{to}: {error}"
            );
        }
        assert!(BackupLabel::parse(HISTORY.as_bytes()).is_err());
        assert!(BackupHistory::parse(LABEL.as_bytes()).is_err());
        assert!(
            BackupLabel::parse(std::format!("{LABEL}INCREMENTAL FROM TLI: 1\n").as_bytes())
                .is_err()
        );
        assert!(BackupLabel::parse(&std::vec![b' '; (1 << 16) + 1]).is_err());
    }

    #[test]
    fn a_line_end_in_a_text_cannot_forge_a_line() {
        let mut label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        label.label = "x\nSTART TIMELINE: 9".into();
        let read = BackupLabel::parse(label.encode().as_bytes()).unwrap();
        assert_eq!(read.start_timeline, TimelineId::FIRST);
        assert_eq!(read.label, "x START TIMELINE: 9");
    }

    proptest! {
        #[test]
        fn what_is_read_reads_the_same_again(noise: Vec<u8>, at: prop::sample::Index) {
            let mut bytes = HISTORY.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes.splice(at..at, noise);
            if let Ok(history) = BackupHistory::parse(&bytes) {
                prop_assert_eq!(BackupHistory::parse(history.encode().as_bytes()).unwrap(), history);
            }
        }
    }
}
