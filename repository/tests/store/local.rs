//! `file://`: the contract, odd names of the repository itself, litter, a vanished folder, a full disk.

use std::path::Path;
use std::time::Duration;

use repository::testing::contract;
use repository::{Deadlines, Error, ErrorClass, PutOutcome, Store, StoreOptions};

fn open(path: &Path) -> Store {
    let options = StoreOptions {
        deadlines: short(),
        ..StoreOptions::default()
    };
    let url = path
        .to_str()
        .unwrap()
        .replace('%', "%25")
        .replace('?', "%3F")
        .replace('#', "%23");
    Store::open(&format!("file://{url}"), options).unwrap()
}

fn short() -> Deadlines {
    Deadlines {
        request: Duration::from_secs(20),
        total: Duration::from_secs(1),
    }
}

fn every_file(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(every_file(&entry.path())),
            false => files.push(entry.path().to_str().unwrap().to_owned()),
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_on_files_in_a_folder_with_an_odd_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("it's 100% \"ödd\" #1?");
    let store = Store::open(
        &format!(
            "file://{}",
            root.to_str()
                .unwrap()
                .replace('%', "%25")
                .replace('#', "%23")
                .replace('?', "%3F")
        ),
        StoreOptions::default(),
    )
    .unwrap();
    contract(&store).await;
    let litter: Vec<_> = every_file(&root)
        .into_iter()
        .filter(|file| file.contains("walden-tmp"))
        .collect();
    assert_eq!(litter, Vec::<String>::new());
}

/// More files than three pages, some of whose names are also beginnings of folders' names, and behind as many links to nowhere.
#[tokio::test]
async fn a_large_folder_is_listed_whole_and_in_order() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("large");
    std::fs::create_dir(&folder).unwrap();
    let mut expected = Vec::new();
    for number in 0..3500_u32 {
        // In no order of theirs.
        let name = format!("{:08x}", number.wrapping_mul(0x9E37_79B1));
        std::fs::write(folder.join(&name), "x").unwrap();
        expected.push(format!("large/{name}"));
        if number % 500 == 0 {
            let below = folder.join(format!("{name}-"));
            std::fs::create_dir(&below).unwrap();
            std::fs::write(below.join("y"), "y").unwrap();
            expected.push(format!("large/{name}-/y"));
        }
    }
    expected.sort();
    for number in 0..2500 {
        std::os::unix::fs::symlink("nowhere", folder.join(format!("!{number:04}"))).unwrap();
    }
    let url = format!("file://{}", root.path().display());
    let store = Store::open(&url, StoreOptions::default()).unwrap();
    let paths = |listed: Vec<repository::store::Listed>| -> Vec<String> {
        listed.into_iter().map(|object| object.path).collect()
    };
    assert_eq!(paths(store.list("large").await.unwrap()), expected);
    assert_eq!(paths(store.list("").await.unwrap()), expected);
    let after = &expected[1700];
    let rest = store.list_after("large", after).await.unwrap();
    assert_eq!(paths(rest), expected[1701..]);
}

#[tokio::test]
async fn opening_makes_no_folder_and_a_missing_one_proves_nothing_absent() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("not/yet");
    let store = open(&root);
    for error in [
        store.fetch("x", 1).await.unwrap_err(),
        store.head("x").await.unwrap_err(),
        store.list("").await.unwrap_err(),
    ] {
        assert_eq!(error.class(), ErrorClass::Config, "{error:?}");
        assert!(error.to_string().contains("does not exist"), "{error}");
    }
    assert!(!root.exists());
    assert_eq!(
        store.put_new("a/b/x", "1").await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(store.fetch("a/b/x", 1).await.unwrap(), "1");
    assert_eq!(store.head("a/b/y").await.unwrap(), None);
}

#[tokio::test]
async fn a_folder_that_is_replaced_or_vanishes_is_an_error_and_not_absence() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let store = open(&root);
    assert_eq!(store.put_new("x", "1").await.unwrap(), PutOutcome::Created);
    assert_eq!(store.fetch("x", 1).await.unwrap(), "1");
    // What an unmounted file system looks like: another folder in the same place, or none.
    std::fs::rename(&root, folder.path().join("moved")).unwrap();
    std::fs::create_dir(&root).unwrap();
    assert_eq!(
        store.fetch("x", 1).await.unwrap_err().class(),
        ErrorClass::Retry
    );
    assert_eq!(
        store.put_new("y", "2").await.unwrap_err().class(),
        ErrorClass::Retry
    );
    assert_eq!(store.list("").await.unwrap_err().class(), ErrorClass::Retry);
    std::fs::remove_dir(&root).unwrap();
    assert_eq!(
        store.fetch("x", 1).await.unwrap_err().class(),
        ErrorClass::Config
    );
    store.put_new("y", "2").await.unwrap_err();
    assert!(!root.exists(), "nothing was written beside the repository");
    std::fs::rename(folder.path().join("moved"), &root).unwrap();
    assert_eq!(store.fetch("x", 1).await.unwrap(), "1", "mounted again");
}

#[tokio::test]
async fn a_folder_removed_meanwhile_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(
        store.put_new("a/b/x", "1").await.unwrap(),
        PutOutcome::Created
    );
    std::fs::remove_dir_all(folder.path().join("a")).unwrap();
    assert_eq!(
        store.put_new("a/b/x", "2").await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(store.fetch("a/b/x", 1).await.unwrap(), "2");
}

