//! Every failure: a store and a server that break in every way the proxies know, processes killed between a write and its answer,
//! full disks, expired credentials, restarts. Afterwards the promises are asserted by restores, by the rows of logged commits and
//! by the store's own bytes, never by log lines. Seeds are printed; `WALDEN_TEST_SEED` replays one.

mod budgets;
mod clock;
mod disks;
mod gauntlets;
mod kills;
mod listings;
mod local_kills;
mod restarts;
mod silence;
mod stalls;
mod standby;
mod storms;

use crate::run::stored::Compared;
use crate::run::{FIRST, seed, server, terminate, wait_until_flushed};
use crate::site::{Keys, Place, Plan, Site};
use crate::support::fault_proxy::server::ServerProxy;
use crate::support::fault_proxy::store::StoreProxy;
use crate::support::object_store::Bucket;
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::Server;
use crate::support::process::{self, COMMAND_DEADLINE, Running};
use crate::support::restored::Restorer;
use crate::support::s3::hex;
use crate::support::wal_dump::Target;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(90);

/// A server behind a proxy, a bucket behind another, `walden` that knows only the proxies, and somebody who restores.
struct Rig {
    seed: u64,
    store: StoreProxy,
    postgres: ServerProxy,
    site: Site,
    restorer: Restorer,
    bucket: Bucket,
    server: Server,
    /// Every object that was seen, and its digest: none may ever change.
    seen: BTreeMap<String, String>,
}

impl Rig {
    fn new(major: u32, rpo: &str) -> Self {
        let seed = seed();
        process::note(&format!("WALDEN_TEST_SEED={seed}"));
        Self::with_seed(major, rpo, seed)
    }

    fn with_seed(major: u32, rpo: &str, seed: u64) -> Self {
        let (mut restorer, builder) =
            Restorer::for_source(server(major).setting("archive_mode = off"));
        let server = builder.start();
        let bucket = Bucket::new();
        let store = StoreProxy::before(&bucket, seed);
        let postgres = ServerProxy::before(&server, seed.wrapping_add(1));
        let plan = Plan {
            place: Place::BucketBehind(&bucket, store.endpoint()),
            keys: Keys::Identity,
            rpo,
            ..Plan::default()
        };
        let site = Site::new(&server, plan);
        let folder = server.scratch().join("walden");
        let file = folder.join("walden.toml");
        let text = fs::read_to_string(&file).expect("read the configuration");
        let text = text.replace(&server.conninfo(), &postgres.conninfo());
        fs::write(&file, text).expect("write the configuration");
        restorer.url.clone_from(&site.url);
        restorer.identity = Some(format!("file:{}", folder.join("identity").display()));
        restorer.walden = restorer
            .walden
            .clone()
            .envs(bucket.environment())
            .env("AWS_ENDPOINT_URL", store.endpoint());
        Self {
            seed,
            store,
            postgres,
            site,
            restorer,
            bucket,
            server,
            seen: BTreeMap::new(),
        }
    }

    /// Looks at every object there is: none that was there before has gone or changed.
    #[track_caller]
    fn assert_nothing_overwritten(&mut self) {
        self.store.assert_write_once();
        let mut now = BTreeMap::new();
        for key in self.bucket.list("") {
            let digest = hex(&Sha256::digest(self.bucket.get(&key)));
            now.insert(key, digest);
        }
        for (key, digest) in &self.seen {
            assert_eq!(now.get(key), Some(digest), "{key}, seed {}", self.seed);
        }
        self.seen = now;
    }

    /// Everything that was written is stored, byte for byte, and a restore has every row of every commit.
    #[track_caller]
    fn assert_promises(&mut self, run: Running, oracle: &Oracle) -> Compared {
        let end = wait_until_flushed(&self.server);
        terminate(run);
        let compared = self.site.compare(FIRST, &self.server.wal_directory());
        assert!(compared.to >= end, "{compared:?} {end}, seed {}", self.seed);
        self.assert_nothing_overwritten();
        self.assert_restores_all(oracle);
        compared
    }

    #[track_caller]
    fn assert_restores_all(&self, oracle: &Oracle) {
        let dump = oracle.dump(&self.server);
        oracle.check(&dump, Some(&self.server));
        let expected = oracle.rows_at(&dump, &Target::Latest);
        assert!(expected.len() > 20, "the workload was too short");
        let restored = self.restorer.restore("all", &["--to", "latest"]);
        let what = format!("seed {}", self.seed);
        assert_same_rows(&what, &expected, &rows(&restored.client));
    }
}

/// The rounds of a test that `make soak` prolongs: so many or so long as it says, else a few. Each has a seed; the first round's is
/// `WALDEN_TEST_SEED`, if that is set.
struct Rounds {
    seed: u64,
    done: u64,
    most: u64,
    until: Option<Instant>,
}

struct Round {
    seed: u64,
}

impl Rounds {
    fn new(usual: u64) -> Self {
        let number = |name: &str| -> Option<u64> {
            let said = std::env::var(name).ok()?;
            Some(
                said.parse()
                    .unwrap_or_else(|_| panic!("{name}={said} is no number")),
            )
        };
        let until = soak_length().map(|length| Instant::now() + length);
        let most =
            number("WALDEN_TEST_ROUNDS").unwrap_or(if until.is_some() { u64::MAX } else { usual });
        Self {
            seed: seed(),
            done: 0,
            most,
            until,
        }
    }
}

/// How long a test that `make soak` prolongs is to take.
fn soak_length() -> Option<Duration> {
    let minutes = std::env::var("WALDEN_TEST_MINUTES").ok()?;
    let minutes: u64 = minutes.parse().expect("WALDEN_TEST_MINUTES is a number");
    Some(Duration::from_secs(60 * minutes))
}

impl Iterator for Rounds {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let over = self.until.is_some_and(|until| Instant::now() >= until);
        if self.done >= self.most || (over && self.done > 0) {
            return None;
        }
        let seed = self.seed.wrapping_add(self.done);
        self.done += 1;
        process::note(&format!("WALDEN_TEST_SEED={seed}"));
        Some(Round { seed })
    }
}

/// Makes a library of one of the C files here, to be preloaded into `walden`.
fn preload(name: &str, folder: &Path) -> PathBuf {
    let library = folder.join(format!("{name}.so"));
    let source = format!("{}/tests/it/faults/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let mut compile = process::command("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-ftls-model=initial-exec", "-o"]);
    compile.arg(&library).arg(source);
    process::run(compile, COMMAND_DEADLINE).expect_success();
    library
}

/// What a process uses.
#[derive(Debug, Clone, Copy)]
struct Usage {
    resident: u64,
    peak: u64,
    descriptors: usize,
}

fn usage(process: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it is running");
    let bytes = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok())
            .expect("a size")
            << 10
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("its descriptors");
    Usage {
        resident: bytes("VmRSS:"),
        peak: bytes("VmHWM:"),
        descriptors: descriptors.count(),
    }
}
