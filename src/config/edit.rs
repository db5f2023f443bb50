//! Changes one setting in the text of a configuration file and leaves the rest, comments too, as it is.
//!
//! Pure. Owns only what `walden init` may have to change in a file that is the user's. Does not write it.

/// `text` with `incarnation = number` in its `[postgres]` table; `None` if it has no such line to put it under, as with an inline table.
pub(crate) fn with_incarnation(text: &str, number: u32) -> Option<String> {
    let line = format!("incarnation = {number}");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let header = lines
        .iter()
        .position(|line| line.trim_start().starts_with("[postgres]"))?;
    let table = lines.iter().enumerate().skip(header + 1);
    let table = table.take_while(|(_, line)| !line.trim_start().starts_with('['));
    let (mut known, mut identifier) = (None, None);
    for (index, line) in table {
        match line.split_once('=').map(|(key, _)| key.trim()) {
            Some("incarnation") => known = Some(index),
            Some("system_identifier") => identifier = Some(index),
            _ => {}
        }
    }
    match known.and_then(|index| lines.get_mut(index)) {
        Some(known) => *known = line,
        None => lines.insert(identifier.unwrap_or(header) + 1, line),
    }
    Some(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: &str, after: Option<&str>) {
        assert_eq!(with_incarnation(before, 2).as_deref(), after, "{before}");
    }

    #[test]
    fn a_setting_is_put_beside_the_identifier_or_replaced_and_the_rest_stays() {
        check(
            "# mine\n[postgres] # the server\nslot = 'x'\nsystem_identifier = \"7\" # it\n\n[archive]\nrpo = '5s'\n",
            Some(
                "# mine\n[postgres] # the server\nslot = 'x'\nsystem_identifier = \"7\" # it\nincarnation = 2\n\n[archive]\nrpo = '5s'\n",
            ),
        );
        check(
            "[postgres]\nincarnation=1\nsystem_identifier = '7'",
            Some("[postgres]\nincarnation = 2\nsystem_identifier = '7'\n"),
        );
        check(
            "[archive]\nincarnation = 9\n[postgres]\nslot = 'x'\n[[repository]]\nincarnation = 9\n",
            Some(
                "[archive]\nincarnation = 9\n[postgres]\nincarnation = 2\nslot = 'x'\n[[repository]]\nincarnation = 9\n",
            ),
        );
        check("postgres = { system_identifier = '7' }\n", None);
    }
}
