//! The sealed object against its oracles, the `age` and `lz4` programs, and against every kind of bad input.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use age_core::secrecy::ExposeSecret;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bytes::Bytes;
use repository::descriptor::{Descriptor, WalDescriptor};
use repository::identity::{Identities, Recipients, SecretReference, generate_identity};
use repository::key::ObjectKey;
use repository::sealed::{
    BufferPool, Compression, Facts, MAX_HEADER_BYTES, OpenPolicy, SealPolicy, Sealed, Sealer,
    read_descriptor,
};
use repository::testing::UNENCRYPTED;
use repository::{Error, ErrorClass};
use wal_format::Lsn;

const KEY: &str = "7412/wal/00000001/00000000/000000010000000000000001.wal";
const LIMIT: usize = 64 << 20;

/// A key pair in a folder of its own.
struct Keys {
    folder: tempfile::TempDir,
    recipients: Recipients,
    policy: OpenPolicy,
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn load(path: &Path) -> Identities {
    let reference = SecretReference::from_str(&format!("file:{}", path.display())).unwrap();
    block_on(Identities::load(&[reference])).unwrap()
}

impl Keys {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let new = generate_identity(jiff::Timestamp::UNIX_EPOCH);
        let path = folder.path().join("identity");
        std::fs::write(&path, new.file.expose_secret()).unwrap();
        let identities = load(&path);
        assert_eq!(
            identities.recipients(),
            std::slice::from_ref(&new.recipient)
        );
        let policy = OpenPolicy {
            identities,
            allow_plain: false,
        };
        Self {
            recipients: Recipients::parse(&[new.recipient]).unwrap(),
            policy,
            folder,
        }
    }

    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        bytes(&seal_as(
            Some(self.recipients.clone()),
            Compression::Lz4,
            plain,
        ))
    }

    fn open(&self, key: &str, object: Vec<u8>) -> Result<(Descriptor, Vec<u8>), Error> {
        open(&self.policy, key, object)
    }
}

fn open(policy: &OpenPolicy, key: &str, object: Vec<u8>) -> Result<(Descriptor, Vec<u8>), Error> {
    let mut plain = Vec::new();
    let descriptor = policy.open(&key.parse().unwrap(), object.into(), LIMIT, &mut plain)?;
    Ok((descriptor, plain))
}

fn open_undescribed(policy: &OpenPolicy, object: &[u8]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    policy.open_undescribed("by hand", Bytes::copy_from_slice(object), LIMIT, &mut plain)?;
    Ok(plain)
}

fn seal_as(recipients: Option<Recipients>, compression: Compression, plain: &[u8]) -> Sealed {
    let policy = SealPolicy {
        recipients,
        compression,
        ..UNENCRYPTED
    };
    let wal = WalDescriptor {
        start_lsn: Lsn::new(1 << 24),
        end_lsn: Lsn::new(2 << 24),
        ..WalDescriptor::default()
    };
    let facts = Facts {
        key: KEY.parse().unwrap(),
        pg_version: 18,
        wal: Some(wal),
    };
    Sealer::new(policy, BufferPool::new(2))
        .seal(facts, plain)
        .unwrap()
}

fn bytes(sealed: &Sealed) -> Vec<u8> {
    [&sealed.header[..], &sealed.payload[..]].concat()
}

/// Bytes that compress like WAL: runs and noise.
fn sample(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let noise_or_run = |i: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if (i / 512).is_multiple_of(3) {
            state as u8
        } else {
            (i / 64) as u8
        }
    };
    (0..size).map(noise_or_run).collect()
}

/// Around every boundary: empty, smallest compressible block, chunks of 64 KiB, blocks of 256 KiB.
const SIZES: [usize; 11] = [
    0,
    1,
    12,
    13,
    65_535,
    65_536,
    262_143,
    262_144,
    262_145,
    1 << 20,
    (1 << 24) + 7,
];

fn pipe(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), input).unwrap();
    let output = Command::new(program)
        .args(args)
        .stdin(std::fs::File::open(file.path()).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (`make setup`): {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        output.status
    );
    output.stdout
}

