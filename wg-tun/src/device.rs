//! Owns a running WireGuard interface as embedders see it: open, configure, observe, drop. The work is done by the
//! threads behind it: `worker.rs` for packets, `control.rs` for everything else.

use std::any::Any;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use wg_core::{DEFAULT_MTU, Engine, EngineConfig, Instant};

use crate::cmsg::{self, EventFd};
use crate::control::{self, Control, LogBudget, Request};
use crate::link;
use crate::tun::{Tun, TunQueue};
use crate::udp::UdpSockets;
use crate::worker::Worker;

/// Where the TUN device comes from.
#[derive(Debug)]
#[non_exhaustive]
pub enum TunSource {
    /// It is made, in the network namespace of the calling thread.
    Create,
    /// It is open already; with or without a virtio header.
    Fd(OwnedFd),
}

/// What a device is opened with.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeviceConfig {
    /// Name of the interface; `%d` in it becomes the first free number. An open descriptor keeps the name it has.
    pub name: String,
    /// Where the TUN device comes from.
    pub tun: TunSource,
    /// MTU of a made interface in bytes.
    pub mtu: u16,
    /// Threads that move packets. `None` begins with one and adds more, up to one per processor, while the ones there are
    /// are busy and several peers have a session. An open descriptor always has one.
    pub workers: Option<NonZeroUsize>,
    /// Whether workers run before all threads that are scheduled fairly, for at most four fifths of the time, so that
    /// bursts of packets wait less. Needs CAP_SYS_NICE or RLIMIT_RTPRIO; without, it has no effect.
    pub realtime: bool,
}

impl DeviceConfig {
    /// An interface that is made, with the usual MTU of 1420.
    pub fn new(name: impl Into<String>) -> Self {
        DeviceConfig { name: name.into(), tun: TunSource::Create, mtu: DEFAULT_MTU, workers: None, realtime: false }
    }
}

/// Threads that move packets, at most.
const MAX_WORKERS: usize = 16;

/// Why a device could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The kernel has no TUN driver, or the container no access to it.
    #[error(
        "{name}: /dev/net/tun is missing; load the module with `modprobe tun`, or pass the device to the container"
    )]
    NoTunDriver {
        /// The interface.
        name: String,
    },
    /// Making interfaces is not allowed.
    #[error(
        "{name}: not allowed to make a TUN device; run as root or with CAP_NET_ADMIN in this network namespace, and \
         in a container pass /dev/net/tun to it"
    )]
    NotPermitted {
        /// The interface.
        name: String,
    },
    /// Another program has an interface of this name.
    #[error("{name}: the name is in use; choose another, or remove it with `ip link delete {name}`")]
    NameInUse {
        /// The interface.
        name: String,
    },
    /// The name cannot be one of an interface.
    #[error(
        "{name:?} cannot name an interface: 1 to 15 bytes without `/`, `:`, white space or a NUL, and `%` only as one `%d`"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The descriptor cannot be used.
    #[error("{name}: the open descriptor is not a usable TUN device; open /dev/net/tun with IFF_TUN and IFF_NO_PI")]
    BadDescriptor {
        /// The interface as configured.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else the host refused.
    #[error("{name}: {action}")]
    Host {
        /// The interface.
        name: String,
        /// What we were doing.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a device ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceExit {
    /// Its link was deleted.
    LinkDeleted,
    /// One of its threads cannot go on; the text says why.
    Failed(String),
}

/// A WireGuard interface that runs until it is dropped.
///
/// It begins down, as `ip link add` leaves it: bring the link up with `ip` or netlink, and it binds its port. Its UDP
/// sockets live in the network namespace of the thread that opened it, also when the link is moved elsewhere.
///
/// ```
/// use wg_tun::{Device, DeviceConfig};
///
/// let device = match Device::open(DeviceConfig::new("wgdoc%d")) {
///     Ok(device) => device,
///     Err(error) => return eprintln!("{error}"), // says what to do about it
/// };
/// device.set_listen_port(51820).expect("a link that is down only remembers the port");
/// device.configure(|engine, now| {
///     let key = wg_core::PrivateKey::from_bytes([7; 32]);
///     engine.set_private_key(Some(key), now);
/// });
/// assert_eq!(device.listen_port(), 51820);
/// assert!(!device.is_up());
/// ```
pub struct Device {
    shared: Arc<Shared>,
    name: String,
}

/// What the threads of a device share.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) tun: Tun,
    pub(crate) is_realtime: bool,
    pub(crate) sockets: Published,
    pub(crate) settings: Mutex<Settings>,
    pub(crate) requests: Mutex<Vec<Request>>,
    pub(crate) workers: Workers,
    pub(crate) control_wake: EventFd,
    pub(crate) is_stopping: AtomicBool,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    /// A worker can no longer read from the TUN device.
    pub(crate) tun_ended: AtomicBool,
    pub(crate) is_up: AtomicBool,
    pub(crate) mtu: AtomicU16,
    /// Counts changes of routes or addresses where the sockets are; several that come together count once.
    pub(crate) routes_version: AtomicU32,
    pub(crate) log_budget: Mutex<LogBudget>,
    exit: EventFd,
    exit_reason: Mutex<Option<DeviceExit>>,
}

