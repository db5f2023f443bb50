//! Damages of what objects say of themselves and of others: descriptors, `backup.json`, and the plain documents beside what is restored.

use super::archive::{Archive, Copy, SIZE};
use super::damage::{Damage, damage, edit_json, flip, harmless, part_key, start};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use serde_json::Value;
use wal_format::Lsn;

pub(super) fn descriptors_and_backups(encrypted: bool) -> Vec<Damage> {
    let backup_json = |archive: &Archive| {
        format!(
            "{}/backups/{}/backup.json",
            archive.cluster, archive.labels[0]
        )
    };
    vec![
        damage("a descriptor edited", "--checksums", |archive, copy| {
            let name = archive.middle_segment();
            let key = archive.segment_key(&name);
            edit_descriptor(copy, &key, false);
            vec![(key, start(&name))]
        }),
        damage(
            "a descriptor edited, its checksum recomputed",
            // The header's HMAC tells at once; without encryption the WAL itself does.
            if encrypted { "--checksums" } else { "--wal" },
            |archive, copy| {
                let name = archive.middle_segment();
                let key = archive.segment_key(&name);
                edit_descriptor(copy, &key, true);
                vec![(key, start(&name))]
            },
        ),
        damage(
            "backup.json edited: a part's size",
            "--presence",
            move |archive, copy| {
                let key = backup_json(archive);
                edit_json(copy, &key, |backup| {
                    backup["parts"][0]["plain_size"] = 512.into()
                });
                vec![(key, None)]
            },
        ),
        damage(
            "backup.json edited: a part's checksum",
            "--checksums",
            |archive, copy| {
                let key = format!(
                    "{}/backups/{}/backup.json",
                    archive.cluster, archive.labels[0]
                );
                edit_json(copy, &key, |backup| {
                    backup["parts"][0]["plain_crc32"] = "00000007".into()
                });
                vec![(part_key(archive, 0), None)]
            },
        ),
        damage(
            "backup.json edited: its stop LSN",
            "--backups",
            |archive, copy| {
                let folder = format!("{}/backups/{}", archive.cluster, archive.labels[0]);
                edit_json(copy, &format!("{folder}/backup.json"), |backup| {
                    let stop: Lsn = backup["stop_lsn"].as_str().unwrap().parse().unwrap();
                    let earlier = Lsn::new(stop.as_u64() - 8);
                    backup["stop_lsn"] = earlier.to_string().into();
                });
                vec![(format!("{folder}/manifest"), None)]
            },
        ),
        damage(
            "backup.json edited: the segment size",
            "--presence",
            move |archive, copy| {
                let key = backup_json(archive);
                edit_json(copy, &key, |backup| {
                    backup["wal_segment_size"] = (2 << 20).into();
                });
                vec![(key, None)]
            },
        ),
        damage("backup.json cut", "--presence", move |archive, copy| {
            let key = backup_json(archive);
            let bytes = copy.read(&key);
            copy.write(&key, &bytes[..bytes.len() / 2]);
            vec![(key, None)]
        }),
    ]
}

/// Documents that stand beside what is restored.
pub(super) fn plain_documents() -> Vec<Damage> {
    let claim = |archive: &Archive, backup: usize| {
        let label = &archive.labels[backup];
        format!("{}/backups/{label}/started.json", archive.cluster)
    };
    vec![
        harmless("started.json cut", move |archive, copy| {
            let key = claim(archive, 0);
            let bytes = copy.read(&key);
            copy.write(&key, &bytes[..bytes.len() / 2]);
            vec![(key, None)]
        }),
        harmless("started.json of another backup", move |archive, copy| {
            let key = claim(archive, 0);
            copy.write(&key, &copy.read(&claim(archive, 1)));
            vec![(key, None)]
        }),
        harmless("started.json of a later version", move |archive, copy| {
            let key = claim(archive, 1);
            edit_json(copy, &key, |claim| claim["format"] = 2.into());
            vec![(key, None)]
        }),
        harmless("a gap's document that is none", |archive, copy| {
            let key = gap_key(archive);
            copy.add(&key, b"{\"format\": 1}");
            vec![(key, None)]
        }),
        harmless("a gap's document of another gap", |archive, copy| {
            let key = gap_key(archive);
            let gap =
                r#"{"format": 1, "timeline": 1, "from": "0/100000", "to": "0/300000", "why": "-"}"#;
            copy.add(&key, gap.as_bytes());
            vec![(key, None)]
        }),
        harmless("an acknowledgement that is none", |archive, copy| {
            let key = gap_key(archive).replace(".json", ".ack.json");
            copy.add(&key, b"yes");
            vec![(key, None)]
        }),
        harmless("a roll-up that is none", |archive, copy| {
            let key = format!("{}/index/00000001/00000000.00000007", archive.cluster);
            copy.add(&key, b"no roll-up");
            vec![(key, None)]
        }),
        harmless("the names of a backup's relations", |archive, copy| {
            let key = format!("{}/backups/{}/catalog", archive.cluster, archive.labels[0]);
            flip(copy, &key, |bytes| bytes.len() - 5);
            vec![(key, None)]
        }),
        damage(
            "cluster.json with another segment size",
            "--presence",
            |archive, copy| {
                let key = format!("{}/cluster.json", archive.cluster);
                edit_json(copy, &key, |cluster| {
                    cluster["wal_segment_size"] = (2 << 20).into();
                });
                vec![(key, None)]
            },
        ),
    ]
}

