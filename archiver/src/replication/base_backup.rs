//! BASE_BACKUP as PostgreSQL 15 and later send it: a header, one CopyOut with every archive and the manifest, a footer.
//! Does not read the archives nor the manifest, and stores nothing.
//!
//! Order measured on 15 to 18: row (start LSN, timeline); rows (tablespace OID, location, size in KiB; the data directory last, with NULLs);
//! CopyOut; CopyData …; CopyDone; row (stop LSN, timeline); ReadyForQuery. Bad page checksums come as an error *after* all data.

use super::connection::{Connection, State, lost, protocol};
use super::framing::{Incoming, parse_server_error};
use super::message::BackupMessage;
use super::query::{QueryResult, parse_row, required, text_at};
use crate::error::{Error, Result, ServerError};
use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use std::fmt::Write;
use wal_format::{Lsn, TimelineId};

const DURING: &str = "BASE_BACKUP";
/// Longest backup label, in bytes (`MAXPGPATH` - 1).
const MAX_LABEL_BYTES: usize = 1023;
/// Rates in KiB/s that the server accepts.
const MAX_RATE_RANGE: std::ops::RangeInclusive<u32> = 32..=1024 * 1024;
/// Most tablespaces of a cluster.
const MAX_TABLESPACES: usize = 65_536;

/// The checksums in the backup manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestChecksums {
    /// No checksum of files.
    None,
    /// CRC-32C; PostgreSQL's default.
    Crc32c,
    /// SHA-256.
    Sha256,
}

/// What to ask for. The archives always contain `tablespace_map`, never WAL, and are not compressed by the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Written into `backup_label`. At most 1023 bytes, no control characters.
    pub label: String,
    /// Checkpoint at once, instead of spread over `checkpoint_completion_target`.
    pub fast_checkpoint: bool,
    /// The server waits at the end until the WAL it needs is archived by *its* `archive_command`.
    pub wait: bool,
    /// Send a backup manifest, with these checksums.
    pub manifest: Option<ManifestChecksums>,
    /// Sizes in the header and progress messages; the server walks its files once for it.
    pub progress: bool,
    /// KiB/s, 32 to 1048576.
    pub max_rate: Option<u32>,
    /// The server verifies page checksums, if the cluster has them.
    pub verify_checksums: bool,
}

impl BaseBackupOptions {
    /// What Walden asks for unless told otherwise: fast checkpoint, no waiting, CRC-32C manifest, progress, checksums verified.
    pub fn new(label: impl Into<String>) -> BaseBackupOptions {
        BaseBackupOptions {
            label: label.into(),
            fast_checkpoint: true,
            wait: false,
            manifest: Some(ManifestChecksums::Crc32c),
            progress: true,
            max_rate: None,
            verify_checksums: true,
        }
    }

    fn command(&self) -> Result<String> {
        let invalid = |reason| Error::InvalidName {
            what: "backup label",
            name: self.label.clone(),
            reason,
        };
        if self.label.len() > MAX_LABEL_BYTES {
            return Err(invalid("it is longer than 1023 bytes"));
        }
        if self.label.chars().any(char::is_control) {
            return Err(invalid("it holds a control character"));
        }
        let mut command = format!(
            "BASE_BACKUP (LABEL '{}', CHECKPOINT '{}', WAIT {}, TABLESPACE_MAP true, VERIFY_CHECKSUMS {}",
            self.label.replace('\'', "''"),
            if self.fast_checkpoint {
                "fast"
            } else {
                "spread"
            },
            self.wait,
            self.verify_checksums
        );
        if self.progress {
            command.push_str(", PROGRESS true");
        }
        if let Some(checksums) = self.manifest {
            let name = match checksums {
                ManifestChecksums::None => "NONE",
                ManifestChecksums::Crc32c => "CRC32C",
                ManifestChecksums::Sha256 => "SHA256",
            };
            command.push_str(", MANIFEST 'yes', MANIFEST_CHECKSUMS '");
            command.push_str(name);
            command.push('\'');
        }
        if let Some(rate) = self.max_rate {
            if !MAX_RATE_RANGE.contains(&rate) {
                return Err(Error::ConnectionSettings {
                    reason: format!("backup rate {rate} KiB/s: the server accepts 32 to 1048576"),
                });
            }
            write!(command, ", MAX_RATE {rate}").ok();
        }
        command.push(')');
        Ok(command)
    }
}

/// A tablespace outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID; its archive is `<oid>.tar`.
    pub oid: u32,
    /// Where it lies on the server.
    pub location: String,
    /// Estimated size in KiB; none without `progress`.
    pub size_kib: Option<u64>,
}

