//! What `archive-push` takes and what it refuses, each by name, on WAL that is made here.

use repository::store::Store;
use repository::testing::UNENCRYPTED;
use wal_format::testing::WalBuilder;
use wal_format::{Major, Timestamp};

use super::*;

const SYSTEM: u64 = 0x7412_3456_7890_1234;
const SIZE: SegmentSize = SegmentSize::MIN;
const SEGMENT: usize = 1 << 20;
const START: Lsn = Lsn::new(5 << 20);
const PAGE: usize = PAGE_BYTES as usize;
const BRANCH: &str = "000000020000000000000005";
const HISTORY: &[u8] = b"1\t0/50FFF8\tno recovery target specified\n";

/// A repository that knows the cluster, and a folder like `pg_wal`.
struct Place {
    store: Store,
    repository: Repository,
    folder: tempfile::TempDir,
}

impl Place {
    async fn new() -> Self {
        let store = Store::in_memory();
        let repository = Repository::new("primary", store.clone());
        let cluster = ClusterDocument {
            format: 1,
            requires: Vec::new(),
            system_identifier: SYSTEM,
            incarnation: 0,
            parent: None,
            pg_version: 18,
            block_size: 8192,
            wal_segment_size: SIZE.bytes(),
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        let key = ObjectKey::Cluster(cluster.id());
        repository.put_json(&key, &cluster).await.unwrap();
        Self {
            store,
            repository,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn config(&self) -> PushConfig<'_> {
        PushConfig {
            repositories: std::slice::from_ref(&self.repository),
            ack: Ack::All,
            seal: UNENCRYPTED,
            incarnation: 0,
            system_identifier: Some(SYSTEM),
            on_invalid: OnInvalid::StoreAndReport,
        }
    }

    async fn push(&self, name: &str, bytes: &[u8]) -> Result<Pushed> {
        self.push_with(name, bytes, &self.config()).await
    }

    async fn push_with(&self, name: &str, bytes: &[u8], config: &PushConfig<'_>) -> Result<Pushed> {
        let file = WalFile::read(&self.file(name, bytes))?;
        push(file, config, &OpenPolicy::default()).await
    }

    /// The refusal's words; the repository must not hold anything new.
    async fn refusal(&self, name: &str, bytes: &[u8]) -> String {
        let before = self.repository.list(ClusterId::new(SYSTEM)).await.unwrap();
        let error = self.push(name, bytes).await.unwrap_err();
        let after = self.repository.list(ClusterId::new(SYSTEM)).await.unwrap();
        assert_eq!(before, after, "{name} left something behind");
        error.to_string()
    }

    async fn plain(&self, key: &ObjectKey) -> Vec<u8> {
        let policy = OpenPolicy::default();
        self.repository
            .fetch(key, &policy, SEGMENT)
            .await
            .unwrap()
            .1
    }
}

fn builder() -> WalBuilder {
    let mut wal = WalBuilder::new(Major::V18, SIZE, START, Lsn::new(START.as_u64() - 0x40));
    wal.system_identifier = SYSTEM;
    wal
}

fn whole() -> Vec<u8> {
    let mut wal = builder();
    wal.commit(7, Timestamp(1_000_000));
    wal.fill_to(SEGMENT, 3000);
    wal.into_bytes()
}

/// The segment in which timeline 2 begins, as its history says.
fn branch() -> Vec<u8> {
    let mut wal = builder();
    wal.fill_to(8 * PAGE, 3000);
    wal.timeline = TimelineId::new(2).unwrap();
    wal.fill_to(SEGMENT, 3000);
    wal.into_bytes()
}

fn with(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

const NAME: &str = "000000010000000000000005";

#[tokio::test]
async fn a_complete_segment_is_stored_once_and_again_is_success() {
    let place = Place::new().await;
    let pushed = place.push(NAME, &whole()).await.unwrap();
    assert_eq!((pushed.stored, pushed.invalid), (Stored::New, None));
    assert_eq!(place.plain(&pushed.key).await, whole());
    let descriptor = place
        .repository
        .fetch_descriptor(&pushed.key)
        .await
        .unwrap();
    let wal = descriptor.wal.unwrap();
    assert_eq!(descriptor.pg_version, 18);
    assert_eq!(
        (wal.start_lsn, wal.end_lsn),
        (START, SIZE.end(SIZE.segment(START)))
    );
    assert_eq!((wal.transactions, wal.invalid_at), (Some(1), None));
    assert_eq!(wal.lineage, "");
    let again = place.push(NAME, &whole()).await.unwrap();
    assert_eq!(again.stored, Stored::Already);

    let mut other = builder();
    other.commit(8, Timestamp(2_000_000));
    other.fill_to(SEGMENT, 2500);
    let conflict = place.push(NAME, &other.into_bytes()).await.unwrap_err();
    assert_eq!(conflict.class(), ErrorClass::Conflict);
    assert_eq!(place.plain(&pushed.key).await, whole(), "never overwritten");
}

#[tokio::test]
async fn a_switched_segment_is_complete() {
    let place = Place::new().await;
    let mut wal = builder();
    wal.commit(7, Timestamp(1));
    wal.switch();
    let pushed = place.push(NAME, wal.bytes()).await.unwrap();
    assert_eq!((pushed.stored, pushed.invalid), (Stored::New, None));
}

#[tokio::test]
async fn without_a_configured_cluster_the_segment_says_whose_it_is() {
    let place = Place::new().await;
    let config = PushConfig {
        system_identifier: None,
        ..place.config()
    };
    place.push_with(NAME, &whole(), &config).await.unwrap();
    let history = b"1\t0/510000\tno recovery target specified\n";
    let pushed = place.push_with("00000002.history", history, &config).await;
    assert_eq!(
        pushed.unwrap().stored,
        Stored::New,
        "by the segment beside it"
    );
    let mut foreign = builder();
    foreign.system_identifier = 99;
    foreign.fill_to(SEGMENT, 3000);
    let error = place
        .push_with(NAME, foreign.bytes(), &config)
        .await
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Config);
    assert!(
        error.to_string().contains("the cluster 99 is not known"),
        "{error}"
    );
}

#[tokio::test]
async fn refuses_each_file_that_does_not_fit() {
    let place = Place::new().await;
    let mut foreign = builder();
    foreign.system_identifier = 99;
    foreign.fill_to(SEGMENT, 3000);
    let mut unfinished = builder();
    unfinished.fill_to(10 * PAGE + 100, 3000);
    let mut zeros = unfinished.clone();
    zeros.zeros(SEGMENT - 10 * PAGE - 100);
    let start = Lsn::new(16 << 20);
    let mut two_sizes = WalBuilder::new(Major::V18, SegmentSize::DEFAULT, start, Lsn::new(1));
    two_sizes.system_identifier = SYSTEM;
    two_sizes.fill_to(SEGMENT, 3000);
    let mut later_timeline = builder();
    later_timeline.fill_to(8 * PAGE, 3000);
    later_timeline.timeline = TimelineId::new(2).unwrap();
    later_timeline.fill_to(SEGMENT, 3000);
    for (what, name, bytes, words) in [
        (
            "name",
            "000000010000000000000005.gz",
            whole(),
            "not the name of",
        ),
        (
            "lower case",
            "00000001000000000000000a",
            whole(),
            "not the name of",
        ),
        (
            "no segment of this size",
            "000000010000000000001000",
            whole(),
            "has this name",
        ),
        (
            "cut off",
            NAME,
            whole()[..SEGMENT - 1].to_vec(),
            "1048575 bytes, but segments",
        ),
        ("empty", NAME, Vec::new(), "first page"),
        ("unwritten", NAME, vec![0; SEGMENT], "first page"),
        (
            "other cluster",
            NAME,
            foreign.into_bytes(),
            "system identifier",
        ),
        (
            "other segment size",
            "000000010000000000000010",
            two_sizes.into_bytes(),
            "segments of 16777216 bytes",
        ),
        (
            "other segment",
            "000000010000000000000006",
            whole(),
            "recycled page",
        ),
        ("not finished", NAME, zeros.into_bytes(), "not complete: "),
        (
            "timeline of no history",
            NAME,
            later_timeline.into_bytes(),
            "is of timeline 2, by the history of timeline 1",
        ),
        (
            "no history anywhere",
            "000000020000000000000005",
            whole(),
            "neither beside it nor in the repository",
        ),
        (
            "history",
            "00000002.history",
            b"nonsense\n".to_vec(),
            "timeline number",
        ),
        (
            "history without ancestors",
            "00000002.history",
            b"# nothing\n".to_vec(),
            "no ancestor",
        ),
        (
            "history of timeline 1",
            "00000001.history",
            b"1\t0/510000\tx\n".to_vec(),
            "not below",
        ),
        (
            "backup of elsewhere",
            "000000010000000000000005.00000028.backup",
            b"START WAL LOCATION: 0/600028 (file 000000010000000000000006)\n".to_vec(),
            "not that of its name",
        ),
        (
            "backup of nothing",
            "000000010000000000000005.00000028.backup",
            b"hello\n".to_vec(),
            "does not begin",
        ),
        (
            "partial of elsewhere",
            "000000010000000000000006.partial",
            whole(),
            "recycled page",
        ),
    ] {
        let refusal = place.refusal(name, &bytes).await;
        assert!(refusal.contains(words), "{what}: {refusal}");
    }
}

#[tokio::test]
async fn a_record_that_is_not_valid_is_stored_and_marked_or_refused() {
    let place = Place::new().await;
    let bytes = with(whole(), 40 * PAGE + 5000, &[0xFF; 3]);
    let refuse = PushConfig {
        on_invalid: OnInvalid::Refuse,
        ..place.config()
    };
    let error = place.push_with(NAME, &bytes, &refuse).await.unwrap_err();
    assert!(matches!(error, Error::InvalidWal { .. }), "{error}");
    let pushed = place.push(NAME, &bytes).await.unwrap();
    let InvalidWal { at, reason } = pushed.invalid.unwrap();
    assert!(reason.contains("record CRC"), "{reason}");
    let descriptor = place
        .repository
        .fetch_descriptor(&pushed.key)
        .await
        .unwrap();
    assert_eq!(descriptor.wal.unwrap().invalid_at, Some(at));
    assert_eq!(place.plain(&pushed.key).await, bytes, "stored as it is");
    assert_eq!(
        place.push(NAME, &bytes).await.unwrap().stored,
        Stored::Already
    );

    // The same damage with WAL that ends later on proves nothing about the rest.
    let mut wal = builder();
    wal.fill_to(60 * PAGE, 3000);
    wal.zeros(SEGMENT - 60 * PAGE);
    let bytes = with(wal.into_bytes(), 40 * PAGE + 5000, &[0xFF; 3]);
    let refusal = place.refusal("000000010000000000000005", &bytes).await;
    assert!(refusal.contains("not complete: WAL at"), "{refusal}");

    // And a segment switch after it does.
    let place = Place::new().await;
    let mut wal = builder();
    for _ in 0..100 {
        wal.record(10, 0, 7, &[0x5A; 3000]);
    }
    wal.switch();
    let bytes = with(wal.into_bytes(), 10 * PAGE + 5000, &[0xFF; 3]);
    assert!(place.push(NAME, &bytes).await.unwrap().invalid.is_some());
}

#[tokio::test]
async fn a_damaged_page_and_bytes_behind_a_switch_do_not_block_the_server() {
    let old = (START.as_u64() - (3 << 20) + 20 * PAGE as u64).to_le_bytes();
    let page = |number: usize| START.saturating_add((number * PAGE) as u64);
    let switched = {
        let mut wal = builder();
        wal.record(10, 0, 7, &[0x5A; 3000]);
        wal.switch();
        wal.into_bytes()
    };
    for (what, bytes, words, at) in [
        (
            "magic",
            with(whole(), 30 * PAGE, &[0, 0x11]),
            "page magic",
            Some(page(30)),
        ),
        (
            "timeline 0",
            with(whole(), 30 * PAGE + 4, &[0; 4]),
            "timeline 0",
            Some(page(30)),
        ),
        (
            "address",
            with(whole(), 20 * PAGE + 8, &old),
            "recycled page of 0/228000",
            None,
        ),
        (
            "zeros",
            with(whole(), 20 * PAGE, &[0; PAGE]),
            "zeros where WAL goes on",
            None,
        ),
        (
            "behind a switch",
            with(switched.clone(), 70 * PAGE + 9, &[7; 30]),
            "after a segment switch",
            None,
        ),
        (
            "old pages behind a switch",
            with(switched, 5 * PAGE, &whole()[..PAGE]),
            "after a segment switch",
            None,
        ),
    ] {
        let place = Place::new().await;
        let pushed = place.push(NAME, &bytes).await;
        let pushed = pushed.unwrap_or_else(|error| panic!("{what}: {error}"));
        let invalid = pushed.invalid.unwrap();
        assert!(invalid.reason.contains(words), "{what}: {}", invalid.reason);
        assert!(
            at.is_none_or(|at| at == invalid.at),
            "{what}: {}",
            invalid.at
        );
        let described = place
            .repository
            .fetch_descriptor(&pushed.key)
            .await
            .unwrap();
        assert_eq!(
            described.wal.unwrap().invalid_at,
            Some(invalid.at),
            "{what}"
        );
        assert_eq!(
            place.plain(&pushed.key).await,
            bytes,
            "{what}: stored as it is"
        );
        let refuse = PushConfig {
            on_invalid: OnInvalid::Refuse,
            ..place.config()
        };
        let error = place.push_with(NAME, &bytes, &refuse).await.unwrap_err();
        assert!(matches!(error, Error::InvalidWal { .. }), "{what}: {error}");
    }
    // What ends is not finished, however far into it pages continue a record.
    let place = Place::new().await;
    let mut long = builder();
    long.record(10, 0, 7, &vec![0x5A; 40 * PAGE]);
    let mut bytes = long.into_bytes();
    bytes.truncate(30 * PAGE);
    bytes.resize(SEGMENT, 0);
    let refusal = place.refusal(NAME, &bytes).await;
    assert!(refusal.contains("not complete"), "{refusal}");
}

#[tokio::test]
async fn pages_follow_the_history_and_the_history_is_stored_first() {
    let place = Place::new().await;
    let (bytes, name) = (branch(), BRANCH);
    let history = HISTORY;
    place.file("00000002.history", history);
    let pushed = place.push(name, &bytes).await.unwrap();
    let descriptor = place
        .repository
        .fetch_descriptor(&pushed.key)
        .await
        .unwrap();
    assert_eq!(descriptor.wal.unwrap().lineage, lineage(Some(history)));
    let catalog = place.repository.list(ClusterId::new(SYSTEM)).await.unwrap();
    assert!(catalog.timelines[&TimelineId::new(2).unwrap()].history);

    // The repository's copy serves when the server has none any more.
    std::fs::remove_file(place.folder.path().join("00000002.history")).unwrap();
    let again = place.push(name, &bytes).await.unwrap();
    assert_eq!(again.stored, Stored::Already);

    // Another way to timeline 2 is another timeline: neither it nor its WAL is taken.
    place.file("00000002.history", b"1\t0/510008\tpromoted elsewhere\n");
    let refusal = place.refusal(name, &bytes).await;
    assert!(
        refusal.contains("is of timeline 2, by the history of timeline 2 it belongs to timeline 1"),
        "{refusal}"
    );
    let other = b"1\t0/50FFF8\tpromoted elsewhere at the same place\n";
    let error = place.push("00000002.history", other).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Conflict);
    let error = place.push(name, &bytes).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Conflict);
    assert_eq!(
        place
            .push("00000002.history", history)
            .await
            .unwrap()
            .stored,
        Stored::Already
    );
}

