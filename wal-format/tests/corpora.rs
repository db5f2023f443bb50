//! Replays the committed corpora of the fuzz targets through the same bodies.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use wal_format::fuzzing;

fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if let Err(cause) = std::panic::catch_unwind(|| body(&bytes)) {
            panic!("{}: {cause:?}", path.display());
        }
        count += 1;
    }
    assert!(count >= 8, "{} holds {count} inputs", folder.display());
}

#[test]
fn wal_stream() {
    replay("wal_stream", fuzzing::wal_stream);
}

#[test]
fn record_body() {
    replay("record_body", fuzzing::record_body);
}

#[test]
fn segment_summary() {
    replay("segment_summary", fuzzing::segment_summary);
}

#[test]
fn history_file() {
    replay("history_file", fuzzing::history_file);
}

#[test]
fn control_file() {
    replay("control_file", fuzzing::control_file);
}

#[test]
fn backup_label() {
    replay("backup_label", fuzzing::backup_label);
}

#[test]
fn file_name() {
    replay("file_name", fuzzing::file_name);
}
