//! One file a command: its arguments and `run(args, &Globals) -> anyhow::Result<ExitCode>`, at most 250 lines.
//! A command reads its configuration, calls a library crate and reports; decisions live in the libraries.

pub(crate) mod archive_get;
pub(crate) mod archive_push;
pub(crate) mod backup;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod gap;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod log;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod verify;
pub(crate) mod window;

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::GlobalArgs;
use crate::config::{Config, Overrides};
use crate::progress::Screen;
use crate::report::Output;

/// What every command is given besides its own arguments.
#[derive(Debug)]
pub(crate) struct Globals {
    /// The file named by `--config` or `WALDEN_CONFIG`.
    pub(crate) config_file: Option<PathBuf>,
    /// Where results go: text or one JSON document, on stdout.
    pub(crate) output: Output,
    /// Where progress is drawn: stderr, shared with the log.
    pub(crate) screen: Screen,
}

impl Globals {
    /// Settles what the global flags leave open (terminal or pipe, colour or not).
    pub(crate) fn new(args: &GlobalArgs) -> Self {
        Self {
            config_file: args.config.clone(),
            output: Output::new(args),
            screen: Screen::new(args),
        }
    }

    /// Reads the configuration of an ordinary command, `./walden.toml` included, and logs its warnings.
    ///
    /// # Errors
    /// No file where one is needed, or one that is not valid: class `Config`.
    pub(crate) fn load_config(&self, overrides: &Overrides) -> Result<Config> {
        self.load(overrides, crate::config::Caller::Command)
    }

    /// Reads the configuration of a hook: the server chose the working directory, so `./walden.toml` is not read.
    ///
    /// # Errors
    /// As [`Globals::load_config`].
    pub(crate) fn load_hook_config(&self, overrides: &Overrides) -> Result<Config> {
        self.load(overrides, crate::config::Caller::Hook)
    }

    fn load(&self, overrides: &Overrides, caller: crate::config::Caller) -> Result<Config> {
        let config = Config::load(self.config_file.as_deref(), caller, overrides)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }
}

/// Arguments of the test-only command that panics.
#[cfg(test)]
#[derive(Debug, clap::Args)]
pub(crate) struct PanicArgs {
    /// Words that may name a hook
    words: Vec<String>,
}
