//! What may come when while WAL streams, as a state machine without sockets or clock: CopyBoth, the end of a timeline, shutdown, errors.
//! Measured on PostgreSQL 15 and 18: at the end of a historic timeline the server sends CopyDone, waits for ours, then sends one row (next
//! timeline, switch point), two CommandCompletes and ReadyForQuery; asked to start exactly there it sends the row at once, without CopyBoth.
//! A server that shuts down sends CommandComplete without CopyDone and closes.

use super::framing::{Incoming, parse_server_error};
use super::message::{Keepalive, ReplicationMessage, WalData};
use super::query::{parse_row, text_at};
use crate::error::ServerError;
use postgres_protocol::message::backend::Message;
use wal_format::{Lsn, TimelineId};

/// What streaming yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// WAL.
    Wal(WalData),
    /// A sign of life; answer at once if it asks for a reply.
    Keepalive(Keepalive),
    /// The timeline ends here, on this server; the connection is idle again.
    TimelineEnded {
        /// The timeline that continues.
        next_timeline: TimelineId,
        /// Where it begins; may be *before* the last byte received.
        switch_point: Lsn,
    },
    /// The server has shut down in an orderly way, and everything it had was reported flushed. The connection is closed.
    ServerShutdown,
}

/// What the connection has to do after a message.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing.
    Ignore,
    /// Streaming has begun.
    Started,
    /// Pass this on.
    Event(StreamEvent),
    /// Send CopyDone.
    AnswerCopyDone,
    /// The server said this, and may say that it is ready next.
    Failed(ServerError),
    /// Streaming is over and the server is ready for the next command; the error it gave, if it gave one.
    Ended(Result<StreamEvent, ServerError>),
    /// This message has no place here.
    Violation(String),
}

#[derive(Debug, Default)]
enum Phase {
    /// The command was sent.
    #[default]
    Requested,
    /// WAL flows.
    Copying,
    /// Results after the end of a timeline.
    Ending,
    /// An error came.
    Failed(ServerError),
    /// Nothing more is expected.
    Closed,
}

/// See the file's comment.
#[derive(Debug, Default)]
pub(super) struct StreamSession {
    phase: Phase,
    next: Option<(TimelineId, Lsn)>,
}

impl StreamSession {
    /// The error that ended it, for when the connection breaks before the server says it is ready.
    pub(super) fn take_error(&mut self) -> Option<ServerError> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Failed(error) => Some(error),
            _ => None,
        }
    }

    /// Takes the next message of the server, notices and parameters left out.
    pub(super) fn on_message(&mut self, message: Incoming) -> Step {
        let message = match message {
            Incoming::CopyBoth => return self.on_copy_both(),
            Incoming::Message(message) => message,
        };
        match (&self.phase, message) {
            (Phase::Copying, Message::CopyData(body)) => {
                match ReplicationMessage::parse(body.into_bytes()) {
                    Ok(ReplicationMessage::WalData(data)) => Step::Event(StreamEvent::Wal(data)),
                    Ok(ReplicationMessage::Keepalive(keepalive)) => {
                        Step::Event(StreamEvent::Keepalive(keepalive))
                    }
                    Err(error) => Step::Violation(error.to_string()),
                }
            }
            (Phase::Copying, Message::CopyDone) => {
                self.phase = Phase::Ending;
                Step::AnswerCopyDone
            }
            (Phase::Copying, Message::CommandComplete(_)) => {
                self.phase = Phase::Closed;
                Step::Event(StreamEvent::ServerShutdown)
            }
            (Phase::Requested, Message::RowDescription(_)) => {
                self.phase = Phase::Ending;
                Step::Ignore
            }
            (Phase::Ending, Message::RowDescription(_) | Message::CommandComplete(_)) => {
                Step::Ignore
            }
            (Phase::Ending, Message::DataRow(body)) => match parse_next_timeline(&body) {
                Some(next) if self.next.is_none() => {
                    self.next = Some(next);
                    Step::Ignore
                }
                _ => Step::Violation("the row about the next timeline makes no sense".to_owned()),
            },
            (Phase::Ending, Message::ReadyForQuery(_)) => match self.next {
                Some((next_timeline, switch_point)) => {
                    self.phase = Phase::Closed;
                    Step::Ended(Ok(StreamEvent::TimelineEnded {
                        next_timeline,
                        switch_point,
                    }))
                }
                None => Step::Violation("the timeline ended without naming the next".to_owned()),
            },
            (Phase::Requested | Phase::Copying | Phase::Ending, Message::ErrorResponse(body)) => {
                let error = parse_server_error(body.fields());
                self.phase = Phase::Failed(error.clone());
                Step::Failed(error)
            }
            (Phase::Failed(error), Message::ReadyForQuery(_)) => Step::Ended(Err(error.clone())),
            (Phase::Failed(_), _) => Step::Ignore,
            _ => Step::Violation("a message that has no place here".to_owned()),
        }
    }

    fn on_copy_both(&mut self) -> Step {
        match self.phase {
            Phase::Requested => {
                self.phase = Phase::Copying;
                Step::Started
            }
            _ => Step::Violation("CopyBoth twice".to_owned()),
        }
    }
}

/// `next_tli int8, next_tli_startpos text`.
fn parse_next_timeline(
    body: &postgres_protocol::message::backend::DataRowBody,
) -> Option<(TimelineId, Lsn)> {
    let row = parse_row(body).ok()?;
    let timeline = TimelineId::new(text_at(&row, 0)?.parse().ok()?)?;
    Some((timeline, text_at(&row, 1)?.parse().ok()?))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
