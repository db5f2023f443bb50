//! What PostgreSQL's own `pg_waldump` says about a stretch of WAL: where transactions end, when, and how, and the
//! restore points. The oracle builds on this, never on Walden's decoder.

use super::postgres::{Server, tool_command};
use super::process;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// WAL pages have 8 KiB in every build that the tests use.
const PAGE: u64 = 8192;
const DEADLINE: Duration = Duration::from_secs(300);

/// A WAL position as PostgreSQL prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let parsed = text.trim().split_once('/').and_then(|(high, low)| {
            let high = u64::from_str_radix(high, 16).ok()?;
            Some(Self(
                high << 32 | u64::from(u32::from_str_radix(low, 16).ok()?),
            ))
        });
        parsed.unwrap_or_else(|| panic!("{text:?} is no LSN"))
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A commit or an abort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransactionEnd {
    pub(crate) xid: u32,
    pub(crate) committed: bool,
    pub(crate) time: Timestamp,
    /// Where the record starts.
    pub(crate) start: Lsn,
    /// The byte after it, rounded up as PostgreSQL does: where the next record may start.
    pub(crate) end: Lsn,
}

/// Where recovery is told to stop.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Target {
    Latest,
    Time {
        time: Timestamp,
        inclusive: bool,
    },
    Lsn {
        lsn: Lsn,
        inclusive: bool,
    },
    Xid {
        xid: u32,
        inclusive: bool,
    },
    /// A restore point.
    Name(String),
}

/// A stretch of WAL, in its order.
#[derive(Debug, Clone)]
pub(crate) struct WalDump {
    pub(crate) ends: Vec<TransactionEnd>,
    /// Name and start of the record.
    pub(crate) restore_points: Vec<(String, Lsn)>,
    /// Where the records begin with which base backups become consistent.
    pub(crate) backup_ends: Vec<Lsn>,
    stretches: Vec<Stretch>,
}

#[derive(Debug, Clone)]
struct Stretch {
    major: u32,
    directory: PathBuf,
    timeline: u32,
    from: Lsn,
    to: Lsn,
}

impl WalDump {
    /// The WAL of a running primary on its current timeline, from `from` to what it has flushed.
    #[track_caller]
    pub(crate) fn of_server(server: &Server, from: Lsn) -> Self {
        let now = server.psql(
            "select pg_current_wal_flush_lsn(), ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int",
        );
        let (to, timeline) = now.split_once('|').expect("two columns");
        let timeline = timeline.parse().expect("a timeline is a number");
        Self::read(
            server.major(),
            &server.wal_directory(),
            timeline,
            from,
            Lsn::parse(to),
        )
    }

    /// The records that start in `[from, to)` of a timeline, from the segment files in `directory`.
    #[track_caller]
    pub(crate) fn read(major: u32, directory: &Path, timeline: u32, from: Lsn, to: Lsn) -> Self {
        let stretch = Stretch {
            major,
            directory: directory.to_owned(),
            timeline,
            from,
            to,
        };
        let segment = segment_size(directory);
        let mut ends = Vec::new();
        for line in stretch.dump(&["-r", "Transaction"]).lines() {
            ends.extend(parse_end(line, segment));
        }
        let (mut restore_points, mut backup_ends) = (Vec::new(), Vec::new());
        for line in stretch.dump(&["-r", "XLOG"]).lines() {
            if line.contains("desc: BACKUP_END ") {
                backup_ends.push(start_of(line).expect("a record has an LSN"));
            }
            if let Some((_, name)) = line.split_once("desc: RESTORE_POINT ") {
                restore_points.push((
                    name.to_owned(),
                    start_of(line).expect("a record has an LSN"),
                ));
            }
        }
        Self {
            ends,
            restore_points,
            backup_ends,
            stretches: vec![stretch],
        }
    }

