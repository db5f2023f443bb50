//! What `pg_waldump` and `pg_controldata` say, and the same of what the crate says, as text: so every difference shows.

use crate::server::Server;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use wal_format::{Checkpoint, Lsn, Record, RecordKind, Timestamp, resource_manager_name};

/// One line of `pg_waldump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) lsn: Lsn,
    pub(crate) previous: Lsn,
    pub(crate) length: u32,
    pub(crate) xid: u32,
    pub(crate) manager: String,
    /// What the record means, for the kinds that the crate reads.
    pub(crate) kind: Option<String>,
}

/// The names of the kinds that the crate reads.
const KINDS: [&str; 14] = [
    "COMMIT",
    "ABORT",
    "COMMIT_PREPARED",
    "ABORT_PREPARED",
    "PREPARE",
    "RESTORE_POINT",
    "CHECKPOINT_ONLINE",
    "CHECKPOINT_SHUTDOWN",
    "SWITCH",
    "BACKUP_END",
    "END_OF_RECOVERY",
    "PARAMETER_CHANGE",
    "OVERWRITE_CONTRECORD",
    "",
];

/// Runs `pg_waldump` from `start` on; gives its records and its last words.
pub(crate) fn waldump(
    server: &Server,
    folder: &Path,
    timeline: u32,
    start: Lsn,
) -> (Vec<Line>, String) {
    let mut command = Command::new(server.bin("pg_waldump"));
    command
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .arg("-p")
        .arg(folder);
    command.args(["-t", &timeline.to_string(), "-s", &start.to_string()]);
    let (_, stdout, stderr) = server.output(command);
    (
        stdout
            .lines()
            .filter(|line| line.starts_with("rmgr:"))
            .map(parse_line)
            .collect(),
        stderr,
    )
}

/// Runs `pg_waldump` on one file from its beginning.
pub(crate) fn waldump_file(server: &Server, file: &Path) -> (Vec<Line>, String) {
    let mut command = Command::new(server.bin("pg_waldump"));
    command.env("TZ", "UTC").env("LC_ALL", "C").arg(file);
    let (_, stdout, stderr) = server.output(command);
    (
        stdout
            .lines()
            .filter(|line| line.starts_with("rmgr:"))
            .map(parse_line)
            .collect(),
        stderr,
    )
}

fn parse_line(line: &str) -> Line {
    let field = |from: &str, to: &str| -> &str {
        let at = line
            .find(from)
            .unwrap_or_else(|| panic!("no {from:?} in {line}"))
            + from.len();
        let end = line[at..]
            .find(to)
            .unwrap_or_else(|| panic!("no {to:?} in {line}"))
            + at;
        line[at..end].trim()
    };
    let manager = field("rmgr: ", "len").to_owned();
    let description = line.split_once(", desc: ").expect("desc").1;
    let name = description.split(' ').next().expect("name");
    let ours = matches!(manager.as_str(), "XLOG" | "Transaction") && KINDS.contains(&name);
    Line {
        lsn: field("lsn: ", ",").parse().expect("lsn"),
        previous: field("prev ", ",").parse().expect("prev"),
        length: field("(rec/tot):", ",")
            .split_once('/')
            .expect("two lengths")
            .1
            .trim()
            .parse()
            .expect("length"),
        xid: field("tx: ", ",").parse().expect("tx"),
        kind: ours.then(|| shorten(name, description)),
        manager,
    }
}

/// Leaves out of a description what the crate does not read.
fn shorten(name: &str, description: &str) -> String {
    match name {
        // Lists of subtransactions, dropped files and invalidations follow the time.
        "COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED" | "PREPARE" => {
            let end = description.find(" UTC").expect("time") + 4;
            description[..end].to_owned()
        }
        "END_OF_RECOVERY" => description
            .split("; wal_level")
            .next()
            .expect("text")
            .to_owned(),
        _ => description.trim_end().to_owned(),
    }
}

/// A record as the same kind of line.
pub(crate) fn line_of(record: &Record) -> Line {
    let header = record.header;
    Line {
        lsn: record.start,
        previous: header.previous,
        length: header.total_length,
        xid: header.xid.0,
        manager: resource_manager_name(header.resource_manager)
            .expect("built-in")
            .to_owned(),
        kind: record.kind.as_ref().map(describe),
    }
}

