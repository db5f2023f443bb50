//! Progress of long commands, on stderr: a bar with rate and remaining time on a terminal, a line every few seconds elsewhere,
//! nothing with `-q` or `--json`. The log writes through the same screen, so that its lines and a bar do not mix.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::GlobalArgs;
use crate::units::{ByteSize, human_duration};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// stderr, shared by progress and log. Clones are the same screen.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    bars: MultiProgress,
    style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
    Silent,
}

impl Screen {
    /// As the flags say, and as stderr is.
    pub(crate) fn new(args: &GlobalArgs) -> Self {
        let style = match () {
            () if args.quiet || args.json => Style::Silent,
            () if std::io::stderr().is_terminal() => Style::Bar,
            () => Style::Lines,
        };
        let target = if style == Style::Bar {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            style,
        }
    }

    /// Writes whole lines above the bar.
    ///
    /// # Errors
    /// stderr cannot be written.
    pub(crate) fn write(&self, text: &[u8]) -> std::io::Result<()> {
        self.bars
            .suspend(|| std::io::stderr().lock().write_all(text))
    }

    /// Writes a line about what is going on, where progress is shown at all.
    pub(crate) fn say(&self, text: &str) {
        if self.style != Style::Silent {
            // As progress, a courtesy: a closed stderr must not end the work.
            drop(self.write(format!("{text}\n").as_bytes()));
        }
    }

    /// Begins to show progress of `label`, in bytes; `total` may be unknown or an estimate.
    pub(crate) fn progress(&self, label: &str, total: Option<u64>) -> Progress {
        let bar = (self.style == Style::Bar).then(|| {
            let bar = match total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::no_length(),
            };
            let template = match total {
                Some(_) => "{prefix} [{bar:30}] {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
                None => "{prefix} {spinner} {bytes} {bytes_per_sec} {elapsed}",
            };
            let style = ProgressStyle::with_template(template).expect("a template of our own");
            let bar = self.bars.add(bar.with_style(style).with_prefix(label.to_owned()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let started = Instant::now();
        Progress {
            screen: self.clone(),
            label: label.to_owned(),
            total,
            done: AtomicU64::new(0),
            started,
            next_line_millis: AtomicU64::new(millis(LINE_INTERVAL)),
            bar,
        }
    }
}

/// Progress of one thing; may be advanced from any thread.
#[derive(Debug)]
pub(crate) struct Progress {
    screen: Screen,
    label: String,
    total: Option<u64>,
    done: AtomicU64,
    started: Instant,
    /// When the next line is due, since `started`.
    next_line_millis: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// So many bytes more are done.
    pub(crate) fn advance(&self, bytes: u64) {
        let done = self
            .done
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.screen.style == Style::Lines {
            let elapsed = self.started.elapsed();
            let due = self.next_line_millis.load(Ordering::Relaxed);
            let next = millis(elapsed).saturating_add(millis(LINE_INTERVAL));
            let ours = millis(elapsed) >= due
                && self
                    .next_line_millis
                    .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if ours {
                self.write_line(&line(&self.label, done, self.total, elapsed));
            }
        }
    }

    /// All is done: the bar goes, and a line says how much and how fast.
    pub(crate) fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.screen.style != Style::Silent {
            let done = self.done.load(Ordering::Relaxed);
            self.write_line(&summary(&self.label, done, self.started.elapsed()));
        }
    }

    fn write_line(&self, text: &str) {
        // Progress is a courtesy: a closed stderr must not end the work.
        drop(self.screen.write(format!("{text}\n").as_bytes()));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes a second, or none before there is anything to divide.
fn rate(done: u64, elapsed: Duration) -> Option<u64> {
    let seconds = elapsed.as_secs_f64();
    (seconds >= 0.001).then(|| (done as f64 / seconds) as u64)
}

fn line(label: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let mut text = format!("{label}: {}", ByteSize::new(done));
    // An estimate that was too low says nothing more.
    let total = total.filter(|total| *total >= done && *total > 0);
    if let Some(total) = total {
        let percent = u128::from(done) * 100 / u128::from(total);
        text.push_str(&format!(" of {} ({percent}%)", ByteSize::new(total)));
    }
    if let Some(rate) = rate(done, elapsed).filter(|rate| *rate > 0) {
        text.push_str(&format!(", {}/s", ByteSize::new(rate)));
        if let Some(total) = total {
            text.push_str(&format!(
                ", {} left",
                human_duration(Duration::from_secs((total - done) / rate))
            ));
        }
    }
    text
}

fn summary(label: &str, done: u64, elapsed: Duration) -> String {
    let rate = rate(done, elapsed)
        .filter(|rate| *rate > 0)
        .map(|rate| format!(", {}/s", ByteSize::new(rate)))
        .unwrap_or_default();
    format!(
        "{label}: {} in {}{rate}",
        ByteSize::new(done),
        human_duration(elapsed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_share_rate_and_remaining_time() {
        let ten = Duration::from_secs(10);
        assert_eq!(
            line("backup", 100 << 20, Some(400 << 20), ten),
            "backup: 100.0 MiB of 400.0 MiB (25%), 10.0 MiB/s, 30.0s left"
        );
        assert_eq!(
            line("backup", 100 << 20, None, ten),
            "backup: 100.0 MiB, 10.0 MiB/s"
        );
        assert_eq!(
            line("backup", 0, Some(1), Duration::ZERO),
            "backup: 0 B of 1 B (0%)"
        );
        assert_eq!(
            line("backup", 2 << 20, Some(1), ten),
            "backup: 2.0 MiB, 204.8 KiB/s"
        );
        assert_eq!(
            summary("backup", 1 << 30, ten),
            "backup: 1.0 GiB in 10.0s, 102.4 MiB/s"
        );
        assert_eq!(summary("verify", 0, ten), "verify: 0 B in 10.0s");
        assert_eq!(
            line("x", u64::MAX, Some(u64::MAX), ten),
            "x: 16.0 EiB of 16.0 EiB (100%), 1.6 EiB/s, 0ms left"
        );
    }

    #[test]
    fn quiet_and_json_show_nothing() {
        for args in [
            GlobalArgs {
                quiet: true,
                ..Default::default()
            },
            GlobalArgs {
                json: true,
                ..Default::default()
            },
        ] {
            let screen = Screen::new(&args);
            assert_eq!(screen.style, Style::Silent);
            let progress = screen.progress("x", Some(1));
            progress.advance(1);
            progress.finish();
        }
    }
}
