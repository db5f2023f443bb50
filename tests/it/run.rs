//! `walden run` against real servers: tests that try to break what it promises. What it has reported flushed is in the
//! repository, byte for byte, whenever anybody looks; a server that shuts down never hangs on it; it may be killed at any
//! moment; timelines are followed; a server that is not the one it was is refused; a gap is never silent.

#[path = "run/archive.rs"]
mod archive;
#[path = "run/gate.rs"]
mod gate;

use crate::support::object_store::Bucket;
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::{Builder, Server, Stop};
use crate::support::process::{self, COMMAND_DEADLINE, Running, command};
use crate::support::wait_until;
use crate::support::wal_dump::Target;
use crate::support::workload::Random;
use archive::{DEADLINE, FIRST, Place, Plan, Site};
use gate::Gate;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wal_format::{Lsn, SegmentName, TimelineHistory, TimelineId};

/// A server that is asked to stop must not wait longer for us.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);
/// What `walden run` has after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

fn server(major: u32) -> Builder {
    Server::builder(major).wal_segment_mib(1)
}

fn seed() -> u64 {
    let said = std::env::var("WALDEN_TEST_SEED").ok();
    said.map_or_else(
        || {
            u64::from(std::process::id()) << 20
                ^ jiff::Timestamp::now().as_microsecond().unsigned_abs()
        },
        |said| said.parse().expect("WALDEN_TEST_SEED is a number"),
    )
}

fn lsn(text: &str) -> Lsn {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{text:?} is no LSN"))
}

/// About this many MiB of WAL that mean nothing.
fn write_wal(server: &Server, mib: u32) {
    server.psql(&format!(
        "select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, {}) g;\n\
         create table if not exists flushed (at timestamptz); insert into flushed values (now())",
        mib * 1024
    ));
}

/// What the server knows of us: sent, written, flushed.
fn positions(server: &Server) -> Option<[Lsn; 3]> {
    let row = server.psql(
        "select sent_lsn, write_lsn, flush_lsn from pg_stat_replication
         where application_name = 'walden' and flush_lsn is not null",
    );
    let row: Vec<Lsn> = row
        .split('|')
        .filter(|text| !text.is_empty())
        .map(lsn)
        .collect();
    row.try_into().ok()
}

fn flushed(server: &Server) -> Option<Lsn> {
    positions(server).map(|[_, _, flush]| flush)
}

fn written_by(server: &Server) -> Lsn {
    lsn(&server.psql("select pg_current_wal_flush_lsn()"))
}

/// Waits until everything the server has written is reported flushed, and says where that is.
#[track_caller]
fn wait_until_flushed(server: &Server) -> Lsn {
    let end = written_by(server);
    wait_until("everything is reported flushed", DEADLINE, || {
        (flushed(server)? >= end).then_some(())
    });
    end
}

