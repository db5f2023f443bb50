//! Slots and streaming: what is received is what lies in `pg_wal`, byte for byte; shutdown, errors, timelines.

use crate::server::{Server, command, programs};
use archiver::error::{Error, ErrorClass, ServerErrorKind};
use archiver::replication::{
    Connection, ConnectionInfo, Mode, SlotCreation, Started, StatusUpdate, StreamEvent, WalStatus,
};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use wal_format::{Lsn, SegmentSize, TimelineHistory, TimelineId, Timestamp};

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn info(server: &Server, user: &str) -> ConnectionInfo {
    let text = server.socket(&format!("user={user} dbname=postgres"));
    ConnectionInfo::parse(&text, &|_| None).unwrap()
}

pub(crate) async fn connect(server: &Server, mode: Mode) -> Connection {
    Connection::connect(&info(server, "walden"), mode)
        .await
        .unwrap()
}

/// A running server with a bare replication role.
pub(crate) fn start(bin: &Path) -> Server {
    let mut server = Server::init(bin);
    server.start();
    server.psql("CREATE ROLE walden LOGIN REPLICATION");
    server
}

fn status(flush: Lsn) -> StatusUpdate {
    StatusUpdate {
        write: flush,
        flush,
        apply: Lsn::INVALID,
        time: Timestamp(0),
        reply_requested: false,
    }
}

/// WAL received without holes.
struct Received {
    start: Lsn,
    bytes: Vec<u8>,
    messages: usize,
}

impl Received {
    fn new(start: Lsn) -> Received {
        Received {
            start,
            bytes: Vec::new(),
            messages: 0,
        }
    }

    fn end(&self) -> Lsn {
        self.start.checked_add(self.bytes.len() as u64).unwrap()
    }

    fn add(&mut self, event: &StreamEvent) {
        if let StreamEvent::Wal(wal) = event {
            assert_eq!(wal.start, self.end(), "a hole");
            assert!(wal.server_end >= wal.end());
            self.bytes.extend_from_slice(&wal.data);
            self.messages += 1;
        }
    }

    /// Compares with the server's own files.
    fn check(&self, server: &Server, timeline: TimelineId) {
        let size = SegmentSize::MIN;
        let mut position = self.start;
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let segment = size.segment(position).as_u64();
            let name = format!(
                "{:08X}{:08X}{:08X}",
                timeline.get(),
                segment >> 12,
                segment & 0xfff
            );
            let file = fs::read(server.data().join("pg_wal").join(&name)).unwrap();
            let offset = size.offset(position) as usize;
            let length = rest.len().min(file.len() - offset);
            assert!(
                file[offset..offset + length] == rest[..length],
                "{name} differs"
            );
            rest = &rest[length..];
            position = position.checked_add(length as u64).unwrap();
        }
    }
}

