//! What a server says of itself, asked once over both kinds of connection. Judges nothing (`judge.rs`) and changes nothing on the server.

use std::time::Duration;

use archiver::error::ServerErrorKind;
use archiver::replication::{Connection, ConnectionInfo, Deadlines, Host, Mode, SystemIdentity};
use archiver::synchronous::CommitSettings;
use archiver::upload::error_text;
use pitr::recovery_conf::RESTORED_FROM;
use wal_format::SegmentSize;

/// How long one answer of the server may take: a person waits.
const PATIENCE: Deadlines = Deadlines {
    connect: Duration::from_secs(10),
    reply: Duration::from_secs(15),
    ..Deadlines::DEFAULT
};

/// What a server says of itself. What could not be asked is `None`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerFacts {
    /// The user we connect as.
    pub(crate) user: String,
    /// The name under which `walden run` is known to the server.
    pub(crate) application_name: String,
    /// Where from, as a line of pg_hba.conf has it: `local`, or `host` with an address.
    pub(crate) over_socket: bool,
    /// Major version.
    pub(crate) major: Option<u32>,
    /// Full version, such as `18.6`.
    pub(crate) version: Option<String>,
    /// Who it is and where its WAL ends.
    pub(crate) identity: Option<SystemIdentity>,
    /// System identifier, also where there is no replication connection.
    pub(crate) system_identifier: Option<u64>,
    /// WAL segment size.
    pub(crate) segment_size: Option<SegmentSize>,
    /// Bytes in a page of a relation.
    pub(crate) block_size: Option<u32>,
    /// Why no SQL connection could be made.
    pub(crate) sql_error: Option<String>,
    /// Why no replication connection could be made.
    pub(crate) replication_error: Option<String>,
    /// Whether the server said so itself: then it is up.
    pub(crate) answered: bool,
    /// That refusal was for lack of a line in pg_hba.conf.
    pub(crate) refused_by_hba: bool,
    /// That refusal was for lack of a free WAL sender.
    pub(crate) no_free_sender: bool,
    /// The role may replicate.
    pub(crate) may_replicate: Option<bool>,
    /// It is a standby.
    pub(crate) is_standby: bool,
    /// `wal_level`
    pub(crate) wal_level: Option<String>,
    /// `max_wal_senders` and how many are in use.
    pub(crate) senders: Option<(u32, u32)>,
    /// `max_replication_slots` and how many exist.
    pub(crate) slots: Option<(u32, u32)>,
    /// Our slot exists; `false`: as a logical one.
    pub(crate) slot_is_physical: Option<bool>,
    /// `archive_mode`
    pub(crate) archive_mode: Option<String>,
    /// `archive_command` or `archive_library`.
    pub(crate) archive_command: Option<String>,
    /// How commits wait; of a server that lets us into no database without what is set for roles and databases.
    pub(crate) commits: Option<CommitSettings>,
    /// `walden.restored_from`, where it is set.
    pub(crate) restored_from: Option<String>,
}

impl ServerFacts {
    /// Asks the server over both kinds of connection. A connection that cannot be made is a fact, not an error.
    pub(crate) async fn ask(info: &ConnectionInfo, slot: &str) -> Self {
        let mut facts = Self {
            user: info.user.clone(),
            application_name: info.application_name.clone(),
            over_socket: matches!(info.hosts.first(), Some(Host::Unix { .. })),
            ..Self::default()
        };
        let mut same = info.clone();
        match Connection::connect_with(info, Mode::PhysicalReplication, PATIENCE).await {
            Ok(mut connection) => {
                facts.note_connection(&connection);
                // Of several servers the same one is asked both ways.
                same.hosts = vec![connection.host().clone()];
                if let Err(error) = facts.ask_replication(&mut connection).await {
                    facts.replication_error = Some(error_text(&error));
                } else if let Err(error) = connection.close().await {
                    // Everything was asked: how the connection ends is of no interest.
                    tracing::debug!(error = error_text(&error), "replication connection");
                }
            }
            Err(error) => {
                facts.answered |= error.server().is_some();
                facts.refused_by_hba = error.server_kind() == Some(ServerErrorKind::Rejected)
                    && error
                        .server()
                        .is_some_and(|said| said.message.contains("pg_hba"));
                facts.no_free_sender =
                    error.server_kind() == Some(ServerErrorKind::TooManyConnections);
                facts.replication_error = Some(error_text(&error));
            }
        }
        same.database.get_or_insert_with(|| "postgres".to_owned());
        match Connection::connect_with(&same, Mode::Sql, PATIENCE).await {
            Ok(mut connection) => {
                facts.note_connection(&connection);
                if let Err(error) = facts.ask_sql(&mut connection, slot).await {
                    facts.sql_error = Some(error_text(&error));
                }
            }
            Err(error) => {
                facts.answered |= error.server().is_some();
                facts.sql_error = Some(error_text(&error));
            }
        }
        facts
    }