/// Waits until everything the server has written is sent, and most probably received, and says where that is.
#[track_caller]
fn wait_until_sent(server: &Server) -> Lsn {
    let end = written_by(server);
    wait_until("everything is sent", DEADLINE, || {
        (positions(server)?[0] >= end).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    end
}

fn restart_lsn(server: &Server) -> Lsn {
    lsn(&server.psql("select restart_lsn from pg_replication_slots where slot_name = 'walden'"))
}

#[track_caller]
fn terminate(run: Running) -> String {
    run.signal(Signal::TERM);
    run.wait(STOP_DEADLINE).expect_success().stderr
}

/// Looks, while the server is written to, whether the repository holds what was reported flushed. The listing comes after
/// the report. Gives how often the report had moved.
#[track_caller]
fn sample_flush(server: &Server, site: &Site, length: Duration) -> usize {
    let (begun, mut moved, mut last) = (Instant::now(), 0, Lsn::new(0));
    while begun.elapsed() < length {
        let Some([sent, write, flush]) = positions(server) else {
            continue;
        };
        let restart = restart_lsn(server);
        let covered = site.covered_to(&site.catalog(), FIRST).unwrap_or(flush);
        assert!(flush <= write && write <= sent, "{flush} {write} {sent}");
        assert!(
            covered >= flush && covered >= restart,
            "stored to {covered}, reported {flush}, the slot at {restart}"
        );
        moved += usize::from(flush > last);
        last = flush;
    }
    moved
}

fn everything_received_is_stored(builder: Builder, plan: Plan<'_>) {
    let server = builder.start();
    let site = Site::new(&server, plan);
    let run = site.archive(&server);
    let mut oracle = Oracle::prepare(&server, seed());
    let clients = oracle.start(&server, 2);
    let moved = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..4 {
                write_wal(&server, 3);
                if round == 2 {
                    server.psql("select pg_switch_wal()");
                }
            }
        });
        sample_flush(&server, &site, Duration::from_secs(4))
    });
    oracle.stop(clients);
    assert!(moved >= 5, "the report moved only {moved} times");

    let end = wait_until_flushed(&server);
    terminate(run);
    let compared = site.compare(FIRST, &server.wal_directory());
    assert!(compared.to >= end, "{compared:?} {end}");
    assert_eq!(
        restart_lsn(&server),
        compared.to,
        "the slot holds what is not stored, no more"
    );
    let segments =
        end.distance_from(compared.from).expect("forward") / u64::from(site.size.bytes());
    assert_eq!(compared.segments as u64, segments, "{compared:?}");
    assert!(compared.segments > 0 && compared.chunks > 3, "{compared:?}");
}

#[test]
fn everything_received_from_15_is_stored() {
    everything_received_is_stored(server(15), Plan::default());
}

#[test]
fn everything_received_from_18_is_stored_encrypted() {
    let encrypted = true;
    everything_received_is_stored(
        server(18),
        Plan {
            encrypted,
            ..Plan::default()
        },
    );
}

#[test]
fn everything_received_in_segments_of_16_mib_is_stored() {
    everything_received_is_stored(server(18).wal_segment_mib(16), Plan::default());
}

/// Behind the record at which the server's last checkpoint lies, at the least: the record's length stands in its first bytes.
fn shutdown_checkpoint_end(server: &Server, site: &Site) -> Lsn {
    assert_eq!(server.control_data("Database cluster state"), "shut down");
    let start = lsn(&server.control_data("Latest checkpoint location"));
    let name = SegmentName::new(FIRST, site.size.segment(start), site.size);
    let file = fs::read(server.wal_directory().join(name.to_string())).expect("read a segment");
    let offset = site.size.offset(start) as usize;
    let length = file.get(offset..offset + 4).expect("in the segment");
    let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
    assert!(
        (100..200).contains(&length),
        "a checkpoint has not {length} bytes"
    );
    start.saturating_add(u64::from(length))
}

/// Stops the server while it is written to, with `during` beside, and looks at what is stored. Then the server comes back,
/// and so does `walden run`, by itself.
fn shutdown_while_archiving(
    mut server: Server,
    site: &Site,
    least: Duration,
    during: impl FnOnce() + Send,
) {
    let mut run = site.archive(&server);
    let mut oracle = Oracle::prepare(&server, seed());
    let clients = oracle.start(&server, 2);
    write_wal(&server, 3);
    clients.wait_for_more(50, DEADLINE);
    let took = std::thread::scope(|scope| {
        scope.spawn(during);
        // Whatever `during` does has begun.
        std::thread::sleep(Duration::from_millis(300));
        server.stop(Stop::Fast, SHUTDOWN_DEADLINE)
    });
    oracle.stop(clients);
    assert!(took >= least, "it did not wait for us: {took:?}");
    run.wait_for("the shutdown is said", DEADLINE, |_, log| {
        log.contains("the server shut down, everything it had is stored")
    });
    let end = shutdown_checkpoint_end(&server, site);
    let compared = site.compare(FIRST, &server.wal_directory());
    assert!(
        compared.to >= end,
        "{compared:?}, the checkpoint ends at {end}"
    );

    server.start();
    wait_until("walden run is back", DEADLINE, || flushed(&server));
    write_wal(&server, 1);
    let end = wait_until_sent(&server);
    terminate(run);
    assert!(site.compare(FIRST, &server.wal_directory()).to >= end);
}

