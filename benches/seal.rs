//! What sealing, opening and scanning a real 16 MiB segment cost, beside `memcpy` and the bare libraries in the same run.
//!
//! Ratios count: absolute figures swing with the machine. The segments come from `scripts/sample-wal`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and fails by panicking"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use repository::identity::{
    ExposeSecret, Identities, Recipients, SecretReference, generate_identity,
};
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Compression, Facts, OpenPolicy, SealPolicy, Sealer};
use wal_format::{DecoderConfig, SegmentName, SegmentSize, summarise_segment};

/// How long one figure is measured; the best pass counts.
const MEASURE: Duration = Duration::from_millis(900);
/// Segments measured: more would not change the figures.
const SEGMENTS: usize = 12;
const BLOCK: usize = 256 << 10;
const CHUNK: usize = 64 << 10;

struct Figure {
    what: &'static str,
    bytes_per_second: f64,
}

/// Runs passes over all segments and keeps the best.
fn measure(what: &'static str, plain_bytes: usize, mut pass: impl FnMut()) -> Figure {
    pass();
    let begun = Instant::now();
    let mut best = Duration::MAX;
    while begun.elapsed() < MEASURE {
        let start = Instant::now();
        pass();
        best = best.min(start.elapsed());
    }
    Figure {
        what,
        bytes_per_second: plain_bytes as f64 / best.as_secs_f64(),
    }
}

