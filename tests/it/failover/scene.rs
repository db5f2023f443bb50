//! Several servers of one cluster and the one repository they archive to: how they are made, what is written on which of them, and what a
//! restore along each timeline must then show. What was written is kept here, outside any database. Owns no promise: those are the tests.

use crate::site::{Keys, Plan, Site};
use crate::support::postgres::{Builder, Server, Stop};
use crate::support::process::{self, COMMAND_DEADLINE, Output, Running, command};
use crate::support::restored::{Restored, Restorer};
use crate::support::scratch::Scratch;
use crate::support::wait_until;
use crate::support::walden::{Walden, wait_until_stored};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use wal_format::SegmentName;

pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// A repository with one cluster in it, and somebody who restores from it.
pub(super) struct Scene {
    pub(super) site: Site,
    pub(super) restorer: Restorer,
    /// For data directories that are copies.
    pub(super) copies: Scratch,
    major: u32,
    archived: std::cell::Cell<u32>,
}

impl Scene {
    /// A primary with a table, a repository that knows it, and no backup yet.
    pub(super) fn new(major: u32) -> (Server, Self) {
        Self::with(major, |builder| builder, Plan::default())
    }

    pub(super) fn with(
        major: u32,
        build: impl FnOnce(Builder) -> Builder,
        plan: Plan<'_>,
    ) -> (Server, Self) {
        let builder = Server::builder(major)
            .wal_segment_mib(1)
            .setting("archive_mode = on")
            .setting("archive_command = ''")
            .setting("wal_log_hints = on")
            .setting("wal_retrieve_retry_interval = 100ms");
        let (mut restorer, builder) = Restorer::for_source(build(builder));
        let keys = plan.keys;
        let primary = builder.start();
        let site = Site::new(&primary, plan);
        restorer.url.clone_from(&site.url);
        if keys != Keys::None {
            let identity = primary.scratch().join("walden/identity");
            restorer.identity = Some(format!("file:{}", identity.display()));
        }
        primary.psql("create table marks (note text)");
        let scene = Self {
            site,
            restorer,
            copies: Scratch::new(),
            major,
            archived: std::cell::Cell::new(0),
        };
        (primary, scene)
    }

    pub(super) fn cluster(&self) -> String {
        self.site.cluster().to_string()
    }

    /// Has the configuration name the cluster, as `walden init` writes it; gives its identifier.
    pub(super) fn name_cluster(&self) -> String {
        let identifier = self.cluster();
        let text = fs::read_to_string(self.config()).expect("read the configuration");
        let named = format!("[postgres]\nsystem_identifier = \"{identifier}\"");
        let text = text.replace("[postgres]", &named);
        fs::write(self.config(), text).expect("write the configuration");
        identifier
    }

    /// From here on a standby asks the repository for what it lacks.
    pub(super) fn restore_from_archive(&self, standby: &Server) {
        let command = self.hook("archive-get", "%f %p");
        standby.psql(&format!(
            "alter system set restore_command = '{command}'; select pg_reload_conf()"
        ));
    }

    pub(super) fn config(&self) -> PathBuf {
        let folder = self.site.root.parent().expect("the folder of the site");
        folder.join("walden.toml")
    }

    /// `walden run` on this server, once that streams to it.
    #[track_caller]
    pub(super) fn run(&self, server: &Server) -> Running {
        let conninfo = server.conninfo();
        self.site
            .walden
            .receive(server, ["run", "--postgres", &conninfo])
    }

    /// `walden run` on a server that it must not take.
    #[track_caller]
    pub(super) fn run_is_refused(&self, server: &Server, because: &str) {
        let conninfo = server.conninfo();
        let run = self.site.walden.start(["run", "--postgres", &conninfo]);
        let output = run.wait(DEADLINE).expect_code(5);
        assert!(output.stderr.contains(because), "{because:?}\n{output}");
    }