/// What comes out of a base backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseBackupEvent {
    /// An archive begins; data that follow are its bytes.
    ArchiveStart {
        /// `base.tar` or `<oid>.tar`. Comes from the server: not to be trusted as a path.
        name: String,
        /// Where the tablespace lies on the server; empty for the data directory.
        tablespace_path: String,
    },
    /// The backup manifest begins; data that follow are its bytes.
    ManifestStart,
    /// Bytes of what began last: a slice of the read buffer, which stays allocated while this lives.
    Data(Bytes),
    /// Bytes of the whole backup done so far, as the server counts.
    Progress(u64),
    /// The backup is complete; the connection is idle.
    End {
        /// WAL is needed up to here.
        stop_lsn: Lsn,
        /// The timeline of that position.
        timeline: TimelineId,
    },
}

/// A base backup in progress. Dropping it before `End` leaves the connection unusable: cancel with its token, then close it.
pub struct BaseBackup<'a> {
    connection: &'a mut Connection,
    /// Where recovery begins.
    pub start_lsn: Lsn,
    /// The timeline of the start.
    pub timeline: TimelineId,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Estimated size in KiB of the data directory without them; none without `progress`.
    pub data_directory_size_kib: Option<u64>,
    phase: Phase,
    stop: Option<(Lsn, TimelineId)>,
    failure: Option<ServerError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// CopyOut, nothing begun.
    Opened,
    /// CopyOut, an archive or the manifest begun.
    Within,
    /// After CopyDone.
    Footer,
    /// Nothing more will come.
    Done,
}

impl Connection {
    /// Starts a base backup and returns once the server has made its checkpoint.
    ///
    /// Not cancel-safe: if dropped, cancel with the token and close the connection.
    ///
    /// # Errors
    /// `UnsupportedServer` for majors other than 15 to 18; `Server`, `InvalidName`, `Timeout`, `ConnectionLost`.
    pub async fn base_backup(&mut self, options: &BaseBackupOptions) -> Result<BaseBackup<'_>> {
        self.require_supported()?;
        let command = options.command()?;
        self.send_query(DURING, &command).await?;
        let start = self.header_result().await?;
        let start_lsn = start.text(0, "recptr").and_then(|text| text.parse().ok());
        let timeline = start
            .text(0, "tli")
            .and_then(|text| TimelineId::new(text.parse().ok()?));
        let (mut tablespaces, mut data_directory_size_kib) = (Vec::new(), None);
        let rows = self.header_result().await?;
        for row in 0..rows.rows.len() {
            let size_kib = rows.text(row, "size").and_then(|text| text.parse().ok());
            match rows.text(row, "spcoid") {
                None => data_directory_size_kib = size_kib,
                Some(oid) => tablespaces.push(Tablespace {
                    oid: required(DURING, "tablespace OID", oid.parse().ok())?,
                    location: required(DURING, "location", rows.text(row, "spclocation"))?
                        .to_owned(),
                    size_kib,
                }),
            }
        }
        match self.receive_header().await? {
            Message::CopyOutResponse(_) => self.state = State::BackingUp,
            _ => return Err(self.unexpected(DURING)),
        }
        Ok(BaseBackup {
            start_lsn: required(DURING, "start LSN", start_lsn)?,
            timeline: required(DURING, "timeline", timeline)?,
            tablespaces,
            data_directory_size_kib,
            phase: Phase::Opened,
            stop: None,
            failure: None,
            connection: self,
        })
    }

    /// One result set of the header.
    async fn header_result(&mut self) -> Result<QueryResult> {
        let mut result = QueryResult::default();
        loop {
            match self.receive_header().await? {
                Message::RowDescription(body) => {
                    let names = body.fields().map(|field| Ok(field.name().to_owned()));
                    result.columns = names
                        .collect()
                        .map_err(|error| protocol(DURING, error.to_string()))?;
                }
                Message::DataRow(body) if result.rows.len() <= MAX_TABLESPACES => {
                    let row =
                        parse_row(&body).map_err(|error| protocol(DURING, error.to_string()))?;
                    result.rows.push(row);
                }
                Message::CommandComplete(_) => return Ok(result),
                _ => return Err(self.unexpected(DURING)),
            }
        }
    }

    /// The server is silent until its checkpoint is done and its files are measured.
    async fn receive_header(&mut self) -> Result<Message> {
        let deadline = self.deadlines.base_backup_start;
        match self.receive(DURING, deadline).await? {
            Incoming::Message(Message::ErrorResponse(body)) => {
                let error = parse_server_error(body.fields());
                Err(self.fail(DURING, error).await)
            }
            Incoming::Message(message) => Ok(message),
            Incoming::CopyBoth => Err(self.unexpected(DURING)),
        }
    }
}

