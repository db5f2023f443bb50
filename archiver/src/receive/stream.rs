//! One timeline's bytes: from the connection through the assembler to durable objects, and the answers to the server.
//!
//! Owns the loop, its jobs and its clock. One task owns all state; dropping it at any await is as good as a crash. Who stores what next, and
//! who is let go, is decided in `lanes.rs`.
//!
//! In each repository objects are stored in the order of their WAL, so that wherever we are cut off, what is stored has no hole: a restore to
//! `latest` must not depend on our coming back to fill one. Only the sealing goes on beside.

mod behind;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use repository::Stored;
use repository::key::ObjectKey;
use repository::sealed::{Facts, Sealed};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use wal_format::{DecoderConfig, Lsn, TimelineId, Timestamp};

use super::fill::Fillers;
use super::lanes::{Covers, LaneState, Lanes};
use super::roll_up::{RollUps, StoredSegment};
use super::{OnInvalid, Receiver, ResumePoint, Rpo, segments_in_flight};
use crate::assembler::{AssembledSegment, Assembler, Expected};
use crate::progress::{Positions, positions};
use crate::replication::{Connection, StatusUpdate, StreamEvent};
use crate::tail::TailSchedule;
use crate::upload::Uploader;
use crate::{Error, Result};

/// Longest time without a status update.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Least time between two answers that say the same: a server that shuts down asks in a loop.
const REPLY_INTERVAL: Duration = Duration::from_millis(10);
/// Time to flush the tail after we were asked to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(8);
/// Time within which the repositories that the `ack` policy does not need may store what the others have, before we leave.
const STRAGGLER_GRACE: Duration = Duration::from_secs(2);
/// Time to store what had arrived when the connection broke.
const RESCUE_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes whose sealing is no work to speak of.
const SEALED_AT_ONCE: usize = 64 << 10;
/// Plain segment buffers kept for reuse.
const SPARE_BUFFERS: usize = 2;

/// Why streaming a timeline ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// We were asked to stop; the tail is stored, or the time for it is over.
    Stopped,
    /// The server shut down in order.
    ServerShutdown,
    /// The server goes on with another timeline; all of this one is stored.
    TimelineEnded {
        next_timeline: TimelineId,
        switch_point: Lsn,
    },
}

/// What a job has done.
enum Done {
    Sealed {
        number: u64,
        sealed: Arc<Sealed>,
        spare: Vec<u8>,
    },
    Put {
        lane: usize,
        number: u64,
        stored: Result<()>,
    },
    /// The job's lane was let go.
    GivenUp,
}

enum Wake {
    Stop,
    /// Whether commits wait for us has changed.
    Sync,
    Job(Result<Done>),
    /// A repository that was behind has been filled up.
    Filled,
    Event(Result<StreamEvent>),
    Timer,
}

/// State of one timeline's stream.
pub(super) struct Streaming {
    receiver: Facets,
    decoder: DecoderConfig,
    assembler: Assembler,
    lanes: Lanes,
    tail: TailSchedule,
    /// The tail chunk that is not settled yet.
    chunk: Option<u64>,
    jobs: JoinSet<Result<Done>>,
    /// What each lane is storing.
    puts: Vec<Option<AbortHandle>>,
    /// What was asked of the filler of each lane that is behind.
    requests: Vec<Option<u64>>,
    reminded: Option<Instant>,
    spare: Vec<Vec<u8>>,
    /// What the server was told last, and when.
    told: Option<(Positions, Instant)>,
    reply_owed: bool,
    /// Asked to stop: when the stragglers are left behind, and everything.
    stop_by: Option<(Instant, Instant)>,
    reported_invalid: bool,
}

/// The repositories when a stream begins.
pub(super) struct Mirrors {
    /// Which of them have all the WAL before it.
    pub(super) level: Vec<bool>,
    /// What fills the others.
    pub(super) fillers: Fillers,
}

/// What the loop needs of the receiver.
struct Facets {
    uploader: Uploader,
    cluster: repository::key::ClusterId,
    writer: u32,
    pg_version: u16,
    rpo: Rpo,
    /// Whether commits wait for us, or shall.
    sync: watch::Receiver<bool>,
    on_invalid: OnInvalid,
    first_invalid: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
    roll_ups: Vec<RollUps>,
    fillers: Fillers,
    /// Whether the socket stays unread.
    is_paused: Arc<AtomicBool>,
}

