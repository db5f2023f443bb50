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
use crate::support::walden::Walden;
use crate::support::workload::Random;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
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

/// Where a round's WAL goes, and who takes it there.
struct Archive {
    walden: Walden,
    urls: Vec<String>,
    /// Folders of the repository that fails under load.
    failing: Option<PathBuf>,
}

impl Archive {
    fn of(site: Site) -> Self {
        Self {
            walden: site.walden,
            urls: vec![site.url],
            failing: None,
        }
    }

    /// Two folders, the second of which fails if only one of them is needed.
    fn two(server: &Server, ack: &str) -> Self {
        let folder = server.scratch().join("walden");
        let roots = ["near", "far"].map(|name| folder.join(name));
        for root in &roots {
            fs::create_dir_all(root).expect("make a folder");
        }
        let urls = roots
            .each_ref()
            .map(|root| format!("file://{}", root.display()));
        let (conninfo, [near, far]) = (server.conninfo(), &urls);
        let text = format!(
            "encryption = \"none\"\n[postgres]\nconninfo = \"{conninfo}\"\n[archive]\nrpo = \"sync\"\nack = \"{ack}\"\n\
             [[repository]]\nname = \"near\"\nurl = '{near}'\n[[repository]]\nname = \"far\"\nurl = '{far}'\n"
        );
        fs::write(folder.join("walden.toml"), text).expect("write the configuration");
        let walden = Walden::in_directory(&folder);
        let made = walden.run(["init", near, "--no-encryption", "--postgres", &conninfo]);
        assert!(matches!(made.code(), 0 | 3), "{made}");
        let [_, far] = roots;
        Self {
            walden,
            urls: urls.to_vec(),
            failing: (ack == "any").then_some(far),
        }
    }

    /// With a mode of 0500 no new object gets a name there any more.
    fn set_mode(&self, mode: u32) {
        let mut folders = Vec::from_iter(self.failing.clone());
        while let Some(folder) = folders.pop() {
            let inside = fs::read_dir(&folder).expect("list a folder");
            folders.extend(
                inside
                    .map(|entry| entry.expect("list a folder").path())
                    .filter(|path| path.is_dir()),
            );
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("set a mode");
        }
    }
}

/// What a round is made of, but for its random numbers.
struct Round<'a> {
    seed: u64,
    server: fn(u32) -> Builder,
    rpo: &'a str,
    bucket: Option<Bucket>,
    /// Two repositories under this policy.
    ack: Option<&'a str>,
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
            ack,
            fate,
            large,
            load,
            ..
        } = self;
        let mut random = Random::new(seed);
        let major = 15 + u32::try_from(random.below(4)).expect("a major");
        let (mut restorer, builder) = Restorer::for_source((self.server)(major));
        let mut server = builder.start();
        let archive = match ack {
            Some(ack) => Archive::two(&server, ack),
            None => Archive::of(Site::new(&server, plan(rpo, bucket.as_ref()))),
        };
        if let Some(bucket) = &bucket {
            restorer.walden = restorer.walden.envs(bucket.environment());
        }
        let mut run = receive(&server, &archive.walden);
        archive
            .walden
            .run(["backup", "--fast-checkpoint"])
            .expect_success();
        if ack.is_some() {
            // Whichever of them the backup was written to.
            archive.walden.run(["copy", "near", "far"]).expect_success();
        }
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
        archive.set_mode(0o500);
        std::thread::sleep(Duration::from_millis(
            load.0 + random.below(load.1 - load.0),
        ));

        let killed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let killed = killed.expect("after 1970").as_secs_f64();
        vanish(&mut server, &mut run, fate);
        let logs = clients.logs();
        // The best of the repositories counts under `any`, the worst otherwise.
        let verdicts = archive.urls.iter().map(|url| {
            restorer.url.clone_from(url);
            let restored = restorer.restore("latest", &["--to", "latest", "--action", "promote"]);
            logs.judge(&restored.client)
        });
        let lost =
            |verdicts: &Vec<Verdict>| verdicts.iter().map(|one| one.lost.len()).sum::<usize>();
        let verdicts = match archive.failing {
            Some(_) => verdicts.min_by_key(lost),
            None => verdicts.max_by_key(lost),
        };
        let verdicts = verdicts.expect("a repository");
        // Else only root could remove it.
        archive.set_mode(0o750);
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
            ack: None,
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
            ack: None,
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

/// Under `all` each of two repositories has every commit, under `any` one of them though the other one fails.
#[test]
fn soak_no_returned_commit_is_lost_from_two_repositories() {
    for seed in soak::rounds(2) {
        let round = Round {
            seed,
            server: waiting,
            rpo: "sync",
            bucket: None,
            ack: Some(["all", "any"][(seed % 2) as usize]),
            fate: [Fate::First, Fate::Last][(seed / 2 % 2) as usize],
            large: true,
            load: (200, 1500),
        };
        let seen = round.run();
        assert_eq!(seen.lost(), 0, "SEED={seed}: {:?}", seen.verdicts);
    }
}
