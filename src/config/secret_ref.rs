//! References to secrets: where one is kept, never the secret. Fetching what they point to is the library's.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretRef {
    /// `file:PATH`: the content of a file.
    File(PathBuf),
    /// `env:NAME`: an environment variable.
    Env(String),
    /// `cmd:COMMAND`: what a shell command prints.
    Cmd(String),
}

impl SecretRef {
    /// The same reference with a relative path taken from `folder` (that of the file it stands in).
    pub(crate) fn resolved_from(self, folder: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(folder.join(path)),
            other => other,
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Cmd(command) => write!(f, "cmd:{command}"),
        }
    }
}

impl FromStr for SecretRef {
    type Err = String;

    /// The message never repeats the text: it may be the secret itself.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write file:PATH, env:NAME or cmd:COMMAND";
        if is_identity(text) {
            return Err(format!(
                "this is the secret key itself; keep it in a file or a secret store and {FORMS}"
            ));
        }
        match text.split_once(':') {
            Some((_, "")) => Err(format!("nothing follows the colon; {FORMS}")),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("env", name)) if is_variable_name(name) => Ok(Self::Env(name.to_owned())),
            Some(("env", _)) => {
                Err("what follows env: is not the name of an environment variable".to_owned())
            }
            Some(("cmd", command)) => Ok(Self::Cmd(command.to_owned())),
            _ => Err(format!("not a reference to a secret; {FORMS}")),
        }
    }
}

/// Whether `text` is or contains an age identity.
pub(crate) fn is_identity(text: &str) -> bool {
    text.to_ascii_uppercase().contains("AGE-SECRET-KEY-")
}

fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_the_three_forms() {
        for text in [
            "file:walden.key",
            "file:/a b/c:d",
            "env:WALDEN_KEY",
            "cmd:vault kv get -field=key secret/walden",
        ] {
            let parsed: SecretRef = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn relative_file_is_taken_from_the_folder_of_the_configuration() {
        let check = |text: &str, expected: &str| {
            assert_eq!(
                text.parse()
                    .map(|r: SecretRef| r.resolved_from(Path::new("/etc/walden")).to_string()),
                Ok(expected.to_owned())
            );
        };
        check("file:k", "file:/etc/walden/k");
        check("file:/k", "file:/k");
        check("env:K", "env:K");
    }

    #[test]
    fn refuses_secrets_without_repeating_them() {
        for text in [
            "AGE-SECRET-KEY-1QQQ",
            "file:AGE-SECRET-KEY-1QQQ",
            "age-secret-key-1qqq",
            "hunter2",
            "",
            "env:",
            "env:A B",
            "env:1A",
            "pass:hunter2",
        ] {
            let error = text
                .parse::<SecretRef>()
                .err()
                .unwrap_or_else(|| panic!("accepted {text}"));
            assert!(
                !error.contains("QQQ") && !error.contains("qqq") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
