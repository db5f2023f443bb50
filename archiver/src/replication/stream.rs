//! Streaming WAL on a connection: START_REPLICATION, events in, status updates out. The order of messages is `session`'s business.

use super::commands::{SlotName, quote_slot};
use super::connection::{Connection, State, lost, protocol, within};
use super::framing::Incoming;
use super::message::StatusUpdate;
use super::session::{Step, StreamEvent, StreamSession};
use crate::error::{Error, Result, ServerError};
use postgres_protocol::message::frontend;
use std::time::Duration;
use tokio::time::Instant;
use wal_format::{Lsn, TimelineId, Timestamp};

const DURING: &str = "stream WAL";
/// Shortest wait, so that bytes that are already there are always seen before a deadline counts.
const MIN_WAIT: Duration = Duration::from_millis(10);

/// How streaming began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// WAL will come. An error about the start position may still be the first thing that does.
    Streaming,
    /// The timeline ends exactly at the start position; the connection is idle.
    TimelineEnded {
        /// The timeline that continues.
        next_timeline: TimelineId,
        /// Where it begins.
        switch_point: Lsn,
    },
}

impl Connection {
    /// Asks for WAL from `start` on `timeline`, keeping it with a slot if one is named.
    ///
    /// Not cancel-safe: a connection on which this was dropped half-way refuses further commands.
    ///
    /// # Errors
    /// `Server`: `NotInHistory`, `WalRemoved`, `SlotInUse`, `SlotMissing`, …; the connection stays usable. `InvalidName`, `WrongState`.
    pub async fn start_replication(
        &mut self,
        slot: Option<&str>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<Started> {
        let slot = match slot {
            Some(name) => format!("SLOT {} ", quote_slot(SlotName::new(name)?)),
            None => String::new(),
        };
        let command = format!(
            "START_REPLICATION {slot}PHYSICAL {start} TIMELINE {}",
            timeline.get()
        );
        self.send_query("START_REPLICATION", &command).await?;
        self.stream = StreamSession::default();
        self.last_status = None;
        self.pinged = None;
        loop {
            let deadline = self.deadlines.reply;
            let message = self.receive("START_REPLICATION", deadline).await?;
            match self.stream.on_message(message) {
                Step::Ignore => {}
                Step::Started => {
                    self.state = State::Streaming;
                    self.last_heard = Instant::now();
                    return Ok(Started::Streaming);
                }
                Step::Ended(Ok(StreamEvent::TimelineEnded {
                    next_timeline,
                    switch_point,
                })) => {
                    self.state = State::Ready;
                    return Ok(Started::TimelineEnded {
                        next_timeline,
                        switch_point,
                    });
                }
                Step::Failed(error) => return Err(self.fail("START_REPLICATION", error).await),
                Step::Violation(reason) => return Err(self.violation(reason)),
                Step::Event(_) | Step::AnswerCopyDone | Step::Ended(_) => {
                    return Err(self.unexpected("START_REPLICATION"));
                }
            }
        }
    }

    /// The next event of the stream.
    ///
    /// Cancel-safe: in a `select!` loop, dropping this and calling it again loses nothing, and it also sends what an earlier,
    /// dropped [`Connection::send_status`] left behind. WAL data are slices of the read buffer: copy them if they are to live long.
    ///
    /// After `silence / 2` without a byte the last status is repeated with a request for a reply; when none comes within as long again, it is
    /// a `Timeout`. Time in which nobody called this, because more could not be held, is no silence of the server.
    ///
    /// # Errors
    /// `Server` (`AheadOfFlush`, `WalRemoved`, `ShuttingDown`, …), `ConnectionLost`, `Timeout`, `Protocol`; `WrongState` unless streaming.
    pub async fn next_message(&mut self) -> Result<StreamEvent> {
        self.expect_state(DURING, State::Streaming)?;
        loop {
            if self.framed.has_unsent() {
                self.flush(DURING).await?;
            }
            match self.take_buffered(DURING)? {
                Some(message) => {
                    if let Some(event) = self.on_stream_message(message)? {
                        return Ok(event);
                    }
                }
                None => self.wait_for_bytes().await?,
            }
        }
    }

    /// Tells the server how far we are. Everything in it is *last byte + 1*.
    ///
    /// Cancel-safe: the update is queued at once, and sent by this or any later call.
    ///
    /// # Errors
    /// `ConnectionLost`, `Timeout`; `WrongState` unless streaming.
    pub async fn send_status(&mut self, status: &StatusUpdate) -> Result<()> {
        self.expect_state(DURING, State::Streaming)?;
        self.last_status = Some(*status);
        let flush = status.flush.as_u64();
        self.reported
            .store(flush, std::sync::atomic::Ordering::Relaxed);
        self.queue(DURING, |out| {
            status.encode(out);
            Ok(())
        })?;
        self.flush(DURING).await
    }

    fn on_stream_message(&mut self, message: Incoming) -> Result<Option<StreamEvent>> {
        match self.stream.on_message(message) {
            Step::Event(StreamEvent::ServerShutdown) => {
                self.state = State::Closed;
                Ok(Some(StreamEvent::ServerShutdown))
            }
            Step::Event(event) => Ok(Some(event)),
            Step::AnswerCopyDone => {
                self.queue(DURING, |out| {
                    frontend::copy_done(out);
                    Ok(())
                })?;
                Ok(None)
            }
            Step::Ended(Ok(event)) => {
                self.state = State::Ready;
                Ok(Some(event))
            }
            Step::Ended(Err(error)) => {
                self.state = State::Ready;
                Err(refused(error))
            }
            // The server says next whether it is ready again, or closes the connection.
            Step::Failed(_) | Step::Ignore => Ok(None),
            Step::Violation(reason) => Err(self.violation(reason)),
            Step::Started => Err(self.unexpected(DURING)),
        }
    }

    async fn wait_for_bytes(&mut self) -> Result<()> {
        let silence = self.deadlines.silence;
        let since = self.pinged.unwrap_or(self.last_heard);
        let wait = (silence / 2).saturating_sub(since.elapsed()).max(MIN_WAIT);
        match within(DURING, wait, self.framed.fill()).await {
            Ok(0) => Err(self.broken(lost(DURING, None))),
            Ok(_) => {
                self.last_heard = Instant::now();
                self.pinged = None;
                Ok(())
            }
            Err(Error::Timeout { .. }) if self.pinged.is_none() => {
                self.pinged = Some(Instant::now());
                self.queue_ping()
            }
            Err(Error::Timeout { during, .. }) => {
                let after = silence;
                Err(self.broken(Error::Timeout { during, after }))
            }
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Repeats what was last reported; zeros say nothing.
    fn queue_ping(&mut self) -> Result<()> {
        let nothing = StatusUpdate {
            write: Lsn::INVALID,
            flush: Lsn::INVALID,
            apply: Lsn::INVALID,
            time: Timestamp(0),
            reply_requested: true,
        };
        let mut status = self.last_status.unwrap_or(nothing);
        status.reply_requested = true;
        self.queue(DURING, |out| {
            status.encode(out);
            Ok(())
        })
    }

    /// The connection is gone; if the server gave a reason before, that is the error.
    fn broken(&mut self, error: Error) -> Error {
        self.state = State::Closed;
        self.stream.take_error().map_or(error, refused)
    }

    fn violation(&mut self, reason: String) -> Error {
        self.state = State::Closed;
        protocol(DURING, reason)
    }
}

fn refused(error: ServerError) -> Error {
    Error::Server {
        during: DURING.to_owned(),
        source: Box::new(error),
    }
}
