//! `walden archive-get` with two repositories, as PostgreSQL runs it.

use super::world::{PREFIX, World};
use crate::support::door::{Door, Way};
use crate::support::process::Output;
use crate::support::walden::Walden;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SERVED: i32 = 0;
const ABSENT: i32 = 1;
const UNPROVEN: i32 = 126;

/// A folder like a data directory.
pub(super) struct Hook<'a> {
    pub(super) world: &'a World,
    pub(super) folder: PathBuf,
}

impl Hook<'_> {
    #[track_caller]
    fn asks(&self, name: &str, code: i32) -> Output {
        let arguments = [
            "archive-get".into(),
            "--config".into(),
            self.world.config().into_os_string(),
            name.into(),
            "pg_wal/RECOVERYXLOG".into(),
        ];
        let walden = Walden::in_directory(&self.folder).envs(self.world.bucket.environment());
        walden.run(arguments).expect_code(code)
    }

    /// The file is the segment as the server wrote it.
    #[track_caller]
    pub(super) fn serves(&self, name: &str) -> Output {
        let output = self.asks(name, SERVED);
        let served =
            fs::read(self.folder.join("pg_wal/RECOVERYXLOG")).expect("read what was served");
        let written =
            fs::read(self.world.server.wal_directory().join(name)).expect("read a segment");
        assert!(served == written, "{name}");
        output
    }
}

#[test]
fn one_repository_down_serves_and_proves_nothing_absent() {
    let world = World::new(43);
    let (second, second_url) = world.copy_to("second");
    let door = Door::before(&world.bucket);
    let configure = |patience: &str| {
        let first = world.restorer.url.clone();
        let repositories = [
            ("first", first.as_str(), Some(door.endpoint())),
            ("second", second_url.as_str(), None),
        ];
        world.configure(&repositories, patience);
    };
    configure("4s");
    let folder = world.server.scratch().join("like a data directory");
    fs::create_dir_all(folder.join("pg_wal")).expect("make a folder");
    let hook = Hook {
        world: &world,
        folder,
    };
    let names: Vec<String> = world
        .segments(&second)
        .iter()
        .map(|path| {
            path.file_stem()
                .and_then(|name| name.to_str())
                .expect("a name")
                .to_owned()
        })
        .collect();
    // The server may have recycled the older ones.
    let [.., middle, gone, last] = names.as_slice() else {
        panic!("{names:?}");
    };
    let (beyond, history) = ("0000000100000009000000AB", "00000002.history");

    // Both there.
    hook.serves(last);
    hook.asks(beyond, ABSENT);
    hook.asks(history, ABSENT);

    // A segment that the first lacks; then both.
    let key = |name: &str| format!("{}/wal/00000001/{}/{name}.wal", world.cluster, &name[8..16]);
    world.bucket.delete(&format!("{PREFIX}/{}", key(gone)));
    let output = hook.serves(gone);
    assert!(
        output.stderr.contains(r#"taken_from="second""#),
        "{}",
        output.stderr
    );
    let path = second.join(key(gone));
    let object = fs::read(&path).expect("read an object");
    fs::remove_file(&path).expect("remove an object");
    let output = hook.asks(gone, UNPROVEN);
    assert!(output.stderr.contains("missing"), "{}", output.stderr);
    fs::write(&path, &object).expect("put the object back");

    // One byte in the second's is another one, and the first has none: damaged is not absent.
    let mut damaged = object.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    fs::write(&path, damaged).expect("damage the object");
    hook.asks(gone, UNPROVEN);
    fs::write(&path, object).expect("put the object back");

    // The first hangs: what the second has is served, at once when that is known.
    door.set(Way::Held);
    configure("30s");
    let begun = Instant::now();
    hook.serves(middle);
    let first_time = begun.elapsed();
    assert!(first_time < Duration::from_secs(15), "{first_time:?}");
    let begun = Instant::now();
    hook.serves(last);
    let again = begun.elapsed();
    assert!(
        again < Duration::from_secs(3),
        "it asked the first one again: {again:?}"
    );

    // What the second lacks is not proven absent, by nobody's silence.
    configure("3s");
    for name in [beyond, history] {
        let output = hook.asks(name, UNPROVEN);
        assert!(output.stderr.contains("first"), "{}", output.stderr);
    }
    // A folder that is not mounted, likewise.
    let (_, nowhere) = world.folder("nowhere");
    world.configure(
        &[("first", &nowhere, None), ("second", &second_url, None)],
        "1s",
    );
    hook.serves(last);
    hook.asks(beyond, UNPROVEN);
    // One that is there and empty proves nothing either.
    let (empty, url) = world.folder("empty");
    fs::create_dir(empty).expect("make a folder");
    world.configure(
        &[("first", &url, None), ("second", &second_url, None)],
        "1s",
    );
    let output = hook.asks(beyond, UNPROVEN);
    assert!(output.stderr.contains("cluster.json"), "{}", output.stderr);
}
