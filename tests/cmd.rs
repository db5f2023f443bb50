//! The real binary at its edges: help, usage errors, exit codes, configuration errors, and what goes to which stream.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a run ended with.
struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs `walden` in `folder` with nothing of the caller's environment that it reads.
fn walden(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walden"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder.join("home"))
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

const VALID: &str = "encryption = \"none\"\n\n[[repository]]\nurl = \"file:///srv/walden\"\n";

/// A folder with this text as `name`.
fn folder_with(name: &str, text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
    std::fs::write(folder.path().join(name), text).unwrap();
    folder
}

#[test]
fn help_goes_to_stdout_and_names_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--help"][..], &["help"], &["-h"]] {
        let run = walden(folder.path(), arguments, &[]);
        assert_eq!(
            (run.status, run.stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
        assert!(
            run.stdout.contains("Exit codes:") && run.stdout.contains("config"),
            "{}",
            run.stdout
        );
        assert!(!run.stdout.contains('\x1b'), "no colour into a pipe");
    }
    let run = walden(folder.path(), &["--version"], &[]);
    assert_eq!(
        run.stdout,
        format!("walden {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn usage_errors_end_with_2_and_suggest() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (&[][..], "Usage: walden"),
        (&["confg", "check"], "'config'"),
        (&["config", "chek"], "'check'"),
        (&["config", "check", "--jsn"], "'--json'"),
        (&["config", "check", "-q", "-v"], "cannot be used with"),
        (
            &["config", "check", "--log-format", "xml"],
            "[possible values: text, json]",
        ),
    ] {
        let run = walden(folder.path(), arguments, &[]);
        assert_eq!(
            (run.status, run.stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}"
        );
        assert!(
            run.stderr.contains(expected),
            "{arguments:?}: {}",
            run.stderr
        );
    }
}

#[test]
fn hooks_end_with_their_own_codes_whatever_is_wrong() {
    let folder = folder_with("walden.toml", "this is not TOML");
    let broken = folder.path().join("walden.toml");
    let broken = broken.to_str().unwrap();
    for (hook, expected) in [("archive-get", 126), ("archive-push", 1)] {
        for arguments in [
            &[hook][..],
            &[hook, "--nonsense"],
            &[hook, "a", "b", "c", "d"],
            &["--nonsense", hook, "a", "b"],
            &[
                "--config",
                broken,
                hook,
                "000000010000000000000001",
                "pg_wal/x",
            ],
            &["--config", "/nonexistent", hook, "000000010000000000000001"],
            &[hook, "000000010000000000000001", "--json"],
            &[hook, "--log-format", "xml", "x"],
        ] {
            let run = walden(folder.path(), arguments, &[]);
            assert_eq!(run.status, Some(expected), "{arguments:?}: {}", run.stderr);
            assert_eq!(run.stdout, "", "{arguments:?}");
            assert!(!run.stderr.is_empty(), "{arguments:?}");
        }
    }
}

#[test]
fn a_closed_stderr_changes_no_exit_code() {
    let script = format!("exec {} archive-get 2>&-", env!("CARGO_BIN_EXE_walden"));
    let status = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(126));
}

#[test]
fn unknown_key_is_named_with_its_line_and_the_one_that_was_meant() {
    let folder = folder_with(
        "walden.toml",
        &format!("{VALID}\n[archive]\nrpoo = \"5s\"\n"),
    );
    let run = walden(folder.path(), &["config", "check"], &[]);
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""));
    assert_eq!(
        run.stderr,
        "error: ./walden.toml:7: unknown key `rpoo` in [archive]\n\nhint: did you mean `rpo`?\n"
    );
}

#[test]
fn under_json_an_error_is_a_document_on_stdout() {
    let folder = folder_with(
        "walden.toml",
        &format!("{VALID}\n[archive]\nrpoo = \"5s\"\n"),
    );
    for (arguments, message) in [
        (&["config", "check", "--json"][..], "./walden.toml:7"),
        (
            &["config", "chek", "--json"],
            "unrecognized subcommand 'chek'",
        ),
    ] {
        let run = walden(folder.path(), arguments, &[]);
        assert_eq!(run.status, Some(2));
        let document: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(document["schema"], "walden.error");
        assert_eq!(document["version"], 1);
        assert_eq!(document["code"], "usage");
        assert_eq!(document["message"], message);
        assert!(document["hint"].is_string(), "{document}");
    }
}

