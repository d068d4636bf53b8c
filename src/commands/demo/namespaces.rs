//! Owns what the first process of the sandbox does to its surroundings: private mounts, network namespaces, and `ip`.
//! Everything here works on the namespaces of `sandbox.rs` only, and is never undone: they vanish as a whole.
#![expect(unsafe_code, reason = "clone, unshare, setns and mount have no safe wrapper among our dependencies")]

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io, ptr, thread};

/// Hides the machine's `/run` behind an empty one, so that the control sockets of the demonstration meet no other.
///
/// Errors say what is missing, in words for the operator.
pub(super) fn mount_private_run() -> Result<(), String> {
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)
        .map_err(|error| format!("a private mount table: {error}"))?;
    let tmpfs = |target: &CStr| {
        mount(Some(c"tmpfs"), target, Some(c"mode=0755,size=16m"), libc::MS_NOSUID | libc::MS_NODEV)
            .map_err(|error| format!("a tmpfs on {}: {error}", target.to_string_lossy()))
    };
    tmpfs(c"/run")?;
    let run = fs::canonicalize("/var/run");
    if run.as_deref().is_ok_and(|path| path == Path::new("/run")) {
        return Ok(());
    }
    // Without the usual link, /var/run gets its own; without a /var/run, a /var that has one.
    if run.is_ok() {
        return tmpfs(c"/var/run");
    }
    tmpfs(c"/var")?;
    fs::create_dir("/var/run").map_err(|error| format!("/var/run: {error}"))
}

fn mount(source: Option<&CStr>, target: &CStr, options: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null where the kernel accepts that, or to a string that lives until the call returns. For
    // a file system its type is its source's name, as is usual for tmpfs.
    let status =
        unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(source), flags, pointer(options).cast()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A network namespace, kept alive by an open file; it has no name anywhere.
pub(super) struct Netns {
    name: &'static str,
    file: File,
}

impl Netns {
    /// A new one; `name` is for messages.
    pub(super) fn new(name: &'static str) -> io::Result<Netns> {
        let file = thread::scope(|scope| {
            let maker = scope.spawn(|| {
                // SAFETY: changes the network namespace of this thread alone, which ends with this closure.
                if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                    return Err(io::Error::last_os_error());
                }
                File::open("/proc/thread-self/ns/net")
            });
            maker.join().expect("the thread makes two system calls and does not panic")
        })?;
        Ok(Netns { name, file })
    }

    /// What we call it.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The number by which `/proc/PID/ns/net` names it.
    pub(super) fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Does `work` on a thread inside the namespace. What it opens or starts stays there.
    pub(super) fn within<R: Send>(&self, work: impl FnOnce() -> io::Result<R> + Send) -> io::Result<R> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // SAFETY: changes the network namespace of this thread alone; the descriptor is open.
                if unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                    return Err(io::Error::last_os_error());
                }
                work()
            });
            inside.join().unwrap_or_else(|_| Err(io::Error::other("the work panicked")))
        })
    }

    /// Writes a kernel setting below `/proc/sys/net`, which shows the namespace of the thread that opens it.
    pub(super) fn set(&self, setting: &str, value: &str) -> Result<(), String> {
        let path = format!("/proc/sys/net/{setting}");
        self.within(|| fs::write(&path, value)).map_err(|error| format!("{path} cannot be set: {error}"))
    }
}

/// The `ip` program of iproute2.
pub(super) struct Ip {
    program: PathBuf,
}

impl Ip {
    /// Finds the program, also where an ordinary user's `PATH` does not look.
    ///
    /// To be called before `/run` is hidden: some distributions keep their links to programs there.
    pub(super) fn find() -> Result<Ip, String> {
        let path = env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        let found = env::split_paths(&path).chain(usual).map(|folder| folder.join("ip")).find(|file| file.is_file());
        let program = found.and_then(|file| fs::canonicalize(file).ok());
        program.map(|program| Ip { program }).ok_or_else(|| "the `ip` program of iproute2".to_owned())
    }

    /// Runs `ip` with the words of `arguments`, inside `place`. Errors quote the command and what it said.
    pub(super) fn run(&self, place: &Netns, arguments: &str) -> Result<(), String> {
        let words = arguments.split_whitespace().map(OsStr::new);
        self.run_words(place, words.collect()).map_err(|said| format!("{}: ip {arguments}: {said}", place.name()))
    }

    /// Joins `near` and `far` by a virtual cable, with these names for its ends.
    pub(super) fn cable(&self, near: (&Netns, &str), far: (&Netns, &str)) -> Result<(), String> {
        // Our own number as this /proc counts, which may belong to an outer process namespace.
        let ourselves = fs::read_link("/proc/self").map_err(|error| format!("/proc/self: {error}"))?;
        let far_file = format!("/proc/{}/fd/{}", ourselves.display(), far.0.file.as_raw_fd());
        let words = ["link", "add", near.1, "type", "veth", "peer", "name", far.1, "netns", &far_file];
        self.run_words(near.0, words.map(OsStr::new).to_vec()).map_err(|said| format!("a veth pair: {said}"))
    }

    fn run_words(&self, place: &Netns, words: Vec<&OsStr>) -> Result<(), String> {
        let output = place.within(|| {
            let mut command = Command::new(&self.program);
            // A multi-call program finds out by its name what it is.
            command.arg0("ip").args(words).stdin(Stdio::null()).env("LC_ALL", "C");
            command.output()
        });
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(said.trim().replace('\n', "; ")) }
    }
}