#[test]
fn opens_what_it_sealed_at_every_size_and_codec() {
    let keys = Keys::new();
    for compression in [Compression::Lz4, Compression::Zstd] {
        for size in SIZES {
            let plain = sample(size);
            let object = seal_as(Some(keys.recipients.clone()), compression, &plain);
            let (descriptor, opened) = keys.open(KEY, bytes(&object)).unwrap();
            assert!(opened == plain, "{compression:?} {size}");
            assert_eq!(descriptor, object.descriptor);
            let object = seal_as(None, compression, &plain);
            assert!(open(&OpenPolicy::default(), KEY, bytes(&object)).unwrap().1 == plain);
        }
    }
}

#[test]
fn age_and_lz4_programs_decode_sealed_objects() {
    let keys = Keys::new();
    let identity = keys.folder.path().join("identity").display().to_string();
    for size in SIZES {
        let plain = sample(size);
        let frame = pipe("age", &["-d", "-i", &identity], &keys.seal(&plain));
        assert!(pipe("lz4", &["-dc"], &frame) == plain, "{size} bytes");
        // Unencrypted: `lz4` itself skips our descriptor frame.
        let object = bytes(&seal_as(None, Compression::Lz4, &plain));
        assert!(
            pipe("lz4", &["-dc"], &object) == plain,
            "{size} bytes, unencrypted"
        );
    }
}

#[test]
fn what_age_and_lz4_make_decodes_with_our_payload_layer_but_has_no_descriptor() {
    let keys = Keys::new();
    let recipient = &keys.recipients.to_strings()[0];
    for args in [
        &["-c"][..],
        &["-c", "-B5", "-BD"],
        &["-c", "-BX", "--content-size"],
        &["-c", "--no-frame-crc", "-B5"],
        &["-9c"],
    ] {
        for size in SIZES {
            let plain = sample(size);
            let object = pipe("age", &["-r", recipient], &pipe("lz4", args, &plain));
            let opened = open_undescribed(&keys.policy, &object).unwrap();
            assert!(opened == plain, "lz4 {args:?} {size}");
            let error = keys.open(KEY, object).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{KEY}: the object carries no descriptor")
            );
            assert_eq!(error.class(), ErrorClass::Corrupt);
        }
    }
}

#[test]
fn keys_from_age_keygen_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let mut keygen = Command::new("age-keygen");
    assert!(
        keygen
            .arg("-o")
            .arg(&path)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let identities = load(&path);
    let recipients = Recipients::parse(&identities.recipients()).unwrap();
    let object = bytes(&seal_as(Some(recipients), Compression::Lz4, b"hello"));
    let policy = OpenPolicy {
        identities,
        allow_plain: false,
    };
    assert_eq!(open(&policy, KEY, object).unwrap().1, b"hello");
}

#[test]
fn every_recipient_opens_the_object_and_sixteen_fit() {
    let pairs: Vec<Keys> = (0..16).map(|_| Keys::new()).collect();
    let all: Vec<String> = pairs
        .iter()
        .flat_map(|keys| keys.recipients.to_strings())
        .collect();
    let recipients = Recipients::parse(&all).unwrap();
    let object = bytes(&seal_as(Some(recipients), Compression::Lz4, b"for all"));
    for keys in &pairs {
        assert_eq!(keys.open(KEY, object.clone()).unwrap().1, b"for all");
    }
    let seventeen = [&all[..], &Keys::new().recipients.to_strings()].concat();
    let error = Recipients::parse(&seventeen).unwrap_err().to_string();
    assert!(error.contains("17 given, 1 to 16"), "{error}");
}

#[test]
fn wrong_key() {
    let error = Keys::new()
        .open(KEY, Keys::new().seal(b"secret"))
        .unwrap_err();
    let expected = format!("{KEY}: none of the 1 configured identities opens the object");
    assert_eq!(
        (error.to_string(), error.class()),
        (expected, ErrorClass::Key)
    );
}

#[test]
fn no_key() {
    let error = open(&OpenPolicy::default(), KEY, Keys::new().seal(b"secret")).unwrap_err();
    let expected = format!("{KEY}: the object is encrypted and no identity is configured");
    assert_eq!(
        (error.to_string(), error.class()),
        (expected, ErrorClass::Key)
    );
}

