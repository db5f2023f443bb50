//! The messages inside CopyData: streaming replication and base backup (protocol "Streaming Replication Protocol", majors 15 to 18).
//! Pure: bytes in, values out. Does not frame them (`framing`) nor know when they may come (`session`).
//!
//! All integers are big-endian. LSNs are byte positions; "end" positions are *last byte + 1*; times are microseconds since 2000-01-01 UTC.
//!
//! | message | bytes |
//! |---|---|
//! | WAL data | `w`, u64 start, u64 server end, i64 time, WAL bytes (at most 128 KiB; may span segments) |
//! | keepalive | `k`, u64 server end, i64 time, u8 reply requested |
//! | status update | `r`, u64 write, u64 flush, u64 apply, i64 time, u8 reply requested |
//! | new archive | `n`, name NUL, tablespace path NUL |
//! | manifest | `m` |
//! | archive or manifest data | `d`, bytes |
//! | progress | `p`, i64 bytes done |

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use wal_format::{Lsn, Timestamp};

/// Longest archive name or tablespace path; a path in PostgreSQL has at most 1024 bytes.
const MAX_PATH_BYTES: usize = 4096;

/// A message of the server while it streams WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// A stretch of WAL.
    WalData(WalData),
    /// A sign of life.
    Keepalive(Keepalive),
}

/// A stretch of WAL as the server sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "XLogData")]
pub struct WalData {
    /// LSN of the first byte of `data`.
    pub start: Lsn,
    /// End of WAL on the server; may be ahead of `start` + length.
    pub server_end: Lsn,
    /// The server's clock when it sent this.
    pub time: Timestamp,
    /// The WAL bytes: a slice of the connection's read buffer, which stays allocated while this lives.
    pub data: Bytes,
}

impl WalData {
    /// LSN after the last byte of `data`. Parsing has checked that it does not overflow.
    pub fn end(&self) -> Lsn {
        self.start.saturating_add(self.data.len() as u64)
    }
}

/// A sign of life from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// End of WAL the server has sent.
    pub server_end: Lsn,
    /// The server's clock when it sent this.
    pub time: Timestamp,
    /// The server wants a status update at once, else it may drop the connection; in shutdown it waits for one with flush = sent.
    pub reply_requested: bool,
}

/// What we tell the server. Positions are *last byte + 1*; zero means "nothing yet".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Received.
    pub write: Lsn,
    /// Durable: the slot lets go of everything before it. Reporting too much destroys the only copy of WAL.
    pub flush: Lsn,
    /// Replayed; an archiver reports zero.
    pub apply: Lsn,
    /// Our clock.
    pub time: Timestamp,
    /// Asks the server for a keepalive.
    pub reply_requested: bool,
}

/// A message of the server during a base backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupMessage {
    /// A tar archive begins.
    ArchiveStart {
        /// `base.tar` or `<oid>.tar`. Comes from the server: not to be trusted as a path.
        name: String,
        /// Where the tablespace lies on the server; empty for the data directory.
        tablespace_path: String,
    },
    /// The backup manifest begins.
    ManifestStart,
    /// Bytes of whatever began last.
    Data(Bytes),
    /// Bytes of the whole backup done so far.
    Progress(u64),
}

/// A message that does not hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Fewer bytes than the message needs.
    #[error("message {tag:?} is too short")]
    TooShort {
        /// The message's first byte.
        tag: char,
    },
    /// More bytes than the message has.
    #[error("message {tag:?} is too long")]
    TooLong {
        /// The message's first byte.
        tag: char,
    },
    /// A first byte that no message has.
    #[error("unknown message {tag:?}")]
    UnknownTag {
        /// The first byte.
        tag: char,
    },
    /// An empty message.
    #[error("empty message")]
    Empty,
    /// A position, time or name outside its range.
    #[error("message {tag:?} holds an impossible value")]
    OutOfRange {
        /// The message's first byte.
        tag: char,
    },
}