/// What is configured of the sockets, bound or not.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) mark: u32,
}

/// The worker threads there are, and how to wake them.
#[derive(Debug)]
pub(crate) struct Workers {
    /// One for each worker there may ever be.
    wakes: Vec<EventFd>,
    count: AtomicUsize,
    /// One of them has hardly a moment to spare.
    pub(crate) is_busy: AtomicBool,
}

impl Workers {
    fn new(limit: usize) -> io::Result<Workers> {
        let wakes = (0..limit).map(|_| EventFd::new()).collect::<io::Result<_>>()?;
        Ok(Workers { wakes, count: AtomicUsize::new(0), is_busy: AtomicBool::new(false) })
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(crate) fn limit(&self) -> usize {
        self.wakes.len()
    }

    pub(crate) fn wake_fd(&self, worker: usize) -> &EventFd {
        &self.wakes[worker]
    }

    /// Wakes the one that meets deadlines.
    pub(crate) fn wake_first(&self) {
        self.wakes[0].notify();
    }

    pub(crate) fn wake_all(&self) {
        self.wakes[..self.count()].iter().for_each(EventFd::notify);
    }
}

impl Shared {
    /// Starts a thread of the device. What ends it before its time ends the device.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        thread: String,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(self);
        let guarded = move || {
            let result = panic::catch_unwind(AssertUnwindSafe(run));
            let reason = match result {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(payload) => panic_reason(&*payload),
            };
            let thread = thread::current().name().unwrap_or_default().to_owned();
            tracing::error!(thread, reason, "a thread of the interface has ended");
            shared.end(DeviceExit::Failed(format!("{thread}: {reason}")));
        };
        // The kernel shows 15 bytes of a thread's name.
        let thread = thread::Builder::new().name(thread).spawn(guarded)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Starts one more worker on a queue of its own. To be called from the control thread, or before it is there.
    pub(crate) fn start_worker(self: &Arc<Self>, queue: TunQueue) -> io::Result<()> {
        let index = self.workers.count();
        let mut worker = Worker::new(Arc::clone(self), index, queue)?;
        let name = self.tun.name()?;
        let thread = if index == 0 { format!("wgd-{name}") } else { format!("wgd{index}-{name}") };
        self.workers.count.store(index + 1, Ordering::Release);
        let started = self.spawn(thread, move || worker.run());
        if started.is_err() {
            self.workers.count.store(index, Ordering::Release);
        }
        started
    }

    /// The device has ended by itself; the first reason counts.
    pub(crate) fn end(&self, reason: DeviceExit) {
        self.exit_reason.lock().get_or_insert(reason);
        self.exit.notify();
    }
}

/// The sockets in use, a pair for each worker, swapped whole. Whoever sends keeps its own reference, so that nothing is
/// locked meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Published {
    version: AtomicU64,
    sockets: RwLock<Vec<Arc<UdpSockets>>>,
}

impl Published {
    /// Returns the sockets that were in use.
    pub(crate) fn publish(&self, sockets: Vec<Arc<UdpSockets>>) -> Vec<Arc<UdpSockets>> {
        let mut current = self.sockets.write();
        let old = std::mem::replace(&mut *current, sockets);
        self.version.fetch_add(1, Ordering::Release);
        old
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// All sockets; none while nothing is bound.
    pub(crate) fn all(&self) -> Vec<Arc<UdpSockets>> {
        self.sockets.read().clone()
    }

    /// The first pair, which is there if any is.
    pub(crate) fn first(&self) -> Option<Arc<UdpSockets>> {
        self.sockets.read().first().cloned()
    }

    /// The version, and the sockets of a worker if it is not `known`. One for which no pair could be bound sends from
    /// the first one's and receives nothing.
    pub(crate) fn newer_than(&self, known: u64, worker: usize) -> (u64, Option<WorkerSockets>) {
        if self.version.load(Ordering::Acquire) == known {
            return (known, None);
        }
        let current = self.sockets.read();
        let own = current.get(worker).map(|sockets| WorkerSockets { sockets: Arc::clone(sockets), receives: true });
        let first = || current.first().map(|sockets| WorkerSockets { sockets: Arc::clone(sockets), receives: false });
        (self.version.load(Ordering::Acquire), own.or_else(first))
    }
}

/// The sockets that a worker uses.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSockets {
    pub(crate) sockets: Arc<UdpSockets>,
    pub(crate) receives: bool,
}

