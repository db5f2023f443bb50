//! `walden run` killed at any moment: what it had reported is there, whatever it was just storing.

use super::{FIRST, lsn, positions, restart_lsn, seed, server, terminate, wait_until_flushed};
use crate::site::{Plan, Site};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::Server;
use crate::support::process::{self, Running};
use crate::support::restored::Restorer;
use crate::support::wal_dump::Target;
use crate::support::workload::Random;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Stops a run at a moment at which it is storing something, and kills it. Says what it was storing.
fn kill_in_flight(
    server: &Server,
    site: &Site,
    run: Running,
    before: &BTreeSet<PathBuf>,
    random: &mut Random,
) -> &'static str {
    for attempt in 0..400 {
        run.signal(Signal::STOP);
        let unfinished = site.unfinished();
        let name = |path: &PathBuf| path.display().to_string();
        let mut new = unfinished.difference(before).map(name);
        let kind = match new.next() {
            Some(path) if path.contains("/tail/") => Some("chunk"),
            Some(_) => Some("segment"),
            // Everything it has received for long may be stored: then it is the bytes since then that are in flight.
            None if attempt >= 50 => positions(server)
                .filter(|[sent, _, flush]| sent > flush)
                .map(|_| "bytes"),
            None => None,
        };
        if let Some(kind) = kind {
            run.kill();
            return kind;
        }
        run.signal(Signal::CONT);
        std::thread::sleep(Duration::from_micros(random.below(8000)));
    }
    panic!("it never had anything in flight");
}

/// More bytes of WAL than any record of these tests takes.
const LONGEST_RECORD: u64 = 1 << 19;

/// Ends a thread beside the test, also when the test fails.
struct StopsOnDrop<'a>(&'a AtomicBool);

impl Drop for StopsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn killed_at_twenty_moments(major: u32, rpo: &str) {
    let seed = seed();
    process::note(&format!("WALDEN_TEST_SEED={seed}"));
    let mut random = Random::new(seed);
    let (mut restorer, builder) = Restorer::for_source(server(major));
    let server = builder.start();
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    restorer.url.clone_from(&site.url);
    let mut first = Some(site.archive(&server));
    site.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    // The backup ended with a segment switch, behind which the segment has no records.
    let begin = lsn(&server.psql("select pg_current_wal_flush_lsn()"));
    let mut oracle = Oracle::prepare(&server, seed);
    let clients = oracle.start(&server, 2);
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    let stop = AtomicBool::new(false);
    let reported = std::thread::scope(|scope| {
        let _stops = StopsOnDrop(&stop);
        scope.spawn(|| {
            // Records of up to 400 KiB: many lie across segments and chunks.
            let mut random = Random::new(seed + 1);
            while !stop.load(Ordering::Relaxed) {
                let length = 32 * random.below(12_000);
                server.psql(&format!("select pg_logical_emit_message(true, 'long', repeat(md5('{length}'), {} / 32))", length + 32));
            }
        });
        for _ in 0..20 {
            // What those left that were killed before.
            let left = site.unfinished();
            let run = first.take().unwrap_or_else(|| site.archive(&server));
            std::thread::sleep(Duration::from_millis(random.below(250)));
            let kind = kill_in_flight(&server, &site, run, &left, &mut random);
            *kinds.entry(kind).or_default() += 1;
            let reported = restart_lsn(&server);
            let covered = site.covered_to(&site.catalog(), FIRST);
            assert!(
                covered >= Some(reported),
                "{covered:?} {reported} seed {seed}"
            );
            // A restore gets all of it but a record that is not whole.
            let plan = restorer.plan(&["--to", "latest"]);
            let end = lsn(plan["end_lsn"].as_str().expect("an LSN"));
            assert!(
                end.max(begin).saturating_add(LONGEST_RECORD) > reported,
                "{plan} {reported} seed {seed}"
            );
        }
        restart_lsn(&server)
    });
    oracle.stop(clients);
    process::note(&format!(
        "PostgreSQL {major}, killed while in flight were: {kinds:?}"
    ));
    let bytes = kinds.get("bytes").copied().unwrap_or(0);
    assert!(bytes <= 10, "{kinds:?}: too few objects were cut short");
    let compared = site.compare(FIRST, &server.wal_directory());
    assert!(
        compared.to >= reported,
        "{compared:?} {reported} seed {seed}"
    );

    // What the last one left is what there is: no commit that the slot let go of is missing.
    let dump = oracle.dump(&server);
    oracle.check(&dump, Some(&server));
    let end = compared.to.as_u64();
    let cut = dump.ends.iter().find(|transaction| transaction.end.0 > end);
    let target = cut.map_or(Target::Latest, |transaction| Target::Lsn {
        lsn: transaction.start,
        inclusive: false,
    });
    let expected = oracle.rows_at(&dump, &target);
    assert!(expected.len() > 100, "the workload was too short");
    let restored = restorer.restore("latest", &["--to", "latest"]);
    assert_same_rows(&format!("seed {seed}"), &expected, &rows(&restored.client));
    drop(restored);

    // And it goes on.
    let run = site.archive(&server);
    let end = wait_until_flushed(&server);
    terminate(run);
    assert!(site.compare(FIRST, &server.wal_directory()).to >= end);
    let restored = restorer.restore("all", &["--to", "latest"]);
    let everything = oracle.rows_at(&oracle.dump(&server), &Target::Latest);
    assert_same_rows("all", &everything, &rows(&restored.client));
}

#[test]
fn a_run_on_15_may_be_killed_at_any_moment() {
    killed_at_twenty_moments(15, "100ms");
}

#[test]
fn a_run_on_18_may_be_killed_at_any_moment() {
    killed_at_twenty_moments(18, "sync");
}
