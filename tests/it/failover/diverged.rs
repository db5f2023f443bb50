//! Servers of one identity that wrote different WAL: a clone that archives first, a rollback, a region split. What is stored first stays,
//! who comes second is told so, and goes on in an incarnation of its own.

use super::scene::{
    DEADLINE, Scene, copy_over, cut_off, mark, stop, switch, terminate, wait_until_replayed,
    wait_until_safe, write_wal,
};
use crate::support::postgres::{Server, Stop};
use crate::support::wait_until;
use serde_json::Value;

/// The server's archiver process fails, and the reason is in its log.
#[track_caller]
fn archiving_fails(server: &Server, because: &str) {
    wait_until("the archiver fails", DEADLINE, || {
        let failed = server.psql("select failed_count > 0 from pg_stat_archiver");
        (failed == "t").then_some(())
    });
    let log = server.log();
    assert!(log.contains(because), "{because:?}\n{log}");
}

/// `walden init --new-incarnation` for the configured server.
#[track_caller]
fn open_incarnation(scene: &Scene) -> Value {
    let arguments = ["init", "--new-incarnation", "--json"];
    let opened = scene.site.walden.run(arguments).expect_success().json();
    assert_eq!(opened["schema"], "walden.new-incarnation");
    opened
}

/// A copy of a stopped server's files is started beside it, not promoted, and archives before the original does.
#[test]
fn a_snapshot_clone_that_archives_first() {
    let (mut original, scene) = Scene::new(18);
    let identifier = scene.name_cluster();
    scene.push_from(&original);
    scene.backup(&original);
    mark(&original, "both");
    scene.finish_segment(&original);
    stop(&mut original);
    let mut clone = scene.copy_of(original.data_directory(), "clone");
    clone.start();
    mark(&clone, "clone");
    scene.finish_segment(&clone);
    clone.stop(Stop::Immediate, DEADLINE);
    let before = scene.objects();
    original.start();
    mark(&original, "original");
    switch(&original);
    archiving_fails(&original, "already stored with different contents");
    let before = before.are_untouched_in(&scene);
    scene.run_is_refused(&original, "the server");

    let opened = open_incarnation(&scene);
    let second = format!("{identifier}.1");
    assert_eq!(opened["cluster"], second);
    assert_eq!(opened["parent"], identifier);
    assert_eq!(opened["config_is"], "written");
    // The archiver process tries again by itself, and now finds a place.
    mark(&original, "after");
    scene.finish_segment(&original);
    scene.backup(&original);
    mark(&original, "after the backup");
    scene.finish_segment(&original);
    before.are_untouched_in(&scene);
    let own = ["after", "after the backup", "both", "original"];
    scene.restores(&["--to", "latest", "--cluster", &second], &own);
    let clones = ["--to", "latest", "--cluster", &identifier];
    scene.restores(&clones, &["both", "clone"]);
}

/// A server's storage is put back, and it goes on; `walden run` is stopped by that, and goes on in another incarnation.
#[test]
fn a_rolled_back_server_goes_on_in_an_incarnation_of_its_own() {
    let (mut server, scene) = Scene::new(15);
    let identifier = scene.name_cluster();
    let run = scene.run(&server);
    scene.backup(&server);
    mark(&server, "before");
    wait_until_safe(&server);
    terminate(run);
    stop(&mut server);
    let kept = scene.copies.join("kept");
    copy_over(server.data_directory(), &kept);
    server.start();
    let run = scene.run(&server);
    mark(&server, "undone");
    write_wal(&server, 2);
    wait_until_safe(&server);
    terminate(run);
    stop(&mut server);
    copy_over(&kept, server.data_directory());
    server.start();
    mark(&server, "again");
    let before = scene.objects();
    scene.run_is_refused(&server, "the server was rolled back");
    assert!(
        before
            .are_untouched_in(&scene)
            .new_since(&before)
            .is_empty()
    );

    let second = format!("{identifier}.1");
    let opened = open_incarnation(&scene);
    assert_eq!(
        (&opened["cluster"], &opened["cluster_is_new"]),
        (&Value::from(second.as_str()), &Value::Bool(true))
    );
    // Nothing is stored in it yet: the same call means the same place.
    let found = open_incarnation(&scene);
    assert_eq!(found["cluster"], second);
    assert_eq!(
        (&found["cluster_is_new"], &found["config_is"]),
        (&Value::Bool(false), &Value::from("unchanged"))
    );
    let run = scene.run(&server);
    scene.backup(&server);
    mark(&server, "last");
    wait_until_safe(&server);
    terminate(run);
    before.are_untouched_in(&scene);
    scene.restores(
        &["--to", "latest", "--cluster", &second],
        &["again", "before", "last"],
    );
    scene.restores(
        &["--to", "latest", "--cluster", &identifier],
        &["before", "undone"],
    );
    let third = open_incarnation(&scene);
    assert_eq!(
        (&third["cluster"], &third["parent"]),
        (
            &Value::from(format!("{identifier}.2")),
            &Value::from(second)
        )
    );
}

