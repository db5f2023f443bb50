//! The server's disk: watches how much WAL our slot keeps there, warns, and above a limit gives the slot up, if the user has said so.
//!
//! A task with a connection of its own, so that it sees what a receiver that waits for a store that is down cannot see. What the slot kept is
//! recorded as a gap before another slot is made: so the store has to be there again first, else the new slot would fill the disk in turn. Should we
//! be killed in between, the next session begins at the repository's end and finds what is missing, as after any other loss of the slot; and what of
//! it the server still has closes the gap.
//!
//! It also watches, whatever is configured, for a server that gives the slot up by itself while our connection stays unread: its checkpointer ends our
//! WAL sender and waits for it, and that one waits to tell us, into a full socket (measured on 18): no checkpoint would ever end. Then the connection
//! is closed.
//!
//! Of several listed servers the one that is received from is looked at; and on standbys the slot that `standby_slots.rs` keeps there, which nobody
//! moves on while nothing can be stored. Owns the looking, the judgement and the drop. Does not own recording (`gap.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use repository::catalog::GapRange;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use wal_format::{Lsn, SegmentSize};

use super::slot::{beside, for_questions};
use super::{Receiver, ReceiverConfig, error_text};
use crate::error::ServerErrorKind;
use crate::replication::{
    Connection, ConnectionInfo, Deadlines, Host, Mode, TargetSession, WalStatus,
};
use crate::{Error, Result};

/// How often the server is asked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the same is said again.
const SAY_EVERY: Duration = Duration::from_secs(600);
/// How long the slot may be in use after our own connection is gone: a server notices that when it next sends.
const RELEASE_PATIENCE: Duration = Duration::from_secs(20);
/// When to end the server's side of it.
const TERMINATE_AFTER: Duration = Duration::from_secs(2);
/// Pause between two attempts to drop the slot.
const DROP_PAUSE: Duration = Duration::from_millis(200);
/// A watch that waits a minute for each answer watches nothing.
const DEADLINES: Deadlines = Deadlines {
    reply: Duration::from_secs(15),
    ..Deadlines::DEFAULT
};
/// The server itself gives the slot up soon: less than this share of what it may keep is left.
const NEAR_SHARE: u64 = 5;

/// How much WAL the slot may keep on the server, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGuard {
    /// From here on it is said.
    pub warn: u64,
    /// From here on the slot is dropped, and what it kept is lost if the server removes it; `None`: never.
    pub drop_slot: Option<u64>,
}

/// What the slot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptWal {
    /// Bytes from the oldest WAL it keeps to the server's end.
    pub bytes: u64,
    /// Bytes that may still be written before the server gives it up by itself (`max_slot_wal_keep_size`); `None`: it does not, or that could not
    /// be asked.
    pub safe: Option<u64>,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Danger {
    /// Nothing.
    None,
    /// More than `warn`.
    Much,
    /// The server is about to give the slot up by itself.
    NearServersLimit,
    /// The slot is to be dropped.
    TooMuch,
}

impl DiskGuard {
    /// What follows from what the slot keeps.
    #[must_use]
    pub fn judge(&self, kept: KeptWal) -> Danger {
        let near = kept
            .safe
            .is_some_and(|safe| safe < kept.bytes.saturating_add(safe) / NEAR_SHARE);
        if self.drop_slot.is_some_and(|limit| kept.bytes >= limit) {
            Danger::TooMuch
        } else if near {
            Danger::NearServersLimit
        } else if kept.bytes >= self.warn {
            Danger::Much
        } else {
            Danger::None
        }
    }
}

/// A slot that was dropped because it kept too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// What it kept, in bytes.
    pub(super) kept_bytes: u64,
    /// What it kept, in whole segments at its end; `None`: not even one, or not all on one timeline.
    pub(super) gap: Option<GapRange>,
}

/// What the watch asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// The slot keeps too much and is to be dropped.
    TooMuch,
    /// The server waits for our connection, which is not read, to end.
    InTheWay,
}

/// The watching tasks, one for each server; end with this.
pub(super) struct Watch {
    limits: Option<DiskGuard>,
    alarms: Arc<Alarms>,
    tasks: Vec<JoinHandle<()>>,
}

/// What a watching task is told.
#[derive(Clone)]
struct Told {
    limits: Option<DiskGuard>,
    alarms: Arc<Alarms>,
    /// Whether our connection stays unread.
    is_paused: Arc<AtomicBool>,
    /// The server that is received from.
    in_use: watch::Receiver<Option<Host>>,
    /// Whether standbys have slots of ours.
    standby_slots: bool,
}

