//! The crate against PostgreSQL's own tools, on WAL that real servers of each major wrote: `pg_waldump` record by record both ways,
//! `pg_waldump`'s verdict on damaged segments, `pg_controldata` field by field.
//!
//! Servers are looked for in `$WALDEN_TEST_PG_DIR/<major>/bin`; a major that is not there prints `NOT RUN`.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod describe;
mod server;
mod waldump;
mod workload;

use server::Server;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use wal_format::{
    BackupHistory, BackupLabel, ControlFile, Decoded, DecoderConfig, Lsn, Major, SegmentName,
    SegmentScanner, SegmentSize, SegmentSummary, Step, TimelineHistory, TimelineId, WalDecoder,
    WalFileName, resource_manager_name, summarise_segment,
};
use waldump::{Line, civil, controldata, line_of, waldump, waldump_file};

#[test]
fn postgresql_14_short() {
    check_major(14, 1, false);
}

#[test]
fn postgresql_15_with_segments_of_1_mib() {
    check_major(15, 1, true);
}

#[test]
fn postgresql_15_with_segments_of_16_mib() {
    check_major(15, 16, false);
}

#[test]
fn postgresql_16_short() {
    check_major(16, 1, false);
}

#[test]
fn postgresql_17_short() {
    check_major(17, 1, false);
}

#[test]
fn postgresql_18_with_segments_of_1_mib() {
    check_major(18, 1, true);
}

#[test]
fn postgresql_18_with_segments_of_16_mib() {
    check_major(18, 16, false);
}

/// Prints a line that the test harness does not swallow.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("stderr");
}

fn check_major(major: u32, segment_mib: u32, whole: bool) {
    let bin = match server::binaries(major) {
        Ok(bin) => bin,
        Err(why) => {
            say(&format!("NOT RUN: PostgreSQL {major}: {why}"));
            return;
        }
    };
    let mut server = Server::init(&bin, segment_mib);
    check_control_file(&server, major, "shut down");
    let images = workload::live(&mut server, whole);
    check_control_file(&server, major, "shut down");
    let config = DecoderConfig {
        segment_size: SegmentSize::new(segment_mib << 20).unwrap(),
        system_identifier: Some(control_file(&server).system_identifier),
        major: Major::from_number(major),
    };
    let mut seen = Seen::default();
    for timeline in [1, 2] {
        let segments = segments_of(&server.data().join("pg_wal"), timeline, config.segment_size);
        for line in check_timeline(&server, config, timeline, &segments) {
            seen.note(&line);
        }
        check_damage(&server, config, &segments, if whole { 8 } else { 3 });
    }
    check_history(&server);
    check_backup_label(&server);
    say(&format!(
        "PostgreSQL {major}, segments of {segment_mib} MiB: {} records and {} block references compared, all agree; by manager {:?}; \
         page images {:?}",
        seen.records, seen.blocks, seen.managers, seen.images
    ));
    for kind in workload::KINDS {
        assert!(seen.kinds.contains(*kind), "the workload made no {kind}");
    }
    if whole {
        for id in 0..=21 {
            let name = resource_manager_name(id).unwrap();
            let count = seen.managers.get(name).copied().unwrap_or(0);
            assert!(count >= 20, "the workload made {count} records of {name}");
        }
        for kind in workload::KINDS_OF_THE_WHOLE {
            assert!(seen.kinds.contains(*kind), "the workload made no {kind}");
        }
        for image in ["pglz", "lz4", "zstd"]
            .iter()
            .filter(|image| !images.contains(image))
        {
            say(&format!(
                "NOT COMPARED: this PostgreSQL {major} was built without {image}"
            ));
        }
        for image in &images {
            let count = seen.images.get(*image).copied().unwrap_or(0);
            assert!(count >= 20, "the workload made {count} images: {image}");
        }
    }
}

/// What the lines were.
#[derive(Default)]
struct Seen {
    records: usize,
    blocks: usize,
    managers: BTreeMap<String, usize>,
    kinds: BTreeSet<String>,
    /// How page images were stored.
    images: BTreeMap<&'static str, usize>,
}

impl Seen {
    fn note(&mut self, line: &Line) {
        self.records += 1;
        self.blocks += line.blocks.len();
        *self.managers.entry(line.manager.clone()).or_insert(0) += 1;
        let kind = format!("{} {}", line.manager, line.name);
        self.kinds.insert(kind);
        for image in ["plain", "pglz", "lz4", "zstd", "for WAL verification"] {
            let is = |block: &&String| match image {
                "plain" => block.contains("(FPW") && !block.contains("saved"),
                _ => {
                    block.ends_with(image)
                        || block.contains("verification") && image.contains("verification")
                }
            };
            let count = line.blocks.iter().filter(is).count();
            *self.images.entry(image).or_insert(0) += count;
        }
    }
}