    /// From here on the server's archiver process stores what it finishes.
    pub(super) fn push_from(&self, server: &Server) {
        let command = self.hook("archive-push", "%p");
        server.psql(&format!(
            "alter system set archive_command = '{command}'; select pg_reload_conf()"
        ));
    }

    /// A hook as a server's setting takes it.
    pub(super) fn hook(&self, name: &str, arguments: &str) -> String {
        format!(
            "\"{}\" {name} --config \"{}\" {arguments}",
            Walden::program().display(),
            self.config().display()
        )
    }

    /// A base backup by Walden.
    #[track_caller]
    pub(super) fn backup(&self, server: &Server) {
        let conninfo = server.conninfo();
        let arguments = ["backup", "--fast-checkpoint", "--postgres", &conninfo];
        self.site.walden.run(arguments).expect_success();
    }

    /// Ends the segment and waits until it is archived.
    #[track_caller]
    pub(super) fn finish_segment(&self, server: &Server) -> String {
        let name = switch(server);
        wait_until("the segment is archived", DEADLINE, || {
            let last = server.psql("select last_archived_wal from pg_stat_archiver");
            (last.get(..24)? >= name.as_str()).then_some(())
        });
        name
    }

    /// `walden status --json`, whatever its exit code.
    pub(super) fn status(&self, server: &Server) -> (i32, serde_json::Value) {
        let conninfo = server.conninfo();
        let output = self
            .site
            .walden
            .run(["status", "--json", "--postgres", &conninfo]);
        (output.code(), output.json())
    }

    /// Restores with these arguments and compares what is there with what must be.
    #[track_caller]
    pub(super) fn restores(&self, arguments: &[&str], expected: &[&str]) -> Restored {
        let count = self.archived.replace(self.archived.get() + 1);
        let restored = self
            .restorer
            .restore(&format!("restored{count}"), arguments);
        assert_eq!(
            marks(&restored.client),
            expected.join(","),
            "{arguments:?} {}",
            restored.said
        );
        restored
    }

    /// A server over a copy of this data directory.
    pub(super) fn copy_of(&self, data: &Path, name: &str) -> Server {
        let to = self.copies.join(name);
        copy_over(data, &to);
        Server::over_directory(self.major, &to)
    }

    /// Everything that is stored: path, bytes, when it was finished.
    pub(super) fn objects(&self) -> Objects {
        let mut objects = BTreeMap::new();
        let mut folders = vec![self.site.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("list a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let temporary = path
                    .file_name()
                    .is_some_and(repository::durable::is_temporary_name);
                // A file may be finished, and so renamed, between the listing and this.
                let Ok(bytes) = fs::read(&path) else { continue };
                if temporary {
                    continue;
                }
                let metadata = path.metadata().expect("an object's metadata");
                let name = path.strip_prefix(&self.site.root).expect("below the root");
                let modified = metadata.modified().expect("a time");
                objects.insert(name.display().to_string(), (bytes, modified));
            }
        }
        Objects(objects)
    }
}

/// What a repository held at a moment.
pub(super) struct Objects(BTreeMap<String, (Vec<u8>, SystemTime)>);

impl Objects {
    /// Everything of before is there as it was.
    #[track_caller]
    pub(super) fn are_untouched_in(&self, scene: &Scene) -> Self {
        let after = scene.objects();
        assert!(!self.0.is_empty());
        for (name, object) in &self.0 {
            assert!(after.0.get(name) == Some(object), "{name} was touched");
        }
        after
    }

    /// What is there and was not before.
    pub(super) fn new_since(&self, before: &Self) -> Vec<&str> {
        let names = self.0.keys().filter(|name| !before.0.contains_key(*name));
        names.map(String::as_str).collect()
    }

