//! Messages over a byte stream: one large read buffer from which messages are sliced without copying, one write buffer.
//! Does not know which message may come when: `connection`, `session` and `base_backup` do.

use super::transport::ByteStream;
use crate::error::ServerError;
use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, Header, Message};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Size of the read buffer in bytes. Slices handed out keep a whole one allocated.
pub(super) const READ_BUFFER_BYTES: usize = 512 * 1024;
/// A read is not tried with less room than this, in bytes: the largest WAL message plus its headers fits.
const MIN_READ_BYTES: usize = 160 * 1024;
/// Longest message before authentication, in bytes.
const MAX_STARTUP_MESSAGE_BYTES: usize = 64 * 1024;
/// Longest message afterwards, in bytes; the largest of a real server are parts of a compressed base backup, below 200 KiB.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// A caller that queues more unsent bytes than this is refused.
const MAX_UNSENT_BYTES: usize = 1024 * 1024;
/// Longest field of an error that is kept, in bytes.
const MAX_ERROR_FIELD_BYTES: usize = 8 * 1024;

/// A message of the server.
pub(super) enum Incoming {
    /// The server entered CopyBoth mode (which `postgres-protocol` does not know).
    CopyBoth,
    /// Any other message.
    Message(Message),
}

/// Takes the next whole message off the buffer; `None` if more bytes are needed. Pure.
///
/// # Errors
/// `InvalidData`: the bytes are no message, or one longer than the limit.
pub(super) fn take_message(
    buffer: &mut BytesMut,
    limit_bytes: usize,
) -> io::Result<Option<Incoming>> {
    const COPY_BOTH_TAG: u8 = b'W';
    let Some(header) = Header::parse(buffer)? else {
        return Ok(None);
    };
    let length = message_bytes(header);
    if length > limit_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {length} bytes is larger than the limit of {limit_bytes}"),
        ));
    }
    if buffer.len() < length {
        return Ok(None);
    }
    if header.tag() == COPY_BOTH_TAG {
        buffer.advance(length);
        return Ok(Some(Incoming::CopyBoth));
    }
    Ok(Message::parse(buffer)?.map(Incoming::Message))
}

/// Bytes of a whole message: its tag, and what the header counts. A header never says less than 4.
fn message_bytes(header: Header) -> usize {
    usize::try_from(header.len())
        .unwrap_or(usize::MAX)
        .saturating_add(1)
}

/// A stream of messages in both directions.
pub(super) struct Framed {
    stream: Box<dyn ByteStream>,
    input: BytesMut,
    output: BytesMut,
    limit_bytes: usize,
}

impl Framed {
    pub(super) fn new(stream: Box<dyn ByteStream>) -> Framed {
        Framed {
            stream,
            input: BytesMut::with_capacity(READ_BUFFER_BYTES),
            output: BytesMut::new(),
            limit_bytes: MAX_STARTUP_MESSAGE_BYTES,
        }
    }

    /// From now on longer messages are accepted.
    pub(super) fn authenticated(&mut self) {
        self.limit_bytes = MAX_MESSAGE_BYTES;
    }

    /// A message that is already in the buffer.
    pub(super) fn buffered(&mut self) -> io::Result<Option<Incoming>> {
        take_message(&mut self.input, self.limit_bytes)
    }

    /// Reads what has arrived. `Ok(0)`: the server closed the connection. Cancel-safe: no byte is lost.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        let wanted = match Header::parse(&self.input)? {
            Some(header) => message_bytes(header).min(self.limit_bytes),
            None => 0,
        };
        let have = self.input.len();
        let missing = wanted.saturating_sub(have).max(MIN_READ_BYTES);
        if self.input.capacity().saturating_sub(have) < missing {
            let target = READ_BUFFER_BYTES.max(have.saturating_add(missing));
            self.input.reserve(target.saturating_sub(have));
        }
        self.stream.read_buf(&mut self.input).await
    }

    /// Queues a message. It leaves with the next [`Framed::flush`].
    pub(super) fn queue(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.output.len() > MAX_UNSENT_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the server does not read what is sent to it",
            ));
        }
        encode(&mut self.output)
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.output.is_empty()
    }

    /// Sends everything queued. Cancel-safe: what was not sent stays queued.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.stream.flush().await
    }

    /// Ends the stream in an orderly way.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

