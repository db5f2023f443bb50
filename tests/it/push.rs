//! `archive_command = 'walden archive-push …'` of real servers: every file they hand over is stored as it was, decoded here by
//! hand; and every way in which a call must fail, with its words and the hook's status.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::object_store::Bucket;
use crate::support::postgres::{Server, Stop};
use crate::support::process::{self, COMMAND_DEADLINE, command};
use crate::support::wait_until;
use crate::support::walden::Walden;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const STOP: Duration = Duration::from_secs(30);

/// A server whose archiver process runs Walden.
pub(crate) struct Site {
    pub(crate) server: Server,
    /// Where the configuration and the key are.
    pub(crate) folder: PathBuf,
    pub(crate) walden: Walden,
    /// Root of the repository, if it is a folder.
    pub(crate) repository: PathBuf,
    pub(crate) system_identifier: String,
}

impl Site {
    /// `extra`: arguments of `walden init` after the URL; `url`: of the repository, or a folder beside the server.
    pub(crate) fn new(server: Server, url: Option<String>, extra: &[&str]) -> Self {
        let folder = server.scratch().join("wal den");
        fs::create_dir(&folder).expect("make a folder");
        let repository = folder.join("repo");
        let url = url.unwrap_or_else(|| format!("file://{}", repository.display()));
        let walden = Walden::in_directory(&folder);
        let conninfo = server.conninfo();
        let mut arguments = vec!["init", &url, "--postgres", &conninfo];
        arguments.extend(extra);
        walden.run(arguments).expect_success();
        let system_identifier = server.control_data("Database system identifier");
        Self {
            server,
            folder,
            walden,
            repository,
            system_identifier,
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.join("walden.toml")
    }

    /// From here on the server archives.
    fn archive(&self) {
        let command = format!(
            "\"{}\" archive-push --config \"{}\" %p",
            Walden::program().display(),
            self.config().display()
        );
        self.server.psql(&format!(
            "alter system set archive_command = '{command}'; select pg_reload_conf()"
        ));
    }

    /// Runs the hook by hand, in the data directory as the server does.
    fn push(&self, path: &Path) -> process::Output {
        let walden = Walden::in_directory(self.server.data_directory());
        let (config, path) = (self.config(), path.to_owned());
        walden.run([
            "archive-push".as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
            path.as_os_str(),
        ])
    }

    fn wal_of_cluster(&self) -> PathBuf {
        self.repository.join(&self.system_identifier).join("wal")
    }

    /// Where a file of `pg_wal` is stored: names and kinds are spelled here once more, as the documentation has them.
    fn object(&self, name: &str) -> Option<PathBuf> {
        let wal = self.wal_of_cluster();
        if name.ends_with(".history") {
            return Some(wal.join(name)).filter(|path| path.exists());
        }
        let (timeline, log, digits) = (&name[..8], &name[8..16], &name[..24]);
        let folder = wal.join(timeline).join(log);
        let wanted = match name[24..].split('.').next_back() {
            Some("partial") => (format!("{digits}."), ".partial"),
            Some("backup") => (name[..33].to_owned(), ".backup"),
            _ => (digits.to_owned(), ".wal"),
        };
        fs::read_dir(folder)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                let found = path.file_name().unwrap().to_str().unwrap();
                found.starts_with(&wanted.0) && found.ends_with(wanted.1)
            })
    }

    /// The plain bytes of an object, by the two programs of RESCUE.md.
    fn decode(&self, object: &Path) -> Vec<u8> {
        let output = self.folder.join("decoded");
        let key = self.folder.join("walden.key");
        let mut shell = command("sh");
        let script = match key.exists() {
            true => "age -d -i \"$1\" \"$2\" | lz4 -dc >\"$3\"",
            false => "lz4 -dc <\"$2\" >\"$3\"",
        };
        shell.args(["-euc", script, "decode"]);
        shell.arg(&key).arg(object).arg(&output);
        process::run(shell, COMMAND_DEADLINE).expect_success();
        fs::read(output).unwrap()
    }

    /// Files that the server says are archived.
    fn done(&self, server: &Server) -> Vec<String> {
        let folder = server.wal_directory().join("archive_status");
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                name.strip_suffix(".done").map(str::to_owned)
            })
            .collect();
        names.sort();
        names
    }
}

