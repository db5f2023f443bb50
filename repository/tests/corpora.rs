//! Replays the committed corpora of the fuzz targets through the same bodies.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use repository::fuzzing;

fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if let Err(cause) = std::panic::catch_unwind(|| body(&bytes)) {
            panic!("{}: {cause:?}", path.display());
        }
        count += 1;
    }
    assert!(count >= 8, "{} holds {count} inputs", folder.display());
}

#[test]
fn catalog_names() {
    replay("catalog_names", fuzzing::catalog_names);
}

#[test]
fn roll_up() {
    replay("roll_up", fuzzing::roll_up);
}
