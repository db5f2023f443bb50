//! The first repository holds another server's WAL under a segment's name: whole, sealed, at its own place, and no part of the chain. What counts is the
//! other repository's.

use super::hook::Hook;
use super::restores::fell_over;
use super::world::World;
use crate::site::wait;
use crate::support::oracle::{assert_same_rows, rows};
use repository::descriptor::WalDescriptor;
use repository::identity::{Identities, Recipients, SecretReference};
use repository::sealed::{BufferPool, Facts, OpenPolicy, SealPolicy, Sealer};
use repository::testing::UNENCRYPTED;
use serde_json::Value;
use std::fs;
use std::path::Path;
use wal_format::Lsn;

/// Puts other WAL into a segment's object, and has it say of its records what `change` makes of the truth.
fn swap(world: &World, root: &Path, segment: &Path, change: Change) {
    let identity = world.restorer.identity.as_ref().expect("an identity");
    let file = identity.strip_prefix("file:").expect("a file").to_owned();
    let open = OpenPolicy {
        identities: wait(Identities::load(&[SecretReference::File(file)])).expect("load"),
        allow_plain: false,
    };
    let config = fs::read_to_string(world.server.scratch().join("archiver/walden.toml"))
        .expect("read the configuration");
    let recipient = config.split('"').find(|word| word.starts_with("age1"));
    let recipient = recipient.expect("a recipient").to_owned();
    let key = segment.strip_prefix(root).expect("below the repository");
    let key = key.to_str().expect("a key").parse().expect("a key");
    let object = fs::read(segment).expect("read an object");
    let mut plain = Vec::new();
    let descriptor = open.open(&key, object.into(), 1 << 20, &mut plain);
    let mut wal = descriptor.expect("open it").wal.expect("WAL");
    change(&mut wal);
    // PostgreSQL would take it for the end of WAL.
    let middle = plain.len() / 2;
    plain[middle..].fill(0x5a);
    let seal = SealPolicy {
        recipients: Some(Recipients::parse(&[recipient]).expect("a recipient")),
        ..UNENCRYPTED
    };
    let facts = Facts {
        key,
        pg_version: 18,
        wal: Some(wal),
    };
    let sealed = Sealer::new(seal, BufferPool::new(0)).seal(facts, &plain);
    let sealed = sealed.expect("seal it");
    fs::remove_file(segment).expect("remove an object");
    fs::write(segment, [sealed.header, sealed.payload].concat()).expect("write an object");
}

type Change = fn(&mut WalDescriptor);

fn off(lsn: &mut Option<Lsn>) {
    *lsn = lsn.map(|lsn| Lsn::new(lsn.as_u64() - 8));
}

fn name(path: &Path) -> String {
    let name = path.file_stem().and_then(|name| name.to_str());
    name.expect("a segment's name").to_owned()
}

#[test]
fn a_segment_that_does_not_chain_comes_from_the_other_repository() {
    let world = World::new(44);
    let expected = world.latest();
    let (_, second) = world.copy_to("second");
    let changes: [(&str, Change); 2] = [
        // It follows another record, and is followed by another one.
        ("both ends", |wal| {
            off(&mut wal.first_record_prev);
            off(&mut wal.last_record);
        }),
        // It goes another way from its middle on, which shows only in the next one.
        ("its end", |wal| off(&mut wal.last_record)),
    ];
    for (what, change) in changes {
        let (first, url) = world.copy_to(what);
        let segments = world.segments(&first);
        let [.., swapped, next, _] = segments.as_slice() else {
            panic!("{segments:?}");
        };
        swap(&world, &first, swapped, change);
        world.configure(&[("first", &url, None), ("second", &second, None)], "5s");
        let key = swapped.strip_prefix(&first).expect("below").display();
        let key = key.to_string();

        // The restore: in its plan, and in the hooks, which the plan tells.
        let to = ["--to", "latest", "--action", "promote"];
        let (restored, output) = world.restore(what, &to, 0);
        assert_same_rows(what, &expected, &rows(&restored.client));
        let said = fell_over(&restored.said);
        let is_named = |(from, object, to): &(String, String, String)| {
            (from.as_str(), to.as_str()) == ("first", "second") && *object == key
        };
        assert!(said.iter().any(is_named), "{what}: {said:?}\n{output}");
        let hooks = World::hooks_said(&restored);
        let line = hooks
            .lines()
            .find(|line| line.contains("another repository") && line.contains(&name(swapped)));
        let line = line.unwrap_or_else(|| panic!("{what}: {hooks}"));
        assert!(line.contains(r#"taken_from="second""#), "{line}");
        World::end(&restored);
        drop(restored);

        // The log reads it whole, as from the good one alone.
        let log = |more: &[&str]| {
            let config = world.config().display().to_string();
            let mut arguments = vec!["log", "--config", &config, "--last", "1000", "--json"];
            arguments.extend(more);
            let output = world.restorer.walden.run(arguments).expect_code(0);
            let transactions = output.json()["transactions"].clone();
            let transactions = transactions.as_array().expect("transactions");
            let fact = |one: &Value, field: &str| one[field].to_string();
            let fields = ["xid", "commit_lsn", "start_lsn", "wal_bytes", "relations"];
            let facts = transactions.iter();
            let facts = facts.map(|one| fields.map(|field| fact(one, field)));
            (facts.collect::<Vec<_>>(), output.stderr)
        };
        let (alone, _) = log(&["--repository", "second"]);
        let (both, said) = log(&[]);
        assert!(alone.len() > 40);
        assert_eq!(alone, both, "{what}");
        let told = said
            .lines()
            .any(|line| line.contains(&key) && line.contains(r#""taken_from":"second""#));
        assert!(told, "{what}: {said}");

        // Alone it leads nowhere.
        let alone = ["--to", "latest", "--repository", "first", "--dry-run"];
        let (_, output) = world.restore("alone", &alone, 5);
        assert!(output.stderr.contains("does not follow"), "{output}");

        // A standby has no plan: what follows the WAL before it is served, and what follows that.
        if what == "both ends" {
            let folder = world.server.scratch().join("like a data directory");
            fs::create_dir_all(folder.join("pg_wal")).expect("make a folder");
            let hook = Hook {
                world: &world,
                folder,
            };
            let output = hook.serves(&name(swapped));
            assert!(output.stderr.contains(r#"taken_from="second""#), "{output}");
            hook.serves(&name(next));
        }
    }
}
