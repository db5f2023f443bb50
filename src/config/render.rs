//! A configuration as text again: the commented file that `walden init` writes and `walden config show` prints, and the same
//! as JSON. What is rendered reads back equal.

use std::fmt::Write;

use ::repository::identity::SecretReference;
use ::repository::sealed::Compression;
use serde_json::{Value, json};

use super::{
    Ack, Archive, Config, Encryption, Location, OnInvalid, Postgres, Repository, Restore, Rpo,
};
use crate::redact;
use crate::units::exact_duration;

impl Config {
    /// The configuration with passwords replaced, for showing.
    pub(crate) fn redacted(&self) -> Self {
        let mut shown = self.clone();
        shown.postgres.conninfo = self
            .postgres
            .conninfo
            .as_deref()
            .map(|conninfo| redact::text(conninfo).into_owned());
        if let Some(Encryption::Sealed {
            identity: Some(SecretReference::Command(command)),
            ..
        }) = &mut shown.encryption
        {
            *command = redact::text(command).into_owned();
        }
        shown
    }

    /// The file's text, with comments that say what each setting does.
    pub(crate) fn to_toml(&self) -> String {
        let mut out = String::from("# Walden: the configuration of one PostgreSQL cluster.\n\n");
        if self.encryption == Some(Encryption::None) {
            // A bare key: it must stand before the first table.
            out.push_str("# Objects are stored unencrypted.\nencryption = \"none\"\n\n");
        }
        self.render_postgres(&mut out);
        self.archive.render(&mut out);
        self.backup.render(&mut out);
        if self.restore != Restore::default() {
            out.push_str(
                "[restore]\n# How long archive-get asks again while the store fails, before recovery stops.\n",
            );
            line(
                &mut out,
                "patience",
                &quote(&exact_duration(self.restore.patience)),
            );
            out.push('\n');
        }
        if let Some(Encryption::Sealed {
            recipients,
            identity,
        }) = &self.encryption
        {
            out.push_str("[encryption]\n");
            if !recipients.is_empty() {
                out.push_str("# Public keys: who can decrypt what is stored.\n");
                let quoted: Vec<String> = recipients
                    .iter()
                    .map(|recipient| quote(recipient))
                    .collect();
                line(&mut out, "recipients", &format!("[{}]", quoted.join(", ")));
            }
            if let Some(identity) = identity {
                out.push_str("# Where the secret key is kept; needed only where restores run.\n");
                line(&mut out, "identity", &quote(&identity.to_string()));
            }
            out.push('\n');
        }
        for (index, repository) in self.repositories.iter().enumerate() {
            if index > 0 {
                out.push('\n');
            }
            repository.render(&mut out);
        }
        out
    }

    fn render_postgres(&self, out: &mut String) {
        out.push_str("[postgres]\n");
        if let Some(conninfo) = &self.postgres.conninfo {
            out.push_str("# As libpq reads it. Keep the password in .pgpass or $PGPASSWORD.\n");
            line(out, "conninfo", &quote(conninfo));
        }
        line(out, "slot", &quote(&self.postgres.slot));
        if let Some(identifier) = self.postgres.system_identifier {
            out.push_str("# The one cluster that is archived here; another server is refused.\n");
            line(out, "system_identifier", &quote(&identifier.to_string()));
        }
        if self.postgres.incarnation > 0 {
            line(out, "incarnation", &self.postgres.incarnation.to_string());
        }
        if !self.postgres.standby_slots {
            line(out, "standby_slots", "false");
        }
        let timeout = self.postgres.wal_receiver_timeout;
        if timeout != Postgres::default().wal_receiver_timeout {
            out.push_str("# A server that is silent for so long is connected to anew.\n");
            line(
                out,
                "wal_receiver_timeout",
                &quote(&exact_duration(timeout)),
            );
        }
        out.push('\n');
    }

    /// The same as plain data, for `--json`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "file": self.file,
            "postgres": {
                "conninfo": self.postgres.conninfo,
                "slot": self.postgres.slot,
                "system_identifier": self.postgres.system_identifier.map(|identifier| identifier.to_string()),
                "incarnation": self.postgres.incarnation,
                "standby_slots": self.postgres.standby_slots,
                "wal_receiver_timeout": exact_duration(self.postgres.wal_receiver_timeout),
            },
            "archive": {
                "rpo": self.archive.rpo.to_text(),
                "ack": match self.archive.ack {
                    Ack::All => json!("all"),
                    Ack::Any => json!("any"),
                    Ack::Quorum(count) => json!({ "quorum": count }),
                },
                "on_invalid": self.archive.on_invalid.to_text(),
                "compression": compression_to_text(self.archive.compression),
                "descriptor": self.archive.descriptor_to_text(),
                "disk_guard": self.archive.disk_guard.map(super::DiskGuard::to_json),
                "patience": exact_duration(self.archive.patience),
            },
            "backup": { "on_gap": self.backup.on_gap },
            "restore": { "patience": exact_duration(self.restore.patience) },
            "encryption": match &self.encryption {
                Some(Encryption::None) => json!("none"),
                Some(Encryption::Sealed { recipients, identity }) => {
                    json!({ "recipients": recipients, "identity": identity.as_ref().map(ToString::to_string) })
                }
                None => Value::Null,
            },
            "repository": self.repositories.iter().map(Repository::to_json).collect::<Vec<_>>(),
        })
    }
}

