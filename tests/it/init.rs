//! `walden init` and `walden config check` against real servers: what they make, that twice is as once, what each thing missing
//! looks like, and that no secret is printed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::postgres::Server;
use crate::support::process::Output;
use crate::support::walden::Walden;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

struct Place {
    server: Server,
    folder: PathBuf,
    url: String,
}

impl Place {
    fn new(server: Server) -> Self {
        let folder = server.scratch().join("etc");
        fs::create_dir(&folder).unwrap();
        let url = format!(
            "file://{}",
            server.scratch().join("re'po 50%25 \"q\"").display()
        );
        Self {
            server,
            folder,
            url,
        }
    }

    fn root(&self) -> PathBuf {
        self.server.scratch().join("re'po 50% \"q\"")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Walden::in_directory(&self.folder).run(arguments)
    }

    fn init(&self, extra: &[&str]) -> Output {
        let conninfo = self.server.conninfo();
        let first = ["init", &self.url, "--postgres", &conninfo];
        self.run(&[&first[..], extra].concat())
    }

    /// Nothing was made, neither here nor in the store nor on the server.
    fn assert_untouched(&self) {
        assert!(!self.root().exists());
        assert_eq!(fs::read_dir(&self.folder).unwrap().count(), 0);
        let slots = self
            .server
            .psql("select count(*) from pg_replication_slots");
        assert_eq!(slots, "0");
    }
}

