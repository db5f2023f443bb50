//! How fast WAL is scanned with every CRC checked, in bytes per second and as ratios to `memcpy` and to the bare CRC in the same run; and how fast
//! it is read for the log (every record, its blocks and what it did) against `pg_waldump --stats`.
//!
//! Scans a generated segment, or the segment named by `WALDEN_BENCH_SEGMENT`. The log's part reads what `scripts/sample-wal` made. Takes about four
//! seconds.
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wal_format::testing::WalBuilder;
use wal_format::{
    Action, DecoderConfig, Lsn, Major, PageHeader, RecordBody, SegmentScanner, SegmentSize, Step,
    Timestamp, WalDecoder,
};

/// The time given to each measurement.
const BUDGET: Duration = Duration::from_millis(300);

fn main() {
    let segment = match std::env::var_os("WALDEN_BENCH_SEGMENT") {
        Some(path) => {
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        }
        None => generate(),
    };
    let (page, long) = PageHeader::parse_first(&segment).expect("a WAL segment");
    let config = DecoderConfig {
        segment_size: SegmentSize::new(long.segment_bytes).expect("segment size"),
        system_identifier: None,
        major: None,
    };
    let mut records = 0_u64;
    let mut decoder = WalDecoder::new(config, page.address).expect("page start");
    decoder.push(&segment, |step| {
        records += u64::from(matches!(step, Step::Record(_)))
    });
    println!(
        "{} bytes, {records} records, valid to {}",
        segment.len(),
        decoder.chain_end()
    );
    assert!(records > 0, "nothing to scan");

    let mut target = vec![0_u8; segment.len()];
    let memcpy = rate(&segment, |bytes| target.copy_from_slice(black_box(bytes)));
    let crc = rate(&segment, |bytes| {
        black_box(crc_fast::crc32_iscsi(black_box(bytes)));
    });
    let scan = rate(&segment, |bytes| {
        let mut scanner = SegmentScanner::new(config, page.address).expect("segment start");
        scanner.push(black_box(bytes), |_| {});
        black_box(scanner.summary());
    });
    let pieces = rate(&segment, |bytes| {
        let mut scanner = SegmentScanner::new(config, page.address).expect("segment start");
        for piece in black_box(bytes).chunks(131_072 - 25) {
            scanner.push(piece, |_| {});
        }
        black_box(scanner.summary());
    });
    println!("memcpy                 {memcpy:6.2} GB/s");
    println!("CRC-32C alone          {crc:6.2} GB/s");
    for (name, rate) in [
        ("scan                 ", scan),
        ("scan as it is received", pieces),
    ] {
        println!(
            "{name} {rate:6.2} GB/s   {:.2} of memcpy, {:.2} of the CRC alone (aim: 7-9 GB/s)",
            rate / memcpy,
            rate / crc
        );
    }
    compare_log();
}

/// What the log wants of WAL, counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    records: u64,
    blocks: u64,
    rows: u64,
    transactions: u64,
    /// Of the numbers of all relations and blocks, so that they must be read.
    sum: u32,
}

/// Reads segments for the log: every record, all its blocks, what it did.
fn read_for_log(decoder: &mut WalDecoder, bytes: &[u8], counts: &mut Counts) {
    decoder.push_records(bytes, |_, body| {
        let Some(Ok(parts)) = body.map(RecordBody::parse) else {
            return;
        };
        counts.records += 1;
        for block in parts.blocks() {
            counts.blocks += 1;
            let relation = block.relation;
            counts.sum ^= relation.tablespace ^ relation.database ^ relation.relation ^ block.block;
        }
        match parts.action() {
            Ok(Action::Insert | Action::Delete | Action::Update { .. }) => counts.rows += 1,
            Ok(Action::MultiInsert { rows }) => counts.rows += u64::from(rows),
            Ok(Action::Commit(_) | Action::Abort(_)) => counts.transactions += 1,
            _ => {}
        }
    });
}

