//! Owns the Unix socket in front of `uapi.rs`: where it lies, who may take its place, how many clients are answered at
//! once, and when its end is the end of the instance. Understands no word of the protocol.
//!
//! The flow:
//! 1. [`ControlSocket::bind`] makes `/var/run/wireguard` (0755) and in it `NAME.sock` (for the owner alone). A socket
//!    behind which somebody answers is never replaced, a dead one is. [`ControlSocket::from_fd`] takes what a parent
//!    process opened: a listening socket, or one connected client.
//! 2. [`ControlSocket::serve`] answers clients, one task each, until the socket file is removed, which is how `wg-quick`
//!    and people end a daemon.
//! 3. Dropping it removes the file, if it is still the one that was made.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net as std_net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, inotify};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;
use wg_router::InstanceName;
use zeroize::Zeroizing;

use crate::descriptor;
use crate::uapi::{Conversation, Interface, Progress};

/// Where every userspace WireGuard puts its control sockets, and where `wg` looks for them.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// The socket through which one instance is configured.
#[derive(Debug)]
pub struct ControlSocket {
    source: Source,
    file: Option<SocketFile>,
}

/// Why an instance's control socket is no more.
#[derive(Debug)]
pub enum ControlSocketEnd {
    /// Somebody removed or replaced the socket file.
    FileRemoved(PathBuf),
    /// The one client that the parent process connected has gone.
    ClientGone,
    /// The socket cannot be listened on.
    Failed(io::Error),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlSocketError {
    /// Somebody answers at that path.
    #[error(
        "interface {name} is already in use: the process behind {path} answers; end it first with \
         `ip link delete {name}`, or choose another name"
    )]
    InUse {
        /// The interface.
        name: InstanceName,
        /// Its socket.
        path: PathBuf,
    },
    /// Something that is not a socket lies at that path.
    #[error("{0} exists and is not a socket; remove it to let wgd put its control socket there")]
    NotASocket(PathBuf),
    /// A link that leads nowhere is where the directory, or one above it, should be.
    #[error(
        "{path} is a symbolic link to {target}, which is not there; create that with `mkdir -p {target}`, or remove the link"
    )]
    LinkToNowhere {
        /// The link.
        path: PathBuf,
        /// Where it leads, as an absolute path.
        target: PathBuf,
    },
    /// Something else is where the directory, or one above it, should be.
    #[error("{0} exists and is not a directory; remove it to let wgd put its control socket below that path")]
    NotADirectory(PathBuf),
    /// The file system refused.
    #[error("cannot {action} {path}: {source}; wgd must be able to write there (is the file system read-only?)")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor that was handed over cannot be used.
    #[error("the control socket handed over in WG_UAPI_FD cannot be used: {0}; expected a listening Unix socket")]
    Descriptor(io::Error),
}

/// The path of an instance's socket inside `directory`.
pub fn path_of(directory: &Path, name: &InstanceName) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Refuses if somebody answers behind the socket of `name`. [`ControlSocket::bind`] checks again; asking early spares the
/// user a complaint about the TUN device, which is then taken too.
pub fn check_free(directory: &Path, name: &InstanceName) -> Result<(), ControlSocketError> {
    let path = path_of(directory, name);
    let in_use = ControlSocketError::InUse { name: name.clone(), path: path.clone() };
    match connect_at_once(&path) {
        Ok(()) => Err(in_use),
        // The queue of clients is full: there is somebody, even if it is not quick.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use),
        Err(_) => Ok(()),
    }
}

/// Connects without waiting for a process that does not take its clients.
fn connect_at_once(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&socket2::SockAddr::unix(path)?)
}