#[test]
fn plain_object_is_refused_where_an_identity_is_configured() {
    let mut keys = Keys::new();
    let object = bytes(&seal_as(None, Compression::Lz4, b"forged"));
    assert!(matches!(
        keys.open(KEY, object.clone()),
        Err(Error::PlainRefused { .. })
    ));
    keys.policy.allow_plain = true;
    assert_eq!(keys.open(KEY, object).unwrap().1, b"forged");
}

#[test]
fn truncated_at_every_chunk_boundary_and_everywhere_in_the_header() {
    let keys = Keys::new();
    let object = seal_as(
        Some(keys.recipients.clone()),
        Compression::Lz4,
        &sample(700_000),
    );
    let header = object.header.len();
    let whole = bytes(&object);
    let chunks = (0..)
        .map(|i| header + 16 + i * (65_536 + 16))
        .take_while(|at| *at < whole.len());
    let cuts: Vec<usize> = (0..=header)
        .chain(chunks.flat_map(|at| [at - 1, at, at + 1]))
        .collect();
    assert!(cuts.len() > header + 12, "several chunks");
    for cut in cuts {
        let error = keys.open(KEY, whole[..cut].to_vec()).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Corrupt, "cut at {cut}: {error}");
        // The payload layer alone, without the sizes of the descriptor, must find it too.
        assert!(
            open_undescribed(&keys.policy, &whole[..cut]).is_err(),
            "cut at {cut}"
        );
    }
}

#[test]
fn one_flipped_bit_anywhere() {
    let keys = Keys::new();
    let plain = sample(3000);
    let unencrypted = bytes(&seal_as(None, Compression::Lz4, &plain));
    for (object, policy) in [
        (keys.seal(&plain), &keys.policy),
        (unencrypted, &OpenPolicy::default()),
    ] {
        for bit in 0..object.len() * 8 {
            let mut changed = object.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let error = open(policy, KEY, changed).expect_err("a changed bit must be found");
            assert_eq!(error.class(), ErrorClass::Corrupt, "bit {bit}: {error}");
        }
    }
}

#[test]
fn object_moved_to_another_key() {
    let keys = Keys::new();
    let other = "7412/wal/00000001/00000000/000000010000000000000002.wal";
    let object = keys.seal(b"x");
    let error = keys.open(other, object.clone()).unwrap_err();
    let expected = format!("{other}: what stands there is of another place: {KEY} (wal)");
    assert_eq!(
        (error.to_string(), error.class()),
        (expected, ErrorClass::Corrupt)
    );
    let error = read_descriptor(&other.parse().unwrap(), &object).unwrap_err();
    assert!(matches!(error, Error::Misplaced { .. }));
}

#[test]
fn object_of_another_cluster() {
    let keys = Keys::new();
    let error = keys
        .open(&KEY.replace("7412/", "7413/"), keys.seal(b"x"))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("of the cluster with system identifier 7412"),
        "{error}"
    );
}

/// Replaces a text in the descriptor and mends the checksum, as somebody without the file key could.
fn edit_descriptor(object: &[u8], from: &str, to: &str) -> Vec<u8> {
    let end = object.windows(4).position(|w| w == b"--- ").unwrap();
    let head = String::from_utf8(object[..end].to_vec()).unwrap();
    let (ours, others) = head.split_once("-> X25519").unwrap();
    let others = format!("-> X25519{others}");
    let body: String = ours.lines().skip(2).collect();
    let json = String::from_utf8(BASE64_STANDARD_NO_PAD.decode(body).unwrap()).unwrap();
    assert!(json.contains(from), "{json}");
    let json = json.replace(from, to);
    let mut crc = crc32fast::Hasher::new();
    crc.update(json.as_bytes());
    crc.update(others.as_bytes());
    let crc = crc.finalize();
    let encoded = BASE64_STANDARD_NO_PAD.encode(&json);
    let mut lines: Vec<&str> = encoded
        .as_bytes()
        .chunks(64)
        .map(|line| str::from_utf8(line).unwrap())
        .collect();
    if encoded.len().is_multiple_of(64) {
        lines.push("");
    }
    let lines = lines.join("\n");
    let mut edited =
        format!("age-encryption.org/v1\n-> walden.v1 {crc:08x}\n{lines}\n{others}").into_bytes();
    edited.extend_from_slice(&object[end..]);
    edited
}

