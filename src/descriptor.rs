//! Owns what the compiler cannot check about file descriptors: taking one over by number, keeping others from a new
//! process, and having the event loop watch one. The only `unsafe` of the daemon, but for the namespaces of `wgd demo`.
#![allow(unsafe_code, reason = "see above; each use says who keeps what it relies on")]

use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;
use tokio::io::unix::AsyncFd;

/// Takes ownership of a descriptor that the parent process passed on, and does not pass it on any further.
///
/// # Errors
/// If no descriptor of that number is open.
///
/// # Safety
/// Nothing else in this process may own the number. A process that calls this before it opens anything, for a number
/// above those of the standard streams, and once per number, can be sure of that.
pub(crate) unsafe fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the caller promises that nothing else owns it; whether it is open at all is checked before it is used.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC) {
        Ok(()) => Ok(fd),
        Err(error) => {
            // Dropping it would close a descriptor that is not there.
            mem::forget(fd);
            Err(error.into())
        }
    }
}

/// Keeps every descriptor above the standard streams from programs started afterwards, but for `passed_on`.
///
/// A daemon outlives whoever typed its start; holding on to the end of a pipe it knows nothing of would make the reader at
/// the other end wait for as long. Kernels before 5.11 cannot do this; then the descriptors are inherited, as ever.
pub(crate) fn pass_on_only(passed_on: &[RawFd]) {
    let mut kept: Vec<u32> = passed_on.iter().filter_map(|&fd| u32::try_from(fd).ok()).collect();
    kept.sort_unstable();
    let mut first = FIRST_INHERITED;
    for fd in kept {
        close_on_exec(first, fd.saturating_sub(1));
        first = first.max(fd.saturating_add(1));
    }
    close_on_exec(first, u32::MAX);
}

/// Marks the descriptors from `first` to `last`, both included.
fn close_on_exec(first: u32, last: u32) {
    if first <= last {
        // SAFETY: with this flag the call closes nothing now; it sets a flag on descriptors of this process, open or not.
        unsafe { libc::close_range(first, last, libc::CLOSE_RANGE_CLOEXEC as i32) };
    }
}

/// The first descriptor that is no standard stream.
const FIRST_INHERITED: u32 = 3;

/// Has the event loop watch `fd`. Must run inside a tokio runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped and always means the same descriptor; `AsyncFd` owns it from here
    // and lends it out only shared, so nobody can replace it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
