//! Servers that stop, crash and come back, and two receivers at once, on one slot and on two.

use super::{DEADLINE, Rig};
use crate::run::{FIRST, flushed, restart_lsn, write_wal};
use crate::support::oracle::Oracle;
use crate::support::postgres::Stop;
use crate::support::process::{self, Running};
use crate::support::wait_until;
use std::fs;
use std::time::Duration;

impl Rig {
    /// What the slots were told is stored.
    #[track_caller]
    pub(super) fn assert_reported_is_stored(&self, what: &str) {
        let reported = restart_lsn(&self.server);
        let covered = self.site.covered_to(&self.site.catalog(), FIRST);
        assert!(
            covered >= Some(reported),
            "{what}: {covered:?} stored, {reported} reported, seed {}",
            self.seed
        );
    }
}

#[test]
fn a_server_that_stops_crashes_and_comes_back_loses_nothing() {
    let mut rig = Rig::new(15, "100ms");
    let mut run = rig.site.archive(&rig.server);
    rig.site
        .walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    for round in ["fast", "immediate", "crash", "fast"] {
        let clients = oracle.start(&rig.server, 2);
        write_wal(&rig.server, 1);
        clients.wait_for_more(30, DEADLINE);
        match round {
            "fast" => drop(rig.server.stop(Stop::Fast, Duration::from_secs(20))),
            "immediate" => drop(rig.server.stop(Stop::Immediate, Duration::from_secs(20))),
            _ => rig.server.crash(),
        }
        oracle.stop(clients);
        rig.server.start();
        oracle.forget_lost(&oracle.dump(&rig.server));
        wait_until("walden run is back", DEADLINE, || {
            assert!(run.is_running(), "{round}: {:?}", run.printed());
            flushed(&rig.server)
        });
        rig.assert_reported_is_stored(round);
    }
    rig.assert_promises(run, &oracle);
}

#[test]
fn two_receivers_at_once_store_everything_once() {
    let mut rig = Rig::new(18, "100ms");
    let folder = rig.server.scratch().join("walden");
    let own = fs::read_to_string(folder.join("walden.toml")).expect("read it");
    let other = own.replace("[postgres]", "[postgres]\nslot = \"other\"");
    fs::write(folder.join("other.toml"), other).expect("write it");

    let mut streaming = rig.site.archive(&rig.server);
    rig.site
        .walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 2);
    // On one slot: the second waits for its turn, and takes it.
    for round in 0..2 {
        let mut waiting = rig.site.walden.start(["run"]);
        write_wal(&rig.server, 1);
        let says = |_: &str, log: &str| log.contains("is active for PID");
        waiting.wait_for("it is told that the slot is in use", DEADLINE, says);
        streaming.kill();
        rig.assert_reported_is_stored("one slot");
        wait_until("the second has taken over", DEADLINE, || {
            assert!(
                waiting.is_running(),
                "round {round}: {:?}",
                waiting.printed()
            );
            flushed(&rig.server)
        });
        streaming = waiting;
    }
    // On two slots: the same segments from both.
    let both = "select count(*) from pg_stat_replication where application_name = 'walden' and state = 'streaming'";
    let start = || {
        let second = rig.site.walden.start(["run", "--config", "other.toml"]);
        wait_until("both stream", DEADLINE, || {
            (rig.server.psql(both) == "2").then_some(())
        });
        second
    };
    let mut second: Running = start();
    for _ in 0..3 {
        write_wal(&rig.server, 2);
        second.kill();
        second = start();
    }
    write_wal(&rig.server, 2);
    oracle.stop(clients);
    wait_until("both have stored all", DEADLINE, || {
        let behind = rig.server.psql(
            "select count(*) from pg_stat_replication where application_name = 'walden' and flush_lsn < pg_current_wal_flush_lsn()",
        );
        (behind == "0").then_some(())
    });
    crate::run::terminate(second);
    rig.server.psql("select pg_drop_replication_slot('other')");
    process::note(&format!("two receivers: {} requests", rig.store.requests()));
    rig.assert_promises(streaming, &oracle);
}
