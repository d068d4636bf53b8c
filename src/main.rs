//! Arguments in, exit code out. No decisions.

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Wipes every block of memory when it is freed.
///
/// Keys of our own types wipe themselves; the session keys inside boringtun and ring do not, and neither does a buffer
/// that grows and leaves its old copy behind. This covers all of them. It costs one pass over each freed block: nothing
/// while packets flow, because the data path frees nothing, and a few microseconds when a large buffer goes.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    wgd::run(std::env::args_os())
}
