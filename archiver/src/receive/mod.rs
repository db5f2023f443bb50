//! `walden run`: streams WAL out of the server into the repository, for as long as the process lives.
//!
//! Owns sessions: connecting, checking that the server is the right one, finding where to go on, following timelines, and going on
//! after every failure that time can heal. Does not own the loop over one timeline's bytes (`stream.rs`), what the server is told
//! (`progress.rs`), where to resume (`resume.rs`), the slot and what is lost with it (`slot.rs`, `gap.rs`, `disk_guard.rs`), or which base
//! backup is wanted (`backup_wanted.rs`).

mod backup_wanted;
mod disk_guard;
mod fill;
mod gap;
mod hosts;
mod lanes;
mod roll_up;
mod slot;
mod standby_slots;
mod stream;
mod survey;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use repository::cluster::ClusterDocument;
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::Facts;
use repository::wal::lineage;
use repository::{ErrorClass, Repository, catalog::Catalog};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use wal_format::{
    DecoderConfig, Lsn, Major, SegmentName, SegmentSize, TimelineHistory, TimelineId,
};

use self::fill::Fillers;
use self::hosts::{Hosts, Next};
use self::survey::Survey;
use crate::assembler::Expected;
use crate::branches::{check_newest, left_behind};
use crate::commit_watch::CommitWatch;
use crate::error::ServerErrorKind;
use crate::replication::{Connection, ConnectionInfo, Host, Mode, Started, SystemIdentity};
use crate::resume::{ResumePoint, ServerPosition, plan_resume, repository_end};
use crate::server_identity::check_identity;
use crate::upload::{Uploader, error_text};
use crate::{Error, Result};

pub use self::backup_wanted::TakeBackup;
pub use self::disk_guard::{Danger, DiskGuard, KeptWal};

/// First wait before connecting again.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait before connecting again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How long another connection may hold the slot at least: a server notices a dead client only after `wal_sender_timeout`.
const SLOT_PATIENCE: Duration = Duration::from_secs(90);
/// How much longer than the timeout that we ask the server for.
const SLOT_MARGIN: Duration = Duration::from_secs(30);
/// How long a base backup that was begun beside receiving may take to end when we stop.
const BACKUP_GRACE: Duration = Duration::from_secs(1);
/// How long repositories of which none has all that the others have may take to agree.
const FILL_PATIENCE: Duration = Duration::from_secs(60);
/// What plain segments, their sealed forms and tail chunks may take together.
const MEMORY_BUDGET: u64 = 256 << 20;
/// Most segments that are sealed and stored at the same time.
const MAX_IN_FLIGHT: u64 = 4;

/// How long bytes may wait before they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpo {
    /// A tail chunk at the latest after this time.
    Interval(Duration),
    /// At once: commits wait for us.
    Sync,
}

/// What happens to WAL that fails validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInvalid {
    /// It is stored, marked and reported.
    StoreAndReport,
    /// Receiving stops.
    Refuse,
}

/// What `walden run` needs to know.
#[derive(Clone, Debug)]
pub struct ReceiverConfig {
    /// The server.
    pub connection: ConnectionInfo,
    /// The physical slot; made if it does not exist.
    pub slot: String,
    /// The cluster as the repository knows it.
    pub cluster: ClusterDocument,
    /// Whether a slot is kept on each of the other listed servers too.
    pub standby_slots: bool,
    /// How long the server may be silent before the connection counts as lost.
    pub wal_receiver_timeout: Duration,
    /// How long bytes may wait.
    pub rpo: Rpo,
    /// What happens to invalid WAL.
    pub on_invalid: OnInvalid,
    /// How much WAL the slot may keep on the server; `None`: nobody looks.
    pub disk_guard: Option<DiskGuard>,
    /// Takes a base backup after WAL was lost; `None`: it is asked for.
    pub take_backup: Option<TakeBackup>,
}

/// What a receiver has met when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The place of the first WAL that was not valid, if any was: it is stored and marked.
    pub first_invalid: Option<Lsn>,
    /// Gaps that it had to record.
    pub gaps_recorded: u64,
}