impl Device {
    /// Opens the TUN device and starts its threads.
    ///
    /// The kernel lets nobody take a link that is in use, but for two that make the same one at the same moment: whoever
    /// may do that has to decide who comes first, as the daemon does by its control socket.
    pub fn open(config: DeviceConfig) -> Result<Device, DeviceError> {
        let DeviceConfig { name, tun, mtu, workers, realtime } = config;
        let limit = workers.or(thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get).min(MAX_WORKERS);
        let (tun, limit) = match tun {
            TunSource::Create if !is_link_name(&name) => return Err(DeviceError::BadName { name }),
            TunSource::Create => {
                (Tun::create(&name, mtu, limit > 1).map_err(|error| creation_error(&name, error))?, limit)
            }
            TunSource::Fd(fd) => match Tun::adopt(fd) {
                Ok(tun) => (tun, 1),
                Err(source) => return Err(DeviceError::BadDescriptor { name, source }),
            },
        };
        let actual = tun.name().map_err(host_error(&name, "the name of the TUN device cannot be read"))?;
        let wanted = if workers.is_some() { limit } else { 1 };
        Device::start(tun, &actual, mtu, wanted, limit, realtime).map_err(|(action, source)| DeviceError::Host {
            name: actual,
            action,
            source,
        })
    }

    fn start(
        tun: Tun,
        name: &str,
        mtu: u16,
        workers: usize,
        most_workers: usize,
        is_realtime: bool,
    ) -> Result<Device, (&'static str, io::Error)> {
        if tun.is_ours()
            && let Err(error) = link::remove_queueing(name)
        {
            tracing::debug!(%error, "the link keeps its queueing discipline");
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| ("no randomness", io::Error::other(error.to_string())))?;
        let mut config = EngineConfig::new(seed);
        config.mtu = mtu;
        let now = cmsg::boot_clock();
        let engine = Engine::new(config, now);
        control::tell_wall_clock(&engine, now);
        let event = || EventFd::new().map_err(|error| ("no event descriptor", error));
        let shared = Arc::new(Shared {
            engine,
            tun,
            is_realtime,
            sockets: Published::default(),
            settings: Mutex::default(),
            requests: Mutex::default(),
            workers: Workers::new(most_workers).map_err(|error| ("no event descriptor", error))?,
            control_wake: event()?,
            is_stopping: AtomicBool::new(false),
            threads: Mutex::default(),
            tun_ended: AtomicBool::new(false),
            is_up: AtomicBool::new(false),
            mtu: AtomicU16::new(mtu),
            routes_version: AtomicU32::new(0),
            log_budget: Mutex::default(),
            exit: event()?,
            exit_reason: Mutex::default(),
        });
        let mut control = Control::new(Arc::clone(&shared), name).map_err(|error| ("cannot watch the link", error))?;
        // From here on, dropping the device ends its threads.
        let device = Device { shared: Arc::clone(&shared), name: name.to_owned() };
        let queue = shared.tun.first_queue().map_err(|error| ("the TUN device cannot be used", error))?;
        shared.start_worker(queue).map_err(|error| ("cannot start a worker", error))?;
        for _ in 1..workers {
            match shared.tun.another_queue() {
                Ok(queue) => shared.start_worker(queue).map_err(|error| ("cannot start a worker", error))?,
                Err(error) => {
                    tracing::warn!(%error, workers = shared.workers.count(), "the interface has no more workers than these");
                    break;
                }
            }
        }
        shared.spawn(format!("wgc-{name}"), move || control.run()).map_err(|error| ("cannot start a thread", error))?;
        Ok(device)
    }

    /// The name of the link; its name at the start if it is gone.
    pub fn name(&self) -> String {
        self.shared.tun.name().unwrap_or_else(|_| self.name.clone())
    }

    /// The engine, to read its state. Changes go through [`Device::configure`].
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Changes the engine's settings, then wakes the threads that may now have something to do.
    pub fn configure<R>(&self, change: impl FnOnce(&Engine, Instant) -> R) -> R {
        let result = change(&self.shared.engine, Device::now());
        self.shared.control_wake.notify();
        self.shared.workers.wake_all();
        result
    }

