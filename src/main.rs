//! `walden`: PostgreSQL WAL archiving and point-in-time recovery.

mod archiving_state;
mod cli;
mod commands;
mod config;
mod conflicts;
mod copy_report;
mod dry_run;
mod each;
mod exit_code;
mod failure;
mod hook;
mod left_behind;
mod logging;
mod memory;
mod open;
mod plan_report;
mod probe;
mod progress;
mod redact;
mod report;
mod restore_run;
mod server_check;
mod setup;
mod shutdown;
mod slot_state;
mod sources;
mod units;
mod usage;
mod verify_report;
mod window_page;
mod windows;

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use commands::Globals;
use exit_code::ExitCode;
use failure::Failure;
use hook::Hook;
use logging::Talk;

fn main() -> std::process::ExitCode {
    memory::give_back_large_blocks();
    std::process::ExitCode::from(walden(std::env::args_os().collect()))
}

/// The whole program: arguments, the program's name first, to exit status.
fn walden(arguments: Vec<OsString>) -> u8 {
    let hook = Hook::in_arguments(arguments.get(1..).unwrap_or_default());
    hook::exit_on_panic(hook);
    let code = match Cli::try_parse_from(&arguments).and_then(|cli| refuse_json_for(hook, cli)) {
        Ok(cli) => run(cli, hook),
        Err(error) => usage::answer(&error, &arguments, hook),
    };
    Hook::status(hook, code)
}

fn run(cli: Cli, hook: Option<Hook>) -> ExitCode {
    let globals = Globals::new(&cli.global);
    let outcome = logging::start(
        &cli.global,
        talk_of(&cli.command),
        &globals.screen,
        globals.output.color_errors,
    )
    .and_then(|()| runtime_for(hook))
    .and_then(|runtime| runtime.block_on(dispatch(cli.command, &globals)));
    outcome.unwrap_or_else(|error| {
        let failure = Failure::of(&error);
        globals.output.print_failure(&failure);
        failure.code
    })
}

async fn dispatch(command: Command, globals: &Globals) -> Result<ExitCode> {
    match command {
        Command::Init(args) => commands::init::run(args, globals).await,
        Command::Config(args) => commands::config::run(args, globals).await,
        Command::Gap(args) => commands::gap::run(*args, globals).await,
        Command::List(args) => commands::list::run(args, globals).await,
        Command::Log(args) => commands::log::run(*args, globals).await,
        Command::Window(args) => commands::window::run(args, globals).await,
        Command::Status(args) => commands::status::run(args, globals).await,
        Command::ArchivePush(args) => commands::archive_push::run(args, globals).await,
        Command::Run(args) => commands::run::run(args, globals).await,
        Command::ArchiveGet(args) => commands::archive_get::run(args, globals).await,
        Command::Backup(args) => commands::backup::run(args, globals).await,
        Command::Copy(args) => commands::copy::run(args, globals).await,
        Command::Verify(args) => commands::verify::run(*args, globals).await,
        Command::Restore(args) => commands::restore::run(*args, globals).await,
        #[cfg(test)]
        Command::Panic(args) => panic!("on purpose, password=hunter2 {args:?}"),
    }
}

/// PostgreSQL starts the hooks once a segment: they do without threads.
fn runtime_for(hook: Option<Hook>) -> Result<tokio::runtime::Runtime> {
    let mut builder = match hook {
        Some(_) => tokio::runtime::Builder::new_current_thread(),
        None => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build().context("start the runtime")
}

fn talk_of(command: &Command) -> Talk {
    match command {
        Command::Run(_) => Talk::Much,
        _ => Talk::Little,
    }
}

/// The hooks report to PostgreSQL, by their exit status and its log.
fn refuse_json_for(hook: Option<Hook>, cli: Cli) -> Result<Cli, clap::Error> {
    if hook.is_some() && cli.global.json {
        let message = "the hooks have no --json; for their log it is --log-format json";
        return Err(Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message));
    }
    Ok(cli)
}
