//! Somebody drops the slot, makes it again, or removes files of `pg_wal`; the server gives the slot up for being idle: nothing is lost that is
//! still there, and what is lost is on record once, wherever `walden run` was killed.

use super::{Archived, DEADLINE, FIRST, terminate};
use crate::support::process::command;
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use repository::catalog::GapRange;
use std::fs;
use std::time::{Duration, Instant};
use wal_format::SegmentName;

const DROP: &str = "select pg_drop_replication_slot('walden')";
const MAKE: &str = "select 1 from pg_create_physical_replication_slot('walden', true)";

#[test]
fn a_slot_that_was_dropped_loses_nothing_that_the_server_still_has() {
    let (archived, run) = Archived::start(18, &["wal_keep_size = 1GB"], "", "");
    archived.write_wal(2);
    wait_until_stored(&archived.server);
    terminate(run, 0);
    let stored = archived.stored_end();
    archived.server.psql(DROP);
    archived.write_wal(3);
    // Made again by somebody, ahead of what is stored.
    archived.server.psql("checkpoint");
    archived.server.psql(MAKE);
    let ahead = "select restart_lsn from pg_replication_slots where slot_name = 'walden'";
    assert!(super::lsn(&archived.server.psql(ahead)) > stored);
    let run = archived.receive();
    wait_until_stored(&archived.server);
    let log = terminate(run, 0);
    assert!(log.contains("does not keep all WAL"), "{log}");
    assert_eq!(archived.gaps(), []);
    assert_eq!(archived.site.catalog().holes(FIRST, archived.site.size), []);
    archived.json(&["gap", "list"], 0);
}

#[test]
fn a_gap_is_recorded_once_wherever_it_is_killed() {
    let (archived, run) = Archived::start(15, &[], "", "");
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    terminate(run, 0);
    let stored = archived.stored_end();
    archived.server.psql(DROP);
    archived.write_until_removed();
    // Killed ever later, until it is behind the gap; each time the server has written and removed more.
    let mut killed_before = 0;
    for attempt in 0..6 {
        let run = archived.site.walden.start(["run"]);
        let begun = Instant::now();
        let length = Duration::from_millis(120 * attempt);
        while begun.elapsed() < length && archived.gaps().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        run.kill();
        killed_before += u32::from(archived.stored_end() == stored);
        archived.write_wal(2);
        archived.server.psql("checkpoint");
        archived.check_record();
        archived.check_nothing_stored_is_recorded();
    }
    assert!(killed_before > 0, "it was never killed before it went on");
    // And made again by somebody at last.
    wait_until("the slot is free", DEADLINE, || {
        let drop =
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active";
        archived.server.psql(drop);
        (archived
            .server
            .psql("select count(*) from pg_replication_slots")
            == "0")
            .then_some(())
    });
    archived.write_wal(3);
    archived.server.psql("checkpoint");
    archived.server.psql(MAKE);
    let run = archived.receive();
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    archived.check_record();
    archived.check_nothing_stored_is_recorded();
    let gaps = archived.gaps();
    assert_eq!(gaps.first().map(|gap| gap.from), Some(stored), "{gaps:?}");
    // A restart finds nothing new.
    let recorded = gaps.len();
    run.kill();
    let run = archived.receive();
    archived.write_wal(2);
    wait_until_stored(&archived.server);
    let log = terminate(run, 0);
    assert!(!log.contains("GAP"), "{log}");
    assert_eq!(archived.gaps().len(), recorded);
    // Nothing behind the gap can be restored, and that is said too, acknowledged or not.
    for gap in &gaps {
        let range = format!("{}-{}", gap.from, gap.to);
        let ack = ["gap", "ack", &range, "--reason", "x", "--by", "t", "--yes"];
        archived.site.walden.run(ack).expect_success();
    }
    let status = archived.json(&["status"], 3);
    let said = status["problems"].to_string();
    assert!(
        said.contains("no base backup was taken since the gap"),
        "{said}"
    );
}

