//! Each rule of the house, shown to fail on a bad sample and to pass a good one.

use super::*;

/// The rule must find something in `bad` and nothing in `good`.
fn check(rule: Rule, path: &str, bad: &str, good: &str) {
    let found = rule(&plain(path, bad));
    assert!(!found.is_empty(), "nothing found in {path}: {bad}");
    let found = rule(&plain(path, good));
    assert!(found.is_empty(), "{path}: {found:?}");
}

#[test]
fn finds_a_file_without_its_purpose() {
    check(
        opens_with_its_purpose,
        "src/a.rs",
        "use a;\n",
        "//! A.\nuse a;\n",
    );
}

#[test]
fn finds_a_long_file_and_does_not_count_its_tests() {
    let code = "fn a() {}\n".repeat(700);
    let tests = format!("{code}#[cfg(test)]\nmod tests {{\n    fn b() {{}}\n}}\n");
    let long = format!("{code}fn a() {{}}\n");
    check(is_not_too_long, "src/a.rs", &long, &tests);
    // In a file of tests they are what counts.
    check(is_not_too_long, "tests/it/a.rs", &tests, &code);
    check(is_not_too_long, "pitr/tests/a.rs", &long, &code);
    let unit_tests = File {
        test_only: true,
        ..plain("src/a/tests.rs", &long)
    };
    assert!(!is_not_too_long(&unit_tests).is_empty());
}

#[test]
fn knows_what_is_only_a_test() {
    let text = "fn a() {}\n#[cfg(test)]\n#[expect(\n    x,\n    reason = \"y\"\n)]\nmod tests {\n    fn b() {}\n\n    fn c() {\n    }\n}\n\
        #[cfg(test)]\nuse d::{\n    e,\n};\n#[cfg(test)]\nmod f;\n#[cfg(test)]\nfn g() {}\nfn h() {}\n    #[cfg(test)]\n    fn i() {\n    }\n    fn j() {}\n";
    let kept = without_tests(text);
    let names: String = kept
        .chars()
        .filter(|sign| "abcdefghij".contains(*sign))
        .collect();
    assert_eq!(names.replace("f", ""), "ahj", "{kept}");
    assert_eq!(
        kept.lines().position(|line| line == "fn h() {}"),
        text.lines().position(|line| line == "fn h() {}")
    );

    let check = |path, text: &str, expected: &str| {
        let found = test_modules(&plain(path, text));
        assert!(found.contains(&expected.to_owned()), "{path}: {found:?}");
    };
    check("a/src/lib.rs", "#[cfg(test)]\nmod b;\n", "a/src/b.rs");
    check(
        "a/src/b.rs",
        "#[cfg(test)]\npub(crate) mod tests;\n",
        "a/src/b/tests.rs",
    );
    check(
        "a/src/b.rs",
        "#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod tests;\n",
        "a/src/b_tests.rs",
    );
    assert!(test_modules(&plain("a/src/lib.rs", "mod b;\n#[cfg(test)]\nmod c {\n}\n")).is_empty());
}

#[test]
fn finds_std_in_wal_format() {
    let good =
        "#![no_std]\nuse core::fmt;\n#[cfg(test)]\nmod tests {\n    use std::io;\n}\n// std::io\n";
    check(
        wal_format_is_pure,
        "wal-format/src/lib.rs",
        "use core::fmt;\n",
        good,
    );
    check(
        wal_format_is_pure,
        "wal-format/src/lib.rs",
        "#![no_std]\nuse std::fmt;\n",
        good,
    );
    check(
        wal_format_is_pure,
        "wal-format/src/a.rs",
        "extern crate std;\n",
        "#[cfg(test)]\nextern crate std;\n",
    );
    let after = "#[cfg(test)]\nmod tests {\n    use std::io;\n}\nfn a() { std::mem::drop(1) }\n";
    check(
        wal_format_is_pure,
        "wal-format/src/a.rs",
        after,
        "use my_std::a;\n",
    );
}