impl Streaming {
    pub(super) fn new(
        receiver: &Receiver,
        decoder: DecoderConfig,
        point: ResumePoint,
        lineage: String,
        stored: Expected,
        mirrors: Mirrors,
        sync: watch::Receiver<bool>,
    ) -> Result<Self> {
        let mut assembler = Assembler::new(decoder, point.timeline, lineage, point.start)?;
        assembler.expect(stored);
        let rpo = receiver.config.rpo;
        let tail = TailSchedule::new(interval(rpo, *sync.borrow()));
        let Mirrors { level, fillers } = mirrors;
        let now = Instant::now();
        let (ack, size) = (receiver.uploader.ack(), receiver.size);
        let in_flight = segments_in_flight(size);
        let mut lanes = Lanes::new(ack, in_flight, size, point.start, &level, now);
        for lane in 0..level.len() {
            if receiver.uploader.is_refused(lane) {
                lanes.refuse(lane, now);
            }
        }
        Ok(Self {
            receiver: Facets {
                uploader: receiver.uploader.clone(),
                cluster: receiver.cluster,
                writer: receiver.writer,
                pg_version: decoder
                    .major
                    .map_or(0, |major| u16::try_from(major.number()).unwrap_or(0)),
                rpo,
                sync,
                on_invalid: receiver.config.on_invalid,
                first_invalid: Arc::clone(&receiver.first_invalid),
                stop: receiver.stop.clone(),
                roll_ups: receiver.roll_ups.clone(),
                fillers,
                is_paused: Arc::clone(&receiver.is_paused),
            },
            decoder,
            assembler,
            lanes,
            tail,
            chunk: None,
            jobs: JoinSet::new(),
            puts: level.iter().map(|_| None).collect(),
            requests: vec![None; level.len()],
            reminded: None,
            spare: Vec::new(),
            told: None,
            reply_owed: false,
            stop_by: None,
            reported_invalid: false,
        })
    }

    pub(super) async fn run(mut self, connection: &mut Connection) -> Result<StreamEnd> {
        loop {
            // Before the next chunk is sealed, which takes its time: commits may wait for the answer.
            self.answer(connection).await?;
            self.pump()?;
            self.answer(connection).await?;
            if let Some((leave_stragglers, by)) = self.stop_by {
                let (now, positions) = (Instant::now(), self.positions());
                let stored = positions.flush == self.lanes.received();
                let may_leave = self.is_level() || (stored && now >= leave_stragglers);
                if may_leave || now >= by {
                    return self.stop(connection, stored).await;
                }
            }
            match self.wait(connection).await {
                Wake::Stop => {
                    tracing::info!("stopping: storing what has arrived");
                    self.tail.ask();
                    let now = Instant::now();
                    self.stop_by = Some((now + STRAGGLER_GRACE, now + STOP_DEADLINE));
                }
                Wake::Sync => {
                    let sync = *self.receiver.sync.borrow_and_update();
                    self.tail.set_interval(interval(self.receiver.rpo, sync));
                }
                Wake::Filled => {}
                Wake::Timer => {}
                Wake::Job(done) => self.finish(done?)?,
                Wake::Event(Err(error)) => {
                    self.store_what_came().await?;
                    return Err(error);
                }
                Wake::Event(Ok(event)) => match event {
                    StreamEvent::Wal(wal) => self.receive(wal.start, &wal.data)?,
                    StreamEvent::Keepalive(keepalive) => {
                        if keepalive.reply_requested {
                            self.reply_owed = true;
                            self.tail.ask();
                        }
                    }
                    StreamEvent::ServerShutdown => return Ok(StreamEnd::ServerShutdown),
                    StreamEvent::TimelineEnded {
                        next_timeline,
                        switch_point,
                    } => {
                        self.end_timeline(switch_point).await?;
                        return Ok(StreamEnd::TimelineEnded {
                            next_timeline,
                            switch_point,
                        });
                    }
                },
            }
        }
    }