    /// This stretch, then `next`, which continues it on a later timeline from where it begins.
    #[track_caller]
    pub(crate) fn then(mut self, next: Self) -> Self {
        let fork = next.stretches.first().expect("a dump has a stretch").from;
        self.ends.retain(|end| end.start < fork);
        self.restore_points.retain(|(_, lsn)| *lsn < fork);
        self.backup_ends.retain(|lsn| *lsn < fork);
        for stretch in &mut self.stretches {
            stretch.to = stretch.to.min(fork);
        }
        self.ends.extend(next.ends);
        self.restore_points.extend(next.restore_points);
        self.backup_ends.extend(next.backup_ends);
        self.stretches.extend(next.stretches);
        self
    }

    /// How a transaction ended, if it did here.
    pub(crate) fn end_of(&self, xid: u32) -> Option<&TransactionEnd> {
        self.ends.iter().find(|end| end.xid == xid)
    }

    /// The transactions that are committed once PostgreSQL has recovered to `target` and stopped there, after its own
    /// rules (`recoveryStopsBefore`, `recoveryStopsAfter` in xlogrecovery.c).
    #[track_caller]
    pub(crate) fn committed_at(&self, target: &Target) -> BTreeSet<u32> {
        let before = |bound: Lsn| self.ends.iter().take_while(move |end| end.start < bound);
        let everything = Lsn(u64::MAX);
        let applied: Vec<&TransactionEnd> = match target {
            Target::Latest => before(everything).collect(),
            // The first commit or abort beyond the time stops recovery, whatever comes after it.
            Target::Time {
                time,
                inclusive: true,
            } => self
                .ends
                .iter()
                .take_while(|end| end.time <= *time)
                .collect(),
            Target::Time {
                time,
                inclusive: false,
            } => self
                .ends
                .iter()
                .take_while(|end| end.time < *time)
                .collect(),
            Target::Lsn {
                lsn,
                inclusive: false,
            } => before(*lsn).collect(),
            // The first record of any kind at or after the LSN is still applied.
            Target::Lsn {
                lsn,
                inclusive: true,
            } => {
                let last = self.first_record_at(*lsn);
                before(Lsn(last.0 + 1)).collect()
            }
            Target::Xid { xid, inclusive } => {
                let end = self
                    .end_of(*xid)
                    .unwrap_or_else(|| panic!("{xid} does not end here"));
                before(if *inclusive { end.end } else { end.start }).collect()
            }
            Target::Name(name) => {
                let point = self.restore_points.iter().find(|(known, _)| known == name);
                before(
                    point
                        .unwrap_or_else(|| panic!("no restore point {name:?}"))
                        .1,
                )
                .collect()
            }
        };
        applied
            .into_iter()
            .filter(|end| end.committed)
            .map(|end| end.xid)
            .collect()
    }

    /// Start of the first record at or after `lsn`.
    #[track_caller]
    pub(crate) fn first_record_at(&self, lsn: Lsn) -> Lsn {
        let stretch = self
            .stretches
            .iter()
            .find(|stretch| stretch.from <= lsn && lsn < stretch.to);
        let stretch = stretch.unwrap_or_else(|| panic!("{lsn} is not within the dump"));
        let from = Stretch {
            from: lsn,
            ..stretch.clone()
        };
        let dump = from.dump(&["-n", "1"]);
        let start = dump.lines().find_map(start_of);
        start.unwrap_or_else(|| panic!("no record follows {lsn}:\n{dump}"))
    }
}

impl Stretch {
    #[track_caller]
    fn dump(&self, arguments: &[&str]) -> String {
        let mut program = tool_command(self.major, "pg_waldump");
        program
            .arg("-p")
            .arg(&self.directory)
            .arg("-t")
            .arg(self.timeline.to_string());
        program
            .arg("-s")
            .arg(self.from.to_string())
            .arg("-e")
            .arg(self.to.to_string());
        program.args(arguments);
        process::run(program, DEADLINE).expect_success().stdout
    }
}

/// Size of the segment files in `directory`.
fn segment_size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).expect("read a folder of WAL segments");
    let segment = entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().len() == 24);
    segment
        .expect("the folder holds a segment")
        .metadata()
        .expect("a segment's size")
        .len()
}