#[test]
fn fast_shutdown_of_15_waits_for_the_last_byte_and_no_longer() {
    let server = server(15).start();
    let rpo = "600s";
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    shutdown_while_archiving(server, &site, Duration::ZERO, || {});
}

#[test]
fn fast_shutdown_survives_a_folder_that_cannot_be_written() {
    let server = server(18).start();
    let site = Site::new(&server, Plan::default());
    let stall = Duration::from_secs(3);
    shutdown_while_archiving(server, &site, Duration::from_secs(2), || {
        let folders = || {
            site.folders()
                .into_iter()
                .filter(|folder| *folder != site.root)
        };
        let mode = |folder: &Path, mode| {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("set a mode");
        };
        folders().for_each(|folder| mode(&folder, 0o500));
        std::thread::sleep(stall);
        folders().for_each(|folder| mode(&folder, 0o750));
    });
}

#[test]
fn a_bucket_that_stalls_delays_and_loses_nothing() {
    let server = server(18).start();
    let bucket = Bucket::new();
    let gate = Gate::before(&bucket);
    let place = Place::Bucket(&bucket, gate.endpoint());
    let site = Site::new(
        &server,
        Plan {
            place,
            encrypted: true,
            ..Plan::default()
        },
    );
    let run = site.archive(&server);
    write_wal(&server, 3);
    assert!(sample_flush(&server, &site, Duration::from_secs(1)) > 0);
    wait_until_flushed(&server);
    terminate(run);
    let least = Duration::from_secs(2);
    shutdown_while_archiving(server, &site, least, || {
        gate.shut_for(Duration::from_secs(3))
    });
}

#[test]
fn sigterm_stores_the_tail() {
    for major in [15, 18] {
        let server = server(major).start();
        let rpo = "600s";
        let site = Site::new(
            &server,
            Plan {
                rpo,
                ..Plan::default()
            },
        );
        let run = site.archive(&server);
        write_wal(&server, 2);
        let end = wait_until_sent(&server);
        let before = flushed(&server).expect("it is connected");
        assert!(before < end, "something must be left to store");
        let log = terminate(run);
        assert!(
            log.contains("stopped, everything received is stored"),
            "{log}"
        );
        let compared = site.compare(FIRST, &server.wal_directory());
        assert!(compared.to >= end, "{compared:?} {end}");
        assert_eq!(restart_lsn(&server), compared.to);
    }
}

