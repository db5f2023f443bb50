//! One timeline's bytes: from the connection through the assembler to durable objects, and the answers to the server.
//!
//! Owns the loop, its jobs and its clock. One task owns all state; dropping it at any await is as good as a crash.
//!
//! Objects are stored in the order of their WAL, so that wherever we are cut off, what is stored has no hole: a restore to `latest` must not
//! depend on our coming back to fill one. Only the sealing goes on beside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use repository::Stored;
use repository::key::ObjectKey;
use repository::sealed::Facts;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use wal_format::{DecoderConfig, Lsn, SegmentNumber, TimelineId, Timestamp};

use super::roll_up::{RollUps, StoredSegment};
use super::{OnInvalid, Receiver, ResumePoint, Rpo, StoredRecords, segments_in_flight};
use crate::assembler::{AssembledSegment, Assembler};
use crate::progress::{Positions, Progress};
use crate::replication::{Connection, StatusUpdate, StreamEvent};
use crate::tail::TailSchedule;
use crate::upload::{Uploader, error_text};
use crate::{Error, Result};

/// Longest time without a status update.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Least time between two answers that say the same: a server that shuts down asks in a loop.
const REPLY_INTERVAL: Duration = Duration::from_millis(10);
/// Time to flush the tail after we were asked to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(8);
/// Time to store what had arrived when the connection broke.
const RESCUE_DEADLINE: Duration = Duration::from_secs(30);
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

/// What a job made durable.
enum Done {
    Segment {
        number: SegmentNumber,
        spare: Vec<u8>,
    },
    Tail {
        segment: SegmentNumber,
        to: u32,
    },
}

enum Wake {
    Stop,
    Job(Result<Done>),
    Event(Result<StreamEvent>),
    Timer,
}

/// State of one timeline's stream.
pub(super) struct Streaming {
    receiver: Facets,
    decoder: DecoderConfig,
    assembler: Assembler,
    progress: Progress,
    tail: TailSchedule,
    jobs: JoinSet<Result<Done>>,
    segments_in_flight: usize,
    /// Answers once the last full segment is stored.
    last_segment: Option<oneshot::Receiver<()>>,
    spare: Vec<Vec<u8>>,
    /// What the server was told last, and when.
    told: Option<(Positions, Instant)>,
    reply_owed: bool,
    stop_by: Option<Instant>,
    reported_invalid: bool,
}

/// What the loop needs of the receiver.
struct Facets {
    uploader: Uploader,
    cluster: repository::key::ClusterId,
    writer: u32,
    pg_version: u16,
    sync: bool,
    on_invalid: OnInvalid,
    first_invalid: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
    roll_ups: Option<RollUps>,
    max_in_flight: usize,
    /// Whether the socket stays unread.
    is_paused: Arc<AtomicBool>,
}

impl Streaming {
    pub(super) fn new(
        receiver: &Receiver,
        decoder: DecoderConfig,
        point: ResumePoint,
        lineage: String,
        stored: StoredRecords,
        sync: bool,
    ) -> Result<Self> {
        let mut assembler = Assembler::new(decoder, point.timeline, lineage, point.start)?;
        assembler.expect(stored.records, stored.previous);
        let interval = match receiver.config.rpo {
            Rpo::Interval(interval) if !sync => interval,
            Rpo::Interval(_) | Rpo::Sync => Duration::ZERO,
        };
        Ok(Self {
            receiver: Facets {
                uploader: receiver.uploader.clone(),
                cluster: receiver.cluster,
                writer: receiver.writer,
                pg_version: decoder
                    .major
                    .map_or(0, |major| u16::try_from(major.number()).unwrap_or(0)),
                sync,
                on_invalid: receiver.config.on_invalid,
                first_invalid: Arc::clone(&receiver.first_invalid),
                stop: receiver.stop.clone(),
                roll_ups: receiver.roll_ups.clone(),
                max_in_flight: segments_in_flight(receiver.size),
                is_paused: Arc::clone(&receiver.is_paused),
            },
            decoder,
            assembler,
            progress: Progress::new(receiver.size, point.start),
            tail: TailSchedule::new(interval),
            jobs: JoinSet::new(),
            segments_in_flight: 0,
            last_segment: None,
            spare: Vec::new(),
            told: None,
            reply_owed: false,
            stop_by: None,
            reported_invalid: false,
        })
    }