#[test]
fn exactly_the_files_that_were_removed_are_lost_and_an_archive_closes_the_gap() {
    let (archived, run) = Archived::start(15, &["max_wal_size = 1GB"], "", "");
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    terminate(run, 0);
    archived.write_wal(8);
    let size = archived.site.size;
    let first = size.segment(archived.stored_end()).as_u64() + 2;
    let kept = archived.server.scratch().join("kept");
    fs::create_dir(&kept).expect("make a folder");
    let names: Vec<String> = (first..first + 3)
        .map(|number| {
            SegmentName::new(FIRST, wal_format::SegmentNumber::new(number), size).to_string()
        })
        .collect();
    for name in &names {
        let mut moved = command("mv");
        moved
            .arg(archived.server.wal_directory().join(name))
            .arg(&kept);
        crate::support::process::run(moved, DEADLINE).expect_success();
    }
    let run = archived.receive();
    wait_until("a gap is on record", DEADLINE, || {
        (!archived.gaps().is_empty()).then_some(())
    });
    wait_until_stored(&archived.server);
    let start = |number| size.start(wal_format::SegmentNumber::new(number));
    let expected = GapRange {
        timeline: FIRST,
        from: start(first),
        to: start(first + 3),
    };
    assert_eq!(archived.gaps(), [expected], "no more, no less");
    archived.check_record();
    archived.check_nothing_stored_is_recorded();
    terminate(run, 3);
    // It asks no more for what the server did not have.
    let run = archived.receive();
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    let log = terminate(run, 0);
    assert!(
        !log.contains("GAP") && !log.contains("behind a gap"),
        "{log}"
    );

    // Two of three come from somewhere else: what is missing is said exactly; with the third the gap is closed.
    let push = |name: &str| {
        let path = kept.join(name).display().to_string();
        let config = archived.server.scratch().join("walden/walden.toml");
        let config = config.display().to_string();
        let push = ["archive-push", "--config", &config, &path];
        archived.site.walden.run(push).expect_success();
    };
    push(&names[0]);
    push(&names[2]);
    let status = archived.json(&["status"], 5);
    assert_eq!(
        status["stored"]["gaps"][0]["first_missing"],
        names[1].as_str()
    );
    assert_eq!(status["stored"]["gaps"][0]["segments"], 1, "{status}");
    push(&names[1]);
    let status = archived.site.walden.run(["status", "--json"]).json();
    assert_eq!(status["stored"]["gaps"].as_array().map(Vec::len), Some(0));
    let listed = archived.json(&["gap", "list"], 0);
    assert_eq!(listed["gaps"][0]["state"], "closed", "{listed}");
    archived.json(&["verify"], 0);
    let closed = [
        "gap",
        "ack",
        &expected.to_string(),
        "--reason",
        "x",
        "--by",
        "t",
    ];
    archived.site.walden.run(closed).expect_code(1);
}

/// The role may replicate and ask nothing: what the server says when streaming begins has to do.
#[test]
fn a_slot_that_18_gave_up_for_being_idle_is_made_again() {
    let idle = ["idle_replication_slot_timeout = 1s", "wal_keep_size = 1GB"];
    let hba = |builder: crate::support::postgres::Builder| {
        builder
            .hba("local replication bare trust")
            .hba("local all bare reject")
    };
    let (archived, run) = Archived::start_with(hba, 18, &idle, "", "");
    terminate(run, 0);
    archived.server.psql("create role bare login replication");
    let why = "select invalidation_reason from pg_replication_slots where slot_name = 'walden'";
    for user in ["user=postgres", "user=bare"] {
        wait_until("the slot is given up", DEADLINE, || {
            archived.write_wal(1);
            archived.server.psql("checkpoint");
            (archived.server.psql(why) == "idle_timeout").then_some(())
        });
        let status = archived.json(&["status"], 5);
        assert!(status.to_string().contains("is lost"), "{status}");
        archived.configure("user=postgres", user);
        let run = archived.receive();
        archived.write_wal(1);
        wait_until_stored(&archived.server);
        assert_eq!(archived.server.psql(why), "");
        terminate(run, 0);
        archived.configure(user, "user=postgres");
        assert_eq!(archived.gaps(), [], "the WAL was still there");
        assert_eq!(archived.site.catalog().holes(FIRST, archived.site.size), []);
    }
}