fn sample() -> Vec<(SegmentName, Vec<u8>)> {
    let cache =
        std::env::var_os("WALDEN_CACHE_DIR").map_or_else(|| PathBuf::from(".cache"), PathBuf::from);
    let folder = cache.join("sample-wal");
    let entries = std::fs::read_dir(&folder);
    let entries = entries
        .unwrap_or_else(|error| panic!("{}: {error}; run scripts/sample-wal", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    // Spread over the kinds of work that wrote them.
    let step = files.len().div_ceil(SEGMENTS).max(1);
    let read = |path: PathBuf| {
        (
            path.file_name().unwrap().to_str().unwrap().parse().unwrap(),
            std::fs::read(path).unwrap(),
        )
    };
    files.into_iter().step_by(step).map(read).collect()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let segments = sample();
    let total: usize = segments.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut buffer = vec![0; 16 << 20];

    let memcpy = measure("memcpy, reused buffer", total, || {
        for (_, segment) in &segments {
            buffer.copy_from_slice(segment);
            black_box(&buffer);
        }
    });
    let crc = measure("crc32fast", total, || {
        for (_, segment) in &segments {
            black_box(crc32fast::hash(segment));
        }
    });
    let crc32c = measure("crc32c of whole segments", total, || {
        for (_, segment) in &segments {
            black_box(crc32c::crc32c(segment));
        }
    });
    let scan = measure("scan: WAL records with CRC-32C", total, || {
        for (name, segment) in &segments {
            let config = DecoderConfig {
                segment_size: SegmentSize::DEFAULT,
                system_identifier: None,
                major: None,
            };
            let summary =
                summarise_segment(config, name.start(SegmentSize::DEFAULT).unwrap(), segment)
                    .unwrap();
            assert!(summary.is_complete(), "{name}: {summary:?}");
        }
    });

    let mut table = CompressTable::large();
    let mut block = vec![0; get_maximum_output_size(BLOCK)];
    let lz4 = measure("lz4_flex blocks", total, || {
        for (_, segment) in &segments {
            for plain in segment.chunks(BLOCK) {
                black_box(compress_into_with_table(plain, &mut block, &mut table).unwrap());
            }
        }
    });
    let packed: Vec<Vec<u8>> = segments
        .iter()
        .flat_map(|(_, segment)| segment.chunks(BLOCK))
        .map(lz4_flex::block::compress)
        .collect();
    let packed_bytes: usize = packed.iter().map(Vec::len).sum();
    let unlz4 = measure("lz4_flex decode", total, || {
        for block in &packed {
            black_box(decompress_into(block, &mut buffer[..BLOCK]).unwrap());
        }
    });
    let cipher = chacha20poly1305::ChaCha20Poly1305::new(&[7; 32].into());
    let aead = measure("chacha20poly1305 (its own bytes)", total, || {
        for (_, segment) in &segments {
            for chunk in buffer[..segment.len()].chunks_mut(CHUNK) {
                black_box(
                    cipher
                        .encrypt_inout_detached(&[0; 12].into(), &[], chunk.into())
                        .unwrap(),
                );
            }
        }
    });

    let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity");
    std::fs::write(&path, identity.file.expose_secret()).unwrap();
    let reference: SecretReference = format!("file:{}", path.display()).parse().unwrap();
    let identities = runtime.block_on(Identities::load(&[reference])).unwrap();
    let recipients = Some(Recipients::parse(&[identity.recipient]).unwrap());
    let policy = SealPolicy {
        recipients,
        compression: Compression::Lz4,
        minimal_descriptor: false,
    };
    let mut sealer = Sealer::new(policy, BufferPool::new(2));
    let key = |name: SegmentName| ObjectKey::Segment {
        cluster: ClusterId::new(1),
        name,
    };
    let facts = |name: SegmentName| Facts {
        key: key(name),
        pg_version: 18,
        wal: None,
    };
    let seal = measure("SEAL: compress, encrypt, checksum", total, || {
        for (name, segment) in &segments {
            black_box(sealer.seal(facts(*name), segment).unwrap());
        }
    });
    let sealed: Vec<(ObjectKey, Vec<u8>)> = segments
        .iter()
        .map(|(name, segment)| {
            let sealed = sealer.seal(facts(*name), segment).unwrap();
            (
                key(*name),
                [&sealed.header[..], &sealed.payload[..]].concat(),
            )
        })
        .collect();
    let open_policy = OpenPolicy {
        identities,
        allow_plain: false,
    };
    let mut plain = Vec::new();
    let open = measure(
        "OPEN: decrypt, decompress, check (and a copy in)",
        total,
        || {
            for (key, object) in &sealed {
                open_policy
                    .open(key, object.clone().into(), 16 << 20, &mut plain)
                    .unwrap();
                black_box(&plain);
            }
        },
    );

    println!(
        "{} segments, compressed to {:.1} %",
        segments.len(),
        100.0 * packed_bytes as f64 / total as f64
    );
    println!(
        "{:<50} {:>8} {:>14} {:>12}",
        "", "GB/s", "of memcpy", "ms/segment"
    );
    for figure in [
        &memcpy, &crc, &crc32c, &scan, &lz4, &unlz4, &aead, &seal, &open,
    ] {
        println!(
            "{:<50} {:>8.2} {:>13.1}% {:>12.2}",
            figure.what,
            figure.bytes_per_second / 1e9,
            100.0 * figure.bytes_per_second / memcpy.bytes_per_second,
            1e3 * (16 << 20) as f64 / figure.bytes_per_second,
        );
    }
    // What the parts alone would take for the same work: compress all, encrypt the compressed, checksum both.
    let ratio = packed_bytes as f64 / total as f64;
    let seconds = |figure: &Figure, share: f64| share / figure.bytes_per_second;
    let bare_seal = 1.0 / (seconds(&lz4, 1.0) + seconds(&aead, ratio) + seconds(&crc, 1.0 + ratio));
    let bare_open =
        1.0 / (seconds(&unlz4, 1.0) + seconds(&aead, ratio) + seconds(&crc, 1.0 + ratio));
    println!(
        "seal is at {:.0} % of its bare parts, open at {:.0} %, scan at {:.0} % of crc32c alone",
        100.0 * seal.bytes_per_second / bare_seal,
        100.0 * open.bytes_per_second / bare_open,
        100.0 * scan.bytes_per_second / crc32c.bytes_per_second
    );
    let segment_ms = 1e3 * (16 << 20) as f64 / seal.bytes_per_second;
    println!(
        "aims: seal 16-19 ms a segment: {:+.0} % of 19; open 1.0-1.3 GB/s: {:+.0} % of 1.0; scan 7-9 GB/s: {:+.0} % of 7",
        100.0 * (segment_ms / 19.0 - 1.0),
        100.0 * (open.bytes_per_second / 1e9 - 1.0),
        100.0 * (scan.bytes_per_second / 7e9 - 1.0)
    );
}