/// Receives until everything before `end` is there, reporting it, with a timer that keeps cancelling `next_message`.
async fn receive_until(connection: &mut Connection, received: &mut Received, end: Lsn) {
    let mut timer = tokio::time::interval(Duration::from_micros(300));
    let started = Instant::now();
    while received.end() < end {
        assert!(started.elapsed() < LIMIT, "at {} of {end}", received.end());
        tokio::select! {
            event = connection.next_message() => received.add(&event.unwrap()),
            _ = timer.tick() => {
                let status = status(received.end());
                // Half of them are dropped before they could be sent.
                let _cut = tokio::time::timeout(Duration::ZERO, connection.send_status(&status)).await;
            }
        }
    }
    connection
        .send_status(&status(received.end()))
        .await
        .unwrap();
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

async fn stream_and_shut_down(major: u32) {
    let Some(bin) = programs(major) else { return };
    let mut server = start(&bin);
    let mut connection = connect(&server, Mode::PhysicalReplication).await;
    let mut sql = connect(&server, Mode::Sql).await;
    connection.require_supported().unwrap();
    assert_eq!(
        connection.wal_segment_size().await.unwrap(),
        SegmentSize::MIN
    );
    assert_eq!(connection.show("wal_level").await.unwrap(), "replica");
    let error = connection.show("data_directory").await.unwrap_err();
    assert_eq!(error.server_kind(), Some(ServerErrorKind::PermissionDenied));

    // Slots.
    assert_eq!(connection.read_slot("walden").await.unwrap(), None);
    assert_eq!(sql.slot_status("walden").await.unwrap(), None);
    let create = connection.create_physical_slot("walden", true).await;
    assert_eq!(create.unwrap(), SlotCreation::Created);
    let create = connection.create_physical_slot("walden", true).await;
    assert_eq!(create.unwrap(), SlotCreation::AlreadyExists);
    let position = connection.read_slot("walden").await.unwrap().unwrap();
    assert_eq!(position.restart_timeline, TimelineId::new(1));
    let start = SegmentSize::MIN.start(SegmentSize::MIN.segment(position.restart_lsn.unwrap()));
    let slot = sql.slot_status("walden").await.unwrap().unwrap();
    assert!(slot.is_physical && !slot.is_active && slot.active_pid.is_none());
    assert_eq!(slot.restart_lsn, position.restart_lsn);
    assert_eq!(slot.wal_status, Some(WalStatus::Reserved));
    assert_eq!(slot.invalidation_reason, None);
    connection
        .create_physical_slot("empty", false)
        .await
        .unwrap();
    let empty = connection.read_slot("empty").await.unwrap().unwrap();
    assert_eq!((empty.restart_lsn, empty.restart_timeline), (None, None));
    connection.drop_slot("empty").await.unwrap();
    let error = connection.drop_slot("empty").await.unwrap_err();
    assert_eq!(error.server_kind(), Some(ServerErrorKind::SlotMissing));

    // A second user of the slot, a missing slot, starts that cannot be: each leaves the connection usable.
    let mut other = connect(&server, Mode::PhysicalReplication).await;
    let first = TimelineId::FIRST;
    let started = connection
        .start_replication(Some("walden"), start, first)
        .await;
    assert_eq!(started.unwrap(), Started::Streaming);
    let error = connection.show("wal_level").await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }));
    let error = other
        .start_replication(Some("walden"), start, first)
        .await
        .unwrap_err();
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::SlotInUse),
        "{error:?}"
    );
    let error = other
        .start_replication(Some("nowhere"), start, first)
        .await
        .unwrap_err();
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::SlotMissing),
        "{error:?}"
    );
    let error = other
        .start_replication(None, start, TimelineId::new(9).unwrap())
        .await;
    assert_eq!(
        error.unwrap_err().server_kind(),
        Some(ServerErrorKind::NotInHistory)
    );
    let error = other
        .timeline_history(TimelineId::new(9).unwrap())
        .await
        .unwrap_err();
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::FileMissing),
        "{error:?}"
    );
    let error = match other.start_replication(None, lsn("FF/0"), first).await {
        Ok(_) => other.next_message().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::AheadOfFlush),
        "{error:?}"
    );
    assert_eq!(error.class(), ErrorClass::Conflict);
    other.identify_system().await.unwrap();

    // A workload runs while WAL streams.
    let mut pgbench = server.client("pgbench");
    pgbench
        .args(["-i", "-q", "-s", "2"])
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    let mut child = pgbench.spawn().unwrap();
    let mut received = Received::new(start);
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < LIMIT);
        let end = received.end().checked_add(1).unwrap();
        let more = receive_until(&mut connection, &mut received, end);
        tokio::time::timeout(Duration::from_millis(20), more)
            .await
            .ok();
    }
    let mut pgbench = server.client("pgbench");
    pgbench
        .args(["-n", "-c", "4", "-t", "200"])
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    let mut child = pgbench.spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        let end = received.end().checked_add(1).unwrap();
        let more = receive_until(&mut connection, &mut received, end);
        tokio::time::timeout(Duration::from_millis(20), more)
            .await
            .ok();
    }
    let end = lsn(&server.psql("SELECT pg_current_wal_flush_lsn()"));
    receive_until(&mut connection, &mut received, end).await;
    assert!(
        received.bytes.len() > 20 << 20,
        "{} bytes",
        received.bytes.len()
    );
    assert!(received.messages > 200, "{} messages", received.messages);
    received.check(&server, first);

    // The slot follows what was reported.
    let started = Instant::now();
    loop {
        let slot = sql.slot_status("walden").await.unwrap().unwrap();
        if slot.restart_lsn == Some(received.end()) {
            assert!(slot.is_active && slot.active_pid.is_some());
            break;
        }
        assert!(started.elapsed() < LIMIT, "{slot:?} at {}", received.end());
    }

    // A fast shutdown ends when everything is reported flushed, and not before.
    server.signal("INT");
    let held = async {
        loop {
            received.add(&connection.next_message().await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_millis(700), held)
        .await
        .unwrap_err();
    assert!(
        !server.wait_stopped(Duration::ZERO),
        "the server did not wait for us"
    );
    let started = Instant::now();
    connection
        .send_status(&status(received.end()))
        .await
        .unwrap();
    loop {
        assert!(started.elapsed() < LIMIT);
        match connection.next_message().await.unwrap() {
            StreamEvent::ServerShutdown => break,
            event => {
                received.add(&event);
                connection
                    .send_status(&status(received.end()))
                    .await
                    .unwrap();
            }
        }
    }
    assert!(server.wait_stopped(Duration::from_secs(10)));
    received.check(&server, first);
    assert!(connection.next_message().await.is_err());
}

#[tokio::test]
async fn what_is_streamed_is_what_pg_wal_holds_and_shutdown_waits_for_flush_on_15() {
    stream_and_shut_down(15).await;
}

#[tokio::test]
async fn what_is_streamed_is_what_pg_wal_holds_and_shutdown_waits_for_flush_on_18() {
    stream_and_shut_down(18).await;
}

async fn follow_a_promotion(major: u32) {
    let Some(bin) = programs(major) else { return };
    let primary = start(&bin);
    let mut standby = Server::empty(&bin);
    let files = crate::backup::fetch(&primary, standby.folder.path()).await;
    files.extract(&standby.data());
    standby.configure(&format!(
        "primary_conninfo = '{}'",
        primary.socket("user=walden")
    ));
    fs::write(standby.data().join("standby.signal"), "").unwrap();
    standby.start();
    primary.psql("CREATE TABLE t AS SELECT generate_series(1, 30000) AS i");
    let end = lsn(&primary.psql("SELECT pg_current_wal_flush_lsn()"));

    let mut connection = connect(&standby, Mode::PhysicalReplication).await;
    assert_eq!(connection.parameter("in_hot_standby"), Some("on"));
    let first = TimelineId::FIRST;
    let start = SegmentSize::MIN.start(SegmentSize::MIN.segment(files.start_lsn));
    // The standby has no WAL from before its backup.
    let removed = match connection
        .start_replication(None, lsn("0/100000"), first)
        .await
    {
        Ok(_) => connection.next_message().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(
        removed.server_kind(),
        Some(ServerErrorKind::WalRemoved),
        "{removed:?}"
    );
    assert_eq!(removed.class(), ErrorClass::NotFound);

    let started = connection
        .start_replication(None, start, first)
        .await
        .unwrap();
    assert_eq!(started, Started::Streaming);
    let mut received = Received::new(start);
    receive_until(&mut connection, &mut received, end).await;
    standby.psql("SELECT pg_promote(wait => false)");
    let started = Instant::now();
    let (next_timeline, switch_point) = loop {
        assert!(started.elapsed() < LIMIT);
        match connection.next_message().await.unwrap() {
            StreamEvent::TimelineEnded {
                next_timeline,
                switch_point,
            } => break (next_timeline, switch_point),
            event => received.add(&event),
        }
    };
    assert_eq!(next_timeline.get(), 2);
    assert!(switch_point >= end && switch_point <= received.end());

    // The connection goes on with the next timeline.
    let file = connection.timeline_history(next_timeline).await.unwrap();
    assert_eq!(file.name, "00000002.history");
    let on_disk = fs::read(standby.data().join("pg_wal").join(&file.name)).unwrap();
    assert_eq!(file.content, on_disk);
    let history = TimelineHistory::parse(next_timeline, &file.content).unwrap();
    assert_eq!(history.switch_point(first), Some(switch_point));
    let started = connection
        .start_replication(None, switch_point, first)
        .await
        .unwrap();
    assert_eq!(
        started,
        Started::TimelineEnded {
            next_timeline,
            switch_point
        }
    );
    let beyond = switch_point.checked_add(1 << 20).unwrap();
    let error = connection
        .start_replication(None, beyond, first)
        .await
        .unwrap_err();
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::NotInHistory),
        "{error:?}"
    );
    assert!(error.server().unwrap().detail.is_some());

    standby.psql("CREATE TABLE u AS SELECT generate_series(1, 30000) AS i");
    let end = lsn(&standby.psql("SELECT pg_current_wal_flush_lsn()"));
    let restart = SegmentSize::MIN.start(SegmentSize::MIN.segment(switch_point));
    let started = connection
        .start_replication(None, restart, next_timeline)
        .await
        .unwrap();
    assert_eq!(started, Started::Streaming);
    let mut received = Received::new(restart);
    receive_until(&mut connection, &mut received, end).await;
    received.check(&standby, next_timeline);

    // An administrator ends us.
    standby.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    let error = loop {
        if let Err(error) = connection.next_message().await {
            break error;
        }
    };
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::ShuttingDown),
        "{error:?}"
    );
    assert_eq!(error.class(), ErrorClass::Retry);
    // And a server that dies says nothing.
    let mut connection = connect(&standby, Mode::PhysicalReplication).await;
    connection
        .start_replication(None, end, next_timeline)
        .await
        .unwrap();
    standby.signal("KILL");
    let error = loop {
        if let Err(error) = connection.next_message().await {
            break error;
        }
    };
    assert_eq!(error.class(), ErrorClass::Retry, "{error:?}");
}

