//! `s3://` against a real server: the contract, TLS with a CA of one's own, rights, a missing bucket.

use repository::testing::contract;
use repository::{Error, ErrorClass, PutOutcome, Store, StoreOptions};

use crate::weed::weed;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_on_seaweedfs() {
    let Some(weed) = weed("contract_on_seaweedfs") else {
        return;
    };
    contract(&weed.store(&weed.http, "contract", "writer")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repositories_in_one_bucket_do_not_see_each_other() {
    let Some(weed) = weed("repositories_in_one_bucket_do_not_see_each_other") else {
        return;
    };
    let folders = ["side/a", "side/a-b", "side/a b/100%25", "side/a/nested"];
    for folder in folders {
        assert_eq!(
            weed.store(&weed.http, folder, "writer")
                .put_new("x", folder)
                .await
                .unwrap(),
            PutOutcome::Created
        );
    }
    for folder in ["side/a-b", "side/a b/100%25", "side/a/nested"] {
        let store = weed.store(&weed.http, folder, "writer");
        assert_eq!(store.fetch("x", 100).await.unwrap(), folder.as_bytes());
        let listed = store.list("").await.unwrap();
        assert_eq!(
            listed
                .iter()
                .map(|listed| listed.path.as_str())
                .collect::<Vec<_>>(),
            ["x"],
            "{folder}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_works_with_our_ca_and_only_with_it() {
    let Some(weed) = weed("tls_works_with_our_ca_and_only_with_it") else {
        return;
    };
    let trusted = StoreOptions {
        ca_file: Some(weed.ca_file.clone()),
        ..weed.options(&weed.https, "writer")
    };
    let store = Store::open("s3://wal/tls", trusted).unwrap();
    assert_eq!(
        store.put_new("x", vec![7; 3 << 20]).await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(store.fetch("x", 3 << 20).await.unwrap(), vec![7; 3 << 20]);

    let other_ca = weed.ca_file.with_file_name("other-ca.pem");
    for ca_file in [Some(other_ca), None] {
        let options = StoreOptions {
            ca_file,
            ..weed.options(&weed.https, "writer")
        };
        let error = Store::open("s3://wal/tls", options)
            .unwrap()
            .fetch("x", 100)
            .await
            .unwrap_err();
        assert_eq!(error.class(), ErrorClass::Config, "{error:?}");
        assert!(error.to_string().contains("set ca_file"), "{error}");
    }
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, expected: &str| {
        let options = StoreOptions {
            ca_file: Some(folder.path().join(name)),
            access_key_id: Some("a".into()),
            secret_access_key: Some("b".into()),
            ..StoreOptions::default()
        };
        let error = Store::open("s3://bucket", options).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Config);
        let message = error.to_string();
        assert!(
            message.contains(name) && message.contains(expected),
            "{message}"
        );
    };
    check("missing.pem", "cannot be read");
    std::fs::write(folder.path().join("empty.pem"), "").unwrap();
    check("empty.pem", "holds no certificate");
    std::fs::write(
        folder.path().join("bad.pem"),
        "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    check("bad.pem", "bad.pem");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_and_rights_are_access_denied_and_show_no_secret() {
    let Some(weed) = weed("refused_credentials_and_rights_are_access_denied_and_show_no_secret")
    else {
        return;
    };
    let writer = weed.store(&weed.http, "rights", "writer");
    assert_eq!(writer.put_new("x", "1").await.unwrap(), PutOutcome::Created);

    let reader = weed.store(&weed.http, "rights", "reader");
    assert_eq!(reader.fetch("x", 1).await.unwrap(), "1");
    let error = reader.put_new("y", "2").await.unwrap_err();
    assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");

    let wrong = StoreOptions {
        secret_access_key: Some("wrong-secret-9876".into()),
        ..weed.options(&weed.http, "writer")
    };
    let unknown = StoreOptions {
        access_key_id: Some("nobody".into()),
        ..weed.options(&weed.http, "writer")
    };
    for options in [wrong, unknown] {
        let store = Store::open("s3://wal/rights", options).unwrap();
        for error in [
            store.fetch("x", 1).await.unwrap_err(),
            store.head("x").await.unwrap_err(),
            store.head("absent").await.unwrap_err(),
            store.list("").await.unwrap_err(),
            store.put_new("y", "2").await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
            assert!(!format!("{error:?}").contains("secret-"), "{error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_bucket_is_configuration_and_never_absence() {
    let Some(weed) = weed("a_missing_bucket_is_configuration_and_never_absence") else {
        return;
    };
    let store = Store::open("s3://no-such-bucket/x", weed.options(&weed.http, "writer")).unwrap();
    for error in [
        store.fetch("x", 1).await.unwrap_err(),
        store.fetch_head("x", 1).await.unwrap_err(),
        store.head("x").await.unwrap_err(),
        store.list("").await.unwrap_err(),
        store.put_new("y", "2").await.unwrap_err(),
    ] {
        assert_eq!(error.class(), ErrorClass::Config, "{error:?}");
        assert!(
            error.to_string().contains("bucket does not exist"),
            "{error}: {error:?}"
        );
    }
}
