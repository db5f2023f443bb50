//! A standby that has nothing but the repository, and a store that breaks: it never dies of it, never skips anything, never takes the
//! branch that was left, and catches up.

use super::kills::finish_segment;
use super::{DEADLINE, Rig, soak_length};
use crate::run::{lsn, terminate, wait_until_flushed, write_wal};
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::postgres::{Server, append};
use crate::support::process;
use crate::support::wait_until;
use crate::support::walden::Walden;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// What may happen to a question; what takes as long as the hook's patience is rare.
const OF_QUESTIONS: [(Fault, u64); 8] = [
    (Fault::Status(503), 6),
    (Fault::Status(403), 3),
    (Fault::Reset, 5),
    (Fault::TruncatedAnswer, 5),
    (Fault::FlippedBit, 5),
    (Fault::LengthTooShort, 5),
    (Fault::Drip(500, Duration::from_millis(2)), 5),
    (Fault::Stall, 1),
];
/// How many bytes of WAL the standby may be behind before nothing more is written.
const MOST_BEHIND: u64 = 8 << 20;
const FIGURES: &str = "select count(*), coalesce(sum(hashtext(note || n)), 0) from kept";

impl Rig {
    /// A copy of the server that follows the repository, not started yet.
    fn follower(&self) -> Server {
        let data = self.server.scratch().join("follower");
        self.server.base_backup(&data, &["-X", "none"]);
        let environment: Vec<String> = self
            .bucket
            .environment()
            .into_iter()
            .filter(|(name, _)| name != "AWS_ENDPOINT_URL")
            .chain([("AWS_ENDPOINT_URL".to_owned(), self.store.endpoint())])
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        let restore = format!(
            "{} \"{}\" archive-get --config \"{}\" %f %p",
            environment.join(" "),
            Walden::program().display(),
            self.server.scratch().join("walden/walden.toml").display()
        );
        append(
            &data.join("postgresql.auto.conf"),
            &format!(
                "restore_command = '{restore}'\nrecovery_target_timeline = 'latest'\nhot_standby = on\n\
                 wal_retrieve_retry_interval = '200ms'\n"
            ),
        );
        fs::write(data.join("standby.signal"), "").expect("make it a standby");
        Server::over_directory(self.server.major(), &data)
    }

    /// As a server does: until it is stored. What refuses the questions of a standby refuses those of whoever pushes, too.
    fn push(&self, server: &Server, path: &Path) {
        let path = path.to_str().expect("a path in UTF-8");
        wait_until("the file is stored", DEADLINE, || {
            let push = self.hook_in(server.data_directory(), &["archive-push", path]);
            let pushed = push.wait(DEADLINE);
            assert!([0, 1].contains(&pushed.code()), "{pushed}");
            (pushed.code() == 0).then_some(())
        });
    }
}

/// Waits until the follower shows what `server` has.
#[track_caller]
fn wait_until_same(follower: &mut Server, server: &Server, deadline: Duration) {
    let expected = server.psql(FIGURES);
    let begun = Instant::now();
    while follower.psql(FIGURES) != expected {
        assert!(follower.is_running(), "it died\n{}", follower.log());
        assert!(
            begun.elapsed() < deadline,
            "it does not catch up\n{}",
            follower.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn soak_a_standby_follows_through_faults_and_takes_no_dead_branch() {
    let mut rig = Rig::new(18, "100ms");
    let config = rig.server.scratch().join("walden/walden.toml");
    let mut config = fs::File::options()
        .append(true)
        .open(config)
        .expect("open it");
    writeln!(config, "[restore]\npatience = \"2s\"").expect("write it");
    rig.server.psql("create table kept (n int, note text)");
    let run = rig.site.archive(&rig.server);
    let mut follower = rig.follower();
    finish_segment(&rig.server);
    wait_until_flushed(&rig.server);
    follower.start();

    let chances = OF_QUESTIONS.map(|(fault, percent)| {
        // A listing vouches for nothing: objects do.
        let part = if fault == Fault::FlippedBit {
            ".wal"
        } else {
            ""
        };
        Rule::next(fault).on("GET", part).percent(percent)
    });
    rig.store.arm(chances.clone());
    let length = soak_length().unwrap_or(Duration::from_secs(5));
    let (begun, mut rounds, mut replayed) = (Instant::now(), 0, lsn("0/0"));
    while begun.elapsed() < length {
        rounds += 1;
        rig.server.psql(&format!(
            "insert into kept select g, 'alive' from generate_series({rounds}000, {rounds}099) g"
        ));
        write_wal(&rig.server, 1);
        finish_segment(&rig.server);
        std::thread::sleep(Duration::from_millis(300));
        let written = lsn(&rig.server.psql("select pg_current_wal_flush_lsn()"));
        let begun = Instant::now();
        // Faults cost it seconds each: who writes waits for it, or after an hour it would be minutes behind.
        loop {
            assert!(follower.is_running(), "it died\n{}", follower.log());
            let now = lsn(&follower.psql("select pg_last_wal_replay_lsn()"));
            assert!(now >= replayed, "{now} after {replayed}");
            replayed = now;
            if written.saturating_sub(MOST_BEHIND) <= now {
                break;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "it stays behind\n{}",
                follower.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    finish_segment(&rig.server);
    wait_until_same(&mut follower, &rig.server, DEADLINE);

    // Another standby becomes timeline 2, and the old primary goes on with what must not be taken.
    let promoted = rig.server.standby();
    wait_until_flushed(&rig.server);
    terminate(run);
    // All that is stored of timeline 1, to the last byte: else the standby is ahead of the switch, and rightly stays there.
    let end = rig.server.psql("select pg_current_wal_flush_lsn()");
    let has_all = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    wait_until("the next primary has it all", DEADLINE, || {
        (promoted.psql(&has_all) == "t").then_some(())
    });
    promoted.promote();
    promoted.psql("insert into kept select g, 'of timeline 2' from generate_series(1, 100) g");
    rig.server
        .psql("insert into kept select g, 'dead' from generate_series(1, 100) g");
    // Of the new timeline the standby hears late; the rest of the old one it could have at once. What it asked before the history was
    // stored is no matter: only what it asks now.
    rig.store.calm();
    let history = Rule::next(Fault::Status(503)).on("GET", "00000002.history");
    rig.store.arm([history.times(u32::MAX)]);
    rig.store.arm(chances.clone());
    rig.push(&promoted, Path::new("pg_wal/00000002.history"));
    rig.store.take_fates();
    let mut asked = 0;
    wait_until(
        "the standby has asked for the new timeline",
        DEADLINE,
        || {
            let fates = rig.store.take_fates();
            asked += fates
                .iter()
                .filter(|fate| fate.target.ends_with("00000002.history"))
                .count();
            (asked > 12).then_some(())
        },
    );
    for _ in 0..2 {
        let dead = finish_segment(&rig.server);
        rig.push(&rig.server, &dead);
    }
    std::thread::sleep(Duration::from_secs(3));
    let dead = "select count(*) from kept where note = 'dead'";
    assert_eq!(follower.psql(dead), "0", "{}", follower.log());
    rig.store.calm();
    rig.store.arm(chances);
    for _ in 0..3 {
        let alive = finish_segment(&promoted);
        rig.push(&promoted, &alive);
    }
    wait_until_same(&mut follower, &promoted, DEADLINE);
    assert_eq!(follower.psql(dead), "0");
    let fired = rig.store.fired();
    rig.store.calm();
    process::note(&format!(
        "soak: a standby followed for {:?}, {rounds} rounds: {fired:?}",
        begun.elapsed()
    ));
    rig.assert_nothing_overwritten();
}
