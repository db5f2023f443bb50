//! The house rules that a program can check: dependency direction, file length, where files may be changed, and so on.
//! Each rule is a function over one file's path and text, and each has a test that shows it failing on a bad sample.

#[path = "tidy/samples.rs"]
mod samples;

use std::path::{Path, PathBuf};

/// A file of the checkout: its path from the root, its text, and whether another file declares it as a module of tests.
struct File<'a> {
    path: &'a str,
    text: &'a str,
    test_only: bool,
}

type Rule = fn(&File<'_>) -> Vec<String>;

/// Lines of a file: its tests not counted, or a file of tests.
const MAX_LINES: usize = 700;

/// Crates in the order of their dependencies, with what each may depend on of ours.
const DIRECTION: [(&str, &[&str]); 5] = [
    ("wal-format", &[]),
    ("repository", &["wal-format"]),
    ("archiver", &["repository", "wal-format"]),
    ("pitr", &["repository", "wal-format"]),
    ("walden", &["archiver", "pitr", "repository", "wal-format"]),
];

/// Calls that change files. clippy.toml bans the same by type; this net also catches what a macro or an alias hides.
const MUTATIONS: [&str; 17] = [
    "fs::write(",
    "fs::rename(",
    "fs::copy(",
    "fs::remove_",
    "fs::create_dir",
    "fs::hard_link(",
    "fs::set_permissions(",
    "fs::chown(",
    "fs::DirBuilder",
    "File::create",
    "File::options(",
    "OpenOptions::new(",
    "fs::symlink",
    "unlinkat(",
    "renameat",
    "mkdirat(",
    "ftruncate(",
];

// --- the rules ---------------------------------------------------------------------------------------------------

fn opens_with_its_purpose(file: &File<'_>) -> Vec<String> {
    let first = file.text.lines().next().unwrap_or_default();
    let fits = !is_rust(file) || first.starts_with("//!");
    problems(
        fits,
        "does not open with `//!`: what it owns, and what it does not",
    )
}

fn is_not_too_long(file: &File<'_>) -> Vec<String> {
    let lines = match is_test_code(file) {
        true => file.text.lines().count(),
        false => without_tests(file.text).lines().count(),
    };
    problems(
        !is_rust(file) || lines <= MAX_LINES,
        &format!("has {lines} lines without its tests; {MAX_LINES} are the limit"),
    )
}

fn wal_format_is_pure(file: &File<'_>) -> Vec<String> {
    if !is_rust(file) || !file.path.starts_with("wal-format/src/") || is_test_code(file) {
        return Vec::new();
    }
    let mut found = problems(
        !file.path.ends_with("/lib.rs") || file.text.contains("#![no_std]"),
        "is the root of wal-format and lacks #![no_std]",
    );
    found.extend(lines_with(file, |code| {
        has_word(code, "std") && (code.contains("std::") || code.contains("crate std"))
    }));
    found
}

fn only_the_store_imports_object_store(file: &File<'_>) -> Vec<String> {
    let exempt = ["repository/src/store.rs", "repository/src/testing.rs"].contains(&file.path)
        || file.path.starts_with("repository/src/store/")
        || file.path.starts_with("repository/src/testing/");
    if !ships(file) || exempt {
        return Vec::new();
    }
    lines_with(file, |code| {
        has_word(code, "object_store")
            && (code.contains("object_store::") || code.contains("use object_store"))
    })
}

fn only_durable_changes_files(file: &File<'_>) -> Vec<String> {
    let exempt = file.path == "repository/src/durable.rs"
        || file.path.starts_with("repository/src/durable/")
        || file.path.starts_with("repository/src/testing");
    if !ships(file) || exempt {
        return Vec::new();
    }
    // Where clippy was told that, and why, this is content.
    let lines: Vec<&str> = file.text.lines().collect();
    let excused = |number: usize| {
        let before = lines
            .get(number.saturating_sub(4)..number)
            .unwrap_or_default();
        before
            .iter()
            .any(|line| line.contains("clippy::disallowed_methods"))
    };
    let text = without_tests(file.text);
    let found = text.lines().enumerate().filter(|(number, line)| {
        MUTATIONS.iter().any(|call| has_call(code_of(line), call)) && !excused(*number)
    });
    found.map(|(number, line)| at(number, line)).collect()
}

fn leaves_nothing_open(file: &File<'_>) -> Vec<String> {
    if !is_rust(file) {
        return Vec::new();
    }
    let open = [
        "todo!(",
        "unimplemented!(",
        "#[ignore",
        "#[should_panic",
        "#[allow(",
    ];
    let lines = file.text.lines().enumerate();
    let bad = lines.filter(|(_, line)| open.iter().any(|sign| code_of(line).contains(sign)));
    bad.map(|(number, line)| at(number, line)).collect()
}

fn names_no_machine(file: &File<'_>) -> Vec<String> {
    // Tests make up home folders, but none of them is a machine's own.
    let folders: &[&str] = if is_rust(file) {
        &["/root/", "/srv/ci/"]
    } else {
        &["/root/", "/srv/ci/", "/home/"]
    };
    let lines = file.text.lines().enumerate();
    let bad = lines.filter(|(_, line)| {
        folders.iter().any(|folder| {
            // A path that begins there, not one that merely has such a folder inside.
            line.match_indices(folder).any(|(place, _)| {
                let before = line
                    .get(..place)
                    .and_then(|start| start.chars().next_back());
                let after = line
                    .get(place + folder.len()..)
                    .and_then(|end| end.chars().next());
                before.is_none_or(|sign| {
                    !sign.is_alphanumeric() && !['.', '_', '-', '}', '>'].contains(&sign)
                }) && after.is_some_and(char::is_alphanumeric)
            })
        })
    });
    bad.map(|(number, line)| at(number, line)).collect()
}

fn gives_each_dependency_a_reason(file: &File<'_>) -> Vec<String> {
    if file.path != "Cargo.toml" {
        return Vec::new();
    }
    let mut section = "";
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        }
        let dependency = section == "[workspace.dependencies]" && line.contains(" = ");
        if dependency && !line.contains("path = ") && !line.contains(" # ") {
            found.push(at(number, line));
        }
    }
    found
}

