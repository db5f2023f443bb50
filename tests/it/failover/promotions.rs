//! Timelines that follow from each other: failover with a lost tail, the old primary rewound, promotions in a row, a planned
//! switchover, standbys promoted in turn.

use super::scene::{
    DEADLINE, Scene, cut_off, follow, mark, marks, rewind, stop, terminate, wait_until_replayed,
    wait_until_safe, write_wal,
};
use crate::support::postgres::{Server, Stop};
use crate::support::process::{self, COMMAND_DEADLINE};
use crate::support::wait_until;

/// The primary dies with a tail that only the repository has. The standby takes over; the old primary is refused when it comes back
/// as it was, is rewound, follows, and is promoted in its turn.
#[test]
fn a_lost_tail_a_rewound_primary_and_promotions_in_a_row() {
    let (mut first, scene) = Scene::new(18);
    let run = scene.run(&first);
    let mut second = first.standby();
    scene.backup(&first);
    mark(&first, "both");
    wait_until_replayed(&second, &first);
    cut_off(&second);
    write_wal(&first, 2);
    let before_it = first.psql("select pg_current_wal_insert_lsn()");
    let lost_xid =
        first.psql("begin; insert into marks values ('lost'); select pg_current_xact_id(); commit");
    wait_until_safe(&first);
    let lost_lsn = commit_between(&first, &before_it);
    first.crash();
    run.kill();
    second.promote();
    let before = scene.objects();
    let run = scene.run(&second);
    mark(&second, "second");
    write_wal(&second, 1);
    wait_until_safe(&second);
    let after = before.are_untouched_in(&scene);
    let (code, status) = scene.status(&second);
    let left = &status["left_behind"][0];
    assert_eq!(
        (code, &left["timeline"], &left["commits"]),
        (0, &1.into(), &1.into()),
        "{status}"
    );
    let last = &left["last"];
    assert_eq!(
        (last["xid"].to_string(), &last["lsn"]),
        (lost_xid, &lost_lsn.into()),
        "{status}"
    );
    terminate(run);
    let after = after.are_untouched_in(&scene);

    // The old primary comes back as it was.
    first.start();
    mark(&first, "stray");
    scene.run_is_refused(&first, "which is not in the history of this server");
    let now = after.are_untouched_in(&scene);
    assert_eq!(now.new_since(&after), [""; 0]);
    stop(&mut first);
    // pg_rewind wants a checkpoint on the new timeline.
    second.psql("checkpoint");
    rewind(&first, &second);
    follow(&mut first, &second);
    let run = scene.run(&second);
    mark(&second, "second again");
    wait_until_replayed(&first, &second);
    wait_until_safe(&second);
    stop(&mut second);
    terminate(run);
    first.promote();
    let run = scene.run(&first);
    mark(&first, "third");
    wait_until_safe(&first);
    terminate(run);
    let objects = after.are_untouched_in(&scene);
    objects.histories_came_first(&scene.cluster(), &[2, 3]);

    let third = ["both", "second", "second again", "third"];
    scene.restores(&["--to", "latest"], &third);
    scene.restores(&["--to", "latest", "--timeline", "2"], &third[..3]);
    scene.restores(&["--to", "latest", "--timeline", "1"], &["both", "lost"]);
}

/// Where the only commit record behind this position starts, as PostgreSQL's own tool sees it.
fn commit_between(server: &Server, from: &str) -> String {
    let mut dump = crate::support::postgres::tool_command(server.major(), "pg_waldump");
    dump.arg("-p")
        .arg(server.wal_directory())
        .args(["-s", from, "-r", "Transaction"]);
    // It ends with an error where WAL ends.
    let printed = process::run(dump, COMMAND_DEADLINE).stdout;
    let commits: Vec<&str> = printed
        .lines()
        .filter(|line| line.contains("desc: COMMIT"))
        .collect();
    let [commit] = commits.as_slice() else {
        panic!("one commit, not {commits:?}")
    };
    let lsn = commit
        .split_once("lsn: ")
        .and_then(|(_, rest)| rest.split_once(','));
    let (high, low) = lsn.expect("an LSN").0.split_once('/').expect("an LSN");
    format!("{high}/{}", low.trim_start_matches('0'))
}

fn wait(first: &Server, second: &Server) {
    wait_until_replayed(second, first);
}