/// Reads the fields of an ErrorResponse or NoticeResponse. Bytes that are no UTF-8 are replaced: a server may complain about an encoding.
pub(super) fn parse_server_error(mut fields: ErrorFields<'_>) -> ServerError {
    let mut error = ServerError::default();
    // A field list cut short still gives what was read.
    while let Ok(Some(field)) = fields.next() {
        let bytes = field.value_bytes();
        let bytes = bytes.get(..MAX_ERROR_FIELD_BYTES).unwrap_or(bytes);
        let text = String::from_utf8_lossy(bytes).into_owned();
        match field.type_() {
            b'V' => error.severity = text,
            // Translated; only servers before 9.6 send nothing else.
            b'S' if error.severity.is_empty() => error.severity = text,
            b'C' => error.sqlstate = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            b'P' => error.position = text.parse().ok(),
            b'R' => error.routine = Some(text),
            _ => {}
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let mut buffer = BytesMut::from(&b"d\x7f\xff\xff\xff"[..]);
        let error = take_message(&mut buffer, 100).err().unwrap();
        assert!(error.to_string().contains("limit of 100"), "{error}");
        let mut buffer = BytesMut::from(&b"d\xff\xff\xff\xff"[..]);
        assert!(take_message(&mut buffer, 100).is_err());
        let mut buffer = BytesMut::from(&b"d\0\0\0\x03"[..]);
        assert!(take_message(&mut buffer, 100).is_err());
    }

    #[test]
    fn error_fields_are_typed_and_survive_bad_text() {
        let body = b"SFEHLER\0VERROR\0C58P01\0Mw\xffx\0DD\0HH\0P12\0Rroutine\0Fwalsender.c\0\0";
        let mut buffer = BytesMut::from(&b"E\0\0\0"[..]);
        buffer.extend_from_slice(&[u8::try_from(body.len() + 4).unwrap()]);
        buffer.extend_from_slice(body);
        let Some(Incoming::Message(Message::ErrorResponse(body))) =
            take_message(&mut buffer, 1000).unwrap()
        else {
            panic!("not an error response");
        };
        let expected = ServerError {
            severity: "ERROR".into(),
            sqlstate: "58P01".into(),
            message: "w\u{fffd}x".into(),
            detail: Some("D".into()),
            hint: Some("H".into()),
            position: Some(12),
            routine: Some("routine".into()),
        };
        assert_eq!(parse_server_error(body.fields()), expected);
    }

    #[tokio::test]
    async fn data_is_sliced_from_the_read_buffer_and_the_buffer_is_reused() {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut framed = Framed::new(Box::new(client));
        framed.authenticated();
        let message = [&b"d\0\x01\0\x04"[..], &vec![7u8; 65536]].concat();
        let mut addresses = Vec::new();
        for _ in 0..20 {
            server.write_all(&message).await.unwrap();
            let data = loop {
                match framed.buffered().unwrap() {
                    Some(Incoming::Message(Message::CopyData(body))) => break body.into_bytes(),
                    Some(_) => panic!("not data"),
                    None => assert!(framed.fill().await.unwrap() > 0),
                }
            };
            assert_eq!(data.len(), 65536);
            addresses.push(data.as_ptr() as usize);
            assert!(framed.input.capacity() <= 2 * READ_BUFFER_BYTES);
        }
        let (first, last) = (
            addresses.iter().min().unwrap(),
            addresses.iter().max().unwrap(),
        );
        assert!(
            last - first < 2 * READ_BUFFER_BYTES,
            "a new buffer for each message"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(message)) = take_message(&mut buffer, 1000) {
                if let Incoming::Message(Message::ErrorResponse(body)) = message {
                    parse_server_error(body.fields());
                }
            }
        }
    }
}
