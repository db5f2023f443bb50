//! What every store must do, as one suite. Owns the claims; which stores are asked is up to the tests that call [`contract`].

#![expect(clippy::unwrap_used, reason = "a test suite: panics report")]

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::store::{Body, Listed, PutOutcome, Store};
use crate::{Error, ErrorClass};

/// Names that stores and file systems like to get wrong.
const ODD_NAMES: [&str; 8] = [
    "with space",
    "100% sure",
    "%41",
    "it's \"quoted\"",
    "plus+and&equals=",
    "Ünïcødé-日本語",
    "a.b~c_d-e(f)",
    "#hash?question",
];

/// Paths whose byte order differs from the order of a walk through folders.
const ORDERED: [&str; 7] = ["a-b", "a.history", "a/x", "a/y/1", "a/y2", "a0", "b"];

/// Checks the whole contract in folders of an otherwise unused store.
///
/// # Panics
/// At the first claim that does not hold.
pub async fn contract(store: &Store) {
    Box::pin(absent_objects_are_proven_absent(store)).await;
    Box::pin(an_object_is_written_once(store)).await;
    Box::pin(of_many_racers_one_creates(store)).await;
    Box::pin(reads_heads_and_ranges(store)).await;
    Box::pin(objects_may_be_empty_or_large(store)).await;
    Box::pin(names_come_back_as_written(store)).await;
    Box::pin(listings_are_sorted_and_stay_in_their_folder(store)).await;
    Box::pin(listings_go_beyond_one_page(store)).await;
    Box::pin(paths_that_no_store_should_see_are_refused(store)).await;
}

async fn absent_objects_are_proven_absent(store: &Store) {
    // Something exists, so that a missing bucket or folder is not what is tested here.
    put(store, "absent/present", "x").await;
    for path in ["absent/no", "no/such/folder/no", "absent/present/below"] {
        let error = store.fetch(path, 100).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{path}: {error:?}");
        assert!(
            error.to_string().contains(path),
            "the message names the object: {error}"
        );
        assert_eq!(
            store.fetch_head(path, 100).await.unwrap_err().class(),
            ErrorClass::NotFound,
            "{path}"
        );
        assert_eq!(
            store.fetch_range(path, 0..1).await.unwrap_err().class(),
            ErrorClass::NotFound,
            "{path}"
        );
        assert_eq!(store.head(path).await.unwrap(), None, "{path}");
    }
    assert_eq!(store.list("no/such/folder").await.unwrap(), []);
    assert_eq!(
        store.list_folders("no/such/folder").await.unwrap(),
        Vec::<String>::new()
    );
}

async fn an_object_is_written_once(store: &Store) {
    let path = "once/object";
    assert_eq!(
        store.put_new(path, "first").await.unwrap(),
        PutOutcome::Created
    );
    for other in ["second", "", "first"] {
        assert_eq!(
            store.put_new(path, other).await.unwrap(),
            PutOutcome::AlreadyExists,
            "{other:?}"
        );
        assert_eq!(
            store.fetch(path, 100).await.unwrap(),
            "first",
            "after {other:?}"
        );
    }
}

