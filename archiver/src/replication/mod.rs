//! The connection to a PostgreSQL server: settings, TLS, authentication, replication commands, streaming, base backups.
//! Majors 15 to 18. Does not know what the bytes mean (`wal-format`) nor where they go (`repository`).
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::panic
    )
)]

mod authentication;
mod base_backup;
mod cancel;
mod commands;
mod connect;
mod connection;
mod conninfo;
mod conninfo_syntax;
mod conninfo_values;
mod framing;
mod message;
mod pgpass;
mod query;
mod session;
mod stream;
mod tls;
mod transport;

pub use base_backup::{
    BaseBackup, BaseBackupEvent, BaseBackupOptions, ManifestChecksums, Tablespace,
};
pub use cancel::CancelToken;
pub use commands::{
    HistoryFile, SUPPORTED_MAJORS, SlotCreation, SlotPosition, SlotStatus, SystemIdentity,
    WalStatus,
};
pub use connection::{Connection, ReportedFlush};
pub use conninfo::{
    ChannelBinding, ConnectionInfo, CredentialFile, Host, Keepalive as TcpKeepalive, Password,
    RootCertificates, SslMode, SslNegotiation, TargetSession,
};
pub use message::{
    BackupMessage, Keepalive, MessageError, ReplicationMessage, StatusUpdate, WalData,
};
pub use query::{QueryResult, Row};
pub use session::StreamEvent;
pub use stream::Started;

use std::time::Duration;

/// Most parameters of a server that are remembered; a real one reports about fifteen.
const MAX_PARAMETERS: usize = 256;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `replication=true`: replication commands, SHOW, streaming and base backups; no SQL.
    PhysicalReplication,
    /// Ordinary SQL in the settings' database.
    Sql,
}

/// How long a connection waits. Every wait has one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For one address: name lookup, TCP, TLS and login. `connect_timeout` of the settings wins.
    pub connect: Duration,
    /// For each message of an answer, and for sending.
    pub reply: Duration,
    /// While streaming: the longest silence. After half of it the server is asked for a sign of life.
    pub silence: Duration,
    /// Until a base backup begins (a spread checkpoint may take most of `checkpoint_timeout`) or, after the data, ends.
    pub base_backup_start: Duration,
    /// For each message of a base backup's data.
    pub base_backup_data: Duration,
}

impl Deadlines {
    /// The values of [`Deadlines::default`].
    pub const DEFAULT: Deadlines = Deadlines {
        connect: Duration::from_secs(10),
        reply: Duration::from_secs(60),
        silence: Duration::from_secs(60),
        base_backup_start: Duration::from_secs(2 * 60 * 60),
        base_backup_data: Duration::from_secs(10 * 60),
    };
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines::DEFAULT
    }
}