    async fn wait(&mut self, connection: &mut Connection) -> Wake {
        let timer = tokio::time::sleep_until(self.next_timer().into());
        let stopping = self.stop_by.is_some();
        // While the store is slow the socket stays unread: the server keeps what we cannot hold.
        let may_read = !stopping && !self.lanes.is_full();
        self.receiver.is_paused.store(!may_read, Ordering::Relaxed);
        let stop = &mut self.receiver.stop;
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop), if !stopping => Wake::Stop,
            Some(done) = self.jobs.join_next() => Wake::Job(finished(done)),
            () = self.receiver.fillers.progressed() => Wake::Filled,
            // Behind the sender's end nothing changes any more.
            Ok(()) = self.receiver.sync.changed() => Wake::Sync,
            event = connection.next_message(), if may_read => Wake::Event(event),
            () = timer => Wake::Timer,
        }
    }

    fn next_timer(&self) -> Instant {
        let now = Instant::now();
        let status = self.told.map_or(now, |(_, at)| {
            at + if self.reply_owed {
                REPLY_INTERVAL
            } else {
                STATUS_INTERVAL
            }
        });
        // A chunk that has to wait for its turn is started when a segment is stored.
        let tail = self.tail.due().filter(|_| self.may_start_chunk());
        let stop = self.stop_by.map(|(stragglers, by)| match now < stragglers {
            true => stragglers,
            false => by,
        });
        [tail, stop, self.lanes.patience_ends()]
            .into_iter()
            .flatten()
            .fold(status, Instant::min)
    }

    /// Takes WAL that arrived; full segments become jobs.
    fn receive(&mut self, mut start: Lsn, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let (taken, invalid) = self.assembler.push(start, data)?;
            data = &data[taken..];
            start = start.saturating_add(taken as u64);
            if let Some(invalid) = invalid {
                if self.receiver.on_invalid == OnInvalid::Refuse {
                    return Err(Error::InvalidWal {
                        at: invalid.at,
                        reason: invalid.reason,
                    });
                }
                let first = &self.receiver.first_invalid;
                // One task receives: nobody else writes it.
                if first.load(Ordering::Relaxed) == 0 {
                    first.store(invalid.at.as_u64(), Ordering::Relaxed);
                }
                if !self.reported_invalid {
                    self.reported_invalid = true;
                    tracing::error!(at = %invalid.at, reason = invalid.reason,
                        "the server sends WAL that is not valid; it is stored and marked, recovery will stop there");
                }
            }
            if self.assembler.is_full() {
                self.start_segment();
                self.reported_invalid = false;
            }
        }
        self.lanes.receive(self.assembler.position());
        self.tail.receive(self.assembler.offset(), Instant::now());
        Ok(())
    }

    fn start_segment(&mut self) {
        let Some(segment) = self.assembler.take_segment(self.spare.pop()) else {
            return;
        };
        self.tail.open_segment();
        let key = ObjectKey::Segment {
            cluster: self.receiver.cluster,
            name: segment.name,
        };
        let facts = self.facts(key, &segment);
        let number = (self.lanes).push(Covers::Segment(segment.number), Instant::now());
        self.seal(number, facts, segment.plain);
    }

    fn seal(&mut self, number: u64, facts: Facts, plain: Vec<u8>) {
        let uploader = self.receiver.uploader.clone();
        self.jobs.spawn(async move {
            let (sealed, spare) = uploader.seal(facts, plain).await?;
            Ok(Done::Sealed {
                number,
                sealed: Arc::new(sealed),
                spare,
            })
        });
    }

    fn facts(&self, key: ObjectKey, segment: &AssembledSegment) -> Facts {
        Facts {
            key,
            pg_version: self.receiver.pg_version,
            wal: Some(segment.descriptor.clone()),
        }
    }

    /// It could not be reported before the segments before it; and of two at a time the second would hold what the first one does not.
    fn may_start_chunk(&self) -> bool {
        self.chunk.is_none() && self.lanes.unsettled_segments() == 0 && !self.lanes.is_full()
    }

    /// Seals the tail chunk that is due, if one is, and has it stored. Sealing happens here: the bytes are in the open segment's buffer, a copy
    /// of them would cost as much.
    fn start_tail_chunk(&mut self) -> Result<()> {
        if !self.may_start_chunk() {
            return Ok(());
        }
        let now = Instant::now();
        let Some(range) = self.tail.take(self.assembler.offset(), now) else {
            return Ok(());
        };
        let (from, to, segment) = (range.from, range.to, self.assembler.number());
        let name = self.assembler.name();
        let key = ObjectKey::Tail {
            cluster: self.receiver.cluster,
            name,
            from,
            to,
            writer: self.receiver.writer,
        };
        let wal = Some(self.assembler.describe_chunk(from));
        let facts = Facts {
            key,
            pg_version: self.receiver.pg_version,
            wal,
        };
        let plain = &self.assembler.bytes()[from as usize..to as usize];
        let uploader = &self.receiver.uploader;
        let seal = || uploader.seal_here(facts, plain);
        // Handing this thread's other work to another costs as much as sealing little, and commits may wait.
        let sealed = match plain.len() <= SEALED_AT_ONCE {
            true => seal(),
            false => tokio::task::block_in_place(seal),
        }?;
        let number = self.lanes.push(Covers::Tail(segment, to), now);
        self.lanes.sealed(number, Arc::new(sealed));
        self.chunk = Some(number);
        Ok(())
    }

    /// Does whatever can be done now without waiting: lanes that hold up the others are let go, those that have caught up take part again, and
    /// what is ready is stored.
    fn pump(&mut self) -> Result<()> {
        let now = Instant::now();
        for lane in self.lanes.let_go(now) {
            self.give_up_put(lane);
            self.requests[lane] = None;
            tracing::warn!(
                repository = self.name(lane),
                "this repository holds up the others: it is left behind, and filled up from them when it can be"
            );
        }
        for lane in 0..self.puts.len() {
            self.follow_filling(lane, now);
        }
        self.settle_chunk();
        self.start_tail_chunk()?;
        for (lane, number, sealed) in self.lanes.start() {
            self.start_put(lane, number, sealed);
        }
        self.remind(now);
        Ok(())
    }

    fn settle_chunk(&mut self) {
        if self
            .chunk
            .is_some_and(|number| self.lanes.is_settled(number))
        {
            self.chunk = None;
            self.tail.finish();
        }
    }

    fn start_put(&mut self, lane: usize, number: u64, sealed: Arc<Sealed>) {
        let uploader = self.receiver.uploader.clone();
        let roll_ups = self.receiver.roll_ups.get(lane).cloned();
        let put = self.jobs.spawn(async move {
            let begun = Instant::now();
            let stored = uploader.put_to(lane, &sealed).await;
            if let Ok(stored) = &stored {
                let already = *stored == Stored::Already;
                let (bytes, seconds) = (sealed.stored_size(), begun.elapsed().as_secs_f64());
                tracing::debug!(object = %sealed.key, lane, already, bytes, seconds, "stored");
                if let (Some(roll_ups), ObjectKey::Segment { name, .. }, Some(wal)) =
                    (roll_ups, &sealed.key, &sealed.descriptor.wal)
                {
                    roll_ups.stored(StoredSegment {
                        name: *name,
                        stored_size: sealed.stored_size(),
                        wal: wal.clone(),
                    });
                }
            }
            let stored = stored.map(drop);
            Ok(Done::Put {
                lane,
                number,
                stored,
            })
        });
        self.puts[lane] = Some(put);
    }

    fn give_up_put(&mut self, lane: usize) {
        if let Some(put) = self.puts[lane].take() {
            put.abort();
        }
    }

    fn finish(&mut self, done: Done) -> Result<()> {
        match done {
            Done::GivenUp => {}
            Done::Sealed {
                number,
                sealed,
                spare,
            } => {
                self.lanes.sealed(number, sealed);
                if self.spare.len() < SPARE_BUFFERS {
                    self.spare.push(spare);
                }
            }
            Done::Put {
                lane,
                number,
                stored: Ok(()),
            } => {
                self.lanes.stored(lane, number, Instant::now());
                self.settle_chunk();
            }
            Done::Put {
                lane,
                stored: Err(error),
                ..
            } => {
                self.lanes.refuse(lane, Instant::now());
                self.receiver.uploader.can_go_on(error)?;
                let lanes = 0..self.puts.len();
                let states = lanes.map(|lane| self.lanes.state(lane));
                if !states.into_iter().any(|state| state == LaneState::Live) {
                    // What is in flight is nowhere: the stream begins again where the others end.
                    return Err(Error::ConnectionLost {
                        during: "storing WAL in the last repository that was level".into(),
                        source: None,
                    });
                }
            }
        }
        Ok(())
    }

    fn name(&self, lane: usize) -> &str {
        self.receiver.uploader.repositories()[lane].name()
    }

    fn positions(&self) -> Positions {
        let ack = self.receiver.uploader.ack();
        let durable = self.lanes.durable();
        positions(
            ack,
            self.lanes.received(),
            durable,
            *self.receiver.sync.borrow(),
        )
    }

    /// Whether every repository that takes part has all that was received.
    fn is_level(&self) -> bool {
        let lanes = self.lanes.durable().enumerate();
        let live = lanes.filter(|(lane, _)| self.lanes.state(*lane) == LaneState::Live);
        live.into_iter()
            .all(|(_, durable)| durable == Some(self.lanes.received()))
    }

    /// The connection is lost, perhaps with the server: stores what it had sent before anything else is tried. Where the server lives, its slot
    /// keeps all of it anyway.
    async fn store_what_came(&mut self) -> Result<()> {
        let by = Instant::now() + RESCUE_DEADLINE;
        self.tail.ask();
        while !self.is_level() && Instant::now() < by {
            self.pump()?;
            let due = self.tail.due().filter(|_| self.may_start_chunk());
            let wait = [due, self.lanes.patience_ends()].into_iter().flatten();
            let until = wait.fold(by, Instant::min);
            let stop = &mut self.receiver.stop;
            let done = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                Some(done) = self.jobs.join_next() => finished(done)?,
                () = tokio::time::sleep_until(until.into()) => continue,
            };
            self.finish(done)?;
        }
        Ok(())
    }

    /// Tells the server where we are, if it asked, if more became durable, or if it has not heard of us for long.
    async fn answer(&mut self, connection: &mut Connection) -> Result<()> {
        let now = Instant::now();
        let positions = self.positions();
        let due = match self.told {
            None => true,
            Some((told, at)) => {
                let since = now.duration_since(at);
                let flushed = told.flush != positions.flush;
                flushed
                    || since >= STATUS_INTERVAL
                    || (self.reply_owed && (since >= REPLY_INTERVAL || told != positions))
            }
        };
        if due {
            self.tell(connection, positions).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, connection: &mut Connection, positions: Positions) -> Result<()> {
        let time = Timestamp::from_unix_micros(jiff::Timestamp::now().as_microsecond());
        let (write, flush) = (positions.write, positions.flush);
        let status = StatusUpdate {
            write,
            flush,
            apply: Lsn::INVALID,
            time,
            reply_requested: false,
        };
        connection.send_status(&status).await?;
        self.told = Some((positions, Instant::now()));
        self.reply_owed = false;
        Ok(())
    }

    async fn stop(&mut self, connection: &mut Connection, stored: bool) -> Result<StreamEnd> {
        let positions = self.positions();
        self.tell(connection, positions).await?;
        if stored {
            tracing::info!(stored_to = %positions.flush, "stopped, everything received is stored");
        } else {
            tracing::warn!(received_to = %self.lanes.received(), stored_to = %positions.flush,
                "stopped with WAL that is not stored yet: the server's slot keeps it");
        }
        Ok(StreamEnd::Stopped)
    }

    /// Waits until all of the ended timeline is durable, its last segment as `.partial`.
    async fn end_timeline(mut self, switch_point: Lsn) -> Result<()> {
        // The rest goes with the `.partial`.
        self.tail = TailSchedule::new(Duration::ZERO);
        if let Some(partial) = self.assembler.take_partial(self.decoder, switch_point)? {
            let tag = crc32fast::hash(&partial.plain);
            let key = ObjectKey::Partial {
                cluster: self.receiver.cluster,
                name: partial.name,
                tag,
            };
            let facts = Facts {
                key,
                pg_version: self.receiver.pg_version,
                wal: Some(partial.descriptor),
            };
            let covers = Covers::Segment(partial.number);
            let number = self.lanes.push(covers, Instant::now());
            self.seal(number, facts, partial.plain);
        }
        self.lanes.end(Instant::now());
        let mut leave_stragglers = None;
        loop {
            self.pump()?;
            let level = self.lanes.is_empty();
            if self.lanes.all_settled() {
                leave_stragglers.get_or_insert_with(|| Instant::now() + STRAGGLER_GRACE);
            }
            if level || leave_stragglers.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
            let wait = [leave_stragglers, self.lanes.patience_ends()]
                .into_iter()
                .flatten();
            let until = wait.fold(Instant::now() + STATUS_INTERVAL, Instant::min);
            let done = tokio::select! {
                done = self.jobs.join_next(), if !self.jobs.is_empty() => done,
                () = tokio::time::sleep_until(until.into()) => None,
                _ = self.receiver.stop.wait_for(|stop| *stop) => {
                    return Err(Error::Timeout { during: "storing the end of a timeline".into(), after: Duration::ZERO });
                }
            };
            if let Some(done) = done {
                self.finish(finished(done)?)?;
            }
        }
    }
}

/// How long bytes may wait.
fn interval(rpo: Rpo, sync: bool) -> Duration {
    match rpo {
        Rpo::Interval(interval) if !sync => interval,
        Rpo::Interval(_) | Rpo::Sync => Duration::ZERO,
    }
}

/// What became of a job.
fn finished(done: Result<Result<Done>, JoinError>) -> Result<Done> {
    match done {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only what a lane was storing when it was let go is ever cancelled.
        Err(_) => Ok(Done::GivenUp),
    }
}