#[tokio::test]
async fn a_partial_is_cut_where_its_wal_ends() {
    let place = Place::new().await;
    let mut wal = builder();
    for _ in 0..30 {
        wal.record(10, 0, 7, &[0x5A; 3000]);
    }
    let valid = wal.bytes().len();
    // The rest of the file is what was there before: pages of an older segment.
    let old = {
        let mut old = WalBuilder::new(
            Major::V18,
            SIZE,
            Lsn::new(2 << 20),
            Lsn::new((2 << 20) - 64),
        );
        old.system_identifier = SYSTEM;
        old.fill_to(SEGMENT, 3000);
        old.into_bytes()
    };
    let mut bytes = wal.into_bytes();
    let page_end = valid.next_multiple_of(PAGE);
    bytes.resize(page_end, 0);
    bytes.extend_from_slice(&old[page_end..]);
    let name = "000000010000000000000005.partial";
    let pushed = place.push(name, &bytes).await.unwrap();
    let plain = place.plain(&pushed.key).await;
    assert_eq!(plain, bytes[..valid]);
    let ObjectKey::Partial { tag, .. } = pushed.key else {
        panic!("{}", pushed.key)
    };
    assert_eq!(tag, crc32fast::hash(&plain));
    let wal = place
        .repository
        .fetch_descriptor(&pushed.key)
        .await
        .unwrap()
        .wal
        .unwrap();
    assert_eq!(wal.end_lsn, START.saturating_add(valid as u64));
    assert_eq!(wal.invalid_at, None);
    assert_eq!(
        place.push(name, &bytes).await.unwrap().stored,
        Stored::Already
    );
    let refusal = place.refusal(name, &bytes[..valid]).await;
    assert!(refusal.contains("bytes, but segments"), "{refusal}");
}

