//! The log: `tracing` events on stderr as text or NDJSON, secrets hidden, above a progress bar if there is one.

use std::io;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::{GlobalArgs, LogFormat};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::progress::Screen;
use crate::redact;

/// Crates whose events are Walden's own.
const OUR_CRATES: [&str; 4] = ["walden", "archiver", "pitr", "repository"];

/// How much a command says when no flag asks for more or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Talk {
    /// Warnings and errors: commands that report on stdout, and the hooks, whose stderr is the server's log.
    Little,
    /// Also what happens: `walden run`.
    Much,
}

/// Starts the log of this process.
///
/// # Errors
/// `WALDEN_LOG` is not a filter: exit code 2.
pub(crate) fn start(args: &GlobalArgs, talk: Talk, screen: &Screen, color: bool) -> Result<()> {
    let wanted = std::env::var("WALDEN_LOG")
        .ok()
        .filter(|filter| !filter.is_empty());
    let filter = wanted.unwrap_or_else(|| default_filter(args, talk));
    let filter = EnvFilter::builder()
        .parse(&filter)
        .with_context(|| format!("WALDEN_LOG={filter}"))
        .hint("write a level (warn, info, debug, trace) or filters such as archiver=debug,info")
        .exit_code(ExitCode::Usage)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(color)
        .with_writer(Stderr(screen.clone()));
    let format = args.log_format.unwrap_or(if args.json {
        LogFormat::Json
    } else {
        LogFormat::Text
    });
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init(),
    };
    started
        .map_err(anyhow::Error::from_boxed)
        .context("start the log")
}

/// Our own crates at the level that was asked for; the crates we use only speak up from `-vv` on.
fn default_filter(args: &GlobalArgs, talk: Talk) -> String {
    const LEVELS: [&str; 4] = ["warn", "info", "debug", "trace"];
    if args.quiet {
        return "error".to_owned();
    }
    let asked = usize::from(args.verbose) + usize::from(talk == Talk::Much);
    let ours = LEVELS[asked.min(LEVELS.len() - 1)];
    let others = LEVELS[asked.saturating_sub(1).min(1)];
    let ours: Vec<String> = OUR_CRATES
        .iter()
        .map(|name| format!("{name}={ours}"))
        .collect();
    format!("{others},{}", ours.join(","))
}

/// Hands each event, which arrives in one piece, to the screen.
#[derive(Debug, Clone)]
struct Stderr(Screen);

impl io::Write for Stderr {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        self.0.write(redact::text(&text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn flags_raise_and_lower_the_level() {
        let check = |verbose: u8, quiet: bool, talk: Talk, expected: &str| {
            let args = GlobalArgs {
                verbose,
                quiet,
                ..Default::default()
            };
            let filter = default_filter(&args, talk);
            assert!(filter.starts_with(expected), "{filter}");
            assert!(EnvFilter::builder().parse(&filter).is_ok(), "{filter}");
        };
        check(0, false, Talk::Little, "warn,walden=warn");
        check(1, false, Talk::Little, "warn,walden=info");
        check(2, false, Talk::Little, "info,walden=debug");
        check(200, false, Talk::Much, "info,walden=trace");
        check(0, false, Talk::Much, "warn,walden=info");
        check(0, true, Talk::Much, "error");
    }

    /// Tells the child, which is this very test binary, what to log and how.
    const CHILD: &str = "WALDEN_TEST_LOG_AS";

    #[test]
    fn secrets_stay_out_of_the_log() {
        if let Ok(format) = std::env::var(CHILD) {
            let log_format = if format == "json" {
                LogFormat::Json
            } else {
                LogFormat::Text
            };
            let args = GlobalArgs {
                log_format: Some(log_format),
                ..GlobalArgs::default()
            };
            start(&args, Talk::Much, &Screen::new(&args), format == "color").unwrap();
            tracing::info!(
                conninfo = "host=a password='hunter2 hunter2'",
                "connecting to postgres://u:hunter2@h/"
            );
            tracing::debug!("not asked for");
            return;
        }
        for format in ["text", "color", "json"] {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "logging::tests::secrets_stay_out_of_the_log",
                    "--nocapture",
                ])
                .env(CHILD, format)
                .env_remove("WALDEN_LOG")
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&child.stderr);
            assert_eq!(
                printed.matches("[redacted]").count(),
                2,
                "{format}: {printed}"
            );
            assert!(
                !printed.contains("hunter2") && !printed.contains("not asked for"),
                "{format}: {printed}"
            );
            assert_eq!(printed.contains('\x1b'), format == "color", "{printed:?}");
        }
    }
}
