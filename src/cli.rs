//! The command line: the enum of commands, the flags every command takes, and the groups of flags that several share.
//! Each command's own arguments stand beside its code in `commands/`. Nothing here reads a file or a variable of its own.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::builder::Styles;
use clap::builder::styling::{AnsiColor, Effects};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};

use repository::identity::SecretReference;

use crate::commands;
use crate::config::{Config, Overrides, RepositoryOverride, parse_secret_reference};
use crate::exit_code::ExitCode;
use crate::failure::Advise;

/// PostgreSQL WAL archiving and point-in-time recovery.
#[derive(Debug, Parser)]
#[command(
    name = "walden",
    version,
    about = "PostgreSQL WAL archiving and point-in-time recovery",
    long_about = "Walden keeps a PostgreSQL cluster recoverable to any moment: it streams WAL into an object store, compressed, \
                  encrypted and checksummed, takes base backups over the same connection, and brings the cluster back at any \
                  time, LSN, transaction or restore point.",
    after_help = AFTER_HELP,
    styles = STYLES,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_required = true,
    propagate_version = false,
    disable_help_subcommand = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0 done   1 failed   2 usage or configuration   3 done with warnings
  4 target not reachable or not found   5 damaged, missing or a gap   6 objective missed
  10 no such repository   11 locked or slot in use   12 no key or wrong key
  The hooks differ: archive-push fails with 1; archive-get answers 1 only for what is proven absent, else 126.

The configuration file is the first of: --config, $WALDEN_CONFIG, ./walden.toml,
$XDG_CONFIG_HOME/walden/walden.toml, /etc/walden/walden.toml.";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .usage(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .literal(AnsiColor::Cyan.on_default().effects(Effects::BOLD))
    .placeholder(AnsiColor::Cyan.on_default());

/// One variant a command, in the order in which a user meets them.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(commands::init::InitArgs),
    Run(commands::run::RunArgs),
    Backup(commands::backup::BackupArgs),
    List(commands::list::ListArgs),
    Log(Box<commands::log::LogArgs>),
    Window(commands::window::WindowArgs),
    Restore(Box<commands::restore::RestoreArgs>),
    Verify(Box<commands::verify::VerifyArgs>),
    Copy(commands::copy::CopyArgs),
    Status(commands::status::StatusArgs),
    Gap(Box<commands::gap::GapArgs>),
    Config(commands::config::ConfigArgs),
    ArchivePush(commands::archive_push::ArchivePushArgs),
    ArchiveGet(commands::archive_get::ArchiveGetArgs),
    /// Panic, for the tests of what happens then
    #[cfg(test)]
    #[command(hide = true)]
    Panic(commands::PanicArgs),
}

/// Flags that every command takes, before or after its name.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Configuration file of this cluster
    #[arg(long, global = true, env = "WALDEN_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath, hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,

    /// Print one JSON document on stdout instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Log more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Log errors only and show no progress
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// How log lines on stderr look: text or json
    #[arg(
        long,
        global = true,
        env = "WALDEN_LOG_FORMAT",
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true,
        hide_env_values = true
    )]
    pub(crate) log_format: Option<LogFormat>,

    /// When to colour the output: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub(crate) color: ColorChoice,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One line of text an event
    Text,
    /// One JSON object an event (NDJSON)
    Json,
}

/// When output is coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How to reach the server, for commands that talk to it. A flag wins over its variable, that over the file.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct ServerArgs {
    /// Connection string of the server, as libpq reads it; PG* variables and .pgpass are honoured
    #[arg(
        help_heading = "Server options",
        long = "postgres",
        env = "WALDEN_CONNINFO",
        value_name = "CONNINFO",
        hide_env_values = true
    )]
    pub(crate) conninfo: Option<String>,

    /// Replication slot
    #[arg(
        help_heading = "Server options",
        long,
        env = "WALDEN_SLOT",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub(crate) slot: Option<String>,
}

