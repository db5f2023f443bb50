//! One `walden run` for several listed servers: it finds the primary, keeps a slot on the standby, goes over to it by itself, and does not go
//! back to the old primary when that answers again with another past.

use super::scene::{
    DEADLINE, Scene, mark, terminate, wait_until_replayed, wait_until_safe, write_wal,
};
use crate::support::postgres::{Server, Stop};
use crate::support::wait_until;

fn streams_to_walden(server: &Server) -> bool {
    let sender = "select count(*) from pg_stat_replication where application_name = 'walden' and state = 'streaming'";
    server.psql(sender) == "1"
}

fn slot_of(server: &Server) -> Option<String> {
    let slot =
        server.psql("select restart_lsn from pg_replication_slots where slot_name = 'walden'");
    Some(slot).filter(|slot| !slot.is_empty())
}

#[test]
fn run_goes_over_to_the_server_that_fits() {
    let (mut first, scene) = Scene::new(18);
    // The standby keeps nothing for others: after the failover only our slot can have kept what is needed.
    let second = first.standby();
    second.psql("alter system set wal_keep_size = 0; select pg_reload_conf()");
    let hosts = [&second, &first].map(|server| server.socket_directory().display().to_string());
    let conninfo = format!(
        "host={} port=5432 user=postgres target_session_attrs=read-write",
        hosts.join(",")
    );
    let run = scene
        .site
        .walden
        .receive(&first, ["run", "--postgres", &conninfo]);
    scene.backup(&first);
    wait_until("the standby has a slot", DEADLINE, || slot_of(&second));
    let begun = slot_of(&second).expect("a slot");
    write_wal(&first, 3);
    mark(&first, "first");
    wait_until_safe(&first);
    wait_until_replayed(&second, &first);
    wait_until("the standby's slot is advanced", DEADLINE, || {
        let ahead = format!(
            "select restart_lsn - '{begun}' > 2000000 from pg_replication_slots where slot_name = 'walden'"
        );
        (second.psql(&ahead) == "t").then_some(())
    });
    let kept = format!(
        "select restart_lsn <= '{}' from pg_replication_slots where slot_name = 'walden'",
        first.psql("select flush_lsn from pg_stat_replication where application_name = 'walden'")
    );
    assert_eq!(second.psql(&kept), "t", "never beyond what is stored");

    // WAL that the standby has and the repository has not: it comes from the slot there.
    first.crash();
    second.promote();
    wait_until("run goes over", DEADLINE, || {
        streams_to_walden(&second).then_some(())
    });
    mark(&second, "second");
    wait_until_safe(&second);
    let before = scene.objects();

    // The old primary answers again, and is listed first: it does not fit.
    first.start();
    mark(&first, "stray");
    second.psql("select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'walden'");
    wait_until("run comes back", DEADLINE, || {
        streams_to_walden(&second).then_some(())
    });
    mark(&second, "second again");
    wait_until_safe(&second);
    assert!(!streams_to_walden(&first));
    let log = terminate(run);
    assert!(log.contains("made a slot on a standby"), "{log}");
    before.are_untouched_in(&scene);
    scene.restores(&["--to", "latest"], &["first", "second", "second again"]);
}

/// The new primary archives by itself what it writes, not what it received before it was promoted. That stands in nobody's way: `run` goes back to
/// it, as long as the slot keeps it.
#[test]
fn run_goes_back_to_what_is_missing_before_a_promotion() {
    let (mut primary, scene) = Scene::new(17);
    let standby = primary.standby();
    standby.psql("select pg_create_physical_replication_slot('walden', true)");
    let run = scene.run(&primary);
    scene.backup(&primary);
    mark(&primary, "before");
    wait_until_safe(&primary);
    terminate(run);
    mark(&primary, "missing");
    write_wal(&primary, 3);
    wait_until_replayed(&standby, &primary);
    primary.stop(Stop::Immediate, DEADLINE);
    standby.promote();
    scene.push_from(&standby);
    mark(&standby, "promoted");
    write_wal(&standby, 2);
    scene.finish_segment(&standby);
    standby.psql("alter system set archive_command = ''; select pg_reload_conf()");

    let run = scene.run(&standby);
    mark(&standby, "received");
    wait_until_safe(&standby);
    terminate(run);
    let (code, status) = scene.status(&standby);
    assert_ne!(code, 5, "{status}");
    scene.restores(
        &["--to", "latest"],
        &["before", "missing", "promoted", "received"],
    );
}
