//! `kill -9` in the middle of durable writes to local files, where no proxy stands: of a repository in a folder, of what `archive-get` delivers, of a
//! data directory that is restored. At each step of such a write (bytes flushed, renamed, folder flushed) the program is killed
//! beneath its system calls; nothing half-done is visible, and the same command, run again, ends what was begun.

use super::kills::{KILLED, finish_segment};
use super::{DEADLINE, preload};
use crate::run::{FIRST, restart_lsn, seed, server, terminate, wait_until_flushed, write_wal};
use crate::site::{Plan, Site};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::Server;
use crate::support::process::{self, Running};
use crate::support::restored::Restorer;
use crate::support::wal_dump::Target;
use crate::support::walden::Walden;
use std::fs;
use std::path::{Path, PathBuf};

/// Every step of a durable write, in order; and whether the file has its name by then.
const STEPS: [(&str, bool); 4] = [
    ("file before", false),
    ("rename before", false),
    ("rename after", true),
    ("folder after", true),
];

/// Every file below a folder, those of another name than its bytes' final one apart.
fn files(folder: &Path) -> (Vec<PathBuf>, usize) {
    let (mut found, mut temporary) = (Vec::new(), 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("list a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().display().to_string();
            match (path.is_dir(), name.starts_with(".walden-tmp.")) {
                (true, _) => folders.push(path),
                (false, true) => temporary += 1,
                (false, false) => found.push(path),
            }
        }
    }
    (found, temporary)
}

struct Local {
    server: Server,
    site: Site,
    restorer: Restorer,
    library: PathBuf,
    kills: usize,
}

impl Local {
    fn new() -> Self {
        let (mut restorer, builder) =
            Restorer::for_source(server(18).setting("archive_mode = off"));
        let server = builder.start();
        let site = Site::new(
            &server,
            Plan {
                rpo: "100ms",
                ..Plan::default()
            },
        );
        restorer.url.clone_from(&site.url);
        let library = preload("kill", server.scratch());
        Self {
            server,
            site,
            restorer,
            library,
            kills: 0,
        }
    }

    /// Starts it so that it is killed at the `number`-th write of this step to a path that holds `part`; it must be.
    #[track_caller]
    fn kill(&mut self, walden: &Walden, arguments: &[&str], step: &str, part: &str, number: u32) {
        let library = self.library.display().to_string();
        let walden = walden.clone().env("LD_PRELOAD", library);
        let walden = walden.env("WALDEN_TEST_KILL", format!("{step} {part} {number}"));
        let output = walden.start(arguments).wait(DEADLINE);
        assert_eq!(output.code(), KILLED, "{step} {part} {number}: {output}");
        self.kills += 1;
        self.assert_nothing_half_done(&format!("{step} {part} {number}"));
    }

    /// Whatever is visible in the repository is whole, by its own checksums, and nothing else is taken for an object.
    #[track_caller]
    fn assert_nothing_half_done(&self, what: &str) {
        // Asked before anything is listed: where `run` is at work, it goes on storing and reporting.
        let slots = self
            .server
            .psql("select count(*) from pg_replication_slots");
        let reported = (slots == "1").then(|| restart_lsn(&self.server));
        let catalog = self.site.catalog();
        assert_eq!(catalog.unknown, 0, "{what}: something strange is listed");
        let covered = self.site.covered_to(&catalog, FIRST);
        assert!(
            covered >= reported,
            "{what}: {covered:?} stored, {reported:?} reported"
        );
        let listed = self.site.walden.run(["list", "--json"]);
        assert!([0, 3].contains(&listed.code()), "{what}: {listed}");
    }

    fn hook(&self) -> Walden {
        Walden::in_directory(self.server.data_directory())
    }

    fn complete_backups(&self) -> usize {
        self.site.catalog().complete_backups().count()
    }
}