/// How to reach an S3 repository that is named on the command line. AWS_* variables are honoured.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct StoreArgs {
    /// Endpoint of an S3-compatible store
    #[arg(help_heading = "Repository options", long, value_name = "URL", value_hint = ValueHint::Url, requires = "url")]
    pub(crate) endpoint: Option<String>,

    /// Region of the bucket
    #[arg(
        help_heading = "Repository options",
        long,
        value_name = "NAME",
        requires = "url"
    )]
    pub(crate) region: Option<String>,

    /// Put the bucket into the path (https://host/bucket) instead of the host name
    #[arg(help_heading = "Repository options", long, requires = "url")]
    pub(crate) path_style: bool,

    /// Certificates (PEM) to trust for the store, instead of the system's
    #[arg(help_heading = "Repository options", long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "url")]
    pub(crate) ca_file: Option<PathBuf>,

    /// Where the access key is kept: file:PATH, env:NAME or cmd:COMMAND
    #[arg(help_heading = "Repository options", long, value_name = "REF", value_parser = parse_secret_reference, requires_all = ["url", "secret_key"])]
    pub(crate) access_key: Option<SecretReference>,

    /// Where the secret key is kept: file:PATH, env:NAME or cmd:COMMAND
    #[arg(help_heading = "Repository options", long, value_name = "REF", value_parser = parse_secret_reference, requires_all = ["url", "access_key"])]
    pub(crate) secret_key: Option<SecretReference>,
}

impl StoreArgs {
    /// The repository at `url`, reached as these flags say.
    pub(crate) fn repository(&self, url: &str) -> RepositoryOverride {
        RepositoryOverride {
            url: url.to_owned(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style.then_some(true),
            ca_file: self.ca_file.clone(),
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
        }
    }
}

/// Which repository and which cluster in it, for commands that only read: they need no configuration file.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct SourceArgs {
    /// Repository to read; with it, no configuration file is looked for unless --config names one
    #[arg(value_name = "URL", env = "WALDEN_REPOSITORY", value_hint = ValueHint::Url, hide_env_values = true)]
    pub(crate) url: Option<String>,

    /// Cluster in the repository, where it holds several: its system identifier, or that and .N
    #[arg(help_heading = "Repository options", long, value_name = "ID", value_parser = parse_cluster_id)]
    pub(crate) cluster: Option<String>,

    /// Read only this one of the configured repositories
    #[arg(
        help_heading = "Repository options",
        long = "repository",
        value_name = "NAME",
        conflicts_with = "url"
    )]
    pub(crate) repository_name: Option<String>,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// What opens encrypted objects, for commands that can do without.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct IdentityArgs {
    /// Where the identity is kept: file:PATH, env:NAME or cmd:COMMAND
    #[arg(long, env = "WALDEN_IDENTITY", value_name = "REF", value_parser = parse_secret_reference, hide_env_values = true)]
    identity: Option<SecretReference>,
}

/// The same, for commands that must know what they read.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct KeyArgs {
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,

    /// Accept unencrypted objects although an identity is given
    #[arg(long)]
    pub(crate) allow_plain: bool,
}

impl IdentityArgs {
    /// The identity named on the command line or in the environment.
    pub(crate) fn reference(&self) -> Option<&SecretReference> {
        self.identity.as_ref()
    }

    /// The configuration with this identity, and the repository named on the command line, if one is.
    pub(crate) fn overrides(&self, source: &SourceArgs) -> Overrides {
        Overrides {
            identity: self.identity.clone(),
            repository: source.repository(),
            ..Overrides::default()
        }
    }
}

impl SourceArgs {
    /// The repository named on the command line, if one is.
    pub(crate) fn repository(&self) -> Option<RepositoryOverride> {
        self.url.as_deref().map(|url| self.store.repository(url))
    }

