//! A copy is a repository like its source: restored from, verified, interrupted, continued.

use crate::fall_over::world::{PREFIX, World};
use crate::support::door::{Door, Way};
use crate::support::object_store::Bucket;
use crate::support::oracle::{assert_same_rows, rows};
use crate::support::process::Output;
use crate::support::wait_until;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Paths of the files below a folder.
fn tree(root: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(root).expect("below the root");
                found.insert(path.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found
}

fn count(output: &Output, name: &str) -> u64 {
    let said: Value = output.json();
    assert_eq!(said["schema"], "walden.copy");
    let cluster = &said["clusters"][0][name];
    cluster.as_u64().unwrap_or_else(|| panic!("{name}: {said}"))
}

#[test]
fn a_copy_is_restored_from_and_catches_up() {
    let mut world = World::new(44);
    let (root, url) = world.folder("copy");
    let from = world.restorer.url.clone();
    let copy = |more: &[&str], from: &str, to: &str| {
        let mut arguments = vec!["copy", from, to, "--json"];
        arguments.extend(more);
        world.archiver.run(arguments).expect_success()
    };
    // Nothing is written.
    let planned = copy(&["--dry-run"], &from, &url);
    assert!(count(&planned, "missing_objects") > 5);
    assert!(!root.exists());
    let copied = copy(&[], &from, &url);
    assert_eq!(
        count(&copied, "copied_objects"),
        count(&planned, "missing_objects")
    );
    assert_eq!(copied.json()["repository_made"], true);
    let again = copy(&[], &from, &url);
    assert_eq!(count(&again, "missing_objects"), 0);

    // The same bytes at the same keys, but the repository is one of its own.
    let id = |bytes: &[u8]| -> Value {
        serde_json::from_slice::<Value>(bytes).expect("JSON")["repository_id"].clone()
    };
    for path in tree(&root) {
        let source = world.bucket.get(&format!("{PREFIX}/{path}"));
        let here = fs::read(root.join(&path)).expect("read an object");
        match path.as_str() {
            "walden.json" => assert_ne!(id(&source), id(&here)),
            _ => assert!(source == here, "{path}"),
        }
    }

    // More WAL, and a second backup: only that goes over, from the folder on to another bucket too.
    let run = world.run();
    world.work(500);
    world.backup();
    world.stop(run);
    let copy = |from: &str, to: &str, more: &[&str]| {
        let mut arguments = vec!["copy", from, to, "--json"];
        arguments.extend(more);
        world.archiver.run(arguments).expect_success()
    };
    let caught_up = copy(&from, &url, &[]);
    let present = count(&caught_up, "present_objects");
    assert!(
        count(&caught_up, "copied_objects") > 3 && present > 5,
        "{present}"
    );
    let third = Bucket::new();
    // The newest backup and what follows is all that the latest moment needs.
    let newest = copy(
        &url,
        &third.url("third"),
        &["--since", "2999-01-01T00:00:00Z"],
    );
    assert!(count(&newest, "copied_objects") > 3);
    let backups: BTreeSet<String> = third
        .list("third/")
        .iter()
        .filter_map(|key| {
            key.split_once("/backups/")?
                .1
                .split('/')
                .next()
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(backups.len(), 1);

    // The source is gone, and nobody misses it.
    let expected = world.latest();
    let identity = world.restorer.identity.clone().expect("an identity");
    let verified = ["verify", &url, "--identity", &identity];
    world.restorer.walden.run(verified).expect_success();
    for (name, url) in [("folder", url), ("bucket", third.url("third"))] {
        world.restorer.url = url;
        let restored = world
            .restorer
            .restore(name, &["--to", "latest", "--action", "promote"]);
        assert_same_rows(name, &expected, &rows(&restored.client));
    }
}

#[test]
fn a_copy_that_is_killed_goes_on_where_it_was() {
    let world = World::new(45);
    let (root, url) = world.folder("copy");
    let from = world.restorer.url.clone();
    let door = Door::before(&world.bucket);
    let through = world
        .archiver
        .clone()
        .env("AWS_ENDPOINT_URL", door.endpoint());
    let whole = world.folder("whole").1;
    let planned = through.run(["copy", &from, &whole, "--dry-run"]);
    planned.expect_success();
    let planning = door.passed();
    let whole = through
        .run(["copy", &from, &whole, "--json"])
        .expect_success();
    let whole = (
        count(&whole, "copied_objects"),
        door.passed() - 2 * planning,
    );
    let mut seen = BTreeSet::new();
    // Killed three times, each with another part of it over.
    for share in [2, 4, 8] {
        door.set(Way::Open);
        door.set_after(planning + whole.1 / share, Way::Held);
        let copy = through.start(["copy", from.as_str(), url.as_str()]);
        wait_until("some of it is over", Duration::from_secs(60), || {
            (door.way() == Way::Held).then_some(())
        });
        copy.kill();
        let there = tree(&root);
        assert!(there.is_superset(&seen), "nothing that was there is gone");
        assert!(
            !there.iter().any(|path| path.ends_with("/backup.json")),
            "the backup does not exist before all of it is there: {there:?}"
        );
        seen = there;
    }
    assert!(seen.len() > 3, "{seen:?}");
    let left = world.archiver.run(["copy", &from, &url, "--json"]);
    let left = left.expect_success();
    let present = count(&left, "present_objects");
    assert!(present > 0, "{}", left.stdout);
    assert_eq!(present + count(&left, "copied_objects"), whole.0);
    let identity = world.restorer.identity.clone().expect("an identity");
    let verified = ["verify", &url, "--identity", &identity];
    world.restorer.walden.run(verified).expect_success();
}
