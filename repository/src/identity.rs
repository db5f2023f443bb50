//! Recipients and identities: whom objects are sealed for, who opens them, and where those keys come from.
//!
//! Owns secret references (`file:`, `env:`, `cmd:`) and age's X25519 keys. Does not own the sealed object. Secrets are never inline
//! in a configuration and never printed.

use std::fmt;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use age::{Identity as _, Recipient as _};
use age_core::format::{FileKey, Stanza};
pub use age_core::secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncReadExt;

use crate::sealed::MAX_RECIPIENTS;
use crate::{Error, Result};

/// Longest time a `cmd:` reference may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes a reference may resolve to.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Public keys that objects are encrypted for: X25519 recipients, never a passphrase.
#[derive(Clone)]
pub struct Recipients(Arc<[age::x25519::Recipient]>);

impl Recipients {
    /// Reads `age1…` keys, 1 to 16 of them; a key named twice counts once.
    ///
    /// # Errors
    /// `Config`: none, too many, or one that is no X25519 recipient.
    pub fn parse<S: AsRef<str>>(keys: &[S]) -> Result<Self> {
        let mut recipients: Vec<age::x25519::Recipient> = Vec::new();
        for key in keys {
            let key = key.as_ref().trim();
            let recipient = key.parse::<age::x25519::Recipient>().map_err(|reason| {
                let secret = key.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-");
                let reference = if secret {
                    "AGE-SECRET-KEY-…".to_owned()
                } else {
                    key.to_owned()
                };
                let reason = if secret {
                    "this is a secret identity; a recipient is the public key, age1…".to_owned()
                } else {
                    format!("not an age X25519 recipient (age1…): {reason}")
                };
                Error::Secret { reference, reason }
            })?;
            if !recipients
                .iter()
                .any(|known| known.to_string() == recipient.to_string())
            {
                recipients.push(recipient);
            }
        }
        if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
            return Err(Error::Secret {
                reference: "recipients".into(),
                reason: format!(
                    "{} given, 1 to {MAX_RECIPIENTS} are possible",
                    recipients.len()
                ),
            });
        }
        Ok(Self(recipients.into()))
    }

    /// The keys as text, `age1…`.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Wraps a file key for each recipient.
    pub(crate) fn wrap(&self, file_key: &FileKey) -> Result<Vec<Stanza>> {
        let mut stanzas = Vec::with_capacity(self.0.len());
        for recipient in self.0.iter() {
            let (wrapped, _labels) =
                recipient
                    .wrap_file_key(file_key)
                    .map_err(|error| Error::Secret {
                        reference: recipient.to_string(),
                        reason: format!("the file key cannot be wrapped for it: {error}"),
                    })?;
            stanzas.extend(wrapped);
        }
        Ok(stanzas)
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.to_strings()).finish()
    }
}

/// Secret keys that open objects. Empty where nothing is encrypted or nothing may be opened.
#[derive(Clone, Default)]
pub struct Identities(Arc<[age::x25519::Identity]>);

impl Identities {
    /// Resolves references and reads every `AGE-SECRET-KEY-1…` line of what they hold; other lines must be comments or empty, as
    /// `age-keygen` writes them.
    ///
    /// # Errors
    /// `Config`: a reference that cannot be resolved, or that holds no identity. There is no fallback to plain text.
    pub async fn load(references: &[SecretReference]) -> Result<Self> {
        let mut identities = Vec::new();
        for reference in references {
            let text = reference.resolve().await?;
            let before = identities.len();
            for line in text.expose_secret().lines().map(str::trim) {
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let identity = line.parse::<age::x25519::Identity>();
                identities.push(identity.map_err(|_| {
                    Error::Secret {
                        reference: reference.to_string(),
                        reason:
                            "a line is no age identity (AGE-SECRET-KEY-1…), comment or empty line"
                                .into(),
                    }
                })?);
            }
            if identities.len() == before {
                return Err(Error::Secret {
                    reference: reference.to_string(),
                    reason: "it holds no age identity (AGE-SECRET-KEY-1…)".into(),
                });
            }
        }
        Ok(Self(identities.into()))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public keys that belong to them, `age1…`.
    #[must_use]
    pub fn recipients(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|identity| identity.to_public().to_string())
            .collect()
    }