#[tokio::test]
async fn files_of_dead_writers_and_strangers_are_not_listed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(
        store.put_new("a/x", "1").await.unwrap(),
        PutOutcome::Created
    );
    let stale = folder.path().join("a/.walden-tmp.00000000000000ff");
    let fresh = folder.path().join("a/.walden-tmp.00000000000000fe");
    std::fs::write(&fresh, "half").unwrap();
    let file = std::fs::File::create(&stale).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(48 * 3600))
        .unwrap();
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    std::os::unix::fs::symlink("/nowhere", folder.path().join("a/dangling")).unwrap();
    let paths: Vec<_> = store
        .list("")
        .await
        .unwrap()
        .into_iter()
        .map(|listed| listed.path)
        .collect();
    assert_eq!(paths, ["a/x"]);
    assert_eq!(store.list_folders("").await.unwrap(), ["a"]);
    // A new process sweeps what is certainly dead when it first writes there.
    assert_eq!(
        open(folder.path()).put_new("a/y", "2").await.unwrap(),
        PutOutcome::Created
    );
    assert!(!stale.exists() && fresh.exists());
}

#[tokio::test]
async fn a_file_where_a_folder_should_be_is_a_matter_of_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("file");
    std::fs::write(&root, "").unwrap();
    let error = open(&root).put_new("x", "1").await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Config, "{error:?}");
    assert!(error.to_string().contains("not a folder"), "{error}");
}

/// The other side of this test runs in a namespace of its own with a tiny file system mounted.
#[tokio::test]
async fn a_full_disk_is_said_clearly_and_leaves_no_litter() {
    const MARK: &str = "WALDEN_TEST_FULL_DISK";
    if let Some(root) = std::env::var_os(MARK) {
        return on_a_full_disk(Path::new(&root)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=2m tmpfs "$0" || exit 77; exec "$@""#;
    let child = tokio::process::Command::new("unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "local::a_full_disk_is_said_clearly_and_leaves_no_litter",
            "--nocapture",
        ])
        .env(MARK, folder.path())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), child)
        .await
        .unwrap();
    match output {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("1 passed"), "{said}");
        }
        Ok(output)
            if output.status.code() == Some(77)
                || String::from_utf8_lossy(&output.stderr).contains("unshare") =>
        {
            crate::not_run(
                MARK,
                &format!("no tmpfs here: {}", String::from_utf8_lossy(&output.stderr)),
            );
        }
        Ok(output) => panic!(
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => crate::not_run(MARK, &format!("no unshare here: {error}")),
    }
}

async fn on_a_full_disk(root: &Path) {
    let store = open(root);
    assert_eq!(
        store.put_new("small/1", vec![1; 1 << 20]).await.unwrap(),
        PutOutcome::Created
    );
    let error = store
        .put_new("small/2", vec![2; 4 << 20])
        .await
        .unwrap_err();
    assert!(matches!(error, Error::StoreFull { .. }), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(
        every_file(root),
        [root.join("small/1").to_str().unwrap()],
        "no litter, and nothing under the object's name"
    );
    assert_eq!(store.head("small/2").await.unwrap(), None);
    assert_eq!(
        store.put_new("small/2", "fits").await.unwrap(),
        PutOutcome::Created,
        "room again: the litter gave its space back"
    );
}

/// Puts objects until killed; the parent then finds whole objects only.
#[tokio::test]
async fn a_writer_killed_at_any_moment_leaves_whole_objects_only() {
    const MARK: &str = "WALDEN_TEST_KILLED_WRITER";
    const SIZE: usize = 1 << 20;
    let content = |number: u32| vec![number as u8 | 1; SIZE];
    if let Some(root) = std::env::var_os(MARK) {
        let store = open(Path::new(&root));
        for number in 0..100_000 {
            let path = format!("{}/{number}", number % 7);
            if store.put_new(&path, content(number)).await.unwrap() == PutOutcome::Created {
                std::fs::write(
                    Path::new(&root).with_extension("reported"),
                    number.to_string(),
                )
                .unwrap();
            }
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (root, mut killed_while_writing) = (folder.path().join("repository"), 0);
    for moment in 0..20_u64 {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "local::a_writer_killed_at_any_moment_leaves_whole_objects_only",
            ])
            .env(MARK, &root)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(40 + 7 * moment)).await;
        child.kill().await.unwrap();
        if !root.exists() {
            continue;
        }
        killed_while_writing += every_file(&root)
            .iter()
            .filter(|file| file.contains("walden-tmp"))
            .count();
        let store = open(&root);
        let listed = store.list("").await.unwrap();
        for object in &listed {
            let number: u32 = object.path.split_once('/').unwrap().1.parse().unwrap();
            assert!(
                store.fetch(&object.path, SIZE as u64).await.unwrap() == content(number),
                "{object:?}"
            );
        }
        let reported: u32 = std::fs::read_to_string(root.with_extension("reported"))
            .unwrap_or_default()
            .parse()
            .unwrap_or(0);
        assert!(
            store
                .head(&format!("{}/{reported}", reported % 7))
                .await
                .unwrap()
                .is_some(),
            "{reported} was reported durable"
        );
        std::fs::remove_dir_all(&root).unwrap();
    }
    assert!(
        killed_while_writing > 0,
        "no kill hit a write: the test proves nothing"
    );
}