    pub(super) async fn run(mut self, connection: &mut Connection) -> Result<StreamEnd> {
        loop {
            self.start_tail_chunk()?;
            self.answer(connection).await?;
            if let Some(by) = self.stop_by {
                let stored = self.progress.durable() == self.progress.received();
                if stored || Instant::now() >= by {
                    return self.stop(connection, stored).await;
                }
            }
            match self.wait(connection).await {
                Wake::Stop => {
                    tracing::info!("stopping: storing what has arrived");
                    self.tail.ask();
                    self.stop_by = Some(Instant::now() + STOP_DEADLINE);
                }
                Wake::Timer => {}
                Wake::Job(done) => self.finish(done?),
                Wake::Event(Err(error)) => {
                    self.store_received().await;
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
        let may_read = !stopping && self.segments_in_flight < self.receiver.max_in_flight;
        self.receiver.is_paused.store(!may_read, Ordering::Relaxed);
        let stop = &mut self.receiver.stop;
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop), if !stopping => Wake::Stop,
            Some(done) = self.jobs.join_next() => Wake::Job(match done {
                Ok(done) => done,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(error) => Err(Error::Protocol { during: "storing WAL".into(), reason: error.to_string() }),
            }),
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
        let tail = self.tail.due().filter(|_| self.segments_in_flight == 0);
        [tail, self.stop_by]
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
        self.progress.receive(self.assembler.position());
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
        let uploader = self.receiver.uploader.clone();
        let facts = self.facts(key, &segment);
        let number = segment.number;
        let roll_ups = self.receiver.roll_ups.clone();
        self.segments_in_flight += 1;
        let (is_stored, last_segment) = oneshot::channel();
        let before = self.last_segment.replace(last_segment);
        self.jobs.spawn(async move {
            let (sealed, spare) = uploader.seal(facts, segment.plain).await?;
            wait_for_turn(before).await;
            let stored = uploader.put(&sealed).await?;
            // Nobody waits if no segment follows yet.
            is_stored.send(()).unwrap_or_default();
            tracing::debug!(segment = %segment.name, already = stored == Stored::Already, bytes = sealed.stored_size(), "segment stored");
            if let Some(roll_ups) = roll_ups {
                roll_ups.stored(StoredSegment {
                    name: segment.name,
                    stored_size: sealed.stored_size(),
                    wal: segment.descriptor,
                });
            }
            Ok(Done::Segment { number, spare })
        });
    }

    fn facts(&self, key: ObjectKey, segment: &AssembledSegment) -> Facts {
        Facts {
            key,
            pg_version: self.receiver.pg_version,
            wal: Some(segment.descriptor.clone()),
        }
    }

    /// Seals the tail chunk that is due, if one is, and starts to store it. Sealing happens here: the bytes are in the open segment's
    /// buffer, a copy of them would cost as much.
    fn start_tail_chunk(&mut self) -> Result<()> {
        // It could not be reported before those are stored.
        if self.segments_in_flight > 0 {
            return Ok(());
        }
        let Some(range) = self.tail.take(self.assembler.offset(), Instant::now()) else {
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
        let uploader = self.receiver.uploader.clone();
        let sealed = tokio::task::block_in_place(|| uploader.seal_here(facts, plain))?;
        self.jobs.spawn(async move {
            uploader.put(&sealed).await?;
            tracing::debug!(chunk = %sealed.key, bytes = sealed.stored_size(), "tail chunk stored");
            Ok(Done::Tail { segment, to })
        });
        Ok(())
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Segment { number, spare } => {
                self.segments_in_flight -= 1;
                self.progress.seal(number);
                if self.spare.len() < SPARE_BUFFERS {
                    self.spare.push(spare);
                }
            }
            Done::Tail { segment, to } => {
                self.tail.finish();
                self.progress.store_tail(segment, to);
            }
        }
    }

    /// Tells the server where we are, if it asked, if more became durable, or if it has not heard of us for long.
    async fn answer(&mut self, connection: &mut Connection) -> Result<()> {
        let now = Instant::now();
        let positions = self.progress.positions(self.receiver.sync);
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
        let positions = self.progress.positions(self.receiver.sync);
        self.tell(connection, positions).await?;
        if stored {
            tracing::info!(stored_to = %positions.flush, "stopped, everything received is stored");
        } else {
            tracing::warn!(received_to = %self.progress.received(), stored_to = %positions.flush,
                "stopped with WAL that is not stored yet: the server's slot keeps it");
        }
        Ok(StreamEnd::Stopped)
    }

    /// After the connection broke: stores what has arrived. The server may not have it any more when we come back, as when it ended the connection
    /// because it gave the slot up; and a session that begins at what is stored must not take for lost what was only in flight.
    async fn store_received(&mut self) {
        let mut stop = self.receiver.stop.clone();
        let patience = async {
            tokio::select! {
                () = tokio::time::sleep(RESCUE_DEADLINE) => {}
                _ = stop.wait_for(|stop| *stop) => tokio::time::sleep(STOP_DEADLINE).await,
            }
        };
        let stored = tokio::select! {
            stored = self.finish_jobs() => stored,
            () = patience => return,
        };
        if let Err(error) = stored {
            tracing::warn!(
                error = error_text(&error),
                "what arrived before the connection broke is not stored; it is asked for again"
            );
        }
    }

    async fn finish_jobs(&mut self) -> Result<()> {
        loop {
            self.tail.ask();
            self.start_tail_chunk()?;
            match (self.jobs.join_next().await, self.tail.due()) {
                (Some(Ok(done)), _) => self.finish(done?),
                (Some(Err(error)), _) => {
                    return Err(Error::Protocol {
                        during: "storing WAL".into(),
                        reason: error.to_string(),
                    });
                }
                (None, Some(due)) => tokio::time::sleep_until(due.into()).await,
                (None, None) => return Ok(()),
            }
        }
    }

    /// Waits until all of the ended timeline is durable, its last segment as `.partial`.
    async fn end_timeline(mut self, switch_point: Lsn) -> Result<()> {
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
            let uploader = self.receiver.uploader.clone();
            let number = partial.number;
            let before = self.last_segment.take();
            self.jobs.spawn(async move {
                let (sealed, spare) = uploader.seal(facts, partial.plain).await?;
                wait_for_turn(before).await;
                uploader.put(&sealed).await?;
                Ok(Done::Segment { number, spare })
            });
        }
        while let Some(done) = tokio::select! {
            done = self.jobs.join_next() => done,
            _ = self.receiver.stop.wait_for(|stop| *stop) => {
                return Err(Error::Timeout { during: "storing the end of a timeline".into(), after: Duration::ZERO });
            }
        } {
            match done {
                Ok(done) => drop(done?),
                Err(error) => {
                    return Err(Error::Protocol {
                        during: "storing WAL".into(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Until the segment before is stored. If that fails its error ends the stream, and with it all who wait here.
async fn wait_for_turn(before: Option<oneshot::Receiver<()>>) {
    if let Some(before) = before
        && before.await.is_err()
    {
        std::future::pending::<()>().await;
    }
}
