//! Clusters in a store in memory: what is listed of them, at which cost, and while they grow.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::Store;
use crate::store::seam::{Backend, Failure, Fetched, Page, PageRequest};
use crate::store::{Deadlines, ObjectMeta, PutOutcome};
use crate::testing::{self, FaultPlan};

/// Segments are numbered from here: four before the end of a log.
const FIRST: u64 = 4092;

fn cluster() -> ClusterId {
    ClusterId::new(7412)
}

fn size() -> SegmentSize {
    SegmentSize::MIN
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn name(of: u32, number: u64) -> SegmentName {
    let number = wal_format::SegmentNumber::new(FIRST + number);
    SegmentName::new(timeline(of), number, size())
}

fn segment(name: SegmentName) -> String {
    let cluster = cluster();
    ObjectKey::Segment { cluster, name }.to_string()
}

fn chunk(name: SegmentName, number: u32) -> String {
    let key = ObjectKey::Tail {
        cluster: cluster(),
        name,
        from: number * 16,
        to: number * 16 + 16,
        writer: 0xA1,
    };
    key.to_string()
}

fn history(of: u32) -> String {
    let (cluster, timeline) = (cluster(), timeline(of));
    ObjectKey::History { cluster, timeline }.to_string()
}

async fn put(store: &Store, paths: impl IntoIterator<Item = String>) {
    for path in paths {
        assert_eq!(
            store.put_new(&path, "x").await.unwrap(),
            PutOutcome::Created,
            "{path}"
        );
    }
}

async fn put_document(store: &Store) {
    let repository = Repository::new("test", store.clone());
    let document = testing::cluster_document(7412);
    let key = ObjectKey::Cluster(cluster());
    let _stored = repository.put_json(&key, &document).await.unwrap();
}

/// What there is but covered chunks, by reading all of it.
async fn truth(store: &Store) -> (Catalog, Vec<String>) {
    let mut pages = store.pages("7412", None).unwrap();
    let mut paths = Vec::new();
    while let Some(page) = pages.next().await.unwrap() {
        paths.extend(page.into_iter().map(|object| (object.path, object.size)));
    }
    paths.sort();
    let whole = Catalog::from_listing(cluster(), paths.iter().map(|(path, size)| (path, *size)));
    paths.retain(|(path, _)| match path.parse() {
        Ok(ObjectKey::Tail { name, .. }) => !whole.is_sealed(name),
        _ => true,
    });
    let catalog = Catalog::from_listing(cluster(), paths.iter().map(|(path, size)| (path, *size)));
    (catalog, paths.into_iter().map(|(path, _)| path).collect())
}

/// Every way to list gives the truth.
async fn check(store: &Store, first: SegmentName) {
    let repository = Repository::new("test", store.clone());
    let (catalog, paths) = truth(store).await;
    assert_eq!(repository.list(cluster()).await.unwrap(), catalog);
    let listed = repository.list_objects(cluster()).await.unwrap();
    let listed: Vec<String> = listed.into_iter().map(|object| object.path).collect();
    assert_eq!(listed, paths);
    let wal = repository.list_wal(cluster()).await.unwrap();
    assert_eq!(wal.timelines, catalog.timelines);
    let mut from = repository.list_wal_from(cluster(), first).await.unwrap();
    let mut from = from.timelines.remove(&first.timeline).unwrap_or_default();
    let mut expected = catalog.timelines.get(&first.timeline).cloned();
    for objects in [Some(&mut from), expected.as_mut()].into_iter().flatten() {
        objects.history = false;
        objects.segments.retain(|name, _| *name >= first);
        objects.tails.retain(|name, _| *name >= first);
        objects.partials.retain(|partial| partial.name >= first);
    }
    assert_eq!(from, expected.unwrap_or_default());
}

/// A year of chunks costs what a day of them does.
#[tokio::test]
async fn covered_chunks_are_jumped_over() {
    let cost = async |segments: u64| {
        let store = Store::in_memory();
        put_document(&store).await;
        for number in 0..segments {
            let name = name(1, number);
            // One is missing, and some of it is there in chunks.
            if number != segments / 2 {
                put(&store, [segment(name)]).await;
            }
            put(&store, (0..90).map(|number| chunk(name, number))).await;
        }
        put(&store, (0..30).map(|n| chunk(name(1, segments), n))).await;
        put(&store, [history(2), chunk(name(2, segments), 0)]).await;
        let plan = FaultPlan::default();
        let requests = plan.requests.clone();
        let counted = Store::faulty(&store, plan, Deadlines::default());
        let repository = Repository::new("test", counted);
        let listed = repository.list(cluster()).await.unwrap();
        let tails = &listed.timelines[&timeline(1)].tails;
        let alive: Vec<_> = tails.iter().map(|(name, of)| (*name, of.len())).collect();
        let hole = name(1, segments / 2);
        assert_eq!(alive, [(hole, 90), (name(1, segments), 30)]);
        assert_eq!(listed, truth(&store).await.0);
        let all = requests.of("list");
        let near = repository.list_wal_from(cluster(), name(1, segments - 1));
        assert_eq!(near.await.unwrap().timelines.len(), 1);
        (all, requests.of("list") - all)
    };
    let (few, many) = (cost(60).await, cost(600).await);
    assert_eq!(few, many);
    assert!(many.0 <= 25 && many.1 <= 5, "{many:?}");
}

#[derive(Clone, Debug)]
struct Stretch {
    timeline: u32,
    segments: Range<u64>,
    sealed: bool,
    chunks: u32,
    partial: bool,
}

fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
    let stretch = (1..4u32, 0..30u64, 1..12u64, any::<bool>(), 0..5u32, 0..8u8);
    let stretch = stretch.prop_map(
        |(timeline, from, length, sealed, chunks, partial)| Stretch {
            timeline,
            segments: from..from + length,
            sealed,
            chunks,
            partial: partial == 0,
        },
    );
    proptest::collection::vec(stretch, 0..12)
}