/// The start of the record that a line of `pg_waldump` describes.
fn start_of(line: &str) -> Option<Lsn> {
    Some(Lsn::parse(field(line, "lsn: ")?))
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    Some(line.split_once(name)?.1.split(',').next()?.trim())
}

/// `None` for lines that end no transaction.
#[track_caller]
fn parse_end(line: &str, segment: u64) -> Option<TransactionEnd> {
    let (_, description) = line.split_once("desc: ")?;
    let (kind, rest) = description.split_once(' ')?;
    let (committed, prepared) = match kind {
        "COMMIT" => (true, false),
        "ABORT" => (false, false),
        "COMMIT_PREPARED" => (true, true),
        "ABORT_PREPARED" => (false, true),
        _ => return None,
    };
    let (xid, time) = if prepared {
        rest.split_once(": ")
            .expect("a prepared transaction is named")
    } else {
        (field(line, "tx:").expect("a record has an xid"), rest)
    };
    let time = time.split(" UTC").next().expect("a split has a first part");
    let time = format!("{}Z", time.replace(' ', "T"));
    let (_, length) = line.split_once("len (rec/tot):")?;
    let length = length.split_once('/')?.1.split(',').next()?.trim();
    let start = start_of(line)?;
    Some(TransactionEnd {
        xid: xid.parse().unwrap_or_else(|_| panic!("no xid in {line}")),
        committed,
        time: time
            .parse()
            .unwrap_or_else(|error| panic!("no time in {line}: {error}")),
        start,
        end: end_of_record(
            start,
            length.parse().expect("a length is a number"),
            segment,
        ),
    })
}

/// Where a record of `length` bytes ends that starts at `start`: each page it enters begins with a header, of 40 bytes
/// on the first page of a segment and 24 elsewhere; records are aligned to 8 bytes.
fn end_of_record(start: Lsn, length: u64, segment: u64) -> Lsn {
    let mut place = start.0;
    let mut left = length;
    loop {
        let room = PAGE - place % PAGE;
        if left <= room {
            return Lsn((place + left).next_multiple_of(8));
        }
        left -= room;
        place += room;
        place += if place.is_multiple_of(segment) {
            40
        } else {
            24
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(line: &str) -> TransactionEnd {
        parse_end(line, 16 << 20).expect("the line ends a transaction")
    }

    #[test]
    fn reads_the_lines_that_end_transactions() {
        let commit = end(
            "rmgr: Transaction len (rec/tot):     34/    34, tx:        735, lsn: 0/01555A50, prev 0/01555A18, \
             desc: COMMIT 2026-11-22 11:40:00.123456 UTC",
        );
        assert_eq!((commit.xid, commit.committed), (735, true));
        assert_eq!(commit.time.to_string(), "2026-11-22T11:40:00.123456Z");
        assert_eq!(
            (commit.start, commit.end),
            (Lsn(0x155_5A50), Lsn(0x155_5A78))
        );

        let prepared = end(
            "rmgr: Transaction len (rec/tot):     46/    46, tx:          0, lsn: 1/01555A50, prev 1/01555A18, \
             desc: ABORT_PREPARED 740: 2026-11-22 11:40:00.5 UTC",
        );
        assert_eq!((prepared.xid, prepared.committed), (740, false));
        assert_eq!(prepared.start.to_string(), "1/1555A50");
    }

    #[test]
    fn a_record_is_longer_by_the_headers_of_the_pages_it_enters() {
        let check = |start: u64, length, end: u64| {
            assert_eq!(
                end_of_record(Lsn(start), length, 1 << 20),
                Lsn(end),
                "{start:X} + {length}"
            );
        };
        check(0x10_0028, 34, 0x10_0050);
        check(0x10_1FF0, 16, 0x10_2000);
        check(0x10_1FF0, 17, 0x10_2020);
        check(0x1F_FFF8, 16, 0x20_0030);
        check(0x10_1FF0, 16 + 8168 + 8, 0x10_4020);
    }
}
