//! Owns how the demonstration looks: aligned lines, ticks, colour, progress. Decides nothing.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Why a claim could not be shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What was expected and what was seen instead, in one line.
    pub(super) what: String,
    /// Lines that help to find the reason.
    pub(super) evidence: Vec<String>,
}

impl Failure {
    /// A failure without evidence beyond its own line.
    pub(super) fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), evidence: Vec::new() }
    }

    /// What we were doing when the host refused.
    pub(super) fn during(doing: &str, error: &io::Error) -> Failure {
        Failure::new(format!("{doing}: {error}"))
    }
}

impl From<String> for Failure {
    fn from(what: String) -> Failure {
        Failure::new(what)
    }
}

/// The story stops here; the report has said why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stopped;

/// Writes the report, line by line as things happen.
pub(super) struct Report {
    look: Look,
}

#[derive(Clone, Copy)]
struct Look {
    colour: bool,
    progress: bool,
    tick: &'static str,
    cross: &'static str,
}

impl Report {
    /// A report for standard output: colour and progress only on a terminal, ticks only where they can be shown.
    pub(super) fn new(colour: Colour) -> Report {
        let terminal = io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb");
        let wanted = colour == Colour::Automatic && env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
        let (tick, cross) = if speaks_utf8() { ("\u{2713}", "\u{2717}") } else { ("ok", "FAILED") };
        Report { look: Look { colour: terminal && wanted, progress: terminal, tick, cross } }
    }

    /// A heading after an empty line.
    pub(super) fn heading(&self, text: &str) {
        self.look.line(&format!("\n{}", self.look.painted(BOLD, text)));
    }

    /// A line as it is.
    pub(super) fn line(&self, text: &str) {
        self.look.line(text);
    }

    /// Shows that `claim` holds by doing `work`, and the value it measured. Says what is being done while it is done.
    pub(super) fn step<T>(&self, claim: &str, work: impl FnOnce() -> Result<Shown<T>, Failure>) -> Result<T, Stopped> {
        self.look.begin(claim);
        match work() {
            Ok(shown) => {
                let tick = self.look.painted(GREEN, self.look.tick);
                self.look.finish(&row(&tick, self.look.tick, claim, &shown.value));
                Ok(shown.result)
            }
            Err(failure) => {
                let cross = self.look.painted(RED, self.look.cross);
                self.look.finish(&row(&cross, self.look.cross, claim, ""));
                self.explain(&failure);
                Err(Stopped)
            }
        }
    }

    fn explain(&self, failure: &Failure) {
        self.look.line(&format!("      {}", self.look.painted(RED, &failure.what)));
        for line in &failure.evidence {
            self.look.line(&format!("      | {line}"));
        }
    }
}

/// Whether the person asked for plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    /// On a terminal, unless `NO_COLOR` is set.
    Automatic,
    /// Never.
    Off,
}

/// What a step found: the value for the report, and the result for the steps that follow.
pub(super) struct Shown<T> {
    value: String,
    result: T,
}

/// A step's value when nothing needs its result.
pub(super) fn shown(value: impl Into<String>) -> Shown<()> {
    Shown { value: value.into(), result: () }
}

/// A step's value and its result.
pub(super) fn shown_with<T>(value: impl Into<String>, result: T) -> Shown<T> {
    Shown { value: value.into(), result }
}

impl Look {
    fn painted(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn begin(&self, claim: &str) {
        if self.progress {
            write_out(&format!("  .. {claim} ..."));
        }
    }

    fn finish(&self, line: &str) {
        let erase = if self.progress { "\r\x1b[2K" } else { "" };
        write_out(&format!("{erase}{line}\n"));
    }

    fn line(&self, text: &str) {
        write_out(&format!("{text}\n"));
    }
}

fn row(mark: &str, plain_mark: &str, claim: &str, value: &str) -> String {
    let gap = MARK_WIDTH.saturating_sub(plain_mark.chars().count()).max(1);
    let text = format!("  {mark}{:gap$}{claim:<CLAIM_WIDTH$} {value}", "");
    text.trim_end().to_owned()
}

/// A reader who has left must not end the story before its claims are judged, so errors are not looked at.
fn write_out(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn speaks_utf8() -> bool {
    let first =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(|name| env::var(name).ok()).find(|text| !text.is_empty());
    first.is_some_and(|text| {
        let text = text.to_ascii_lowercase();
        text.contains("utf-8") || text.contains("utf8")
    })
}

/// A time as people compare it: in milliseconds.
pub(super) fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

/// A rate in units of a thousand, as links are sold.
pub(super) fn bit_rate(bytes: u64, time: Duration) -> String {
    let bits = bytes as f64 * 8.0 / time.as_secs_f64().max(f64::MIN_POSITIVE);
    let (value, unit) = scaled(bits, 1000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]);
    format!("{value:.2} {unit}")
}

/// An amount of data in the units of `wg show`.
pub(super) fn amount(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (value, unit) = scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB"]);
    format!("{value:.2} {unit}")
}

fn scaled<'a>(mut value: f64, step: f64, units: &[&'a str]) -> (f64, &'a str) {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    (value, units[unit])
}

const BOLD: &str = "1";
const GREEN: &str = "32";
const RED: &str = "31";
const MARK_WIDTH: usize = 3;
const CLAIM_WIDTH: usize = 58;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_whatever_the_mark_and_its_colour() {
        let plain = row("ok", "ok", "claim", "1 ms");
        let painted = row("\x1b[32m\u{2713}\x1b[0m", "\u{2713}", "claim", "1 ms");
        assert_eq!(plain.chars().count(), painted.replace("\x1b[32m", "").replace("\x1b[0m", "").chars().count());
        assert!(plain.ends_with(" 1 ms"));
        assert_eq!(row("ok", "ok", "claim", ""), "  ok claim");
        assert_eq!(row("FAILED", "FAILED", "claim", ""), "  FAILED claim");
    }

    #[test]
    fn units_grow_with_the_value() {
        assert_eq!(bit_rate(750_000_000, Duration::from_secs(1)), "6.00 Gbit/s");
        assert_eq!(bit_rate(125, Duration::from_secs(1)), "1.00 kbit/s");
        assert_eq!(amount(1023), "1023 B");
        assert_eq!(amount(3 * 1024 * 1024 / 2), "1.50 MiB");
        assert_eq!(milliseconds(Duration::from_micros(82)), "0.082 ms");
    }

    #[test]
    fn a_claim_that_is_not_shown_stops_the_story() {
        let report = Report::new(Colour::Off);
        assert_eq!(report.step("holds", || Ok(shown_with("", 7))), Ok(7));
        assert_eq!(report.step("does not", || Err::<Shown<()>, _>(Failure::new("because"))), Err(Stopped));
    }
}
