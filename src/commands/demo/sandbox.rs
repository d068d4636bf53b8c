//! Owns the walls around the demonstration: a process in namespaces of its own (users, processes, mounts, network), and
//! the network namespaces inside it. Knows nothing of WireGuard; `story.rs` furnishes the place.
//!
//! The guarantee, and who gives it:
//! 1. Everything runs below the first process of a new process namespace. When that process ends, for whatever reason,
//!    the kernel kills and reaps all others before it lets us see the end.
//! 2. Network namespaces, links and TUN devices have no name outside and go with their last process.
//! 3. Files live on a tmpfs that only the new mount namespace sees.
//! 4. The first process is killed by the kernel when the one that started it ends.
//!
//! So there is no clean-up code that could be skipped: to remove everything is to end one process.
#![expect(unsafe_code, reason = "clone, unshare, setns and mount have no safe wrapper among our dependencies")]

use std::ffi::CString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::{env, fs, ptr};

use libc::{c_int, c_void, pid_t};

/// Whose powers the sandbox is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Powers {
    /// Our own: we are root.
    Root,
    /// Those of root in a new user namespace, which end at its walls.
    UserNamespace,
}

impl Powers {
    /// The ways to try, the more ordinary one first.
    pub(super) fn to_try() -> &'static [Powers] {
        // SAFETY: geteuid has no precondition and cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        if is_root { &[Powers::Root, Powers::UserNamespace] } else { &[Powers::UserNamespace] }
    }
}

/// The first process of a sandbox, seen from outside. Dropping it ends the sandbox and everything in it.
pub(super) struct Sandbox {
    pid: pid_t,
    control: UnixStream,
    is_reaped: bool,
}

/// How a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its first process returned this code.
    Code(i32),
    /// Its first process was ended by this signal.
    Signal(i32),
}

impl Sandbox {
    /// Starts this executable again, with `arguments`, as the first process of new namespaces. Its standard input is the
    /// other end of the control socket; see [`enter`].
    ///
    /// Errors say what is missing, in words for the operator.
    pub(super) fn start(powers: Powers, arguments: &[&str]) -> Result<Sandbox, String> {
        // Whatever else goes wrong: no sandbox in a sandbox in a sandbox.
        if env::var_os(MARKER).is_some() {
            return Err(format!("a sandbox: {MARKER} is set, so this process is inside one"));
        }
        let (ours, theirs) = UnixStream::pair().map_err(|error| format!("no socket pair: {error}"))?;
        let child = Child::new(arguments, &theirs, &ours)?;
        let pid = child.clone_into(powers).map_err(|error| explain_clone(powers, &error))?;
        drop(theirs);
        let mut sandbox = Sandbox { pid, control: ours, is_reaped: false };
        if powers == Powers::UserNamespace {
            sandbox.become_root_inside().map_err(|error| format!("the user namespace got no identity: {error}"))?;
        }
        let greeting = [&[GO], GREETING.as_slice()].concat();
        sandbox.control.write_all(&greeting).map_err(|error| format!("the first process is gone: {error}"))?;
        Ok(sandbox)
    }

    /// The control socket: the first process writes to it, and it hangs up when that process ends.
    pub(super) fn control(&self) -> &UnixStream {
        &self.control
    }

    /// Waits for the first process, and so for all others, to be gone.
    pub(super) fn wait(mut self) -> io::Result<Ended> {
        self.reap()
    }

    /// Ends every process in the sandbox and waits until they are gone.
    pub(super) fn kill(mut self) -> io::Result<Ended> {
        self.kill_first_process();
        self.reap()
    }

    fn kill_first_process(&self) {
        // SAFETY: `pid` is our child and not yet reaped, so the number cannot belong to another process.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    fn reap(&mut self) -> io::Result<Ended> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is a valid place for the result.
            if unsafe { libc::waitpid(self.pid, &mut status, 0) } == self.pid {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.is_reaped = true;
        Ok(if libc::WIFSIGNALED(status) {
            Ended::Signal(libc::WTERMSIG(status))
        } else {
            Ended::Code(libc::WEXITSTATUS(status))
        })
    }

    /// Maps our own user and group to root inside: the one mapping an unprivileged process may write.
    fn become_root_inside(&self) -> io::Result<()> {
        // SAFETY: both calls have no precondition and cannot fail.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        let write = |file: &str, text: String| {
            let path = format!("/proc/{}/{file}", self.pid);
            fs::write(&path, text).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
        };
        write("setgroups", "deny".to_owned())?;
        write("gid_map", format!("0 {group} 1"))?;
        write("uid_map", format!("0 {user} 1"))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.kill_first_process();
            let _ = self.reap();
        }
    }
}

/// What the new process needs, made before it exists: after the clone it must not allocate, since another thread of
/// ours may have held the allocator's lock at that moment.
struct Child {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    control: RawFd,
    close: RawFd,
}

