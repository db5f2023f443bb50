//! The configuration of a restored server (pure): which files to write, change and remove so that it recovers to our stop and nowhere else,
//! starts on this machine, and reaches into nothing that belongs to its source.
//!
//! Owns every decision about settings; the syntax is `conf_file.rs`, writing is `restore.rs`.
//!
//! Two traps decide the form. The server applies `recovery_target_*` in file order and dies if a second kind is touched while one is
//! set, so the emptied ones stand before ours. And `postgresql.auto.conf` is read only once the data directory is known, so
//! `data_directory` and its like cannot be overridden there: such lines are commented out where they stand.

use crate::conf_file::{ConfigSource, Configuration, IncludeKind, Statement, quote_value};
use crate::error::{Error, Result};
use crate::listen_address::ListenAddress;
use std::collections::BTreeMap;
use std::path::Path;
use wal_format::{Lsn, TimelineId};

/// The file whose last lines win over all other files.
pub const AUTO_CONF: &str = "postgresql.auto.conf";
/// The server's main configuration file.
pub const MAIN_CONF: &str = "postgresql.conf";
/// Who may connect.
pub const HBA_CONF: &str = "pg_hba.conf";
/// The setting that marks a restored server; `run` and `archive-push` refuse one that has it.
pub const RESTORED_FROM: &str = "walden.restored_from";

/// What the server does when it has reached the stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Waits, open for reading, until told to go on.
    #[default]
    Pause,
    /// Opens for writing on a new timeline.
    Promote,
    /// Stops.
    Shutdown,
}

impl Action {
    /// The value of `recovery_target_action`.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Pause => "pause",
            Action::Promote => "promote",
            Action::Shutdown => "shutdown",
        }
    }
}

