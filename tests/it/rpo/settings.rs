//! A receiver that is at work when somebody makes commits wait for it, or for more than it does, or no longer: it notices without
//! connecting again.

use super::{DEADLINE, plan, receive, stored, terminate, waiting, written};
use crate::site::Site;
use crate::support::postgres::Server;
use crate::support::wait_until;
use std::time::Duration;

fn change(server: &Server, sql: &str) {
    server.psql(&format!("{sql};\nselect pg_reload_conf()"));
}

/// A commit that waits, and where its WAL ends.
#[track_caller]
fn commit(server: &Server, step: u32) {
    let insert =
        format!("set synchronous_commit = on; insert into walden_commits values (0, {step}, 'x')");
    server.try_psql(&insert, DEADLINE).expect_success();
}

#[test]
fn a_change_of_what_commits_wait_for_is_noticed_at_work() {
    let server = waiting(18)
        .setting("synchronous_standby_names = ''")
        .start();
    let site = Site::new(&server, plan("600s", None));
    let mut run = receive(&server, &site.walden);
    commit(&server, 1);
    let end = written(&server);
    assert!(stored(&site) < Some(end), "nobody waits, and rpo is long");

    change(
        &server,
        "alter system set synchronous_standby_names = 'walden'",
    );
    run.wait_for("the change is said", DEADLINE, |_, log| {
        log.contains("commits wait for this receiver now: every byte is stored at once")
    });
    commit(&server, 2);
    let end = written(&server);
    assert!(
        stored(&site) >= Some(end),
        "a commit that waits for us is stored"
    );

    server.psql("create role etl; alter role etl set synchronous_commit = remote_apply");
    run.wait_for("who hangs is said", DEADLINE, |_, log| {
        log.contains("WAL is received meanwhile") && log.contains("etl")
    });
    commit(&server, 3);
    let (_, log) = run.printed();
    assert_eq!(
        log.matches("receiving WAL").count(),
        1,
        "it never connected again\n{log}"
    );

    change(&server, "alter system reset synchronous_standby_names");
    // The server's own file says that nobody waits; what is in force counts.
    change(
        &server,
        "alter system set synchronous_standby_names = 'somebody'",
    );
    run.wait_for("the end is said", DEADLINE, |_, log| {
        log.contains("wait for this receiver no longer")
    });
    server.psql("insert into walden_commits values (0, 4, 'x')");
    let end = written(&server);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(stored(&site) < Some(end), "rpo counts again");
    terminate(run);
}

#[test]
fn a_role_that_sees_no_settings_is_told_so_once_and_still_receives() {
    let server = waiting(15).hba("local all bare reject").start();
    server.psql("create role bare login replication");
    let site = Site::new(&server, plan("sync", None));
    let conninfo = server.conninfo().replace("user=postgres", "user=bare");
    let mut run = site
        .walden
        .receive(&server, ["run", "--postgres", &conninfo]);
    let said = "is noticed only when this receiver connects again";
    run.wait_for("it is said", DEADLINE, |_, log| log.contains(said));
    server.psql("create table walden_commits (client int, step int, payload text)");
    wait_until("commits wait", DEADLINE, || {
        super::is_synchronous(&server).then_some(())
    });
    commit(&server, 1);
    let (_, log) = run.printed();
    assert!(
        log.contains("the settings of roles and databases cannot be seen"),
        "{log}"
    );
    assert_eq!(log.matches(said).count(), 1, "{log}");
    terminate(run);
}
