//! Bodies of the fuzz targets (`fuzz/`), which also replay their corpora under `cargo test`. Each checks what must hold of any input.

use std::collections::BTreeMap;

use wal_format::{Lsn, TimelineId};

use crate::index::RollUp;
use crate::key::{ClusterId, ObjectKey};
use crate::names::{CatalogNames, GLOBAL_TABLESPACE, Line, NamesWriter, ReadAt};
use crate::sealed::frame;

/// The catalogue snapshot: any bytes are read or refused, what is read agrees with itself, and what the writer wrote is read whole.
pub fn catalog_names(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else {
        return;
    };
    if mode % 2 == 0 {
        if let Ok(names) = CatalogNames::parse(data, "catalog") {
            agrees_with_itself(&names);
        }
        return;
    }
    let mut writer = NamesWriter::default();
    let mut push = |line: &Line| assert!(writer.push(line).is_ok());
    push(&Line::Catalog {
        format: 1,
        requires: Vec::new(),
        label: "20260123T142811Z-full-3fa9".into(),
        system_identifier: 7,
        pg_version: 18,
        taken: jiff::Timestamp::UNIX_EPOCH,
    });
    // A database first: relations belong to one.
    let mut database = 1;
    let mut written: BTreeMap<(u32, u32), (String, char)> = BTreeMap::new();
    push(&database_line(database, None));
    for piece in data.chunks(9) {
        let number = |at: usize| u32::from(piece.get(at).copied().unwrap_or(0));
        let name = String::from_utf8_lossy(piece.get(3..).unwrap_or_default()).into_owned();
        match number(0) % 4 {
            0 => {
                database = number(1);
                push(&database_line(database, Some(number(2))));
            }
            1 => push(&Line::Tablespace {
                oid: number(1),
                name,
            }),
            kind => {
                let shared = kind == 3;
                let oid = number(1);
                let kind = char::from_u32(number(2)).unwrap_or('r');
                push(&Line::Relation {
                    oid,
                    file: (oid % 3 != 0).then_some(oid),
                    tablespace: if shared { GLOBAL_TABLESPACE } else { 1663 },
                    kind,
                    schema: "public".into(),
                    name: name.clone(),
                    owner: None,
                });
                let place = if shared { 0 } else { database };
                written.insert((place, oid), (name, kind));
            }
        }
    }
    let read = CatalogNames::parse(&writer.finish(), "catalog");
    let names = match read {
        Ok(names) => names,
        Err(error) => panic!("what was written is not read: {error}"),
    };
    agrees_with_itself(&names);
    for ((database, oid), (name, kind)) in &written {
        let relation = names.relation(*database, *oid);
        assert_eq!(
            relation.map(|relation| (&relation.name, relation.kind)),
            Some((name, *kind))
        );
    }
}

fn database_line(oid: u32, lsn: Option<u32>) -> Line {
    Line::Database {
        oid,
        name: format!("d{oid}"),
        tablespace: 1663,
        read: lsn.map(|lsn| ReadAt {
            lsn: Lsn::new(u64::from(lsn)),
            snapshot: "5:9:6".into(),
        }),
    }
}

fn agrees_with_itself(names: &CatalogNames) {
    for (file, relation) in names.files() {
        assert_eq!(names.relation_of_file(file), Some(relation));
        assert_eq!(names.relation(file.database, relation.oid), Some(relation));
        let shared = file.tablespace == GLOBAL_TABLESPACE;
        assert!(!shared || (file.database == 0 && relation.database == 0));
    }
}

/// The roll-up of a log: any bytes, and any document in a whole frame, are read or refused; what is read is written so that it reads the same.
pub fn roll_up(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else {
        return;
    };
    let stored = match mode % 2 {
        0 => data.to_vec(),
        _ => {
            let mut bytes = Vec::new();
            let mut encoder = frame::FrameEncoder::new();
            let mut sink = |piece: &[u8]| bytes.extend_from_slice(piece);
            match encoder.encode(frame::Compression::Lz4, data, &mut sink) {
                Ok(_) => bytes,
                Err(_) => return,
            }
        }
    };
    let key = |tag: u32| ObjectKey::RollUp {
        cluster: ClusterId::new(7),
        timeline: TimelineId::FIRST,
        log: 1,
        tag,
    };
    let tag = crc32fast::hash(&stored);
    assert!(RollUp::parse(&key(!tag), &stored).is_err());
    let Ok(read) = RollUp::parse(&key(tag), &stored) else {
        return;
    };
    let in_its_log =
        |name: &wal_format::SegmentName| (name.timeline, name.log) == (TimelineId::FIRST, 1);
    assert!(read.segments.keys().all(in_its_log));
    if let Ok((key, bytes)) = read.encode() {
        match RollUp::parse(&key, &bytes) {
            Ok(again) => assert_eq!(again, read),
            Err(error) => panic!("what was written is not read: {error}"),
        }
    }
}