    /// Unwraps the file key of an object.
    pub(crate) fn unwrap(&self, key: &str, stanzas: &[Stanza]) -> Result<FileKey> {
        if self.is_empty() {
            return Err(Error::NoIdentity {
                key: key.to_owned(),
            });
        }
        self.0
            .iter()
            .find_map(|identity| identity.unwrap_stanzas(stanzas)?.ok())
            .ok_or_else(|| Error::WrongIdentity {
                key: key.to_owned(),
                identities: self.0.len(),
            })
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({} of them)", self.0.len())
    }
}

/// A new identity: the text of its file, as `age-keygen` writes it, and its public key.
pub struct NewIdentity {
    /// What belongs into the identity file.
    pub file: SecretString,
    /// The recipient, `age1…`.
    pub recipient: String,
}

/// Makes an X25519 identity from the system's randomness.
#[must_use]
pub fn generate_identity(now: jiff::Timestamp) -> NewIdentity {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let secret = identity.to_string();
    let file = format!(
        "# created: {}\n# public key: {recipient}\n{}\n",
        now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        secret.expose_secret()
    );
    NewIdentity {
        file: file.into(),
        recipient,
    }
}

/// Where a secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretReference {
    /// `file:PATH`: the contents of a file.
    File(String),
    /// `env:NAME`: an environment variable.
    Environment(String),
    /// `cmd:COMMAND`: what a shell command prints, such as `cmd:vault kv get -field=key secret/walden`.
    Command(String),
}

impl FromStr for SecretReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |reference: &str, reason: &str| {
            Err(Error::Secret {
                reference: reference.to_owned(),
                reason: reason.to_owned(),
            })
        };
        if text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
            return refuse(
                "AGE-SECRET-KEY-…",
                "a secret never stands inline: put it in a file of mode 0600 and write file:PATH, or use env:NAME or cmd:COMMAND",
            );
        }
        match text.split_once(':') {
            Some((_, "")) => refuse(text, "nothing follows the colon"),
            Some(("file", path)) => Ok(Self::File(path.to_owned())),
            Some(("env", name)) => Ok(Self::Environment(name.to_owned())),
            Some(("cmd", command)) => Ok(Self::Command(command.to_owned())),
            _ => refuse(
                text,
                "not a secret reference: expected file:PATH, env:NAME or cmd:COMMAND",
            ),
        }
    }
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{path}"),
            Self::Environment(name) => write!(f, "env:{name}"),
            Self::Command(command) => write!(f, "cmd:{command}"),
        }
    }
}

impl SecretReference {
    /// Fetches the secret. A command has 30 seconds; at most 64 KiB are read.
    ///
    /// # Errors
    /// `Config`: nothing there, not readable, not UTF-8, too long, or the command failed.
    pub async fn resolve(&self) -> Result<SecretString> {
        let fail = |reason: String| Error::Secret {
            reference: self.to_string(),
            reason,
        };
        let text = match self {
            Self::File(path) => {
                let file = tokio::fs::File::open(path).await;
                let mut bytes = Vec::new();
                let file = file.map_err(|error| fail(format!("cannot be opened: {error}")))?;
                let read = file
                    .take(MAX_SECRET_BYTES + 1)
                    .read_to_end(&mut bytes)
                    .await;
                read.map_err(|error| fail(format!("cannot be read: {error}")))?;
                bytes
            }
            Self::Environment(name) => match std::env::var_os(name) {
                Some(value) => value.into_encoded_bytes(),
                None => return Err(fail("the environment variable is not set".into())),
            },
            Self::Command(command) => run_command(command).await.map_err(fail)?,
        };
        if text.len() as u64 > MAX_SECRET_BYTES {
            return Err(fail(format!("more than {MAX_SECRET_BYTES} bytes")));
        }
        let text = String::from_utf8(text).map_err(|_| fail("not UTF-8 text".into()))?;
        Ok(text.into())
    }
}

async fn run_command(command: &str) -> Result<Vec<u8>, String> {
    let child = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| format!("cannot be started: {error}"))?;
    let stdout = child.stdout.take();
    let work = async {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            let read = stdout
                .take(MAX_SECRET_BYTES + 1)
                .read_to_end(&mut bytes)
                .await;
            read.map_err(|error| format!("its output cannot be read: {error}"))?;
        }
        if bytes.len() as u64 > MAX_SECRET_BYTES {
            return Ok(bytes);
        }
        let status = child
            .wait()
            .await
            .map_err(|error| format!("cannot be waited for: {error}"))?;
        if status.success() {
            Ok(bytes)
        } else {
            Err(format!("it failed with {status}"))
        }
    };
    match tokio::time::timeout(COMMAND_DEADLINE, work).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "it did not end within {} s",
            COMMAND_DEADLINE.as_secs()
        )),
    }
}