    /// Listens on another port; 0 draws one at random. While the link is down, the port is remembered.
    ///
    /// The old sockets stay until the new ones are bound, and for good if they cannot be.
    pub fn set_listen_port(&self, port: u16) -> io::Result<()> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.shared.requests.lock().push(Request::Listen { port, reply });
        self.shared.control_wake.notify();
        loop {
            match answer.recv_timeout(Duration::from_secs(1)) {
                Ok(result) => return result,
                // A thread that has failed answers no more.
                Err(RecvTimeoutError::Timeout) if !matches!(self.exit_reason(), Some(DeviceExit::Failed(_))) => {}
                Err(_) => return Err(io::Error::other("the interface has ended")),
            }
        }
    }

    /// The port it listens on, or will once the link is up; 0 if that is still to be drawn.
    pub fn listen_port(&self) -> u16 {
        match self.shared.sockets.first() {
            Some(sockets) => sockets.port(),
            None => self.shared.settings.lock().port,
        }
    }

    /// Marks the datagrams it sends from now on; 0 is no mark. Nothing is bound anew.
    pub fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        {
            let mut settings = self.shared.settings.lock();
            self.shared.sockets.all().iter().try_for_each(|sockets| sockets.set_mark(mark))?;
            settings.mark = mark;
        }
        self.shared.engine.forget_sources();
        Ok(())
    }

    /// The mark of the datagrams it sends; 0 is none.
    pub fn fwmark(&self) -> u32 {
        self.shared.settings.lock().mark
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Acquire)
    }

    /// The link's MTU in bytes.
    pub fn mtu(&self) -> u16 {
        self.shared.mtu.load(Ordering::Relaxed)
    }

    /// Becomes readable, and stays so, when the device has ended by itself.
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.shared.exit.as_fd()
    }

    /// Why the device has ended by itself; `None` while it runs.
    pub fn exit_reason(&self) -> Option<DeviceExit> {
        self.shared.exit_reason.lock().clone()
    }

    /// The engine's clock: time since boot, suspended time included.
    pub fn now() -> Instant {
        cmsg::boot_clock()
    }
}

impl Drop for Device {
    /// Ends the threads, then closes the sockets and the TUN device; a made link vanishes.
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.workers.wakes.iter().for_each(EventFd::notify);
        self.shared.control_wake.notify();
        // The control thread may be starting a worker.
        loop {
            let Some(thread) = self.shared.threads.lock().pop() else { break };
            // Panics were caught and reported.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Device").field("name", &self.name).field("port", &self.listen_port()).finish_non_exhaustive()
    }
}

/// What a panic said.
fn panic_reason(payload: &(dyn Any + Send)) -> String {
    let said = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    said.map_or_else(|| "panicked".to_owned(), |said| format!("panicked: {said}"))
}

/// What Linux takes as the name of a link, or `%d` for a number in it.
fn is_link_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte != b'/' && byte != b':' && byte != 0 && !byte.is_ascii_whitespace();
    let has_one_number_at_most = match name.split_once('%') {
        Some((_, rest)) => rest.starts_with('d') && !rest.contains('%'),
        None => true,
    };
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(is_allowed)
        && has_one_number_at_most
}

fn creation_error(name: &str, error: io::Error) -> DeviceError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => DeviceError::NoTunDriver { name },
        Some(libc::EPERM | libc::EACCES) => DeviceError::NotPermitted { name },
        Some(libc::EBUSY | libc::EEXIST) => DeviceError::NameInUse { name },
        // Said of an interface of this name that is not a TUN device, and of other things.
        Some(libc::EINVAL) if cmsg::link_state(&name).is_ok() => DeviceError::NameInUse { name },
        _ => DeviceError::Host { name, action: "the TUN device cannot be made", source: error },
    }
}

fn host_error(name: &str, action: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    let name = name.to_owned();
    move |source| DeviceError::Host { name, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_panic_said_is_the_reason() {
        let caught = |work: fn()| panic_reason(&*panic::catch_unwind(work).unwrap_err());
        assert_eq!(caught(|| panic::panic_any("a word")), "panicked: a word");
        assert_eq!(caught(|| panic::panic_any(String::from("many words"))), "panicked: many words");
        assert_eq!(caught(|| panic::panic_any(7)), "panicked");
    }

    #[test]
    fn an_invalid_argument_is_about_the_name_only_if_the_name_is_taken() {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        assert!(matches!(creation_error("lo", invalid()), DeviceError::NameInUse { .. }));
        assert!(matches!(creation_error("no-such-link", invalid()), DeviceError::Host { .. }));
    }

    #[test]
    fn a_name_has_one_number_at_most_and_what_is_refused_is_named() {
        for name in ["wg0", "wg%d", "%d", "a%db"] {
            assert!(is_link_name(name), "{name}");
        }
        for name in ["wg%", "wg%s", "%d%d", "%%d", "%d%", "wg:0"] {
            assert!(!is_link_name(name), "{name}");
        }
        assert!(DeviceError::BadName { name: "wg:0".into() }.to_string().contains("`:`"));
        let not_permitted = creation_error("wg0", io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(not_permitted.contains("pass /dev/net/tun"), "{not_permitted}");
    }
}
