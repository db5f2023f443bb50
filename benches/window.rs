//! What `walden window` takes over a year of WAL on a real S3 server, as a process: with roll-ups, without (fewer segments), and `walden list`
//! beside it. The archive is made: names, roll-ups and backups are real, segments are empty.
//!
//! `WALDEN_BENCH_SEGMENTS` sets the number of segments; 100000 of 16 MiB are a year at 3 MiB a minute. The default is less, for CI.
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

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use repository::descriptor::WalDescriptor;
use repository::index::{RollUp, RolledUp};
use repository::key::{BackupObject, ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Compression, Facts, SealPolicy, Sealer};
use repository::store::StoreOptions;
use repository::{Repository, Store};
use support::object_store::Bucket;
use support::scratch::Scratch;
use support::walden::Walden;
use wal_format::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

const SIZE: SegmentSize = SegmentSize::DEFAULT;
/// Segments of a log.
const LOG: u64 = 256;
const DEFAULT_SEGMENTS: u64 = 10_000;
/// Segments at the end that are real objects, if without WAL.
const SEALED: u64 = 8;
/// What the answer over a year may take.
const GOAL: Duration = Duration::from_secs(2);

fn name(number: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, SegmentNumber::new(number), SIZE)
}

fn start(number: u64) -> Lsn {
    SIZE.start(SegmentNumber::new(number))
}

fn time(number: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_760_000_000 + 315 * i64::try_from(number).unwrap()).unwrap()
}

fn wal(number: u64) -> WalDescriptor {
    WalDescriptor {
        start_lsn: start(number),
        end_lsn: start(number + 1),
        first_record: Some(start(number).saturating_add(40)),
        first_record_prev: Some(start(number - 1).saturating_add(80)),
        last_record: Some(start(number).saturating_add(80)),
        transactions: Some(1234),
        time_min: Some(time(number)),
        time_max: Some(time(number)),
        ..WalDescriptor::default()
    }
}

/// Whole logs of segments, a roll-up for each, a backup a week.
async fn build(repository: &Repository, store: &Store, segments: u64) {
    let cluster = ClusterId::new(7);
    let document = serde_json::json!({
        "format": 1, "system_identifier": "7", "pg_version": 18, "block_size": 8192, "wal_segment_size": SIZE.bytes(),
        "created": time(0),
    });
    let identity =
        serde_json::json!({ "format": 1, "repository_id": "0".repeat(32), "created": time(0) });
    repository
        .put_json(&ObjectKey::Repository, &identity)
        .await
        .unwrap();
    repository
        .put_json(&ObjectKey::Cluster(cluster), &document)
        .await
        .unwrap();
    // The ends are read from the objects themselves.
    let policy = SealPolicy {
        recipients: None,
        compression: Compression::Lz4,
        minimal_descriptor: false,
    };
    let mut sealer = Sealer::new(policy, BufferPool::new(1));
    let mut sizes = BTreeMap::new();
    for number in segments - SEALED..segments {
        let facts = Facts {
            key: ObjectKey::Segment {
                cluster,
                name: name(number),
            },
            pg_version: 18,
            wal: Some(wal(number)),
        };
        let sealed = sealer.seal(facts, b"no WAL").unwrap();
        repository.put(&sealed).await.unwrap();
        sizes.insert(number, sealed.stored_size());
    }
    let puts = (1..segments - SEALED).map(|number| {
        let key = ObjectKey::Segment {
            cluster,
            name: name(number),
        };
        async move { store.put_new(&key.to_string(), "stub").await.map(drop) }
    });
    let mut puts = futures_util::stream::iter(puts).buffer_unordered(16);
    while let Some(put) = puts.next().await {
        put.unwrap();
    }
    for log in 0..segments / LOG {
        let numbers = (log * LOG).max(1)..(log + 1) * LOG;
        let rolled = |number| RolledUp {
            stored_size: sizes.get(&number).copied().unwrap_or(4),
            wal: wal(number),
        };
        let segments: BTreeMap<_, _> = numbers
            .map(|number| (name(number), rolled(number)))
            .collect();
        let roll_up = RollUp {
            cluster,
            timeline: TimelineId::FIRST,
            log: u32::try_from(log).unwrap(),
            segments,
        };
        repository.put_roll_up(&roll_up).await.unwrap();
    }
    for week in 0..segments / 1920 + 1 {
        let from = 1 + week * 1920;
        let label = format!("20260101T{week:06}Z-full-0000");
        let key = ObjectKey::Backup {
            cluster,
            label: label.parse().unwrap(),
            object: BackupObject::Descriptor,
        };
        let document = serde_json::json!({
            "format": 1, "label": label, "kind": "full", "system_identifier": "7", "pg_version": 18, "server_version": "18.1",
            "wal_segment_size": SIZE.bytes(), "timeline": 1, "lineage": "", "start_lsn": start(from).saturating_add(40).to_string(),
            "stop_lsn": start(from).saturating_add(60).to_string(), "started": time(from), "stopped": time(from), "from_standby": false,
            "tablespaces": [], "parts": [], "manifest_size": "1", "plain_size": "1", "stored_size": "1",
        });
        repository.put_json(&key, &document).await.unwrap();
    }
}

fn main() {
    let segments = std::env::var("WALDEN_BENCH_SEGMENTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_SEGMENTS);
    // Whole logs, so that everything is rolled up.
    let segments = (segments / LOG).max(1) * LOG;
    let bucket = Bucket::new();
    let environment: BTreeMap<String, String> = bucket.environment().into_iter().collect();
    let variable = |name: &str| environment.get(name).cloned();
    let options = StoreOptions {
        endpoint: variable("AWS_ENDPOINT_URL"),
        region: variable("AWS_REGION"),
        access_key_id: variable("AWS_ACCESS_KEY_ID"),
        secret_access_key: variable("AWS_SECRET_ACCESS_KEY"),
        ..StoreOptions::default()
    };
    let url = bucket.url("year");
    let store = Store::open(&url, options).unwrap();
    let repository = Repository::new("bench", store.clone());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let begun = Instant::now();
    runtime.block_on(build(&repository, &store, segments));
    println!(
        "window: {segments} segments on S3, built in {:.1?}",
        begun.elapsed()
    );
    for wide in [false, true] {
        let begun = Instant::now();
        let listed = runtime.block_on(async {
            match wide {
                false => store.list("7").await,
                true => store.list_wide("7", 3).await,
            }
        });
        let (objects, took) = (listed.unwrap().len(), begun.elapsed());
        let how = if wide {
            "several folders at a time"
        } else {
            "page by page"
        };
        println!("window: {objects} objects listed {how} in {took:.2?}");
    }
    let scratch = Scratch::new();
    let walden = Walden::in_directory(scratch.path()).envs(bucket.environment());
    let timed = |arguments: &[&str]| {
        let best = (0..3).map(|_| {
            let begun = Instant::now();
            let output = walden.run(arguments.iter().copied());
            let took = begun.elapsed();
            assert!(
                output.stdout.contains(&start(segments).to_string()),
                "{output}"
            );
            took
        });
        best.min().unwrap()
    };
    let window = timed(&["window", &url, "--json"]);
    let list = timed(&["list", &url, "--json"]);
    let year = window.mul_f64(100_000.0 / segments as f64);
    println!("window: walden window {window:.2?}, walden list {list:.2?}");
    println!("window: for 100000 segments at most {year:.2?} (goal {GOAL:?})");
}
