//! Proxies that break things on purpose: one before an object store, which knows requests, and one before a PostgreSQL server, which
//! knows connections. Owns the list of faults, when each happens and the count of those that did: a test whose fault did not
//! happen has tested nothing, and fails. Does not own what must hold afterwards.

mod http;
mod listing;
pub(crate) mod server;
pub(crate) mod store;

use super::process::{self, wait_gone};
use super::workload::Random;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest time for which anything is held: no test waits longer.
const LONGEST_HOLD: Duration = Duration::from_secs(15 * 60);

/// What goes wrong. What is said of requests happens to the bytes of a connection where there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Everything waits for so long.
    Delay(Duration),
    /// It is taken and never answered; the connection stays open. Of a connection to a server: neither side hears of the other any more, not
    /// even of its end.
    Stall,
    /// Half of the answer, then silence. Of a connection to a server: what the client says still arrives.
    StallInAnswer,
    /// The connection is reset before anything is done.
    Reset,
    /// Our sending side ends without an answer; the receiving one stays open.
    HalfClose,
    /// This HTTP status instead of doing anything.
    Status(u16),
    /// The store does it, and then an answer says that it failed.
    FailedAfter,
    /// The store does it, the answer is never seen: the connection is reset.
    ReplyLost,
    /// The answer comes in pieces of so many bytes, each after a pause, 100 of them; then the rest.
    Drip(usize, Duration),
    /// No more than so many bytes a second, both ways.
    Bandwidth(u32),
    /// The answer announces more bytes than come.
    LengthTooLong,
    /// The answer announces fewer bytes than come.
    LengthTooShort,
    /// The answer ends in its middle.
    TruncatedAnswer,
    /// The store gets half of what was sent, and the connection to it ends.
    TruncatedRequest,
    /// A bit of the answer's body is another one.
    FlippedBit,
    /// Of a listing: as it was at that moment, without what was written since.
    ListedAsOf(Instant),
    /// Of a listing: without one object whose key holds this, chosen by the proxy's random numbers.
    Unlisted(&'static str),
    /// The process that asks is killed when its request arrives: nothing is done.
    KillBefore,
    /// The store does it; the process is killed before the answer is sent on.
    KillAfter,
}

impl Fault {
    /// What counts are kept by.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Delay(_) => "delay".to_owned(),
            Self::Drip(..) => "drip".to_owned(),
            Self::Bandwidth(_) => "bandwidth".to_owned(),
            Self::Status(code) => code.to_string(),
            Self::ListedAsOf(_) => "listed as of".to_owned(),
            Self::Unlisted(_) => "unlisted".to_owned(),
            other => {
                let mut name = String::new();
                for letter in format!("{other:?}").chars() {
                    if letter.is_uppercase() && !name.is_empty() {
                        name.push(' ');
                    }
                    name.push(letter.to_ascii_lowercase());
                }
                name
            }
        }
    }
}

/// When a [`Rule`] applies to what it matches.
#[derive(Debug, Clone, Copy)]
enum When {
    /// To all from this one on, counted from 0.
    From(u32),
    /// To so many of a hundred, chosen by the proxy's random numbers.
    Percent(u64),
}

/// A fault and what it happens to.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    fault: Fault,
    method: &'static str,
    part: &'static str,
    when: When,
    left: u32,
    seen: u32,
    fired: u32,
}

impl Rule {
    /// To the next request, whatever it is.
    pub(crate) fn next(fault: Fault) -> Self {
        Self {
            fault,
            method: "",
            part: "",
            when: When::From(0),
            left: 1,
            seen: 0,
            fired: 0,
        }
    }

    /// Only to requests of this method whose target holds `part`; either may be empty.
    pub(crate) fn on(mut self, method: &'static str, part: &'static str) -> Self {
        (self.method, self.part) = (method, part);
        self
    }

    /// Not before the `count`-th that matches, counted from 0.
    pub(crate) fn after(mut self, count: u32) -> Self {
        self.when = When::From(count);
        self
    }

    /// To so many of a hundred.
    pub(crate) fn percent(mut self, percent: u64) -> Self {
        self.when = When::Percent(percent);
        self.left = u32::MAX;
        self
    }

    /// At most so often.
    pub(crate) fn times(mut self, times: u32) -> Self {
        self.left = times;
        self
    }
}

/// The rules of a proxy and what has come of them.
#[derive(Debug)]
struct Rules {
    rules: Vec<Rule>,
    random: Random,
    /// Also of rules that are gone.
    fired: BTreeMap<String, u32>,
    /// What chance has let arrive damaged: not again the next time. What arrives damaged twice is damaged, for all that anybody can tell.
    damaged: BTreeSet<String>,
}

