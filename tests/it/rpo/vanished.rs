//! The server is killed under load and its data directory deleted; `walden run` goes on, or is killed too. Then a restore to `latest`
//! tells what is left.

use super::{
    DEADLINE, DELIVERY, SEGMENT_MIB, chunk_seconds, distribution, plan, receive, terminate,
    wait_until_synchronous, waiting,
};
use crate::site::Site;
use crate::support::object_store::Bucket;
use crate::support::oracle_commits::{Committers, Verdict, Work};
use crate::support::postgres::{Builder, Server};
use crate::support::process::{Running, note};
use crate::support::restored::Restorer;
use crate::support::soak;
use crate::support::workload::Random;
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, SystemTime};

const CLIENTS: u32 = 4;
/// Each client has so many commits behind it before the server may vanish.
const LEAST_STEPS: usize = 8;

/// What becomes of `walden run` when the server vanishes.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Survives,
    /// Killed just before the server.
    First,
    /// Killed just after it.
    Last,
}

/// What one round showed.
struct Seen {
    verdicts: Vec<Verdict>,
    /// Seconds since 1970 when the killing began.
    killed: f64,
    /// How long the slowest chunk took to be stored.
    slowest_put: f64,
    /// How long the round took.
    took: Duration,
}

impl Seen {
    fn logged(&self) -> usize {
        self.verdicts.iter().map(|verdict| verdict.logged).sum()
    }

    fn lost(&self) -> usize {
        let lost = self.verdicts.iter().map(|verdict| verdict.lost.len());
        lost.sum()
    }

    /// How long before the end the first commit had returned that is lost; 0 if none is.
    fn age_of_the_first_lost(&self) -> f64 {
        let first = self
            .verdicts
            .iter()
            .filter_map(|verdict| verdict.lost.first());
        first.fold(0.0, |age, time| f64::max(age, self.killed - time))
    }

    /// Between the last commit that returned and the last that is there, of one client after the other.
    fn losses(&self) -> impl Iterator<Item = f64> {
        self.verdicts.iter().map(|verdict| {
            let begun = verdict.lost.first().copied();
            let restored = verdict.last_restored.or(begun);
            verdict
                .last_logged
                .zip(restored)
                .map_or(0.0, |(last, restored)| last - restored)
        })
    }
}

/// What a round is made of, but for its random numbers.
struct Round<'a> {
    seed: u64,
    server: fn(u32) -> Builder,
    rpo: &'a str,
    bucket: Option<Bucket>,
    fate: Fate,
    /// Some commits are larger than a segment, and segments are switched.
    large: bool,
    /// How long the clients work, at least and at most, in milliseconds.
    load: (u64, u64),
}

impl Round<'_> {
    fn run(self) -> Seen {
        let begun = std::time::Instant::now();
        let Round {
            seed,
            rpo,
            bucket,
            fate,
            large,
            load,
            ..
        } = self;
        let mut random = Random::new(seed);
        let major = 15 + u32::try_from(random.below(4)).expect("a major");
        let (mut restorer, builder) = Restorer::for_source((self.server)(major));
        let mut server = builder.start();
        let site = Site::new(&server, plan(rpo, bucket.as_ref()));
        restorer.url.clone_from(&site.url);
        if let Some(bucket) = &bucket {
            restorer.walden = restorer.walden.envs(bucket.environment());
        }
        let mut run = receive(&server, &site);
        site.walden
            .run(["backup", "--fast-checkpoint"])
            .expect_success();
        if rpo == "sync" {
            wait_until_synchronous(&server);
        }
        let work = Work {
            clients: CLIENTS,
            segment_bytes: u64::from(large) * (u64::from(SEGMENT_MIB) << 20),
            pause: Duration::ZERO,
        };
        let clients = Committers::start(&server, seed, work);
        clients.wait_for_each(LEAST_STEPS, DEADLINE);
        std::thread::sleep(Duration::from_millis(
            load.0 + random.below(load.1 - load.0),
        ));

        let killed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let killed = killed.expect("after 1970").as_secs_f64();
        vanish(&mut server, &mut run, fate);
        let logs = clients.logs();
        let restored = restorer.restore("latest", &["--to", "latest", "--action", "promote"]);
        let verdicts = logs.judge(&restored.client);
        let (_, log) = run.printed();
        if matches!(fate, Fate::Survives) {
            terminate(run);
        }
        let puts = chunk_seconds(&log);
        let seen = Seen {
            verdicts,
            killed,
            slowest_put: puts.iter().copied().fold(0.0, f64::max),
            took: begun.elapsed(),
        };
        note(&format!(
            "PostgreSQL {major}, rpo {rpo}, walden run {fate:?}: {} steps returned, {} lost, the first {:.3} s before the end; {} chunks, the slowest put {:.3} s; the round {:.1} s",
            seen.logged(),
            seen.lost(),
            seen.age_of_the_first_lost(),
            puts.len(),
            seen.slowest_put,
            seen.took.as_secs_f64()
        ));
        seen
    }
}