fn paths_of(stretches: &[Stretch]) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for stretch in stretches {
        for number in stretch.segments.clone() {
            let name = name(stretch.timeline, number);
            paths.extend(stretch.sealed.then(|| segment(name)));
            paths.extend((0..stretch.chunks).map(|number| chunk(name, number)));
            let (cluster, tag) = (cluster(), 7);
            let partial = ObjectKey::Partial { cluster, name, tag };
            paths.extend(stretch.partial.then(|| partial.to_string()));
        }
        paths.extend((stretch.timeline > 1).then(|| history(stretch.timeline)));
    }
    paths
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let mut runtime = runtime;
    runtime.enable_time().build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_alive_is_listed_and_nothing_else(
        stretches in stretches(),
        page in 2..20usize,
        knows_size: bool,
        backwards: bool,
        unknown: bool,
        (of, from) in (1..4u32, 0..40u64),
    ) {
        run(async {
            let mut store = Store::in_memory_paged(page);
            if backwards {
                store = odd(&store, Way::Backwards(page));
            }
            if knows_size {
                put_document(&store).await;
            }
            put(&store, paths_of(&stretches)).await;
            if unknown {
                let unknown = ["7412/tail/notes", "7412/tail/odd/x.txt", "7412/wal/notes", "7412/gaps/x"];
                put(&store, unknown.map(str::to_owned)).await;
            }
            check(&store, name(of, from)).await;
        });
    }
}

/// A store in memory that is not as simple as that.
struct Odd {
    inner: Arc<dyn Backend>,
    way: Way,
}

enum Way {
    /// It lists what comes last first, in pages of this size.
    Backwards(usize),
    /// Somebody writes into it while it is listed: what is there before each request for a page, the next one last.
    Growing(Mutex<Vec<Vec<String>>>),
}

fn odd(inner: &Store, way: Way) -> Store {
    let inner = inner.backend();
    let backend = Arc::new(Odd { inner, way });
    Store::with_backend("odd:".into(), backend, Deadlines::default(), 1)
}

#[async_trait]
impl Backend for Odd {
    async fn put_new(&self, path: &str, body: &[Bytes]) -> Result<PutOutcome, Failure> {
        self.inner.put_new(path, body).await
    }

