//! The settings of a restored server against the servers themselves: a source full of harmful values, laid out by `pg_basebackup`, must
//! recover to our stop, pause there, and reach into nothing that belongs to its source.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pitr::data_directory::DataDirectory;
use pitr::postgres::{Owner, RecoveryLimits, ServerAddress, ServerCommand, StopMode};
use pitr::recovery_conf::{Action, RecoveryFacts, WalMinimums, plan_recovery_setup};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use support::{Guard, Psql, binaries, give_away, run, wait_until_ready};
use wal_format::{Lsn, TimelineId};

const LIMITS: RecoveryLimits = RecoveryLimits {
    stall: Duration::from_secs(20),
    total: Duration::from_secs(40),
};

/// Source settings each of which would make the restored server fail, wait, or touch its source.
const HARMFUL_MAIN: &str = "
data_directory = '/nonexistent/prod'
hba_file = '/nonexistent/pg_hba.conf'
ident_file = '/nonexistent/pg_ident.conf'
external_pid_file = '/nonexistent/prod.pid'
include '/nonexistent/override.conf'
include_dir '/nonexistent/conf.d'
ssl = on
log_directory = '/nonexistent/log'
unix_socket_group = 'no_such_group'
max_connections = 20
recovery_min_apply_delay = '1h'
synchronous_standby_names = '*'
";
const HARMFUL_AUTO: &str = "
recovery_target_time = 'garbage'
recovery_target_name = 'another'
recovery_target_timeline = '99'
recovery_target_action = 'promote'
restore_command = 'false'
archive_mode = 'on'
archive_command = 'touch FOLDER/harm'
recovery_end_command = 'touch FOLDER/harm'
archive_cleanup_command = 'touch FOLDER/harm'
primary_conninfo = 'host=/nonexistent'
primary_slot_name = 'prod'
hot_standby = 'off'
walden.restored_from = 'an earlier one'";