/// The segments of a timeline that follow each other, with their starts.
fn segments_of(folder: &Path, timeline: u32, size: SegmentSize) -> Vec<(Lsn, PathBuf)> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Ok(WalFileName::Segment(name)) = name.parse()
            && name.timeline.get() == timeline
        {
            segments.push((name.start(size).unwrap(), path));
        }
    }
    segments.sort();
    let bytes = u64::from(size.bytes());
    for pair in segments.windows(2) {
        assert_eq!(
            pair[0].0.checked_add(bytes),
            Some(pair[1].0),
            "segments are missing"
        );
    }
    segments
}

/// Reads a timeline's segments as one stream and each alone, and compares both with `pg_waldump`. Gives its lines.
fn check_timeline(
    server: &Server,
    config: DecoderConfig,
    timeline: u32,
    segments: &[(Lsn, PathBuf)],
) -> Vec<Line> {
    let start = segments.first().unwrap().0;
    let (theirs, verdict) = waldump(server, &server.data().join("pg_wal"), timeline, start);
    let mut scanner = SegmentScanner::new(config, start).unwrap();
    let mut decoder = WalDecoder::new(config, start).unwrap();
    let mut ours = Vec::new();
    let mut stopped = None;
    let mut summaries = Vec::new();
    for (segment_start, path) in segments {
        let bytes = fs::read(path).unwrap();
        // Pieces as they come from a server, of no particular size.
        for piece in bytes.chunks(100_003) {
            scanner.push(piece, |_| {});
            decoder.push_records(piece, |decoded| match decoded {
                _ if stopped.is_some() => {}
                Decoded::Record(record, Some(body)) => ours.push(line_of(record, body)),
                Decoded::Other(step @ (Step::EndOfWal { .. } | Step::Invalid { .. })) => {
                    stopped = Some(step);
                }
                _ => {}
            });
        }
        let streamed = scanner.finish_segment().unwrap();
        let alone = summarise_segment(config, *segment_start, &bytes).unwrap();
        if stopped.is_none() {
            check_same(&streamed, &alone);
            summaries.push(alone);
        }
    }
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(
        ours.len(),
        theirs.len(),
        "timeline {timeline}: {verdict}\n{stopped:?}\n{:?}",
        theirs.last()
    );
    assert!(
        ours.len() > 20,
        "timeline {timeline}: too few records to tell"
    );
    check_summaries(&summaries, &theirs);
    theirs
}

/// A segment alone and the same in its stream: only a record that began before may make a difference.
fn check_same(streamed: &SegmentSummary, alone: &SegmentSummary) {
    let mut alone = alone.clone();
    if alone.transactions.incomplete {
        assert!(streamed.transactions.count - alone.transactions.count <= 1);
        alone.transactions = streamed.transactions;
    }
    assert_eq!(*streamed, alone);
}

/// The summaries of the segments before the one in which WAL ends, against the lines.
fn check_summaries(summaries: &[SegmentSummary], lines: &[Line]) {
    // Aborted records are in no line of their own; the records that replace them name them.
    let overwritten = |line: &Line| {
        let text = line.text.as_ref()?.strip_prefix("lsn ")?;
        text.split(';').next()?.parse::<Lsn>().ok()
    };
    let aborted: Vec<Lsn> = lines.iter().filter_map(overwritten).collect();
    let mut before = None;
    for summary in summaries {
        assert!(summary.is_complete(), "{summary:?}");
        let inside = |line: &&Line| line.lsn >= summary.start_lsn && line.lsn < summary.end_lsn;
        let is_aborted = |lsn: Option<Lsn>| lsn.is_some_and(|lsn| aborted.contains(&lsn));
        if !is_aborted(summary.first_record) {
            assert_eq!(
                summary.first_record,
                lines.iter().find(inside).map(|line| line.lsn)
            );
        }
        if !is_aborted(summary.last_record) {
            assert_eq!(
                summary.last_record,
                lines.iter().rfind(inside).map(|line| line.lsn)
            );
        }
        // The rule by which segments chain.
        if let (Some(before), Some(_), Some(link)) =
            (before, summary.first_record, summary.first_record_prev)
        {
            assert!(
                link == before || summary.first_record_overwrites == Some(before),
                "{before} {summary:?}"
            );
        }
        before = summary.last_record.or(before);
    }
}