fn describe(kind: &RecordKind) -> String {
    match kind {
        RecordKind::Commit { time, .. } => format!("COMMIT {}", text_of(*time)),
        RecordKind::Abort { time, .. } => format!("ABORT {}", text_of(*time)),
        RecordKind::CommitPrepared { xid, time, .. } => {
            format!("COMMIT_PREPARED {xid}: {}", text_of(*time))
        }
        RecordKind::AbortPrepared { xid, time, .. } => {
            format!("ABORT_PREPARED {xid}: {}", text_of(*time))
        }
        RecordKind::Prepare { time, gid, .. } => format!("PREPARE gid {gid}: {}", text_of(*time)),
        RecordKind::RestorePoint { name, .. } => format!("RESTORE_POINT {name}"),
        RecordKind::CheckpointOnline(checkpoint) => {
            format!("CHECKPOINT_ONLINE {}; online", checkpoint_text(checkpoint))
        }
        RecordKind::CheckpointShutdown(checkpoint) => {
            format!(
                "CHECKPOINT_SHUTDOWN {}; shutdown",
                checkpoint_text(checkpoint)
            )
        }
        RecordKind::Switch => "SWITCH".to_owned(),
        RecordKind::BackupEnd { start } => format!("BACKUP_END {start}"),
        RecordKind::EndOfRecovery {
            time,
            timeline,
            previous_timeline,
        } => {
            format!(
                "END_OF_RECOVERY tli {timeline}; prev tli {previous_timeline}; time {}",
                text_of(*time)
            )
        }
        RecordKind::ParameterChange(p) => format!(
            "PARAMETER_CHANGE max_connections={} max_worker_processes={} max_wal_senders={} max_prepared_xacts={} \
             max_locks_per_xact={} wal_level={} wal_log_hints={} track_commit_timestamp={}",
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction,
            p.wal_level,
            on_off(p.wal_log_hints),
            on_off(p.track_commit_timestamp),
        ),
        RecordKind::OverwriteContrecord { overwritten, time } => {
            format!(
                "OVERWRITE_CONTRECORD lsn {overwritten}; time {}",
                text_of(*time)
            )
        }
        other => format!("{other:?}"),
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn checkpoint_text(c: &Checkpoint) -> String {
    let wal_level = c
        .wal_level
        .map(|level| format!(" wal_level {level};"))
        .unwrap_or_default();
    format!(
        "redo {}; tli {}; prev tli {}; fpw {};{wal_level} xid {}:{}; oid {}; multi {}; offset {}; oldest xid {} in DB {}; \
         oldest multi {} in DB {}; oldest/newest commit timestamp xid: {}/{}; oldest running xid {}",
        c.redo,
        c.timeline,
        c.previous_timeline,
        c.full_page_writes,
        c.next_full_xid >> 32,
        c.next_full_xid & 0xFFFF_FFFF,
        c.next_oid,
        c.next_multixact,
        c.next_multixact_offset,
        c.oldest_xid,
        c.oldest_xid_database,
        c.oldest_multixact,
        c.oldest_multixact_database,
        c.oldest_commit_timestamp_xid,
        c.newest_commit_timestamp_xid,
        c.oldest_active_xid,
    )
}

/// A moment as `pg_waldump` prints it under `TZ=UTC`.
fn text_of(time: Timestamp) -> String {
    let micros = time.unix_micros();
    format!(
        "{}.{:06} UTC",
        civil(micros.div_euclid(1_000_000)),
        micros.rem_euclid(1_000_000)
    )
}

/// Seconds since 1970 as a date and time.
pub(crate) fn civil(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let mut year = 1970;
    let mut left = days;
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    while left >= if is_leap(year) { 366 } else { 365 } {
        left -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    let mut month = 0;
    let lengths = [
        31,
        if is_leap(year) { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{:02}-{:02} {hour:02}:{minute:02}:{:02}",
        month + 1,
        left + 1,
        second % 60
    )
}

/// What `pg_controldata` prints.
pub(crate) fn controldata(server: &Server) -> BTreeMap<String, String> {
    let mut command = Command::new(server.bin("pg_controldata"));
    command
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .arg(server.data());
    let text = server.run(command);
    let pair = |line: &str| {
        line.split_once(':')
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(pair).collect()
}