impl ControlSocket {
    /// Creates the socket of `name` inside `directory`, which is created too if it is not there.
    pub fn bind(directory: &Path, name: &InstanceName) -> Result<Self, ControlSocketError> {
        create_directory(directory)?;
        check_free(directory, name)?;
        let path = path_of(directory, name);
        remove_dead(&path)?;
        let failed = |source| ControlSocketError::Path { action: "bind", path: path.clone(), source };
        let listener = with_private_umask(|| std_net::UnixListener::bind(&path)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let file = SocketFile::at(path.clone()).map_err(failed)?;
        Ok(ControlSocket { source: Source::Listener(listener), file: Some(file) })
    }

    /// Takes over a socket: one that listens, or a connection to the only client there will be.
    ///
    /// If it lies at the path of `name` inside `directory`, the file is treated as if made here: its removal ends the
    /// instance, and the end of the instance removes it.
    pub fn from_fd(fd: OwnedFd, directory: &Path, name: &InstanceName) -> Result<Self, ControlSocketError> {
        let socket = socket2::Socket::from(fd);
        let is_listener = socket.is_listener().map_err(ControlSocketError::Descriptor)?;
        socket.set_nonblocking(true).map_err(ControlSocketError::Descriptor)?;
        socket.set_cloexec(true).map_err(ControlSocketError::Descriptor)?;
        if !is_listener {
            socket.peer_addr().map_err(ControlSocketError::Descriptor)?;
            let stream = std_net::UnixStream::from(OwnedFd::from(socket));
            return Ok(ControlSocket { source: Source::Client(stream), file: None });
        }
        let listener = std_net::UnixListener::from(OwnedFd::from(socket));
        let bound_to = listener.local_addr().map_err(ControlSocketError::Descriptor)?;
        let ours = path_of(directory, name);
        let file = match bound_to.as_pathname() {
            Some(path) if is_same_file(path, &ours) => SocketFile::at(ours).ok(),
            _ => None,
        };
        Ok(ControlSocket { source: Source::Listener(listener), file })
    }

    /// Answers clients until the socket ends. Must run inside a tokio runtime; cancelling it ends every connection.
    pub async fn serve<I: Interface + Send + Sync + 'static>(self, interface: Arc<I>) -> ControlSocketEnd {
        let ControlSocket { source, file } = self;
        match source {
            Source::Client(stream) => match UnixStream::from_std(stream) {
                Ok(stream) => {
                    answer(stream, interface.as_ref(), Patience::Endless).await;
                    ControlSocketEnd::ClientGone
                }
                Err(error) => ControlSocketEnd::Failed(error),
            },
            Source::Listener(listener) => match UnixListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    error = accept_all(listener, interface) => ControlSocketEnd::Failed(error),
                    path = removed(file.as_ref()) => ControlSocketEnd::FileRemoved(path),
                },
                Err(error) => ControlSocketEnd::Failed(error),
            },
        }
    }
}

#[derive(Debug)]
enum Source {
    Listener(std_net::UnixListener),
    Client(std_net::UnixStream),
}

/// The socket's file; removed when dropped, unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: PathBuf) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(&path)?;
        Ok(SocketFile { device: metadata.dev(), inode: metadata.ino(), path })
    }

    /// Whether the file at the path is still the one that was made.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| metadata.dev() == self.device && metadata.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn create_directory(directory: &Path) -> Result<(), ControlSocketError> {
    if directory.is_dir() {
        return Ok(());
    }
    // Others may look inside: the sockets protect themselves. A strict umask must not change that, because `wg show`
    // of an unprivileged user would then say "no such file" where "not permitted" is true.
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o755)))
        .map_err(|source| {
            obstacle(directory).unwrap_or_else(|| {
                let path = directory.to_owned();
                ControlSocketError::Path { action: "create directory", path, source }
            })
        })
}

/// What stands where `directory`, or one above it, should be; the kernel only says that a file exists.
fn obstacle(directory: &Path) -> Option<ControlSocketError> {
    let path = directory.ancestors().find(|path| fs::symlink_metadata(path).is_ok())?;
    if path.is_dir() {
        return None;
    }
    Some(match fs::read_link(path) {
        // A relative link counts from where it lies; joining an absolute one replaces everything.
        Ok(target) if fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => {
            ControlSocketError::LinkToNowhere {
                path: path.to_owned(),
                target: path.parent().unwrap_or(Path::new("/")).join(target),
            }
        }
        _ => ControlSocketError::NotADirectory(path.to_owned()),
    })
}

/// Whether a socket that was bound to `bound` lies at `ours`. `/var/run` is a link to `/run` on most hosts, and whoever
/// bound it may see other mounts than we do; then the name must do.
fn is_same_file(bound: &Path, ours: &Path) -> bool {
    match (fs::metadata(bound), fs::metadata(ours)) {
        (Ok(bound), Ok(ours)) => bound.dev() == ours.dev() && bound.ino() == ours.ino(),
        (Err(_), Ok(_)) => bound.file_name() == ours.file_name(),
        (_, Err(_)) => false,
    }
}

