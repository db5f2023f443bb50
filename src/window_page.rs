//! `walden window --html`: the answer as one page, without anything from elsewhere: bars on a time axis, gaps in red, timelines as a tree.
//!
//! Pure text. Bars are SVG, which prints as it looks; colours follow the reader's light or dark setting, and gaps are hatched, so that they
//! show on paper too. Whatever comes from outside goes through [`escape`].

use std::fmt::{self, Write as _};

use jiff::Timestamp;

use crate::commands::window::commit_text;
use crate::each::Unseen;
use crate::windows::{BackupRange, Point, RepositoryWindows, TimelineBranch};

/// Left and right edge of the time axis, in the drawing's units; what is left of it is for labels.
const AXIS: (f64, f64) = (250.0, 985.0);
/// Height of a bar's row.
const ROW: f64 = 24.0;
/// Most rows that are drawn: the newest. The tables have all.
const MAX_ROWS: usize = 400;
/// Times written below the axis.
const TICKS: u32 = 5;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #6b7280; --line: #d4d7dc; --bar: #2f7d5b; --gap: #c62828 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181c; --soft: #9aa3ad; --line: #3a4048; --bar: #5bb98c; --gap: #ff6b6b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem }
p, dl { margin: .3rem 0 } .soft { color: var(--soft) } .bad { color: var(--gap) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem } dt { color: var(--soft) } dd { margin: 0 }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .soft { fill: var(--soft) }
.bar { fill: var(--bar) } .whole { fill: var(--bar); opacity: .55 } .gap { fill: url(#hatch); stroke: var(--gap) } .edge { stroke: var(--gap); stroke-width: 3 }
.axis { stroke: var(--line) } .commit { fill: var(--ink) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .85rem } th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 } code { font: .9em ui-monospace, monospace } ul { margin: .2rem 0; padding-left: 1.4rem }
@media print { :root { --ink: #000; --paper: #fff; --soft: #444; --line: #999; --bar: #2f7d5b; --gap: #c62828 } body { margin: 0; max-width: none; font-size: 10pt } h2, svg, tr { break-inside: avoid } .scroll { overflow: visible } }
";

/// Text that is shown as it is, wherever it came from.
struct Escaped<'a>(&'a str);

fn escape(text: &str) -> Escaped<'_> {
    Escaped(text)
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// The page.
pub(crate) fn render(
    repositories: &[RepositoryWindows],
    unseen: &[Unseen],
    asked: Timestamp,
) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    write_page(&mut page, repositories, unseen, asked).expect("a string takes any text");
    page
}

fn write_page(
    page: &mut String,
    repositories: &[RepositoryWindows],
    unseen: &[Unseen],
    asked: Timestamp,
) -> fmt::Result {
    let cluster = repositories
        .first()
        .map_or("", |windows| windows.cluster.as_str());
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Recovery window of cluster {cluster}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>What cluster {cluster} can be recovered to</h1>\n\
         <p class=\"soft\">asked at {asked:.0}; times are in UTC</p>\n",
        cluster = escape(cluster),
    )?;
    for unseen in unseen {
        writeln!(page, "<p class=\"bad\">{}</p>", escape(&unseen.to_string()))?;
    }
    // One axis for all, so that bars below each other compare.
    let spans = repositories.iter().flat_map(|one| spans(&one.backups));
    let (mut begin, mut end) = (None, None);
    for span in spans {
        begin = Some(begin.map_or(span.from, |begin: Timestamp| begin.min(span.from)));
        end = end.max(Some(span.to));
    }
    for windows in repositories {
        repository(page, windows, begin.zip(end))?;
    }
    page.push_str("</body>\n</html>\n");
    Ok(())
}

