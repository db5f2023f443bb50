//! A repository that cannot be written must not fill the server's disk: the slot is given up at the limit that is configured, and what that loses is
//! on record once the repository is back. So for a role that may ask nothing, on the right one of several servers, and on a standby.

use super::{Archived, DEADLINE, terminate};
use crate::support::oracle::{assert_same_rows, rows};
use crate::support::postgres::{Builder, Server};
use crate::support::process::Running;
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use std::time::Duration;

const GUARD: &str = "disk_guard = { warn = \"3MiB\", drop_slot = \"9MiB\" }";
const SLOTS: &str = "select count(*) from pg_replication_slots where slot_name = 'walden'";

/// Fills the server's disk until the slot is given up, and looks around when it is much and not yet too much; says how far WAL is stored.
fn give_up(archived: &Archived, run: &Running, at_much: impl FnOnce()) -> wal_format::Lsn {
    archived.set_writable(false);
    let stored = archived.stored_end();
    archived.write_wal(5);
    at_much();
    wait_until("it is said", DEADLINE, || {
        run.printed().1.contains("disk_guard.warn").then_some(())
    });
    assert_eq!(archived.server.psql(SLOTS), "1", "it is too early");
    wait_until("the slot is given up", DEADLINE, || {
        archived.write_wal(1);
        (archived.server.psql(SLOTS) == "0").then_some(())
    });
    // It stays so: another slot would fill the disk as well.
    archived.write_until_removed();
    assert_eq!(archived.server.psql(SLOTS), "0");
    assert_eq!((archived.stored_end(), archived.gaps()), (stored, vec![]));
    stored
}

/// The repository is back: what is lost is on record, and receiving goes on.
fn go_on(archived: &Archived, stored: wal_format::Lsn) {
    archived.set_writable(true);
    wait_until("a gap is on record", DEADLINE, || {
        (!archived.gaps().is_empty()).then_some(())
    });
    wait_until("it receives again", DEADLINE, || {
        (archived.server.psql(SLOTS) == "1" && archived.stored_end() > stored).then_some(())
    });
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    let gaps = archived.gaps();
    assert_eq!(gaps.first().map(|gap| gap.from), Some(stored), "{gaps:?}");
    archived.check_record();
    let listed = archived.json(&["gap", "list"], 5);
    let why = listed["gaps"][0]["why"].as_str().expect("a reason");
    assert!(why.contains("disk_guard dropped the slot"), "{why}");
}

#[track_caller]
fn end(run: Running) -> String {
    let log = terminate(run, 3);
    assert_eq!(log.matches("dropped the slot: ").count(), 1, "{log}");
    log
}

#[test]
fn the_slot_is_given_up_before_the_disk_is_full() {
    let (mut archived, run) = Archived::start(18, &[], GUARD, "[backup]\non_gap = true");
    let before = archived.work_to("before");
    let stored = give_up(&archived, &run, || {
        let status = archived.json(&["status"], 3);
        let said = status["problems"].to_string();
        assert!(
            said.contains("from 9.0 MiB on walden run gives the slot up"),
            "{said}"
        );
    });
    go_on(&archived, stored);
    archived.json(&["status"], 5);
    archived.wait_for_backup_behind(*archived.gaps().last().expect("a gap"));
    let after = archived.work(Duration::from_millis(500));
    wait_until_stored(&archived.server);
    end(run);
    let restorer = &archived.restorer;
    let restored = restorer.restore("before", &["--to-name", "before"]);
    assert_same_rows("before", &before, &rows(&restored.client));
    drop(restored);
    let restored = restorer.restore("after", &["--to", "latest"]);
    assert_same_rows("after", &after, &rows(&restored.client));
}

/// The role has REPLICATION and no other right, and `pg_hba.conf` lets it ask nothing: how much is kept it learns over a connection for replication.
#[test]
fn a_role_that_may_only_replicate_gives_the_slot_up_too() {
    let hba = |builder: Builder| {
        builder
            .hba("local replication bare trust")
            .hba("local all bare reject")
    };
    let (mut archived, run) = Archived::start_with(hba, 15, &[], GUARD, "");
    let before = archived.work_to("before");
    terminate(run, 0);
    archived.server.psql("create role bare login replication");
    archived.configure("user=postgres", "user=bare");
    let run = archived.receive();
    let stored = give_up(&archived, &run, || ());
    go_on(&archived, stored);
    end(run);
    let restorer = &archived.restorer;
    let restored = restorer.restore("before", &["--to-name", "before"]);
    assert_same_rows("before", &before, &rows(&restored.client));
}

/// The first server listed answers and is another cluster's, with a slot of the same name that keeps much: it is none of ours.
#[test]
fn of_several_servers_the_one_that_is_received_from_is_guarded() {
    let stranger = Server::builder(18)
        .wal_segment_mib(1)
        .own_identity()
        .start();
    stranger.psql("select pg_create_physical_replication_slot('walden', true)");
    let (archived, run) = Archived::start(18, &[], GUARD, "");
    terminate(run, 0);
    let hosts = [&stranger, &archived.server].map(|server| server.socket_directory().display());
    let [first, second] = hosts.map(|folder| folder.to_string());
    archived.configure(
        &format!("host={second} "),
        &format!("host={first},{second} "),
    );
    let run = archived.receive();
    stranger.psql(
        "select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, 12000) g",
    );
    let stored = give_up(&archived, &run, || ());
    go_on(&archived, stored);
    let log = end(run);
    assert!(!log.contains(&format!("server=\"{first}")), "{log}");
    assert_eq!(stranger.psql(SLOTS), "1", "it is not ours");
}

/// While nothing can be stored nobody moves the slot on that a standby keeps for a failover: its disk is guarded too.
#[test]
fn the_slot_on_a_standby_is_given_up_too() {
    let (archived, run) = Archived::start(18, &[], GUARD, "");
    terminate(run, 0);
    let standby = archived.server.standby();
    let hosts = [&standby, &archived.server].map(|server| server.socket_directory().display());
    let [first, second] = hosts.map(|folder| folder.to_string());
    archived.configure(
        &format!("host={second} "),
        &format!("target_session_attrs=read-write host={first},{second} "),
    );
    let run = archived.receive();
    wait_until("the standby has a slot", DEADLINE, || {
        (standby.psql(SLOTS) == "1").then_some(())
    });
    let stored = give_up(&archived, &run, || ());
    wait_until("the standby's slot is given up", DEADLINE, || {
        run.printed()
            .1
            .contains("dropped the slot that a standby kept")
            .then_some(())
    });
    let kept = "select coalesce(max(pg_last_wal_receive_lsn() - restart_lsn), 0) < 10000000 from pg_replication_slots";
    assert_eq!(standby.psql(kept), "t");
    go_on(&archived, stored);
    wait_until("the standby has a slot again", DEADLINE, || {
        (standby.psql(SLOTS) == "1").then_some(())
    });
    end(run);
}
