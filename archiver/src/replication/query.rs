//! The simple query protocol: one string of SQL or one replication command in, rows of text out, within bounds.

use super::connection::{Connection, State, protocol};
use crate::error::{Error, Result};
use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use std::io;

/// Most rows of one answer.
const MAX_ROWS: usize = 1_000_000;
/// Most bytes of one answer.
const MAX_RESULT_BYTES: usize = 64 * 1024 * 1024;
/// Most statements in one string.
const MAX_COMMAND_TAGS: usize = 1000;

/// Values of one row as the server sent them; `None` is NULL.
pub type Row = Vec<Option<Bytes>>;

/// The answer to a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryResult {
    /// Names of the columns of the last statement that returns rows.
    pub columns: Vec<String>,
    /// Its rows.
    pub rows: Vec<Row>,
    /// One tag for each statement, for example `SELECT 1`.
    pub command_tags: Vec<String>,
}

impl QueryResult {
    /// A value as text; `None` if it is NULL, not UTF-8, or there is no such row or column.
    pub fn text(&self, row: usize, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|name| name == column)?;
        text_at(self.rows.get(row)?, index)
    }
}

impl Connection {
    /// Runs SQL, or a replication command that answers with rows.
    ///
    /// Not cancel-safe: a connection on which this was dropped half-way refuses further commands.
    ///
    /// # Errors
    /// `Server` (the connection stays usable unless the error was fatal), `Timeout`, `ConnectionLost`; `Protocol` for an answer of more
    /// than a million rows or 64 MiB.
    pub async fn simple_query(&mut self, sql: &str) -> Result<QueryResult> {
        self.query_named("query", sql).await
    }

    /// As [`Connection::simple_query`], with a name for errors.
    pub(super) async fn query_named(&mut self, during: &str, sql: &str) -> Result<QueryResult> {
        self.send_query(during, sql).await?;
        let mut result = QueryResult::default();
        let mut bytes = 0usize;
        loop {
            match self.receive_reply(during).await? {
                Message::RowDescription(body) => {
                    let fields = body.fields().map(|field| Ok(field.name().to_owned()));
                    result.columns = self.valid(during, fields.collect())?;
                    result.rows.clear();
                    bytes = 0;
                }
                Message::DataRow(body) => {
                    bytes = bytes.saturating_add(body.buffer().len());
                    if result.rows.len() >= MAX_ROWS || bytes > MAX_RESULT_BYTES {
                        self.state = State::Closed;
                        return Err(protocol(during, "the answer is too large".to_owned()));
                    }
                    // Copied: a small answer must not keep the read buffer allocated.
                    let row = self.valid(during, parse_row(&body))?;
                    let copy = |value: Bytes| Bytes::copy_from_slice(&value);
                    result
                        .rows
                        .push(row.into_iter().map(|value| value.map(copy)).collect());
                }
                Message::CommandComplete(body) if result.command_tags.len() < MAX_COMMAND_TAGS => {
                    let tag = self.valid(during, body.tag().map(str::to_owned))?;
                    result.command_tags.push(tag);
                }
                Message::EmptyQueryResponse => {}
                Message::ReadyForQuery(_) => {
                    self.state = State::Ready;
                    return Ok(result);
                }
                _ => return Err(self.unexpected(during)),
            }
        }
    }

    fn valid<T>(&mut self, during: &str, parsed: io::Result<T>) -> Result<T> {
        parsed.map_err(|error| {
            self.state = State::Closed;
            protocol(during, error.to_string())
        })
    }
}

/// The values of a row, as slices of the message.
pub(super) fn parse_row(body: &DataRowBody) -> io::Result<Row> {
    let buffer = body.buffer_bytes();
    body.ranges()
        .map(|range| match range {
            None => Ok(None),
            Some(range) if range.start <= range.end && range.end <= buffer.len() => {
                Ok(Some(buffer.slice(range)))
            }
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
        })
        .collect()
}

pub(super) fn text_at(row: &Row, column: usize) -> Option<&str> {
    let value = row.get(column)?.as_ref()?;
    std::str::from_utf8(value).ok()
}

/// A value the answer must hold.
pub(super) fn required<T>(during: &str, column: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| protocol(during, format!("the answer has no usable {column}")))
}