fn listing(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(listing(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn twice_is_as_once() {
    let place = Place::new(Server::builder(18).wal_segment_mib(1).start());
    let first = place.init(&[]).expect_success();
    let identity = place.folder.join("walden.key");
    let mode = fs::metadata(&identity).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = fs::read_to_string(&identity).unwrap();
    let key = secret
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY-"))
        .unwrap();
    assert!(
        !first.stdout.contains(key) && first.stdout.contains("Move it off this host"),
        "{first}"
    );
    let rescue = fs::read(place.root().join("RESCUE.md")).unwrap();
    let sum: String = Sha256::digest(rescue)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(first.stdout.contains(&format!("SHA-256 {sum}")), "{first}");
    let slot = "select slot_type, restart_lsn is not null from pg_replication_slots where slot_name = 'walden'";
    assert_eq!(place.server.psql(slot), "physical|t");
    let config = fs::read_to_string(place.folder.join("walden.toml")).unwrap();
    let identifier = place.server.control_data("Database system identifier");
    assert!(
        config.contains(&format!("system_identifier = \"{identifier}\"")),
        "{config}"
    );
    assert!(!config.contains(key), "{config}");

    let (stored, local) = (listing(&place.root()), listing(&place.folder));
    let second = place.init(&[]).expect_success();
    assert!(
        second.stdout.contains("walden.toml (unchanged)"),
        "{second}"
    );
    assert_eq!(
        (listing(&place.root()), listing(&place.folder)),
        (stored.clone(), local)
    );

    // The identity moved away, as it should be: the configuration knows its public half, and no other one is made.
    fs::rename(&identity, place.server.scratch().join("safe")).unwrap();
    let third = place.init(&["--json"]).expect_success().json();
    assert_eq!(third["schema"], "walden.init");
    assert_eq!(third["config_is"], "unchanged", "{third}");
    assert_eq!(third["identity_file"], Value::Null);
    assert!(!identity.exists());
    assert_eq!(listing(&place.root()), stored);
    place.run(&["config", "check"]).expect_success();
    // Where the server is, the file knows.
    let fourth = place.run(&["init", &place.url]).expect_success();
    assert!(fourth.stdout.contains("(unchanged)"), "{fourth}");

    // Other wishes do not replace the file, they are shown.
    let before = fs::read_to_string(place.folder.join("walden.toml")).unwrap();
    let other = place.init(&["--slot", "other"]).expect_code(3);
    assert!(
        other
            .stdout
            .contains("- slot = \"walden\"\n    + slot = \"other\""),
        "{other}"
    );
    assert_eq!(
        fs::read_to_string(place.folder.join("walden.toml")).unwrap(),
        before
    );

    // The file of another cluster is not this server's.
    let file = place.folder.join("walden.toml");
    fs::write(&file, before.replace(&identifier, "7")).unwrap();
    let checked = place.run(&["config", "check"]).expect_code(2);
    assert!(
        checked.stdout.contains("the configuration names 7"),
        "{checked}"
    );
    fs::write(&file, before).unwrap();

    // The same cluster with other segments is another one: nothing may continue in its place.
    let cluster = place.root().join(&identifier).join("cluster.json");
    let document = fs::read_to_string(&cluster).unwrap();
    fs::write(&cluster, document.replace("1048576", "2097152")).unwrap();
    let conflict = place.init(&[]).expect_code(5);
    assert!(
        conflict.stderr.contains("another WAL segment size"),
        "{conflict}"
    );
}

#[test]
fn what_is_made_depends_on_the_flags() {
    let place = Place::new(Server::builder(15).wal_segment_mib(1).start());
    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let made = place.init(&["--recipient", recipient, "--slot", "s_1", "--json"]);
    let made = made.expect_success().json();
    assert_eq!(made["recipients"], serde_json::json!([recipient]));
    assert_eq!(
        (&made["slot"], &made["config_is"]),
        (&"s_1".into(), &"written".into())
    );
    assert!(!place.folder.join("walden.key").exists());
    let elsewhere = place.server.scratch().join("new folder/walden.toml");
    let file = elsewhere.to_str().unwrap();
    place
        .init(&["--no-encryption", "--config", file])
        .expect_success();
    let config = fs::read_to_string(&elsewhere).unwrap();
    assert!(config.contains("encryption = \"none\""), "{config}");
    place
        .run(&["config", "check", "--config", file])
        .expect_success();
    // What is unencrypted stays so when nothing is said, and an identity is never written over.
    place.init(&["--config", file]).expect_success();
    let key = place.folder.join("mine");
    fs::write(
        &key,
        "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX\n",
    )
    .unwrap();
    let text = fs::read(&key).unwrap();
    let third = place.server.scratch().join("third.toml");
    place
        .init(&[
            "--config",
            third.to_str().unwrap(),
            "--identity-file",
            "mine",
        ])
        .expect_success();
    assert_eq!(fs::read(&key).unwrap(), text);
    let config = fs::read_to_string(&third).unwrap();
    assert!(
        config.contains(
            "recipients = [\"age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj\"]"
        ),
        "{config}"
    );
}

/// What `init` and `config check` say of a server that lacks something.
fn lacks(server: Server, conninfo: Option<&str>, words: &[&str]) {
    let place = Place::new(server);
    let conninfo = conninfo.map_or_else(
        || place.server.conninfo(),
        |user| {
            place
                .server
                .conninfo()
                .replace("user=postgres", &format!("user={user}"))
        },
    );
    let refused = place.run(&["init", &place.url, "--postgres", &conninfo]);
    let refused = refused.expect_code(2);
    for words in words {
        assert!(refused.stdout.contains(words), "{words}: {refused}");
    }
    place.assert_untouched();
    let config = format!(
        "encryption = \"none\"\n[postgres]\nconninfo = \"{conninfo}\"\n[[repository]]\nurl = \"file:///nowhere\"\n"
    );
    fs::write(place.folder.join("walden.toml"), config).unwrap();
    let checked = place.run(&["config", "check"]).expect_code(2);
    for words in words {
        assert!(checked.stdout.contains(words), "{words}: {checked}");
    }
    let document = place
        .run(&["config", "check", "--json"])
        .expect_code(2)
        .json();
    assert_eq!(document["findings"][0]["severity"], "error", "{document}");
    place
        .run(&["config", "check", "--offline"])
        .expect_success();
}

#[test]
fn a_server_of_14_is_refused_by_name() {
    lacks(
        Server::builder(14).start(),
        None,
        &["PostgreSQL 14 is not supported: 15 to 18 are"],
    );
}

#[test]
fn minimal_wal_is_refused() {
    let builder = Server::builder(18).setting("wal_level = minimal");
    let server = builder.setting("max_wal_senders = 0").start();
    lacks(
        server,
        None,
        &[
            "wal_level is minimal",
            "ALTER SYSTEM SET wal_level = 'replica';",
            "then restart the server",
            "max_wal_senders is 0",
            "ALTER SYSTEM SET max_wal_senders = 5;",
        ],
    );
}

#[test]
fn a_role_that_may_not_replicate_is_refused() {
    let server = Server::builder(15).start();
    server.psql("create role plain login");
    lacks(
        server,
        Some("plain"),
        &[
            "the role plain may not replicate",
            "ALTER ROLE plain REPLICATION;",
        ],
    );
}

#[test]
fn a_missing_line_of_pg_hba_is_printed() {
    let builder = Server::builder(18).hba("local replication walden reject");
    let server = builder.start();
    server.psql("create role walden login replication");
    lacks(
        server,
        Some("walden"),
        &[
            "pg_hba.conf lets no replication connection in",
            "local  replication  walden  scram-sha-256",
            "pg_reload_conf()",
        ],
    );
}

#[test]
fn full_slots_and_restored_clones_are_refused() {
    let builder = Server::builder(17).setting("max_replication_slots = 0");
    let server = builder
        .setting("walden.restored_from = '7412 20260123T142811Z-full-3fa9'")
        .start();
    lacks(
        server,
        None,
        &[
            "all 0 replication slots",
            "was restored from 7412 20260123T142811Z-full-3fa9",
        ],
    );
}

#[test]
fn a_bare_replication_role_is_enough_and_warnings_end_with_3() {
    let builder = Server::builder(16).wal_segment_mib(1);
    let server = builder.setting("archive_mode = on").start();
    server.psql("create role bare login replication; alter system set archive_command = 'true'; select pg_reload_conf()");
    let place = Place::new(server);
    let conninfo = place
        .server
        .conninfo()
        .replace("user=postgres", "user=bare password=hunter2");
    let made = place
        .run(&["init", &place.url, "--postgres", &conninfo])
        .expect_code(3);
    assert!(made.stdout.contains("archives elsewhere too"), "{made}");
    assert!(
        !made.stdout.contains("hunter2") && !made.stderr.contains("hunter2"),
        "{made}"
    );
    let file = place.folder.join("walden.toml");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = place
        .run(&["init", &place.url, "--postgres", &conninfo, "--slot", "x"])
        .expect_code(3);
    assert!(
        !again.stdout.contains("hunter2") && again.stdout.contains("slot = \"x\""),
        "{again}"
    );
    let checked = place.run(&["config", "check", "-v"]).expect_code(3);
    assert!(
        !checked.stdout.contains("hunter2") && !checked.stderr.contains("hunter2"),
        "{checked}"
    );
}

#[test]
fn a_server_that_does_not_answer_is_told_from_one_that_is_not_ready() {
    let mut server = Server::builder(18).start();
    server.stop(
        crate::support::postgres::Stop::Fast,
        std::time::Duration::from_secs(30),
    );
    let folder = server.scratch().join("etc");
    fs::create_dir(&folder).unwrap();
    let walden = Walden::in_directory(&folder);
    let conninfo = format!("{} password=hunter2", server.conninfo());
    let output = walden
        .run(["init", "file:///nowhere/at/all", "--postgres", &conninfo])
        .expect_code(1);
    assert!(
        output.stdout.contains("the server cannot be reached"),
        "{output}"
    );
    assert!(
        !output.stdout.contains("hunter2") && !output.stderr.contains("hunter2"),
        "{output}"
    );
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}