impl BaseBackup<'_> {
    /// The next event. Cancel-safe: dropping this and calling it again loses nothing.
    ///
    /// # Errors
    /// `Server`: `DataCorrupted` for bad page checksums (all data have come by then), `Cancelled`, …. `ConnectionLost`, `Timeout`,
    /// `Protocol`; `WrongState` after `End` or an error.
    pub async fn next(&mut self) -> Result<BaseBackupEvent> {
        self.connection.expect_state(DURING, State::BackingUp)?;
        loop {
            let deadline = match self.phase {
                Phase::Opened | Phase::Within => self.connection.deadlines.base_backup_data,
                // The server may wait for its archiver here.
                Phase::Footer | Phase::Done => self.connection.deadlines.base_backup_start,
            };
            let message = match self.connection.receive(DURING, deadline).await {
                Ok(Incoming::Message(message)) => message,
                Ok(Incoming::CopyBoth) => return Err(self.connection.unexpected(DURING)),
                // What the server said before it closed is the reason.
                Err(error) => return Err(self.failure.take().map_or(error, refused)),
            };
            if let Some(event) = self.on_message(message)? {
                return Ok(event);
            }
        }
    }

    fn on_message(&mut self, message: Message) -> Result<Option<BaseBackupEvent>> {
        match (self.phase, message) {
            (_, Message::ErrorResponse(body)) => {
                self.failure = Some(parse_server_error(body.fields()));
                self.phase = Phase::Done;
                Ok(None)
            }
            (Phase::Done, Message::ReadyForQuery(_)) => {
                self.connection.state = State::Ready;
                Err(self
                    .failure
                    .take()
                    .map_or_else(|| lost(DURING, None), refused))
            }
            (Phase::Done, _) => Ok(None),
            (Phase::Opened | Phase::Within, Message::CopyData(body)) => {
                let message = BackupMessage::parse(body.into_bytes())
                    .map_err(|error| self.violation(error.to_string()))?;
                self.on_copy_data(message).map(Some)
            }
            (Phase::Opened | Phase::Within, Message::CopyDone) => {
                self.phase = Phase::Footer;
                Ok(None)
            }
            (Phase::Footer, Message::RowDescription(_) | Message::CommandComplete(_)) => Ok(None),
            (Phase::Footer, Message::DataRow(body)) => {
                self.stop = parse_stop(&body);
                Ok(None)
            }
            (Phase::Footer, Message::ReadyForQuery(_)) => match self.stop {
                Some((stop_lsn, timeline)) => {
                    self.phase = Phase::Done;
                    self.connection.state = State::Ready;
                    Ok(Some(BaseBackupEvent::End { stop_lsn, timeline }))
                }
                None => Err(self.violation("the backup ended without a stop LSN".to_owned())),
            },
            _ => Err(self.connection.unexpected(DURING)),
        }
    }

    fn on_copy_data(&mut self, message: BackupMessage) -> Result<BaseBackupEvent> {
        let event = match message {
            BackupMessage::ArchiveStart {
                name,
                tablespace_path,
            } => BaseBackupEvent::ArchiveStart {
                name,
                tablespace_path,
            },
            BackupMessage::ManifestStart => BaseBackupEvent::ManifestStart,
            BackupMessage::Data(data) if self.phase == Phase::Within => {
                return Ok(BaseBackupEvent::Data(data));
            }
            BackupMessage::Data(_) => {
                return Err(self.violation("data before any archive".to_owned()));
            }
            BackupMessage::Progress(bytes) => return Ok(BaseBackupEvent::Progress(bytes)),
        };
        self.phase = Phase::Within;
        Ok(event)
    }

    fn violation(&mut self, reason: String) -> Error {
        self.connection.state = State::Closed;
        protocol(DURING, reason)
    }
}

fn refused(error: ServerError) -> Error {
    Error::Server {
        during: DURING.to_owned(),
        source: Box::new(error),
    }
}

/// `recptr text, tli int8`.
fn parse_stop(body: &DataRowBody) -> Option<(Lsn, TimelineId)> {
    let row = parse_row(body).ok()?;
    let timeline = TimelineId::new(text_at(&row, 1)?.parse().ok()?)?;
    Some((text_at(&row, 0)?.parse().ok()?, timeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_quotes_the_label_and_bounds_the_rate() {
        let mut options = BaseBackupOptions::new("it's 100%");
        options.max_rate = Some(1024);
        assert_eq!(
            options.command().unwrap(),
            "BASE_BACKUP (LABEL 'it''s 100%', CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP true, VERIFY_CHECKSUMS true, \
             PROGRESS true, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', MAX_RATE 1024)"
        );
        options.max_rate = Some(31);
        assert!(options.command().is_err());
        for label in ["a\nb", "\0", &"x".repeat(1024)] {
            assert!(BaseBackupOptions::new(label).command().is_err());
        }
    }
}
