//! Replication commands that answer with a row (IDENTIFY_SYSTEM, SHOW, slots, TIMELINE_HISTORY), and the one SQL query about slots.

use super::connection::{Connection, protocol};
use super::query::{QueryResult, required};
use crate::error::{Error, Result, ServerErrorKind};
use bytes::Bytes;
use std::fmt;
use std::str::FromStr;
use wal_format::{Lsn, SegmentSize, TimelineId};

/// Majors that `run`, `backup` and this module's commands work with.
pub const SUPPORTED_MAJORS: std::ops::RangeInclusive<u32> = 15..=18;
const SUPPORTED_WORDS: &str = "15, 16, 17 and 18";
/// Longest slot name, in bytes (`NAMEDATALEN` - 1).
const MAX_SLOT_NAME_BYTES: usize = 63;
/// Longest setting name that is asked for, in bytes.
const MAX_SETTING_NAME_BYTES: usize = 128;

/// The answer to IDENTIFY_SYSTEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// What tells this cluster from every other.
    pub system_identifier: u64,
    /// The server's current timeline.
    pub timeline: TimelineId,
    /// How far WAL is flushed (on a standby: replayed and received).
    pub flush_lsn: Lsn,
    /// The database connected to; none on a physical replication connection.
    pub database: Option<String>,
}

/// What asking for a slot led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotCreation {
    /// It is new.
    Created,
    /// It was there already.
    AlreadyExists,
}

/// The answer to READ_REPLICATION_SLOT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPosition {
    /// Oldest WAL the slot keeps; none if it keeps nothing (never used, or lost).
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that position, as the server sees it now.
    pub restart_timeline: Option<TimelineId>,
}

/// What `pg_replication_slots` says of a slot's WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalStatus {
    /// Kept, within `max_wal_size`.
    Reserved,
    /// Kept, beyond `max_wal_size`.
    Extended,
    /// To be removed at the next checkpoint.
    Unreserved,
    /// Removed: the slot is useless.
    Lost,
    /// A word of a later version.
    Other(String),
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// Not a logical slot.
    pub is_physical: bool,
    /// A connection uses it.
    pub is_active: bool,
    /// The server process that does.
    pub active_pid: Option<i32>,
    /// Oldest WAL the slot keeps.
    pub restart_lsn: Option<Lsn>,
    /// None if the slot never kept WAL.
    pub wal_status: Option<WalStatus>,
    /// Bytes of WAL that may still be written before the slot is in danger; none without `max_slot_wal_keep_size`.
    pub safe_wal_size: Option<i64>,
    /// Why it was invalidated (17 and later).
    pub invalidation_reason: Option<String>,
}

/// A timeline history file as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// Its name, for example `00000002.history`.
    pub name: String,
    /// Its bytes; the encoding is whatever the server's administrator used.
    pub content: Bytes,
}

/// A slot name that PostgreSQL accepts: 1 to 63 of `a-z`, `0-9` and `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotName<'a>(&'a str);

impl<'a> SlotName<'a> {
    pub(super) fn new(name: &'a str) -> Result<SlotName<'a>> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if name.is_empty() || name.len() > MAX_SLOT_NAME_BYTES || !name.bytes().all(allowed) {
            return Err(Error::InvalidName {
                what: "replication slot",
                name: name.to_owned(),
                reason: "a slot name has 1 to 63 of the characters a-z, 0-9 and _",
            });
        }
        Ok(SlotName(name))
    }
}

pub(super) fn quote_slot(name: SlotName<'_>) -> impl fmt::Display {
    format!("\"{}\"", name.0)
}

impl Connection {
    /// Refuses servers of other majors than [`SUPPORTED_MAJORS`].
    ///
    /// # Errors
    /// `UnsupportedServer` (class `Config`).
    pub fn require_supported(&self) -> Result<()> {
        match SUPPORTED_MAJORS.contains(&self.server_major()) {
            true => Ok(()),
            false => Err(Error::UnsupportedServer {
                major: self.server_major(),
                supported: SUPPORTED_WORDS,
            }),
        }
    }