/// Flips a byte in copies of segments: both must stop at the same record.
fn check_damage(
    server: &Server,
    config: DecoderConfig,
    segments: &[(Lsn, PathBuf)],
    copies: usize,
) {
    let folder = server.scratch().join("damaged");
    fs::create_dir_all(&folder).unwrap();
    let mut told = 0;
    for copy in 0..copies {
        let (start, path) = &segments[copy * (segments.len() - 1) / copies];
        let mut bytes = fs::read(path).unwrap();
        let at = (copy * 7919 + 4321) * 641 % (bytes.len() / 2) + 8192;
        bytes[at] ^= 1 << (copy % 8);
        let copied = folder.join(path.file_name().unwrap());
        fs::write(&copied, &bytes).unwrap();
        let (theirs, verdict) = waldump_file(server, &copied);
        fs::remove_file(&copied).unwrap();
        let mut scanner = SegmentScanner::new(config, *start).unwrap();
        scanner.push(&bytes, |_| {});
        let mut ours = Vec::new();
        let mut decoder = WalDecoder::new(config, *start).unwrap();
        decoder.push_records(&bytes, |decoded| {
            if let Decoded::Record(record, Some(body)) = decoded {
                ours.push(line_of(record, body));
            }
        });
        assert_eq!(
            ours.len(),
            theirs.len(),
            "{} byte {at}: {verdict}",
            path.display()
        );
        assert_eq!(ours.last(), theirs.last());
        let summary = scanner.summary();
        if let Some((lsn, reason)) = summary.invalid_at {
            told += 1;
            assert!(!summary.is_complete());
            let crc = verdict.contains("incorrect resource manager data checksum");
            let ours = matches!(reason, wal_format::InvalidReason::Crc { .. });
            // Of the first record it only says that it found none.
            let first = theirs.is_empty() && verdict.contains("could not find a valid record");
            assert!(crc == ours || first, "{verdict} {reason}");
            let place = format!("{lsn}");
            assert!(!crc || verdict.contains(&place), "{verdict} {place}");
        }
    }
    if segments.len() > 3 {
        assert!(told > 0, "no damage was found");
    }
}

fn control_file(server: &Server) -> ControlFile {
    ControlFile::parse(&fs::read(server.data().join("global/pg_control")).unwrap()).unwrap()
}

fn check_control_file(server: &Server, major: u32, state: &str) {
    let ours = control_file(server);
    let theirs = controldata(server);
    assert_eq!(ours.major.number(), major);
    assert_eq!(ours.state.to_string(), state);
    let size = ours.wal_segment_size;
    let checkpoint = &ours.checkpoint;
    let redo_segment = SegmentName::new(checkpoint.timeline, size.segment(checkpoint.redo), size);
    let p = &ours.parameters;
    let on_off = |value: bool| if value { "on" } else { "off" }.to_owned();
    let yes_no = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let xid = format!(
        "{}:{}",
        checkpoint.next_full_xid >> 32,
        checkpoint.next_full_xid & 0xFFFF_FFFF
    );
    let minimum_timeline = ours.minimum_recovery_timeline.map_or(0, TimelineId::get);
    for (key, value) in [
        (
            "pg_control version number",
            ours.control_version.to_string(),
        ),
        ("Catalog version number", ours.catalog_version.to_string()),
        (
            "Database system identifier",
            ours.system_identifier.to_string(),
        ),
        ("Database cluster state", ours.state.to_string()),
        (
            "Latest checkpoint location",
            ours.checkpoint_lsn.to_string(),
        ),
        (
            "Latest checkpoint's REDO location",
            checkpoint.redo.to_string(),
        ),
        (
            "Latest checkpoint's REDO WAL file",
            redo_segment.to_string(),
        ),
        (
            "Latest checkpoint's TimeLineID",
            checkpoint.timeline.to_string(),
        ),
        (
            "Latest checkpoint's PrevTimeLineID",
            checkpoint.previous_timeline.to_string(),
        ),
        (
            "Latest checkpoint's full_page_writes",
            on_off(checkpoint.full_page_writes),
        ),
        ("Latest checkpoint's NextXID", xid),
        (
            "Latest checkpoint's NextOID",
            checkpoint.next_oid.to_string(),
        ),
        (
            "Latest checkpoint's NextMultiXactId",
            checkpoint.next_multixact.to_string(),
        ),
        (
            "Latest checkpoint's NextMultiOffset",
            checkpoint.next_multixact_offset.to_string(),
        ),
        (
            "Latest checkpoint's oldestXID",
            checkpoint.oldest_xid.to_string(),
        ),
        (
            "Latest checkpoint's oldestXID's DB",
            checkpoint.oldest_xid_database.to_string(),
        ),
        (
            "Latest checkpoint's oldestActiveXID",
            checkpoint.oldest_active_xid.to_string(),
        ),
        (
            "Latest checkpoint's oldestMultiXid",
            checkpoint.oldest_multixact.to_string(),
        ),
        (
            "Latest checkpoint's oldestMulti's DB",
            checkpoint.oldest_multixact_database.to_string(),
        ),
        (
            "Latest checkpoint's oldestCommitTsXid",
            checkpoint.oldest_commit_timestamp_xid.to_string(),
        ),
        (
            "Latest checkpoint's newestCommitTsXid",
            checkpoint.newest_commit_timestamp_xid.to_string(),
        ),
        (
            "Minimum recovery ending location",
            ours.minimum_recovery_point.to_string(),
        ),
        (
            "Min recovery ending loc's timeline",
            minimum_timeline.to_string(),
        ),
        ("Backup start location", ours.backup_start.to_string()),
        ("Backup end location", ours.backup_end.to_string()),
        (
            "End-of-backup record required",
            yes_no(ours.backup_end_required),
        ),
        ("wal_level setting", p.wal_level.to_string()),
        ("wal_log_hints setting", on_off(p.wal_log_hints)),
        ("max_connections setting", p.max_connections.to_string()),
        (
            "max_worker_processes setting",
            p.max_worker_processes.to_string(),
        ),
        ("max_wal_senders setting", p.max_wal_senders.to_string()),
        (
            "max_prepared_xacts setting",
            p.max_prepared_transactions.to_string(),
        ),
        (
            "max_locks_per_xact setting",
            p.max_locks_per_transaction.to_string(),
        ),
        (
            "track_commit_timestamp setting",
            on_off(p.track_commit_timestamp),
        ),
        ("Maximum data alignment", ours.maximum_alignment.to_string()),
        ("Database block size", ours.block_bytes.to_string()),
        (
            "Blocks per segment of large relation",
            ours.relation_segment_blocks.to_string(),
        ),
        ("WAL block size", ours.wal_block_bytes.to_string()),
        (
            "Bytes per WAL segment",
            ours.wal_segment_size.bytes().to_string(),
        ),
        (
            "Data page checksum version",
            ours.data_checksum_version.to_string(),
        ),
    ] {
        assert_eq!(theirs.get(key), Some(&value), "{key}");
    }
    let seconds = |time: wal_format::Timestamp| time.unix_micros() / 1_000_000;
    // "Sun Nov 22 11:50:00 2026", the day of the month padded with a blank.
    for (key, time) in [
        ("pg_control last modified", ours.time),
        ("Time of latest checkpoint", checkpoint.time),
    ] {
        let civil = civil(seconds(time));
        let (year, clock) = (&civil[..4], &civil[11..]);
        let day = civil[8..10].parse::<u32>().unwrap().to_string();
        let text = &theirs[key];
        let parts: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            (parts[2], parts[3], parts[4]),
            (day.as_str(), clock, year),
            "{key}: {text}"
        );
    }
}