impl Rules {
    fn new(seed: u64) -> Self {
        Self {
            rules: Vec::new(),
            random: Random::new(seed),
            fired: BTreeMap::new(),
            damaged: BTreeSet::new(),
        }
    }

    /// The fault of the first rule that applies.
    fn decide(&mut self, method: &str, target: &str) -> Option<Fault> {
        for rule in &mut self.rules {
            let matches =
                (rule.method.is_empty() || rule.method == method) && target.contains(rule.part);
            if !matches || rule.left == 0 {
                continue;
            }
            let seen = rule.seen;
            rule.seen += 1;
            let applies = match rule.when {
                When::From(count) => seen >= count,
                When::Percent(percent) => self.random.below(100) < percent,
            };
            let by_chance = matches!(rule.when, When::Percent(_));
            let damages = matches!(rule.fault, Fault::LengthTooShort | Fault::FlippedBit);
            if applies && by_chance && damages && !self.damaged.insert(target.to_owned()) {
                self.damaged.remove(target);
                continue;
            }
            if applies {
                rule.left -= 1;
                rule.fired += 1;
                *self.fired.entry(rule.fault.name()).or_default() += 1;
                return Some(rule.fault);
            }
        }
        None
    }

    /// Rules that chance governs may end without a case.
    fn unfired(&self) -> Vec<String> {
        let certain = |rule: &&Rule| matches!(rule.when, When::From(_));
        let unfired = self
            .rules
            .iter()
            .filter(certain)
            .filter(|rule| rule.fired == 0);
        unfired.map(|rule| format!("{rule:?}")).collect()
    }
}

/// The process that a kill meets, once the test has told who it is.
#[derive(Debug, Default)]
struct Victim(AtomicU32);

impl Victim {
    fn kill(&self, closed: &AtomicBool) {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until && !closed.load(Ordering::Relaxed) {
            let id = self.0.swap(0, Ordering::SeqCst);
            if id != 0 {
                process::send(id, Signal::KILL);
                wait_gone(&[id]);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Closes a connection so that the other side sees a reset.
fn reset(stream: TcpStream) {
    // If it is gone already, so much the better.
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap_or_default();
    drop(stream);
}

/// Waits until the other side closes the connection (what it sends meanwhile is thrown away) and says how long that took.
fn hold(stream: &mut TcpStream, closed: &AtomicBool) -> Duration {
    let begun = Instant::now();
    let mut rest = [0; 4096];
    // On a socket that is closed already this fails, and so does the read below.
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap_or_default();
    while begun.elapsed() < LONGEST_HOLD && !closed.load(Ordering::Relaxed) {
        match stream.read(&mut rest) {
            Ok(1..) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Ok(0) | Err(_) => break,
        }
    }
    begun.elapsed()
}

/// Sleeps in small steps, no longer than the proxy lives.
fn pause(time: Duration, closed: &AtomicBool) {
    let until = Instant::now() + time;
    while !closed.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Ends our sending side. That the other side is gone is no error.
fn close_sending(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_applies_when_it_says() {
        let mut rules = Rules::new(1);
        rules.rules.push(
            Rule::next(Fault::Reset)
                .on("PUT", "/tail/")
                .after(1)
                .times(2),
        );
        rules.rules.push(Rule::next(Fault::Status(503)).percent(50));
        assert_eq!(rules.unfired().len(), 1);
        let mut fates = Vec::new();
        for (method, target) in [
            ("PUT", "/a/tail/1"),
            ("GET", "/a/tail/1"),
            ("PUT", "/a/tail/2"),
            ("PUT", "/a/wal/2"),
            ("PUT", "/a/tail/3"),
            ("PUT", "/a/tail/4"),
        ] {
            fates.push(rules.decide(method, target));
        }
        let reset = Some(Fault::Reset);
        assert_eq!((fates[2], fates[4]), (reset, reset), "{fates:?}");
        assert!(fates[0] != reset && fates[5] != reset, "{fates:?}");
        fates.extend((0..100).map(|_| rules.decide("GET", "/")));
        let stormy = rules.fired["503"];
        assert!((30..75).contains(&stormy), "{stormy}");
        assert_eq!(rules.fired["reset"], 2);
        assert!(rules.unfired().is_empty());
        assert_eq!(Fault::StallInAnswer.name(), "stall in answer");
    }
}