/// Links of Markdown that point into the checkout, and lead nowhere.
fn broken_links(file: &File<'_>, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = Path::new(file.path).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', ' ', '#']).next().unwrap_or_default();
            let elsewhere =
                target.is_empty() || target.contains("://") || target.contains("mailto:");
            if !elsewhere && !exists(&folder.join(target)) {
                found.push(at(number, line));
            }
        }
    }
    found
}

/// Dependencies among our own crates that go the wrong way. Test dependencies count too.
fn wrong_directions(dependencies: &[(String, String)]) -> Vec<String> {
    let ours = |name: &str| DIRECTION.iter().any(|(crate_name, _)| *crate_name == name);
    let allowed = |from: &str, to: &str| {
        let row = DIRECTION.iter().find(|(crate_name, _)| *crate_name == from);
        row.is_some_and(|(_, may)| may.contains(&to))
    };
    let wrong = dependencies
        .iter()
        // A crate's own tests may ask it for its testing feature.
        .filter(|(from, to)| ours(to) && from != to && !allowed(from, to));
    wrong
        .map(|(from, to)| format!("{from} depends on {to}"))
        .collect()
}

// --- what the rules share ----------------------------------------------------------------------------------------

fn problems(fits: bool, otherwise: &str) -> Vec<String> {
    if fits {
        Vec::new()
    } else {
        vec![otherwise.to_owned()]
    }
}

fn at(number: usize, line: &str) -> String {
    format!("line {}: {}", number + 1, line.trim())
}

fn is_rust(file: &File<'_>) -> bool {
    file.path.ends_with(".rs")
}

/// Integration tests, benches, fuzz targets, and unit tests that have a file of their own.
fn is_test_code(file: &File<'_>) -> bool {
    let mut folders = file.path.split('/');
    file.test_only || folders.any(|part| ["tests", "benches", "fuzz"].contains(&part))
}

/// Rust that becomes part of the program.
fn ships(file: &File<'_>) -> bool {
    is_rust(file)
        && !is_test_code(file)
        && (file.path.starts_with("src/") || file.path.contains("/src/"))
}

/// The text with its test-only items blanked, so that line numbers stay. It relies on rustfmt's indentation.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        kept.push('\n');
        if line.starts_with("#![cfg(") && line.contains("test") {
            break;
        }
        if is_test_attribute(line) {
            let item = test_item(line, &mut lines);
            kept.extend(item.map(|_| '\n'));
        } else {
            kept.push_str(line);
        }
    }
    // Blank lines at the end stand for tests; the first sign stands before the first line.
    kept.trim_end()
        .strip_prefix('\n')
        .unwrap_or_default()
        .to_owned()
}

fn is_test_attribute(line: &str) -> bool {
    line.trim() == "#[cfg(test)]"
}

/// The lines of the item below the attribute in `line`: its other attributes, then all up to its last line.
fn test_item<'a>(line: &'a str, lines: &mut std::str::Lines<'a>) -> impl Iterator<Item = &'a str> {
    let indent = line.split('#').next().unwrap_or_default();
    let at_indent = |line: &'a str, signs: &[&str]| {
        let rest = line.strip_prefix(indent).unwrap_or_default();
        signs.iter().any(|sign| rest.starts_with(sign))
    };
    let mut item = Vec::new();
    let mut in_attribute = false;
    for line in lines.by_ref() {
        item.push(line);
        let end = line.trim_end();
        if in_attribute {
            in_attribute = !at_indent(line, &[")]", "]"]);
        } else if at_indent(line, &["#["]) {
            in_attribute = !end.ends_with(']');
        } else {
            let one_line = !at_indent(line, &[" ", "//"]) && end.ends_with([';', '}']);
            if one_line || at_indent(line, &["}"]) {
                break;
            }
        }
    }
    item.into_iter()
}