    /// The configuration, with the one repository that `--repository` names instead of all of them.
    ///
    /// # Errors
    /// None has that name: exit code 2.
    pub(crate) fn choose(&self, mut config: Config) -> Result<Config> {
        let Some(name) = &self.repository_name else {
            return Ok(config);
        };
        let known: Vec<String> = config
            .repositories
            .iter()
            .map(|one| one.name.clone())
            .collect();
        config.repositories.retain(|one| one.name == *name);
        if config.repositories.is_empty() {
            return Err(anyhow!("no repository is named `{name}`"))
                .hint(format!("known are: {}", known.join(", ")))
                .exit_code(ExitCode::Usage);
        }
        Ok(config)
    }
}

/// Accepts `<system identifier>` and `<system identifier>.<incarnation>`.
pub(crate) fn parse_cluster_id(text: &str) -> Result<String, String> {
    let (identifier, incarnation) = match text.split_once('.') {
        Some((identifier, incarnation)) => (identifier, Some(incarnation)),
        None => (text, None),
    };
    let number = |digits: &str| {
        digits.bytes().all(|byte| byte.is_ascii_digit())
            && digits.parse::<u64>().is_ok_and(|number| number > 0)
    };
    if number(identifier) && incarnation.is_none_or(number) {
        Ok(text.to_owned())
    } else {
        Err("a cluster is its system identifier, a decimal number, or that and .N for a later incarnation".to_owned())
    }
}

#[cfg(test)]
mod tests {

    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("walden").chain(line.split_whitespace()))
    }

    #[test]
    fn headings_hold_only_what_belongs_there() {
        let mut command = Cli::command();
        command.build();
        let heading = |name: &str, argument: &str| {
            let sub = command.find_subcommand(name).unwrap();
            let found = sub.get_arguments().find(|known| known.get_id() == argument);
            found.unwrap().get_help_heading().map(str::to_owned)
        };
        assert_eq!(heading("restore", "pgdata"), None);
        assert_eq!(heading("restore", "url"), None);
        assert_eq!(heading("init", "recipients"), None);
        assert_eq!(
            heading("restore", "timeline").as_deref(),
            Some("Target options")
        );
        assert_eq!(
            heading("init", "region").as_deref(),
            Some("Repository options")
        );
        assert_eq!(heading("run", "slot").as_deref(), Some("Server options"));
        assert_eq!(heading("run", "json").as_deref(), Some("Global options"));
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_begins_with_a_short_line_and_names_no_command_twice() {
        let mut command = Cli::command();
        command.build();
        let mut seen = Vec::new();
        for sub in command.get_subcommands() {
            let about = sub
                .get_about()
                .unwrap_or_else(|| panic!("{} has no help", sub.get_name()))
                .to_string();
            let longest = about.lines().map(str::len).max().unwrap();
            assert!(longest <= 80, "{}: {about}", sub.get_name());
            assert!(!about.ends_with('.'), "{}: {about}", sub.get_name());
            assert!(!seen.contains(&about));
            seen.push(about);
            for argument in sub.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {} has no help",
                    sub.get_name(),
                    argument.get_id()
                );
            }
        }
        assert!(seen.len() >= 11, "ten commands and help");
    }

    #[test]
    fn global_flags_stand_before_and_after_the_command() {
        for line in [
            "--json -vv config check",
            "config --json check -v -v",
            "config check --json -vv",
        ] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json, "{line}");
            assert_eq!(cli.global.verbose, 2, "{line}");
        }
        assert!(parse("-q -v config check").is_err());
    }

    #[test]
    fn unbuilt_commands_are_not_offered() {
        for name in ["drill", "expire", "key"] {
            let error = parse(name).unwrap_err();
            assert_eq!(
                error.kind(),
                clap::error::ErrorKind::InvalidSubcommand,
                "{name}"
            );
        }
    }

    #[test]
    fn cluster_is_a_system_identifier_with_or_without_incarnation() {
        for good in ["7412345678901234567", "1", "7412345678901234567.2"] {
            assert_eq!(parse_cluster_id(good), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "0",
            "-1",
            "+1",
            "prod",
            "1.",
            ".1",
            "1.0",
            "1.x",
            "99999999999999999999999",
        ] {
            assert!(parse_cluster_id(bad).is_err(), "{bad}");
        }
    }
}
