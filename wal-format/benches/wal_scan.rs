//! How fast WAL is scanned with every CRC checked, in bytes per second and as ratios to `memcpy` and to the bare CRC in the same run.
//!
//! Scans a generated segment, or the segment named by `WALDEN_BENCH_SEGMENT`. Takes about two seconds. (What the log costs is `log.rs` of
//! `pitr`.)
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use std::hint::black_box;
use std::time::{Duration, Instant};
use wal_format::testing::WalBuilder;
use wal_format::{
    DecoderConfig, Lsn, Major, PageHeader, SegmentScanner, SegmentSize, Step, Timestamp, WalDecoder,
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
