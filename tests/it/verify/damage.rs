//! The damages: each changes a copy of the archive in one way and says which objects must be named, and where in WAL.

use super::archive::{Archive, Copy, SIZE};
use super::told;
use repository::descriptor::WalDescriptor;
use serde_json::Value;
use sha2::{Digest, Sha256};
use wal_format::{DecoderConfig, Lsn, Record, SegmentName, Step, WalDecoder};

/// Bytes of a payload's chunk with its tag, and of the nonce ahead of the first.
const CHUNK: usize = (64 << 10) + 16;
const NONCE: usize = 16;

/// Part of an object's name, and the place in WAL that must be named with it.
pub(super) type Named = (String, Option<Lsn>);

/// Damages a copy, and says what must be named.
type Make = dyn Fn(&Archive, &Copy) -> Vec<Named> + Send + Sync;

/// One way to damage an archive.
pub(super) struct Damage {
    pub(super) name: &'static str,
    /// The shallowest level that finds it.
    pub(super) level: &'static str,
    /// Whether a backup loses by it.
    pub(super) matters: bool,
    pub(super) make: Box<Make>,
}

pub(super) fn damage(
    name: &'static str,
    level: &'static str,
    make: impl Fn(&Archive, &Copy) -> Vec<Named> + Send + Sync + 'static,
) -> Damage {
    Damage {
        name,
        level,
        matters: true,
        make: Box::new(make),
    }
}

/// One by which no backup loses anything.
pub(super) fn harmless(
    name: &'static str,
    make: impl Fn(&Archive, &Copy) -> Vec<Named> + Send + Sync + 'static,
) -> Damage {
    Damage {
        matters: false,
        ..damage(name, "--checksums", make)
    }
}

/// All of them, for an archive with or without encryption.
pub(super) fn damages(archive: &Archive) -> Vec<Damage> {
    let mut all = absences();
    all.extend(stored_bytes());
    all.extend(wrong_places());
    all.extend(sealed_anew());
    all.extend(backups());
    all.extend(told::descriptors_and_backups(archive.identity().is_some()));
    all.extend(told::plain_documents());
    all
}

pub(super) fn start(name: &SegmentName) -> Option<Lsn> {
    name.start(SIZE)
}

fn absences() -> Vec<Damage> {
    vec![
        damage("a middle segment deleted", "--presence", |archive, copy| {
            let name = archive.middle_segment();
            let key = copy.remove_segment(archive, &name);
            vec![(key, start(&name))]
        }),
        damage(
            "the segment a backup needs for consistency deleted",
            "--presence",
            |archive, copy| {
                let name = archive.segment_before(archive.lsn(1, "stop_lsn"));
                let key = copy.remove_segment(archive, &name);
                vec![(key, start(&name))]
            },
        ),
        damage("a history file deleted", "--presence", |archive, copy| {
            let key = format!("{}/wal/00000002.history", archive.cluster);
            copy.remove(&key);
            vec![(key, None)]
        }),
    ]
}

/// Flips one bit of an object.
pub(super) fn flip(copy: &Copy, key: &str, place: impl Fn(&[u8]) -> usize) {
    let mut bytes = copy.read(key);
    let place = place(&bytes);
    bytes[place] ^= 1;
    copy.write(key, &bytes);
}

fn header_length(archive: &Archive, copy: &Copy, key: &str) -> usize {
    let bytes = copy.read(key);
    let (descriptor, _) = archive.open(key, bytes.clone());
    bytes.len() - usize::try_from(descriptor.payload_size).unwrap()
}