/// A primary that is gone (its folder holds the repository) and two standbys of it, promoted apart: both go on as timeline 2.
fn parted(major: u32, same_point: bool) -> (Server, Scene, Server, Server) {
    let (mut primary, scene) = Scene::new(major);
    let run = scene.run(&primary);
    let west = primary.standby();
    let east = primary.standby();
    scene.backup(&primary);
    mark(&primary, "both");
    wait_until_replayed(&west, &primary);
    wait_until_replayed(&east, &primary);
    if !same_point {
        cut_off(&east);
        mark(&primary, "west of the split");
        wait_until_replayed(&west, &primary);
    }
    wait_until_safe(&primary);
    primary.stop(Stop::Immediate, DEADLINE);
    terminate(run);
    west.promote();
    east.promote();
    (primary, scene, west, east)
}

fn split(same_point: bool) {
    let (_primary, scene, west, east) = parted(18, same_point);
    let history = |server: &Server| {
        std::fs::read(server.wal_directory().join("00000002.history")).expect("a history")
    };
    assert_eq!(history(&west) == history(&east), same_point);

    let run = scene.run(&west);
    mark(&west, "west");
    write_wal(&west, 2);
    wait_until_safe(&west);
    let before = scene.objects();
    mark(&east, "east");
    write_wal(&east, 1);
    let because = if same_point {
        "the server was rolled back"
    } else {
        "already stored with different contents"
    };
    scene.run_is_refused(&east, because);
    scene.run_is_refused(
        &east,
        "`walden init --new-incarnation` goes on beside what is stored",
    );
    // Its archiver process is refused too, at the history file or at the first segment.
    scene.push_from(&east);
    switch(&east);
    archiving_fails(&east, "already stored with different contents");
    let before = before.are_untouched_in(&scene);
    mark(&west, "west again");
    wait_until_safe(&west);
    terminate(run);
    before.are_untouched_in(&scene);
    let mut wests = vec!["both", "west", "west again", "west of the split"];
    if same_point {
        wests.pop();
    }
    scene.restores(&["--to", "latest", "--timeline", "latest"], &wests);
}

#[test]
fn a_region_split_with_two_timelines_2() {
    split(false);
}

#[test]
fn a_region_split_at_one_point_with_the_same_history() {
    split(true);
}

/// Both sides wrote the same number of bytes, record for record, since they parted: only the times of their commits differ.
#[test]
fn a_region_split_at_one_point_with_records_at_the_same_positions() {
    let (_primary, scene, west, east) = parted(17, true);
    let run = scene.run(&west);
    mark(&west, "west");
    wait_until_safe(&west);
    terminate(run);
    let before = scene.objects();
    // Of the same length as the other's, and more behind it: the server is not behind what is stored.
    mark(&east, "east");
    mark(&east, "more");
    scene.run_is_refused(&east, "does not come again");
    before.are_untouched_in(&scene);
    scene.restores(
        &["--to", "latest", "--timeline", "latest"],
        &["both", "west"],
    );
}

