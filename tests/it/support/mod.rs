//! What integration tests stand on: servers, an object store, the `walden` program and a workload whose outcome is
//! known outside the database. Nothing here uses Walden's own code, so that it can judge it.

pub(crate) mod door;
pub(crate) mod fault_proxy;
pub(crate) mod object_store;
pub(crate) mod oracle;
pub(crate) mod oracle_commits;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod restored;
pub(crate) mod s3;
pub(crate) mod scratch;
pub(crate) mod small_disk;
pub(crate) mod soak;
pub(crate) mod tls;
pub(crate) mod wal_dump;
pub(crate) mod walden;
pub(crate) mod workload;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where `scripts/setup` has put servers and tools.
pub(crate) fn cache() -> PathBuf {
    match std::env::var_os("WALDEN_CACHE_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache"),
    }
}

/// Asks `question` every few milliseconds until it answers, and fails the test with `what` after `deadline`.
pub(crate) fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut question: impl FnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(
            started.elapsed() < deadline,
            "waited {deadline:?} in vain for: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