#[test]
fn a_commit_that_waited_for_us_is_in_the_repository() {
    // With rpo = "sync", and without it: the server's own settings say that it waits.
    for (major, rpo) in [(15, "600s"), (18, "sync")] {
        let server = server(major).start();
        let site = Site::new(
            &server,
            Plan {
                rpo,
                encrypted: true,
                ..Plan::default()
            },
        );
        server.psql("CREATE TABLE waited (n int)");
        server.psql("ALTER SYSTEM SET synchronous_standby_names = 'walden'");
        let run = site.archive(&server);
        wait_until("it streams", DEADLINE, || flushed(&server));
        server.psql("SELECT pg_reload_conf()");
        // The running receiver has not seen the setting: a new one does.
        terminate(run);
        let run = site.archive(&server);
        wait_until("it streams", DEADLINE, || flushed(&server));
        for n in 0..20 {
            server.psql(&format!("INSERT INTO waited VALUES ({n})"));
            let committed = flushed(&server).expect("it is connected");
            let covered = site.covered_to(&site.catalog(), FIRST);
            assert!(covered >= Some(committed), "{covered:?} {committed}");
        }
        server.psql("ALTER SYSTEM SET synchronous_commit = 'remote_apply'");
        server.psql("SELECT pg_reload_conf()");
        terminate(run);
        let refused = site.walden.run(["run"]).expect_code(2);
        assert!(
            refused.stderr.contains("remote_apply"),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn a_second_run_says_that_the_slot_is_in_use() {
    let server = server(18).start();
    let site = Site::new(&server, Plan::default());
    let first = site.archive(&server);
    let mut second = site.walden.start(["run"]);
    second.wait_for("the reason is said", DEADLINE, |_, log| {
        log.contains("is active for PID")
    });
    write_wal(&server, 1);
    wait_until_flushed(&server);
    // It waits for its turn, and takes it.
    terminate(first);
    wait_until("the second run streams", DEADLINE, || flushed(&server));
    write_wal(&server, 1);
    let end = wait_until_flushed(&server);
    terminate(second);
    assert!(site.compare(FIRST, &server.wal_directory()).to >= end);
}

#[test]
fn another_cluster_and_major_14_are_refused() {
    let ours = server(15).start();
    let site = Site::new(&ours, Plan::default());
    terminate(site.archive(&ours));
    let before = site.objects();
    let other = server(15).own_identity().start();
    let output = site
        .walden
        .run(["run", "--postgres", &other.conninfo()])
        .expect_code(5);
    assert!(
        output.stderr.contains("system identifier: expected "),
        "{output}"
    );
    assert_eq!(other.psql("select count(*) from pg_replication_slots"), "0");
    assert!(site.objects() == before, "something was stored");

    let old = server(14).start();
    let site = Site::new(&old, Plan::default());
    let output = site.walden.run(["run"]).expect_code(2);
    let said = "PostgreSQL 14 is not supported: 15, 16, 17 and 18 are";
    assert!(output.stderr.contains(said), "{output}");
    assert_eq!(old.psql("select count(*) from pg_replication_slots"), "0");
    assert_eq!(site.objects().len(), 2, "walden.json and cluster.json");
}

/// Copies a data directory over another.
fn copy_over(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("remove a data directory");
    }
    let mut copy = command("cp");
    copy.arg("-a").arg(from).arg(to);
    process::run(copy, COMMAND_DEADLINE).expect_success();
}

/// A server whose storage was put back to an earlier state, while the repository knows the later one.
fn rolled_back(
    major: u32,
    rpo: &str,
    last_run: impl FnOnce(&Server, &Site, Running),
) -> (Server, Site) {
    let mut server = server(major).start();
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    let run = site.archive(&server);
    write_wal(&server, 2);
    terminate(run);
    server.stop(Stop::Fast, SHUTDOWN_DEADLINE);
    let (data, kept) = (
        server.data_directory().to_owned(),
        server.scratch().join("kept"),
    );
    copy_over(&data, &kept);
    server.start();
    let run = site.archive(&server);
    write_wal(&server, 3);
    last_run(&server, &site, run);
    server.stop(Stop::Fast, SHUTDOWN_DEADLINE);
    copy_over(&kept, &data);
    server.start();
    (server, site)
}

#[track_caller]
fn refuses_the_rolled_back(site: &Site, said: &str) {
    let before = site.objects();
    let output = site.walden.start(["run"]).wait(DEADLINE).expect_code(5);
    assert!(output.stderr.contains(said), "{said}\n{output}");
    let after = site.objects();
    for (name, object) in &before {
        assert!(after.get(name) == Some(object), "{name} was touched");
    }
    let new: Vec<&String> = after
        .keys()
        .filter(|name| !before.contains_key(*name))
        .collect();
    assert!(
        new.is_empty(),
        "stored from another past: {new:?}\n{output}"
    );
}

fn up_to_the_tail(server: &Server, _: &Site, run: Running) {
    wait_until_flushed(server);
    terminate(run);
}

/// Records of other lengths than those of [`write_wal`].
fn write_other_wal(server: &Server, mib: u32) {
    server.psql(&format!(
        "select count(pg_logical_emit_message(true, 'other', repeat(md5(g::text), 17))) from generate_series(1, {}) g",
        mib * 2048
    ));
}

#[test]
fn a_server_put_back_in_time_is_refused() {
    for major in [15, 18] {
        let (_server, site) = rolled_back(major, "200ms", up_to_the_tail);
        refuses_the_rolled_back(&site, "the server was rolled back");
    }
}

#[test]
fn a_server_put_back_in_time_is_refused_when_it_has_written_more_since() {
    let (server, site) = rolled_back(18, "200ms", up_to_the_tail);
    write_other_wal(&server, 6);
    refuses_the_rolled_back(&site, "the server's WAL has changed");
}

#[test]
fn a_server_put_back_in_time_is_refused_where_a_segment_ended() {
    let (server, site) = rolled_back(18, "600s", |server, site, run| {
        let end = site.size.start(site.size.segment(written_by(server)));
        wait_until("whole segments are stored", DEADLINE, || {
            (site.covered_to(&site.catalog(), FIRST)? >= end).then_some(())
        });
        run.kill();
        let covered = site.covered_to(&site.catalog(), FIRST).expect("stored");
        assert_eq!(
            site.size.offset(covered),
            0,
            "no chunk of the open segment is stored"
        );
    });
    write_other_wal(&server, 6);
    refuses_the_rolled_back(&site, "the server's WAL has changed");
}

/// Recovers a copy of the server, by PostgreSQL alone, from what the repository holds of timeline 1.
fn recovered(major: u32, site: &Site, base: &Path) -> Server {
    let wal = base.with_extension("wal");
    site.export(FIRST, &wal);
    let mut settings = fs::read_to_string(base.join("postgresql.conf")).expect("read settings");
    settings += &format!("\nrestore_command = 'cp {}/%f %p'\n", wal.display());
    fs::write(base.join("postgresql.conf"), settings).expect("write settings");
    fs::write(base.join("recovery.signal"), "").expect("ask for recovery");
    let mut server = Server::over_directory(major, base);
    server.start();
    wait_until("recovery ends", DEADLINE, || {
        (server.psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    server
}

/// Stops a run at a moment at which it is storing something, and kills it. Says what it was storing.
fn kill_in_flight(
    server: &Server,
    site: &Site,
    run: Running,
    before: &BTreeSet<PathBuf>,
    random: &mut Random,
) -> &'static str {
    for attempt in 0..400 {
        run.signal(Signal::STOP);
        let unfinished = site.unfinished();
        let name = |path: &PathBuf| path.display().to_string();
        let mut new = unfinished.difference(before).map(name);
        let kind = match new.next() {
            Some(path) if path.contains("/tail/") => Some("chunk"),
            Some(_) => Some("segment"),
            // Everything it has received for long may be stored: then it is the bytes since then that are in flight.
            None if attempt >= 50 => positions(server)
                .filter(|[sent, _, flush]| sent > flush)
                .map(|_| "bytes"),
            None => None,
        };
        if let Some(kind) = kind {
            run.kill();
            return kind;
        }
        run.signal(Signal::CONT);
        std::thread::sleep(Duration::from_micros(random.below(8000)));
    }
    panic!("it never had anything in flight");
}

/// Ends a thread beside the test, also when the test fails.
struct StopsOnDrop<'a>(&'a AtomicBool);

impl Drop for StopsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn killed_at_twenty_moments(major: u32, rpo: &str) {
    let seed = seed();
    process::note(&format!("WALDEN_TEST_SEED={seed}"));
    let mut random = Random::new(seed);
    let server = server(major).start();
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    let mut first = Some(site.archive(&server));
    let base = server.scratch().join("base");
    server.base_backup(&base, &["-X", "none"]);
    let mut oracle = Oracle::prepare(&server, seed);
    let clients = oracle.start(&server, 2);
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    let stop = AtomicBool::new(false);
    let reported = std::thread::scope(|scope| {
        let _stops = StopsOnDrop(&stop);
        scope.spawn(|| {
            // Records of up to 400 KiB: many lie across segments and chunks.
            let mut random = Random::new(seed + 1);
            while !stop.load(Ordering::Relaxed) {
                let length = 32 * random.below(12_000);
                server.psql(&format!("select pg_logical_emit_message(true, 'long', repeat(md5('{length}'), {} / 32))", length + 32));
            }
        });
        for _ in 0..20 {
            // What those left that were killed before.
            let left = site.unfinished();
            let run = first.take().unwrap_or_else(|| site.archive(&server));
            std::thread::sleep(Duration::from_millis(random.below(250)));
            let kind = kill_in_flight(&server, &site, run, &left, &mut random);
            *kinds.entry(kind).or_default() += 1;
            let reported = restart_lsn(&server);
            let covered = site.covered_to(&site.catalog(), FIRST);
            assert!(
                covered >= Some(reported),
                "{covered:?} {reported} seed {seed}"
            );
        }
        restart_lsn(&server)
    });
    oracle.stop(clients);
    process::note(&format!(
        "PostgreSQL {major}, killed while in flight were: {kinds:?}"
    ));
    let bytes = kinds.get("bytes").copied().unwrap_or(0);
    assert!(bytes <= 10, "{kinds:?}: too few objects were cut short");
    let compared = site.compare(FIRST, &server.wal_directory());
    assert!(
        compared.to >= reported,
        "{compared:?} {reported} seed {seed}"
    );

    // What the last one left is what there is: no commit that the slot let go of is missing.
    let dump = oracle.dump(&server);
    oracle.check(&dump, Some(&server));
    let end = compared.to.as_u64();
    let cut = dump.ends.iter().find(|transaction| transaction.end.0 > end);
    let target = cut.map_or(Target::Latest, |transaction| Target::Lsn {
        lsn: transaction.start,
        inclusive: false,
    });
    let expected = oracle.rows_at(&dump, &target);
    assert!(expected.len() > 100, "the workload was too short");
    let recovered = recovered(major, &site, &base);
    assert_same_rows(&format!("seed {seed}"), &expected, &rows(&recovered));

    // And it goes on.
    let run = site.archive(&server);
    let end = wait_until_flushed(&server);
    terminate(run);
    assert!(site.compare(FIRST, &server.wal_directory()).to >= end);
}

#[test]
fn a_run_on_15_may_be_killed_at_any_moment() {
    killed_at_twenty_moments(15, "100ms");
}

#[test]
fn a_run_on_18_may_be_killed_at_any_moment() {
    killed_at_twenty_moments(18, "sync");
}

/// The primary is lost while it writes, and the standby that we stream from takes over; `walden run` is there when that
/// happens, or comes back later.
fn follows_a_promotion(major: u32, present: bool) {
    let second = TimelineId::new(2).expect("a timeline");
    let mut primary = server(major).start();
    let standby = primary.standby();
    let site = Site::new(&standby, Plan::default());
    let mut run = Some(site.archive(&standby));
    let mut oracle = Oracle::prepare(&primary, seed());
    let clients = oracle.start(&primary, 2);
    write_wal(&primary, 3);
    clients.wait_for_more(100, DEADLINE);
    if !present {
        terminate(run.take().expect("it runs"));
    }
    std::thread::scope(|scope| {
        let write = "select pg_logical_emit_message(false, 'long', repeat('x', 600000)) from generate_series(1, 1000)";
        scope.spawn(|| primary.try_psql(write, DEADLINE));
        clients.wait_for_more(20, DEADLINE);
        process::send(primary.postmaster(), Signal::QUIT);
    });
    primary.crash();
    oracle.stop(clients);
    standby.promote();
    write_wal(&standby, 2);
    let run = run.unwrap_or_else(|| site.archive(&standby));
    let end = wait_until_flushed(&standby);
    terminate(run);

    let history = fs::read(standby.wal_directory().join("00000002.history")).expect("a history");
    let switch = TimelineHistory::parse(second, &history).expect("a history");
    let switch = switch.switch_point(FIRST).expect("it left timeline 1");
    let old = site.compare(FIRST, &standby.wal_directory());
    let new = site.compare(second, &standby.wal_directory());
    let first = site.size.start(site.size.segment(switch));
    assert_eq!(
        new.from, first,
        "timeline 2 begins in the segment of the switch"
    );
    assert!(new.to >= end, "{new:?} {end}");
    assert!(old.to >= first, "{old:?} reaches the switch at {switch}");
    let number = site.size.segment(switch);
    let name = SegmentName::new(FIRST, number, site.size);
    if site.catalog().timelines[&FIRST]
        .segments
        .contains_key(&name)
    {
        // The standby had passed on so much of a long record, lost with the primary, that the segment was full.
        assert!(old.to >= site.size.end(number), "{old:?}");
    } else {
        let (stored, partial) = site.partial(FIRST);
        assert_eq!(stored, name);
        let file = fs::read(standby.wal_directory().join(name.to_string())).expect("a segment");
        assert!(
            partial == file[..site.size.offset(switch) as usize],
            "all of timeline 1 and no more"
        );
    }

    let objects = site.objects();
    let (_, told) = objects
        .iter()
        .find(|(name, _)| name.ends_with("00000002.history"))
        .map(|(_, object)| object)
        .expect("the history is stored");
    let of_second =
        |name: &str| name.contains("/wal/00000002/") || name.contains("/tail/00000002/");
    let mut of_second = objects
        .iter()
        .filter(|(name, _)| of_second(name))
        .peekable();
    assert!(of_second.peek().is_some());
    for (name, (_, stored)) in of_second {
        assert!(told <= stored, "{name} was stored before its history");
    }
    assert!(site.catalog().gaps.is_empty());
}

#[test]
fn follows_the_promotion_of_a_standby_of_15() {
    follows_a_promotion(15, true);
}

#[test]
fn follows_the_promotion_of_a_standby_of_18() {
    follows_a_promotion(18, true);
}

#[test]
fn follows_a_promotion_that_it_missed() {
    follows_a_promotion(18, false);
}

#[test]
fn a_gap_is_recorded_and_said_once_and_streaming_goes_on() {
    let settings = [
        "wal_keep_size = 0",
        "min_wal_size = 2MB",
        "max_wal_size = 4MB",
    ];
    let server = settings
        .into_iter()
        .fold(server(18), Builder::setting)
        .start();
    let rpo = "100ms";
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    let run = site.archive(&server);
    write_wal(&server, 2);
    wait_until_flushed(&server);
    terminate(run);
    let stored = site.covered_to(&site.catalog(), FIRST).expect("stored");
    // The server removes its files; what is stored is compared with copies.
    let kept = server.scratch().join("kept");
    let keep = || {
        let mut copy = command("cp");
        copy.arg("-a")
            .arg(server.wal_directory())
            .arg("-T")
            .arg(&kept);
        process::run(copy, COMMAND_DEADLINE).expect_success();
    };
    keep();
    server.psql("select pg_drop_replication_slot('walden')");
    let lost = SegmentName::new(FIRST, site.size.segment(stored).next(), site.size);
    wait_until("the server has removed WAL", DEADLINE, || {
        write_wal(&server, 4);
        server.psql("checkpoint");
        (!server.wal_directory().join(lost.to_string()).exists()).then_some(())
    });
    // What comes from now on is to be compared.
    server.psql("alter system set wal_keep_size = '1GB'; select pg_reload_conf()");
    write_wal(&server, 2);

    let run = site.archive(&server);
    wait_until("it goes on", DEADLINE, || {
        flushed(&server).filter(|flush| *flush > stored)
    });
    write_wal(&server, 2);
    let end = wait_until_flushed(&server);
    keep();
    let log = terminate(run);
    assert_eq!(log.matches(" GAP: ").count(), 1, "{log}");
    assert!(log.contains("take a new base backup"), "{log}");
    let catalog = site.catalog();
    let gaps: Vec<_> = catalog.gaps.iter().copied().collect();
    let [gap] = gaps.as_slice() else {
        panic!("one gap, not {gaps:?}\n{log}");
    };
    assert_eq!(gap.from, stored, "what is stored is not missing");
    assert!(gap.to > stored && site.size.offset(gap.to) == 0, "{gap:?}");
    let holes = catalog.holes(FIRST, site.size);
    let hole = holes.first().copied();
    assert_eq!(hole.map(|hole| hole.to), Some(gap.to), "{holes:?}");
    site.compare_with_hole(FIRST, &kept, hole);
    assert!(catalog.wal_end(FIRST, site.size) >= Some(end));

    // Nothing new about it after a restart.
    let run = site.archive(&server);
    write_wal(&server, 2);
    wait_until_flushed(&server);
    let log = terminate(run);
    assert!(!log.contains("GAP"), "{log}");
    assert_eq!(site.catalog().gaps.len(), 1);
}