/// The log's reading, of segments in memory as they come out of sealed objects, against `pg_waldump --stats` of the same segments, whose files are
/// in the page cache; each on one core, in turns.
fn compare_log() {
    let cache =
        std::env::var_os("WALDEN_CACHE_DIR").map_or_else(|| PathBuf::from(".cache"), PathBuf::from);
    let waldump = cache.join("pg/18/bin/pg_waldump");
    let mut segments: Vec<PathBuf> = std::fs::read_dir(cache.join("sample-wal"))
        .map(|entries| entries.map(|entry| entry.expect("entry").path()).collect())
        .unwrap_or_default();
    segments.sort();
    if segments.len() < 3 || !waldump.exists() {
        println!(
            "NOT RUN: no pg_waldump or no WAL in {} (scripts/sample-wal)",
            cache.display()
        );
        return;
    }
    let config = DecoderConfig {
        segment_size: SegmentSize::DEFAULT,
        system_identifier: None,
        major: None,
    };
    let bytes: Vec<Vec<u8>> = segments
        .iter()
        .map(|path| std::fs::read(path).expect("segment"))
        .collect();
    let (page, _) = PageHeader::parse_first(&bytes[0]).expect("a WAL segment");
    let decoder = || WalDecoder::new(config, page.address).expect("page start");
    let mut counts = Counts::default();
    let mut log = |segments: &[Vec<u8>]| {
        counts = Counts::default();
        let mut decoder = decoder();
        for segment in segments {
            read_for_log(&mut decoder, black_box(segment), &mut counts);
        }
        black_box(counts);
    };
    let scan = |segments: &[Vec<u8>]| {
        let mut decoder = decoder();
        for segment in segments {
            decoder.push(black_box(segment), |step| {
                black_box(&step);
            });
        }
    };
    let mut times = [f64::INFINITY; 4];
    for _ in 0..16 {
        let runs = [
            timed(|| scan(&bytes)),
            timed(|| log(&bytes)),
            timed(|| stats(&waldump, &segments[..1])),
            timed(|| stats(&waldump, &segments)),
        ];
        for (time, run) in times.iter_mut().zip(runs) {
            *time = time.min(run);
        }
    }
    let [scan, log, first, all] = times;
    let segment = bytes[0].len() as f64 / 1e9;
    let count = segments.len() as f64;
    // The difference of all segments and one leaves out what a process costs to start.
    let theirs = segment * (count - 1.0) / (all - first);
    let ours = segment * count / log;
    println!("{count} segments of the sample: {counts:?}");
    println!(
        "pg_waldump --stats     {theirs:6.2} GB/s   {:.2} with what the process costs to start",
        segment * count / all
    );
    println!(
        "read for the log       {ours:6.2} GB/s   {:.2} of pg_waldump (at least 3, aim 4), {:.2} of the scan alone",
        ours / theirs,
        scan / log
    );
}

fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn stats(waldump: &Path, segments: &[PathBuf]) {
    let last = segments.last().expect("segments");
    let status = Command::new(waldump)
        .arg("--stats")
        .args([&segments[0], last])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("pg_waldump");
    // It ends with an error where WAL ends, if that is not a segment's end.
    black_box(status);
}

/// The best of several runs, in GB/s.
fn rate(bytes: &[u8], mut run: impl FnMut(&[u8])) -> f64 {
    let began = Instant::now();
    let mut best = f64::INFINITY;
    while began.elapsed() < BUDGET {
        let start = Instant::now();
        run(bytes);
        best = best.min(start.elapsed().as_secs_f64());
    }
    bytes.len() as f64 / best / 1e9
}

/// A segment with the lengths of records that OLTP makes, a full page image now and then.
fn generate() -> Vec<u8> {
    let start = Lsn(0x0500_0000);
    let mut wal = WalBuilder::new(Major::V18, SegmentSize::DEFAULT, start, Lsn(start.0 - 0x60));
    let mut seed = 0x2545_F491_u32;
    while wal.bytes().len() < 16 << 20 {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        let _start = match seed % 64 {
            0 => wal.record(10, 0, seed, &[0xA5; 7900]),
            1..=4 => wal.commit(seed, Timestamp(i64::from(seed))),
            5..=40 => wal.record(10, 0x20, seed, &[0x5A; 150].map(|b| b ^ seed as u8)),
            _ => wal.record(11, 0, seed, &[0x33; 40]),
        };
    }
    let mut bytes = wal.into_bytes();
    bytes.truncate(16 << 20);
    bytes
}
