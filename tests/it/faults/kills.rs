//! `kill -9` at the two moments of a durable write that matter: when the store has not done it yet, and when it has and nobody was
//! told. The proxy kills; the same command, run again, must end what was begun.

use super::{DEADLINE, Rig};
use crate::run::{FIRST, restart_lsn, write_wal};
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::Server;
use crate::support::process::{Output, Running};
use crate::support::wal_dump::Target;
use crate::support::walden::Walden;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const KILLED: i32 = 128 + 9;

impl Rig {
    /// Kills what `start` starts at one request.
    #[track_caller]
    fn kill_at(&self, rule: Rule, start: impl FnOnce() -> Running) -> Output {
        self.store.arm([rule]);
        let running = start();
        self.store.victim(running.id());
        let output = running.wait(DEADLINE).expect_code(KILLED);
        self.store.calm();
        output
    }

    /// A hook as the server runs it: in the data directory.
    pub(super) fn hook(&self, arguments: &[&str]) -> Running {
        let folder = self.server.data_directory();
        self.hook_in(folder, arguments)
    }

    pub(super) fn hook_in(&self, folder: &Path, arguments: &[&str]) -> Running {
        let config = self.server.scratch().join("walden/walden.toml");
        let mut all = vec![
            arguments[0],
            "--config",
            config.to_str().expect("a path in UTF-8"),
        ];
        all.extend(&arguments[1..]);
        Walden::in_directory(folder)
            .envs(self.bucket.environment())
            .env("AWS_ENDPOINT_URL", self.store.endpoint())
            .start(all)
    }

    pub(super) fn complete_backups(&self) -> usize {
        self.site.catalog().complete_backups().count()
    }
}

/// Writes something and ends the segment; gives the path of what was ended, from the data directory.
pub(super) fn finish_segment(server: &Server) -> PathBuf {
    server.psql("select pg_logical_emit_message(true, 'filler', repeat('x', 100000))");
    let name = server.psql("select pg_walfile_name(pg_switch_wal() - 1)");
    Path::new("pg_wal").join(name)
}

#[test]
fn whatever_is_killed_before_or_after_a_write_ends_it_the_next_time() {
    let mut rig = Rig::new(18, "100ms");
    let backup = ["backup", "--fast-checkpoint"];
    let moments = [Fault::KillBefore, Fault::KillAfter];

    // The receiver: a chunk, a segment.
    let run = rig.site.archive(&rig.server);
    rig.site.walden.run(backup).expect_success();
    drop(run);
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 2);
    for part in ["/tail/", ".wal"] {
        for moment in moments {
            write_wal(&rig.server, 2);
            rig.kill_at(Rule::next(moment).on("PUT", part).after(1), || {
                rig.site.walden.start(["run"])
            });
            let reported = restart_lsn(&rig.server);
            let covered = rig.site.covered_to(&rig.site.catalog(), FIRST);
            assert!(
                covered >= Some(reported),
                "{part} {moment:?}: {covered:?} stored, {reported} reported, seed {}",
                rig.seed
            );
        }
    }
    oracle.stop(clients);

    // The hook that pushes, beside the receiver's own objects.
    for moment in moments {
        let path = finish_segment(&rig.server);
        let path = path.to_str().expect("a path in UTF-8");
        let name = &path["pg_wal/".len()..];
        let push = || rig.hook(&["archive-push", path]);
        let stored = || rig.bucket.list("").iter().any(|key| key.contains(name));
        rig.kill_at(Rule::next(moment).on("PUT", ".wal"), push);
        assert_eq!(stored(), moment == Fault::KillAfter, "{name} {moment:?}");
        push().wait(DEADLINE).expect_success();
        assert!(stored(), "{name}");
        let original = fs::read(rig.server.data_directory().join(path)).expect("read it");

        // And the hook that fetches: a file that is not whole is not there.
        let place = rig.server.scratch().join("fetched");
        let get = || rig.hook(&["archive-get", name, place.to_str().expect("UTF-8")]);
        rig.kill_at(Rule::next(moment).on("GET", ".wal"), get);
        assert!(!place.exists(), "{moment:?}");
        get().wait(DEADLINE).expect_success();
        assert!(fs::read(&place).expect("read it") == original, "{name}");
        fs::remove_file(&place).expect("remove it");
    }
    rig.assert_nothing_overwritten();

    // Backups: the claim, a part, the manifest, the document that makes it one.
    let run = rig.site.archive(&rig.server);
    for (part, moment) in [
        ("/started.json", Fault::KillBefore),
        ("/started.json", Fault::KillAfter),
        ("/base.", Fault::KillAfter),
        ("/manifest", Fault::KillBefore),
        ("/manifest", Fault::KillAfter),
        ("/backup.json", Fault::KillBefore),
        ("/backup.json", Fault::KillAfter),
    ] {
        let before = rig.complete_backups();
        rig.kill_at(Rule::next(moment).on("PUT", part), || {
            rig.site.walden.start(backup)
        });
        let is_one = part == "/backup.json" && moment == Fault::KillAfter;
        let after = rig.complete_backups();
        assert_eq!(after - before, usize::from(is_one), "{part} {moment:?}");
    }
    write_wal(&rig.server, 1);
    // From the newest backup, whose maker never learned that it was one.
    rig.assert_promises(run, &oracle);

    // A restore that is killed is no data directory, and goes on.
    let restored = rig.restorer.place("killed");
    let arguments = rig.restorer.arguments(&restored, &["--to", "latest"]);
    for (count, moment) in [(0, moments[0]), (0, moments[1]), (1, moments[0])] {
        rig.kill_at(Rule::next(moment).on("GET", "/base.").after(count), || {
            rig.restorer.walden.start(&arguments)
        });
        assert!(!restored.data.join("global/pg_control").exists());
    }
    rig.restorer.walden.run(&arguments).expect_success();
    let expected = oracle.rows_at(&oracle.dump(&rig.server), &Target::Latest);
    assert_same_rows("killed", &expected, &rows(&restored.client));
    drop(restored);
    rig.assert_nothing_overwritten();
}
