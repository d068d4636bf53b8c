//! Owns the lines of the log between the threads that make them and the one thread that writes them. A destination that
//! takes nothing (a full pipe, a terminal stopped with Ctrl-S, a hung journal) holds up only that thread: the others
//! leave a line in a bounded queue, or count it as lost, and go on.
//!
//! How many were lost is said as soon as the destination takes lines again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines that wait to be written.
pub(crate) struct LogQueue {
    bound_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    len_bytes: usize,
    /// Whether a line was taken out and is not known to be written yet.
    is_writing: bool,
    lost: u64,
}

impl LogQueue {
    /// A queue for that many bytes of lines.
    pub(crate) fn new(bound_bytes: usize) -> Self {
        LogQueue { bound_bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Leaves a line to be written, or counts it as lost; never waits for the destination.
    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.len_bytes + line.len() > self.bound_bytes {
            state.lost += 1;
            return;
        }
        state.len_bytes += line.len();
        state.lines.push_back(line.to_vec());
        drop(state);
        self.changed.notify_all();
    }

    /// Writes lines for ever, for a thread that does nothing else.
    pub(crate) fn write_all_to(&self, mut destination: impl Write) -> ! {
        loop {
            self.write_next_to(&mut destination);
        }
    }

    /// Waits for a line and writes it. If that went well, says how many were lost before.
    fn write_next_to(&self, destination: &mut impl Write) {
        let outcome = destination.write_all(&self.take());
        let lost = match outcome {
            Ok(()) => mem::take(&mut self.lock().lost),
            // To say so now would fail as well.
            Err(_) => {
                self.lock().lost += 1;
                0
            }
        };
        if lost > 0 {
            // Becomes a line in this queue, in the format of all others.
            tracing::error!(lost, "lines are missing from this log: they came faster than they could be written");
        }
        // Only now: whoever waits for the end shall wait for the line above too.
        self.lock().is_writing = false;
        self.changed.notify_all();
    }

    fn take(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.len_bytes -= line.len();
                state.is_writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until every line is written, but no longer than `limit`.
    pub(crate) fn wait_until_empty(&self, limit: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.lines.is_empty();
        // Whether it was in time changes nothing: the caller goes on.
        drop(self.changed.wait_timeout_while(self.lock(), limit, is_busy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way; a poisoned lock is as good as a clean one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each write is one whole line, as tracing's layer makes them.
impl Write for &LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;
    use tracing_subscriber::fmt;

    /// A destination that fails, or keeps what it gets.
    #[derive(Default)]
    struct Destination {
        is_broken: bool,
        written: Vec<u8>,
    }

    impl Write for Destination {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.is_broken {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Writes `count` lines, with the queue as the log of this thread.
    fn write(queue: &Arc<LogQueue>, count: usize, destination: &mut Destination) -> String {
        let log = fmt().with_writer(Arc::clone(queue)).with_ansi(false).without_time().with_target(false).finish();
        tracing::subscriber::with_default(log, || {
            for _ in 0..count {
                queue.write_next_to(destination);
            }
        });
        String::from_utf8(mem::take(&mut destination.written)).expect("text")
    }

    #[test]
    fn lines_over_the_bound_are_lost_and_counted_and_the_count_is_said_once() {
        let queue = Arc::new(LogQueue::new(200));
        let line = [b'x'; 99];
        for _ in 0..5 {
            queue.push(&line);
        }
        assert_eq!(queue.lock().lines.len(), 2);
        let mut destination = Destination::default();
        let text = write(&queue, 3, &mut destination);
        assert_eq!(text.matches("lost=3").count(), 1, "{text}");
        queue.push(b"later\n");
        assert_eq!(write(&queue, 1, &mut destination), "later\n");
        assert_eq!(queue.lock().len_bytes, 0);
    }

    #[test]
    fn a_destination_that_fails_loses_lines_and_is_told_how_many_once_it_works() {
        let queue = Arc::new(LogQueue::new(200));
        let mut destination = Destination { is_broken: true, ..Destination::default() };
        queue.push(b"one\n");
        queue.push(b"two\n");
        write(&queue, 2, &mut destination);
        assert!(queue.lock().lines.is_empty(), "no complaint about a complaint");
        destination.is_broken = false;
        queue.push(b"three\n");
        let text = write(&queue, 2, &mut destination);
        assert!(text.starts_with("three\n") && text.contains("lost=2"), "{text}");
    }

    #[test]
    fn waiting_for_the_end_waits_for_the_line_that_is_being_written_and_gives_up_in_time() {
        let queue = LogQueue::new(200);
        queue.push(b"first\n");
        queue.push(b"second\n");
        queue.wait_until_empty(Duration::ZERO);
        let mut destination = Destination::default();
        queue.write_next_to(&mut destination);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.wait_until_empty(Duration::MAX));
            queue.take();
            assert!(queue.lock().is_writing && !waiting.is_finished());
            queue.push(b"third\n");
            queue.write_next_to(&mut destination);
        });
        assert_eq!(destination.written, b"first\nthird\n");
    }
}
