//! A wall clock that jumps: what waits, waits by another one, and nothing is lost. The clock is moved beneath the program.

use super::{DEADLINE, Rig, preload};
use crate::run::{flushed, lsn, write_wal};
use crate::support::oracle::Oracle;
use crate::support::process;
use crate::support::wait_until;
use crate::support::wal_dump::Lsn;
use std::fs;
use std::time::Duration;

/// Seconds ahead of the true time.
const JUMPS: [i64; 5] = [60, -120, 600, -600, 300];

#[test]
fn a_clock_that_jumps_stops_nothing() {
    let mut rig = Rig::new(18, "100ms");
    let scratch = rig.server.scratch().to_owned();
    let (library, file) = (preload("clock", &scratch), scratch.join("clock"));
    // Replaced, not changed: nobody reads half a number.
    let set = |seconds: i64| {
        let new = scratch.join("clock.new");
        fs::write(&new, seconds.to_string()).expect("write the clock");
        fs::rename(&new, &file).expect("set the clock");
    };
    set(0);
    let walden = rig.site.walden.clone();
    rig.site.walden = walden
        .env("LD_PRELOAD", library.display().to_string())
        .env("WALDEN_TEST_CLOCK", file.display().to_string());

    let run = rig.site.archive(&rig.server);
    let backup = ["backup", "--fast-checkpoint"];
    rig.site.walden.run(backup).expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 1);
    for jump in JUMPS {
        set(jump);
        write_wal(&rig.server, 1);
        let written = lsn(&rig.server.psql("select pg_current_wal_flush_lsn()"));
        wait_until("what is written is stored", Duration::from_secs(10), || {
            (flushed(&rig.server)? >= written).then_some(())
        });
        let shown = rig.site.walden.run(["list", "--json"]).expect_success();
        assert!(shown.took < Duration::from_secs(10), "{jump}: {shown}");
    }
    // Further than the store believes: it refuses, and what was refused is stored when the clock is right again.
    set(7200);
    let before = rig.bucket.list("").len();
    write_wal(&rig.server, 2);
    std::thread::sleep(Duration::from_secs(1));
    let during = rig.bucket.list("").len();
    set(0);
    oracle.stop(clients);
    let end = Lsn::parse(&rig.server.psql("select pg_current_wal_flush_lsn()"));
    wait_until("it catches up", DEADLINE, || {
        let stored = flushed(&rig.server)?;
        (stored.as_u64() >= end.0).then_some(())
    });
    process::note(&format!(
        "two hours ahead the store took {} objects",
        during - before
    ));
    // A backup by a clock that is behind is still the newest: not by its label, but by where it ends.
    set(-500);
    rig.site.walden.run(backup).expect_success();
    set(0);
    rig.assert_promises(run, &oracle);
}
