//! The two commands that PostgreSQL itself runs, and what their exit status must be however they end: usage errors,
//! configuration errors and panics included. Which of them runs is decided before anything can fail.
//!
//! PostgreSQL takes 1 from `restore_command` for *end of WAL* and opens the database; above 125 it stops recovery. Its archiver
//! process takes 1 from `archive_command` as "try again"; above 125 it dies.

use std::ffi::OsString;
use std::io::Write;

use crate::exit_code::ExitCode;
use crate::redact;

/// A command that PostgreSQL runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// `archive_command`
    ArchivePush,
    /// `restore_command`
    ArchiveGet,
}

/// Options before the command's name whose value is the next argument.
const OPTIONS_WITH_VALUE: [&str; 3] = ["--config", "--log-format", "--color"];

impl Hook {
    /// The hook that these arguments (without the program's name) mean, whether or not they are well formed.
    ///
    /// The first argument that is a hook's name decides, wherever it stands: in doubt a command gets a hook's status,
    /// never a hook another command's.
    pub(crate) fn in_arguments(arguments: &[OsString]) -> Option<Self> {
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("archive-push") => return Some(Self::ArchivePush),
                Some("archive-get") => return Some(Self::ArchiveGet),
                Some(option) if OPTIONS_WITH_VALUE.contains(&option) => {
                    arguments.next();
                }
                _ => {}
            }
        }
        None
    }

    /// The exit status for what a command ended with.
    pub(crate) fn status(hook: Option<Self>, code: ExitCode) -> u8 {
        match (hook, code) {
            (None, code) => code.status(),
            (Some(_), ExitCode::Done) => 0,
            (Some(Self::ArchivePush), _) => 1,
            (Some(Self::ArchiveGet), ExitCode::ProvenAbsent) => 1,
            (Some(Self::ArchiveGet), _) => 126,
        }
    }
}

/// Makes a panic, on any thread, end the process with the status of a failure of `hook`. Without this an abort would end it by a
/// signal, and a panic on a worker thread might not end it at all.
#[expect(clippy::exit, reason = "a panicking thread cannot return to main")]
pub(crate) fn exit_on_panic(hook: Option<Hook>) {
    std::panic::set_hook(Box::new(move |panic| {
        let report = format!(
            "error: internal error: {panic}\n\nhint: please report this, with the command and its log\n"
        );
        // Nothing is left to tell it to if stderr is gone.
        drop(std::io::stderr().write_all(redact::text(&report).as_bytes()));
        std::process::exit(i32::from(Hook::status(hook, ExitCode::Failed)));
    }));
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn hook_in(line: &str) -> Option<Hook> {
        Hook::in_arguments(
            &line
                .split_whitespace()
                .map(OsString::from)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn hook_is_found_however_wrong_the_arguments_are() {
        for line in [
            "archive-get 000000010000000000000001 pg_wal/x",
            "archive-get",
            "archive-get --nonsense",
            "--nonsense archive-get",
            "--config x archive-get",
            "--config=x archive-get a b",
            "--log-format json -v archive-get a b",
            "-q archive-get archive-push b",
            "nonsense archive-get a b",
            "--config archive-push archive-get a b",
        ] {
            assert_eq!(hook_in(line), Some(Hook::ArchiveGet), "{line}");
        }
        assert_eq!(hook_in("archive-push archive-get"), Some(Hook::ArchivePush));
        assert_eq!(
            hook_in("--color archive-get archive-push x"),
            Some(Hook::ArchivePush)
        );
        for line in [
            "",
            "restore",
            "config check",
            "--config archive-get list",
            "archive-gets",
            "--archive-get",
        ] {
            assert_eq!(hook_in(line), None, "{line}");
        }
    }

    #[test]
    fn hooks_have_codes_of_their_own() {
        use ExitCode::*;
        for code in [
            Failed,
            Usage,
            Warnings,
            Target,
            Integrity,
            NoRepository,
            Locked,
            NoKey,
        ] {
            assert_eq!(Hook::status(Some(Hook::ArchivePush), code), 1, "{code:?}");
            assert_eq!(Hook::status(Some(Hook::ArchiveGet), code), 126, "{code:?}");
            assert_eq!(Hook::status(None, code), code.status());
        }
        assert_eq!(Hook::status(Some(Hook::ArchiveGet), ProvenAbsent), 1);
        assert_eq!(Hook::status(Some(Hook::ArchivePush), ProvenAbsent), 1);
        assert_eq!(Hook::status(Some(Hook::ArchiveGet), Done), 0);
        assert_eq!(Hook::status(Some(Hook::ArchivePush), Done), 0);
    }

    /// Tells the child, which is this very test binary, how to panic.
    const CHILD: &str = "WALDEN_TEST_PANIC_AS";

    #[test]
    fn panics_end_with_the_hooks_status() {
        if let Ok(role) = std::env::var(CHILD) {
            match role.strip_prefix("thread ") {
                // Elsewhere than on the main thread a panic alone would not end the process.
                Some(words) => {
                    exit_on_panic(hook_in(words));
                    let thread = std::thread::spawn(|| panic!("on purpose, password=hunter2"));
                    drop(thread.join());
                }
                // The whole program, through to a command that panics.
                None => drop(crate::walden(
                    role.split_whitespace().map(OsString::from).collect(),
                )),
            }
            return;
        }
        for (role, expected) in [
            ("walden panic archive-get", 126),
            ("walden panic archive-push", 1),
            ("walden panic", 1),
            ("thread archive-get", 126),
            ("thread archive-push", 1),
            ("thread list", 1),
        ] {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "hook::tests::panics_end_with_the_hooks_status",
                    "--nocapture",
                ])
                .env(CHILD, role)
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&child.stderr);
            assert_eq!(child.status.code(), Some(expected), "{role}: {printed}");
            assert!(
                printed.contains("on purpose") && !printed.contains("hunter2"),
                "{printed}"
            );
        }
    }
}