#[tokio::test]
async fn a_promoted_standby_ends_the_timeline_and_the_next_one_goes_on_on_15() {
    follow_a_promotion(15).await;
}

#[tokio::test]
async fn a_promoted_standby_ends_the_timeline_and_the_next_one_goes_on_on_18() {
    follow_a_promotion(18).await;
}

/// A server that goes silent (stopped, unplugged) is asked for a sign of life and then given up.
#[tokio::test]
async fn a_silent_server_is_pinged_and_then_given_up() {
    let Some(bin) = programs(18) else { return };
    let server = start(&bin);
    let mut connection = connect(&server, Mode::PhysicalReplication).await;
    connection.deadlines_mut().silence = Duration::from_millis(800);
    let identity = connection.identify_system().await.unwrap();
    let started = connection
        .start_replication(None, identity.flush_lsn, identity.timeline)
        .await;
    assert_eq!(started.unwrap(), Started::Streaming);
    // An idle server answers each ping, so nothing is given up for several times the silence.
    let idle = async {
        let mut keepalives = 0;
        while keepalives < 5 {
            if let StreamEvent::Keepalive(_) = connection.next_message().await.unwrap() {
                keepalives += 1;
            }
        }
    };
    tokio::time::timeout(LIMIT, idle).await.unwrap();
    let pid = server.psql("SELECT pid FROM pg_stat_replication");
    let mut stop = command(Path::new("/bin/kill"));
    assert!(stop.args(["-STOP", &pid]).status().unwrap().success());
    let started = Instant::now();
    let error = loop {
        if let Err(error) = connection.next_message().await {
            break error;
        }
    };
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let mut resume = command(Path::new("/bin/kill"));
    resume.args(["-CONT", &pid]).status().unwrap();
}