fn stored_bytes() -> Vec<Damage> {
    let in_segment = |name, level, place: fn(usize, &[u8]) -> usize| {
        damage(name, level, move |archive, copy| {
            let name = archive.middle_segment();
            let key = archive.segment_key(&name);
            let header = header_length(archive, copy, &key);
            flip(copy, &key, |bytes| place(header, bytes));
            vec![(key, start(&name))]
        })
    };
    vec![
        // Timeline 1 has ended and is rolled up: --presence believes the roll-up of a segment whose size is right.
        in_segment("a byte flipped in the header", "--checksums", |_, _| 80),
        in_segment(
            "a byte flipped at the header's end",
            "--checksums",
            |header, _| header - 3,
        ),
        in_segment(
            "a byte flipped in the payload",
            "--checksums",
            |header, bytes| (header + bytes.len()) / 2,
        ),
        in_segment(
            "a byte flipped in the last chunk",
            "--checksums",
            |_, bytes| bytes.len() - 20,
        ),
        damage(
            "an object truncated at a chunk boundary",
            "--checksums",
            |archive, copy| {
                let name = archive.middle_segment();
                let key = archive.segment_key(&name);
                let header = header_length(archive, copy, &key);
                let bytes = copy.read(&key);
                let chunks = (bytes.len() - header - NONCE) / CHUNK;
                assert!(
                    chunks > 2,
                    "the segment compresses too well: {} bytes",
                    bytes.len()
                );
                copy.write(&key, &bytes[..header + NONCE + (chunks - 1) * CHUNK]);
                vec![(key, start(&name))]
            },
        ),
        damage(
            "a tail chunk with a flipped byte",
            "--checksums",
            |archive, copy| {
                let key = newest_chunk(archive, copy);
                flip(copy, &key, |bytes| bytes.len() - 5);
                vec![(key, None)]
            },
        ),
    ]
}

/// The newest tail chunk of timeline 2: of the segment that is not sealed; those that a sealed one covers are garbage.
fn newest_chunk(archive: &Archive, copy: &Copy) -> String {
    let folder = format!("{}/tail/00000002", archive.cluster);
    let mut names: Vec<String> = std::fs::read_dir(copy.path(&folder))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    format!("{folder}/{}", names.last().unwrap())
}

fn wrong_places() -> Vec<Damage> {
    vec![
        damage("two segments swapped", "--presence", |archive, copy| {
            let middle = archive.middle_segment();
            let all = archive.segments(1);
            let index = all.iter().position(|name| *name == middle).unwrap();
            let [a, b] = [middle, all[index + 1]];
            let keys = [archive.segment_key(&a), archive.segment_key(&b)];
            let [first, second] = [copy.read(&keys[0]), copy.read(&keys[1])];
            copy.write(&keys[0], &second);
            copy.write(&keys[1], &first);
            let [one, two] = keys;
            vec![(one, start(&a)), (two, start(&b))]
        }),
        damage(
            "a segment replaced by the same name from another cluster",
            "--presence",
            |archive, copy| {
                let stop = archive.lsn(0, "stop_lsn");
                let mut later = archive.segments(1).into_iter();
                let found = later.find_map(|name| {
                    let bytes = archive.of_stranger(&name)?;
                    (start(&name)? > stop).then_some((name, bytes))
                });
                let (name, bytes) = found.expect("the stranger has such a segment");
                let key = archive.segment_key(&name);
                copy.write(&key, &bytes);
                vec![(key, start(&name))]
            },
        ),
        damage(
            "two histories of one timeline mixed from two repositories",
            "--presence",
            |archive, copy| {
                let found = archive.segments(2).into_iter().find_map(|name| {
                    let bytes = archive.of_clone(&name)?;
                    let key = archive.segment_key(&name);
                    // They share their past.
                    let plain = |bytes| archive.open(&key, bytes).1;
                    (plain(bytes.clone()) != plain(copy.read(&key))).then_some((name, key, bytes))
                });
                let (name, key, bytes) = found.expect("the clone wrote another such segment");
                copy.write(&key, &bytes);
                // The first segment of the other way begins as ours does: the next one shows it.
                let next = SegmentName::new(name.timeline, name.number(SIZE).unwrap().next(), SIZE);
                let next = archive.segment_key(&next);
                let wal = archive.open(&next, copy.read(&next)).0.wal.unwrap();
                vec![(next, wal.first_record)]
            },
        ),
        damage(
            "a segment of another timeline 2, which left timeline 1 elsewhere",
            "--presence",
            |archive, copy| {
                let name = archive.segments(2)[1];
                let key = archive.segment_key(&name);
                let (descriptor, plain) = archive.open(&key, copy.read(&key));
                let wal = WalDescriptor {
                    lineage: "0123456789abcdef0123456789abcdef".into(),
                    ..descriptor.wal.unwrap()
                };
                copy.write(&key, &archive.seal(&key, Some(wal), &plain));
                vec![(key, start(&name))]
            },
        ),
        damage(
            "the history file of another timeline 2",
            "--presence",
            |archive, copy| {
                let key = format!("{}/wal/00000002.history", archive.cluster);
                let (_, plain) = archive.open(&key, copy.read(&key));
                let other = [plain, b"# another one\n".to_vec()].concat();
                copy.write(&key, &archive.seal(&key, None, &other));
                let names = archive.segments(2).into_iter();
                names
                    .map(|name| (archive.segment_key(&name), start(&name)))
                    .collect()
            },
        ),
    ]
}

