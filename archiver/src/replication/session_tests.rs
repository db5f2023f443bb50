//! Tests of `session`: transcripts as measured, and any split of their bytes.

use super::super::framing::take_message;
use super::*;
use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use wal_format::Timestamp;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.put_u32(u32::try_from(body.len() + 4).unwrap());
    bytes.extend_from_slice(body);
    bytes
}

fn row(values: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u16(u16::try_from(values.len()).unwrap());
    for value in values {
        body.put_u32(u32::try_from(value.len()).unwrap());
        body.extend_from_slice(value.as_bytes());
    }
    message(b'D', &body)
}

fn copy_both() -> Vec<u8> {
    message(b'W', b"\0\0\0")
}

fn wal(start: u64, data: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(start);
    body.put_u64(start + 1000);
    body.put_i64(7);
    body.extend_from_slice(data);
    message(b'd', &body)
}

fn keepalive() -> Vec<u8> {
    let mut body = vec![b'k'];
    body.put_u64(500);
    body.put_i64(8);
    body.put_u8(1);
    message(b'd', &body)
}

fn end_of_timeline() -> Vec<u8> {
    [
        message(b'T', b"\0\0"),
        row(&["2", "0/30000D8"]),
        message(b'C', b"START_STREAMING\0"),
        message(b'C', b"START_REPLICATION\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn error() -> Vec<u8> {
    message(
        b'E',
        b"VERROR\0CXX000\0Mahead of the WAL flush position\0\0",
    )
}

/// Every step of a transcript that asks for something, the bytes given in pieces of these sizes (repeated).
fn steps(transcript: &[u8], pieces: &[usize]) -> Vec<Step> {
    let mut session = StreamSession::default();
    let mut buffer = BytesMut::new();
    let mut steps = Vec::new();
    let mut rest = transcript;
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
        rest = after;
        buffer.extend_from_slice(piece);
        while let Some(message) = take_message(&mut buffer, 1 << 20).unwrap() {
            match session.on_message(message) {
                Step::Ignore => {}
                step => steps.push(step),
            }
        }
    }
    assert!(buffer.is_empty());
    steps
}

fn switch() -> StreamEvent {
    StreamEvent::TimelineEnded {
        next_timeline: TimelineId::new(2).unwrap(),
        switch_point: Lsn::new(0x30000d8),
    }
}

#[test]
fn a_timeline_ends_after_copy_done_went_both_ways() {
    let transcript = [
        copy_both(),
        wal(16, b"ab"),
        keepalive(),
        message(b'c', b""),
        end_of_timeline(),
    ];
    let expected = [
        Step::Started,
        Step::Event(StreamEvent::Wal(WalData {
            start: Lsn::new(16),
            server_end: Lsn::new(1016),
            time: Timestamp(7),
            data: Bytes::from_static(b"ab"),
        })),
        Step::Event(StreamEvent::Keepalive(Keepalive {
            server_end: Lsn::new(500),
            time: Timestamp(8),
            reply_requested: true,
        })),
        Step::AnswerCopyDone,
        Step::Ended(Ok(switch())),
    ];
    assert_eq!(steps(&transcript.concat(), &[1 << 20]), expected);
}

#[test]
fn a_start_at_the_very_end_of_a_timeline_skips_copying() {
    assert_eq!(steps(&end_of_timeline(), &[7]), [Step::Ended(Ok(switch()))]);
}

#[test]
fn shutdown_is_command_complete_without_copy_done() {
    let transcript = [copy_both(), message(b'C', b"COPY 0\0")].concat();
    let expected = [Step::Started, Step::Event(StreamEvent::ServerShutdown)];
    assert_eq!(steps(&transcript, &[3]), expected);
}

#[test]
fn an_error_is_reported_when_the_server_is_ready_again_and_kept_until_then() {
    let transcript = [copy_both(), error(), message(b'Z', b"I")].concat();
    let steps = steps(&transcript, &[64]);
    assert_eq!(steps.len(), 3, "{steps:?}");
    assert!(matches!(&steps[1], Step::Failed(error) if error.sqlstate == "XX000"));
    assert!(matches!(&steps[2], Step::Ended(Err(error)) if error.sqlstate == "XX000"));

    let mut session = StreamSession::default();
    let mut buffer = BytesMut::from(&error()[..]);
    session.on_message(take_message(&mut buffer, 1000).unwrap().unwrap());
    assert_eq!(session.take_error().unwrap().sqlstate, "XX000");
    assert_eq!(session.take_error(), None);
}

#[test]
fn messages_out_of_place_are_violations() {
    let refuse = |transcript: &[Vec<u8>]| {
        let steps = steps(&transcript.concat(), &[1 << 20]);
        assert!(
            matches!(steps.last(), Some(Step::Violation(_))),
            "{steps:?}"
        );
    };
    refuse(&[wal(16, b"a")]);
    refuse(&[copy_both(), copy_both()]);
    refuse(&[copy_both(), message(b'Z', b"I")]);
    refuse(&[copy_both(), message(b'd', b"x")]);
    refuse(&[copy_both(), message(b'd', b"")]);
    refuse(&[copy_both(), message(b'c', b""), message(b'Z', b"I")]);
    refuse(&[message(b'T', b"\0\0"), row(&["0", "0/1"])]);
    refuse(&[message(b'T', b"\0\0"), row(&["2"])]);
    refuse(&[
        message(b'T', b"\0\0"),
        row(&["2", "0/1"]),
        row(&["2", "0/1"]),
    ]);
    refuse(&[copy_both(), message(b'C', b"COPY 0\0"), keepalive()]);
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_steps(
        parts in proptest::collection::vec((0u64..1 << 40, proptest::collection::vec(any::<u8>(), 0..300)), 0..6),
        end in 0usize..4,
        pieces in proptest::collection::vec(1usize..64, 1..20),
    ) {
        let mut transcript = copy_both();
        for (start, data) in &parts {
            transcript.extend(wal(*start, data));
            transcript.extend(keepalive());
        }
        match end {
            0 => transcript.extend([message(b'c', b""), end_of_timeline()].concat()),
            1 => transcript.extend(message(b'C', b"COPY 0\0")),
            2 => transcript.extend([error(), message(b'Z', b"I")].concat()),
            _ => {}
        }
        let whole = steps(&transcript, &[1 << 20]);
        prop_assert!(whole.len() > parts.len() * 2);
        prop_assert_eq!(steps(&transcript, &pieces), whole);
    }

    #[test]
    fn no_messages_panic(tags in proptest::collection::vec((0usize..9, proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
        let mut session = StreamSession::default();
        for (tag, body) in tags {
            let mut buffer = BytesMut::from(&message(b"WdcCTDEZI"[tag], &body)[..]);
            if let Ok(Some(message)) = take_message(&mut buffer, 1000) {
                session.on_message(message);
            }
        }
    }
}
