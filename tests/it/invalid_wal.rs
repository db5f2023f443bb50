//! WAL that is damaged on its way: it never blocks the server, it is stored and marked, and everything that looks at it says so: `run` and the
//! hook, `status`, `verify`, and a restore, which goes up to it and not past it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::push::Site;
use crate::support::postgres::Server;
use crate::support::process::Output;
use crate::support::wait_until;
use crate::support::walden::Walden;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wal_format::Lsn;

const DEADLINE: Duration = Duration::from_secs(60);
const MARKER: &[u8] = b"this is the row whose WAL is damaged";

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

fn lsn(server: &Server) -> Lsn {
    server
        .psql("select pg_current_wal_insert_lsn()")
        .parse()
        .unwrap()
}

/// A connection to a server that changes one bit of the row with the marker, once it is told to.
struct Noise {
    port: u16,
    armed: Arc<AtomicBool>,
}

impl Noise {
    fn before(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::new(AtomicBool::new(false));
        let guard = Arc::clone(&armed);
        // Threads end with their connections, and the listening one with the program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let armed = Arc::clone(&guard);
                    std::thread::spawn(move || forward(from, to, &armed));
                }
            }
        });
        Self { port, armed }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, armed: &AtomicBool) {
    let mut piece = vec![0; 256 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let bytes = &mut piece[..length];
        let found = bytes
            .windows(MARKER.len())
            .position(|window| window == MARKER);
        if let Some(place) = found
            && armed.swap(false, Ordering::SeqCst)
        {
            bytes[place] ^= 1;
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    // The other direction may be closed already.
    to.shutdown(Shutdown::Write).unwrap_or_default();
}

/// The configuration, with WAL that is not valid refused.
fn refusing(config: &str) -> String {
    let refusing = config.replace("\"store-and-report\"\n", "\"refuse\"\n");
    assert_ne!(refusing, config);
    refusing
}

/// What everybody says of WAL that was damaged between two positions; gives the place.
fn is_named(site: &Site, before: Lsn, after: Lsn, label: &str) -> Lsn {
    let url = format!("file://{}", site.repository.display());
    let elsewhere = Walden::in_directory(site.server.scratch());
    let mut places = Vec::new();
    for level in ["--presence", "--wal"] {
        let output = elsewhere.run(["verify", &url, "--json", "--all", level]);
        let document = json(&output.expect_code(5));
        let findings = document["findings"].as_array().unwrap();
        assert_eq!(findings.len(), 1, "{level}: {document:#}");
        assert_eq!(findings[0]["problem"], "invalid-wal", "{document:#}");
        assert_eq!(findings[0]["affects"][0]["backup"], label, "{document:#}");
        places.push(findings[0]["lsn"].as_str().unwrap().parse::<Lsn>().unwrap());
    }
    let at = places[0];
    assert_eq!(places, [at, at]);
    window_ends_there(site, &elsewhere, &url, at, label);
    assert!(before <= at && at < after, "{before} <= {at} < {after}");
    let status = json(&site.walden.run(["status", "--json"]).expect_code(5));
    let told = status["problems"].as_array().unwrap().iter();
    let told: Vec<&Value> = told.filter(|problem| problem["side"] == "wal").collect();
    assert_eq!(told.len(), 1, "{status:#}");
    assert!(
        told[0]["what"].as_str().unwrap().contains(&at.to_string()),
        "{status:#}"
    );

    // A plan ends there, and says so; it never silently stops short, and never goes past it.
    let plan = |target: &[&str]| {
        let mut arguments = vec!["restore", &url, "-D", "nowhere", "--dry-run", "--no-start"];
        arguments.extend(target);
        elsewhere.run(arguments)
    };
    let latest = plan(&["--to", "latest"]).expect_code(5);
    let words = format!("WAL is not valid from {at} on");
    assert!(latest.stderr.contains(&words), "{latest}");
    plan(&["--to-lsn", &after.to_string()]).expect_code(5);
    let last = latest.stderr.split("--to-lsn ").nth(1).unwrap();
    let last = last.split_whitespace().next().unwrap();
    plan(&["--to-lsn", last]).expect_success();
    plan(&["--to-lsn", &at.to_string(), "--exclusive"]).expect_success();
    plan(&["--to-lsn", &at.to_string()]).expect_code(5);
    at
}

/// The window ends there, and says so in each of its forms; `list` says what it has not looked at.
fn window_ends_there(site: &Site, elsewhere: &Walden, url: &str, at: Lsn, label: &str) {
    let words = format!("WAL is not valid from {at} on");
    let windows = json(&elsewhere.run(["window", url, "--json"]).expect_code(3));
    let backup = &windows["repositories"][0]["backups"][0];
    let range = &backup["ranges"][0];
    assert_eq!(backup["label"], label, "{windows:#}");
    assert_eq!(range["to"]["lsn"], at.to_string(), "{windows:#}");
    assert_eq!(range["ends"], "invalid", "{windows:#}");
    assert_eq!(range["gap"], words, "{windows:#}");
    let newest = &windows["repositories"][0]["newest"];
    assert_eq!(newest["lsn"], at.to_string(), "{windows:#}");
    let table = elsewhere.run(["window", url]).expect_code(3);
    let (ranges, unreachable) = table
        .stdout
        .split_once("What cannot be reached:")
        .unwrap_or_else(|| panic!("{table}"));
    assert!(ranges.contains(&words), "{table}");
    assert!(unreachable.contains(&words), "{table}");
    let page = site.folder.join("window.html");
    let arguments = ["window", url, "--html", page.to_str().unwrap()];
    let written = elsewhere.run(arguments).expect_code(3);
    assert!(written.stdout.is_empty(), "{written}");
    assert!(written.stderr.contains(page.to_str().unwrap()), "{written}");
    let page = fs::read_to_string(&page).unwrap();
    assert_eq!(page.matches(words.as_str()).count(), 3, "{page}");
    assert!(page.contains("class=\"edge\""), "{page}");
    let list = elsewhere.run(["list", url]);
    let says = list.stdout.contains(&at.to_string());
    let admits = list.stdout.contains("by the names of segments");
    assert!(says || admits, "{list}");
}

#[test]
fn what_the_connection_damages_is_stored_marked_and_named() {
    let server = Server::builder(17).wal_segment_mib(1).tcp().start();
    let noise = Noise::before(server.port());
    let site = Site::new(server, None, &["--no-encryption"]);
    let config = site.folder.join("walden.toml");
    let text = fs::read_to_string(&config).unwrap();
    let user = site.server.psql("select current_user");
    let conninfo = format!(
        "host=127.0.0.1 port={} user={user} dbname=postgres sslmode=disable",
        noise.port
    );
    let old = site.server.conninfo();
    assert!(text.contains(&old), "{text}");
    fs::write(&config, text.replace(&old, &conninfo)).unwrap();
    let run = site.walden.start(["run", "--rpo", "200ms"]);
    wait_until("walden run receives", DEADLINE, || {
        let active = "select active from pg_replication_slots where slot_name = 'walden'";
        (site.server.psql(active) == "t").then_some(())
    });
    let backup = json(
        &site
            .walden
            .run(["backup", "--fast-checkpoint", "--json"])
            .expect_success(),
    );
    site.server
        .psql("create table t (b text); insert into t values ('before')");
    // The first record of a page after a checkpoint holds the whole page.
    noise.armed.store(true, Ordering::SeqCst);
    let before = lsn(&site.server);
    let marker = String::from_utf8(MARKER.to_vec()).unwrap();
    site.server
        .psql(&format!("insert into t values ('{marker}')"));
    let after = lsn(&site.server);
    site.server
        .psql("insert into t values ('after'); select pg_switch_wal()");
    site.server
        .psql("insert into t select generate_series(1, 20000)::text; select pg_switch_wal()");
    let flushed = site.server.psql("select pg_current_wal_flush_lsn()");
    wait_until("the server is not blocked", DEADLINE, || {
        let stored = format!(
            "select coalesce(min(flush_lsn) >= '{flushed}', false) from pg_stat_replication"
        );
        (site.server.psql(&stored) == "t").then_some(())
    });
    assert!(!noise.armed.load(Ordering::SeqCst), "nothing was damaged");
    let label = backup["label"].as_str().unwrap();
    let at = is_named(&site, before, after, label);
    // The remedy: a new backup opens a window behind it.
    site.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    site.walden.run(["status"]).expect_success();
    let url = format!("file://{}", site.repository.display());
    let elsewhere = Walden::in_directory(site.server.scratch());
    elsewhere
        .run([
            "restore",
            &url,
            "-D",
            "nowhere",
            "--dry-run",
            "--no-start",
            "--to",
            "latest",
        ])
        .expect_success();
    run.signal(Signal::TERM);
    let ended = run.wait(DEADLINE).expect_code(3);
    assert!(ended.stderr.contains(&at.to_string()), "{ended}");

    // Told to, it refuses instead: nothing behind it is stored, and the slot keeps it.
    let text = fs::read_to_string(&config).unwrap();
    let refuse = refusing(&text);
    fs::write(&config, refuse).unwrap();
    noise.armed.store(true, Ordering::SeqCst);
    let run = site.walden.start(["run", "--rpo", "200ms"]);
    wait_until("walden run receives again", DEADLINE, || {
        let active = "select active from pg_replication_slots where slot_name = 'walden'";
        (site.server.psql(active) == "t").then_some(())
    });
    site.server
        .psql(&format!("insert into t values ('{marker}')"));
    let refused = run.wait(DEADLINE).expect_code(5);
    assert!(refused.stderr.contains("not valid"), "{refused}");
}

#[test]
fn what_the_disk_damages_is_stored_marked_and_named() {
    let server = Server::builder(16).wal_segment_mib(1).start();
    let site = Site::new(server, None, &["--no-encryption"]);
    let config = site.folder.join("walden.toml");
    let run = site.walden.start(["run", "--rpo", "200ms"]);
    wait_until("walden run receives", DEADLINE, || {
        let active = "select active from pg_replication_slots where slot_name = 'walden'";
        (site.server.psql(active) == "t").then_some(())
    });
    let backup = json(
        &site
            .walden
            .run(["backup", "--fast-checkpoint", "--json"])
            .expect_success(),
    );
    site.server.psql("select pg_switch_wal()");
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
    let marker = String::from_utf8(MARKER.to_vec()).unwrap();
    site.server
        .psql("create table t (b text); insert into t values ('before')");
    let before = lsn(&site.server);
    site.server
        .psql(&format!("insert into t values ('{marker}')"));
    let after = lsn(&site.server);
    let name = site.server.psql("insert into t select generate_series(1, 500)::text; select pg_walfile_name(pg_switch_wal())");
    let name = name.lines().last().unwrap().to_owned();
    let next = site
        .server
        .psql("insert into t values ('after'); select pg_walfile_name(pg_switch_wal())");
    let next = next.lines().last().unwrap().to_owned();
    let wal = site.server.wal_directory();
    let mut bytes = fs::read(wal.join(&name)).unwrap();
    let place = bytes
        .windows(MARKER.len())
        .position(|window| window == MARKER)
        .unwrap();
    bytes[place] ^= 1;
    let damaged = site.folder.join(&name);
    fs::write(&damaged, &bytes).unwrap();
    let push = |path: &std::path::Path| {
        let walden = Walden::in_directory(site.server.data_directory());
        let config = config.as_os_str();
        walden.run([
            "archive-push".as_ref(),
            "--config".as_ref(),
            config,
            path.as_os_str(),
        ])
    };
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, refusing(&text)).unwrap();
    let refused = push(&damaged).expect_code(1);
    assert!(refused.stderr.contains("not valid"), "{refused}");
    fs::write(&config, &text).unwrap();
    let stored = push(&damaged).expect_success();
    assert!(stored.stderr.contains("recovery stops there"), "{stored}");
    push(&wal.join(&next)).expect_success();
    is_named(&site, before, after, backup["label"].as_str().unwrap());
}