/// Settings that replay needs to be at least as large as on the server that wrote the WAL (`pg_control`, and each parameter change that
/// the plan saw on its way).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalMinimums {
    /// `max_connections`
    pub max_connections: u32,
    /// `max_worker_processes`
    pub max_worker_processes: u32,
    /// `max_wal_senders`
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`
    pub max_locks_per_transaction: u32,
}

impl WalMinimums {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self
                .max_prepared_transactions
                .max(other.max_prepared_transactions),
            max_locks_per_transaction: self
                .max_locks_per_transaction
                .max(other.max_locks_per_transaction),
        }
    }

    fn by_name(self) -> [(&'static str, u32, u32); 5] {
        // Name, needed here, the server's default where no file sets it.
        [
            ("max_connections", self.max_connections, 100),
            ("max_worker_processes", self.max_worker_processes, 8),
            ("max_wal_senders", self.max_wal_senders, 10),
            (
                "max_prepared_transactions",
                self.max_prepared_transactions,
                0,
            ),
            (
                "max_locks_per_transaction",
                self.max_locks_per_transaction,
                64,
            ),
        ]
    }
}

/// Everything the decision needs to know.
#[derive(Clone, Debug)]
pub struct RecoveryFacts<'a> {
    /// Major version of the cluster.
    pub major: u32,
    /// Start of the last record to apply.
    pub stop: Lsn,
    /// The timeline to follow.
    pub timeline: TimelineId,
    /// What to do at the stop.
    pub action: Action,
    /// What replay needs.
    pub minimums: WalMinimums,
    /// Value of `walden.restored_from`: cluster, backup and stop, for people; `run`, `backup` and `archive-push` refuse a server that has it.
    pub restored_from: &'a str,
    /// Absolute path of this program.
    pub program: &'a str,
    /// Absolute path of the configuration that `archive-get` is to use.
    pub hook_config: &'a str,
    /// Absolute path of the plan that `archive-get` is bound to.
    pub plan_file: &'a str,
    /// TCP port; `None` keeps the source's.
    pub port: Option<u16>,
    /// `listen_addresses`; `None` keeps the source's (and listens nowhere when the source's configuration is not in the backup).
    pub listen_addresses: Option<&'a str>,
    /// Folder for the Unix socket; `None` keeps the source's.
    pub socket_directory: Option<&'a str>,
    /// Settings the user asked for. They win over the source's and lose to those that make the recovery right.
    pub overrides: &'a [(String, String)],
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileToWrite {
    /// Path relative to the data directory.
    pub path: String,
    /// Whole new content.
    pub content: String,
}

/// What to do to a laid-out data directory before the server may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverySetup {
    /// Files to write, in this order; `recovery.signal` is the last.
    pub write: Vec<FileToWrite>,
    /// Files to remove if they are there, paths relative to the data directory.
    pub remove: &'static [&'static str],
    /// The value of `restore_command`, as the server will see it.
    pub restore_command: String,
    /// What was changed beyond what every restore needs, and what may surprise: one sentence each.
    pub notes: Vec<String>,
    /// Where the server will listen.
    pub listens: ListenAddress,
}

/// Files of a running, promoted or standby server that a restored one must not find.
/// `recovery.conf` makes a server of today refuse to start, `promote` would end the recovery at once.
const TO_REMOVE: &[&str] = &[
    "standby.signal",
    "recovery.conf",
    "recovery.done",
    "promote",
    "postmaster.pid",
    "postmaster.opts",
];

/// Settings that point at the source's own files and that the server reads before, or whether or not, `postgresql.auto.conf` overrides them.
const NOT_TO_INHERIT: &[&str] = &[
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
];

/// Always emptied, whatever the source said. The recovery targets stand here so that they come before ours.
const EMPTIED: &[&str] = &[
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "archive_command",
    "primary_conninfo",
    "primary_slot_name",
    "synchronous_standby_names",
    "recovery_end_command",
    "archive_cleanup_command",
];

/// Extensions whose background workers act by themselves once a server is open for writing.
const SELF_ACTING_LIBRARIES: &[&str] = &[
    "pg_cron",
    "pglogical",
    "bdr",
    "timescaledb",
    "pg_partman_bgw",
    "repmgr",
    "citus",
];

/// Decides what a laid-out data directory needs. `source` reads files of the data directory (and those it includes).
///
/// # Errors
/// `Config`: a path or value that cannot be written into a configuration file, or an override of a setting that is ours.
pub fn plan_recovery_setup(
    facts: &RecoveryFacts<'_>,
    source: &dyn ConfigSource,
) -> Result<RecoverySetup> {
    let found = Configuration::read(source, &[MAIN_CONF, AUTO_CONF]);
    let mut notes = Vec::new();
    let mut write = plan_edits(&found, &mut notes);
    let main_missing = source.read(MAIN_CONF).is_none();
    if main_missing {
        notes.push("postgresql.conf is not in the backup (the distribution keeps it elsewhere): a minimal one was written, which listens on the Unix socket only".into());
        write.push(file(MAIN_CONF, minimal_main_conf(facts)));
    }
    let mut settings: Vec<(String, String)> = Vec::new();
    if source.read(HBA_CONF).is_none() {
        notes.push("pg_hba.conf is not in the backup: a minimal one was written, which lets only the server's own operating system user in, over the Unix socket".into());
        write.push(file(HBA_CONF, MINIMAL_HBA_CONF.into()));
        // The file trusts whoever can open the socket, so only the server's own user may.
        settings.push(("unix_socket_permissions".into(), "0700".into()));
    }
    if source.read("pg_ident.conf").is_none() {
        write.push(file(
            "pg_ident.conf",
            "# Written by walden restore.\n".into(),
        ));
    }

    let restore_command = restore_command(facts.program, facts.hook_config, facts.plan_file)?;
    plan_for_this_machine(&found, source, facts, &mut settings, &mut notes);
    let ours = settings_of_recovery(facts, &found, &restore_command);
    for (name, value) in facts.overrides {
        let name = name.to_ascii_lowercase();
        if ours.iter().any(|(own, _)| *own == name) || NOT_TO_INHERIT.contains(&name.as_str()) {
            return Err(Error::InvalidRequest {
                what: format!("setting {name}"),
                reason: "is decided by the restore and cannot be overridden".into(),
            });
        }
        if !is_setting_name(&name) {
            return Err(Error::InvalidRequest {
                what: format!("setting {name:?}"),
                reason: "not the name of a setting".into(),
            });
        }
        settings.push((name, value.clone()));
    }
    settings.extend(ours);
    let mut listens = ListenAddress::find(&found, &settings);
    if main_missing {
        listens.tcp = false;
    }
    let before = write
        .iter()
        .position(|file| file.path == AUTO_CONF)
        .map(|position| write.remove(position).content)
        .or_else(|| source.read(AUTO_CONF))
        .unwrap_or_default();
    write.push(file(AUTO_CONF, append_settings(&before, &settings)?));
    write.push(file("recovery.signal", String::new()));
    Ok(RecoverySetup {
        write,
        remove: TO_REMOVE,
        restore_command,
        notes,
        listens,
    })
}

/// The command that fetches WAL, quoted for the shell and with `%` doubled for the server; not yet quoted for `postgresql.conf`.
///
/// # Errors
/// `Config`: a path that is not absolute, or has a NUL.
pub fn restore_command(program: &str, hook_config: &str, plan_file: &str) -> Result<String> {
    for path in [program, hook_config, plan_file] {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(Error::InvalidRequest {
                what: format!("path {path:?}"),
                reason: "restore_command needs an absolute path".into(),
            });
        }
    }
    let [program, config, plan] =
        [program, hook_config, plan_file].map(|path| quote_for_shell(path).replace('%', "%%"));
    Ok(format!(
        "{program} archive-get --config {config} --plan {plan} \"%f\" \"%p\""
    ))
}

/// One word for `sh`, whatever it holds (but NUL).
pub fn quote_for_shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `text` without the lines that set what a restore sets: for a server that goes live again. Other lines stay as they are.
pub fn remove_recovery_settings(text: &str) -> String {
    let ours: Vec<&str> = EMPTIED
        .iter()
        .copied()
        .chain(OTHERS_OF_OURS.iter().copied())
        .chain([RESTORED_FROM])
        .collect();
    comment_out(text, |name| ours.contains(&name)).unwrap_or_else(|| text.to_owned())
}

/// Names of the settings that a restore may set beside its mark, for a server that goes live again.
pub fn settings_of_a_restore() -> impl Iterator<Item = &'static str> {
    EMPTIED.iter().chain(OTHERS_OF_OURS).copied()
}

/// What a restore sets besides [`EMPTIED`].
const OTHERS_OF_OURS: &[&str] = &[
    "archive_library",
    "archive_mode",
    "hot_standby",
    "max_logical_replication_workers",
    "promote_trigger_file",
    "recovery_min_apply_delay",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_timeline",
    "restore_command",
    "sync_replication_slots",
];

/// Settings that are smaller than replay needs, and what they must be.
fn too_small(
    minimums: WalMinimums,
    overrides: &[(String, String)],
    found: &Configuration,
) -> impl Iterator<Item = (&'static str, u32)> {
    minimums
        .by_name()
        .into_iter()
        .filter_map(move |(name, needed, default)| {
            let mut asked = overrides.iter().rev();
            let asked = asked.find(|(asked, _)| asked.eq_ignore_ascii_case(name));
            let configured = asked
                .map(|(_, value)| value.as_str())
                .or(found.value(name))
                .map_or(Some(default), parse_count);
            // What cannot be read is replaced too: the server would not start with it.
            let fits = configured.is_some_and(|configured| configured >= needed);
            (!fits).then_some((name, needed))
        })
}

/// For a recovery that met WAL of a server with larger settings: the file that raises ours to them, and which it raises to what.
///
/// # Errors
/// As [`plan_recovery_setup`].
pub fn plan_raise(
    minimums: WalMinimums,
    source: &dyn ConfigSource,
) -> Result<(FileToWrite, Vec<(&'static str, u32)>)> {
    let found = Configuration::read(source, &[MAIN_CONF, AUTO_CONF]);
    let raised: Vec<_> = too_small(minimums, &[], &found).collect();
    let settings: Vec<_> = raised
        .iter()
        .map(|(name, needed)| ((*name).to_owned(), needed.to_string()))
        .collect();
    let before = source.read(AUTO_CONF).unwrap_or_default();
    let content = append_settings(&before, &settings)?;
    Ok((file(AUTO_CONF, content), raised))
}

/// The settings that make the recovery right, in the order they must stand in.
fn settings_of_recovery(
    facts: &RecoveryFacts<'_>,
    found: &Configuration,
    restore_command: &str,
) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
    for name in EMPTIED {
        set(name, "");
    }
    // 15 brought archive_library, 16 dropped promote_trigger_file, 17 brought slot synchronisation; an unknown name is fatal.
    if facts.major >= 15 {
        set("archive_library", "");
    }
    if facts.major <= 15 {
        set("promote_trigger_file", "");
    }
    if facts.major >= 17 {
        set("sync_replication_slots", "off");
    }
    set("archive_mode", "off");
    set("hot_standby", "on");
    set("max_logical_replication_workers", "0");
    set("recovery_min_apply_delay", "0");
    for (name, needed) in too_small(facts.minimums, facts.overrides, found) {
        set(name, &needed.to_string());
    }
    set("recovery_target_lsn", &facts.stop.to_string());
    set("recovery_target_inclusive", "on");
    set("recovery_target_timeline", &facts.timeline.to_string());
    set("recovery_target_action", facts.action.as_str());
    set("restore_command", restore_command);
    set(RESTORED_FROM, facts.restored_from);
    settings
}

/// Settings of the source that would keep the server from starting here, or make it reach into its source's files.
fn plan_for_this_machine(
    found: &Configuration,
    source: &dyn ConfigSource,
    facts: &RecoveryFacts<'_>,
    settings: &mut Vec<(String, String)>,
    notes: &mut Vec<String>,
) {
    let mut replace = |name: &str, value: &str, why: &str| {
        notes.push(format!("{name} is set to '{value}': {why}"));
        settings.push((name.to_owned(), value.to_owned()));
    };
    if let Some(port) = facts.port {
        replace("port", &port.to_string(), "as asked for");
    }
    if let Some(addresses) = facts.listen_addresses {
        replace("listen_addresses", addresses, "as asked for");
    }
    if let Some(folder) = facts.socket_directory {
        replace(
            "unix_socket_directories",
            &quote_list_item(folder),
            "as asked for",
        );
    }
    if found
        .value("unix_socket_group")
        .is_some_and(|group| !group.is_empty())
    {
        replace("unix_socket_group", "", "the group need not exist here");
    }
    if found
        .value("log_directory")
        .is_some_and(|folder| folder.starts_with('/'))
    {
        replace(
            "log_directory",
            "log",
            "the source's folder may be missing here, or still be the source's",
        );
    }
    if found
        .value("huge_pages")
        .is_some_and(|value| value.eq_ignore_ascii_case("on"))
    {
        replace("huge_pages", "try", "this machine may have none to spare");
    }
    if found
        .value("io_method")
        .is_some_and(|value| value.eq_ignore_ascii_case("io_uring"))
    {
        replace(
            "io_method",
            "worker",
            "this machine's kernel may refuse io_uring",
        );
    }
    if found
        .value("wal_level")
        .is_some_and(|value| value.eq_ignore_ascii_case("minimal"))
    {
        replace("wal_level", "replica", "hot standby needs it");
    }
    if found.value("ssl").is_some_and(is_on) {
        let files = [
            ("ssl_cert_file", "server.crt"),
            ("ssl_key_file", "server.key"),
            ("ssl_ca_file", ""),
            ("ssl_crl_file", ""),
        ];
        let missing = files
            .iter()
            .map(|(name, default)| found.value(name).unwrap_or(default))
            .find(|path| !path.is_empty() && source.read(path).is_none());
        if let Some(path) = missing {
            replace("ssl", "off", &format!("{path} cannot be read here"));
        }
    }
    let preloaded = found.value("shared_preload_libraries").unwrap_or_default();
    if !preloaded.is_empty() {
        notes.push(format!(
            "shared_preload_libraries = '{preloaded}' stays: the server does not start where one of them is not installed"
        ));
    }
    let acting: Vec<&str> = SELF_ACTING_LIBRARIES
        .iter()
        .copied()
        .filter(|library| {
            preloaded
                .split(',')
                .any(|word| word.trim().trim_matches('"') == *library)
        })
        .collect();
    if !acting.is_empty() {
        notes.push(format!(
            "{} will act by itself once this server is open for writing",
            acting.join(", ")
        ));
    }
}

/// Changed files of the source: lines that must not be inherited commented out, includes of missing files made harmless.
fn plan_edits(found: &Configuration, notes: &mut Vec<String>) -> Vec<FileToWrite> {
    let mut edited: BTreeMap<&str, String> = BTreeMap::new();
    let is_outside = |path: &str| Path::new(path).is_absolute();
    let reaches_out = found.files.iter().any(|file| {
        let harmful = |line: &crate::conf_file::Line| matches!(&line.statement, Statement::Setting { name, .. } if NOT_TO_INHERIT.contains(&name.as_str()));
        is_outside(&file.path) && file.lines.iter().any(harmful)
    });
    for file in &found.files {
        // Files outside the data directory may belong to a living server.
        if is_outside(&file.path) {
            continue;
        }
        let mut text = file.text.clone();
        for line in file.lines.iter().rev() {
            let Some(written) = file.text.get(line.range.clone()) else {
                continue;
            };
            let missing = found
                .missing_includes
                .iter()
                .any(|(path, number)| *path == file.path && *number == line.number);
            let replacement = match &line.statement {
                Statement::Setting { name, .. } if NOT_TO_INHERIT.contains(&name.as_str()) => {
                    commented(written)
                }
                Statement::Include {
                    kind: IncludeKind::File,
                    path,
                } if missing => match quote_value(path) {
                    Some(quoted) => format!("include_if_exists {quoted}"),
                    None => commented(written),
                },
                Statement::Include { .. } if missing => commented(written),
                Statement::Include { path, .. } if reaches_out && is_outside(path) => {
                    commented(written)
                }
                _ => continue,
            };
            notes.push(format!(
                "{}, line {}: {} became {replacement:?}",
                file.path,
                line.number,
                written.trim()
            ));
            text.replace_range(line.range.clone(), &replacement);
            edited.insert(&file.path, text.clone());
        }
    }
    edited
        .into_iter()
        .map(|(path, content)| file(path, content))
        .collect()
}

/// `text` with the settings that `matches` names commented out; `None` if there is none.
fn comment_out(text: &str, matches: impl Fn(&str) -> bool) -> Option<String> {
    let mut changed = text.to_owned();
    let mut any = false;
    for line in crate::conf_file::parse_lines(text).iter().rev() {
        if let Statement::Setting { name, .. } = &line.statement
            && matches(name)
            && let Some(written) = text.get(line.range.clone())
        {
            changed.replace_range(line.range.clone(), &commented(written));
            any = true;
        }
    }
    any.then_some(changed)
}

fn commented(line: &str) -> String {
    format!("# walden restore: {line}")
}

fn append_settings(before: &str, settings: &[(String, String)]) -> Result<String> {
    let mut text = before.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("# Written by walden restore: these lines win over everything above. Without recovery.signal the recovery settings do nothing.\n");
    for (name, value) in settings {
        let quoted = quote_value(value).ok_or_else(|| Error::InvalidRequest {
            what: format!("setting {name}"),
            reason: "its value has a NUL byte".into(),
        })?;
        text.push_str(name);
        text.push_str(" = ");
        text.push_str(&quoted);
        text.push('\n');
    }
    Ok(text)
}

/// One entry of a comma-separated list such as `unix_socket_directories`.
fn quote_list_item(item: &str) -> String {
    format!("\"{}\"", item.replace('"', "\"\""))
}

fn minimal_main_conf(facts: &RecoveryFacts<'_>) -> String {
    let mut text = String::from(
        "# Written by walden restore: the source's postgresql.conf is not part of its data directory.\n\
         # Nobody but users of this machine can connect.\nlisten_addresses = ''\n",
    );
    if facts.socket_directory.is_none() {
        // The compiled-in folder may be missing or not writable here; the data directory is neither.
        text.push_str("unix_socket_directories = '.'\n");
    }
    text
}

const MINIMAL_HBA_CONF: &str = "# Written by walden restore: the source's pg_hba.conf is not part of its data directory.\n\
    # Whoever can open the Unix socket: unix_socket_permissions = 0700 leaves that to the server's own user.\n\
    local all all trust\n";

fn file(path: &str, content: String) -> FileToWrite {
    FileToWrite {
        path: path.to_owned(),
        content,
    }
}

/// A whole number as the server reads one for settings without a unit: decimal, octal or hexadecimal.
fn parse_count(value: &str) -> Option<u32> {
    let value = value.trim();
    match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if value.len() > 1 && value.starts_with('0') => u32::from_str_radix(value, 8).ok(),
        None => value.parse().ok(),
    }
}

/// A boolean as the server reads one: any unambiguous beginning of `true`, `yes`, `on`, or `1`.
fn is_on(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    !value.is_empty()
        && (value == "on"
            || value == "1"
            || "true".starts_with(&value)
            || "yes".starts_with(&value))
}

fn is_setting_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'$')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf_file::parse_lines;
    use proptest::prelude::*;
    use std::process::Command;

    struct Table(Vec<(&'static str, &'static str)>);

    impl ConfigSource for Table {
        fn read(&self, path: &str) -> Option<String> {
            let found = self.0.iter().find(|(name, _)| *name == path)?;
            Some(found.1.to_owned())
        }

        fn list(&self, _path: &str) -> Option<Vec<String>> {
            None
        }
    }

    fn facts() -> RecoveryFacts<'static> {
        RecoveryFacts {
            major: 17,
            stop: Lsn(0x3000148),
            timeline: TimelineId::new(10).unwrap(),
            action: Action::Pause,
            minimums: WalMinimums {
                max_connections: 200,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_transactions: 0,
                max_locks_per_transaction: 64,
            },
            restored_from: "7412345678901234567 20260123T142811Z-full-3fa9",
            program: "/opt/wal den/walden",
            hook_config: "/data/it's 100%/pg_wal/walden/restore.toml",
            plan_file: "/data/plan.json",
            port: None,
            listen_addresses: None,
            socket_directory: None,
            overrides: &[],
        }
    }

    fn plan(facts: &RecoveryFacts<'_>, files: &[(&'static str, &'static str)]) -> RecoverySetup {
        plan_recovery_setup(facts, &Table(files.to_vec())).unwrap()
    }

    fn content<'a>(setup: &'a RecoverySetup, path: &str) -> Option<&'a str> {
        let found = setup.write.iter().find(|file| file.path == path)?;
        Some(&found.content)
    }

    /// The value the server would use: the last line that sets it.
    fn value(setup: &RecoverySetup, name: &str) -> Option<String> {
        let lines = parse_lines(content(setup, AUTO_CONF).unwrap());
        assert!(
            lines
                .iter()
                .all(|line| line.statement != Statement::Invalid)
        );
        lines
            .into_iter()
            .rev()
            .find_map(|line| match line.statement {
                Statement::Setting { name: found, value } if found == name => Some(value),
                _ => None,
            })
    }

    const WHOLE: [(&str, &str); 4] = [
        ("postgresql.conf", "port = 5432\n"),
        ("pg_hba.conf", "local all all peer\n"),
        ("pg_ident.conf", ""),
        (
            "postgresql.auto.conf",
            "# Do not edit\nprimary_conninfo = 'host=p'\nrecovery_target_time = 'x'\nrestore_command = 'false'\narchive_mode = 'always'",
        ),
    ];

    #[test]
    fn our_settings_win_over_the_sources() {
        let setup = plan(&facts(), &WHOLE);
        let check = |name: &str, expected: &str| {
            assert_eq!(value(&setup, name).as_deref(), Some(expected), "{name}");
        };
        for name in EMPTIED {
            check(name, "");
        }
        check("archive_library", "");
        check("archive_mode", "off");
        check("hot_standby", "on");
        check("max_logical_replication_workers", "0");
        check("recovery_min_apply_delay", "0");
        check("recovery_target_lsn", "0/3000148");
        check("recovery_target_inclusive", "on");
        check("recovery_target_timeline", "10");
        check("recovery_target_action", "pause");
        check("max_connections", "200");
        check(
            "walden.restored_from",
            "7412345678901234567 20260123T142811Z-full-3fa9",
        );
        check(
            "restore_command",
            r#"'/opt/wal den/walden' archive-get --config '/data/it'\''s 100%%/pg_wal/walden/restore.toml' --plan '/data/plan.json' "%f" "%p""#,
        );
        // What the source's configuration already gives is left alone.
        assert_eq!(value(&setup, "max_wal_senders"), None);
        assert_eq!(value(&setup, "port"), None);
        let names: Vec<&str> = setup.write.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["postgresql.auto.conf", "recovery.signal"]);
        for name in ["standby.signal", "postmaster.pid", "postmaster.opts"] {
            assert!(setup.remove.contains(&name));
        }
        assert!(setup.notes.is_empty(), "{:?}", setup.notes);
    }

    #[test]
    fn emptied_targets_stand_before_ours() {
        let setup = plan(&facts(), &WHOLE);
        let lines = parse_lines(content(&setup, AUTO_CONF).unwrap());
        let last = |wanted: &str| {
            lines
                .iter()
                .rposition(|line| matches!(&line.statement, Statement::Setting { name, .. } if name == wanted))
                .unwrap()
        };
        for other in [
            "recovery_target",
            "recovery_target_name",
            "recovery_target_time",
            "recovery_target_xid",
        ] {
            assert!(last(other) < last("recovery_target_lsn"), "{other}");
        }
    }

    #[test]
    fn names_that_a_major_does_not_know_are_not_written() {
        let check = |major: u32, expected: [bool; 3]| {
            let setup = plan(&RecoveryFacts { major, ..facts() }, &WHOLE);
            let has = [
                "archive_library",
                "promote_trigger_file",
                "sync_replication_slots",
            ]
            .map(|name| value(&setup, name).is_some());
            assert_eq!(has, expected, "{major}");
        };
        check(14, [false, true, false]);
        check(15, [true, true, false]);
        check(16, [true, false, false]);
        check(18, [true, false, true]);
    }

    #[test]
    fn settings_of_another_machine_do_not_keep_the_server_from_starting() {
        let check = |line: &'static str, name: &str, expected: Option<&str>| {
            let files = [("postgresql.conf", line), WHOLE[1], WHOLE[2]];
            let setup = plan(&facts(), &files);
            assert_eq!(value(&setup, name).as_deref(), expected, "{line}");
            assert_eq!(
                setup.notes.len(),
                usize::from(expected.is_some()),
                "{:?}",
                setup.notes
            );
        };
        check("ssl = on", "ssl", Some("off"));
        check("ssl = off", "ssl", None);
        check(
            "ssl = tru\nssl_cert_file = 'pg_hba.conf'\nssl_key_file = 'pg_ident.conf'",
            "ssl",
            None,
        );
        check(
            "ssl = yes\nssl_cert_file = 'pg_hba.conf'\nssl_key_file = '/etc/ssl/private/x.key'",
            "ssl",
            Some("off"),
        );
        check(
            "log_directory = '/var/log/postgresql'",
            "log_directory",
            Some("log"),
        );
        check("log_directory = 'mine'", "log_directory", None);
        check("unix_socket_group = 'db'", "unix_socket_group", Some(""));
        check("huge_pages = ON", "huge_pages", Some("try"));
        check("io_method = io_uring", "io_method", Some("worker"));
        check("wal_level = minimal", "wal_level", Some("replica"));
        check("wal_level = logical", "wal_level", None);
    }

    #[test]
    fn wal_minimums_raise_and_never_lower() {
        let check = |line: &'static str, expected: Option<&str>| {
            let setup = plan(&facts(), &[("postgresql.conf", line), WHOLE[1], WHOLE[2]]);
            assert_eq!(
                value(&setup, "max_connections").as_deref(),
                expected,
                "{line}"
            );
        };
        check("", Some("200"));
        check("max_connections = 199", Some("200"));
        check("max_connections = 200", None);
        check("max_connections = 0x1000", None);
        check("max_connections = 1e4", Some("200"));
    }

    #[test]
    fn lines_that_reach_into_the_source_are_commented_out() {
        let files = [
            (
                "postgresql.conf",
                "data_directory = '/prod'\nHba_File '/etc/pg_hba.conf'\nport = 1\ninclude 'gone.conf'\ninclude_dir '/etc/gone'\ninclude '/etc/live.conf'\ninclude 'own.conf'\n",
            ),
            (
                "own.conf",
                "external_pid_file = '/run/x.pid'\nwork_mem = '8MB'\n",
            ),
            ("/etc/live.conf", "data_directory = '/prod'\n"),
            WHOLE[1],
            ("postgresql.auto.conf", "ident_file = 'x'\n"),
        ];
        let setup = plan(&facts(), &files);
        assert_eq!(
            content(&setup, MAIN_CONF).unwrap(),
            "# walden restore: data_directory = '/prod'\n# walden restore: Hba_File '/etc/pg_hba.conf'\nport = 1\ninclude_if_exists 'gone.conf'\n# walden restore: include_dir '/etc/gone'\n# walden restore: include '/etc/live.conf'\ninclude 'own.conf'\n"
        );
        assert_eq!(
            content(&setup, "own.conf").unwrap(),
            "# walden restore: external_pid_file = '/run/x.pid'\nwork_mem = '8MB'\n"
        );
        assert!(
            content(&setup, AUTO_CONF)
                .unwrap()
                .starts_with("# walden restore: ident_file = 'x'\n")
        );
        assert_eq!(content(&setup, "/etc/live.conf"), None);
        assert_eq!(setup.notes.len(), 7, "{:?}", setup.notes);
    }

    #[test]
    fn missing_configuration_becomes_a_minimal_one() {
        let setup = plan(&facts(), &[]);
        assert!(
            content(&setup, MAIN_CONF)
                .unwrap()
                .contains("listen_addresses = ''\n")
        );
        assert!(
            content(&setup, HBA_CONF)
                .unwrap()
                .contains("local all all trust\n")
        );
        assert_eq!(
            value(&setup, "unix_socket_permissions").as_deref(),
            Some("0700")
        );
        assert_eq!(setup.write.last().unwrap().path, "recovery.signal");
        assert_eq!(setup.notes.len(), 2);
    }

    #[test]
    fn what_the_user_sets_loses_only_to_the_recovery() {
        let set = |name: &str, value: &str| {
            let overrides = [(name.to_owned(), value.to_owned())];
            let facts = RecoveryFacts {
                overrides: &overrides,
                port: Some(15432),
                socket_directory: Some("/tmp/a, \"b\""),
                ..facts()
            };
            plan_recovery_setup(&facts, &Table(WHOLE.to_vec()))
        };
        let setup = set("Shared_Buffers", "16MB").unwrap();
        assert_eq!(value(&setup, "shared_buffers").as_deref(), Some("16MB"));
        assert_eq!(value(&setup, "port").as_deref(), Some("15432"));
        assert_eq!(
            value(&setup, "unix_socket_directories").as_deref(),
            Some("\"/tmp/a, \"\"b\"\"\"")
        );
        let setup = set("max_connections", "300").unwrap();
        assert_eq!(value(&setup, "max_connections").as_deref(), Some("300"));
        for (name, value) in [
            ("restore_command", "true"),
            ("max_connections", "10"),
            ("data_directory", "/x"),
            ("a b", "1"),
            ("x\ny", "1"),
            ("work_mem", "\0"),
        ] {
            assert!(set(name, value).is_err(), "{name}");
        }
    }

    #[test]
    fn going_live_leaves_only_the_sources_settings() {
        let setup = plan(&facts(), &WHOLE);
        let cleaned = remove_recovery_settings(content(&setup, AUTO_CONF).unwrap());
        let left: Vec<Statement> = parse_lines(&cleaned)
            .into_iter()
            .map(|line| line.statement)
            .collect();
        assert_eq!(
            left,
            [Statement::Setting {
                name: "max_connections".into(),
                value: "200".into()
            }]
        );
    }

    #[test]
    fn a_relative_program_is_refused() {
        for (program, config) in [("walden", "/x"), ("/x", "restore.toml"), ("/a\0b", "/x")] {
            assert!(restore_command(program, config, "/plan").is_err());
        }
    }

    /// As the server builds the command line (`BuildRestoreCommand`).
    fn expand(command: &str, name: &str, path: &str) -> String {
        let mut expanded = String::new();
        let mut characters = command.chars();
        while let Some(character) = characters.next() {
            match (
                character,
                if character == '%' {
                    characters.next()
                } else {
                    None
                },
            ) {
                ('%', Some('%')) => expanded.push('%'),
                ('%', Some('f')) => expanded.push_str(name),
                ('%', Some('p')) => expanded.push_str(path),
                ('%', other) => panic!("placeholder {other:?}"),
                (other, _) => expanded.push(other),
            }
        }
        expanded
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_command_survives_the_file_the_server_and_the_shell(config in "/[ -~äé\n\t]{0,40}|/[%'\"\\\\$`! ]{0,20}") {
            let folder = tempfile::tempdir().unwrap();
            // A program whose own path is as unpleasant, and which prints its arguments one after the other.
            let program = folder.path().join("wal %den' \"$x\\");
            std::fs::write(&program, "#!/bin/sh\nprintf '%s\\0' \"$@\"\n").unwrap();
            std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let program = program.to_str().unwrap();
            let facts = RecoveryFacts { program, hook_config: &config, ..facts() };
            let setup = plan(&facts, &WHOLE);
            let command = expand(&value(&setup, "restore_command").unwrap(), "000000010000000000000003", "pg_wal/RECOVERYXLOG");
            let output = Command::new("sh").arg("-c").arg(&command).output().unwrap();
            let expected = format!("archive-get\0--config\0{config}\0--plan\0/data/plan.json\x00000000010000000000000003\0pg_wal/RECOVERYXLOG\0");
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        }
    }
}
