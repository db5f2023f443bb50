//! A restored server leaves its source, and whatever that was connected to, alone.

use super::{DEADLINE, Source};
use crate::support::postgres::{Server, Stop, append};
use crate::support::scratch::Scratch;
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use rustix::process::Signal;
use std::fs;
use std::time::Duration;

/// Lines that a source's `postgresql.conf` may have got since it was started; each would make the restored server fail, wait, or touch
/// what is not its own.
const HARMFUL_LINES: &str = "
data_directory = '/nonexistent/prod'
hba_file = '/nonexistent/pg_hba.conf'
ident_file = '/nonexistent/pg_ident.conf'
external_pid_file = '/nonexistent/prod.pid'
include '/nonexistent/override.conf'
include_dir '/nonexistent/conf.d'
ssl = on
log_directory = '/nonexistent/log'
unix_socket_group = 'no_such_group'
";
/// And its `postgresql.auto.conf`, from an earlier restore or by hand.
const HARMFUL_LINES_OF_ITS_OWN: &str = "
recovery_target_time = 'garbage'
walden.restored_from = 'an earlier one'
";

/// The settings of a restored server whose source had every value that would do harm.
fn leaves_the_source_alone(major: u32) {
    let marks = Scratch::new();
    // Server commands run in the data directory, so each mark says whose it is.
    let mark = |name: &str| format!("'pwd >> {}/{name}'", marks.path().display());
    let builder = Server::builder(major)
        .wal_segment_mib(1)
        .setting("archive_mode = on")
        .setting(format!("archive_command = {}", mark("archived")));
    let source = Source::start(builder, true, None);
    let server = &source.server;
    let mut harmful = vec![
        ("recovery_end_command", mark("ended")),
        ("archive_cleanup_command", mark("cleaned")),
        ("restore_command", mark("restored")),
        ("primary_conninfo", "'host=/nowhere user=nobody'".to_owned()),
        ("primary_slot_name", "'nothing'".to_owned()),
        ("recovery_target_name", "'long ago'".to_owned()),
        ("recovery_target_inclusive", "off".to_owned()),
        ("recovery_target_action", "shutdown".to_owned()),
        ("recovery_target_timeline", "'7'".to_owned()),
        ("recovery_min_apply_delay", "'1h'".to_owned()),
        ("hot_standby", "off".to_owned()),
        // None takes effect on the source before its next start, so pg_control has what it runs with.
        ("max_connections", "20".to_owned()),
        ("max_worker_processes", "1".to_owned()),
        ("max_wal_senders", "5".to_owned()),
        ("max_locks_per_transaction", "10".to_owned()),
        ("max_logical_replication_workers", "4".to_owned()),
        // Walden is one, so the source's commits are not held up.
        ("synchronous_standby_names", "'*'".to_owned()),
    ];
    if major == 15 {
        let file = marks.join("promote");
        fs::write(&file, "").unwrap();
        harmful.push(("promote_trigger_file", format!("'{}'", file.display())));
    }
    let statements: String = harmful
        .iter()
        .map(|(name, value)| format!("alter system set {name} = {value};\n"))
        .collect();
    server.psql(&format!("{statements} select pg_reload_conf()"));
    // Each process reads the files by itself: the ones that matter must have done so before lines are added that they must not read.
    wait_until("the settings are in effect", DEADLINE, || {
        let state = server.psql(
            "select current_setting('synchronous_standby_names'), sync_state from pg_stat_replication",
        );
        (state == "*|sync").then_some(())
    });
    append(
        &server.data_directory().join("postgresql.conf"),
        HARMFUL_LINES,
    );
    let own = server.data_directory().join("postgresql.auto.conf");
    append(&own, HARMFUL_LINES_OF_ITS_OWN);
    fs::write(server.data_directory().join("standby.signal"), "").unwrap();
    source.backup();
    server.psql("create table t as select generate_series(1, 100) as n; select pg_switch_wal()");
    server.psql("insert into t values (101)");
    wait_until_stored(server);

    let restored = source.restorer.restore("harmless", &["--to", "latest"]);
    let copy = &restored.client;
    assert!(restored.is_paused());
    assert_eq!(copy.psql("select count(*) from t"), "101");
    for (name, wanted) in [
        ("archive_mode", "off"),
        ("recovery_end_command", ""),
        ("archive_cleanup_command", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("synchronous_standby_names", ""),
        ("recovery_target_name", ""),
        ("recovery_target_inclusive", "on"),
        ("recovery_target_action", "pause"),
        ("recovery_target_timeline", "1"),
        ("recovery_min_apply_delay", "0"),
        ("hot_standby", "on"),
        ("max_connections", "100"),
        ("max_worker_processes", "8"),
        ("max_wal_senders", "10"),
        ("max_locks_per_transaction", "64"),
        ("max_logical_replication_workers", "0"),
        ("recovery_target_time", ""),
        ("data_directory", restored.data.to_str().unwrap()),
        ("external_pid_file", ""),
        ("ssl", "off"),
    ] {
        assert_eq!(copy.psql(&format!("show {name}")), wanted, "{name}");
    }
    let wrong = "select name, error from pg_file_settings where error is not null";
    assert_eq!(copy.psql(wrong), "");
    let from = copy.psql("show walden.restored_from");
    assert!(
        from.contains(restored.said["backup"].as_str().unwrap()),
        "{from}"
    );

    copy.psql("select pg_wal_replay_resume()");
    wait_until("the restored server is open for writing", DEADLINE, || {
        (copy.psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    // A commit that waits for a standby waits for ever.
    let commit = "insert into t values (102); select pg_switch_wal(); checkpoint";
    copy.try_psql(commit, Duration::from_secs(30))
        .expect_success();
    restored.stop(Signal::INT);
    for name in ["ended", "cleaned", "restored"] {
        assert!(!marks.join(name).exists(), "{name}");
    }
    let archived = fs::read_to_string(marks.join("archived")).unwrap();
    let own = server.data_directory().to_str().unwrap();
    assert!(archived.lines().count() > 0, "the source archives");
    assert!(archived.lines().all(|line| line == own), "{archived}");

    // Nothing of the restore is in the way of its next start.
    let mut copy = Server::over_directory(major, &restored.data);
    copy.start();
    assert_eq!(
        copy.psql("select count(*), pg_is_in_recovery() from t"),
        "102|f"
    );
    copy.stop(Stop::Fast, DEADLINE);
}

#[test]
fn a_restored_server_of_18_leaves_its_source_alone() {
    leaves_the_source_alone(18);
}

#[test]
fn a_restored_server_of_15_leaves_its_source_alone() {
    leaves_the_source_alone(15);
}