/// Writes something and ends the segment; gives the name of what was ended.
fn switch(server: &Server) -> String {
    server.psql(
        "create table if not exists t (n int, filler text);
         insert into t select n, repeat('x', 500) from generate_series(1, 1000) n;
         select pg_walfile_name(pg_switch_wal() - 1)",
    )
}

fn wait_for_archive(server: &Server, name: &str) {
    wait_until(
        &format!("{name} is archived"),
        Duration::from_secs(60),
        || {
            let done = server
                .wal_directory()
                .join(format!("archive_status/{name}.done"));
            done.exists().then_some(())
        },
    );
}

fn archives(major: u32, segment_mib: u32, extra: &[&str]) {
    let builder = Server::builder(major).wal_segment_mib(segment_mib);
    let server = builder.setting("archive_mode = on").start();
    let site = Site::new(server, None, extra);
    site.archive();
    let server = &site.server;
    switch(server);
    server.base_backup(&server.scratch().join("copy"), &["-X", "none"]);
    for _ in 0..3 {
        switch(server);
    }
    let last = switch(server);
    wait_for_archive(server, &last);
    let done = site.done(server);
    assert!(done.len() >= 6, "{done:?}");
    assert!(
        done.iter().any(|name| name.ends_with(".backup")),
        "{done:?}"
    );
    for name in &done {
        let object = site
            .object(name)
            .unwrap_or_else(|| panic!("{name} is not stored"));
        let original = fs::read(server.wal_directory().join(name)).unwrap();
        assert!(
            site.decode(&object) == original,
            "{name} comes back as it went"
        );
    }
    // The server may ask again after a crash: the same bytes are success, and nothing new is stored.
    let object = site.object(&last).unwrap();
    let before = fs::metadata(&object).unwrap().modified().unwrap();
    site.push(&Path::new("pg_wal").join(&last)).expect_success();
    site.push(&server.wal_directory().join(&last))
        .expect_success();
    assert_eq!(fs::metadata(&object).unwrap().modified().unwrap(), before);
}

#[test]
fn archive_command_of_15_with_segments_of_1_mib() {
    archives(15, 1, &[]);
}

#[test]
fn archive_command_of_18_with_segments_of_1_mib() {
    archives(18, 1, &["--no-encryption"]);
}

#[test]
fn archive_command_of_18_with_segments_of_16_mib() {
    archives(18, 16, &[]);
}

#[test]
fn a_promoted_standby_archives_its_history_and_the_partial_segment() {
    let builder = Server::builder(18).wal_segment_mib(1);
    let server = builder.setting("archive_mode = on").start();
    let mut site = Site::new(server, None, &[]);
    site.archive();
    let standby = site.server.standby();
    let first = switch(&site.server);
    wait_for_archive(&site.server, &first);
    // Something beyond a segment's start, so that the switch point lies within one.
    site.server.psql(
        "insert into t select n, repeat('y', 500) from generate_series(1, 200) n; checkpoint",
    );
    site.server.stop(Stop::Fast, STOP);
    standby.promote();
    standby.psql("checkpoint");
    let last = switch(&standby);
    assert!(last.starts_with("00000002"), "{last}");
    wait_for_archive(&standby, &last);
    let done = site.done(&standby);
    let partial = done.iter().find(|name| name.ends_with(".partial"));
    let partial = partial.unwrap_or_else(|| panic!("{done:?}"));
    let stored = site.decode(&site.object(partial).expect("the .partial is stored"));
    let original = fs::read(standby.wal_directory().join(partial)).unwrap();
    assert!(stored.len() < original.len() && original.starts_with(&stored));
    let history = fs::read_to_string(standby.wal_directory().join("00000002.history")).unwrap();
    let switch_point = history.split('\t').nth(1).unwrap();
    let switch_point = u64::from_str_radix(switch_point.split_once('/').unwrap().1, 16).unwrap();
    assert_eq!(
        stored.len() as u64,
        switch_point % (1 << 20),
        "cut at the switch point"
    );
    for name in done.iter().filter(|name| !name.ends_with(".partial")) {
        let object = site
            .object(name)
            .unwrap_or_else(|| panic!("{name} is not stored"));
        let original = fs::read(standby.wal_directory().join(name)).unwrap();
        assert!(
            site.decode(&object) == original,
            "{name} comes back as it went"
        );
    }
    // Without the file beside it, the history comes from the repository, for which the archiving host has no key.
    let moved = standby.scratch().join(&last);
    fs::copy(standby.wal_directory().join(&last), &moved).unwrap();
    let keyless = site.push(&moved).expect_code(1);
    assert!(
        keyless.stderr.contains("00000002.history") && keyless.stderr.contains("no identity"),
        "{keyless}"
    );
}

