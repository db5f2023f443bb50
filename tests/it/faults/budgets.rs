//! A store that refuses or hangs for long: whoever asks goes on asking, ever less often, and ends within the time that was said. Counted at
//! the proxy.

use super::kills::finish_segment;
use super::{DEADLINE, Rig};
use crate::run::{terminate, wait_until_flushed, write_wal};
use crate::support::fault_proxy::store::Fate;
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::process;
use crate::support::wal_dump::Target;
use std::fs;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// What `archive-push` may take in all here.
const PATIENCE: Duration = Duration::from_secs(3);
/// For a machine that does other things too.
const MARGIN: Duration = Duration::from_secs(3);
/// How long the store is down for the others.
const OUTAGE: Duration = Duration::from_secs(5);
/// Requests for one thing in that time: 0.1 s to the second, then twice as long each time, less up to a half.
const BUDGET: RangeInclusive<usize> = 2..=10;

/// What was asked for during an outage, by when. Those who ask for several things at once ask for each as if it were alone.
fn asked(fates: &[Fate], method: &str, part: &str) -> Vec<Instant> {
    let refused = fates.iter().filter(|fate| fate.fault.is_some());
    let of_it = refused.filter(|fate| fate.method == method && fate.target.contains(part));
    of_it.map(|fate| fate.arrived).collect()
}

/// From the first request to the last.
fn span(fates: &[Fate]) -> Duration {
    let arrived = || fates.iter().map(|fate| fate.arrived);
    let first = arrived().min();
    first
        .zip(arrived().max())
        .map_or(Duration::ZERO, |(first, last)| last - first)
}

/// Within the budget, and not as often all the time.
#[track_caller]
fn assert_budget(what: &str, asked: &[Instant]) {
    assert!(
        BUDGET.contains(&asked.len()),
        "{what}: {} times",
        asked.len()
    );
    let gaps = || asked.windows(2).map(|pair| pair[1] - pair[0]);
    let (shortest, longest) = (gaps().min(), gaps().max());
    if asked.len() > 3 {
        let spread = longest > shortest.map(|gap| 2 * gap);
        assert!(spread, "{what}: {:?}", gaps().collect::<Vec<_>>());
    }
}

impl Rig {
    /// Everything that is asked of this part of the store is refused while `work` goes on.
    fn outage(&self, rule: Rule, work: impl FnOnce()) -> Vec<Fate> {
        self.store.take_fates();
        self.store.arm([rule.times(u32::MAX)]);
        work();
        let fates = self.store.take_fates();
        self.store.calm();
        fates
    }
}

#[test]
fn a_pusher_keeps_to_its_patience_and_its_budget() {
    let mut rig = Rig::new(18, "100ms");
    let file = rig.server.scratch().join("walden/walden.toml");
    let text = fs::read_to_string(&file).expect("read the configuration");
    let setting = format!("[archive]\npatience = \"{}s\"", PATIENCE.as_secs());
    fs::write(&file, text.replace("[archive]", &setting)).expect("write the configuration");
    rig.server.psql("create table t ()");

    let everything = |fault| Rule::next(fault);
    let writes = |fault| Rule::next(fault).on("PUT", "");
    let mut told = Vec::new();
    for (rule, fault) in [
        (everything(Fault::Status(503)), Fault::Status(503)),
        (writes(Fault::Status(503)), Fault::Status(503)),
        (writes(Fault::FailedAfter), Fault::FailedAfter),
        (everything(Fault::Stall), Fault::Stall),
        (writes(Fault::StallInAnswer), Fault::StallInAnswer),
        (everything(Fault::Status(403)), Fault::Status(403)),
    ] {
        let path = finish_segment(&rig.server);
        let path = path.to_str().expect("a path in UTF-8");
        let mut took = Duration::ZERO;
        let fates = rig.outage(rule, || {
            let push = rig.hook(&["archive-push", path]).wait(DEADLINE);
            took = push.took;
            let done = fault == Fault::FailedAfter || fault == Fault::StallInAnswer;
            // What was done in spite of the answer may be found out.
            match done {
                true => assert!([0, 1].contains(&push.code()), "{push}"),
                false => assert_eq!(push.code(), 1, "{push}"),
            }
        });
        let count = fates.iter().filter(|fate| fate.fault.is_some()).count();
        let what = format!("{fault:?}: {count} requests in {took:?}");
        assert!(took < PATIENCE + MARGIN, "{what}");
        assert!(span(&fates) <= PATIENCE, "{what}: {:?}", span(&fates));
        match fault {
            // Nobody's credentials come back by waiting a little.
            Fault::Status(403) => assert_eq!(count, 1, "{what}"),
            Fault::Status(503) | Fault::Stall => {
                assert!(took > PATIENCE / 3, "{what}: it gave up early");
                assert!(BUDGET.contains(&count), "{what}");
            }
            _ => assert!((1..=10).contains(&count), "{what}"),
        }
        told.push(what);
        rig.hook(&["archive-push", path])
            .wait(DEADLINE)
            .expect_success();
        let original = fs::read(rig.server.data_directory().join(path)).expect("read it");
        let place = rig.server.scratch().join("fetched");
        let name = &path["pg_wal/".len()..];
        rig.hook(&["archive-get", name, place.to_str().expect("UTF-8")])
            .wait(DEADLINE)
            .expect_success();
        assert!(fs::read(&place).expect("read it") == original, "{name}");
    }
    // A store that fails first here and then there has no more time than one that fails at once.
    let path = finish_segment(&rig.server);
    let path = path.to_str().expect("a path in UTF-8");
    rig.store.take_fates();
    let first = Rule::next(Fault::Status(503)).on("GET", "").times(5);
    let then = Rule::next(Fault::Status(503)).on("PUT", "").percent(100);
    rig.store.arm([first, then]);
    rig.hook(&["archive-push", path])
        .wait(DEADLINE)
        .expect_code(1);
    rig.store.calm();
    let fates = rig.store.take_fates();
    assert!(span(&fates) <= PATIENCE, "{:?}: {fates:#?}", span(&fates));
    rig.hook(&["archive-push", path])
        .wait(DEADLINE)
        .expect_success();
    process::note(&format!("archive-push: {}", told.join("; ")));
    rig.assert_nothing_overwritten();
}