/// The records that lie whole within a page of a segment.
pub(super) fn records(name: &SegmentName, plain: &[u8]) -> Vec<Record> {
    let config = DecoderConfig {
        segment_size: SIZE,
        system_identifier: None,
        major: None,
    };
    let mut decoder = WalDecoder::new(config, start(name).unwrap()).unwrap();
    let mut found = Vec::new();
    decoder.push(plain, |step| {
        if let Step::Record(record) = step {
            found.push(record);
        }
    });
    let page = |lsn: Lsn| lsn.as_u64() / 8192;
    found.retain(|record| {
        let last = record
            .start
            .saturating_add(u64::from(record.header.total_length) - 1);
        record.start >= start(name).unwrap() && page(record.start) == page(last)
    });
    found
}

fn sealed_anew() -> Vec<Damage> {
    vec![
        damage(
            "a valid first page with a random rest, sealed anew",
            "--wal",
            |archive, copy| {
                let name = archive.middle_segment();
                let key = archive.segment_key(&name);
                let (descriptor, mut plain) = archive.open(&key, copy.read(&key));
                let mut state = 88_172_645_463_325_252_u64;
                for byte in &mut plain[8192..] {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    *byte = state.to_le_bytes()[3];
                }
                copy.write(&key, &archive.seal(&key, descriptor.wal, &plain));
                vec![(key, Some(start(&name).unwrap().saturating_add(8192)))]
            },
        ),
        damage(
            "a record with a wrong xl_prev and its CRC recomputed, sealed anew",
            "--wal",
            |archive, copy| {
                let name = archive.middle_segment();
                let key = archive.segment_key(&name);
                let (descriptor, mut plain) = archive.open(&key, copy.read(&key));
                let records = records(&name, &plain);
                let record = &records[records.len() / 2];
                let at = record.start.distance_from(start(&name).unwrap()).unwrap();
                let at = usize::try_from(at).unwrap();
                let length = usize::try_from(record.header.total_length).unwrap();
                let bytes = &mut plain[at..at + length];
                let wrong = record.header.previous.as_u64() - 8;
                bytes[8..16].copy_from_slice(&wrong.to_le_bytes());
                let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[24..]), &bytes[..20]);
                bytes[20..24].copy_from_slice(&sum.to_le_bytes());
                copy.write(&key, &archive.seal(&key, descriptor.wal, &plain));
                vec![(key, Some(record.start))]
            },
        ),
        damage(
            "a flipped bit in a record, sealed anew",
            "--wal",
            |archive, copy| {
                let name = archive.segments(2)[1];
                let key = archive.segment_key(&name);
                let (descriptor, mut plain) = archive.open(&key, copy.read(&key));
                let records = records(&name, &plain);
                let record = &records[records.len() / 3];
                let at = record.start.distance_from(start(&name).unwrap()).unwrap() + 24;
                plain[usize::try_from(at).unwrap()] ^= 4;
                copy.write(&key, &archive.seal(&key, descriptor.wal, &plain));
                vec![(key, Some(record.start))]
            },
        ),
        damage(
            "a flipped bit in a tail chunk, sealed anew",
            "--wal",
            |archive, copy| {
                let key = newest_chunk(archive, copy);
                let (descriptor, mut plain) = archive.open(&key, copy.read(&key));
                let wal = descriptor.wal.unwrap();
                let last = wal.last_record.unwrap();
                let at = last.distance_from(wal.start_lsn).unwrap() + 24;
                plain[usize::try_from(at).unwrap()] ^= 4;
                copy.write(&key, &archive.seal(&key, Some(wal), &plain));
                vec![(key, Some(last))]
            },
        ),
        damage(
            "a tail chunk that follows another record than the one before it, sealed anew",
            "--presence",
            |archive, copy| {
                let newest = newest_chunk(archive, copy);
                let segment = &newest[..newest.find('-').unwrap() - 9];
                let key = copy
                    .keys()
                    .into_iter()
                    .filter(|key| key.starts_with(&format!("{segment}.00000000-")))
                    .max()
                    .unwrap();
                let (descriptor, plain) = archive.open(&key, copy.read(&key));
                let mut wal = descriptor.wal.unwrap();
                let before = wal.first_record_prev.unwrap().as_u64();
                wal.first_record_prev = Some(Lsn::new(before - 8));
                let first = wal.first_record;
                copy.write(&key, &archive.seal(&key, Some(wal), &plain));
                vec![(key, first)]
            },
        ),
        damage(
            "a segment stored with its damage marked",
            "--presence",
            |archive, copy| {
                let name = archive.middle_segment();
                let key = archive.segment_key(&name);
                let (descriptor, mut plain) = archive.open(&key, copy.read(&key));
                let records = records(&name, &plain);
                let record = &records[records.len() / 3];
                let at = record.start.distance_from(start(&name).unwrap()).unwrap() + 24;
                plain[usize::try_from(at).unwrap()] ^= 4;
                let wal = WalDescriptor {
                    invalid_at: Some(record.start),
                    ..descriptor.wal.unwrap()
                };
                copy.write(&key, &archive.seal(&key, Some(wal), &plain));
                vec![(key, Some(record.start))]
            },
        ),
    ]
}

