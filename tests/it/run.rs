//! `walden run` against real servers: tests that try to break what it promises. What it has reported flushed is in the
//! repository, byte for byte, whenever anybody looks; a server that shuts down never hangs on it; it may be killed at any
//! moment; timelines are followed; a server that is not the one it was is refused; a gap is never silent.

mod killed;
mod refused;
mod shutdown;
pub(crate) mod stored;
mod timelines;

use crate::site::{Keys, Plan, Site};
use crate::support::oracle::Oracle;
use crate::support::postgres::{Builder, Server};
use crate::support::process::Running;
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use wal_format::{Lsn, TimelineId};

const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const FIRST: TimelineId = TimelineId::FIRST;
/// A server that is asked to stop must not wait longer for us.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);
/// What `walden run` has after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn server(major: u32) -> Builder {
    Server::builder(major).wal_segment_mib(1)
}

pub(crate) fn seed() -> u64 {
    let said = std::env::var("WALDEN_TEST_SEED").ok();
    said.map_or_else(
        || {
            u64::from(std::process::id()) << 20
                ^ jiff::Timestamp::now().as_microsecond().unsigned_abs()
        },
        |said| said.parse().expect("WALDEN_TEST_SEED is a number"),
    )
}

pub(crate) fn lsn(text: &str) -> Lsn {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{text:?} is no LSN"))
}

/// About this many MiB of WAL that mean nothing.
pub(crate) fn write_wal(server: &Server, mib: u32) {
    server.psql(&format!(
        "select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, {}) g;\n\
         create table if not exists flushed (at timestamptz); insert into flushed values (now())",
        mib * 1024
    ));
}

/// What the server knows of us: sent, written, flushed.
pub(crate) fn positions(server: &Server) -> Option<[Lsn; 3]> {
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

pub(crate) fn flushed(server: &Server) -> Option<Lsn> {
    positions(server).map(|[_, _, flush]| flush)
}

fn written_by(server: &Server) -> Lsn {
    lsn(&server.psql("select pg_current_wal_flush_lsn()"))
}

/// Waits until everything the server has written is reported flushed, and says where that is.
#[track_caller]
pub(crate) fn wait_until_flushed(server: &Server) -> Lsn {
    lsn(&wait_until_stored(server).to_string())
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

pub(crate) fn restart_lsn(server: &Server) -> Lsn {
    lsn(&server.psql("select restart_lsn from pg_replication_slots where slot_name = 'walden'"))
}

#[track_caller]
pub(crate) fn terminate(run: Running) -> String {
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
    let keys = Keys::Identity;
    let plan = Plan {
        keys,
        ..Plan::default()
    };
    everything_received_is_stored(server(18), plan);
}

#[test]
fn everything_received_in_segments_of_16_mib_is_stored() {
    everything_received_is_stored(server(18).wal_segment_mib(16), Plan::default());
}