#[test]
fn whatever_is_killed_within_a_write_to_a_file_ends_it_the_next_time() {
    let mut local = Local::new();
    let config = local.server.scratch().join("walden/walden.toml");
    let config = config.to_str().expect("a path in UTF-8").to_owned();
    let walden = local.site.walden.clone();
    let backup = ["backup", "--fast-checkpoint"];
    let run = local.site.archive(&local.server);
    walden.run(backup).expect_success();
    terminate(run);
    let mut oracle = Oracle::prepare(&local.server, seed());
    let clients = oracle.start(&local.server, 2);

    // The receiver: a chunk, a segment.
    for (part, number) in [("/tail/", 2), ("/wal/", 1)] {
        for (step, _) in STEPS {
            write_wal(&local.server, 2);
            local.kill(&walden, &["run"], step, part, number);
        }
    }
    oracle.stop(clients);

    // The hook that pushes, and the one that fetches.
    let place = local.server.scratch().join("fetched");
    fs::create_dir(&place).expect("make a folder");
    let place = place.join("segment");
    let destination = place.to_str().expect("a path in UTF-8");
    for (step, is_there) in STEPS {
        let path = finish_segment(&local.server);
        let path = path.to_str().expect("a path in UTF-8");
        let name = &path["pg_wal/".len()..];
        let push = ["archive-push", "--config", &config, path];
        let hook = local.hook();
        local.kill(&hook, &push, step, "/wal/", 1);
        let (files, _) = files(&local.site.root);
        let stored = files
            .iter()
            .any(|file| file.ends_with(format!("{name}.wal")));
        assert_eq!(stored, is_there, "{step}");
        local.hook().run(push).expect_success();

        let original = fs::read(local.server.data_directory().join(path)).expect("read it");
        let get = ["archive-get", "--config", &config, name, destination];
        let hook = local.hook();
        local.kill(&hook, &get, step, "/fetched/", 1);
        assert_eq!(place.exists(), is_there, "{step}");
        if is_there {
            assert!(fs::read(&place).expect("read it") == original, "{step}");
        }
        local.hook().run(get).expect_success();
        assert!(fs::read(&place).expect("read it") == original, "{step}");
        fs::remove_file(&place).expect("remove it");
    }

    // A backup: its claim, a part, the manifest, the document that makes it one.
    let run = local.site.archive(&local.server);
    for (step, part) in [
        ("rename before", "/started.json"),
        ("folder after", "/started.json"),
        ("file before", "/backups/"),
        ("rename before", "/base."),
        ("rename after", "/manifest"),
        ("rename before", "/backup.json"),
        ("rename after", "/backup.json"),
    ] {
        let before = local.complete_backups();
        local.kill(&walden, &backup, step, part, 1);
        let is_one = (step, part) == ("rename after", "/backup.json");
        assert_eq!(
            local.complete_backups() - before,
            usize::from(is_one),
            "{step} {part}"
        );
    }
    write_wal(&local.server, 1);
    let end = wait_until_flushed(&local.server);
    terminate(run);
    let compared = local.site.compare(FIRST, &local.server.wal_directory());
    assert!(compared.to >= end, "{compared:?} {end}");
    walden.run(["verify"]).expect_success();

    // A restore, from the newest backup: no data directory before its last file has its name.
    let dump = oracle.dump(&local.server);
    oracle.check(&dump, Some(&local.server));
    let expected = oracle.rows_at(&dump, &Target::Latest);
    assert!(expected.len() > 20, "the workload was too short");
    let restored = local.restorer.place("killed");
    let arguments = local.restorer.arguments(&restored, &["--to", "latest"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let restorer = local.restorer.walden.clone();
    for (step, part) in [
        ("rename before", "restoring.json"),
        ("rename after", "restoring.json"),
        ("file before", "/pg_wal/walden/"),
        ("rename after", "plan.json"),
        ("rename before", "global/pg_control"),
    ] {
        local.kill(&restorer, &arguments, step, part, 1);
        let control = restored.data.join("global/pg_control");
        assert!(!control.exists(), "{step} {part}");
    }
    restorer.run(&arguments).expect_success();
    assert_same_rows("killed", &expected, &rows(&restored.client));
    drop(restored);
    // With its last file in place it is one, and says so to whoever begins again.
    let whole = local.restorer.place("whole");
    let arguments = local.restorer.arguments(&whole, &["--to", "latest"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    local.kill(
        &restorer,
        &arguments,
        "rename after",
        "global/pg_control",
        1,
    );
    assert!(whole.data.join("global/pg_control").exists());
    let again: Running = restorer.start(&arguments);
    again.wait(DEADLINE).expect_success();
    assert_same_rows("whole", &expected, &rows(&whole.client));
    let (_, temporary) = files(&local.site.root);
    process::note(&format!(
        "killed {} times within a write; {temporary} files of another name left",
        local.kills
    ));
}
