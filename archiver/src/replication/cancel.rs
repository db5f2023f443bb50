//! Cancel requests: a second connection that asks the server to end what the first one is doing.

use super::authentication::BackendKey;
use super::connection::within;
use super::conninfo::Keepalive;
use super::transport::{self, Address, TlsPlan, TlsUse};
use crate::error::Result;
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Ends the running command of one connection, over another one. Harmless if nothing runs.
#[derive(Clone)]
pub struct CancelToken {
    pub(super) address: Address,
    pub(super) plan: Option<TlsPlan>,
    pub(super) key: Option<BackendKey>,
    pub(super) keepalive: Keepalive,
    pub(super) deadline: Duration,
}

impl CancelToken {
    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.plan.is_some()
    }

    /// Asks the server; the connection itself then receives an error of kind `Cancelled`, unless it was done already.
    ///
    /// # Errors
    /// `Connect`, `Tls`, `Timeout`, `ConnectionLost`.
    pub async fn cancel(&self) -> Result<()> {
        const DURING: &str = "cancel request";
        let Some(key) = self.key else {
            return Ok(());
        };
        let tls_use = match self.plan {
            Some(_) => TlsUse::Required,
            None => TlsUse::Never,
        };
        let request = async {
            let opened =
                transport::open(&self.address, &self.keepalive, tls_use, self.plan.as_ref()).await;
            let mut stream = match opened {
                Ok(opened) => opened.stream,
                Err(error) => return Ok(Err(error)),
            };
            let mut message = BytesMut::new();
            frontend::cancel_request(key.process_id, key.secret, &mut message);
            stream.write_all(&message).await?;
            stream.flush().await?;
            // The server closes the connection when it has passed the request on; how it closes does not matter.
            let mut byte = [0];
            match stream.read(&mut byte).await {
                Ok(_) | Err(_) => Ok(Ok(())),
            }
        };
        within(DURING, self.deadline, request).await?
    }
}
