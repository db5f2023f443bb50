//! Checking references to secrets (`file:`, `env:`, `cmd:`) where users write them. Nothing said here repeats the text, for it may
//! be the secret itself. What a reference means, and fetching what it points to, is `repository::identity`'s.

use std::path::Path;

use repository::identity::SecretReference;

/// Reads a reference.
///
/// # Errors
/// What is wrong, without the text.
pub(crate) fn parse_secret_reference(text: &str) -> Result<SecretReference, String> {
    text.parse().map_err(reason)
}

/// Reads an age recipient (`age1…`), checksum included.
///
/// # Errors
/// What is wrong, without the text.
pub(crate) fn parse_recipient(text: &str) -> Result<String, String> {
    let parsed = repository::identity::Recipients::parse(&[text]).map_err(reason)?;
    parsed
        .to_strings()
        .pop()
        .ok_or_else(|| "no recipient".to_owned())
}

/// The reason alone: the rest of the message quotes what was given.
fn reason(error: repository::Error) -> String {
    match error {
        repository::Error::Secret { reason, .. } => reason,
        other => other.to_string(),
    }
}

/// The same reference with a relative path taken from `folder`, that of the file it stands in.
///
/// # Errors
/// The resulting path is not UTF-8.
pub(super) fn resolved_from(
    reference: SecretReference,
    folder: &Path,
) -> Result<SecretReference, String> {
    match reference {
        SecretReference::File(path) => match folder.join(path).into_os_string().into_string() {
            Ok(path) => Ok(SecretReference::File(path)),
            Err(path) => Err(format!("{} is not UTF-8", path.display())),
        },
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_file_is_taken_from_the_folder_of_the_configuration() {
        let check = |text: &str, expected: &str| {
            let resolved = parse_secret_reference(text)
                .and_then(|read| resolved_from(read, Path::new("/etc/walden")));
            assert_eq!(
                resolved.map(|reference| reference.to_string()),
                Ok(expected.to_owned())
            );
        };
        check("file:k", "file:/etc/walden/k");
        check("file:/a b/c:d", "file:/a b/c:d");
        check("env:K", "env:K");
        check(
            "cmd:vault kv get -field=key secret/walden",
            "cmd:vault kv get -field=key secret/walden",
        );
    }

    #[test]
    fn refuses_secrets_without_repeating_them() {
        const KEY: &str =
            "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
        let lower = KEY.to_ascii_lowercase();
        for text in [
            KEY,
            &format!("file:{KEY}"),
            &lower,
            "GFPYYSJ",
            "",
            "env:",
            "pass:GFPYYSJ",
        ] {
            let error = parse_secret_reference(text)
                .err()
                .unwrap_or_else(|| panic!("accepted {text}"));
            assert!(!error.to_ascii_uppercase().contains("GFPYYSJ"), "{error}");
        }
        for text in [KEY, "age1GFPYYSJ", "GFPYYSJ", ""] {
            let error = parse_recipient(text)
                .err()
                .unwrap_or_else(|| panic!("accepted {text}"));
            assert!(!error.contains("GFPYYSJ"), "{error}");
        }
    }
}