fn check_history(server: &Server) {
    let bytes = fs::read(server.data().join("pg_wal/00000002.history")).unwrap();
    let timeline = TimelineId::new(2).unwrap();
    let history = TimelineHistory::parse(timeline, &bytes).unwrap();
    assert_eq!(history.encode(), bytes);
    assert_eq!(history.parent(), Some(TimelineId::FIRST));
    assert!(history.switch_point(TimelineId::FIRST).unwrap().is_valid());
}

/// What a base backup says of itself, against its history file and the control file it carries.
fn check_backup_label(server: &Server) {
    let text = fs::read_to_string(server.scratch().join("base/backup_label")).unwrap();
    let label = BackupLabel::parse(text.as_bytes()).unwrap();
    assert_eq!(label.encode(), text);
    assert_eq!(
        (label.label.as_str(), label.from_standby),
        ("nightly: 100 % 'x'", false)
    );
    let control = fs::read(server.scratch().join("base/global/pg_control")).unwrap();
    let control = ControlFile::parse(&control).unwrap();
    assert_eq!(
        (label.start, label.checkpoint),
        (control.checkpoint.redo, control.checkpoint_lsn)
    );
    assert_eq!(label.start_timeline, control.checkpoint.timeline);
    let is_history = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "backup")
    };
    let wal = fs::read_dir(server.data().join("pg_wal")).unwrap();
    let path = wal
        .map(|entry| entry.unwrap().path())
        .find(is_history)
        .expect("backup history file");
    let text = fs::read_to_string(&path).unwrap();
    let history = BackupHistory::parse(text.as_bytes()).unwrap();
    assert_eq!(history.encode(), text);
    assert_eq!(history.label.start, label.start);
    assert!(history.stop > label.start);
    let segment_size = control.wal_segment_size;
    let name = path.file_name().unwrap().to_str().unwrap().parse();
    let (segment, offset) = (label.start_segment, segment_size.offset(label.start));
    assert_eq!(name, Ok(WalFileName::BackupHistory { segment, offset }));
}