pub(super) fn part_key(archive: &Archive, backup: usize) -> String {
    format!(
        "{}/backups/{}/base.000000",
        archive.cluster, archive.labels[backup]
    )
}

fn backups() -> Vec<Damage> {
    vec![
        damage("a backup part deleted", "--presence", |archive, copy| {
            let key = part_key(archive, 0);
            copy.remove(&key);
            vec![(key, None)]
        }),
        damage("a backup part truncated", "--presence", |archive, copy| {
            let key = part_key(archive, 1);
            let bytes = copy.read(&key);
            copy.write(&key, &bytes[..bytes.len() / 2]);
            vec![(key, None)]
        }),
        damage(
            "a backup part swapped with another backup's",
            "--checksums",
            |archive, copy| {
                let keys = [part_key(archive, 0), part_key(archive, 1)];
                let [first, second] = [copy.read(&keys[0]), copy.read(&keys[1])];
                copy.write(&keys[0], &second);
                copy.write(&keys[1], &first);
                keys.into_iter().map(|key| (key, None)).collect()
            },
        ),
        damage(
            "a data page that does not have its checksum",
            "--backups",
            damage_page,
        ),
        damage(
            "a file changed within a part, sealed anew",
            "--backups",
            |archive, copy| {
                let key = part_key(archive, 0);
                let (_, mut plain) = archive.open(&key, copy.read(&key));
                let middle = plain.len() / 2;
                plain[middle] ^= 1;
                let sealed = archive.seal(&key, None, &plain);
                copy.write(&key, &sealed);
                // Whoever can do that can also make the descriptor fit; the manifest is sealed.
                let document = format!(
                    "{}/backups/{}/backup.json",
                    archive.cluster, archive.labels[0]
                );
                edit_json(copy, &document, |backup| {
                    let old = backup["parts"][0]["stored_size"].as_u64().unwrap();
                    let size = sealed.len() as u64;
                    backup["parts"][0]["stored_size"] = size.into();
                    backup["parts"][0]["plain_crc32"] = crc_text(&plain);
                    let stored: u64 = backup["stored_size"].as_str().unwrap().parse().unwrap();
                    backup["stored_size"] = (stored - old + size).to_string().into();
                });
                vec![(key, None)]
            },
        ),
    ]
}