impl Child {
    fn new(arguments: &[&str], theirs: &UnixStream, ours: &UnixStream) -> Result<Child, String> {
        let arguments = ["wgd"].iter().chain(arguments).map(|&text| CString::new(text));
        let arguments = arguments.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let mark = CString::new(format!("{MARKER}=1")).map_err(|error| error.to_string())?;
        let variables = env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        let environment = variables.filter_map(|text| CString::new(text).ok()).chain([mark]).collect();
        Ok(Child { arguments, environment, control: theirs.as_raw_fd(), close: ours.as_raw_fd() })
    }

    fn clone_into(&self, powers: Powers) -> io::Result<pid_t> {
        let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::SIGCHLD;
        if powers == Powers::UserNamespace {
            flags |= libc::CLONE_NEWUSER;
        }
        let (arguments, environment) = (ended_by_null(&self.arguments), ended_by_null(&self.environment));
        let mut start = ChildStart {
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            control: self.control,
            close: self.close,
        };
        let mut stack = vec![0u128; CHILD_STACK / size_of::<u128>()];
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        // SAFETY: without CLONE_VM the child gets a copy of our memory, so `stack`, `start` and what it points to stay
        // valid for it whatever we do; the stack is aligned to 16 bytes and grows down from its end.
        let pid = unsafe { libc::clone(first_process, top, flags, ptr::from_mut(&mut start).cast()) };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
    }
}

/// The texts in the form that `execve` takes; they must outlive it.
fn ended_by_null(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Bytes of stack for the few calls before the new process executes.
const CHILD_STACK: usize = 64 * 1024;

struct ChildStart {
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
    control: RawFd,
    close: RawFd,
}

/// Runs in the new process. Makes system calls only; a code above 120 tells which one refused.
extern "C" fn first_process(start: *mut c_void) -> c_int {
    let mut go = 0u8;
    // SAFETY: `start` is the copy of the `ChildStart` that `clone_into` passed; its pointers are into the same copied
    // memory. The buffer of the read is `go`.
    unsafe {
        let start = &*start.cast::<ChildStart>();
        // Without our own copy of the other end, its closing is seen as the end of the stream.
        libc::close(start.close);
        // Ctrl-C at the terminal is for the process that started us; it then ends everything at once.
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // If the parent died before the line above, the stream ends instead of bringing the byte.
        if libc::read(start.control, ptr::from_mut(&mut go).cast(), 1) != 1 || go != GO {
            return 121;
        }
        if libc::dup2(start.control, libc::STDIN_FILENO) < 0 {
            return 122;
        }
        libc::execve(c"/proc/self/exe".as_ptr(), start.arguments, start.environment);
    }
    123
}

fn explain_clone(powers: Powers, error: &io::Error) -> String {
    let what = match powers {
        Powers::Root => "new namespaces (CAP_SYS_ADMIN)",
        Powers::UserNamespace => "a user namespace",
    };
    let why = match (powers, error.raw_os_error()) {
        (Powers::UserNamespace, Some(libc::ENOSPC)) => "user.max_user_namespaces forbids it",
        (Powers::UserNamespace, Some(libc::EPERM)) => {
            "forbidden by the container, or by sysctl kernel.unprivileged_userns_clone"
        }
        (Powers::UserNamespace, Some(libc::EINVAL)) => "this kernel is built without it",
        _ => "not permitted here",
    };
    format!("{what}: {error} ({why})")
}

/// The inside's end of the control socket. To be called by the first process, once, before anything else.
///
/// Refuses unless this process was started by [`Sandbox::start`], so that nobody furnishes the host by accident.
pub(super) fn enter() -> io::Result<UnixStream> {
    let outside = || io::Error::other("not inside a sandbox: start `wgd demo` without this option");
    if std::process::id() != 1 {
        return Err(outside());
    }
    let mut control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    control.set_read_timeout(Some(GREETING_TIMEOUT)).map_err(|_| outside())?;
    let mut greeting = [0; GREETING.len()];
    control.read_exact(&mut greeting).map_err(|_| outside())?;
    if greeting != *GREETING {
        return Err(outside());
    }
    die_with_parent(&control)?;
    Ok(control)
}

/// Ties the first process to the life of the one that started it, once more: executing a file that has capabilities of
/// its own has cleared what was set before.
fn die_with_parent(mut control: &UnixStream) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    control.set_nonblocking(true)?;
    let is_parent_gone = matches!(control.read(&mut [0]), Ok(0));
    control.set_nonblocking(false)?;
    if is_parent_gone { Err(io::Error::other("the process that started the sandbox is gone")) } else { Ok(()) }
}

/// Set for every process of ours in a sandbox.
pub(super) const MARKER: &str = "WGD_IN_SANDBOX";

/// What the first process waits for before it is executed: by then it is root inside.
const GO: u8 = b'g';

/// What the first process expects on its standard input once it runs.
const GREETING: &[u8; 8] = b"inside!\n";

/// The greeting is written before the first process can look for it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