    fn note_connection(&mut self, connection: &Connection) {
        self.answered = true;
        self.major = Some(connection.server_major());
        self.version = connection
            .parameter("server_version")
            .and_then(|text| text.split_whitespace().next())
            .map(str::to_owned);
        self.is_standby = connection.parameter("in_hot_standby") == Some("on");
    }

    async fn ask_replication(&mut self, connection: &mut Connection) -> archiver::Result<()> {
        let identity = connection.identify_system().await?;
        self.system_identifier = Some(identity.system_identifier);
        self.identity = Some(identity);
        self.segment_size = Some(connection.wal_segment_size().await?);
        self.block_size = connection.show("block_size").await?.parse().ok();
        self.wal_level = Some(connection.show("wal_level").await?);
        self.commits = Some(CommitSettings {
            standby_names: connection.show("synchronous_standby_names").await?,
            server: connection.show("synchronous_commit").await?,
            ..CommitSettings::default()
        });
        self.archive_mode = Some(connection.show("archive_mode").await?);
        // A server that was never restored does not know the setting.
        self.restored_from = match connection.show(RESTORED_FROM).await {
            Ok(from) => Some(from).filter(|from| !from.is_empty()),
            Err(error) if error.server().is_some() => None,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    async fn ask_sql(&mut self, connection: &mut Connection, slot: &str) -> archiver::Result<()> {
        let answer = connection
            .simple_query(
                "SELECT system_identifier, current_setting('wal_segment_size') AS segment_size, \
                 current_setting('block_size') AS block_size, current_setting('wal_level') AS wal_level, \
                 current_setting('max_wal_senders') AS max_senders, \
                 (SELECT count(*) FROM pg_catalog.pg_stat_get_wal_senders()) AS senders, \
                 current_setting('max_replication_slots') AS max_slots, \
                 (SELECT count(*) FROM pg_catalog.pg_replication_slots) AS slots, \
                 (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) AS may_replicate, \
                 current_setting('archive_mode') AS archive_mode, \
                 current_setting('archive_command') AS archive_command, \
                 current_setting('archive_library', true) AS archive_library, \
                 current_setting('walden.restored_from', true) AS restored_from \
                 FROM pg_catalog.pg_control_system()",
            )
            .await?;
        let text = |column: &str| answer.text(0, column).map(str::to_owned);
        let number = |column: &str| answer.text(0, column).and_then(|text| text.parse().ok());
        self.system_identifier = answer
            .text(0, "system_identifier")
            .and_then(|text| text.parse().ok())
            .or(self.system_identifier);
        self.block_size = number("block_size").or(self.block_size);
        self.wal_level = text("wal_level");
        self.senders = number("max_senders").zip(number("senders"));
        self.slots = number("max_slots").zip(number("slots"));
        self.may_replicate = text("may_replicate").map(|word| word == "t");
        self.archive_mode = text("archive_mode");
        self.archive_command = text("archive_library")
            .filter(|library| !library.is_empty())
            .or(text("archive_command"))
            .filter(|command| !command.is_empty() && command != "(disabled)");
        self.restored_from = text("restored_from").filter(|from| !from.is_empty());
        self.commits = Some(CommitSettings::ask(connection).await?);
        self.slot_is_physical = connection
            .slot_status(slot)
            .await?
            .map(|status| status.is_physical);
        Ok(())
    }

    /// Whether nobody answered at all.
    pub(crate) fn is_unreachable(&self) -> bool {
        !self.answered
    }
}
