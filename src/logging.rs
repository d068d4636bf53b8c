//! Owns what becomes of log events: level, text or JSON, and a limit on repetition. Decides nothing about their content,
//! except that boringtun's own messages stay out: it reports every expired session as an error, and what matters in
//! them is reported by `wg-core` with a counter.
//!
//! Any message may be repeated 50 times within 10 seconds; what is over the limit is dropped, and the first
//! message of the same kind that is written afterwards carries how many were (`suppressed`). Messages are of one kind if
//! the same line of code makes them. So no sender of packets fills a disk, at any level.
//!
//! Lines go through `log_queue.rs`, so that a destination that takes none holds up nothing but the log. From [`start`] on
//! they are collected; [`begin_to_write`] starts the thread that writes them; [`flush`] gives it time for the last ones.
//!
//! Keys never reach this file: their `Debug` output hides them, and no one logs their text.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, Layer};
use tracing_subscriber::layer::{Layer as _, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::log_queue::LogQueue;

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// Where lines go.
#[derive(Debug)]
pub enum LogDestination {
    /// Standard error.
    Stderr,
    /// A file, which only grows.
    File(File),
}

/// Opens a log file for appending; a new one is for the owner alone.
pub fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Begins to log events of `level` and above. Once per process; later calls change nothing.
///
/// Nothing is written before [`begin_to_write`]: privileges can only be dropped while there is no second thread.
pub fn start(level: LevelFilter, format: LogFormat, destination: LogDestination) {
    let writer = Arc::new(LogQueue::new(QUEUE_LEN));
    let log = Log { queue: Arc::clone(&writer), destination: Mutex::new(Some(destination)) };
    if LOG.set(log).is_err() {
        return;
    }
    // Internal errors would be printed to standard error with a panic if that fails, as it does when its reader is gone.
    let layer = Layer::new().with_ansi(false).with_writer(writer).log_internal_errors(false);
    let filter = filter(level);
    let registry = tracing_subscriber::registry();
    let outcome = match format {
        LogFormat::Text => {
            let layer = layer.event_format(Limited::new(format::format().with_ansi(false), format)).with_filter(filter);
            tracing::subscriber::set_global_default(registry.with(layer))
        }
        LogFormat::Json => {
            let layer = layer.json();
            let layer = layer.event_format(Limited::new(format::format().json(), format)).with_filter(filter);
            tracing::subscriber::set_global_default(registry.with(layer))
        }
    };
    // Only a test that has a log of its own in place gets here; that one is as good.
    drop(outcome);
    // The usual report of a panic waits for standard error.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let asked_for = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace));
        tracing::error!(backtrace = asked_for, "{panic}");
    }));
}

/// Starts the thread that writes what is logged; a second call does nothing.
pub fn begin_to_write() -> io::Result<()> {
    let Some(log) = LOG.get() else { return Ok(()) };
    let destination = log.destination.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(destination) = destination else { return Ok(()) };
    let queue = Arc::clone(&log.queue);
    let write = move || match destination {
        LogDestination::Stderr => queue.write_all_to(io::stderr()),
        LogDestination::File(file) => queue.write_all_to(file),
    };
    thread::Builder::new().name("wgd-log".to_owned()).spawn(write).map(drop)
}

/// Waits until everything logged so far is written, but only for a moment: the destination may take nothing any more.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.queue.wait_until_empty(PATIENCE);
    }
}

/// Prints a complaint to standard error after everything that was logged, as far as it takes that within a moment.
pub fn complain(text: &str) {
    flush();
    let line = format!("wgd: {text}");
    let (done, waiting) = mpsc::channel();
    let print = move || {
        // There is nobody left to tell if this fails.
        let _ = writeln!(io::stderr(), "{line}");
        let _ = done.send(());
    };
    if thread::Builder::new().spawn(print).is_ok() {
        let _ = waiting.recv_timeout(PATIENCE);
    }
}