/// Back and forth in order, nothing lost.
#[test]
fn a_planned_switchover_and_back() {
    let (mut first, scene) = Scene::new(15);
    let run = scene.run(&first);
    let mut second = first.standby();
    scene.backup(&first);
    mark(&first, "first");
    wait(&first, &second);
    stop(&mut first);
    terminate(run);
    second.promote();
    let run = scene.run(&second);
    follow(&mut first, &second);
    mark(&second, "second");
    wait(&second, &first);
    stop(&mut second);
    terminate(run);
    first.promote();
    let run = scene.run(&first);
    mark(&first, "third");
    wait_until_safe(&first);
    terminate(run);
    let objects = scene.objects();
    objects.histories_came_first(&scene.cluster(), &[2, 3]);
    scene.restores(&["--to", "latest"], &["first", "second", "third"]);
    scene.restores(&["--to", "latest", "--timeline", "2"], &["first", "second"]);
    scene.restores(&["--to", "latest", "--timeline", "1"], &["first"]);
}

/// Of two standbys the one that is behind is promoted first, then the other, which sees the first one's timeline in the repository and cannot
/// follow it: siblings, and the later one lives.
#[test]
fn two_standbys_promoted_in_turn_as_siblings() {
    let (mut primary, scene) = Scene::new(18);
    let run = scene.run(&primary);
    let mut behind = primary.standby();
    let ahead = primary.standby();
    scene.backup(&primary);
    mark(&primary, "all");
    wait_until_replayed(&behind, &primary);
    cut_off(&behind);
    mark(&primary, "late");
    wait_until_replayed(&ahead, &primary);
    wait_until_safe(&primary);
    primary.stop(Stop::Immediate, DEADLINE);
    terminate(run);
    behind.promote();
    let run = scene.run(&behind);
    mark(&behind, "second");
    write_wal(&behind, 1);
    wait_until_safe(&behind);
    terminate(run);
    behind.stop(Stop::Immediate, DEADLINE);
    scene.restore_from_archive(&ahead);
    ahead.promote();
    let file = ahead.psql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    assert!(file.starts_with("00000003"), "{file} {}", ahead.log());
    let before = scene.objects();
    let run = scene.run(&ahead);
    mark(&ahead, "third");
    wait_until_safe(&ahead);
    let log = terminate(run);
    assert!(log.contains("does not lead to this server"), "{log}");
    let objects = before.are_untouched_in(&scene);
    objects.histories_came_first(&scene.cluster(), &[2, 3]);
    // The one that was promoted first is of the past now.
    behind.start();
    scene.run_is_refused(&behind, "which is not in the history of this server");
    objects.are_untouched_in(&scene);
    scene.restores(&["--to", "latest"], &["all", "late", "third"]);
    scene.restores(&["--to", "latest", "--timeline", "2"], &["all", "second"]);
    scene.restores(
        &["--to", "latest", "--timeline", "current"],
        &["all", "late"],
    );
}

/// Every server archives by `archive_command` and restores from the repository: the second standby follows the first one's timeline through
/// it, and is promoted when that one dies too. The old primary comes back meanwhile and archives its dead branch beside them.
#[test]
fn standbys_follow_each_other_through_the_repository() {
    let (mut primary, scene) = Scene::new(15);
    scene.name_cluster();
    scene.push_from(&primary);
    scene.backup(&primary);
    let mut second = primary.standby();
    let third = primary.standby();
    mark(&primary, "all");
    wait_until_replayed(&second, &primary);
    wait_until_replayed(&third, &primary);
    scene.restore_from_archive(&third);
    primary.crash();
    second.promote();
    mark(&second, "second");
    scene.finish_segment(&second);
    wait_until("the third has it from the repository", DEADLINE, || {
        (marks(&third) == "all,second").then_some(())
    });
    primary.start();
    mark(&primary, "stray");
    scene.finish_segment(&primary);
    mark(&second, "second again");
    scene.finish_segment(&second);
    wait_until("the third goes on", DEADLINE, || {
        (marks(&third) == "all,second,second again").then_some(())
    });
    let before = scene.objects();
    second.crash();
    third.promote();
    mark(&third, "third");
    scene.finish_segment(&third);
    mark(&primary, "stray again");
    scene.finish_segment(&primary);
    let objects = before.are_untouched_in(&scene);
    objects.histories_came_first(&scene.cluster(), &[2, 3]);
    scene.restores(
        &["--to", "latest"],
        &["all", "second", "second again", "third"],
    );
    scene.restores(
        &["--to", "latest", "--timeline", "2"],
        &["all", "second", "second again"],
    );
    let first = ["all", "stray", "stray again"];
    scene.restores(&["--to", "latest", "--timeline", "1"], &first);
}