#[derive(Default)]
struct Alarms {
    too_much: Notify,
    in_the_way: Notify,
}

impl Watch {
    /// Starts to watch. `is_paused`: whether our connection stays unread. `in_use`: the server that is received from.
    pub(super) fn start(
        config: &ReceiverConfig,
        is_paused: Arc<AtomicBool>,
        in_use: watch::Receiver<Option<Host>>,
    ) -> Self {
        let told = Told {
            limits: config.disk_guard,
            alarms: Arc::default(),
            is_paused,
            in_use,
            standby_slots: config.standby_slots,
        };
        let servers = config.connection.hosts.iter().map(|host| {
            let eye = Eye {
                info: beside(&only(&config.connection, host), "guard"),
                slot: config.slot.clone(),
                connection: None,
                may_replicate: config.disk_guard.is_some(),
            };
            let is_only = config.connection.hosts.len() == 1;
            let host = host.clone();
            tokio::spawn(look_at(eye, (!is_only).then_some(host), told.clone()))
        });
        Self {
            limits: told.limits,
            tasks: servers.collect(),
            alarms: told.alarms,
        }
    }

    /// Resolves when something is to be done. Cancel-safe.
    pub(super) async fn alarm(&self) -> Alarm {
        tokio::select! {
            () = self.alarms.too_much.notified() => Alarm::TooMuch,
            () = self.alarms.in_the_way.notified() => Alarm::InTheWay,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The settings for this one of the listed servers, whatever it is by now.
fn only(info: &ConnectionInfo, host: &Host) -> ConnectionInfo {
    let mut info = info.clone();
    info.hosts = vec![host.clone()];
    info.target_session = TargetSession::Any;
    info
}

/// Looks at one server for ever. `host`: which of several it is.
async fn look_at(mut eye: Eye, host: Option<Host>, told: Told) {
    let (limits, alarms) = (told.limits, &told.alarms);
    let (mut said, mut blind) = (Since::default(), Since::default());
    let mut was_paused = false;
    loop {
        let is_in_use = host.is_none() || *told.in_use.borrow() == host;
        if !is_in_use {
            match limits.filter(|_| told.standby_slots) {
                Some(limits) => eye.guard_standby(limits, &mut said, &mut blind).await,
                None => eye.connection = None,
            }
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        match eye.look().await {
            Ok(seen) => {
                blind = Since::default();
                let is_paused = told.is_paused.load(Ordering::Relaxed);
                // For a moment it may be: the store is slow.
                if seen.is_in_danger && is_paused && was_paused {
                    alarms.in_the_way.notify_one();
                }
                was_paused = is_paused;
                if let Some(limits) = limits {
                    let danger = seen.kept.map_or(Danger::None, |kept| limits.judge(kept));
                    eye.say(danger, seen.kept, limits, &mut said);
                    if danger == Danger::TooMuch {
                        alarms.too_much.notify_one();
                    }
                }
            }
            Err(error) => {
                eye.connection = None;
                if limits.is_some() && blind.is_due() {
                    tracing::warn!(
                        error = error_text(&error),
                        "disk_guard cannot see how much WAL the slot keeps"
                    );
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// When something was said last.
#[derive(Default)]
struct Since(Option<Instant>);

impl Since {
    fn was(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it is to be said (again); then it counts as said.
    fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// A connection to look through: for questions if the role may ask any, else for replication, which tells less.
struct Eye {
    info: ConnectionInfo,
    slot: String,
    connection: Option<Connection>,
    /// Whether a connection for replication is worth its place among the server's WAL senders: it only tells how much is kept.
    may_replicate: bool,
}

/// What is seen of the slot.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// `None`: there is no slot, or it keeps nothing.
    kept: Option<KeptWal>,
    /// The server process that uses it, where that can be asked.
    user: Option<i32>,
    /// The server removes what it keeps at its next checkpoint, or has begun to.
    is_in_danger: bool,
    /// It is a standby's.
    on_standby: bool,
}

impl Eye {
    async fn look(&mut self) -> Result<Seen> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let questions = for_questions(&self.info);
                let asked = Connection::connect_with(&questions, Mode::Sql, DEADLINES).await;
                none.insert(match asked {
                    Ok(connection) => connection,
                    Err(error) if !self.may_replicate => return Err(error),
                    Err(_) => {
                        let mode = Mode::PhysicalReplication;
                        Connection::connect_with(&self.info, mode, DEADLINES).await?
                    }
                })
            }
        };
        let kept = |from: Option<Lsn>, end: Lsn, safe| {
            from.map(|from| KeptWal {
                bytes: end.distance_from(from).unwrap_or(0),
                safe,
            })
        };
        let on_standby = connection.parameter("in_hot_standby") == Some("on");
        if connection.mode() == Mode::PhysicalReplication {
            let slot = connection.read_slot(&self.slot).await?;
            let end = connection.identify_system().await?.flush_lsn;
            let from = slot.and_then(|slot| slot.restart_lsn);
            return Ok(Seen {
                kept: kept(from, end, None),
                on_standby,
                ..Seen::default()
            });
        }
        let Some(slot) = connection.slot_status(&self.slot).await? else {
            return Ok(Seen::default());
        };
        let end = written_to(connection).await?;
        let safe = slot.safe_wal_size;
        let safe = safe.map(|safe| u64::try_from(safe).unwrap_or(0));
        Ok(Seen {
            kept: kept(slot.restart_lsn, end, safe),
            user: slot.active_pid,
            is_in_danger: matches!(
                slot.wal_status,
                Some(WalStatus::Unreserved | WalStatus::Lost)
            ),
            on_standby,
        })
    }

    fn say(&self, danger: Danger, kept: Option<KeptWal>, limits: DiskGuard, said: &mut Since) {
        let server = self.connection.as_ref().map(Connection::address);
        let kept_bytes = kept.map_or(0, |kept| kept.bytes);
        match danger {
            Danger::None if said.was() => {
                *said = Since::default();
                tracing::info!(kept_bytes, server, "the slot keeps little WAL again");
            }
            Danger::Much if said.is_due() => tracing::warn!(
                kept_bytes,
                server,
                limit_bytes = limits.warn,
                "the slot keeps much WAL on the server's disk, because it is not stored (disk_guard.warn)"
            ),
            Danger::NearServersLimit if said.is_due() => tracing::warn!(
                kept_bytes,
                server,
                "the server is about to give the slot up and to remove WAL that is not stored (max_slot_wal_keep_size)"
            ),
            Danger::None | Danger::Much | Danger::NearServersLimit | Danger::TooMuch => {}
        }
    }

    /// Looks at the slot that a standby keeps for a failover, and drops it if it keeps too much: nothing is lost by it now. Another one is made at
    /// the next visit, and keeps what comes from then on.
    async fn guard_standby(&mut self, limits: DiskGuard, said: &mut Since, blind: &mut Since) {
        let guarded = async {
            let seen = self.look().await?;
            let Some(kept) = seen.kept.filter(|_| seen.on_standby) else {
                return Ok(());
            };
            let danger = limits.judge(kept);
            self.say(danger, seen.kept, limits, said);
            let connection = self.connection.as_mut();
            let Some(connection) = connection.filter(|_| danger == Danger::TooMuch) else {
                return Ok(());
            };
            match connection.mode() {
                Mode::PhysicalReplication => connection.drop_slot(&self.slot).await?,
                _ => connection.drop_slot_by_sql(&self.slot).await?,
            }
            tracing::error!(
                server = connection.address(),
                slot = self.slot,
                kept_bytes = kept.bytes,
                limit_bytes = limits.drop_slot,
                "dropped the slot that a standby kept for a failover: it kept more WAL on its disk than disk_guard.drop_slot allows; after a failover to \
                 it, WAL that is not stored by then may be missing"
            );
            Ok::<_, Error>(())
        };
        if let Err(error) = guarded.await {
            self.connection = None;
            if blind.is_due() {
                tracing::debug!(
                    error = error_text(&error),
                    "disk_guard cannot see or drop the slot of a standby"
                );
            }
        }
    }

    /// Drops the slot if it still keeps too much.
    async fn drop_slot(&mut self, limits: DiskGuard, size: SegmentSize) -> Result<Option<GivenUp>> {
        self.connection = None;
        let begun = Instant::now();
        let mode = Mode::PhysicalReplication;
        let mut replication = Connection::connect_with(&self.info, mode, DEADLINES).await?;
        loop {
            let seen = self.look().await?;
            let too_much = |kept: &KeptWal| limits.judge(*kept) == Danger::TooMuch;
            let Some(kept) = seen.kept.filter(too_much) else {
                return Ok(None);
            };
            let here = self.connection.as_mut();
            let Some(eye) = here.filter(|eye| eye.address() == replication.address()) else {
                return Err(Error::UnsuitableServer {
                    address: replication.address(),
                    reason: "it is not the server whose slot keeps too much WAL".into(),
                });
            };
            let position = replication.read_slot(&self.slot).await?;
            let end = replication.identify_system().await?;
            let given_up = GivenUp {
                kept_bytes: kept.bytes,
                // Elsewhere the timeline has changed meanwhile; resuming finds what is missing of each.
                gap: position.and_then(|position| {
                    let timeline = position
                        .restart_timeline
                        .filter(|timeline| *timeline == end.timeline)?;
                    let (from, to) = (
                        position.restart_lsn?,
                        size.start(size.segment(end.flush_lsn)),
                    );
                    (from < to).then_some(GapRange { timeline, from, to })
                }),
            };
            match replication.drop_slot(&self.slot).await {
                Ok(()) => return Ok(Some(given_up)),
                Err(error)
                    if error.server_kind() == Some(ServerErrorKind::SlotInUse)
                        && begun.elapsed() < RELEASE_PATIENCE =>
                {
                    if let Some(user) = seen.user
                        && begun.elapsed() > TERMINATE_AFTER
                    {
                        let end = format!("SELECT pg_catalog.pg_terminate_backend({user})");
                        eye.simple_query(&end).await?;
                    }
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(DROP_PAUSE).await;
        }
    }
}

/// End of the server's WAL.
async fn written_to(sql: &mut Connection) -> Result<Lsn> {
    const QUERY: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() \
         THEN coalesce(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()) \
         ELSE pg_catalog.pg_current_wal_lsn() END AS written";
    let answer = sql.simple_query(QUERY).await?;
    let written = answer.text(0, "written").and_then(|text| text.parse().ok());
    written.ok_or_else(|| Error::Protocol {
        during: "ask for the end of WAL".into(),
        reason: "the answer has none".into(),
    })
}

impl Receiver {
    /// Does what the watch asks for. Our own connection must be gone.
    pub(super) async fn answer_alarm(&mut self, watch: &Watch, alarm: Alarm) {
        match alarm {
            Alarm::TooMuch => self.give_up_slot(watch).await,
            Alarm::InTheWay => tracing::warn!(
                slot = self.config.slot,
                "closed the connection to the server: it is giving the slot up (max_slot_wal_keep_size) and waits for us, who could not store what it sends"
            ),
        }
    }

    /// Drops our slot, which keeps too much.
    async fn give_up_slot(&mut self, watch: &Watch) {
        let Some(limits) = watch.limits else { return };
        // A session that has failed has forgotten its server; the slot is still there.
        let info = match &*self.in_use.borrow() {
            Some(host) => only(&self.config.connection, host),
            None => self.config.connection.clone(),
        };
        let mut eye = Eye {
            info: beside(&info, "guard"),
            slot: self.config.slot.clone(),
            connection: None,
            may_replicate: true,
        };
        match eye.drop_slot(limits, self.size).await {
            Ok(Some(given_up)) => {
                tracing::error!(
                    slot = self.config.slot,
                    kept_bytes = given_up.kept_bytes,
                    limit_bytes = limits.drop_slot,
                    "dropped the slot: it kept more WAL on the server's disk than disk_guard.drop_slot allows; what the server removes of it \
                     before the repository can be written again is lost, and is recorded as a gap then"
                );
                self.given_up = Some(given_up);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(
                slot = self.config.slot,
                error = error_text(&error),
                "the slot keeps more WAL than disk_guard.drop_slot allows, and cannot be dropped: the server's disk may fill"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_before_it_drops_and_never_drops_without_being_told_to() {
        let kept = |bytes, safe| KeptWal { bytes, safe };
        let guard = DiskGuard {
            warn: 10,
            drop_slot: Some(50),
        };
        assert_eq!(guard.judge(kept(9, None)), Danger::None);
        assert_eq!(guard.judge(kept(10, None)), Danger::Much);
        assert_eq!(guard.judge(kept(49, Some(1000))), Danger::Much);
        assert_eq!(guard.judge(kept(50, None)), Danger::TooMuch);
        let warn_only = DiskGuard {
            drop_slot: None,
            ..guard
        };
        assert_eq!(warn_only.judge(kept(u64::MAX, None)), Danger::Much);
        // The server's own limit is nearer than ours.
        assert_eq!(guard.judge(kept(40, Some(1))), Danger::NearServersLimit);
        assert_eq!(guard.judge(kept(8, Some(0))), Danger::NearServersLimit);
        assert_eq!(guard.judge(kept(8, Some(8))), Danger::None);
        assert_eq!(guard.judge(kept(0, Some(0))), Danger::None);
    }
}