#[test]
fn each_file_that_does_not_fit_is_refused() {
    let builder = Server::builder(15).wal_segment_mib(1);
    let server = builder.setting("archive_mode = on").own_identity().start();
    let site = Site::new(server, None, &["--no-encryption"]);
    let name = switch(&site.server);
    site.server
        .psql("insert into t values (1, 'in the open segment')");
    let open = site
        .server
        .psql("select pg_walfile_name(pg_current_wal_lsn())");
    let wal = site.server.wal_directory();
    let whole = fs::read(wal.join(&name)).unwrap();
    let folder = site.folder.clone();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let refused = |path: &Path, words: &str| {
        let output = site.push(path).expect_code(1);
        assert!(output.stderr.starts_with("error: "), "{output}");
        assert!(output.stderr.contains(words), "{output}");
        assert!(output.stdout.is_empty(), "{output}");
        assert!(
            !site.wal_of_cluster().exists(),
            "something was stored: {output}"
        );
        output
    };
    refused(&wal.join(&open), "not complete");
    refused(Path::new("pg_wal/nothing"), "not the name of a WAL segment");
    refused(
        Path::new("pg_wal/0000000100000000000000FF"),
        "cannot be opened",
    );
    refused(
        &file(&name, &whole[..1000]),
        "1000 bytes, but segments of this cluster have 1048576",
    );
    refused(&file("000000010000000000000077", &whole), "recycled page");
    let mut foreign = whole.clone();
    foreign[24] ^= 1;
    refused(
        &file(&name, &foreign),
        "system identifier of the file: expected",
    );
    let mut torn = whole.clone();
    torn[512 * 1024..].fill(0);
    let switched = whole[512 * 1024..].iter().all(|byte| *byte == 0);
    if !switched {
        refused(&file(&name, &torn), "not complete");
    }
    refused(
        &file("000000020000000000000001", &whole),
        "neither beside it nor in the repository",
    );
    refused(&file("00000002.history", b"0\n"), "timeline");

    let hook = |arguments: &[&str]| {
        let walden = Walden::in_directory(site.server.data_directory());
        walden.run(arguments).expect_code(1)
    };
    hook(&["archive-push"]);
    hook(&["archive-push", "--no-such-option", "x"]);
    hook(&[
        "archive-push",
        "--config",
        "/nonexistent/walden.toml",
        "pg_wal/x",
    ]);

    // A cluster that nobody made known, and one that is not the configured one.
    let config = fs::read_to_string(site.config()).unwrap();
    let path = wal.join(&name);
    let identifier = format!("system_identifier = \"{}\"", site.system_identifier);
    assert!(config.contains(&identifier), "{config}");
    fs::write(
        site.config(),
        config.replace(&identifier, "system_identifier = \"7\""),
    )
    .unwrap();
    refused(&path, "expected 7, found");
    let cluster = site
        .repository
        .join(&site.system_identifier)
        .join("cluster.json");
    let hidden = folder.join("cluster.json");
    fs::write(site.config(), config.replace(&identifier, "")).unwrap();
    fs::rename(&cluster, &hidden).unwrap();
    let unknown = refused(&path, "is not known there");
    assert!(
        unknown.stderr.contains("hint: ") && unknown.stderr.contains("walden init"),
        "{unknown}"
    );
    fs::rename(&hidden, &cluster).unwrap();

    // A restored clone must not write into its source's archive.
    let auto = site.server.data_directory().join("postgresql.auto.conf");
    let before = fs::read_to_string(&auto).unwrap();
    fs::write(
        &auto,
        format!("{before}walden.restored_from = '7412 somewhere'\n"),
    )
    .unwrap();
    refused(Path::new("pg_wal/x"), "restored from");
    refused(&path, "restored from");
    fs::write(&auto, before).unwrap();

    // A repository whose file system is not mounted, and then is.
    let away = folder.join("away");
    fs::rename(&site.repository, &away).unwrap();
    let absent = site.push(&path).expect_code(1);
    assert!(absent.stderr.contains("does not exist"), "{absent}");
    assert!(!site.repository.exists(), "and none is made in its place");
    fs::rename(&away, &site.repository).unwrap();
    site.push(&path).expect_success();
    assert!(site.object(&name).is_some());

    // Valid pages with a broken record between them: stored and said, or refused.
    let mut broken = fs::read(wal.join(&name)).unwrap();
    let object = site.object(&name).unwrap();
    fs::remove_file(&object).unwrap();
    broken[200 * 1024 + 100] ^= 0xFF;
    let path = file(&name, &broken);
    fs::write(
        site.config(),
        config.replace("\"store-and-report\"", "\"refuse\""),
    )
    .unwrap();
    let output = site.push(&path).expect_code(1);
    assert!(
        output.stderr.contains("is not valid") && !object.exists(),
        "{output}"
    );
    fs::write(site.config(), &config).unwrap();
    let output = site.push(&path).expect_success();
    assert!(
        output.stderr.contains("not valid: it is stored and marked"),
        "{output}"
    );
    assert!(site.decode(&object) == broken);
    // And now the server's own, undamaged one conflicts with it: never overwritten.
    let output = site.push(&wal.join(&name)).expect_code(1);
    assert!(
        output
            .stderr
            .contains("already stored with different contents"),
        "{output}"
    );
    assert!(site.decode(&object) == broken);
}