async fn of_many_racers_one_creates(store: &Store) {
    for round in 0..3 {
        let path = format!("race/{round}");
        let racers: Vec<_> = (0..8_u8)
            .map(|racer| {
                let (store, path) = (store.clone(), path.clone());
                tokio::spawn(async move { store.put_new(&path, vec![racer; 1000]).await.unwrap() })
            })
            .collect();
        let mut winners = Vec::new();
        for (racer, task) in racers.into_iter().enumerate() {
            if task.await.unwrap() == PutOutcome::Created {
                winners.push(racer as u8);
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(
            store.fetch(&path, 1000).await.unwrap(),
            vec![winners[0]; 1000],
            "round {round}"
        );
    }
}

async fn reads_heads_and_ranges(store: &Store) {
    let path = "ranges/object";
    put(
        store,
        path,
        vec![
            Bytes::from_static(b"0123"),
            Bytes::new(),
            Bytes::from_static(b"456789"),
        ],
    )
    .await;
    assert_eq!(store.fetch(path, 10).await.unwrap(), "0123456789");
    let too_large = store.fetch(path, 9).await.unwrap_err();
    assert!(
        matches!(
            too_large,
            Error::ObjectTooLarge {
                size: 10,
                limit: 9,
                ..
            }
        ),
        "{too_large:?}"
    );

    for (max_bytes, expected) in [
        (1, "0"),
        (4, "0123"),
        (10, "0123456789"),
        (11, "0123456789"),
        (1 << 20, "0123456789"),
    ] {
        let head = store.fetch_head(path, max_bytes).await.unwrap();
        assert_eq!(
            (head.bytes.as_ref(), head.object_size),
            (expected.as_bytes(), 10),
            "head of {max_bytes}"
        );
        assert_recent(head.last_modified);
    }
    for (range, expected) in [
        (0..1, "0"),
        (0..10, "0123456789"),
        (3..7, "3456"),
        (9..10, "9"),
        (5..5, ""),
    ] {
        assert_eq!(
            store.fetch_range(path, range.clone()).await.unwrap(),
            expected,
            "{range:?}"
        );
    }
    for range in [0..11, 9..11, 10..11, 500..600] {
        let error = store.fetch_range(path, range.clone()).await.unwrap_err();
        assert!(
            matches!(error, Error::RangeOutside { .. }),
            "{range:?}: {error:?}"
        );
    }
    let meta = store.head(path).await.unwrap().unwrap();
    assert_eq!(meta.size, 10);
    assert_recent(meta.last_modified);
}

async fn objects_may_be_empty_or_large(store: &Store) {
    put(store, "sizes/empty", Body::default()).await;
    assert_eq!(store.fetch("sizes/empty", 0).await.unwrap(), "");
    let head = store.fetch_head("sizes/empty", 100).await.unwrap();
    assert_eq!((head.bytes.len(), head.object_size), (0, 0));
    assert_eq!(store.head("sizes/empty").await.unwrap().unwrap().size, 0);

    // The largest part of a backup. A pattern that no shift or swap of blocks maps onto itself.
    let large: Vec<u8> = (0..8_u32 << 20)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let large = Bytes::from(large);
    put(store, "sizes/large", large.clone()).await;
    assert!(
        store.fetch("sizes/large", 32 << 20).await.unwrap() == large,
        "32 MiB come back as written"
    );
    let middle = store
        .fetch_range("sizes/large", (16 << 20) - 5..(16 << 20) + 5)
        .await
        .unwrap();
    assert_eq!(middle, large.slice((16 << 20) - 5..(16 << 20) + 5));
}

async fn names_come_back_as_written(store: &Store) {
    for name in ODD_NAMES {
        let path = format!("names/{name}/{name}");
        put(store, &path, name).await;
        assert_eq!(
            store.fetch(&path, 100).await.unwrap(),
            name.as_bytes(),
            "{name}"
        );
    }
    let mut expected: Vec<String> = ODD_NAMES
        .iter()
        .map(|name| format!("names/{name}/{name}"))
        .collect();
    expected.sort();
    assert_eq!(paths(&store.list("names").await.unwrap()), expected);
    let mut folders: Vec<String> = ODD_NAMES
        .iter()
        .map(|name| format!("names/{name}"))
        .collect();
    folders.sort();
    assert_eq!(store.list_folders("names").await.unwrap(), folders);
}

async fn listings_are_sorted_and_stay_in_their_folder(store: &Store) {
    for path in ORDERED.iter().rev() {
        put(store, &format!("order/{path}"), "12345").await;
    }
    put(store, "order-not/x", "").await;
    put(store, "orde/x", "").await;

    let expected: Vec<String> = ORDERED.iter().map(|path| format!("order/{path}")).collect();
    let all = store.list("order").await.unwrap();
    assert_eq!(paths(&all), expected);
    for listed in &all {
        assert_eq!(listed.size, 5);
        assert_recent(listed.last_modified);
    }
    assert_eq!(
        paths(&store.list("order/a").await.unwrap()),
        ["order/a/x", "order/a/y/1", "order/a/y2"]
    );
    assert_eq!(
        store.list("order/a-b").await.unwrap(),
        [],
        "an object is not a folder"
    );
    assert_eq!(store.list_folders("order").await.unwrap(), ["order/a"]);
    assert_eq!(store.list_folders("order/a").await.unwrap(), ["order/a/y"]);
    let top = store.list_folders("").await.unwrap();
    assert!(
        top.contains(&"order".into()) && top.contains(&"order-not".into()),
        "{top:?}"
    );

    let all_after = |after: &str| {
        expected
            .iter()
            .filter(|path| path.as_str() > after)
            .cloned()
            .collect::<Vec<_>>()
    };
    let others = [
        "order",
        "order/a",
        "order/a/",
        "order/a/x0",
        "order/a/y",
        "order/a.",
        "order/zzz",
    ];
    for after in expected.iter().map(String::as_str).chain(others) {
        assert_eq!(
            paths(&store.list_after("order", after).await.unwrap()),
            all_after(after),
            "after {after}"
        );
    }
}

async fn listings_go_beyond_one_page(store: &Store) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..1100 {
        let store = store.clone();
        tasks.spawn(
            async move { put(&store, &format!("pages/{}/{number:04}", number % 3), "x").await },
        );
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let all = paths(&store.list("pages").await.unwrap());
    assert_eq!(all.len(), 1100);
    assert!(all.is_sorted());

    let mut pages = store.pages("pages", None).unwrap();
    let mut from_pages = Vec::new();
    let mut count = 0;
    while let Some(page) = pages.next().await.unwrap() {
        assert!(page.len() <= 1000, "a page of {}", page.len());
        from_pages.extend(paths(&page));
        count += 1;
    }
    assert!(count >= 2, "{count} pages");
    from_pages.sort();
    assert_eq!(from_pages, all);
    assert_eq!(
        paths(&store.list_after("pages", &all[1049]).await.unwrap()),
        all[1050..]
    );
}

async fn paths_that_no_store_should_see_are_refused(store: &Store) {
    let long = "x".repeat(256);
    for path in [
        "",
        "/x",
        "x/",
        "a//b",
        "../x",
        "a/../b",
        ".",
        "a/./b",
        "a\nb",
        "a\\b",
        "\0",
        ".walden-tmp.1",
        long.as_str(),
    ] {
        let error = store.put_new(path, "x").await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Bug, "{path:?}: {error:?}");
        assert!(
            matches!(store.fetch(path, 1).await, Err(Error::InvalidPath { .. })),
            "{path:?}"
        );
    }
}

async fn put(store: &Store, path: &str, body: impl Into<Body>) {
    assert_eq!(
        store.put_new(path, body).await.unwrap(),
        PutOutcome::Created,
        "{path}"
    );
}

fn paths(listed: &[Listed]) -> Vec<String> {
    listed.iter().map(|listed| listed.path.clone()).collect()
}

fn assert_recent(time: SystemTime) {
    let distance = SystemTime::now()
        .duration_since(time)
        .unwrap_or_else(|error| error.duration());
    assert!(
        distance < Duration::from_secs(3600),
        "{time:?} is not recent"
    );
}
