//! `make demo` as a stranger meets it: the script of the checkout with the program under test. It must succeed, more than
//! once, show the same rows before the loss and after the recovery, and leave nothing running.

use crate::support::process::{self, Output, command};
use crate::support::{cache, walden::Walden};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(120);

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> Output {
    let mut demo = command(checkout().join("scripts/demo"));
    demo.env("WALDEN", Walden::program());
    demo.env("WALDEN_CACHE_DIR", cache());
    process::run(demo, DEADLINE).expect_success()
}

/// The one line of the table that `psql` shows for the first typed command with this beginning.
#[track_caller]
fn row<'a>(printed: &'a str, typed: &str) -> &'a str {
    let shown = printed
        .split_once(&format!("\n$ {typed}"))
        .unwrap_or_else(|| panic!("nobody typed {typed:?} in\n{printed}"))
        .1;
    let mut lines = shown.lines().skip(1);
    let head = lines.next().expect("the names of the columns");
    assert!(head.contains(" count ") && head.contains(" max "), "{head}");
    let row = lines.nth(1).expect("a row");
    assert_eq!(lines.next(), Some("(1 row)"), "{shown}");
    row
}

/// Processes that work in a folder, with what they are.
fn processes_in(folder: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir("/proc").expect("read /proc");
    entries
        .flatten()
        .filter_map(|entry| {
            // Others may end while this looks.
            let directory = fs::read_link(entry.path().join("cwd")).ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            directory
                .starts_with(folder)
                .then(|| (entry.path(), command))
        })
        .collect()
}

#[test]
fn the_demo_works_twice_and_leaves_nothing_running() {
    let folder = checkout().join(".demo");
    let mut moments = Vec::new();
    for _ in 0..2 {
        let output = demo();
        let printed = &output.stdout;
        let question = "'SELECT count(*), sum(amount), max(ordered) FROM orders'";
        let before = row(printed, &format!("psql -c {question}"));
        let after = row(printed, &format!("psql -p 5433 -c {question}"));
        assert!(before.trim_start().starts_with("5003 |"), "{before}");
        assert_eq!(before, after, "{output}");
        assert!(
            printed.contains("# All 5003 rows are back"),
            "the last words\n{output}"
        );
        // Where to go back to is what the log says.
        let found = printed.split_once("\n$ walden log --drops").unwrap().1;
        assert!(found.contains("public.orders: DROPPED"), "{output}");
        let target = found.split_once("--to-lsn ").unwrap().1;
        let target = target.split_once(' ').unwrap().0;
        let restore = format!("\n$ walden restore --to-lsn {target} --exclusive ");
        assert!(printed.contains(&restore), "{restore} {output}");
        let lost = r#"relation "orders" does not exist"#;
        assert!(output.stderr.contains(lost), "it was lost\n{output}");
        moments.push(before.to_owned());

        let left = processes_in(&folder);
        assert!(left.is_empty(), "still running: {left:#?}");
        let sockets = fs::read_to_string(folder.join("sockets")).expect("where its sockets were");
        assert!(
            !Path::new(sockets.trim()).exists(),
            "{sockets} is still there"
        );
    }
    let [first, second] = moments.as_slice() else {
        panic!("two runs")
    };
    assert_ne!(first, second, "the second run made its own rows");
}