    async fn fetch(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Fetched, Failure> {
        self.inner.fetch(path, range, limit).await
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, Failure> {
        self.inner.head(path).await
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Page, Failure> {
        match &self.way {
            Way::Backwards(size) => self.page_backwards(request, *size).await,
            Way::Growing(steps) => {
                let step = steps.lock().unwrap().pop();
                for path in step.into_iter().flatten() {
                    let _outcome = self.inner.put_new(&path, &["x".into()]).await?;
                }
                self.inner.list_page(request).await
            }
        }
    }
}

impl Odd {
    async fn page_backwards(&self, request: &PageRequest, size: usize) -> Result<Page, Failure> {
        let mut all = Page::default();
        let mut inner = PageRequest {
            token: None,
            ..request.clone()
        };
        loop {
            let page = self.inner.list_page(&inner).await?;
            all.objects.extend(page.objects);
            all.folders.extend(page.folders);
            inner.token = page.token;
            if inner.token.is_none() {
                break;
            }
        }
        all.objects.reverse();
        if request.delimited {
            return Ok(all);
        }
        let token = request.token.as_ref();
        let from: usize = token.map_or(0, |token| token.parse().unwrap());
        let to = from + size;
        let token = (to < all.objects.len()).then(|| to.to_string());
        let objects = all.objects.into_iter().skip(from).take(size).collect();
        Ok(Page {
            objects,
            folders: all.folders,
            token,
        })
    }
}

/// A receiver that seals a segment, has the next ones come too fast for chunks, and begins another one, before every request; halfway the server
/// is promoted.
fn growth(from: u64, steps: u64) -> Vec<Vec<String>> {
    let step = |step: u64| {
        let of = if step < steps / 2 { 1 } else { 2 };
        let number = from + 3 * step;
        let mut paths = Vec::new();
        if step == steps / 2 {
            paths.push(history(2));
        }
        let open = number - 1;
        // The timeline before was left within its last segment.
        if of == 1 || step > steps / 2 {
            paths.push(segment(name(of, open)));
        }
        paths.extend([number, number + 1].map(|number| segment(name(of, number))));
        paths.push(chunk(name(of, number + 2), 0));
        paths
    };
    (0..steps).rev().map(step).collect()
}

#[tokio::test]
async fn what_is_sealed_meanwhile_does_not_look_absent() {
    for (page, chunks) in [(5, 3), (50, 0), (50, 3), (1000, 3)] {
        let mut had_both = false;
        for steps in (2..60).step_by(2) {
            let store = Store::in_memory_paged(page);
            put_document(&store).await;
            for number in 0..40 {
                let name = name(1, number);
                put(&store, [segment(name)]).await;
                put(&store, (0..chunks).map(|number| chunk(name, number))).await;
            }
            put(&store, [chunk(name(1, 40), 0)]).await;
            let growing = odd(&store, Way::Growing(Mutex::new(growth(41, steps))));
            let repository = Repository::new("test", growing);
            let listed = match steps % 4 {
                0 => repository.list(cluster()).await.unwrap(),
                _ => repository.list_wal(cluster()).await.unwrap(),
            };
            for (of, objects) in &listed.timelines {
                assert_eq!(
                    listed.holes(*of, size()),
                    [],
                    "{page} {chunks} {steps}: timeline {of:?}"
                );
                assert!(of.get() == 1 || objects.history, "{page} {chunks} {steps}");
            }
            had_both |= listed.timelines.len() == 2;
        }
        assert!(had_both || page == 1000);
    }
}

#[tokio::test]
async fn too_many_objects_are_no_damage_and_garbage_does_not_count() {
    let store = Store::in_memory_paged(10);
    put_document(&store).await;
    for number in 0..40 {
        let name = name(1, number);
        put(&store, [segment(name)]).await;
        put(&store, (0..20).map(|number| chunk(name, number))).await;
    }
    let parts = (0..50).map(|n| format!("7412/backups/20260123T142811Z-full-3fa9/base.{n:06}"));
    put(&store, parts).await;
    let repository = Repository::new("test", store);
    let with_limit = |found: Found, limit| repository.everything(Found { limit, ..found });
    let names = || Found::names(cluster());
    assert!(with_limit(names(), 41).await.is_ok());
    let refused = with_limit(names(), 40).await.err().unwrap();
    assert_eq!(refused.class(), ErrorClass::Retry);
    assert!(refused.to_string().contains("more than 40"), "{refused}");
    let objects = || Found::objects(cluster());
    assert!(with_limit(objects(), 91).await.is_ok());
    assert!(with_limit(objects(), 90).await.is_err());
    // Chunks that are alive are held to it while they are listed.
    put(repository.store(), (0..50).map(|n| chunk(name(1, 40), n))).await;
    assert!(with_limit(names(), 91).await.is_ok());
    assert!(with_limit(names(), 90).await.is_err());
}
