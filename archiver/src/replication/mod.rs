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

mod conninfo;
mod conninfo_syntax;

pub use conninfo::{
    ChannelBinding, ConnectionInfo, CredentialFile, Host, Keepalive, Password, RootCertificates,
    SslMode, SslNegotiation, TargetSession,
};
