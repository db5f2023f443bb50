//! The support code judges Walden, so it is tested itself: servers, the store, the workload and its oracle.

use crate::support::object_store::Bucket;
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::ports::Port;
use crate::support::postgres::{MAJORS, Server, Stop};
use crate::support::process::{COMMAND_DEADLINE, Running, command};
use crate::support::tls::Authority;
use crate::support::wal_dump::{Lsn, Target, WalDump};
use crate::support::walden::Walden;
use crate::support::workload::{Outcome, Random};
use std::time::Duration;

const STOP: Duration = Duration::from_secs(30);

#[test]
fn every_major_starts_and_says_its_version() {
    for major in MAJORS {
        let mut server = Server::builder(major).start();
        let version = server.psql("show server_version_num");
        assert!(version.starts_with(&major.to_string()), "{version}");
        assert_eq!(
            server.control_data("Bytes per WAL segment"),
            (16 << 20).to_string()
        );
        server.stop(Stop::Fast, STOP);
        assert!(!server.is_running());
    }
}

#[test]
fn options_of_a_server_are_what_was_asked_for() {
    let builder = Server::builder(18)
        .wal_segment_mib(1)
        .data_checksums(false)
        .own_identity();
    let builder = builder
        .tcp()
        .folder("Größe 50% 'q'")
        .setting("work_mem = 5MB");
    let server = builder.hba("host all nobody 127.0.0.1/32 reject").start();
    assert_eq!(
        server.psql("show wal_segment_size; show data_checksums; show work_mem"),
        "1MB\noff\n5MB"
    );
    assert_eq!(server.psql("show port"), server.port().to_string());
    let twin = Server::builder(18)
        .wal_segment_mib(1)
        .data_checksums(false)
        .make();
    let identity = "Database system identifier";
    assert_ne!(server.control_data(identity), twin.control_data(identity));
    assert!(server.conninfo().contains("host=/"));
    let refused = server.try_psql("select 1; select no_such_column", COMMAND_DEADLINE);
    assert_eq!((refused.code(), refused.stdout.as_str()), (3, "1\n"));
}

/// The oracle against PostgreSQL itself: its own recovery, to targets of every kind, or to a part of them.
fn oracle_agrees_with_recovery(major: u32, every: usize) {
    let server = Server::builder(major).wal_segment_mib(1).start();
    let mut oracle = Oracle::prepare(&server, 7);
    let backup = server.scratch().join("backup");
    oracle.run(&server, 2, Duration::from_millis(500));
    server.base_backup(&backup, &["-X", "none"]);
    let backed_up = server.psql("select pg_current_wal_flush_lsn()");
    oracle.run(&server, 3, Duration::from_secs(2));
    server.psql("select pg_create_restore_point('a point')");
    oracle.run(&server, 2, Duration::from_millis(500));
    assert!(
        oracle.journal.count(Outcome::Committed) > 20,
        "the workload did something"
    );
    assert!(
        oracle.journal.count(Outcome::RolledBack) > 2,
        "some of it was rolled back"
    );

    let dump = oracle.dump(&server);
    oracle.check(&dump, Some(&server));
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("latest", &latest, &rows(&server));

    let mut different = std::collections::BTreeSet::new();
    let targets = oracle.targets(&dump, Lsn::parse(&backed_up), &mut Random::new(3));
    assert!(targets.len() > 20, "{targets:?}");
    assert!(
        targets.contains(&Target::Name("a point".to_owned())),
        "{targets:?}"
    );
    for target in targets.into_iter().step_by(every) {
        let expected = oracle.rows_at(&dump, &target);
        let recovered = recover(&server, &backup, &target);
        assert_same_rows(&format!("{target:?}"), &expected, &rows(&recovered));
        different.insert(expected.len());
    }
    assert!(different.len() > 1, "the targets differ in their rows");
}

