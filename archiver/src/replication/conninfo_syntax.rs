//! The two spellings of a connection string (libpq, "Connection Strings"): `keyword = value` pairs and `postgresql://` URIs, both
//! turned into the same list of settings. Does not know which keywords exist nor what they mean: `conninfo` does.

use crate::error::{Error, Result};

/// Longest connection string accepted, in bytes.
const MAX_CONNINFO_BYTES: usize = 64 * 1024;

/// Keyword and value, in the order written; a later one wins.
pub(super) type Settings = Vec<(String, String)>;

/// Splits a connection string of either spelling.
///
/// # Errors
/// `ConnectionSettings`: quotes, escapes or percent-encoding do not add up.
pub(super) fn parse_settings(conninfo: &str) -> Result<Settings> {
    if conninfo.len() > MAX_CONNINFO_BYTES {
        return Err(invalid("the connection string is longer than 64 KiB"));
    }
    if conninfo.contains('\0') {
        return Err(invalid("the connection string holds a NUL character"));
    }
    match conninfo
        .strip_prefix("postgresql://")
        .or_else(|| conninfo.strip_prefix("postgres://"))
    {
        Some(rest) => parse_uri(rest),
        None => parse_pairs(conninfo),
    }
}

pub(super) fn invalid(reason: impl Into<String>) -> Error {
    Error::ConnectionSettings {
        reason: reason.into(),
    }
}

/// `keyword = value`: spaces around `=` allowed, values in single quotes may hold spaces, backslash escapes one character.
fn parse_pairs(conninfo: &str) -> Result<Settings> {
    let mut settings = Settings::new();
    let mut rest = conninfo.trim_start();
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| c == '=' || c.is_ascii_whitespace())
            .unwrap_or(rest.len());
        let (keyword, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            // The word is not repeated: it may be the rest of an unquoted password.
            let position = conninfo.len() - rest.len() + 1;
            return Err(invalid(format!(
                "missing \"=\" after the word at byte {position} (a value with spaces needs quotes: 'like this')"
            )));
        };
        if keyword.is_empty() {
            return Err(invalid("a value without a keyword before its \"=\""));
        }
        let (value, after) = take_value(keyword, after.trim_start())?;
        settings.push((keyword.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(settings)
}

/// One value and what follows it.
fn take_value<'a>(keyword: &str, input: &'a str) -> Result<(String, &'a str)> {
    let quoted = input.strip_prefix('\'');
    let mut chars = quoted.unwrap_or(input).chars();
    let mut value = String::new();
    loop {
        let before = chars.as_str();
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted.is_some() => return Ok((value, chars.as_str())),
            Some(c) if quoted.is_none() && c.is_ascii_whitespace() => return Ok((value, before)),
            Some(c) => value.push(c),
            None if quoted.is_some() => {
                return Err(invalid(format!(
                    "the quoted value of {keyword} does not end"
                )));
            }
            None => return Ok((value, "")),
        }
    }
}

/// `[user[:password]@][host[:port],…][/database][?keyword=value&…]`, everything percent-encoded.
fn parse_uri(rest: &str) -> Result<Settings> {
    let mut settings = Settings::new();
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, database) = match rest.split_once('/') {
        Some((authority, database)) => (authority, Some(database)),
        None => (rest, None),
    };
    let hosts = match authority.rsplit_once('@') {
        Some((login, hosts)) => {
            let (user, password) = match login.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (login, None),
            };
            push_decoded(&mut settings, "user", user)?;
            if let Some(password) = password {
                push_decoded(&mut settings, "password", password)?;
            }
            hosts
        }
        None => authority,
    };
    if !hosts.is_empty() {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = split_port(host)?;
            names.push(decode(name)?);
            ports.push(decode(port)?);
        }
        settings.push(("host".to_owned(), names.join(",")));
        if ports.iter().any(|port| !port.is_empty()) {
            settings.push(("port".to_owned(), ports.join(",")));
        }
    }
    if let Some(database) = database {
        push_decoded(&mut settings, "dbname", database)?;
    }
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
    {
        let Some((keyword, value)) = pair.split_once('=') else {
            return Err(invalid("a URI parameter lacks its \"=\""));
        };
        let (keyword, value) = (decode(keyword)?, decode(value)?);
        // libpq keeps this one spelling of JDBC.
        if keyword == "ssl" && value == "true" {
            settings.push(("sslmode".to_owned(), "require".to_owned()));
        } else {
            settings.push((keyword, value));
        }
    }
    Ok(settings)
}