    /// The history file of each of these timelines was stored before anything else of it.
    #[track_caller]
    pub(super) fn histories_came_first(&self, cluster: &str, timelines: &[u32]) {
        for timeline in timelines {
            let history = format!("{cluster}/wal/{timeline:08X}.history");
            let (_, told) = self.0.get(&history).expect("the history is stored");
            let folders = ["wal", "tail"].map(|kind| format!("{cluster}/{kind}/{timeline:08X}/"));
            let of_it: Vec<_> = (self.0.iter())
                .filter(|(name, _)| folders.iter().any(|folder| name.starts_with(folder)))
                .collect();
            assert!(!of_it.is_empty(), "nothing of timeline {timeline}");
            for (name, (_, stored)) in of_it {
                assert!(told <= stored, "{name} was stored before its history");
            }
        }
    }
}

/// Writes a row that a restore must show, or must not.
pub(super) fn mark(server: &Server, note: &str) {
    server.psql(&format!("insert into marks values ('{note}')"));
}

pub(super) fn marks(server: &Server) -> String {
    server.psql("select coalesce(string_agg(note, ',' order by note), '') from marks")
}

/// About this many MiB of WAL that mean nothing.
pub(super) fn write_wal(server: &Server, mib: u32) {
    server.psql(&format!(
        "select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, {}) g",
        mib * 1024
    ));
}

/// Ends the segment and gives its name.
pub(super) fn switch(server: &Server) -> String {
    let name = server.psql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    server.psql("select pg_switch_wal()");
    let parsed: Result<SegmentName, _> = name.parse();
    assert!(parsed.is_ok(), "{name}");
    name
}

/// Waits until the standby has replayed what the primary has.
#[track_caller]
pub(super) fn wait_until_replayed(standby: &Server, primary: &Server) {
    let flushed = primary.psql("select pg_current_wal_flush_lsn()");
    wait_until("the standby has it all", DEADLINE, || {
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{flushed}'");
        (standby.psql(&replayed) == "t").then_some(())
    });
}

/// From here on the standby receives nothing.
#[track_caller]
pub(super) fn cut_off(standby: &Server) {
    standby.psql("alter system set primary_conninfo = ''; select pg_reload_conf()");
    wait_until("the standby is cut off", DEADLINE, || {
        let receivers = standby.psql("select count(*) from pg_stat_wal_receiver");
        (receivers == "0").then_some(())
    });
}

/// Makes the stopped server a standby of another.
pub(super) fn follow(server: &mut Server, primary: &Server) {
    let data = server.data_directory();
    fs::write(data.join("standby.signal"), "").expect("write standby.signal");
    let file = data.join("postgresql.auto.conf");
    let mut text = fs::read_to_string(&file).expect("read postgresql.auto.conf");
    let conninfo = primary.conninfo();
    text.push_str(&format!("primary_conninfo = '{conninfo}'\n"));
    fs::write(&file, text).expect("write postgresql.auto.conf");
    server.start();
    wait_until("it streams from the new primary", DEADLINE, || {
        let status = server.psql("select status from pg_stat_wal_receiver");
        (status == "streaming").then_some(())
    });
}

/// `pg_rewind` of a stopped server.
#[track_caller]
pub(super) fn rewind(server: &Server, source: &Server) -> Output {
    let mut rewind = crate::support::postgres::tool_command(server.major(), "pg_rewind");
    rewind.arg("-D").arg(server.data_directory());
    let conninfo = source.conninfo();
    rewind.args(["--source-server", &conninfo, "--no-sync"]);
    process::run(rewind, COMMAND_DEADLINE).expect_success()
}

pub(super) fn copy_over(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("remove a data directory");
    }
    let mut copy = command("cp");
    copy.arg("-a").arg(from).arg("-T").arg(to);
    process::run(copy, COMMAND_DEADLINE).expect_success();
}

pub(super) fn stop(server: &mut Server) {
    server.stop(Stop::Fast, DEADLINE);
}

#[track_caller]
pub(super) fn terminate(run: Running) -> String {
    run.signal(Signal::TERM);
    run.wait(Duration::from_secs(10)).expect_success().stderr
}

/// Waits until everything the server wrote is stored by `walden run`.
#[track_caller]
pub(super) fn wait_until_safe(server: &Server) {
    wait_until_stored(server);
}
