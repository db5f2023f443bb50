//! `walden config`: is the configuration valid, and what does it say.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use super::Globals;
use crate::config::{Caller, Config, Overrides};
use crate::exit_code::ExitCode;

/// Check or show the configuration
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the configuration file
    ///
    /// Ends with 2 if it is not valid and with 3 if something in it is unwise.
    Check,
    /// Print the configuration in force, defaults included, passwords hidden
    Show,
}

/// Runs `config check` or `config show`.
pub(crate) async fn run(args: ConfigArgs, globals: &Globals) -> Result<ExitCode> {
    match args.command {
        ConfigCommand::Check => check(globals),
        ConfigCommand::Show => show(globals),
    }
}

fn check(globals: &Globals) -> Result<ExitCode> {
    let config = Config::load(
        globals.config_file.as_deref(),
        Caller::Command,
        &Overrides::default(),
    )?;
    let body = json!({ "file": config.file, "warnings": config.warnings });
    globals.output.print("walden.config.check", &body, || {
        let mut text = format!("{}: valid\n", config.source_name());
        for warning in &config.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        text
    })?;
    Ok(if config.warnings.is_empty() {
        ExitCode::Done
    } else {
        ExitCode::Warnings
    })
}

fn show(globals: &Globals) -> Result<ExitCode> {
    let config = globals.load_config(&Overrides::default())?.redacted();
    globals
        .output
        .print("walden.config", &config.to_json(), || config.to_toml())?;
    Ok(ExitCode::Done)
}