/// Of a gap that was closed since: all of that WAL is stored.
fn gap_key(archive: &Archive) -> String {
    let name = archive.middle_segment();
    let (from, to) = (
        name.start(SIZE).unwrap(),
        name.start(SIZE).unwrap().saturating_add(1 << 20),
    );
    let [from, to] = [from, to].map(|lsn| lsn.as_u64());
    format!(
        "{}/gaps/00000001-{from:016X}-{to:016X}.json",
        archive.cluster
    )
}

/// Moves the time of a segment's newest transaction by a second, in the header as it is stored.
fn edit_descriptor(copy: &Copy, key: &str, with_checksum: bool) {
    let bytes = copy.read(key);
    let edited = match bytes.starts_with(b"age-encryption.org/v1\n") {
        true => edit_age_header(&bytes, with_checksum),
        false => edit_plain_header(&bytes, with_checksum),
    };
    copy.write(key, &edited);
}

fn edit(json: &[u8]) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(json).unwrap();
    let time: jiff::Timestamp = document["wal"]["time_max"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let later = time + jiff::SignedDuration::from_secs(1);
    document["wal"]["time_max"] = later.to_string().into();
    serde_json::to_vec(&document).unwrap()
}

/// Magic, size, `walden.v1 <CRC>`, JSON.
fn edit_plain_header(bytes: &[u8], with_checksum: bool) -> Vec<u8> {
    let size = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let (content, payload) = bytes[8..].split_at(size);
    let end = content.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let json = edit(&content[end..]);
    let line = match with_checksum {
        true => format!("walden.v1 {:08x}\n", crc32fast::hash(&json)).into_bytes(),
        false => content[..end].to_vec(),
    };
    let size = u32::try_from(line.len() + json.len()).unwrap();
    [&bytes[..4], &size.to_le_bytes(), &line, &json, payload].concat()
}

/// The first stanza's argument is the CRC of the JSON and of the stanzas behind; its body the JSON in base64, 64 columns.
fn edit_age_header(bytes: &[u8], with_checksum: bool) -> Vec<u8> {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\n---")
        .unwrap()
        + 1;
    let text = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = text.split_inclusive('\n');
    let (magic, stanza) = (lines.next().unwrap(), lines.next().unwrap());
    let mut body = String::new();
    for line in lines.by_ref() {
        body.push_str(line.trim_end());
        if line.trim_end().len() < 64 {
            break;
        }
    }
    let others: String = lines.collect();
    let json = edit(&BASE64_STANDARD_NO_PAD.decode(body).unwrap());
    let sum = crc32fast::hash(&[&json, others.as_bytes()].concat());
    let stanza = match with_checksum {
        true => format!("-> walden.v1 {sum:08x}\n"),
        false => stanza.to_owned(),
    };
    let encoded = BASE64_STANDARD_NO_PAD.encode(json);
    let mut header = format!("{magic}{stanza}");
    for line in encoded.as_bytes().chunks(64) {
        header.push_str(std::str::from_utf8(line).unwrap());
        header.push('\n');
    }
    if encoded.len().is_multiple_of(64) {
        header.push('\n');
    }
    header.push_str(&others);
    [header.as_bytes(), &bytes[end..]].concat()
}