fn repository(
    page: &mut String,
    windows: &RepositoryWindows,
    axis: Option<(Timestamp, Timestamp)>,
) -> fmt::Result {
    writeln!(
        page,
        "<section>\n<h2>Repository {} <span class=\"soft\">{}</span></h2>\n<dl>",
        escape(&windows.name),
        escape(&windows.url)
    )?;
    if let Some(oldest) = &windows.oldest_promised {
        writeln!(
            page,
            "<dt>oldest moment</dt><dd>{}, from backup <code>{}</code>: no retention is configured, nothing expires</dd>",
            point(&oldest.moment),
            escape(&oldest.backup)
        )?;
    }
    match &windows.newest {
        Some(newest) => writeln!(page, "<dt>newest moment</dt><dd>{}</dd>", point(newest))?,
        None => writeln!(
            page,
            "<dt>newest moment</dt><dd class=\"bad\">nothing can be reached</dd>"
        )?,
    }
    match &windows.last_commit {
        Some(commit) => writeln!(
            page,
            "<dt>newest reachable commit</dt><dd>{}</dd>",
            escape(&commit_text(commit))
        )?,
        None if windows.lacks_key => writeln!(
            page,
            "<dt>newest reachable commit</dt><dd>not known without a key</dd>"
        )?,
        None => {}
    }
    page.push_str("</dl>\n");
    if let Some(axis) = axis {
        chart(page, windows, axis)?;
    }
    ranges(page, &windows.backups)?;
    gaps(page, windows)?;
    if !windows.timelines.is_empty() {
        page.push_str("<h3>Timelines</h3>\n<ul>\n");
        let timelines = windows.timelines.as_slice();
        let is_root = |one: &&TimelineBranch| {
            one.parent
                .is_none_or(|parent| timelines.iter().all(|other| other.timeline != parent))
        };
        for root in timelines.iter().filter(is_root) {
            branch(page, timelines, root)?;
        }
        page.push_str("</ul>\n");
    }
    page.push_str("</section>\n");
    Ok(())
}

fn point(point: &Point) -> String {
    let time = point
        .time
        .map_or_else(|| "time not known".to_owned(), |time| time.to_string());
    format!(
        "{time} <span class=\"soft\">(LSN {}, timeline {})</span>",
        escape(&point.lsn),
        point.timeline
    )
}

/// A stretch of time that can be reached, from one backup along one timeline.
#[derive(Clone, Copy)]
struct Span<'a> {
    label: &'a str,
    timeline: u32,
    from: Timestamp,
    to: Timestamp,
    gap: Option<&'a str>,
}

fn spans(backups: &[BackupRange]) -> Vec<Span<'_>> {
    let mut spans = Vec::new();
    for backup in backups {
        let Some(from) = backup.from.time else {
            continue;
        };
        spans.extend(backup.ranges.iter().map(|range| Span {
            label: &backup.label,
            timeline: range.timeline,
            from,
            to: range.to.time.map_or(from, |to| to.max(from)),
            gap: range.gap.as_deref(),
        }));
    }
    spans
}