/// Receives WAL. One for each cluster.
pub struct Receiver {
    config: ReceiverConfig,
    uploader: Uploader,
    cluster: ClusterId,
    size: SegmentSize,
    /// Random: tells our tail chunks from another process's.
    writer: u32,
    stop: watch::Receiver<bool>,
    connected_once: bool,
    hosts: Hosts,
    slot_busy_since: Option<Instant>,
    /// Where the first WAL that is not valid was received; 0 for none.
    first_invalid: Arc<AtomicU64>,
    /// One for each repository, once it runs.
    roll_ups: Vec<roll_up::RollUps>,
    gaps_recorded: u64,
    /// We dropped the slot because it kept too much: none is made before that is on record.
    given_up: Option<disk_guard::GivenUp>,
    /// Told each time WAL begins to arrive.
    receiving: Arc<Notify>,
    /// Whether the stream's socket stays unread, because more cannot be held.
    is_paused: Arc<AtomicBool>,
    /// Of several listed servers the one that was received from last.
    in_use: watch::Sender<Option<Host>>,
}

/// Why a session ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionEnd {
    /// We were asked to stop.
    Stopped,
    /// The server shut down in order.
    ServerShutdown,
}

/// Segments that may wait between sealing, which goes on side by side, and storing, one after the other, within the memory budget; at
/// least one.
#[must_use]
pub fn segments_in_flight(size: SegmentSize) -> usize {
    let segment = u64::from(size.bytes());
    let rest = MEMORY_BUDGET.saturating_sub(2 * segment + (32 << 20));
    (rest / (2 * segment)).clamp(1, MAX_IN_FLIGHT) as usize
}

impl Receiver {
    /// A receiver that ends, in order, once `stop` holds true.
    ///
    /// # Errors
    /// `Corrupt`: the cluster's document names an impossible segment size. `Retry`: no randomness.
    pub fn new(
        config: ReceiverConfig,
        uploader: Uploader,
        stop: watch::Receiver<bool>,
    ) -> Result<Self> {
        let size = config.cluster.segment_size()?;
        let mut writer = [0; 4];
        getrandom::fill(&mut writer).map_err(|error| Error::LocalFile {
            path: "randomness".into(),
            reason: error.to_string(),
            source: None,
        })?;
        Ok(Self {
            cluster: config.cluster.id(),
            config,
            uploader,
            size,
            writer: u32::from_le_bytes(writer),
            stop,
            connected_once: false,
            hosts: Hosts::default(),
            slot_busy_since: None,
            first_invalid: Arc::default(),
            roll_ups: Vec::new(),
            gaps_recorded: 0,
            given_up: None,
            receiving: Arc::default(),
            is_paused: Arc::default(),
            in_use: watch::Sender::default(),
        })
    }

    /// Receives until asked to stop. Connections that break are made again.
    ///
    /// # Errors
    /// What time does not heal: another server or a rolled-back one (`Conflict`), a broken format (`Corrupt`), and, before the first
    /// connection, settings that do not work (`Config`).
    pub async fn run(mut self) -> Result<Received> {
        let backups = backup_wanted::Keeper {
            repositories: self.uploader.repositories().to_vec(),
            cluster: self.cluster,
            size: self.size,
            take: self.config.take_backup.clone(),
            receiving: Arc::clone(&self.receiving),
            stop: self.stop.clone(),
        };
        let mut backups = tokio::spawn(backups.keep());
        let mut keepers = Vec::new();
        for repository in self.uploader.repositories() {
            let repository = repository.clone();
            let (roll_ups, keeper) = roll_up::RollUps::start(repository, self.cluster, self.size);
            self.roll_ups.push(roll_ups);
            keepers.push(keeper);
        }
        let (fillers, _filling) = Fillers::start(&self.uploader, &self.config.cluster);
        let result = self.keep_receiving(&fillers).await;
        for keeper in keepers {
            keeper.abort();
        }
        if tokio::time::timeout(BACKUP_GRACE, &mut backups)
            .await
            .is_err()
        {
            backups.abort();
        }
        result?;
        let invalid = self.first_invalid.load(Ordering::Relaxed);
        Ok(Received {
            first_invalid: (invalid > 0).then(|| Lsn::new(invalid)),
            gaps_recorded: self.gaps_recorded,
        })
    }