#[test]
fn configuration_is_found_in_the_documented_order() {
    let text = |name: &str| format!("{VALID}name = \"{name}\"\n");
    let folder = folder_with("home/.config/walden/walden.toml", &text("home"));
    let root = folder.path();
    let name_in_force = |arguments: &[&str], variables: &[(&str, &str)]| {
        let run = walden(
            root,
            &[&["config", "show", "--json"], arguments].concat(),
            variables,
        );
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        let document: Value = serde_json::from_str(&run.stdout).unwrap();
        document["repository"][0]["name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(name_in_force(&[], &[]), "home");
    std::fs::create_dir_all(root.join("xdg/walden")).unwrap();
    std::fs::write(root.join("xdg/walden/walden.toml"), text("xdg")).unwrap();
    let xdg = root.join("xdg");
    let xdg = [("XDG_CONFIG_HOME", xdg.to_str().unwrap())];
    assert_eq!(name_in_force(&[], &xdg), "xdg");
    std::fs::write(root.join("walden.toml"), text("here")).unwrap();
    assert_eq!(name_in_force(&[], &xdg), "here");
    std::fs::write(root.join("variable.toml"), text("variable")).unwrap();
    let variable = [xdg[0], ("WALDEN_CONFIG", "variable.toml")];
    assert_eq!(name_in_force(&[], &variable), "variable");
    std::fs::write(root.join("flag.toml"), text("flag")).unwrap();
    assert_eq!(name_in_force(&["--config", "flag.toml"], &variable), "flag");
    let run = walden(
        root,
        &["config", "show", "--config", "absent.toml"],
        &variable,
    );
    assert_eq!(
        run.status,
        Some(2),
        "a named file is not replaced by another"
    );
    assert!(run.stderr.contains("absent.toml"), "{}", run.stderr);
}

#[test]
fn config_show_prints_a_file_that_reads_back_and_hides_passwords() {
    let text = format!("{VALID}\n[postgres]\nconninfo = \"host=db password=hunter2\"\n");
    let folder = folder_with("walden.toml", &text);
    let shown = walden(folder.path(), &["config", "show"], &[]);
    assert_eq!(shown.status, Some(0));
    assert!(
        !shown.stdout.contains("hunter2") && shown.stdout.contains("password=[redacted]"),
        "{}",
        shown.stdout
    );
    assert!(
        shown.stderr.contains("WARN") && shown.stderr.contains(".pgpass"),
        "{}",
        shown.stderr
    );
    std::fs::write(folder.path().join("again.toml"), &shown.stdout).unwrap();
    let again = walden(
        folder.path(),
        &["config", "show", "--config", "again.toml"],
        &[],
    );
    assert_eq!(again.stdout, shown.stdout);
}

#[test]
fn config_check_ends_with_3_for_what_is_unwise() {
    let folder = folder_with("walden.toml", VALID);
    let run = walden(folder.path(), &["config", "check", "--offline"], &[]);
    assert_eq!(
        (run.status, run.stdout.as_str(), run.stderr.as_str()),
        (Some(0), "./walden.toml: valid\n", "")
    );
    let unwise = format!("{VALID}\n[postgres]\nconninfo = \"host=db password=hunter2\"\n");
    std::fs::write(folder.path().join("walden.toml"), unwise).unwrap();
    let run = walden(folder.path(), &["config", "check", "--offline"], &[]);
    assert_eq!(run.status, Some(3), "{}", run.stdout);
    assert!(
        run.stdout.contains("warning: ") && !run.stdout.contains("hunter2"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_bad_log_filter_is_a_usage_error() {
    let folder = folder_with("walden.toml", VALID);
    let run = walden(
        folder.path(),
        &["config", "show"],
        &[("WALDEN_LOG", "walden=loud")],
    );
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(
        run.stderr.contains("WALDEN_LOG") && run.stderr.contains("hint:"),
        "{}",
        run.stderr
    );
}

#[test]
fn log_lines_are_json_where_asked_and_secrets_stay_out() {
    let text = format!("{VALID}\n[postgres]\nconninfo = \"host=db password=hunter2\"\n");
    let folder = folder_with("walden.toml", &text);
    let run = walden(folder.path(), &["config", "show", "--json"], &[]);
    let line = run.stderr.lines().next().unwrap();
    let event: Value = serde_json::from_str(line).unwrap();
    assert_eq!(event["level"], "WARN", "{line}");
    assert!(
        event["message"].as_str().unwrap().contains(".pgpass"),
        "{line}"
    );
    assert!(!run.stderr.contains("hunter2"));
}

#[test]
fn colour_follows_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let always = walden(
        folder.path(),
        &["config", "check", "--color", "always"],
        &[],
    );
    assert!(
        always.stderr.contains("\x1b[1;31merror:"),
        "{:?}",
        always.stderr
    );
    let never = walden(folder.path(), &["config", "check", "--color", "never"], &[]);
    assert!(never.stderr.starts_with("error: "), "{:?}", never.stderr);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let folder = folder_with("walden.toml", VALID);
    let script = format!(
        "( {} config show; echo status $? >&2 ) | true",
        env!("CARGO_BIN_EXE_walden")
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "status 0\n");
}