impl ReplicationMessage {
    /// Reads the content of one CopyData message. The WAL bytes are not copied.
    ///
    /// # Errors
    /// [`MessageError`] if the bytes are no such message.
    pub fn parse(mut body: Bytes) -> Result<ReplicationMessage, MessageError> {
        let tag = body.try_get_u8().map_err(|_| MessageError::Empty)?;
        let name = char::from(tag);
        let too_short = |_: TryGetError| MessageError::TooShort { tag: name };
        match tag {
            b'w' => {
                let start = Lsn::new(body.try_get_u64().map_err(too_short)?);
                let server_end = Lsn::new(body.try_get_u64().map_err(too_short)?);
                let time = Timestamp(body.try_get_i64().map_err(too_short)?);
                start
                    .checked_add(body.len() as u64)
                    .ok_or(MessageError::OutOfRange { tag: name })?;
                Ok(ReplicationMessage::WalData(WalData {
                    start,
                    server_end,
                    time,
                    data: body,
                }))
            }
            b'k' => {
                let server_end = Lsn::new(body.try_get_u64().map_err(too_short)?);
                let time = Timestamp(body.try_get_i64().map_err(too_short)?);
                let reply_requested = body.try_get_u8().map_err(too_short)? != 0;
                expect_end(&body, name)?;
                Ok(ReplicationMessage::Keepalive(Keepalive {
                    server_end,
                    time,
                    reply_requested,
                }))
            }
            _ => Err(MessageError::UnknownTag { tag: name }),
        }
    }
}

impl StatusUpdate {
    /// Appends a whole CopyData message, header included.
    pub fn encode(&self, out: &mut BytesMut) {
        const BODY_BYTES: i32 = 34;
        out.put_u8(b'd');
        out.put_i32(BODY_BYTES + 4);
        out.put_u8(b'r');
        out.put_u64(self.write.as_u64());
        out.put_u64(self.flush.as_u64());
        out.put_u64(self.apply.as_u64());
        out.put_i64(self.time.0);
        out.put_u8(u8::from(self.reply_requested));
    }
}

impl BackupMessage {
    /// Reads the content of one CopyData message. Data is not copied.
    ///
    /// # Errors
    /// [`MessageError`] if the bytes are no such message.
    pub fn parse(mut body: Bytes) -> Result<BackupMessage, MessageError> {
        let tag = body.try_get_u8().map_err(|_| MessageError::Empty)?;
        let name = char::from(tag);
        let message = match tag {
            b'n' => BackupMessage::ArchiveStart {
                name: take_c_string(&mut body, name)?,
                tablespace_path: take_c_string(&mut body, name)?,
            },
            b'm' => BackupMessage::ManifestStart,
            b'd' => return Ok(BackupMessage::Data(body)),
            b'p' => {
                let bytes = body
                    .try_get_i64()
                    .map_err(|_| MessageError::TooShort { tag: name })?;
                let bytes =
                    u64::try_from(bytes).map_err(|_| MessageError::OutOfRange { tag: name })?;
                BackupMessage::Progress(bytes)
            }
            _ => return Err(MessageError::UnknownTag { tag: name }),
        };
        expect_end(&body, name)?;
        Ok(message)
    }
}

fn expect_end(body: &Bytes, tag: char) -> Result<(), MessageError> {
    match body.is_empty() {
        true => Ok(()),
        false => Err(MessageError::TooLong { tag }),
    }
}