/// `kill -9` of the server and all its children, and of `walden run` as fate has it; and nothing of the data directory is left.
fn vanish(server: &mut Server, run: &mut Running, fate: Fate) {
    if matches!(fate, Fate::First) {
        run.signal(Signal::KILL);
    }
    server.crash();
    if matches!(fate, Fate::Last) {
        run.signal(Signal::KILL);
    }
    fs::remove_dir_all(server.data_directory()).expect("delete the data directory");
}

fn no_returned_commit_is_lost(rounds: u64, bucket: fn() -> Option<Bucket>) {
    let (mut steps, mut done) = (0, 0);
    for seed in soak::rounds(rounds) {
        let round = Round {
            seed,
            server: waiting,
            rpo: "sync",
            bucket: bucket(),
            // Neighbouring seeds have different fates.
            fate: [Fate::Survives, Fate::First, Fate::Last][(seed % 3) as usize],
            large: true,
            load: (200, 1500),
        };
        let seen = round.run();
        assert_eq!(seen.lost(), 0, "SEED={seed}: {:?}", seen.verdicts);
        steps += seen.logged();
        done += 1;
    }
    note(&format!(
        "rpo = sync: {done} rounds, {steps} returned steps, none lost"
    ));
}

#[test]
fn soak_no_returned_commit_is_lost_from_a_folder() {
    no_returned_commit_is_lost(3, || None);
}

#[test]
fn soak_no_returned_commit_is_lost_from_a_bucket() {
    no_returned_commit_is_lost(3, || Some(Bucket::new()));
}

/// Nothing waits for `walden run`.
fn not_waiting(major: u32) -> Builder {
    waiting(major).setting("synchronous_standby_names = ''")
}

const RPO: Duration = Duration::from_secs(1);

fn the_loss_is_bounded(rounds: u64, bucket: fn() -> Option<Bucket>) {
    let (mut losses, mut ages, mut last) = (Vec::new(), Vec::new(), 0);
    let mut round = |seed: u64, fate: Fate| {
        let round = Round {
            seed,
            server: not_waiting,
            rpo: "1s",
            bucket: bucket(),
            fate,
            // Of long commits whole segments are stored, and chunks only now and then.
            large: seed % 8 > 5,
            load: (1100, 2300),
        };
        let seen = round.run();
        let age = seen.age_of_the_first_lost();
        // What had come is stored even then.
        let unsent = if matches!(fate, Fate::Survives) {
            0.0
        } else {
            RPO.as_secs_f64()
        };
        let bound = unsent + seen.slowest_put + DELIVERY.as_secs_f64();
        assert!(
            age <= bound,
            "SEED={seed}: lost what was {age} s old, {bound} s are allowed"
        );
        losses.extend(seen.losses());
        if matches!(fate, Fate::First) {
            ages.push(age);
        }
        age > 0.0
    };
    let mut has_lost = false;
    for seed in soak::rounds(rounds) {
        let fate = [Fate::Survives, Fate::First][(seed % 2) as usize];
        has_lost |= round(seed, fate);
        last = seed;
    }
    // Else the witnesses see nothing, and the bound proves nothing; that a chunk is stored just before the end is luck.
    has_lost = has_lost || (1..4).any(|more| round(last + more, Fate::First));
    assert!(has_lost, "nothing was ever lost");
    note(&format!(
        "rpo = 1s, loss by client and round: {}",
        distribution(&mut losses)
    ));
    note(&format!(
        "rpo = 1s, age of the first lost commit, walden run killed too: {}",
        distribution(&mut ages)
    ));
}

#[test]
fn soak_the_loss_is_bounded_in_a_folder() {
    the_loss_is_bounded(2, || None);
}

#[test]
fn soak_the_loss_is_bounded_in_a_bucket() {
    the_loss_is_bounded(2, || Some(Bucket::new()));
}