/// A copy of `backup`, recovered by PostgreSQL from the WAL in `server`'s own folder, paused at `target`.
fn recover(server: &Server, backup: &std::path::Path, target: &Target) -> Server {
    let copied = server.scratch().join("recovered");
    if copied.exists() {
        std::fs::remove_dir_all(&copied).expect("remove the last recovery");
    }
    let mut copy = command("cp");
    copy.arg("-a").arg(backup).arg(&copied);
    Running::start(copy).wait(COMMAND_DEADLINE).expect_success();
    let (setting, inclusive) = match target {
        Target::Latest => ("recovery_target_timeline = 'latest'".to_owned(), true),
        Target::Time { time, inclusive } => {
            {
                // Settings are read before the abbreviations of zones are, so `Z` is not understood there.
                let time = time.to_string().replace('Z', "+00");
                (format!("recovery_target_time = '{time}'"), *inclusive)
            }
        }
        Target::Lsn { lsn, inclusive } => (format!("recovery_target_lsn = '{lsn}'"), *inclusive),
        Target::Xid { xid, inclusive } => (format!("recovery_target_xid = '{xid}'"), *inclusive),
        Target::Name(name) => (format!("recovery_target_name = '{name}'"), true),
    };
    let wal = server.wal_directory();
    let conf = format!(
        "restore_command = 'cp \"{}\"/%f %p'\nrecovery_target_inclusive = {inclusive}\n{setting}\n",
        wal.display()
    );
    let path = copied.join("postgresql.auto.conf");
    let before = std::fs::read_to_string(&path).expect("read the settings");
    std::fs::write(&path, before + &conf).expect("write the settings");
    std::fs::write(copied.join("recovery.signal"), "").expect("ask for recovery");
    let mut recovered = Server::over_directory(server.major(), &copied);
    recovered.start();
    crate::support::wait_until("recovery pauses at its target", COMMAND_DEADLINE, || {
        (recovered.psql("select pg_get_wal_replay_pause_state()") == "paused").then_some(())
    });
    recovered
}

#[test]
fn oracle_agrees_with_recovery_of_18() {
    oracle_agrees_with_recovery(18, 1);
}

#[test]
fn oracle_agrees_with_recovery_of_15() {
    oracle_agrees_with_recovery(15, 3);
}

#[test]
fn crash_keeps_what_was_committed_and_promotion_starts_a_timeline() {
    let mut server = Server::builder(17).wal_segment_mib(1).start();
    let mut oracle = Oracle::prepare(&server, 11);
    let running = oracle.start(&server, 3);
    running.wait_for_more(50, COMMAND_DEADLINE);
    let old = server.postmaster();
    server.crash();
    oracle.stop(running);
    assert!(!server.is_running());
    server.start();
    assert_ne!(server.postmaster(), old);
    let dump = oracle.dump(&server);
    oracle.check(&dump, Some(&server));
    assert_same_rows(
        "after a crash",
        &oracle.rows_at(&dump, &Target::Latest),
        &rows(&server),
    );
    oracle.forget_lost(&dump);

    let standby = server.standby();
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    oracle.run(&server, 1, Duration::from_millis(300));
    server.stop(Stop::Fast, STOP);
    standby.promote();
    oracle.run(&standby, 1, Duration::from_millis(300));
    let history = standby.wal_directory().join("00000002.history");
    let history = std::fs::read_to_string(history).expect("promotion wrote a history file");
    let fork = Lsn::parse(history.split('\t').nth(1).expect("the switch point"));
    let from = oracle.start_lsn();
    let first = WalDump::read(17, &server.wal_directory(), 1, from, fork);
    let whole = first.then(WalDump::of_server(&standby, fork));
    oracle.check(&whole, Some(&standby));
    assert_same_rows(
        "after promotion",
        &oracle.rows_at(&whole, &Target::Latest),
        &rows(&standby),
    );
}

#[test]
fn a_server_speaks_tls_with_its_authority_only() {
    let authority = Authority::new();
    let server = Server::builder(18).tls(&authority, &["localhost"]).start();
    let ca = server.scratch().join("ca.crt");
    std::fs::write(&ca, authority.certificate()).expect("write the authority");
    let ask = |host: &str, ca: &std::path::Path| {
        let mut psql = server.psql_command();
        let conninfo = format!(
            "host={host} sslmode=verify-full sslrootcert={}",
            ca.display()
        );
        psql.arg("-d").arg(conninfo);
        psql.args([
            "-c",
            "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
        ]);
        Running::start(psql).wait(COMMAND_DEADLINE)
    };
    assert_eq!(ask("localhost", &ca).expect_success().stdout, "t\n");
    assert!(
        ask("127.0.0.1", &ca)
            .expect_code(2)
            .stderr
            .contains("does not match host name")
    );
    let other = server.scratch().join("other.crt");
    std::fs::write(&other, Authority::new().certificate()).expect("write another authority");
    ask("localhost", &other).expect_code(2);
}

#[test]
fn the_store_speaks_tls_too() {
    let bucket = Bucket::new();
    let ask = |arguments: &[&str]| {
        let mut python = command("python3");
        python.args(["-c", "import ssl, sys, urllib.request as r\n\
            context = ssl.create_default_context(cafile=sys.argv[2] if len(sys.argv) > 2 else None)\n\
            print(r.urlopen(sys.argv[1] + '/healthz', context=context).status)"]);
        python.arg(bucket.https_endpoint()).args(arguments);
        Running::start(python).wait(COMMAND_DEADLINE)
    };
    let ca = bucket.ca_file().to_str().expect("a plain path");
    assert_eq!(ask(&[ca]).expect_success().stdout, "200\n");
    assert!(
        ask(&[])
            .expect_code(1)
            .stderr
            .contains("CERTIFICATE_VERIFY_FAILED")
    );
}