/// The log of this process.
struct Log {
    queue: Arc<LogQueue>,
    /// Until the thread that writes has it.
    destination: Mutex<Option<LogDestination>>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// What of all events is heard at `level`.
fn filter(level: LevelFilter) -> Targets {
    let boringtun = if level == LevelFilter::TRACE { LevelFilter::WARN } else { LevelFilter::OFF };
    Targets::new().with_default(level).with_target("boringtun", boringtun)
}

/// A format that leaves out repetitions.
struct Limited<F> {
    inner: F,
    format: LogFormat,
    limiter: Limiter,
}

impl<F> Limited<F> {
    fn new(inner: F, format: LogFormat) -> Self {
        Limited { inner, format, limiter: Limiter::default() }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        match self.limiter.admit(event.metadata().callsite(), Instant::now()) {
            Verdict::Suppress => Ok(()),
            Verdict::Admit { suppressed: 0 } => self.inner.format_event(context, out, event),
            Verdict::Admit { suppressed } => {
                let mut line = String::new();
                self.inner.format_event(context, Writer::new(&mut line), event)?;
                write_with_count(&mut out, &line, suppressed, self.format)
            }
        }
    }
}

/// Writes a finished line with the number of lines left out before it.
fn write_with_count(out: &mut Writer<'_>, line: &str, suppressed: u64, format: LogFormat) -> fmt::Result {
    let line = line.trim_end_matches('\n');
    match (format, line.strip_suffix('}')) {
        (LogFormat::Json, Some(open)) => writeln!(out, "{open},\"suppressed\":{suppressed}}}"),
        (LogFormat::Json, None) | (LogFormat::Text, _) => writeln!(out, "{line} suppressed={suppressed}"),
    }
}

/// Counts messages by the line of code that makes them, of which there are finitely many.
#[derive(Default)]
struct Limiter {
    windows: Mutex<HashMap<Identifier, Window>>,
}

struct Window {
    began: Instant,
    admitted: u32,
    suppressed: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Admit { suppressed: u64 },
    Suppress,
}

impl Limiter {
    fn admit(&self, callsite: Identifier, now: Instant) -> Verdict {
        // Nothing in here can panic half-way; a poisoned lock is as good as a clean one.
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = match windows.entry(callsite) {
            Entry::Vacant(entry) => {
                entry.insert(Window { began: now, admitted: 1, suppressed: 0 });
                return Verdict::Admit { suppressed: 0 };
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        if now.saturating_duration_since(window.began) >= WINDOW {
            let suppressed = window.suppressed;
            *window = Window { began: now, admitted: 1, suppressed: 0 };
            return Verdict::Admit { suppressed };
        }
        if window.admitted < BURST {
            window.admitted += 1;
            return Verdict::Admit { suppressed: 0 };
        }
        window.suppressed += 1;
        Verdict::Suppress
    }
}

/// Bytes of lines that may wait to be written: more than a thousand, which is more than a burst of every message there is.
const QUEUE_LEN: usize = 256 * 1024;

/// How long an end waits for the last lines. A pipe or a file takes them in a thousandth of that.
const PATIENCE: Duration = Duration::from_millis(200);

/// How often one message may be repeated within [`WINDOW`]: enough to see what a start or a reload does to many peers.
const BURST: u32 = 50;

/// Length of the window in which repetitions are counted.
const WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::MutexGuard;

    #[test]
    fn repetitions_within_the_window_are_dropped_and_counted_and_the_next_window_tells() {
        let limiter = Limiter::default();
        let here = tracing::callsite::Identifier(&CALLSITE);
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(limiter.admit(here.clone(), start), Verdict::Admit { suppressed: 0 });
        }
        for _ in 0..7 {
            assert_eq!(limiter.admit(here.clone(), start + WINDOW / 2), Verdict::Suppress);
        }
        assert_eq!(limiter.admit(here.clone(), start + WINDOW), Verdict::Admit { suppressed: 7 });
        assert_eq!(limiter.admit(here, start + WINDOW), Verdict::Admit { suppressed: 0 });
    }

    #[test]
    fn a_line_that_tells_of_suppression_stays_one_line_and_valid_json() {
        let mut text = String::new();
        write_with_count(&mut Writer::new(&mut text), "WARN x\n", 3, LogFormat::Text).expect("a string");
        assert_eq!(text, "WARN x suppressed=3\n");
        let mut json = String::new();
        write_with_count(&mut Writer::new(&mut json), "{\"a\":{}}\n", 3, LogFormat::Json).expect("a string");
        let parsed: serde_json::Value = serde_json::from_str(&json).expect("json");
        assert_eq!(parsed["suppressed"], 3);
    }

    #[test]
    fn boringtun_is_not_heard_and_one_line_of_code_cannot_flood() {
        let written = Written::default();
        let layer = Layer::new().with_writer(written.clone()).log_internal_errors(false).json();
        let layer = layer.event_format(Limited::new(format::format().json(), LogFormat::Json));
        let layer = layer.with_filter(filter(LevelFilter::DEBUG));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::error!(target: "boringtun::noise::timers", "CONNECTION_EXPIRED");
            for number in 0..BURST + 100 {
                tracing::warn!(number, "the same again");
            }
        });
        let text = String::from_utf8(written.text().clone()).expect("utf-8");
        assert!(!text.contains("CONNECTION_EXPIRED"), "{text}");
        assert_eq!(text.lines().count() as u32, BURST);
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        fn text(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().expect("not poisoned")
        }
    }

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.text().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Written {
        type Writer = Written;
        fn make_writer(&'a self) -> Written {
            self.clone()
        }
    }

    struct NoCallsite;

    impl tracing::Callsite for NoCallsite {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("only its address is used")
        }
    }

    static CALLSITE: NoCallsite = NoCallsite;
}
