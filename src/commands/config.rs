//! `walden config`: is the configuration valid, and what does it say.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use super::Globals;
use crate::config::{Caller, Config, Overrides};
use crate::exit_code::ExitCode;
use crate::open;
use crate::server_check::{self, Finding, ServerFacts, Severity};

/// Check or show the configuration
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the configuration file, and that the server has what archiving needs
    ///
    /// Ends with 2 if it is not valid or the server lacks something, and with 3 if something in it is unwise. For each thing
    /// missing it prints the statement or line that helps, and whether the server must be restarted.
    Check {
        /// Check the file only; ask no server
        #[arg(long)]
        offline: bool,
    },
    /// Print the configuration in force, defaults included, passwords hidden
    Show,
}

/// Runs `config check` or `config show`.
pub(crate) async fn run(args: ConfigArgs, globals: &Globals) -> Result<ExitCode> {
    match args.command {
        ConfigCommand::Check { offline } => check(offline, globals).await,
        ConfigCommand::Show => show(globals),
    }
}

async fn check(offline: bool, globals: &Globals) -> Result<ExitCode> {
    let config = Config::load(
        globals.config_file.as_deref(),
        Caller::Command,
        &Overrides::default(),
    )?;
    let (facts, mut findings) = match offline {
        true => (None, Vec::new()),
        false => {
            let slot = &config.postgres.slot;
            let facts = ServerFacts::ask(&open::connection_info(&config)?, slot).await;
            let findings = server_check::judge(&facts, slot, config.archive.rpo);
            (Some(facts), findings)
        }
    };
    let found = facts.as_ref().and_then(|facts| facts.system_identifier);
    let expected = config.postgres.system_identifier.map(u64::from);
    if let (Some(expected), Some(found)) = (expected, found.filter(|id| Some(*id) != expected)) {
        findings.push(Finding {
            severity: Severity::Error,
            what: format!(
                "the server's system identifier is {found}, the configuration names {expected}"
            ),
            fix: None,
            then: None,
        });
    }
    let server = facts.as_ref().map(|facts| {
        json!({
            "reachable": !facts.is_unreachable(),
            "version": facts.version,
            "system_identifier": found.map(|identifier| identifier.to_string()),
        })
    });
    let body = json!({
        "file": config.file,
        "warnings": config.warnings,
        "server": server,
        "findings": findings,
    });
    globals.output.print("walden.config.check", &body, || {
        let mut text = format!("{}: valid\n", config.source_name());
        for warning in &config.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        if let Some(facts) = facts.as_ref().filter(|facts| !facts.is_unreachable()) {
            let version = facts.version.as_deref().unwrap_or("of unknown version");
            text.push_str(&format!("server: PostgreSQL {version}\n"));
        }
        text.push_str(&server_check::to_text(&findings));
        text
    })?;
    let unreachable = facts.is_some_and(|facts| facts.is_unreachable());
    Ok(if unreachable {
        ExitCode::Failed
    } else if server_check::has_errors(&findings) {
        ExitCode::Usage
    } else if config.warnings.is_empty() && findings.is_empty() {
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