#[test]
fn a_server_that_cannot_start_is_an_answer() {
    let mut server = Server::builder(16)
        .setting("shared_buffers = nonsense")
        .make();
    let why = server
        .try_start(COMMAND_DEADLINE)
        .expect_err("the setting is wrong");
    assert!(why.contains("ended"), "{why}");
    assert!(server.log().contains("nonsense"), "{}", server.log());
}

#[test]
fn pgbench_runs_and_a_stopped_server_says_so() {
    let mut server = Server::builder(18).start();
    server.pgbench(&["-i", "-s", "1", "-q"], COMMAND_DEADLINE);
    let output = server.pgbench(&["-c", "2", "-t", "20"], COMMAND_DEADLINE);
    assert!(output.stdout.contains("40/40"), "{output}");
    server.stop(Stop::Immediate, STOP);
    server.start();
    crate::support::process::send(server.postmaster(), rustix::process::Signal::INT);
    assert_eq!(server.wait_for_exit(STOP).code(), Some(0));
    assert!(server.log_path().starts_with(server.scratch()));
    assert!(server.data_directory().starts_with(server.scratch()));
}

#[test]
fn buckets_are_apart_and_hold_what_was_put() {
    let (one, other) = (Bucket::new(), Bucket::new());
    assert_ne!(one.name(), other.name());
    assert_eq!(one.url("p"), format!("s3://{}/p", one.name()));
    assert!(
        one.environment()
            .iter()
            .any(|(name, _)| name == "AWS_ENDPOINT_URL")
    );
    let keys = ["a/1 with space", "a/2+&<>", "b/Größe"];
    for key in keys {
        one.put(key, key.as_bytes());
    }
    assert_eq!(one.list(""), keys);
    assert_eq!(one.list("a/"), ["a/1 with space", "a/2+&<>"]);
    assert_eq!(other.list(""), [""; 0]);
    assert_eq!(one.get("b/Größe"), "b/Größe".as_bytes());
    let big: Vec<u8> = {
        let mut random = Random::new(1);
        (0..200_000)
            .flat_map(|_| random.next().to_le_bytes())
            .collect()
    };
    one.put("big", &big);
    assert!(one.get("big") == big, "1.6 MB come back as they went");
    one.delete("a/1 with space");
    assert_eq!(one.request("GET", "a/1 with space", &[], b"").status, 404);
    let stranger = Bucket::with_wrong_secret();
    assert_eq!(stranger.request("GET", "big", &[], b"").status, 403);
}

#[test]
fn ports_are_leased_to_one_at_a_time() {
    let leased: Vec<Port> = (0..20).map(|_| Port::lease()).collect();
    let numbers: std::collections::BTreeSet<u16> = leased.iter().map(Port::number).collect();
    assert_eq!(numbers.len(), leased.len());
    assert!(
        numbers
            .iter()
            .all(|number| (10_000..20_000).contains(number))
    );
}

#[test]
fn a_child_past_its_deadline_is_killed_and_fails_the_test() {
    let mut sleeper = command("sleep");
    sleeper.arg("600");
    let sleeper = Running::start(sleeper);
    let id = sleeper.id();
    let failed = std::thread::spawn(move || sleeper.wait(Duration::from_millis(50))).join();
    assert!(failed.is_err());
    crate::support::process::wait_gone(&[id]);
}

#[test]
fn output_of_a_running_child_can_be_awaited() {
    let mut shell = command("sh");
    shell.args(["-c", "echo ready; echo warned >&2; read -r nothing; exit 7"]);
    let mut shell = Running::start(shell);
    shell.wait_for("both lines", COMMAND_DEADLINE, |out, err| {
        out.contains("ready") && err.contains("warned")
    });
    shell.wait(COMMAND_DEADLINE).expect_code(7);
    let mut sleeper = command("sleep");
    sleeper.arg("600");
    assert_eq!(Running::start(sleeper).kill().code(), 128 + 9);
}

#[test]
fn walden_runs_in_a_folder_with_an_environment() {
    let scratch = crate::support::scratch::Scratch::new();
    let walden = Walden::in_directory(scratch.path()).env("NO_COLOR", "1");
    let walden = walden.envs([("WALDEN_TEST".to_owned(), "1".to_owned())]);
    let output = walden.run(["--version"]).expect_success();
    assert!(
        output
            .command
            .contains(&Walden::program().display().to_string())
    );
}