/// A CRC-32 as documents spell it.
fn crc_text(bytes: &[u8]) -> Value {
    format!("{:08x}", crc32fast::hash(bytes)).into()
}

/// A file's contents in a tar stream: where they begin, and how many bytes.
fn member(tar: &[u8], wanted: &str) -> (usize, usize) {
    let mut at = 0;
    loop {
        let header = &tar[at..at + 512];
        let name = header[..100].split(|byte| *byte == 0).next().unwrap();
        let size = std::str::from_utf8(&header[124..135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        if name == wanted.as_bytes() {
            return (at + 512, size);
        }
        at += 512 + size.next_multiple_of(512);
    }
}

/// Damages a data page and makes everything but the page itself fit: the manifest, its own checksum, and the backup's descriptor.
fn damage_page(archive: &Archive, copy: &Copy) -> Vec<Named> {
    const FILE: &str = "base/5/1259";
    let folder = format!("{}/backups/{}", archive.cluster, archive.labels[0]);
    let (part, manifest) = (part_key(archive, 0), format!("{folder}/manifest"));
    let (_, mut plain) = archive.open(&part, copy.read(&part));
    let (at, size) = member(&plain, FILE);
    let hex = |bytes: &[u8]| -> String {
        let sum = crc32c::crc32c(bytes).to_le_bytes();
        sum.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let old = hex(&plain[at..at + size]);
    plain[at + 8192 + 4000] ^= 1;
    let new = hex(&plain[at..at + size]);
    let (_, text) = archive.open(&manifest, copy.read(&manifest));
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&old), "the manifest lists {old}");
    let text = text.replace(&old, &new);
    let last = text.trim_end().rfind('\n').unwrap() + 1;
    let sum: String = Sha256::digest(&text.as_bytes()[..last])
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let text = format!("{}\"Manifest-Checksum\": \"{sum}\"}}\n", &text[..last]);
    let sizes = [&part, &manifest].map(|key| copy.read(key).len() as u64);
    let sealed = archive.seal(&part, None, &plain);
    copy.write(&part, &sealed);
    copy.write(&manifest, &archive.seal(&manifest, None, text.as_bytes()));
    let grown = [&part, &manifest].map(|key| copy.read(key).len() as u64);
    edit_json(copy, &format!("{folder}/backup.json"), |backup| {
        backup["parts"][0]["stored_size"] = grown[0].into();
        backup["parts"][0]["plain_crc32"] = crc_text(&plain);
        let stored: u64 = backup["stored_size"].as_str().unwrap().parse().unwrap();
        let stored = stored - sizes.iter().sum::<u64>() + grown.iter().sum::<u64>();
        backup["stored_size"] = stored.to_string().into();
    });
    vec![(format!("{folder}/backup.json: {FILE}"), None)]
}

pub(super) fn edit_json(copy: &Copy, key: &str, edit: impl Fn(&mut Value)) {
    let mut document: Value = serde_json::from_slice(&copy.read(key)).unwrap();
    edit(&mut document);
    copy.write(key, &serde_json::to_vec_pretty(&document).unwrap());
}