/// The other side of a split is listed first. Its history file is another one, which is no fault of the repository.
#[test]
fn run_passes_over_a_server_with_another_history() {
    let (_primary, scene, west, east) = parted(18, false);
    let run = scene.run(&west);
    mark(&west, "west");
    wait_until_safe(&west);
    terminate(run);
    let before = scene.objects();
    mark(&east, "east");
    let hosts = [&east, &west].map(|server| server.socket_directory().display().to_string());
    let conninfo = format!("host={} port=5432 user=postgres", hosts.join(","));
    let walden = &scene.site.walden;
    let run = walden.receive(&west, ["run", "--postgres", &conninfo]);
    mark(&west, "west again");
    wait_until_safe(&west);
    let log = terminate(run);
    assert!(log.contains("trying the next one listed"), "{log}");
    before.are_untouched_in(&scene);
    scene.restores(
        &["--to", "latest", "--timeline", "latest"],
        &["both", "west", "west again", "west of the split"],
    );
}

/// A restored clone was opened, and before it is adopted a standby is promoted to the same timeline and archives. It is not let in beside
/// that, and goes on in a place of its own.
#[test]
fn a_restored_clone_that_comes_too_late() {
    let (mut primary, scene) = Scene::new(18);
    let identifier = scene.name_cluster();
    let run = scene.run(&primary);
    let standby = primary.standby();
    scene.backup(&primary);
    mark(&primary, "both");
    wait_until_replayed(&standby, &primary);
    wait_until_safe(&primary);
    let restored = scene.restores(&["--to", "latest"], &["both"]);
    let clone = &restored.client;
    let conninfo = clone.conninfo();
    let init = |flag: &str| {
        let arguments = ["init", flag, "--json", "--postgres", &conninfo];
        scene.site.walden.run(arguments)
    };
    let refused = init("--adopt").expect_code(2);
    assert!(refused.stdout.contains("still in recovery"), "{refused}");
    clone.psql("select pg_wal_replay_resume()");
    wait_until("the clone is open", DEADLINE, || {
        (clone.psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    scene.run_is_refused(clone, "walden init --adopt");
    primary.stop(Stop::Immediate, DEADLINE);
    terminate(run);
    standby.promote();
    let run = scene.run(&standby);
    mark(&standby, "standby");
    wait_until_safe(&standby);
    terminate(run);
    let before = scene.objects();
    let refused = init("--adopt").expect_code(5);
    assert!(refused.stderr.contains("--new-incarnation"), "{refused}");
    assert!(
        before
            .are_untouched_in(&scene)
            .new_since(&before)
            .is_empty()
    );
    let kept = clone.psql("show walden.restored_from");
    assert!(kept.starts_with(&identifier), "{kept}");

    let second = format!("{identifier}.1");
    let opened = init("--new-incarnation").expect_success().json();
    assert_eq!(
        (&opened["cluster"], &opened["restored_from"]),
        (&second.as_str().into(), &kept.as_str().into())
    );
    scene.run_is_refused(clone, "walden init --adopt");
    let adopted = init("--adopt").expect_success().json();
    assert_eq!(
        (&adopted["cluster"], &adopted["restored_from"]),
        (&second.as_str().into(), &kept.into())
    );
    let settings = adopted["settings"].as_array().expect("a list");
    let archive_mode = settings.iter().find(|one| one["name"] == "archive_mode");
    let archive_mode = archive_mode.expect("it was turned off");
    assert_eq!(
        (&archive_mode["value"], &archive_mode["needs_restart"]),
        (&"off".into(), &true.into())
    );
    let again = init("--adopt").expect_success().json();
    assert_eq!(again["restored_from"], Value::Null);
    let run = scene.run(clone);
    scene.backup(clone);
    mark(clone, "clone");
    wait_until_safe(clone);
    terminate(run);
    before.are_untouched_in(&scene);
    scene.restores(
        &["--to", "latest", "--cluster", &second],
        &["both", "clone"],
    );
    scene.restores(
        &["--to", "latest", "--cluster", &identifier],
        &["both", "standby"],
    );
    let listed = scene
        .site
        .walden
        .run(["list", "--json"])
        .expect_success()
        .json();
    assert_eq!(listed["cluster"], second);
    assert_eq!(
        listed["other_incarnations"],
        serde_json::json!([identifier])
    );
}