/// Removes a socket that nobody answers on.
fn remove_dead(path: &Path) -> Result<(), ControlSocketError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ControlSocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {
            tracing::info!("replacing {}, on which nobody answers", path.display());
            fs::remove_file(path)
        }
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ControlSocketError::Path { action: "replace", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Runs `create` so that what it makes is for the owner alone. The mask is the process's, so this is for times when no
/// other thread creates files.
fn with_private_umask<R>(create: impl FnOnce() -> R) -> R {
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let result = create();
    rustix::process::umask(before);
    result
}

/// Accepts clients for ever; returns only if that cannot go on.
async fn accept_all<I: Interface + Send + Sync + 'static>(listener: UnixListener, interface: Arc<I>) -> io::Error {
    let mut tasks = JoinSet::new();
    let mut in_order: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!("a fault in wgd, while it answered a client: {error}; please report it");
                }
                in_order.retain(|task| !task.is_finished());
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                // Whoever has been connected longest makes room: an honest client is done in milliseconds.
                if in_order.len() >= MAX_CLIENTS
                    && let Some(oldest) = in_order.pop_front()
                {
                    tracing::warn!("more than {MAX_CLIENTS} clients on the control socket, dropping the oldest");
                    oldest.abort();
                }
                let interface = Arc::clone(&interface);
                let task = tasks.spawn(async move { answer(stream, interface.as_ref(), Patience::Limited).await });
                in_order.push_back(task);
            }
            Err(error) if is_about_one_client(&error) => {}
            Err(error) if is_about_resources(&error) => {
                tracing::warn!("cannot accept clients on the control socket for now: {error}");
                time::sleep(RETRY_AFTER).await;
            }
            Err(error) => return error,
        }
    }
}

fn is_about_one_client(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

fn is_about_resources(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Whether a client may be silent for ever.
#[derive(Clone, Copy)]
enum Patience {
    Limited,
    /// For the one client that a parent process connected: it is silent for as long as nothing changes.
    Endless,
}

/// Holds a conversation with one client until it ends, or stalls for too long.
async fn answer(mut stream: UnixStream, interface: &impl Interface, patience: Patience) {
    let talk = async {
        let mut conversation = Conversation::new();
        let mut received = Zeroizing::new(vec![0; READ_LEN]);
        loop {
            match conversation.advance(interface) {
                Progress::NeedInput => match within(patience, stream.read(&mut received)).await? {
                    0 => conversation.end_of_input(),
                    len => conversation.receive(&received[..len]),
                },
                Progress::Reply(mut reply) => {
                    let mut piece = Zeroizing::new(String::with_capacity(WRITE_LEN + 1024));
                    while reply.next_piece(&mut piece, WRITE_LEN) {
                        within(patience, stream.write_all(piece.as_bytes())).await?;
                        piece.clear();
                    }
                }
                Progress::Close => return Ok(()),
            }
        }
    };
    let result: io::Result<()> = talk.await;
    if let Err(error) = result {
        tracing::debug!("a client of the control socket is gone: {error}");
    }
}

async fn within<T>(patience: Patience, operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match patience {
        Patience::Endless => operation.await,
        Patience::Limited => time::timeout(IDLE_TIMEOUT, operation).await?,
    }
}

/// Returns the path once the file is gone; never if there is no file.
async fn removed(file: Option<&SocketFile>) -> PathBuf {
    let Some(file) = file else { return std::future::pending().await };
    match watch(&file.path) {
        Ok(watch) => {
            while file.is_there() {
                if wait_for_events(&watch).await.is_err() {
                    break;
                }
            }
        }
        Err(error) => {
            let seconds = POLL_EVERY.as_secs();
            tracing::info!("no inotify ({error}); looking after {} every {seconds} s", file.path.display());
        }
    }
    while file.is_there() {
        time::sleep(POLL_EVERY).await;
    }
    file.path.clone()
}

/// Watches the directory, because a socket that is listened on lives on after its name is gone, and the file, because a
/// removed directory takes its watch along.
fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let names = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    inotify::add_watch(&events, directory, names | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)?;
    inotify::add_watch(&events, path, WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)?;
    descriptor::watch(events)
}

/// Waits for events and takes them all; what they say does not matter, the file is looked at afterwards.
async fn wait_for_events(watch: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = watch.readable().await?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch.get_ref(), &mut buffer);
    loop {
        match events.next() {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                ready.clear_ready();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Clients served at once. A hundred managers asking at the same moment is the worst seen; each costs two small buffers.
const MAX_CLIENTS: usize = 256;

/// How long a client may neither send nor take a byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause after the process ran out of descriptors or memory.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How often to look after the file where the kernel cannot tell.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Bytes read, and thus lines applied, before other clients get a turn.
const READ_LEN: usize = 16 * 1024;

/// Bytes of a reply collected before they are written.
const WRITE_LEN: usize = 32 * 1024;