    /// Who the server is and how far it got.
    ///
    /// # Errors
    /// As [`Connection::simple_query`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        const DURING: &str = "IDENTIFY_SYSTEM";
        let answer = self.query_named(DURING, DURING).await?;
        Ok(SystemIdentity {
            system_identifier: parse_column(DURING, &answer, "systemid")?,
            timeline: parse_timeline(DURING, &answer, "timeline")?,
            flush_lsn: parse_column(DURING, &answer, "xlogpos")?,
            database: answer.text(0, "dbname").map(str::to_owned),
        })
    }

    /// The value of a setting, as SHOW prints it.
    ///
    /// # Errors
    /// `Server`: unknown setting, or one that only `pg_read_all_settings` may see. `InvalidName`.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
        if setting.is_empty()
            || setting.len() > MAX_SETTING_NAME_BYTES
            || !setting.bytes().all(allowed)
        {
            return Err(Error::InvalidName {
                what: "setting",
                name: setting.to_owned(),
                reason: "a setting's name has letters, digits, _ and . only",
            });
        }
        let command = format!("SHOW {setting}");
        let answer = self.query_named(&command, &command).await?;
        let first = answer.columns.first().cloned().unwrap_or_default();
        let value = answer.text(0, &first).map(str::to_owned);
        required(&command, "value", value)
    }

    /// The size of the cluster's WAL segments.
    ///
    /// # Errors
    /// As [`Connection::show`]; `Protocol` for a size that is none.
    pub async fn wal_segment_size(&mut self) -> Result<SegmentSize> {
        let text = self.show("wal_segment_size").await?;
        let size = parse_size(&text).and_then(|bytes| SegmentSize::new(bytes).ok());
        required("SHOW wal_segment_size", &format!("size ({text:?})"), size)
    }

    /// Makes a permanent physical slot. With `reserve_wal` it keeps WAL from the last checkpoint's redo on.
    ///
    /// # Errors
    /// `Server`: `TooManyConnections` (no free slot), `PermissionDenied`, …. `InvalidName`.
    pub async fn create_physical_slot(
        &mut self,
        name: &str,
        reserve_wal: bool,
    ) -> Result<SlotCreation> {
        let name = quote_slot(SlotName::new(name)?);
        let options = if reserve_wal { " (RESERVE_WAL)" } else { "" };
        let command = format!("CREATE_REPLICATION_SLOT {name} PHYSICAL{options}");
        match self.query_named("CREATE_REPLICATION_SLOT", &command).await {
            Ok(_) => Ok(SlotCreation::Created),
            Err(error) if error.server_kind() == Some(ServerErrorKind::SlotExists) => {
                Ok(SlotCreation::AlreadyExists)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Connection::create_physical_slot`] with WAL reserved, on an SQL connection: a standby takes it too.
    ///
    /// # Errors
    /// As there.
    pub async fn create_slot_by_sql(&mut self, name: &str) -> Result<SlotCreation> {
        let slot = SlotName::new(name)?.0;
        let query =
            format!("SELECT pg_catalog.pg_create_physical_replication_slot('{slot}', true)");
        match self.query_named("make the slot", &query).await {
            Ok(_) => Ok(SlotCreation::Created),
            Err(error) if error.server_kind() == Some(ServerErrorKind::SlotExists) => {
                Ok(SlotCreation::AlreadyExists)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Connection::drop_slot`], on an SQL connection.
    ///
    /// # Errors
    /// As there.
    pub async fn drop_slot_by_sql(&mut self, name: &str) -> Result<()> {
        let slot = SlotName::new(name)?.0;
        let query = format!("SELECT pg_catalog.pg_drop_replication_slot('{slot}')");
        self.query_named("drop the slot", &query).await.map(drop)
    }

    /// Lets a slot that nobody uses forget WAL before `to`, or before what the server has flushed (a standby: replayed), if that is less.
    /// On an SQL connection.
    ///
    /// # Errors
    /// `Server`: `to` lies before the slot, the slot is in use, lost or missing. `InvalidName`.
    pub async fn advance_slot(&mut self, name: &str, to: Lsn) -> Result<()> {
        let slot = SlotName::new(name)?.0;
        let query = format!("SELECT pg_catalog.pg_replication_slot_advance('{slot}', '{to}')");
        self.query_named("advance the slot", &query).await.map(drop)
    }

    /// Drops a slot.
    ///
    /// # Errors
    /// `Server`: `SlotMissing`, `SlotInUse`. `InvalidName`.
    pub async fn drop_slot(&mut self, name: &str) -> Result<()> {
        let name = quote_slot(SlotName::new(name)?);
        let command = format!("DROP_REPLICATION_SLOT {name}");
        self.query_named("DROP_REPLICATION_SLOT", &command).await?;
        Ok(())
    }

    /// Where a physical slot stands; `None` if there is no such slot.
    ///
    /// # Errors
    /// `Server`: it is a logical slot. `UnsupportedServer` before 15. `InvalidName`.
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<SlotPosition>> {
        const DURING: &str = "READ_REPLICATION_SLOT";
        self.require_supported()?;
        let command = format!("{DURING} {}", quote_slot(SlotName::new(name)?));
        let answer = self.query_named(DURING, &command).await?;
        if answer.text(0, "slot_type").is_none() {
            return Ok(None);
        }
        let timeline: Option<u32> = parse_optional(DURING, &answer, "restart_tli")?;
        Ok(Some(SlotPosition {
            restart_lsn: parse_optional(DURING, &answer, "restart_lsn")?,
            restart_timeline: timeline.and_then(TimelineId::new),
        }))
    }

    /// What the server knows of a slot; `None` if there is no such slot. Needs a connection in [`Mode::Sql`](super::Mode::Sql).
    ///
    /// # Errors
    /// As [`Connection::simple_query`]. `InvalidName`.
    pub async fn slot_status(&mut self, name: &str) -> Result<Option<SlotStatus>> {
        const DURING: &str = "read pg_replication_slots";
        // invalidation_reason exists from 17 on; through JSON one query fits all majors. The name holds nothing to escape.
        let query = format!(
            "SELECT slot_type, active, active_pid, restart_lsn, wal_status, safe_wal_size, \
             pg_catalog.to_jsonb(s)->>'invalidation_reason' AS invalidation_reason \
             FROM pg_catalog.pg_replication_slots s WHERE slot_name = '{}'",
            SlotName::new(name)?.0
        );
        let answer = self.query_named(DURING, &query).await?;
        if answer.rows.is_empty() {
            return Ok(None);
        }
        let wal_status = answer.text(0, "wal_status").map(|word| match word {
            "reserved" => WalStatus::Reserved,
            "extended" => WalStatus::Extended,
            "unreserved" => WalStatus::Unreserved,
            "lost" => WalStatus::Lost,
            other => WalStatus::Other(other.to_owned()),
        });
        Ok(Some(SlotStatus {
            is_physical: answer.text(0, "slot_type") == Some("physical"),
            is_active: answer.text(0, "active") == Some("t"),
            active_pid: parse_optional(DURING, &answer, "active_pid")?,
            restart_lsn: parse_optional(DURING, &answer, "restart_lsn")?,
            wal_status,
            safe_wal_size: parse_optional(DURING, &answer, "safe_wal_size")?,
            invalidation_reason: answer.text(0, "invalidation_reason").map(str::to_owned),
        }))
    }

    /// The history file of a timeline later than 1.
    ///
    /// # Errors
    /// `Server`: `FileMissing` if the server does not have it.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<HistoryFile> {
        const DURING: &str = "TIMELINE_HISTORY";
        let command = format!("{DURING} {}", timeline.get());
        let mut answer = self.query_named(DURING, &command).await?;
        let name = required(DURING, "filename", answer.text(0, "filename"))?.to_owned();
        let column = answer.columns.iter().position(|name| name == "content");
        let content = column
            .zip(answer.rows.first_mut())
            .and_then(|(column, row)| row.get_mut(column)?.take());
        Ok(HistoryFile {
            name,
            content: required(DURING, "content", content)?,
        })
    }
}

