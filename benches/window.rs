//! What `walden window` takes over a year of WAL, as a process: 100,000 segments in a folder, and on a real S3 server, where every request is
//! counted on its way; `walden list` and `walden verify --presence` beside it. The archive is made: names, roll-ups and backups are real,
//! segments are empty.
//!
//! `WALDEN_BENCH_SEGMENTS` sets the number of segments on S3, which takes most of the time to fill. The default is less than a year, for CI.
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
#[path = "../pitr/tests/support/synthetic.rs"]
mod synthetic;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use repository::Store;
use repository::store::StoreOptions;
use support::object_store::Bucket;
use support::scratch::Scratch;
use support::walden::Walden;
use synthetic::{Archive, LOG, STUB, name, segment_key, start};

/// A year of 16 MiB segments at 3 MiB a minute.
const YEAR: u64 = 100_000;
/// On S3 by default.
const DEFAULT_SEGMENTS: u64 = 20_000;
/// Segments at the end that are real objects, if without WAL.
const SEALED: u64 = 8;
/// What the answer over a year may take.
const GOAL: Duration = Duration::from_secs(2);

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    folder(&runtime);
    s3(&runtime);
}

fn folder(runtime: &tokio::runtime::Runtime) {
    let segments = YEAR / LOG * LOG + LOG;
    let scratch = Scratch::new();
    let root = scratch.join("year");
    std::fs::create_dir(&root).unwrap();
    let url = format!("file://{}", root.display());
    let store = Store::open(&url, StoreOptions::default()).unwrap();
    let begun = Instant::now();
    let mut archive = Archive::new(store);
    runtime.block_on(async {
        archive.found().await;
        for number in segments - SEALED..segments {
            archive.seal(number).await;
        }
        // Past the store, which would wait for the disk a hundred thousand times.
        for number in 1..segments - SEALED {
            let path = root.join(segment_key(number).to_string());
            if number % LOG == 0 || number == 1 {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            }
            std::fs::write(path, STUB).unwrap();
            archive.sizes.insert(name(number), STUB.len() as u64);
        }
        archive.roll_up_and_back_up(segments).await;
    });
    println!(
        "window: {segments} segments in a folder, built in {:.1?}",
        begun.elapsed()
    );
    let walden = Walden::in_directory(scratch.path());
    let [window, list, presence] = measure(&walden, &url, segments);
    println!(
        "window: {segments} segments in a folder: walden window {window:.2?} (goal {GOAL:?}), list {list:.2?}, verify --presence {presence:.2?}"
    );
    assert!(window < GOAL, "{window:?}");
}

fn s3(runtime: &tokio::runtime::Runtime) {
    let segments = std::env::var("WALDEN_BENCH_SEGMENTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_SEGMENTS);
    // Whole logs, so that everything is rolled up.
    let segments = (segments / LOG).max(1) * LOG;
    let bucket = Bucket::new();
    let mut environment: BTreeMap<String, String> = bucket.environment().into_iter().collect();
    let variable = |name: &str| environment.get(name).cloned();
    let options = StoreOptions {
        endpoint: variable("AWS_ENDPOINT_URL"),
        region: variable("AWS_REGION"),
        access_key_id: variable("AWS_ACCESS_KEY_ID"),
        secret_access_key: variable("AWS_SECRET_ACCESS_KEY"),
        ..StoreOptions::default()
    };
    let url = bucket.url("year");
    let begun = Instant::now();
    let mut archive = Archive::new(Store::open(&url, options).unwrap());
    runtime.block_on(async {
        archive.found().await;
        for number in segments - SEALED..segments {
            archive.seal(number).await;
        }
        archive.stubs(1..segments - SEALED).await;
        archive.roll_up_and_back_up(segments).await;
    });
    println!(
        "window: {segments} segments on S3, built in {:.1?}",
        begun.elapsed()
    );
    let scratch = Scratch::new();
    let direct = Walden::in_directory(scratch.path()).envs(environment.clone());
    let [window, list, presence] = measure(&direct, &url, segments);
    let counter = Counter::before(&environment["AWS_ENDPOINT_URL"]);
    let endpoint = format!("http://127.0.0.1:{}", counter.port);
    environment.insert("AWS_ENDPOINT_URL".into(), endpoint);
    let counted = Walden::in_directory(scratch.path()).envs(environment);
    for (what, took, arguments) in [
        ("window", window, &["window"][..]),
        ("list", list, &["list"]),
        ("verify --presence", presence, &["verify", "--presence"]),
    ] {
        let before = counter.requests.load(Ordering::Relaxed);
        let output = counted.run(arguments.iter().copied().chain([url.as_str(), "--json"]));
        assert!(
            output.stdout.contains(&start(segments).to_string()),
            "{output}"
        );
        let requests = counter.requests.load(Ordering::Relaxed) - before;
        // A listing and a roll-up for each log, and what does not grow: folders, backups, the ends.
        assert!(
            (20..=2 * (segments / LOG) + 250).contains(&requests),
            "{what}: {requests} requests"
        );
        println!(
            "window: {segments} segments on S3: walden {what} {took:.2?}, {requests} requests"
        );
    }
    let year = window.mul_f64(YEAR as f64 / segments as f64);
    println!("window: on S3 for {YEAR} segments at most {year:.2?} (goal {GOAL:?})");
}

/// The best of a few runs of `window`, `list` and `verify --presence`.
fn measure(walden: &Walden, url: &str, segments: u64) -> [Duration; 3] {
    [&["window"][..], &["list"], &["verify", "--presence"]].map(|arguments| {
        let times = (0..3).map(|_| {
            let begun = Instant::now();
            let output = walden.run(arguments.iter().copied().chain([url, "--json"]));
            let took = begun.elapsed();
            assert!(
                output.stdout.contains(&start(segments).to_string()),
                "{output}"
            );
            took
        });
        times.min().unwrap()
    })
}

/// Passes connections on and counts the requests in them.
struct Counter {
    port: u16,
    requests: Arc<AtomicU64>,
}

impl Counter {
    fn before(endpoint: &str) -> Self {
        let server = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&requests);
        // Threads end with their connections, and the listening one with the program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&server).unwrap();
                for (from, to, counted) in [
                    (&client, &server, Some(Arc::clone(&counted))),
                    (&server, &client, None),
                ] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || pass_on(from, to, counted.as_deref()));
                }
            }
        });
        Self { port, requests }
    }
}

/// Each request without a body comes as one piece that begins with its method.
fn pass_on(mut from: TcpStream, mut to: TcpStream, counted: Option<&AtomicU64>) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let bytes = &piece[..length];
        if let Some(requests) = counted
            && (bytes.starts_with(b"GET ") || bytes.starts_with(b"HEAD "))
        {
            requests.fetch_add(1, Ordering::Relaxed);
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    // The other direction may be closed already.
    to.shutdown(Shutdown::Write).unwrap_or_default();
}