/// `host:port`, `[v6]:port`, either part may be empty.
fn split_port(host: &str) -> Result<(&str, &str)> {
    if let Some(bracketed) = host.strip_prefix('[') {
        let Some((address, after)) = bracketed.split_once(']') else {
            return Err(invalid("an IPv6 address in the URI lacks its \"]\""));
        };
        return match (after.is_empty(), after.strip_prefix(':')) {
            (true, _) => Ok((address, "")),
            (false, Some(port)) => Ok((address, port)),
            (false, None) => Err(invalid(
                "only \":port\" may follow an IPv6 address in the URI",
            )),
        };
    }
    Ok(host.split_once(':').unwrap_or((host, "")))
}

fn push_decoded(settings: &mut Settings, keyword: &str, value: &str) -> Result<()> {
    if !value.is_empty() {
        settings.push((keyword.to_owned(), decode(value)?));
    }
    Ok(())
}

/// Percent-decoding; the value is not repeated in an error, it may be the password.
fn decode(text: &str) -> Result<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part
            .get(..2)
            .filter(|c| c.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        match (byte, part.get(2..)) {
            (Some(0), _) => return Err(invalid("the URI holds %00")),
            (Some(byte), Some(after)) => {
                bytes.push(byte);
                bytes.extend_from_slice(after.as_bytes());
            }
            _ => {
                return Err(invalid(
                    "a \"%\" in the URI is not followed by two hexadecimal digits (write %25 for the character itself)",
                ));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid("the URI does not decode to UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(conninfo: &str, expected: &[(&str, &str)]) {
        let settings = parse_settings(conninfo).unwrap();
        let settings: Vec<_> = settings
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(settings, expected, "{conninfo}");
    }

    #[test]
    fn pairs_know_quotes_escapes_and_spaces() {
        check("", &[]);
        check("host=a port = 5", &[("host", "a"), ("port", "5")]);
        check(
            r"password='it\'s \\ x' user=u",
            &[("password", r"it's \ x"), ("user", "u")],
        );
        check(r"user=a\ b", &[("user", "a b")]);
        check("user='' dbname=x", &[("user", ""), ("dbname", "x")]);
        check("user= dbname=x", &[("user", "dbname=x")]); // as libpq: spaces after = are skipped
    }

    #[test]
    fn uris_know_several_hosts_ipv6_and_percent_encoding() {
        check("postgresql://", &[]);
        check(
            "postgres://u%40x:p%3Aw@h1:1,[::1]:2,h3/db%20x?sslmode=require&options=-c%20a%3Db",
            &[
                ("user", "u@x"),
                ("password", "p:w"),
                ("host", "h1,::1,h3"),
                ("port", "1,2,"),
                ("dbname", "db x"),
                ("sslmode", "require"),
                ("options", "-c a=b"),
            ],
        );
        check(
            "postgresql://%2Fvar%2Frun/d",
            &[("host", "/var/run"), ("dbname", "d")],
        );
        check(
            "postgresql:///d?host=/tmp&ssl=true",
            &[("dbname", "d"), ("host", "/tmp"), ("sslmode", "require")],
        );
    }

    #[test]
    fn refuses_what_does_not_add_up_and_never_repeats_a_password() {
        let refuse = |conninfo: &str, needle: &str| {
            let error = parse_settings(conninfo).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
            assert!(!error.contains("secret"), "{error}");
        };
        refuse("host", "missing \"=\"");
        refuse("= x", "without a keyword");
        refuse("password='secret", "does not end");
        refuse("postgresql://u:secret%zz@h", "hexadecimal");
        refuse("postgresql://u:secret%@h", "hexadecimal");
        refuse("postgresql://u:secret%00@h", "%00");
        refuse("postgresql://[::1", "lacks its");
        refuse("postgresql://[::1]5", "only \":port\"");
        refuse("password=my secret", "at byte 13");
        refuse("postgresql://h?x", "lacks its \"=\"");
        refuse("user=\0", "NUL");
        refuse("postgresql://u%ff@h", "UTF-8");
    }

    proptest! {
        #[test]
        fn any_value_survives_quoting(value in "[^\0]{0,40}") {
            let quoted = format!("password='{}'", value.replace('\\', r"\\").replace('\'', r"\'"));
            prop_assert_eq!(parse_settings(&quoted).unwrap(), vec![("password".to_owned(), value)]);
        }

        #[test]
        fn no_input_panics(text in ".{0,60}") {
            let _ = parse_settings(&text).is_ok();
            let _ = parse_settings(&format!("postgresql://{text}")).is_ok();
        }
    }
}
