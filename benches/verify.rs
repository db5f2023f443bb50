//! What `walden verify` takes, level by level, as a process over an archive that a real server filled: WAL and a base backup of more than a
//! gigabyte. Beside it, on one core in the same run, the bare parts: opening sealed segments, and CRC-32C and a scan of what they hold.
//!
//! Figures are plain bytes per second of processor time, so that they stand for one core however many worked.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and fails by panicking"
)]

#[path = "../tests/it/support/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "shared with the integration tests, which use the rest"
)]
mod support;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use repository::identity::{Identities, SecretReference};
use repository::key::ObjectKey;
use repository::sealed::OpenPolicy;
use serde_json::Value;
use support::postgres::Server;
use support::scratch::Scratch;
use support::walden::{Walden, wait_until_stored};
use wal_format::{DecoderConfig, SegmentSize, summarise_segment};

/// WAL that is written at least.
const WAL_BYTES: u64 = 1100 << 20;
/// Rows that are written at a time.
const ROWS: u32 = 150_000;
/// Segments over which the bare parts are measured.
const SEGMENTS: usize = 16;
/// Ticks of the processor clock in `/proc`, a second.
const TICKS: f64 = 100.0;

fn main() {
    let (server, folder) = fill();
    let (scratch, url) = (
        Scratch::new(),
        format!("file://{}", folder.join("repo").display()),
    );
    let identity = format!("file:{}", folder.join("walden.key").display());
    drop(server);
    let bare = bare(&folder);
    let walden = Walden::in_directory(scratch.path());
    for level in ["--checksums", "--wal", "--backups"] {
        let before = children_seconds();
        let output = walden.run([
            "verify",
            &url,
            "--identity",
            &identity,
            level,
            "--all",
            "--json",
        ]);
        let report: Value = serde_json::from_str(&output.expect_success().stdout).unwrap();
        let processor = children_seconds() - before;
        let (count, seconds) = (&report["counts"], report["seconds"].as_f64().unwrap());
        let bytes = count["plain_bytes"].as_f64().unwrap();
        println!(
            "verify {level}: {:.2} GB plain ({:.2} GB stored), {} records, {} files, {} pages in {seconds:.1} s: {:.2} GB/s, {:.2} GB/s per core",
            bytes / 1e9,
            count["stored_bytes"].as_f64().unwrap() / 1e9,
            count["records"],
            count["files"],
            count["pages"],
            bytes / 1e9 / seconds,
            bytes / 1e9 / processor
        );
        assert!(bytes > WAL_BYTES as f64, "{report}");
    }
    for (what, rate) in bare {
        println!("verify: {what} alone: {rate:.2} GB/s");
    }
    let before = Instant::now();
    let arguments = ["verify", &url, "--identity", &identity, "--backups"];
    walden.run(arguments).expect_success();
    println!(
        "verify: again, with what is remembered: {:.2?}",
        before.elapsed()
    );
}

/// A server's WAL and backup in a repository; gives the folder with the configuration, which goes with the server.
fn fill() -> (Server, PathBuf) {
    let server = Server::builder(18).setting("max_wal_size = '4GB'").start();
    let (scratch, lock) = Scratch::new().keep();
    std::mem::forget(lock);
    let folder = scratch.join("archive");
    std::fs::create_dir(&folder).unwrap();
    let walden = Walden::in_directory(&folder);
    let url = format!("file://{}", folder.join("repo").display());
    let conninfo = server.conninfo();
    walden
        .run(["init", &url, "--postgres", &conninfo])
        .expect_success();
    let begun = Instant::now();
    let run = walden.receive(&server, ["run"]);
    server.psql("create table t (n int, token text, body text); create index on t (token)");
    let written = || -> u64 {
        let bytes = server.psql("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint");
        bytes.parse().unwrap()
    };
    let first = written();
    let mut half = false;
    while written() - first < WAL_BYTES {
        server.psql(&format!(
            "insert into t select n, md5(n::text || random()), repeat(md5(random()::text), 6) || n from generate_series(1, {ROWS}) n"
        ));
        if !half && written() - first > WAL_BYTES / 2 {
            walden.run(["backup", "--fast-checkpoint"]).expect_success();
            half = true;
        }
    }
    server.psql("select pg_switch_wal()");
    wait_until_stored(&server);
    run.signal(rustix::process::Signal::TERM);
    run.wait(Duration::from_secs(60)).expect_success();
    println!("verify: filled in {:.1?}", begun.elapsed());
    (server, folder)
}

/// GB/s of plain bytes, on one core.
fn bare(folder: &Path) -> Vec<(&'static str, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let key = folder.join("walden.key").display().to_string();
    let references = [SecretReference::File(key)];
    let identities = Identities::load(&references);
    let policy = OpenPolicy {
        identities: runtime.block_on(identities).unwrap(),
        allow_plain: false,
    };
    let root = folder.join("repo");
    let mut segments = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let key: Option<ObjectKey> = path
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .parse()
                .ok();
            if let Some(ObjectKey::Segment { cluster, name }) = key {
                segments.push((ObjectKey::Segment { cluster, name }, path));
            }
        }
    }
    segments.sort();
    assert!(
        segments.len() as u64 > WAL_BYTES >> 24,
        "{}",
        segments.len()
    );
    let chosen: Vec<_> = segments.into_iter().skip(8).take(SEGMENTS).collect();
    let (mut open, mut crc, mut scan) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut bytes = 0;
    for (key, path) in &chosen {
        let stored = bytes::Bytes::from(std::fs::read(path).unwrap());
        let mut plain = Vec::with_capacity(16 << 20);
        let begun = Instant::now();
        policy.open(key, stored, 16 << 20, &mut plain).unwrap();
        open += begun.elapsed();
        let begun = Instant::now();
        black_box(crc32c::crc32c(&plain));
        crc += begun.elapsed();
        let ObjectKey::Segment { name, .. } = key else {
            continue;
        };
        let config = DecoderConfig {
            segment_size: SegmentSize::DEFAULT,
            system_identifier: None,
            major: None,
        };
        let begun = Instant::now();
        let start = name.start(SegmentSize::DEFAULT).unwrap();
        assert!(
            summarise_segment(config, start, &plain)
                .unwrap()
                .is_complete()
        );
        scan += begun.elapsed();
        bytes += plain.len();
    }
    let rate = |took: Duration| bytes as f64 / 1e9 / took.as_secs_f64();
    vec![
        ("opening sealed segments", rate(open)),
        ("CRC-32C of their plain bytes", rate(crc)),
        ("scanning their records", rate(scan)),
    ]
}

/// Processor time of children that have ended.
fn children_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the program's name, which may hold anything: state is the third field.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    (ticks(13) + ticks(14)) / TICKS
}