impl Rpo {
    /// As the file spells it.
    pub(crate) fn to_text(self) -> String {
        match self {
            Self::Sync => "sync".to_owned(),
            Self::Interval(interval) => exact_duration(interval),
        }
    }
}

impl OnInvalid {
    fn to_text(self) -> &'static str {
        match self {
            Self::StoreAndReport => "store-and-report",
            Self::Refuse => "refuse",
        }
    }
}

fn compression_to_text(compression: Compression) -> &'static str {
    match compression {
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

impl Archive {
    fn descriptor_to_text(&self) -> &'static str {
        match self.minimal_descriptor {
            true => "minimal",
            false => "full",
        }
    }

    fn render(&self, out: &mut String) {
        out.push_str("[archive]\n# Longest time for which WAL may be unstored; \"sync\": COMMIT waits for the store.\n");
        line(out, "rpo", &quote(&self.rpo.to_text()));
        let ack = match self.ack {
            Ack::All => quote("all"),
            Ack::Any => quote("any"),
            Ack::Quorum(count) => format!("{{ quorum = {count} }}"),
        };
        out.push_str("# Which repositories must have WAL before the server may forget it: \"all\", \"any\" or { quorum = N }.\n");
        line(out, "ack", &ack);
        out.push_str("# WAL that fails validation: \"store-and-report\" or \"refuse\".\n");
        line(out, "on_invalid", &quote(self.on_invalid.to_text()));
        line(
            out,
            "compression",
            &quote(compression_to_text(self.compression)),
        );
        if self.minimal_descriptor {
            out.push_str("# Without checksums of plain bytes, with which a guess of the contents could be confirmed.\n");
            line(out, "descriptor", &quote(self.descriptor_to_text()));
        }
        if let Some(guard) = self.disk_guard {
            guard.render(out);
        }
        if self.patience != Archive::default().patience {
            out.push_str("# How long archive-push may take before it leaves the file to the server's next try.\n");
            line(out, "patience", &quote(&exact_duration(self.patience)));
        }
        out.push('\n');
    }
}

impl Repository {
    fn render(&self, out: &mut String) {
        out.push_str("[[repository]]\n");
        line(out, "name", &quote(&self.name));
        line(out, "url", &quote(&self.url));
        if let Location::S3 { options, .. } = &self.location {
            if let Some(endpoint) = &options.endpoint {
                line(out, "endpoint", &quote(endpoint));
            }
            if let Some(region) = &options.region {
                line(out, "region", &quote(region));
            }
            if options.path_style {
                line(out, "path_style", "true");
            }
            if let Some(ca_file) = &options.ca_file {
                line(out, "ca_file", &quote(&ca_file.to_string_lossy()));
            }
            if let Some(class) = &options.storage_class {
                line(out, "storage_class", &quote(class));
            }
            if let Some(credentials) = &options.credentials {
                line(
                    out,
                    "access_key",
                    &quote(&credentials.access_key.to_string()),
                );
                line(
                    out,
                    "secret_key",
                    &quote(&credentials.secret_key.to_string()),
                );
            }
        }
    }

    fn to_json(&self) -> Value {
        let mut shown = json!({ "name": self.name, "url": self.url });
        if let Location::S3 { options, .. } = &self.location {
            let credentials = options.credentials.as_ref();
            shown["endpoint"] = json!(options.endpoint);
            shown["region"] = json!(options.region);
            shown["path_style"] = json!(options.path_style);
            shown["ca_file"] = json!(options.ca_file);
            shown["storage_class"] = json!(options.storage_class);
            shown["access_key"] = json!(credentials.map(|pair| pair.access_key.to_string()));
            shown["secret_key"] = json!(credentials.map(|pair| pair.secret_key.to_string()));
        }
        shown
    }
}

fn line(out: &mut String, key: &str, value: &str) {
    writeln!(out, "{key} = {value}").expect("a String takes every write");
}

fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}