#[test]
fn edited_descriptor() {
    let keys = Keys::new();
    let edited = edit_descriptor(&keys.seal(b"x"), "0/2000000", "0/3000000");
    let claimed = read_descriptor(&KEY.parse().unwrap(), &edited)
        .unwrap()
        .wal
        .unwrap();
    assert_eq!(
        claimed.end_lsn,
        Lsn::new(0x300_0000),
        "without a key a descriptor is a claim"
    );
    let error = keys.open(KEY, edited).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{KEY}: the header was changed: its HMAC does not fit")
    );
}

#[test]
fn future_format_and_requirement() {
    let keys = Keys::new();
    let object = keys.seal(b"x");
    for (to, says) in [
        (r#""format":2"#, "written by a later version: format 2"),
        (
            r#""format":1,"requires":["shards"]"#,
            r#"it requires "shards""#,
        ),
    ] {
        let error = keys
            .open(KEY, edit_descriptor(&object, r#""format":1"#, to))
            .unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.class(), ErrorClass::Config);
    }
}

#[test]
fn header_of_a_mebibyte_and_header_of_forty_stanzas_are_refused_unread() {
    let keys = Keys::new();
    let key: ObjectKey = KEY.parse().unwrap();
    let mut large = b"age-encryption.org/v1\n-> walden.v1 00000000\n".to_vec();
    while large.len() < 1 << 20 {
        large.extend_from_slice(&[b'A'; 64]);
        large.push(b'\n');
    }
    let error = read_descriptor(&key, &large).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{KEY}: a header larger than any of format 1")
    );
    assert_eq!(
        keys.open(KEY, large).unwrap_err().class(),
        ErrorClass::Corrupt
    );

    let mut many = b"age-encryption.org/v1\n".to_vec();
    for _ in 0..40 {
        many.extend_from_slice(b"-> x\nAAAA\n");
    }
    assert!(many.len() < MAX_HEADER_BYTES);
    let error = read_descriptor(&key, &many).unwrap_err();
    let expected = format!("{KEY}: a header with more stanzas than any of format 1");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_frame_that_holds_more_than_the_reader_allows_is_refused() {
    let keys = Keys::new();
    for compression in [Compression::Lz4, Compression::Zstd] {
        let object = bytes(&seal_as(
            Some(keys.recipients.clone()),
            compression,
            &vec![0; 1 << 22],
        ));
        let mut plain = Vec::new();
        let opened = keys
            .policy
            .open(&KEY.parse().unwrap(), object.into(), 1 << 20, &mut plain);
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
        assert!(plain.capacity() < 1 << 22, "{}", plain.capacity());
    }
}

#[test]
fn references_refuse_inline_secrets_and_say_what_is_wrong() {
    for (text, says) in [
        ("AGE-SECRET-KEY-1QQQ", "a secret never stands inline"),
        ("plain", "expected file:PATH, env:NAME or cmd:COMMAND"),
        ("file:", "nothing follows the colon"),
    ] {
        let error = SecretReference::from_str(text).unwrap_err().to_string();
        assert!(
            error.contains(says) && !error.contains("KEY-1QQQ"),
            "{error}"
        );
    }
    for (text, says) in [
        ("file:/nowhere/at all", "cannot be opened"),
        (
            "env:WALDEN_TEST_UNSET",
            "the environment variable is not set",
        ),
        ("cmd:exit 3", "it failed with exit status: 3"),
        ("cmd:echo '# nothing'", "holds no age identity"),
        ("cmd:head -c 70000 /dev/zero", "more than 65536 bytes"),
    ] {
        let reference = SecretReference::from_str(text).unwrap();
        let error = block_on(Identities::load(&[reference]))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}