    async fn keep_receiving(&mut self, fillers: &Fillers) -> Result<()> {
        let mut wait = FIRST_WAIT;
        let (is_paused, in_use) = (Arc::clone(&self.is_paused), self.in_use.subscribe());
        let disk = disk_guard::Watch::start(&self.config, is_paused, in_use);
        while !*self.stop.borrow() {
            let begun = Instant::now();
            let ended = tokio::select! {
                ended = Box::pin(self.session(fillers)) => ended,
                // Cut off anywhere, a session is as good as a crash, which loses nothing.
                alarm = disk.alarm() => {
                    self.is_paused.store(false, Ordering::Relaxed);
                    self.answer_alarm(&disk, alarm).await;
                    continue;
                }
            };
            self.is_paused.store(false, Ordering::Relaxed);
            match ended {
                Ok(SessionEnd::Stopped) => return Ok(()),
                Ok(SessionEnd::ServerShutdown) => {
                    self.hosts.ended();
                    tracing::info!("the server shut down, everything it had is stored")
                }
                Err(error) => {
                    let listed = &self.config.connection;
                    match self.hosts.failed(error, listed, Instant::now()) {
                        Next::AnotherHost => continue,
                        Next::GiveUp(error) => return Err(error),
                        Next::Settle(error) if self.is_final(&error) => return Err(error),
                        Next::Settle(error) => tracing::warn!(
                            error = error_text(&error),
                            "connection to the server lost or refused, trying again"
                        ),
                    }
                }
            }
            if begun.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            let mut stop = self.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => {}
                alarm = disk.alarm() => self.answer_alarm(&disk, alarm).await,
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        Ok(())
    }

    /// Whether trying again cannot help.
    fn is_final(&mut self, error: &Error) -> bool {
        if error.server_kind() == Some(ServerErrorKind::SlotInUse) {
            let patience = SLOT_PATIENCE.max(self.config.wal_receiver_timeout + SLOT_MARGIN);
            let since = self.slot_busy_since.get_or_insert_with(Instant::now);
            return since.elapsed() > patience;
        }
        match error.class() {
            ErrorClass::Conflict | ErrorClass::Corrupt | ErrorClass::Key => true,
            ErrorClass::Config => !self.connected_once,
            ErrorClass::Retry | ErrorClass::NotFound | ErrorClass::Bug => false,
        }
    }

    /// One connection: from the checks to its end.
    async fn session(&mut self, fillers: &Fillers) -> Result<SessionEnd> {
        let mut candidates = self.hosts.candidates(&self.config.connection);
        // A server that would wait for a dead connection for ever would keep the slot from us, and with it its WAL.
        candidates.wal_sender_timeout = Some(self.config.wal_receiver_timeout);
        let mut connection = Connection::connect(&candidates, Mode::PhysicalReplication).await?;
        connection.deadlines_mut().silence = self.config.wal_receiver_timeout;
        self.hosts.connected_to(connection.host());
        connection.require_supported()?;
        let identity = check_identity(&mut connection, &self.config.cluster).await?;
        self.in_use.send_replace(Some(connection.host().clone()));
        let wanted = self.config.rpo == Rpo::Sync;
        let info = self.hosts.same(&self.config.connection);
        let later = self.connected_once;
        let commits = CommitWatch::start(&mut connection, &info, wanted, later).await?;
        let mut histories = Histories::default();
        if let Some(given_up) = self.given_up {
            // While nothing can be stored, a new slot would only fill the server's disk again.
            self.record_given_up(given_up).await?;
        }
        let mut slot = self.usable_slot(&mut connection).await?;
        self.given_up = None;
        let timeline = identity.timeline;
        let mut server = self
            .ask_position(&mut connection, identity, slot.restart_lsn, &mut histories)
            .await?;
        self.connected_once = true;
        let mut survey = self.survey().await?;
        // Somebody else may have stored meanwhile what the server has written since: a server that lost nothing is ahead of a listing.
        let now = connection.identify_system().await?;
        if now.timeline == timeline {
            server.flush_lsn = now.flush_lsn;
        }
        check_newest(&server.history, &survey.union, self.size)?;
        let stored = repository_end(self.size, &server, &survey.union);
        let mut point = plan_resume(self.size, &server, stored)?;
        // For a server that is refused nothing is written, not even this.
        for (roll_ups, catalog) in self.roll_ups.iter().zip(&survey.catalogs) {
            if let Some(catalog) = catalog {
                roll_ups.catch_up(catalog);
            }
        }
        tracing::info!(
            server = connection.address(),
            timeline = point.timeline.get(),
            start_lsn = %point.start,
            server_lsn = %server.flush_lsn,
            stored_to = stored.map(|stored| stored.end.to_string()),
            "receiving WAL"
        );
        self.warn_of_slot_ahead(self.size, server.restart_lsn, point);
        for left in left_behind(&server.history, &survey.union, self.size) {
            tracing::warn!(timeline = left.timeline.get(), from = %left.from, to = %left.to,
                "WAL is stored that does not lead to this server: it stays, and restores with --timeline");
        }
        let mut beside = JoinSet::new();
        if let Some(slots) = self.standby_slots(&connection) {
            beside.spawn(slots.keep());
        }
        let major = Major::from_number(connection.server_major());
        let decoder = DecoderConfig {
            segment_size: self.size,
            system_identifier: Some(self.cluster.system_identifier),
            major,
        };
        loop {
            let lineage = histories.lineage(point.timeline);
            let started = connection
                .start_replication(Some(&self.config.slot), point.start, point.timeline)
                .await;
            let started = match started {
                Err(error) if error.server_kind() == Some(ServerErrorKind::WalRemoved) => {
                    let story = slot.story.as_deref();
                    point = self.record_gap(&server, point, story, &error).await?;
                    continue;
                }
                // What `pg_replication_slots` could not tell us: from 18 on the server lets nobody stream with a slot that it has given up.
                Err(error)
                    if error.server_kind() == Some(ServerErrorKind::NotInPrerequisiteState)
                        && slot.story.is_none() =>
                {
                    let why = format!("cannot be used any more: {}", error_text(&error));
                    slot = self.remake_slot(&mut connection, &why).await?;
                    server.restart_lsn = slot.restart_lsn;
                    continue;
                }
                started => started?,
            };
            self.slot_busy_since = None;
            let (timeline, switch_point) = match started {
                Started::TimelineEnded {
                    next_timeline,
                    switch_point,
                } => (next_timeline, switch_point),
                Started::Streaming => {
                    self.receiving.notify_one();
                    let level = self.level(&mut survey, point, fillers).await?;
                    let fillers = fillers.clone();
                    let mirrors = stream::Mirrors { level, fillers };
                    let records = self.stored_records(&survey, point).await?;
                    let sync = commits.store_at_once();
                    let streaming = stream::Streaming::new(
                        self, decoder, point, lineage, records, mirrors, sync,
                    )?;
                    match streaming.run(&mut connection).await {
                        Ok(stream::StreamEnd::Stopped) => {
                            connection.close().await?;
                            return Ok(SessionEnd::Stopped);
                        }
                        Ok(stream::StreamEnd::ServerShutdown) => {
                            return Ok(SessionEnd::ServerShutdown);
                        }
                        Ok(stream::StreamEnd::TimelineEnded {
                            next_timeline,
                            switch_point,
                        }) => (next_timeline, switch_point),
                        // The error about the start may be the first thing that streams. The connection stays usable; a new one
                        // would begin at the repository's end again, and fail again, unless something was stored meanwhile.
                        Err(error) if error.server_kind() == Some(ServerErrorKind::WalRemoved) => {
                            let survey = self.survey().await?;
                            if repository_end(self.size, &server, &survey.union) != stored {
                                return Err(error);
                            }
                            let story = slot.story.as_deref();
                            point = self.record_gap(&server, point, story, &error).await?;
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            tracing::info!(from = point.timeline.get(), to = timeline.get(), %switch_point, "the server switched timelines");
            self.store_history(&mut connection, timeline, &mut histories)
                .await?;
            // Not every repository may have the end of the last timeline, and the history of this one.
            survey = self.survey().await?;
            point = ResumePoint {
                timeline,
                start: self.size.start(self.size.segment(switch_point)),
            };
        }
    }

    /// Keeps a slot on each of the other listed servers, if there are any and that is wanted.
    fn standby_slots(&self, connection: &Connection) -> Option<standby_slots::StandbySlots> {
        let servers = self.hosts.others(&self.config.connection);
        (self.config.standby_slots && !servers.is_empty()).then(|| standby_slots::StandbySlots {
            servers,
            slot: self.config.slot.clone(),
            system_identifier: self.cluster.system_identifier,
            stored: connection.reported_flush(),
        })
    }

    /// Where the server is, and its history, stored before any WAL of it.
    async fn ask_position(
        &self,
        connection: &mut Connection,
        identity: SystemIdentity,
        restart_lsn: Option<Lsn>,
        histories: &mut Histories,
    ) -> Result<ServerPosition> {
        self.store_history(connection, identity.timeline, histories)
            .await?;
        let history = match histories.contents.get(&identity.timeline) {
            Some(content) => TimelineHistory::parse(identity.timeline, content)?,
            None => TimelineHistory::first(),
        };
        let ancestors: Vec<TimelineId> = history
            .entries()
            .iter()
            .map(|entry| entry.timeline)
            .collect();
        for ancestor in ancestors {
            match self.store_history(connection, ancestor, histories).await {
                // The server may have dropped it; the repository has it from when it was current.
                Err(error) if error.server().is_some() => {
                    tracing::warn!(
                        timeline = ancestor.get(),
                        "the server no longer has this timeline's history file"
                    );
                }
                other => other?,
            }
        }
        Ok(ServerPosition {
            history,
            flush_lsn: identity.flush_lsn,
            restart_lsn,
            is_standby: connection.parameter("in_hot_standby") == Some("on"),
        })
    }

    async fn store_history(
        &self,
        connection: &mut Connection,
        timeline: TimelineId,
        histories: &mut Histories,
    ) -> Result<()> {
        if timeline == TimelineId::FIRST || histories.contents.contains_key(&timeline) {
            return Ok(());
        }
        let file = connection.timeline_history(timeline).await?;
        TimelineHistory::parse(timeline, &file.content)?;
        let facts = self.facts(
            ObjectKey::History {
                cluster: self.cluster,
                timeline,
            },
            connection.server_major(),
        );
        let sealed = self.uploader.seal_here(facts, &file.content)?;
        // Else the repositories would be found wrong, for good, because of a server that is.
        if self
            .uploader
            .has_other_history(self.cluster, timeline, &file.content)
            .await?
        {
            let timeline = timeline.get();
            return Err(Error::OtherHistory { timeline });
        }
        self.uploader.put(&sealed).await?;
        histories.contents.insert(timeline, file.content.to_vec());
        Ok(())
    }

    fn facts(&self, key: ObjectKey, major: u32) -> Facts {
        Facts {
            key,
            pg_version: u16::try_from(major).unwrap_or(u16::MAX),
            wal: None,
        }
    }

    async fn survey(&self) -> Result<Survey> {
        survey::survey(&self.uploader, &self.config.cluster).await
    }

    /// Which repositories have all the WAL before `point`, at least one of them; the others are filled from it meanwhile.
    async fn level(
        &self,
        survey: &mut Survey,
        point: ResumePoint,
        fillers: &Fillers,
    ) -> Result<Vec<bool>> {
        let level = survey.level(point.timeline, point.start, self.size);
        if level.contains(&true) {
            return Ok(level);
        }
        tracing::info!("each repository has WAL that another one lacks: filling them up first");
        fillers.clone().fill_all(FILL_PATIENCE).await;
        *survey = self.survey().await?;
        let level = survey.level(point.timeline, point.start, self.size);
        match level.contains(&true) {
            true => Ok(level),
            false => Err(Error::Timeout {
                during: "fill the repositories from each other".into(),
                after: FILL_PATIENCE,
            }),
        }
    }

    /// What is stored around `point` and must fit what comes: a rolled-back server shows itself here.
    async fn stored_records(&self, survey: &Survey, point: ResumePoint) -> Result<Expected> {
        let mut stored = Expected::default();
        let mut failed = None;
        let repositories = self.uploader.repositories().iter();
        for (repository, catalog) in repositories.zip(&survey.catalogs) {
            let Some(catalog) = catalog else { continue };
            match self.records_in(repository, catalog, point).await {
                Ok(found) => {
                    stored.records.extend(found.records);
                    stored.chunks.extend(found.chunks);
                    stored.previous = stored.previous.max(found.previous);
                    failed = Some(None);
                }
                Err(error) => failed = failed.or(Some(Some(error))),
            }
        }
        match failed.flatten() {
            Some(error) => Err(error),
            None => Ok(stored),
        }
    }

    async fn records_in(
        &self,
        repository: &Repository,
        catalog: &Catalog,
        point: ResumePoint,
    ) -> Result<Expected> {
        let number = self.size.segment(point.start);
        let name = SegmentName::new(point.timeline, number, self.size);
        let mut stored = Expected::default();
        let Some(objects) = catalog.timelines.get(&point.timeline) else {
            return Ok(stored);
        };
        let cluster = self.cluster;
        for chunk in objects.needed_chunks(&name) {
            let (from, to, writer) = (chunk.from, chunk.to, chunk.writer);
            let key = ObjectKey::Tail {
                cluster,
                name,
                from,
                to,
                writer,
            };
            let wal = repository.fetch_descriptor(&key).await?.wal;
            let wal = wal.unwrap_or_default();
            let records = wal.first_record.into_iter().chain(wal.last_record);
            stored.records.extend(records);
            stored.chunks.push(wal);
        }
        let before = number.previous();
        let before = before.map(|number| SegmentName::new(point.timeline, number, self.size));
        if let Some(name) = before.filter(|name| objects.segments.contains_key(name)) {
            let key = ObjectKey::Segment { cluster, name };
            let wal = repository.fetch_descriptor(&key).await?.wal;
            stored.previous = wal.and_then(|wal| wal.last_record);
        }
        Ok(stored)
    }
}

/// History files by timeline.
#[derive(Default)]
struct Histories {
    contents: BTreeMap<TimelineId, Vec<u8>>,
}

impl Histories {
    fn lineage(&self, timeline: TimelineId) -> String {
        lineage(self.contents.get(&timeline).map(Vec::as_slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::Store;

    #[test]
    fn memory_for_segments_stays_within_the_budget() {
        let in_flight = |mib: u32| segments_in_flight(SegmentSize::new(mib << 20).unwrap());
        assert_eq!([1, 16, 32, 64, 1024].map(in_flight), [4, 4, 2, 1, 1]);
    }

    /// What was rolled back may have got into one repository only.
    #[tokio::test]
    async fn what_any_repository_holds_must_come_again() {
        let stores = [Store::in_memory(), Store::in_memory()];
        let (_stop, stopped) = watch::channel(false);
        let config = ReceiverConfig {
            connection: ConnectionInfo::parse("host=a user=walden", &|_| None).unwrap(),
            slot: "walden".into(),
            cluster: testing::cluster(),
            standby_slots: false,
            wal_receiver_timeout: Duration::from_secs(60),
            rpo: Rpo::Sync,
            on_invalid: OnInvalid::StoreAndReport,
            disk_guard: None,
            take_backup: None,
        };
        let receiver = Receiver::new(config, testing::uploader(&stores).await, stopped).unwrap();
        let record = |offset: u64| Lsn::new((4 << 20) + offset);
        let put = async |number: usize, name: &str, first, last| {
            let wal = repository::descriptor::WalDescriptor {
                first_record: Some(record(first)),
                last_record: Some(record(last)),
                ..Default::default()
            };
            let path = format!("7412/{name}");
            let bytes = testing::sealed(&path, Some(wal), b"WAL");
            let put = stores[number].put_new(&path, bytes).await;
            assert_eq!(put.unwrap(), repository::PutOutcome::Created);
        };
        let tail = "tail/00000001/000000010000000000000004";
        put(0, &format!("{tail}.00000000-00000080.0A1B2C3D"), 40, 80).await;
        put(1, &format!("{tail}.00000000-00000080.0A1B2C3D"), 40, 80).await;
        put(1, &format!("{tail}.00000080-00000100.0A1B2C3D"), 128, 200).await;
        let before = "wal/00000001/00000000/000000010000000000000003.wal";
        put(1, before, 0, 16).await;
        let point = ResumePoint {
            timeline: TimelineId::FIRST,
            start: record(0),
        };
        let survey = receiver.survey().await.unwrap();
        let stored = receiver.stored_records(&survey, point).await.unwrap();
        for expected in [40, 80, 128, 200] {
            assert!(stored.records.contains(&record(expected)), "{expected}");
        }
        assert_eq!(stored.previous, Some(record(16)));
    }
}
