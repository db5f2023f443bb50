//! `walden restore` to the end of its backup, what the server does at a target, and `--not-before`: each as a user gives it.

use super::{DEADLINE, Source};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::{Server, Stop, append};
use crate::support::wal_dump::Target;
use crate::support::walden::wait_until_stored;
use std::time::Duration;

fn ends_as_it_is_told(major: u32) {
    let source = Source::start(Server::builder(major).wal_segment_mib(1), true, None);
    let (server, restorer) = (&source.server, &source.restorer);
    let mut oracle = Oracle::prepare(server, 77);
    let running = oracle.start(server, 2);
    running.wait_for_more(20, DEADLINE);
    source.backup();
    running.wait_for_more(20, DEADLINE);
    oracle.stop(running);
    let dump = oracle.dump(server);
    wait_until_stored(server);
    let [consistent] = dump.backup_ends[..] else {
        panic!("one backup, not {:?}", dump.backup_ends);
    };

    // Immediate: as soon as the backup is consistent, though transactions went on before, during and after it.
    let immediate = Target::Lsn {
        lsn: consistent,
        inclusive: false,
    };
    let first = oracle.rows_at(&dump, &immediate);
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert!(!first.is_empty() && first != latest);
    let restored = restorer.restore("immediate", &["--to", "immediate"]);
    assert_same_rows("immediate", &first, &rows(&restored.client));
    assert!(restored.is_paused());
    drop(restored);

    // Shutdown: nothing runs, and all up to the target is there, when somebody lets it go on.
    let ends: Vec<_> = dump
        .ends
        .iter()
        .filter(|end| end.start > consistent)
        .collect();
    let middle = ends[ends.len() / 2];
    let target = Target::Lsn {
        lsn: middle.end,
        inclusive: false,
    };
    let lsn = middle.end.to_string();
    let expected = oracle.rows_at(&dump, &target);
    assert!(expected != first && expected != latest);
    let target = ["--to-lsn", &lsn, "--exclusive", "--action"];
    let with_action = |action| [target.as_slice(), &[action]].concat();
    let restored = restorer.restore("shut down", &with_action("shutdown"));
    assert_eq!(restored.said["action"], "shutdown");
    assert_eq!(restored.postmaster(), None);
    let mut copy = Server::over_directory(major, &restored.data);
    assert_eq!(
        copy.control_data("Database cluster state"),
        "shut down in recovery"
    );
    // It stops there again, as often as it is started, and can be looked at with another action.
    assert!(copy.try_start(DEADLINE).is_err(), "{}", copy.log());
    assert!(
        copy.log().contains("shutdown at recovery target"),
        "{}",
        copy.log()
    );
    let settings = restored.data.join("postgresql.auto.conf");
    append(&settings, "recovery_target_action = 'pause'\n");
    copy.start();
    assert_same_rows("shutdown", &expected, &rows(&copy));
    copy.stop(Stop::Fast, DEADLINE);
    drop((copy, restored));

    // Promote: open for writing, on a timeline of its own, which its source's repository never hears of.
    let restored = restorer.restore("promoted", &with_action("promote"));
    assert_same_rows("promote", &expected, &rows(&restored.client));
    let copy = &restored.client;
    let opened = "select pg_is_in_recovery(), (select timeline_id from pg_control_checkpoint())";
    assert_eq!(copy.psql(&format!("checkpoint; {opened}")), "f|2");
    copy.psql("create table new as select 1; select pg_switch_wal()");
    drop(restored);
    let plan = restorer.plan(&["--to", "latest"]);
    assert_eq!(plan["timeline"], 1);
    assert_same_rows("the source", &latest, &rows(server));
}

#[test]
fn a_restore_of_18_ends_as_it_is_told() {
    ends_as_it_is_told(18);
}

#[test]
fn a_restore_of_15_ends_as_it_is_told() {
    ends_as_it_is_told(15);
}

#[test]
fn a_plan_that_ends_too_early_is_refused() {
    let source = Source::start(Server::builder(18).wal_segment_mib(1), false, None);
    let (server, restorer) = (&source.server, &source.restorer);
    server.psql("create table t (n int)");
    source.backup();
    // Commit times as the server knows them, to the microsecond.
    let commit = |n: u32| {
        server.psql(&format!("insert into t values ({n})"));
        server.psql(&format!(
            "select to_char(pg_xact_commit_timestamp(xmin) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from t where n = {n}"
        ))
    };
    let [first, second] = [1, 2].map(commit);
    wait_until_stored(server);
    let after = |time: &str, more: Duration| {
        let time: jiff::Timestamp = time.parse().unwrap();
        (time + more).to_string()
    };
    let microsecond = Duration::from_micros(1);

    let restored = restorer.place("too early");
    for (target, not_before) in [
        (first.as_str(), second.clone()),
        (&first, after(&first, microsecond)),
        ("latest", after(&second, microsecond)),
        ("immediate", first.clone()),
    ] {
        for more in [None, Some("--dry-run")] {
            let mut arguments = vec!["--to", target, "--not-before", &not_before];
            arguments.extend(more);
            let arguments = restorer.arguments(&restored, &arguments);
            let refused = restorer.walden.run(arguments).expect_code(4);
            let said = &refused.stdout;
            assert!(
                said.contains("--not-before refuses such a plan"),
                "{refused}"
            );
            assert!(!restored.data.exists(), "{refused}");
        }
    }
    let nonsense = ["--to", "latest", "--not-before", "yesterday-ish"];
    let nonsense = restorer.arguments(&restored, &nonsense);
    restorer.walden.run(nonsense).expect_code(2);
    assert!(!restored.data.exists());

    // Exactly then is not before.
    restorer.plan(&["--to", &first, "--not-before", &first]);
    let local: jiff::Timestamp = second.parse().unwrap();
    let local = local.in_tz("Europe/Paris").unwrap().datetime().to_string();
    let in_paris = ["--to", "latest", "--tz", "Europe/Paris", "--not-before"];
    restorer.plan(&[in_paris.as_slice(), &[&local]].concat());
    let restored = restorer.restore("then", &["--to", "latest", "--not-before", &second]);
    assert_eq!(restored.client.psql("select sum(n) from t"), "3");
}
