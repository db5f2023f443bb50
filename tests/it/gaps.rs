//! Every way to lose WAL, done to a real server: whatever becomes of the slot, what is lost is on record once, said by every command that is asked,
//! and no byte more than had to be; receiving goes on; a base backup is taken; and what lies before and behind the gap can be restored.

mod disk_guard;
mod lost;
mod slot;
mod switched;

use crate::site::{Plan, Site};
use crate::support::oracle::{Oracle, Rows, rows};
use crate::support::postgres::{Builder, Server};
use crate::support::process::{self, Running, command};
use crate::support::restored::Restorer;
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use repository::catalog::GapRange;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::Duration;
use wal_format::{Lsn, SegmentName, TimelineId};

const DEADLINE: Duration = Duration::from_secs(60);
const FIRST: TimelineId = TimelineId::FIRST;
/// A server that keeps no more WAL than it must.
const FORGETFUL: [&str; 4] = [
    "wal_keep_size = 0",
    "min_wal_size = 2MB",
    "max_wal_size = 4MB",
    "wal_recycle = off",
];

/// A server that is archived and has a backup, and whoever restores from the repository.
struct Archived {
    server: Server,
    site: Site,
    restorer: Restorer,
    oracle: Oracle,
}

impl Archived {
    /// `archive` are lines for `[archive]`, `more` is text behind the last table.
    fn start(major: u32, settings: &[&str], archive: &str, more: &str) -> (Self, Running) {
        Self::start_with(|builder| builder, major, settings, archive, more)
    }

    fn start_with(
        with: impl FnOnce(Builder) -> Builder,
        major: u32,
        settings: &[&str],
        archive: &str,
        more: &str,
    ) -> (Self, Running) {
        let builder = Server::builder(major).wal_segment_mib(1);
        let (mut restorer, builder) = Restorer::for_source(with(builder));
        let settings = FORGETFUL.iter().chain(settings);
        let server = settings
            .fold(builder, |builder, line| builder.setting(*line))
            .start();
        let site = Site::new(&server, Plan::default());
        restorer.url.clone_from(&site.url);
        let archived = Self {
            oracle: Oracle::prepare(&server, 7),
            server,
            site,
            restorer,
        };
        archived.configure("[archive]\n", &format!("[archive]\n{archive}\n"));
        let url = format!("url = '{}'\n", archived.site.url);
        archived.configure(&url, &format!("{url}{more}\n"));
        let run = archived.receive();
        let backup = ["backup", "--fast-checkpoint"];
        archived.site.walden.run(backup).expect_success();
        (archived, run)
    }

    fn configure(&self, from: &str, to: &str) {
        let file = self.server.scratch().join("walden/walden.toml");
        let text = fs::read_to_string(&file).expect("read the configuration");
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&file, text.replace(from, to)).expect("write the configuration");
    }

    /// Lets nobody store anything in the repository, or again.
    fn set_writable(&self, writable: bool) {
        let mut chmod = command("chmod");
        let mode = if writable { "u+w" } else { "a-w" };
        chmod.args(["-R", mode]).arg(&self.site.root);
        process::run(chmod, DEADLINE).expect_success();
    }

    fn receive(&self) -> Running {
        self.site.archive(&self.server)
    }

    /// Changes rows, then stops and says which are there. Everything is stored then if somebody receives.
    fn work(&mut self, length: Duration) -> Rows {
        self.oracle.run(&self.server, 2, length);
        rows(&self.server)
    }

    /// Work that is stored, up to a restore point of this name.
    fn work_to(&mut self, point: &str) -> Rows {
        let rows = self.work(Duration::from_millis(700));
        assert!(rows.len() > 20, "the workload was too short");
        self.server
            .psql(&format!("select pg_create_restore_point('{point}')"));
        // Its record is followed by others, and is on disk.
        self.write_wal(0);
        wait_until_stored(&self.server);
        rows
    }

    /// About this many MiB of WAL that mean nothing.
    fn write_wal(&self, mib: u32) {
        self.server.psql(&format!(
            "select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, {}) g;\n\
             create table if not exists flushed (at timestamptz); insert into flushed values (now())",
            mib * 1024
        ));
    }

    /// Where the stored WAL ends.
    fn stored_end(&self) -> Lsn {
        let end = self.site.catalog().wal_end(FIRST, self.site.size);
        end.expect("something is stored")
    }

    /// Writes until the server has removed the segment that follows what is stored, so that nothing but a gap is left.
    fn write_until_removed(&self) {
        let size = self.site.size;
        self.write_until_removed_to(size.end(size.segment(self.stored_end())));
    }

    /// The same up to the segment of `lsn`.
    fn write_until_removed_to(&self, lsn: Lsn) {
        let next = self.site.size.segment(lsn);
        let name = SegmentName::new(FIRST, next, self.site.size).to_string();
        let file = self.server.wal_directory().join(name);
        wait_until("the server has removed WAL", DEADLINE, || {
            self.write_wal(3);
            self.server.psql("checkpoint");
            (!file.exists()).then_some(())
        });
    }

    fn gaps(&self) -> Vec<GapRange> {
        self.site.catalog().gaps.into_iter().collect()
    }

    fn json(&self, arguments: &[&str], code: i32) -> Value {
        let arguments = arguments.iter().chain(&["--json"]);
        self.site.walden.run(arguments).expect_code(code).json()
    }

    /// Waits for the backup that a gap is followed by.
    fn wait_for_backup_behind(&self, gap: GapRange) {
        wait_until("a backup is taken behind the gap", DEADLINE, || {
            let listed = self.site.walden.run(["list", "--json"]).json();
            let backups = listed["backups"].as_array()?;
            let start = |backup: &Value| backup["start_lsn"].as_str().map(lsn);
            backups
                .iter()
                .filter_map(start)
                .find(|start| *start >= gap.to)
        });
    }

    /// What is not stored is recorded as lost, each byte once.
    #[track_caller]
    fn check_record(&self) {
        let (catalog, size) = (self.site.catalog(), self.site.size);
        let mut before: Option<GapRange> = None;
        for gap in &catalog.gaps {
            assert!(
                before.is_none_or(|before| before.to <= gap.from),
                "{before:?} and {gap} overlap"
            );
            before = Some(*gap);
        }
        for hole in catalog.holes(FIRST, size) {
            assert_eq!(catalog.unrecorded_in(hole), [], "a silent hole: {hole}");
        }
    }

    /// No stored byte is recorded as lost.
    #[track_caller]
    fn check_nothing_stored_is_recorded(&self) {
        let catalog = self.site.catalog();
        for gap in &catalog.gaps {
            assert_eq!(
                catalog.missing_in(*gap, self.site.size),
                [*gap],
                "some is stored"
            );
        }
    }
}

fn lsn(text: &str) -> Lsn {
    let parsed = text.trim().parse();
    parsed.unwrap_or_else(|_| panic!("{text:?} is no LSN"))
}

/// Ends it in order; says what it logged, and with which code it ended.
#[track_caller]
fn terminate(run: Running, code: i32) -> String {
    run.signal(Signal::TERM);
    run.wait(Duration::from_secs(10)).expect_code(code).stderr
}