#[test]
fn archives_into_an_object_store() {
    let bucket = Bucket::new();
    let variables = bucket.environment();
    let value = |name: &str| {
        let found = variables.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap()
    };
    let builder = Server::builder(18).wal_segment_mib(1);
    let server = builder.setting("archive_mode = on").start();
    // The server's own environment has none of these: the configuration must say all.
    let keys = server.scratch().join("keys");
    fs::create_dir(&keys).unwrap();
    let secret = |name: &str, variable: &str| {
        let path = keys.join(name);
        fs::write(&path, value(variable) + "\n").unwrap();
        format!("file:{}", path.display())
    };
    let access_key = secret("access", "AWS_ACCESS_KEY_ID");
    let secret_key = secret("secret", "AWS_SECRET_ACCESS_KEY");
    let (endpoint, region) = (value("AWS_ENDPOINT_URL"), value("AWS_REGION"));
    let site = Site::new(
        server,
        Some(bucket.url("prod/a b")),
        &[
            "--no-encryption",
            "--endpoint",
            &endpoint,
            "--region",
            &region,
            "--path-style",
            "--access-key",
            &access_key,
            "--secret-key",
            &secret_key,
        ],
    );
    site.archive();
    let name = switch(&site.server);
    wait_for_archive(&site.server, &name);
    let key = format!(
        "prod/a b/{}/wal/{}/{}/{name}.wal",
        site.system_identifier,
        &name[..8],
        &name[8..16]
    );
    let object = site.folder.join("object");
    fs::write(&object, bucket.get(&key)).unwrap();
    let original = fs::read(site.server.wal_directory().join(&name)).unwrap();
    assert!(site.decode(&object) == original);
    let config = fs::read_to_string(site.config()).unwrap();
    assert!(
        !config.contains(&value("AWS_SECRET_ACCESS_KEY")),
        "{config}"
    );
    let status = site.walden.run(["status", "--json"]).expect_code(3);
    assert!(status.stdout.contains("no base backup yet"), "{status}");
}