/// Times between the first moment and the last that no span covers.
fn uncovered(spans: &[Span<'_>]) -> Vec<(Timestamp, Timestamp)> {
    let mut sorted: Vec<_> = spans.iter().map(|span| (span.from, span.to)).collect();
    sorted.sort_unstable();
    let mut gaps = Vec::new();
    let mut covered: Option<Timestamp> = None;
    for (from, to) in sorted {
        if let Some(before) = covered.filter(|before| *before < from) {
            gaps.push((before, from));
        }
        covered = covered.max(Some(to));
    }
    gaps
}

fn chart(
    page: &mut String,
    windows: &RepositoryWindows,
    (begin, end): (Timestamp, Timestamp),
) -> fmt::Result {
    let spans = spans(&windows.backups);
    if spans.is_empty() {
        return Ok(());
    }
    let length = end.duration_since(begin).as_secs_f64().max(1e-6);
    let x = |time: Timestamp| {
        AXIS.0 + (AXIS.1 - AXIS.0) * (time.duration_since(begin).as_secs_f64() / length)
    };
    let drawn = spans
        .get(spans.len().saturating_sub(MAX_ROWS)..)
        .unwrap_or_default();
    let height = ROW * (drawn.len() as f64 + 1.0) + 44.0;
    writeln!(
        page,
        "<svg viewBox=\"0 0 1000 {height:.0}\" role=\"img\" aria-label=\"Reachable time per backup\">\n\
         <defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
         <rect width=\"3\" height=\"6\" fill=\"#c62828\"/></pattern></defs>"
    )?;
    let name = |page: &mut String, y: f64, text: &str| {
        writeln!(
            page,
            "<text x=\"0\" y=\"{:.1}\">{}</text>",
            y + 14.0,
            escape(text)
        )
    };
    name(page, 0.0, &format!("repository {}", windows.name))?;
    let bar = |page: &mut String, class: &str, y: f64, (from, to), title: &str| {
        writeln!(
            page,
            "<rect class=\"{class}\" x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"16\"><title>{}</title></rect>",
            x(from),
            y + 2.0,
            (x(to) - x(from)).max(1.5),
            escape(title)
        )
    };
    for span in &spans {
        bar(page, "whole", 0.0, (span.from, span.to), "can be reached")?;
    }
    for (from, to) in uncovered(&spans) {
        let title = format!("cannot be reached: {from} to {to}");
        bar(page, "gap", 0.0, (from, to), &title)?;
    }
    for (row, span) in drawn.iter().enumerate() {
        let y = ROW * (row as f64 + 1.0);
        name(page, y, &format!("{} · {}", span.label, span.timeline))?;
        let title = format!(
            "backup {} along timeline {}: {} to {}",
            span.label, span.timeline, span.from, span.to
        );
        bar(page, "bar", y, (span.from, span.to), &title)?;
        if let Some(gap) = span.gap {
            let x = x(span.to);
            writeln!(
                page,
                "<line class=\"edge\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"{:.1}\" y2=\"{:.1}\"><title>{}</title></line>",
                y,
                y + 20.0,
                escape(gap)
            )?;
        }
    }
    let bottom = ROW * (drawn.len() as f64 + 1.0) + 6.0;
    let commit = windows.last_commit.as_ref();
    if let Some(time) = commit
        .and_then(|commit| commit.time)
        .filter(|t| *t >= begin)
    {
        let x = x(time);
        writeln!(
            page,
            "<path class=\"commit\" d=\"M{x:.2} {:.1} l-5 8 h10 z\"><title>newest reachable commit: {time}</title></path>",
            bottom - 6.0
        )?;
    }
    axis(page, begin, length, bottom + 4.0)?;
    page.push_str("</svg>\n");
    Ok(())
}

fn axis(page: &mut String, begin: Timestamp, length: f64, y: f64) -> fmt::Result {
    writeln!(
        page,
        "<line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
        AXIS.0, AXIS.1
    )?;
    for tick in 0..TICKS {
        let part = f64::from(tick) / f64::from(TICKS - 1);
        let x = AXIS.0 + (AXIS.1 - AXIS.0) * part;
        let anchor = match tick {
            0 => "start",
            tick if tick + 1 == TICKS => "end",
            _ => "middle",
        };
        let after = jiff::SignedDuration::try_from_secs_f64(length * part);
        let time = after.ok().and_then(|after| begin.checked_add(after).ok());
        let text = match time {
            Some(time) if length < 2.0 * 86_400.0 => time.strftime("%m-%d %H:%M:%S").to_string(),
            Some(time) => time.strftime("%Y-%m-%d").to_string(),
            None => String::new(),
        };
        writeln!(
            page,
            "<text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{text}</text>",
            y + 18.0
        )?;
    }
    Ok(())
}

fn ranges(page: &mut String, backups: &[BackupRange]) -> fmt::Result {
    if backups.is_empty() {
        page.push_str("<p class=\"bad\">There is no backup: WAL alone restores nothing.</p>\n");
        return Ok(());
    }
    page.push_str(
        "<h3>Backups</h3>\n<div class=\"scroll\"><table>\n<tr><th>backup</th><th>from</th><th>to</th><th>timeline</th><th>last commit</th><th>ends</th></tr>\n",
    );
    for backup in backups {
        if let Some(why) = &backup.unusable {
            writeln!(
                page,
                "<tr><td><code>{}</code></td><td colspan=\"5\" class=\"bad\">opens nothing: {}</td></tr>",
                escape(&backup.label),
                escape(why)
            )?;
        }
        for range in &backup.ranges {
            let commit = match &range.last_commit {
                Some(commit) => commit_text(commit),
                None => "not known, or none".to_owned(),
            };
            let ends = match &range.gap {
                Some(gap) => format!("<span class=\"bad\">{}</span>", escape(gap)),
                None => "with what is stored".to_owned(),
            };
            writeln!(
                page,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{ends}</td></tr>",
                escape(&backup.label),
                point(&backup.from),
                point(&range.to),
                range.timeline,
                escape(&commit),
            )?;
        }
    }
    page.push_str("</table></div>\n");
    Ok(())
}

fn gaps(page: &mut String, windows: &RepositoryWindows) -> fmt::Result {
    let all = windows.unreachable();
    if all.is_empty() {
        return Ok(());
    }
    page.push_str("<h3>What cannot be reached</h3>\n<ul class=\"bad\">\n");
    for gap in all {
        writeln!(page, "<li>{}</li>", escape(&gap))?;
    }
    page.push_str("</ul>\n");
    Ok(())
}

/// A timeline and those that branched off it. A parent's number is lower, so this ends.
fn branch(page: &mut String, all: &[TimelineBranch], one: &TimelineBranch) -> fmt::Result {
    write!(page, "<li>{}", one.timeline)?;
    if let Some(lsn) = &one.switch_lsn {
        write!(page, " from {}", escape(lsn))?;
    }
    if let (Some(from), Some(to)) = (&one.stored_from, &one.stored_to) {
        write!(
            page,
            " <span class=\"soft\">WAL {} to {}</span>",
            escape(from),
            escape(to)
        )?;
    }
    if !one.reason.is_empty() {
        write!(page, " <span class=\"soft\">{}</span>", escape(&one.reason))?;
    }
    let children: Vec<&TimelineBranch> = all
        .iter()
        .filter(|child| child.parent == Some(one.timeline))
        .collect();
    if !children.is_empty() {
        page.push_str("\n<ul>\n");
        for child in children {
            branch(page, all, child)?;
        }
        page.push_str("</ul>");
    }
    page.push_str("</li>\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::windows::{CommitPoint, Gap, Promised, Range};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    fn moment(second: i64, lsn: &str) -> Point {
        Point {
            time: Some(at(second)),
            lsn: lsn.into(),
            timeline: 1,
        }
    }

    fn backup(label: &str, from: i64, to: i64, gap: Option<&str>) -> BackupRange {
        BackupRange {
            label: label.into(),
            from: moment(from, "0/2000100"),
            ranges: vec![Range {
                timeline: 1,
                to: moment(to, "0/9000000"),
                last_commit: None,
                ends: "stored",
                gap: gap.map(str::to_owned),
                first_missing: None,
                missing_segments: None,
                proven: true,
            }],
            unusable: None,
        }
    }

    fn sample() -> RepositoryWindows {
        RepositoryWindows {
            name: "pri<mary".into(),
            url: "s3://b/\"p\"".into(),
            cluster: "7412".into(),
            oldest_promised: Some(Promised {
                moment: moment(0, "0/2000100"),
                backup: "one".into(),
                reason: "oldest-backup",
            }),
            newest: Some(moment(1000, "0/9000000")),
            last_commit: Some(CommitPoint {
                time: Some(at(990)),
                xid: 77,
                lsn: "0/8FFF000".into(),
                end_lsn: "0/8FFF030".into(),
            }),
            backups: vec![
                backup("one", 0, 100, Some("0000 is missing")),
                backup("two", 500, 1000, None),
            ],
            gaps: vec![Gap {
                timeline: 1,
                from: "0/5".into(),
                to: "0/6".into(),
                first_missing: "x".into(),
                segments: 1,
                recorded: false,
                acknowledged: false,
                text: "WAL from <5> to 6".into(),
            }],
            timelines: vec![TimelineBranch {
                timeline: 1,
                parent: None,
                switch_lsn: None,
                reason: "</ul><script>".into(),
                known: true,
                lacks_history: false,
                stored_from: None,
                stored_to: None,
            }],
            lacks_key: false,
            problems: Vec::new(),
        }
    }

    #[test]
    fn text_from_outside_is_escaped_and_nothing_is_loaded() {
        let page = render(&[sample()], &[unseen()], at(2000));
        for raw in ["off<site", "pri<mary", "\"p\"", "<5>", "<script>"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("pri&lt;mary") && page.contains("&lt;/ul&gt;&lt;script&gt;"));
        for loaded in ["http://", "https://", "src=", "href=", "url(h", "@import"] {
            assert!(!page.contains(loaded), "{loaded}");
        }
    }

    fn unseen() -> Unseen {
        Unseen {
            repository: "off<site".into(),
            url: "s3://c".into(),
            problem: "no answer".into(),
            is_damaged: false,
        }
    }

    #[test]
    fn repositories_share_an_axis_and_one_that_was_not_seen_is_told() {
        let mut other = sample();
        other.backups = vec![backup("three", 1000, 2000, None)];
        let page = render(&[sample(), other], &[unseen()], at(2000));
        assert_eq!(page.matches("<h2>").count(), 2);
        assert!(page.contains("off&lt;site (s3://c) was not looked at: no answer"));
        // The first ends in the middle, where the other begins.
        let middle = (AXIS.0 + AXIS.1) / 2.0;
        let bar = format!(
            "class=\"bar\" x=\"{middle:.2}\" y=\"26.0\" width=\"{:.2}\"",
            AXIS.1 - middle
        );
        assert!(page.contains(&bar), "{bar}: {page}");
    }

    #[test]
    fn what_no_backup_covers_is_red() {
        let page = render(&[sample()], &[], at(2000));
        assert_eq!(page.matches("class=\"bar\"").count(), 2);
        assert_eq!(page.matches("class=\"gap\"").count(), 1);
        assert_eq!(page.matches("class=\"edge\"").count(), 1);
        let (width, begin) = (AXIS.1 - AXIS.0, AXIS.0);
        let gap = format!(
            "class=\"gap\" x=\"{:.2}\" y=\"2.0\" width=\"{:.2}\"",
            begin + width * 0.1,
            width * 0.4
        );
        assert!(page.contains(&gap), "{gap}: {page}");
        let covered = [backup("one", 0, 600, None), backup("two", 500, 1000, None)];
        assert_eq!(uncovered(&spans(&covered)), []);
    }
}
