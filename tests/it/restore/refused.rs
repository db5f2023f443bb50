//! What `walden restore` refuses before it writes anything.

use super::{Source, tree};
use crate::support::postgres::Server;
use crate::support::walden::wait_until_stored;
use repository::identity::{ExposeSecret, generate_identity};
use rustix::process::Signal;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

#[test]
fn what_cannot_be_restored_is_refused_before_anything_is_written() {
    let source = Source::start(Server::builder(18).wal_segment_mib(1), true, None);
    let server = &source.server;
    let too_early = format!("{:.6}", jiff::Timestamp::now());
    source.backup();
    server.psql("create table t (n int); insert into t values (1)");
    for _ in 0..4 {
        server.psql("insert into t select generate_series(1, 1000); select pg_switch_wal()");
    }
    server.psql("insert into t values (2)");
    wait_until_stored(server);
    let restored = source.restorer.place("never");
    let absent = || {
        assert!(!restored.data.exists());
    };

    let future = format!("{:.6}", jiff::Timestamp::now() + Duration::from_secs(3600));
    for (target, value) in [
        ("--to", future.as_str()),
        ("--to-time", &too_early),
        ("--to-name", "no such point"),
        ("--to-xid", "3000000000"),
        ("--to-lsn", "7F/0"),
    ] {
        let arguments = source.restorer.arguments(&restored, &[target, value]);
        let refused = source.restorer.walden.run(arguments).expect_code(4);
        assert!(
            refused.stdout.contains("reachable: 20"),
            "{target}: {refused}"
        );
        absent();
    }

    // A folder that somebody uses, and a server that runs.
    let used = source.restorer.place("used");
    fs::create_dir(&used.data).unwrap();
    fs::write(used.data.join("mine"), "precious").unwrap();
    let before = tree(&used.data);
    let refused = source
        .restorer
        .walden
        .run(source.restorer.arguments(&used, &["--to", "latest"]));
    let refused = refused.expect_code(1);
    assert!(refused.stdout.contains("not empty"), "{refused}");
    assert_eq!(tree(&used.data), before);
    let mut arguments = source.restorer.arguments(&restored, &["--to", "latest"]);
    let place = arguments
        .iter()
        .position(|argument| argument == "-D")
        .unwrap()
        + 1;
    arguments[place] = server.data_directory().display().to_string();
    let refused = source.restorer.walden.run(&arguments).expect_code(1);
    assert!(refused.stdout.contains("a server is running"), "{refused}");
    assert_eq!(server.psql("select count(*) from t where n = 2"), "5");

    // Somebody else's key, and none.
    let other = source.restorer.scratch.join("other.key");
    let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    fs::write(&other, identity.file.expose_secret()).unwrap();
    let mut arguments = source.restorer.arguments(&restored, &["--to", "latest"]);
    let place = arguments
        .iter()
        .position(|argument| argument == "--identity")
        .unwrap();
    arguments[place + 1] = format!("file:{}", other.display());
    source.restorer.walden.run(&arguments).expect_code(12);
    absent();
    arguments.drain(place..place + 2);
    source.restorer.walden.run(&arguments).expect_code(12);
    absent();

    // A segment between the backup and the target is gone.
    let wal = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
    let mut segments: Vec<PathBuf> = tree(&source.repository).into_keys().filter(wal).collect();
    segments.sort();
    let victim = &segments[segments.len() - 3];
    let name = victim.file_name().unwrap().to_str().unwrap()[..24].to_owned();
    let bytes = fs::read(victim).unwrap();
    fs::remove_file(victim).unwrap();
    let arguments = source.restorer.arguments(&restored, &["--to", "latest"]);
    let refused = source.restorer.walden.run(&arguments).expect_code(5);
    assert!(refused.stdout.contains(&name), "{name}: {refused}");
    absent();

    // All of these were refused for what they say: with everything in place the same restore is done.
    fs::write(victim, bytes).unwrap();
    source.restorer.walden.run(&arguments).expect_success();
    assert_eq!(
        restored.client.psql("select count(*) from t where n = 2"),
        "5"
    );
}