#[test]
fn who_waits_for_a_store_asks_it_ever_less_often() {
    let mut rig = Rig::new(18, "100ms");
    let mut run = rig.site.archive(&rig.server);
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 1);

    // The receiver: whatever piles up meanwhile, what comes first is asked for, again and again.
    let down = Rule::next(Fault::Status(503)).on("PUT", "");
    let fates = rig.outage(down, || {
        for _ in 0..5 {
            write_wal(&rig.server, 1);
            std::thread::sleep(OUTAGE / 5);
        }
    });
    assert!(run.is_running(), "{:?}", run.printed());
    let mut puts = asked(&fates, "PUT", "/wal/");
    puts.extend(asked(&fates, "PUT", "/tail/"));
    puts.sort_unstable();
    assert_budget("run", &puts);
    wait_until_flushed(&rig.server);

    // A backup: its claim.
    let down = Rule::next(Fault::Status(503)).on("PUT", "/backups/");
    let mut backup = None;
    let fates = rig.outage(down, || {
        backup = Some(rig.site.walden.start(["backup", "--fast-checkpoint"]));
        std::thread::sleep(OUTAGE);
    });
    let claims = asked(&fates, "PUT", "/backups/");
    assert_budget("backup", &claims);
    assert_eq!(rig.complete_backups(), 0);
    backup
        .expect("it was begun")
        .wait(DEADLINE)
        .expect_success();
    assert_eq!(rig.complete_backups(), 1);

    oracle.stop(clients);
    wait_until_flushed(&rig.server);
    let expected = oracle.rows_at(&oracle.dump(&rig.server), &Target::Latest);

    // A restore: of a part that it cannot do without.
    let restored = rig.restorer.place("patient");
    let arguments = rig.restorer.arguments(&restored, &["--to", "latest"]);
    let mut restoring = None;
    let fates = rig.outage(
        Rule::next(Fault::Status(503)).on("GET", "/manifest"),
        || {
            restoring = Some(rig.restorer.walden.start(&arguments));
            std::thread::sleep(OUTAGE);
        },
    );
    let parts = asked(&fates, "GET", "/manifest");
    assert_budget("restore", &parts);
    assert!(!restored.data.join("global/pg_control").exists());
    restoring
        .expect("it was begun")
        .wait(DEADLINE)
        .expect_success();
    assert_same_rows("patient", &expected, &rows(&restored.client));
    drop(restored);
    // Without the right to read nothing is waited for.
    let refused = rig.restorer.place("refused");
    let arguments = rig.restorer.arguments(&refused, &["--to", "latest"]);
    let fates = rig.outage(Rule::next(Fault::Status(403)), || {
        let output = rig.restorer.walden.run(&arguments);
        assert_eq!(output.code(), 2, "{output}");
    });
    assert!(fates.len() <= 4, "{fates:#?}");
    assert!(!refused.data.exists());
    process::note(&format!(
        "in {OUTAGE:?}: run asked {} times, backup {}, restore {}",
        puts.len(),
        claims.len(),
        parts.len()
    ));
    terminate(run);
    run = rig.site.archive(&rig.server);
    rig.assert_promises(run, &oracle);
}
