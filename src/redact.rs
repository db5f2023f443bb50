//! Hiding secrets in text that people or logs will see: passwords in connection strings and URLs, request signatures, age
//! identities. Errs on the side of hiding. Works on text alone; not a substitute for keeping secrets out of it.

use std::borrow::Cow;

/// What stands in a secret's place.
const HIDDEN: &str = "[redacted]";

/// Words after which `=` a secret follows, lower case.
const SECRET_KEYS: [&str; 12] = [
    "password",
    "pgpassword",
    "sslpassword",
    "secret_key",
    "secret_access_key",
    "aws_secret_access_key",
    "aws_session_token",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "signature",
    "credential",
];

/// `text` with its secrets replaced; borrowed when there are none.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while at < text.len() {
        match secret_at(text, at) {
            // An empty value hides nothing.
            Some(secret) if !secret.is_empty() => {
                out.push_str(&text[copied..secret.start]);
                out.push_str(HIDDEN);
                copied = secret.end;
                at = secret.end;
            }
            _ => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// The secret announced by the word that starts at `at`, if one does.
fn secret_at(text: &str, at: usize) -> Option<std::ops::Range<usize>> {
    let rest = &text[at..];
    let found = match rest.as_bytes().first()? {
        b':' => password_in_url(rest),
        b'a' | b'A' | b'p' | b'P' | b's' | b'S' | b'x' | b'X' | b'c' | b'C' => identity(rest)
            .or_else(|| {
                if starts_word(text, at) {
                    assigned(rest)
                } else {
                    None
                }
            }),
        _ => None,
    }?;
    Some(at + found.start..at + found.end)
}

fn starts_word(text: &str, at: usize) -> bool {
    !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '-')
}

/// `AGE-SECRET-KEY-…`: everything after the marker.
fn identity(rest: &str) -> Option<std::ops::Range<usize>> {
    const MARKER: &str = "AGE-SECRET-KEY-";
    let start = rest
        .get(..MARKER.len())
        .filter(|head| head.eq_ignore_ascii_case(MARKER))?
        .len();
    let length = rest[start..]
        .find(|character: char| !character.is_ascii_alphanumeric() && character != '-');
    Some(start..length.map_or(rest.len(), |length| start + length))
}

/// `key=value`, `key = 'value'`, `"key": "value"`: the value, with its quotes.
fn assigned(rest: &str) -> Option<std::ops::Range<usize>> {
    let key = SECRET_KEYS.iter().find(|key| {
        let boundary = |after: &str| {
            !after.starts_with(|next: char| next.is_alphanumeric() || next == '_' || next == '-')
        };
        rest.get(..key.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(key))
            && boundary(&rest[key.len()..])
    })?;
    let after_key = rest[key.len()..].trim_start();
    let value = match after_key.strip_prefix("\":") {
        Some(json) => Some(json).filter(|value| value.trim_start().starts_with('"'))?,
        None => after_key.strip_prefix('=')?,
    };
    let value = value.trim_start();
    let start = rest.len() - value.len();
    Some(start..start + value_length(value))
}

fn value_length(value: &str) -> usize {
    let Some(quote @ ('\'' | '"')) = value.chars().next() else {
        let mut escaped = false;
        let end = value.find(|character: char| {
            let ends = !escaped
                && (character.is_whitespace() || matches!(character, '&' | ',' | '"' | '\'' | ')'));
            escaped = character == '\\' && !escaped;
            ends
        });
        return end.unwrap_or(value.len());
    };
    let mut escaped = false;
    for (index, character) in value.char_indices().skip(1) {
        if character == quote && !escaped {
            return index + 1;
        }
        escaped = character == '\\' && !escaped;
    }
    value.len()
}

/// `://user:password@host`: the password. A password may hold `/` and `@` where its writer forgot to encode them.
fn password_in_url(rest: &str) -> Option<std::ops::Range<usize>> {
    const MARKER: &str = "://";
    let authority = rest.strip_prefix(MARKER)?;
    let end = authority
        .find(|character: char| character.is_whitespace() || matches!(character, '"' | '\'' | '`'));
    let authority = &authority[..end.unwrap_or(authority.len())];
    let (start, end) = (authority.find(':')? + 1, authority.rfind('@')?);
    let password = authority.get(start..end)?;
    // host:9000/path@x is a port, not a password; so is a path that comes before the colon no user.
    let is_port = password
        .split_once('/')
        .is_some_and(|(port, _)| port.bytes().all(|byte| byte.is_ascii_digit()));
    if is_port || authority[..start].contains('/') {
        return None;
    }
    Some(MARKER.len() + start..MARKER.len() + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden() {
        let check = |given: &str, expected: &str| assert_eq!(text(given), expected);
        check(
            "host=a password=hunter2 user=b",
            "host=a password=[redacted] user=b",
        );
        check(
            "password = 'a \\' b' user=b",
            "password = [redacted] user=b",
        );
        check("PASSWORD=a\\ b user=c", "PASSWORD=[redacted] user=c");
        check("password='never closed", "password=[redacted]");
        check("sslpassword=x", "sslpassword=[redacted]");
        check(
            "postgres://u:p%40w@h:5432/db?password=q&x=1",
            "postgres://u:[redacted]@h:5432/db?password=[redacted]&x=1",
        );
        check("postgres://u:p/w@x@h/db", "postgres://u:[redacted]@h/db");
        check(
            "GET https://h/k?X-Amz-Credential=A%2Fb&X-Amz-Signature=00ff&n=1",
            "GET https://h/k?X-Amz-Credential=[redacted]&X-Amz-Signature=[redacted]&n=1",
        );
        check(
            "AWS4-HMAC-SHA256 Credential=AK/1, SignedHeaders=host, Signature=00ff",
            "AWS4-HMAC-SHA256 Credential=[redacted], SignedHeaders=host, Signature=[redacted]",
        );
        check("key AGE-SECRET-KEY-1ABC.", "key AGE-SECRET-KEY-[redacted].");
        check("age-secret-key-pq-1abc", "age-secret-key-[redacted]");
        check("é password=é é", "é password=[redacted] é");
        check("{\"m\":\"password=x\"}", "{\"m\":\"password=[redacted]\"}");
        check(
            "{\"password\": \"a\\\"b\", \"x\":1}",
            "{\"password\": [redacted], \"x\":1}",
        );
        check(
            "two password=a password=b",
            "two password=[redacted] password=[redacted]",
        );
    }

    #[test]
    fn ordinary_text_is_left_alone() {
        for ordinary in [
            "",
            "password authentication failed for user \"walden\"",
            "http://127.0.0.1:9000/bucket/key@2",
            "s3://bucket/a:b@c",
            "host=a passfile=/etc/x/.pgpass",
            "https://host:9000/x",
            "no_password=1",
            "password=",
            "{\"password\":null}",
            "12:30:00 mail@example.org",
            "://",
        ] {
            assert!(
                matches!(text(ordinary), Cow::Borrowed(same) if same == ordinary),
                "{ordinary}"
            );
        }
    }

    #[test]
    fn any_cut_of_a_text_is_taken() {
        let whole = "é://u:p@h password = 'a\\'é' AGE-SECRET-KEY-1 X-Amz-Signature=é";
        for (start, _) in whole.char_indices() {
            for (end, _) in whole.char_indices().filter(|(end, _)| *end >= start) {
                assert!(text(&whole[start..end]).len() <= 10 * whole.len());
            }
        }
    }
}
