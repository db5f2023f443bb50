//! What `pg_waldump` and `pg_controldata` say, as text: so every difference to what the crate says (`describe.rs`) shows.

use crate::describe::{block_text, check_kind, comparable, describe, is_read};
use crate::server::Server;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use wal_format::{Lsn, Record, RecordBody, Timestamp, record_kind_name, resource_manager_name};

/// One record as `pg_waldump` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) lsn: Lsn,
    pub(crate) previous: Lsn,
    /// Without page images, and with them.
    pub(crate) lengths: (u32, u32),
    pub(crate) xid: u32,
    pub(crate) manager: String,
    /// The kind.
    pub(crate) name: String,
    /// What the record did, of the kinds that the crate reads.
    pub(crate) text: Option<String>,
    pub(crate) blocks: Vec<String>,
}

/// Runs `pg_waldump` from `start` on; gives its records and its last words.
pub(crate) fn waldump(
    server: &Server,
    folder: &Path,
    timeline: u32,
    start: Lsn,
) -> (Vec<Line>, String) {
    let timeline = timeline.to_string();
    let start = start.to_string();
    let place = ["-t", &timeline, "-s", &start, "-p"].map(OsStr::new);
    lines_of(server, &[&place[..], &[folder.as_os_str()]].concat())
}

/// Runs `pg_waldump` on one file from its beginning.
pub(crate) fn waldump_file(server: &Server, file: &Path) -> (Vec<Line>, String) {
    lines_of(server, &[file.as_os_str()])
}

fn lines_of(server: &Server, arguments: &[&OsStr]) -> (Vec<Line>, String) {
    let mut command = Command::new(server.bin("pg_waldump"));
    command.env("TZ", "UTC").env("LC_ALL", "C").arg("-b");
    command.args(arguments);
    let (_, stdout, stderr) = server.output(command);
    let mut lines: Vec<Line> = Vec::new();
    for text in stdout.lines() {
        if text.starts_with("rmgr:") {
            lines.push(parse_line(text));
        } else if let (Some(block), Some(line)) = (text.strip_prefix('\t'), lines.last_mut()) {
            line.blocks.push(block.to_owned());
        }
    }
    (lines, stderr)
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
    let (name, text) = description.split_once(' ').unwrap_or((description, ""));
    let (record, total) = field("(rec/tot):", ",").split_once('/').expect("lengths");
    let number = |text: &str| text.trim().parse().expect("length");
    Line {
        lsn: field("lsn: ", ",").parse().expect("lsn"),
        previous: field("prev ", ",").parse().expect("prev"),
        lengths: (number(record), number(total)),
        xid: field("tx: ", ",").parse().expect("tx"),
        text: is_read(&manager, name).then(|| comparable(name, text)),
        name: name.to_owned(),
        manager,
        blocks: Vec::new(),
    }
}

/// A record as the same kind of line.
pub(crate) fn line_of(record: &Record, body: &RecordBody<'_>) -> Line {
    let header = &record.header;
    let parts = body
        .parse()
        .unwrap_or_else(|error| panic!("{record:?}: {error}"));
    let manager = resource_manager_name(header.resource_manager).expect("built-in");
    let name = record_kind_name(header.resource_manager, header.info, body.major());
    let name = name.unwrap_or("UNKNOWN");
    let images = parts.blocks().filter_map(|block| block.image);
    let images: u32 = images.map(|image| u32::from(image.length)).sum();
    let action = parts
        .action()
        .unwrap_or_else(|error| panic!("{record:?}: {error}"));
    check_kind(record.kind.as_ref(), &action);
    let text = is_read(manager, name).then(|| {
        comparable(
            name,
            &describe(&action, parts.origin().unwrap_or(0), body.major()),
        )
    });
    Line {
        lsn: record.start,
        previous: header.previous,
        lengths: (header.total_length - images, header.total_length),
        xid: header.xid.0,
        manager: manager.to_owned(),
        name: name.to_owned(),
        text,
        blocks: parts
            .blocks()
            .map(|block| block_text(&block, body.major()))
            .collect(),
    }
}

/// A moment as `pg_waldump` prints it under `TZ=UTC`.
pub(crate) fn text_of(time: Timestamp) -> String {
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