#[test]
fn finds_another_door_to_storage() {
    let rule = only_the_store_imports_object_store;
    check(
        rule,
        "archiver/src/push.rs",
        "use object_store::path::Path;\n",
        "use repository::store;\n",
    );
    check(
        rule,
        "src/main.rs",
        "let a = object_store::memory::InMemory::new();\n",
        "//! Not object_store::this.\n",
    );
    let import = "use object_store::ObjectStore;\n";
    assert!(rule(&plain("repository/src/store.rs", import)).is_empty());
    assert!(rule(&plain("repository/src/store/s3.rs", import)).is_empty());
}

#[test]
fn finds_files_changed_elsewhere() {
    let rule = only_durable_changes_files;
    for call in MUTATIONS {
        check(
            rule,
            "pitr/src/restore.rs",
            &format!("    std::{call}a)?;\n"),
            "std::fs::read(path)?;\n",
        );
    }
    let write = "std::fs::write(path, text)?;\n";
    assert!(rule(&plain("repository/src/durable.rs", write)).is_empty());
    assert!(rule(&plain("tests/it/a.rs", write)).is_empty());
    let excused = format!("    #[expect(clippy::disallowed_methods, reason = \"x\")]\n    {write}");
    assert!(rule(&plain("pitr/src/restore.rs", &excused)).is_empty());
    assert!(rule(&plain("pitr/src/restore.rs", "if kind.is_symlink() {}")).is_empty());
    let test = format!("#[cfg(test)]\nmod tests {{\n    {write}}}\n");
    assert!(rule(&plain("pitr/src/restore.rs", &test)).is_empty());
}

#[test]
fn finds_what_was_left_open() {
    let rule = leaves_nothing_open;
    for bad in [
        "todo!()",
        "    unimplemented!(\"x\")",
        "#[ignore = \"slow\"]",
        "#[should_panic]",
        "#[allow(dead_code)]",
    ] {
        check(rule, "src/a.rs", bad, "fn todo() {} // todo!()");
    }
}

#[test]
fn finds_a_named_machine() {
    let rule = names_no_machine;
    for bad in [
        "cp /srv/ci/a b",
        "see (/root/x)",
        "\"/home/me/y\"",
        "/srv/ci/a",
    ] {
        check(
            rule,
            "README.md",
            bad,
            "$PWD/srv/ci/a, ./root/b, https://example.org/home/c, a/home/b, /home/<you>",
        );
    }
}

#[test]
fn finds_a_dependency_without_a_reason() {
    let rule = gives_each_dependency_a_reason;
    let good = "[workspace.dependencies]\nours = { path = \"ours\" }\na = \"1\" # why\n[dependencies]\na = \"1\"\n";
    check(
        rule,
        "Cargo.toml",
        "[workspace.dependencies]\na = \"1\"\n",
        good,
    );
}

#[test]
fn finds_links_that_lead_nowhere() {
    let exists = |path: &Path| path == Path::new("docs/there.md") || path == Path::new("docs");
    let check = |path, text, count: usize| {
        assert_eq!(
            broken_links(&plain(path, text), exists).len(),
            count,
            "{text}"
        );
    };
    check(
        "README.md",
        "[a](docs/there.md) [b](docs/there.md#part) [c](https://a.b/c) [d](#here)",
        0,
    );
    check("docs/other.md", "[a](there.md)", 0);
    check(
        "README.md",
        "[a](there.md) and [b](docs/gone.md \"title\")",
        2,
    );
}

#[test]
fn finds_dependencies_against_the_direction() {
    let check = |from: &str, to: &str, wrong| {
        let found = wrong_directions(&[(from.to_owned(), to.to_owned())]);
        assert_eq!(!found.is_empty(), wrong, "{from} -> {to}");
    };
    check("archiver", "repository", false);
    check("walden", "pitr", false);
    check("repository", "bytes", false);
    check("archiver", "pitr", true);
    check("pitr", "archiver", true);
    check("wal-format", "repository", true);
    check("repository", "walden", true);
    check("new-crate", "pitr", true);
}
