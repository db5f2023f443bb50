//! What a copy leaves as it is, and names.

use crate::fall_over::world::World;
use crate::site::wait;
use repository::key::ObjectKey;
use repository::testing::sealed;
use repository::{Repository, Store, StoreOptions};
use std::fs;

#[test]
fn other_contents_and_damage_are_named_and_the_rest_goes_over() {
    let world = World::new(46);
    let (source, source_url) = world.copy_to("source");
    let (target, target_url) = world.copy_to("target");
    let segments = world.segments(&source);
    let [.., conflict, damaged, missing] = segments.as_slice() else {
        panic!("{segments:?}");
    };
    let below = |path: &std::path::Path| path.strip_prefix(&source).expect("below").to_owned();
    let in_target = |path: &std::path::Path| target.join(below(path));
    for path in [conflict, damaged, missing] {
        fs::remove_file(in_target(path)).expect("remove a segment");
    }
    // In the target stands what another server with the same identity wrote.
    let key: ObjectKey = below(conflict)
        .to_str()
        .expect("UTF-8")
        .parse()
        .expect("a key");
    let store = Store::open(&source_url, StoreOptions::default()).expect("open the store");
    let described = wait(Repository::new("source", store).fetch_descriptor(&key));
    let wal = described.expect("a descriptor").wal;
    let foreign = sealed(key, wal, &[7; 1 << 20]);
    let foreign = [&foreign.header[..], &foreign.payload[..]].concat();
    fs::write(in_target(conflict), &foreign).expect("write an object");
    // In the source one byte is another one.
    let mut bytes = fs::read(damaged).expect("read an object");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::remove_file(damaged).expect("remove an object");
    fs::write(damaged, bytes).expect("write an object");

    let output = world
        .archiver
        .run(["copy", &source_url, &target_url, "--json"])
        .expect_code(5);
    let said = output.json();
    let cluster = &said["clusters"][0];
    let counts = ["conflicts", "damaged", "copied_objects"].map(|name| cluster[name].as_u64());
    assert_eq!(counts, [Some(1), Some(1), Some(1)], "{said}");
    let named = cluster["failures"].to_string();
    for path in [conflict, damaged] {
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .expect("a name");
        assert!(named.contains(name), "{name}: {named}");
    }
    assert!(
        fs::read(in_target(conflict)).expect("read") == foreign,
        "it was overwritten"
    );
    assert!(!in_target(damaged).exists());
    assert!(fs::read(in_target(missing)).expect("read") == fs::read(missing).expect("read"));

    let refused = world.archiver.run(["copy", &target_url, &target_url]);
    assert!(refused.expect_code(2).stderr.contains("two different"));
    let (_, nowhere) = world.folder("nowhere");
    world
        .archiver
        .run(["copy", &nowhere, &target_url])
        .expect_code(10);
    let unknown = world.archiver.run(["copy", "primary", "other"]);
    assert!(
        unknown
            .expect_code(2)
            .stderr
            .contains("no repository is named `other`")
    );
}