#[tokio::test]
async fn backup_history_files_are_stored() {
    let place = Place::new().await;
    let text = b"START WAL LOCATION: 0/500028 (file 000000010000000000000005)\nSTOP WAL LOCATION: 0/500120 (file 000000010000000000000005)\n";
    let pushed = place
        .push("000000010000000000000005.00000028.backup", text)
        .await
        .unwrap();
    assert_eq!(place.plain(&pushed.key).await, text);
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_not_durable() {
    let place = Place::new().await;
    let outage = repository::testing::Outage::default();
    let plan = repository::testing::FaultPlan {
        outage: outage.clone(),
        ..Default::default()
    };
    let deadlines = repository::Deadlines {
        request: std::time::Duration::from_millis(30),
        total: std::time::Duration::from_millis(200),
    };
    let repository = Repository::new("primary", Store::faulty(&place.store, plan, deadlines));
    let config = PushConfig {
        repositories: std::slice::from_ref(&repository),
        ack: Ack::All,
        ..place.config()
    };
    outage.set(true);
    let error = place.push_with(NAME, &whole(), &config).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(outage.requests_stalled() > 0);
    outage.set(false);
    let pushed = place.push_with(NAME, &whole(), &config).await.unwrap();
    assert_eq!(pushed.stored, Stored::New);
}

#[tokio::test]
async fn of_several_repositories_as_many_as_ack_asks_for_must_have_it() {
    let (place, other) = (Place::new().await, Place::new().await);
    let outage = repository::testing::Outage::default();
    let plan = repository::testing::FaultPlan {
        outage: outage.clone(),
        ..Default::default()
    };
    let deadlines = repository::Deadlines {
        request: std::time::Duration::from_millis(30),
        total: std::time::Duration::from_millis(200),
    };
    let second = Repository::new("second", Store::faulty(&other.store, plan, deadlines));
    let repositories = [place.repository.clone(), second];
    let push = async |name: &str, bytes: &[u8], ack| {
        let config = PushConfig {
            repositories: &repositories,
            ack,
            ..place.config()
        };
        place.push_with(name, bytes, &config).await
    };
    outage.set(true);
    for ack in [Ack::All, Ack::Quorum(2)] {
        let error = push(NAME, &whole(), ack).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Retry, "{ack:?}");
    }
    let pushed = push(NAME, &whole(), Ack::Any).await.unwrap();
    assert_eq!(pushed.missing_in, ["second"]);
    outage.set(false);
    let pushed = push(NAME, &whole(), Ack::All).await.unwrap();
    assert!(pushed.missing_in.is_empty(), "{pushed:?}");
    assert_eq!(other.plain(&pushed.key).await, whole());

    // One that holds another timeline of that number gets nothing of this one.
    let elsewhere = b"1\t0/50FFF8\tpromoted elsewhere\n";
    other.push("00000002.history", elsewhere).await.unwrap();
    place.file("00000002.history", HISTORY);
    let error = push(BRANCH, &branch(), Ack::All).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Conflict);
    let pushed = push(BRANCH, &branch(), Ack::Any).await.unwrap();
    assert_eq!(pushed.missing_in, ["second"]);
    assert_eq!(place.plain(&pushed.key).await, branch());
    let there = other.repository.fetch_descriptor(&pushed.key).await;
    assert_eq!(there.unwrap_err().class(), ErrorClass::NotFound);
}
