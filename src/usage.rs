//! Answers to a command line that clap did not turn into a command: help, version, and usage errors.

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::GlobalArgs;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::hook::Hook;
use crate::redact;
use crate::report::Output;

/// Prints the answer and says how the process ends. Under `--json` a usage error is a document too, though nothing was parsed;
/// not for the hooks, whose stdout nobody reads.
pub(crate) fn answer(error: &clap::Error, arguments: &[OsString], hook: Option<Hook>) -> ExitCode {
    let json = hook.is_none() && arguments.iter().any(|argument| argument == "--json");
    let output = Output::new(&GlobalArgs {
        json,
        ..GlobalArgs::default()
    });
    let rendered = error.render();
    let hide = |text: String| hide_value(error, &text);
    if !error.use_stderr() {
        let text = if output.color {
            rendered.ansi().to_string()
        } else {
            rendered.to_string()
        };
        // Help for a reader who has gone away is no failure.
        drop(std::io::stdout().lock().write_all(text.as_bytes()));
        return ExitCode::Done;
    }
    if json && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output.print_failure(&failure_of(&hide(rendered.to_string())));
    } else {
        let text = if output.color_errors {
            rendered.ansi().to_string()
        } else {
            rendered.to_string()
        };
        // clap repeats what was typed, and that may have been a secret. The exit status tells of the failure in any case.
        drop(
            std::io::stderr()
                .lock()
                .write_all(redact::text(&hide(text)).as_bytes()),
        );
    }
    ExitCode::Usage
}

/// `text` without the value of an option that may have been given a secret instead of a reference to it.
fn hide_value(error: &clap::Error, text: &str) -> String {
    const OPTIONS: [&str; 4] = [
        "--identity ",
        "--access-key ",
        "--secret-key ",
        "--recipient ",
    ];
    match (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) {
        (Some(ContextValue::String(option)), Some(ContextValue::String(value)))
            if OPTIONS.iter().any(|secret| option.starts_with(secret)) && !value.is_empty() =>
        {
            text.replace(value.as_str(), "[redacted]")
        }
        _ => text.to_owned(),
    }
}

/// clap's text, `error: …` with paragraphs of usage and tips below, as a failure of our own.
fn failure_of(rendered: &str) -> Failure {
    let text = redact::text(rendered);
    let mut paragraphs = text.trim().split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(first);
    let hint = paragraphs
        .map(|paragraph| single_line(paragraph.trim_start().trim_start_matches("tip: ")))
        .find(|paragraph| !paragraph.is_empty());
    Failure {
        code: ExitCode::Usage,
        message: single_line(message),
        causes: Vec::new(),
        hint,
    }
}

fn single_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {

    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn clap_errors_become_one_line_and_a_hint() {
        let error = Cli::try_parse_from(["walden", "config", "chek"]).unwrap_err();
        let failure = failure_of(&error.render().to_string());
        assert_eq!(failure.message, "unrecognized subcommand 'chek'");
        assert!(
            failure.hint.as_ref().unwrap().contains("'check'"),
            "{failure:?}"
        );
    }

    #[test]
    fn a_typed_secret_is_not_repeated() {
        for option in ["--identity", "--access-key", "--secret-key"] {
            let line = [
                "walden", "restore", "s3://b", "--to", "latest", "-D", "/x", option, "GFPYYSJ",
            ];
            let error = Cli::try_parse_from(line).unwrap_err();
            let rendered = error.render().to_string();
            assert!(rendered.contains("GFPYYSJ"), "clap repeats it: {rendered}");
            let shown = hide_value(&error, &rendered);
            assert!(
                !shown.contains("GFPYYSJ") && shown.contains("file:PATH"),
                "{shown}"
            );
        }
    }
}