/// A column of the first row that must hold a value.
fn parse_column<T: FromStr>(during: &str, answer: &QueryResult, column: &str) -> Result<T> {
    let value = answer.text(0, column).and_then(|text| text.parse().ok());
    required(during, column, value)
}

/// A column of the first row that may be NULL, but not nonsense.
fn parse_optional<T: FromStr>(
    during: &str,
    answer: &QueryResult,
    column: &str,
) -> Result<Option<T>> {
    let Some(text) = answer.text(0, column) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(protocol(during, format!("{column} is {text:?}"))),
    }
}

fn parse_timeline(during: &str, answer: &QueryResult, column: &str) -> Result<TimelineId> {
    let timeline = TimelineId::new(parse_column(during, answer, column)?);
    required(during, column, timeline)
}

/// `16MB`, `1GB`, `1024kB`: a size as SHOW prints it, in bytes.
fn parse_size(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(end)?;
    let factor: u32 = match unit {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_show_prints_them() {
        let check = |text: &str, bytes: Option<u32>| assert_eq!(parse_size(text), bytes, "{text}");
        check("1MB", Some(1 << 20));
        check("16MB", Some(16 << 20));
        check("1GB", Some(1 << 30));
        check("1024kB", Some(1 << 20));
        check("8GB", None);
        check("16", None);
        check("MB", None);
        check("1TB", None);
    }

    #[test]
    fn slot_names_are_those_of_postgres_and_nothing_can_be_injected() {
        assert_eq!(quote_slot(SlotName("walden_1")).to_string(), "\"walden_1\"");
        assert!(SlotName::new(&"a".repeat(63)).is_ok());
        for name in ["", "A", "a b", "a\"b", "a-b", "é", "a'b", &"a".repeat(64)] {
            assert!(SlotName::new(name).is_err(), "{name}");
        }
    }
}