async fn recovers_and_pauses_whatever_the_source_said(major: u32) {
    let Some(binaries) = binaries(major).await else {
        return;
    };
    let psql = Psql {
        binaries: binaries.clone(),
    };
    let is_root = rustix::process::geteuid().is_root();
    let owner = if is_root {
        Some(Owner::find("nobody").await.unwrap())
    } else {
        None
    };
    let scratch = tempfile::Builder::new()
        .prefix("wp")
        .tempdir_in("/tmp")
        .unwrap();
    let folder = scratch.path().join("a 100% \"b\" 'c' é");
    for path in [scratch.path(), &folder, &folder.join("archive")] {
        std::fs::create_dir_all(path).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        give_away(path, owner);
    }
    let _guards = ["source", "data"].map(|name| Guard(folder.join(name)));
    let text = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let tool = |name: &str| binaries.folder.join(name);

    // The source: a server that archives by copying.
    let source = folder.join("source");
    run(
        owner,
        &tool("initdb"),
        &[
            "-D",
            &text("source"),
            "-A",
            "trust",
            "-U",
            "postgres",
            "-N",
            "--locale=C",
            "--wal-segsize=1",
        ],
    );
    let copy = format!(
        "cp \"%p\" \"{}/%f\"",
        text("archive").replace('%', "%%").replace('"', "\\\"")
    );
    let mut settings = std::fs::read_to_string(source.join("postgresql.conf")).unwrap();
    settings.push_str(&format!(
        "archive_mode = on\narchive_command = {}\nlisten_addresses = ''\nunix_socket_directories = '.'\nmax_connections = 30\nfsync = off\nport = 15999\n",
        pitr::conf_file::quote_value(&copy).unwrap()
    ));
    std::fs::write(source.join("postgresql.conf"), &settings).unwrap();
    let command = ServerCommand {
        binaries: binaries.clone(),
        data_directory: source.clone(),
        log_file: folder.join("source.log"),
        owner,
    };
    let mut server = command.start().unwrap();
    let address = wait_until_ready(&source).await;
    // libpq refuses long socket paths; a link is short.
    let link = scratch.path().join("s");
    std::os::unix::fs::symlink(&source, &link).unwrap();
    let address = ServerAddress {
        socket_directory: Some(link),
        ..address
    };
    psql.ask(
        &address,
        "create table t as select generate_series(1, 1000) i",
    )
    .unwrap();
    let socket = address
        .socket_directory
        .as_deref()
        .unwrap()
        .to_str()
        .unwrap();
    run(
        owner,
        &tool("pg_basebackup"),
        &[
            "-D",
            &text("data"),
            "-h",
            socket,
            "-p",
            "15999",
            "-U",
            "postgres",
            "-X",
            "none",
            "-c",
            "fast",
            "--no-sync",
        ],
    );
    psql.ask(&address, "insert into t select generate_series(1001, 2000)")
        .unwrap();
    let stop: Lsn = psql
        .ask(&address, "select pg_current_wal_insert_lsn()")
        .unwrap()
        .parse()
        .unwrap();
    psql.ask(&address, "select pg_create_restore_point('here')")
        .unwrap();
    psql.ask(
        &address,
        "insert into t select generate_series(2001, 3000); select pg_switch_wal()",
    )
    .unwrap();
    server.stop(StopMode::Fast, LIMITS.total).await.unwrap();

    // What a restore would have laid out.
    let data = DataDirectory::new(&folder.join("data")).unwrap();
    let main = data.path().join("postgresql.conf");
    std::fs::write(&main, format!("{settings}{HARMFUL_MAIN}")).unwrap();
    let auto = HARMFUL_AUTO.replace("FOLDER", scratch.path().to_str().unwrap());
    std::fs::write(data.path().join("postgresql.auto.conf"), auto).unwrap();
    std::fs::write(data.path().join("standby.signal"), "").unwrap();
    let program = folder.join("wal%f 'den'");
    std::fs::write(&program, "#!/bin/sh\n[ \"$1 $2 $4\" = 'archive-get --config --plan' ] || exit 126\n[ -f \"$(cat \"$3\")/$6\" ] || exit 1\ncp \"$(cat \"$3\")/$6\" \"$7\"\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(folder.join("hook %p.toml"), text("archive")).unwrap();
    let overrides = [("shared_buffers".to_owned(), "16MB".to_owned())];
    let facts = RecoveryFacts {
        major,
        stop,
        timeline: TimelineId::FIRST,
        action: Action::Pause,
        minimums: WalMinimums {
            max_connections: 30,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
        },
        restored_from: "7412345678901234567 it's a 'test' \\ é",
        program: &text("wal%f 'den'"),
        hook_config: &text("hook %p.toml"),
        plan_file: &text("plan.json"),
        port: Some(15998),
        listen_addresses: None,
        socket_directory: Some(scratch.path().to_str().unwrap()),
        overrides: &overrides,
    };
    let setup = plan_recovery_setup(&facts, &data).unwrap();
    data.apply(&setup, owner).unwrap();

    let mut server = ServerCommand {
        binaries: binaries.clone(),
        data_directory: data.path().to_owned(),
        log_file: folder.join("data.log"),
        owner,
    }
    .start()
    .unwrap();
    let end = server
        .watch_recovery(Action::Pause, &psql, LIMITS, |_| {})
        .await
        .unwrap();
    let address = end.address.unwrap();
    assert_eq!(
        (address.port, address.socket_directory.as_deref()),
        (15998, Some(scratch.path()))
    );
    assert!(end.replay_lsn.unwrap() > stop);
    assert_eq!(
        psql.ask(&address, "select count(*), max(i) from t")
            .unwrap(),
        "2000|2000"
    );
    let shown = |name: &str| {
        psql.ask(&address, &format!("select current_setting('{name}')"))
            .unwrap()
    };
    for (name, expected) in [
        ("restore_command", setup.restore_command.as_str()),
        ("recovery_target_lsn", &stop.to_string()),
        ("recovery_target_timeline", "1"),
        ("recovery_target_time", ""),
        ("recovery_target_name", ""),
        ("archive_mode", "off"),
        ("archive_command", ""),
        ("primary_conninfo", ""),
        ("synchronous_standby_names", ""),
        ("recovery_end_command", ""),
        ("max_connections", "30"),
        ("max_logical_replication_workers", "0"),
        ("ssl", "off"),
        ("shared_buffers", "16MB"),
        ("walden.restored_from", facts.restored_from),
        ("data_directory", data.as_str()),
        ("external_pid_file", ""),
    ] {
        // The server shows an emptied archive_command as disabled while archive_mode is off.
        let seen = shown(name).replace("(disabled)", "");
        assert_eq!(seen, expected, "{name}");
    }
    assert_eq!(
        psql.ask(
            &address,
            "select count(*) from pg_file_settings where error is not null"
        )
        .unwrap(),
        "0"
    );

    // Afterwards nothing of it is in the way: the server opens, writes, and starts again.
    psql.ask(&address, "select pg_wal_replay_resume()").unwrap();
    let end = server
        .watch_recovery(Action::Promote, &psql, LIMITS, |_| {})
        .await
        .unwrap();
    let address = end.address.unwrap();
    psql.ask(&address, "insert into t values (0)").unwrap();
    server.stop(StopMode::Fast, LIMITS.total).await.unwrap();
    let mut server = ServerCommand {
        binaries,
        data_directory: data.path().to_owned(),
        log_file: folder.join("data.log"),
        owner,
    }
    .start()
    .unwrap();
    let address = wait_until_ready(data.path()).await;
    assert_eq!(
        psql.ask(&address, "select count(*) from t").unwrap(),
        "2001"
    );
    server
        .stop(StopMode::Immediate, LIMITS.total)
        .await
        .unwrap();
    assert!(!scratch.path().join("harm").exists());
}

#[tokio::test]
async fn recovers_and_pauses_whatever_the_source_said_on_15() {
    recovers_and_pauses_whatever_the_source_said(15).await;
}

#[tokio::test]
async fn recovers_and_pauses_whatever_the_source_said_on_18() {
    recovers_and_pauses_whatever_the_source_said(18).await;
}