/// The files that `file` declares as modules of tests.
fn test_modules(file: &File<'_>) -> Vec<String> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", file.path));
    let inside = match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        _ => file.path.trim_end_matches(".rs").to_owned(),
    };
    let mut found = Vec::new();
    let mut lines = file.text.lines();
    while let Some(line) = lines.next() {
        if !is_test_attribute(line) {
            continue;
        }
        let item: Vec<&str> = test_item(line, &mut lines).map(str::trim).collect();
        let named = item
            .iter()
            .find_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"));
        let module = item
            .last()
            .and_then(|line| line.split("mod ").nth(1)?.strip_suffix(';'));
        match (named, module) {
            (Some(path), Some(_)) => found.push(format!("{folder}/{path}")),
            (None, Some(module)) => {
                found.push(format!("{inside}/{module}.rs"));
                found.push(format!("{inside}/{module}/mod.rs"));
            }
            _ => {}
        }
    }
    found
}

/// The line without its comment. A `//` within a string cuts too much, never too little that matters here.
fn code_of(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn lines_with(file: &File<'_>, bad: impl Fn(&str) -> bool) -> Vec<String> {
    let text = without_tests(file.text);
    let lines = text.lines().enumerate();
    let found = lines.filter(|(_, line)| bad(code_of(line)));
    found.map(|(number, line)| at(number, line)).collect()
}

/// Whether `code` has the call, not as the end of a longer name.
fn has_call(code: &str, call: &str) -> bool {
    code.match_indices(call).any(|(place, _)| {
        let before = code
            .get(..place)
            .and_then(|start| start.chars().next_back());
        call.starts_with('.') || before.is_none_or(|sign| !sign.is_alphanumeric() && sign != '_')
    })
}

/// Whether `word` stands in `code` by itself, not as part of a longer name.
fn has_word(code: &str, word: &str) -> bool {
    let part = |sign: char| sign.is_alphanumeric() || sign == '_';
    code.split(|sign: char| !part(sign))
        .any(|found| found == word)
}

// --- the checkout ------------------------------------------------------------------------------------------------

const RULES: [(&str, Rule); 8] = [
    ("every file says what it owns", opens_with_its_purpose),
    ("files stay short", is_not_too_long),
    ("wal-format does no I/O", wal_format_is_pure),
    ("one door to storage", only_the_store_imports_object_store),
    ("one place changes files", only_durable_changes_files),
    ("nothing is left open", leaves_nothing_open),
    ("no machine is named", names_no_machine),
    (
        "each dependency has a reason",
        gives_each_dependency_a_reason,
    ),
];

fn plain<'a>(path: &'a str, text: &'a str) -> File<'a> {
    File {
        path,
        text,
        test_only: false,
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text files that are ours, from the root: what tools made, and hidden folders but CI's, are passed over.
fn our_files() -> Vec<(String, String)> {
    let mut folders = vec![PathBuf::new()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(root().join(&folder)).expect("read a folder of the checkout");
        for entry in entries {
            let entry = entry.expect("read a folder of the checkout");
            let name = entry
                .file_name()
                .into_string()
                .expect("our names are UTF-8");
            let kind = entry.file_type().expect("the kind of an entry");
            let path = folder.join(&name);
            let passed = name.starts_with('.') && ![".ci", ".cargo"].contains(&name.as_str())
                || ["target", "corpus", "artifacts"].contains(&name.as_str());
            if kind.is_dir() && !passed {
                folders.push(path);
            } else if kind.is_file() && !passed {
                let path = path
                    .into_os_string()
                    .into_string()
                    .expect("our paths are UTF-8");
                let bytes = std::fs::read(root().join(&path)).expect("read a file of the checkout");
                // What is not text is a test's sample.
                if let Ok(text) = String::from_utf8(bytes) {
                    files.push((path, text));
                }
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_checkout_keeps_the_house_rules() {
    let files = our_files();
    let rust = files
        .iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .count();
    assert!(rust > 10, "only {rust} Rust files were found");
    let mut test_only = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        test_only.extend(test_modules(&plain(path, text)));
    }
    let mut broken = Vec::new();
    for (path, text) in &files {
        let test_only = test_only.contains(path);
        let file = File {
            path,
            text,
            test_only,
        };
        // The rules and their bad samples break every other rule.
        let own = path.starts_with("tests/tidy");
        for (name, rule) in if own { &RULES[..2] } else { &RULES } {
            for problem in rule(&file) {
                broken.push(format!("{path}: {name}: {problem}"));
            }
        }
        for problem in broken_links(&file, |target| root().join(target).exists()) {
            broken.push(format!("{path}: a link leads nowhere: {problem}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn crates_depend_in_one_direction() {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo tells the workspace's crates");
    let mut dependencies = Vec::new();
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            dependencies.push((package.name.to_string(), dependency.name.clone()));
        }
    }
    // If names changed, the rule would hold of nothing.
    for (name, may) in DIRECTION {
        let known = metadata.packages.iter().any(|package| package.name == name);
        assert!(known, "there is no crate {name}");
        assert!(
            may.iter()
                .all(|other| DIRECTION.iter().any(|row| row.0 == *other))
        );
    }
    let expected = ("walden".to_owned(), "archiver".to_owned());
    assert!(dependencies.contains(&expected), "{dependencies:?}");
    let wrong = wrong_directions(&dependencies);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