fn take_c_string(body: &mut Bytes, tag: char) -> Result<String, MessageError> {
    let end = body
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(MessageError::TooShort { tag })?;
    if end > MAX_PATH_BYTES {
        return Err(MessageError::OutOfRange { tag });
    }
    let text = body.split_to(end);
    body.advance(1);
    String::from_utf8(text.into()).map_err(|_| MessageError::OutOfRange { tag })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAL_DATA_HEADER_BYTES: usize = 25;

    fn encode_wal(data: &WalData) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(b'w');
        out.put_u64(data.start.as_u64());
        out.put_u64(data.server_end.as_u64());
        out.put_i64(data.time.0);
        assert_eq!(out.len(), WAL_DATA_HEADER_BYTES);
        out.put_slice(&data.data);
        out.freeze()
    }

    #[test]
    fn keepalive_is_eighteen_bytes() {
        let bytes = b"k\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x05\x01";
        assert_eq!(bytes.len(), 18);
        let expected = Keepalive {
            server_end: Lsn::new(0x1_0000_0002),
            time: Timestamp(5),
            reply_requested: true,
        };
        let body = Bytes::from_static(bytes);
        assert_eq!(
            ReplicationMessage::parse(body.clone()),
            Ok(ReplicationMessage::Keepalive(expected))
        );
        for length in 1..bytes.len() {
            let cut = ReplicationMessage::parse(body.slice(..length));
            assert_eq!(cut, Err(MessageError::TooShort { tag: 'k' }), "{length}");
        }
        let long = [&bytes[..], b"x"].concat();
        let long = ReplicationMessage::parse(long.into());
        assert_eq!(long, Err(MessageError::TooLong { tag: 'k' }));
    }

    #[test]
    fn refuses_other_messages_and_positions_past_the_end() {
        let parse = |bytes: &'static [u8]| ReplicationMessage::parse(Bytes::from_static(bytes));
        assert_eq!(parse(b""), Err(MessageError::Empty));
        assert_eq!(parse(b"s"), Err(MessageError::UnknownTag { tag: 's' }));
        assert_eq!(parse(b"w\0"), Err(MessageError::TooShort { tag: 'w' }));
        assert_eq!(
            parse(b"w\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0x"),
            Err(MessageError::OutOfRange { tag: 'w' })
        );
    }

    #[test]
    fn status_update_is_the_documented_thirty_four_bytes() {
        let mut out = BytesMut::new();
        let status = StatusUpdate {
            write: Lsn::new(3),
            flush: Lsn::new(2),
            apply: Lsn::new(0),
            time: Timestamp(-1),
            reply_requested: true,
        };
        status.encode(&mut out);
        let expected = b"d\0\0\0\x26r\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(&out[..], &expected[..]);
        assert_eq!(out.len(), 5 + 34);
    }

    #[test]
    fn backup_messages_are_told_apart() {
        let parse = |bytes: &'static [u8]| BackupMessage::parse(Bytes::from_static(bytes));
        assert_eq!(
            parse(b"n16385.tar\0/mnt/a b\0"),
            Ok(BackupMessage::ArchiveStart {
                name: "16385.tar".into(),
                tablespace_path: "/mnt/a b".into(),
            })
        );
        assert_eq!(parse(b"m"), Ok(BackupMessage::ManifestStart));
        assert_eq!(
            parse(b"dxyz"),
            Ok(BackupMessage::Data(Bytes::from_static(b"xyz")))
        );
        assert_eq!(
            parse(b"p\0\0\0\0\0\0\x01\0"),
            Ok(BackupMessage::Progress(256))
        );
        assert_eq!(
            parse(b"p\xff\0\0\0\0\0\x01\0"),
            Err(MessageError::OutOfRange { tag: 'p' })
        );
        assert_eq!(
            parse(b"nbase.tar\0"),
            Err(MessageError::TooShort { tag: 'n' })
        );
        assert_eq!(parse(b"na\0b\0c"), Err(MessageError::TooLong { tag: 'n' }));
        assert_eq!(
            parse(b"n\xff\0\0"),
            Err(MessageError::OutOfRange { tag: 'n' })
        );
        assert_eq!(parse(b"z"), Err(MessageError::UnknownTag { tag: 'z' }));
    }

    proptest! {
        #[test]
        fn wal_data_survives_a_round_trip(start in 0u64..1 << 60, end: u64, time: i64, data: Vec<u8>) {
            let expected = WalData {
                start: Lsn::new(start),
                server_end: Lsn::new(end),
                time: Timestamp(time),
                data: data.into(),
            };
            let parsed = ReplicationMessage::parse(encode_wal(&expected)).unwrap();
            prop_assert_eq!(parsed, ReplicationMessage::WalData(expected));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = ReplicationMessage::parse(bytes.clone()).is_ok();
            let _ = BackupMessage::parse(bytes).is_ok();
        }
    }
}