/// A slot that fell too far behind is seen as lost before it is used. 15 to 17 would stream from it as if nothing had happened.
async fn lost_slot(major: u32) {
    let Some(bin) = programs(major) else { return };
    let mut server = Server::init(&bin);
    server.configure("wal_keep_size = 0\nmax_slot_wal_keep_size = '2MB'\nmax_wal_size = '2MB'\nmin_wal_size = '2MB'\n");
    server.start();
    server.psql("CREATE ROLE walden LOGIN REPLICATION");
    let mut connection = connect(&server, Mode::PhysicalReplication).await;
    let mut sql = connect(&server, Mode::Sql).await;
    connection
        .create_physical_slot("walden", true)
        .await
        .unwrap();
    let before = connection.read_slot("walden").await.unwrap().unwrap();
    let slot = sql.slot_status("walden").await.unwrap().unwrap();
    assert!(slot.safe_wal_size.unwrap() > 0, "{slot:?}");
    server.psql("CREATE TABLE t AS SELECT generate_series(1, 200000) AS i");
    server.psql("CHECKPOINT");
    let slot = sql.slot_status("walden").await.unwrap().unwrap();
    assert_eq!(slot.wal_status, Some(WalStatus::Lost), "{slot:?}");
    assert_eq!(slot.restart_lsn, None);
    let reason = (major >= 17).then_some("wal_removed");
    assert_eq!(slot.invalidation_reason.as_deref(), reason);
    let after = connection.read_slot("walden").await.unwrap().unwrap();
    assert_eq!(after.restart_lsn, None);

    let start = SegmentSize::MIN.start(SegmentSize::MIN.segment(before.restart_lsn.unwrap()));
    let started = connection
        .start_replication(Some("walden"), start, TimelineId::FIRST)
        .await;
    let error = match started {
        Ok(_) => connection.next_message().await.unwrap_err(),
        Err(error) => error,
    };
    let kind = match major {
        18.. => ServerErrorKind::NotInPrerequisiteState,
        _ => ServerErrorKind::WalRemoved,
    };
    assert_eq!(error.server_kind(), Some(kind), "{error:?}");
}

#[tokio::test]
async fn a_lost_slot_is_seen_on_15() {
    lost_slot(15).await;
}

#[tokio::test]
async fn a_lost_slot_is_seen_on_18() {
    lost_slot(18).await;
}