#[test]
fn plain_objects_are_restored_despite_an_identity_only_if_told_so() {
    let mut source = Source::start(Server::builder(18).wal_segment_mib(1), false, None);
    source.server.psql("create table t as select 1 as n");
    source.backup();
    source.server.psql("insert into t values (2)");
    wait_until_stored(&source.server);
    let key = source.restorer.scratch.join("some.key");
    let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    fs::write(&key, identity.file.expose_secret()).unwrap();
    source.restorer.identity = Some(format!("file:{}", key.display()));

    let refused = source.restorer.place("refused");
    let output = source
        .restorer
        .walden
        .run(source.restorer.arguments(&refused, &["--to", "latest"]));
    assert_ne!(output.code(), 0, "{output}");
    assert!(!refused.data.exists());
    let restored = source
        .restorer
        .restore("told", &["--to", "latest", "--allow-plain"]);
    assert_eq!(restored.client.psql("select sum(n) from t"), "3");
}

#[test]
fn a_place_that_is_taken_is_said_and_another_one_continues() {
    let source = Source::start(Server::builder(18).wal_segment_mib(1), false, None);
    // More than one part, and a tablespace that is mapped: what continues finds files that the restore has changed itself.
    let aside = source.server.scratch().join("aside");
    fs::create_dir(&aside).unwrap();
    source.server.psql(&format!(
        "create tablespace aside location '{}';
         create table t tablespace aside as select 7 as n;
         create table filler as select repeat(md5(g::text), 25) from generate_series(1, 90000) g",
        aside.display()
    ));
    let backup = source.backup();
    assert!(backup["stored_bytes"].as_u64() > Some(0), "{backup}");
    wait_until_stored(&source.server);
    let restorer = &source.restorer;
    let mut place = restorer.place("taken");
    let mapped = restorer.scratch.join("mapped");
    let mapping = format!("{}={}", aside.display(), mapped.display());
    let arguments = ["--to", "latest", "--map-tablespace", &mapping];
    let mut arguments = restorer.arguments(&place, &arguments);

    // The port asked for.
    let port = place.port.number();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let refused = restorer.walden.run(&arguments).expect_code(1);
    let expected = format!("port {port} is in use");
    assert!(refused.stdout.contains(&expected), "{refused}");
    assert!(!place.data.exists());
    drop(listener);

    // The place that the source's configuration names: known when the backup is laid out.
    let named = arguments
        .iter()
        .position(|argument| argument == "--port")
        .unwrap();
    let port = arguments.drain(named..named + 2).collect::<Vec<_>>();
    let socket = restorer.scratch.join(".s.PGSQL.5432");
    let listener = UnixListener::bind(&socket).unwrap();
    let refused = restorer.walden.run(&arguments).expect_code(1);
    let expected = socket.to_str().unwrap();
    assert!(refused.stdout.contains(expected), "{refused}");
    assert!(refused.stdout.contains("with --port"), "{refused}");
    assert!(!place.data.join("global/pg_control").exists());
    drop(listener);
    let state = fs::read_to_string(place.data.join("pg_wal/walden/restoring.json")).unwrap();
    let map = fs::read_to_string(place.data.join("tablespace_map")).unwrap();
    assert!(map.contains(mapped.to_str().unwrap()), "{map}");
    assert!(state.contains("\"base\""), "a part is remembered: {state}");
    arguments.extend(port);
    place.said = restorer.walden.run(&arguments).expect_success().json();
    assert_eq!(place.said["resumed"], true);
    assert_eq!(place.client.psql("select n from t"), "7");

    // The folder of a restore that was finished before.
    let refused = restorer.walden.run(&arguments).expect_code(1);
    assert!(refused.stdout.contains("a server is running"), "{refused}");
    place.stop(Signal::INT);
    let refused = restorer.walden.run(&arguments).expect_code(1);
    assert!(refused.stdout.contains("a finished restore"), "{refused}");
}
