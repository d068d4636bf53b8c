//! Owns the instances this process runs: starts them, notices when one ends by itself, and stops them. The only place
//! that holds a device; one instance that ends, or panics, touches no other.
//!
//! To start one is to open its device and then its control socket, so that whoever is told "ready" finds both. To stop
//! one is the reverse: first nobody can reach it any more, then its link goes.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::task::{self, AbortHandle, JoinSet};
use tokio::time;
use wg_core::{Engine, Instant};
use wg_router::{InstanceId, InstanceName, InstanceNameError, Registry, RegistryError};
use wg_tun::{Device, DeviceConfig, DeviceError, DeviceExit, TunSource};

use crate::control_socket::{self, ControlSocket, ControlSocketEnd, ControlSocketError};
use crate::descriptor;
use crate::uapi::Interface;

/// What an instance is started from.
pub struct InstanceSpec {
    /// The name of its link. The kernel has the last word: a template like `wg%d` becomes a name.
    pub name: InstanceName,
    /// Where its TUN device comes from.
    pub tun: TunSource,
    /// Where its control socket comes from.
    pub control: ControlSource,
    /// How its threads run.
    pub threads: Threads,
}

/// How the threads of an instance run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// How many move packets; `None` begins with one and adds more while it is busy with several peers.
    pub workers: Option<NonZeroUsize>,
    /// Whether these run before fairly scheduled threads while they have work to do.
    pub realtime: bool,
}

/// Where a control socket comes from.
pub enum ControlSource {
    /// Made in this directory.
    Create(PathBuf),
    /// Handed over; the directory is where it would have been made.
    Fd(OwnedFd, PathBuf),
}

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No control socket.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// No device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel gave the link a name that cannot be a file name.
    #[error(transparent)]
    Name(#[from] InstanceNameError),
    /// This process runs it already.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The runtime refused a descriptor.
    #[error("cannot watch interface {0}: {1}")]
    Watch(InstanceName, io::Error),
}

/// Why an instance ended by itself.
#[derive(Debug)]
pub enum InstanceEnd {
    /// Its device ended.
    Device(DeviceExit),
    /// Its control socket ended.
    ControlSocket(ControlSocketEnd),
    /// A fault of ours; the text is the panic's.
    Panicked(String),
}

/// The instances of this process.
#[derive(Default)]
pub struct Supervisor {
    registry: Registry,
    running: BTreeMap<InstanceId, Running>,
    tasks: JoinSet<InstanceEnd>,
}

struct Running {
    device: Arc<Device>,
    task: AbortHandle,
}

impl Supervisor {
    /// No instance yet.
    pub fn new() -> Self {
        Supervisor::default()
    }

    /// Starts an instance. When this returns, its link exists and its control socket takes connections. Must run inside
    /// a tokio runtime.
    ///
    /// If the name of a link to be made is in use, it waits a moment for a daemon that is on its way out.
    pub async fn start(&mut self, spec: InstanceSpec) -> Result<InstanceId, StartError> {
        let device = Arc::new(open_device(&spec.name, spec.tun, &spec.control, spec.threads).await?);
        let name: InstanceName = device.name().parse()?;
        let control = match spec.control {
            ControlSource::Create(directory) => ControlSocket::bind(&directory, &name)?,
            ControlSource::Fd(fd, directory) => ControlSocket::from_fd(fd, &directory, &name)?,
        };
        let exit = device
            .exit_fd()
            .try_clone_to_owned()
            .and_then(descriptor::watch)
            .map_err(|error| StartError::Watch(name.clone(), error))?;
        let id = self.registry.add(name)?;
        let task = self.tasks.spawn(run(control, Arc::clone(&device), exit));
        self.running.insert(id, Running { device, task });
        Ok(id)
    }

    /// The name of an instance's link.
    pub fn name(&self, id: InstanceId) -> Option<&InstanceName> {
        self.registry.instance(id).map(|instance| instance.name())
    }

    /// Waits until an instance ends by itself, and says which and why; `None` if none runs. The instance is then gone.
    pub async fn next_end(&mut self) -> Option<(InstanceName, InstanceEnd)> {
        loop {
            let (task, end) = match self.tasks.join_next_with_id().await? {
                Ok((task, end)) => (task, end),
                Err(error) if error.is_panic() => (error.id(), InstanceEnd::Panicked(error.to_string())),
                // Stopped by us.
                Err(_) => continue,
            };
            if let Some(id) = self.find(task)
                && let Some(name) = self.forget(id)
            {
                return Some((name, end));
            }
        }
    }

    /// Stops an instance: its socket file and its link are gone when this returns.
    pub async fn stop(&mut self, id: InstanceId) {
        let Some(running) = self.running.get(&id) else { return };
        let task = running.task.clone();
        task.abort();
        // The socket goes when its task is dropped, which takes one turn of the runtime.
        while !task.is_finished() {
            task::yield_now().await;
        }
        self.forget(id);
    }

    /// Stops every instance.
    pub async fn stop_all(&mut self) {
        let ids: Vec<InstanceId> = self.running.keys().copied().collect();
        for id in ids {
            self.stop(id).await;
        }
    }

    fn find(&self, task: task::Id) -> Option<InstanceId> {
        self.running.iter().find(|(_, running)| running.task.id() == task).map(|(&id, _)| id)
    }

    /// Drops the device of an instance whose task is over: nobody else holds it then, so its link is gone afterwards.
    fn forget(&mut self, id: InstanceId) -> Option<InstanceName> {
        if let Some(Running { device, task: _ }) = self.running.remove(&id) {
            drop(device);
        }
        self.registry.remove(id).map(|instance| instance.name().clone())
    }
}

/// Opens the device of an instance, unless somebody answers behind its control socket.
///
/// A daemon whose socket file was removed, or that was told to end, keeps its link for some hundredths of a second
/// longer. Who ends one and starts the next should not have to know that.
async fn open_device(
    name: &InstanceName,
    tun: TunSource,
    control: &ControlSource,
    threads: Threads,
) -> Result<Device, StartError> {
    if matches!(tun, TunSource::Create) {
        let give_up = time::Instant::now() + PATIENCE;
        loop {
            check_free(name, control)?;
            match Device::open(device_config(name, threads)) {
                Err(DeviceError::NameInUse { .. }) if time::Instant::now() < give_up => time::sleep(TRY_EVERY).await,
                outcome => return Ok(outcome?),
            }
        }
    }
    check_free(name, control)?;
    let mut config = device_config(name, threads);
    config.tun = tun;
    Ok(Device::open(config)?)
}

fn device_config(name: &InstanceName, threads: Threads) -> DeviceConfig {
    let mut config = DeviceConfig::new(name.to_string());
    config.workers = threads.workers;
    config.realtime = threads.realtime;
    config
}

/// Asking early spares the user a complaint about the TUN device, which is then taken too.
fn check_free(name: &InstanceName, control: &ControlSource) -> Result<(), StartError> {
    match control {
        ControlSource::Create(directory) => Ok(control_socket::check_free(directory, name)?),
        ControlSource::Fd(..) => Ok(()),
    }
}

/// How long a name may be in use by a daemon that ends; ten times what that takes on an idle machine.
const PATIENCE: Duration = Duration::from_millis(300);

/// How often to look whether it has ended.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// One instance's life.
async fn run(control: ControlSocket, device: Arc<Device>, exit: AsyncFd<OwnedFd>) -> InstanceEnd {
    tokio::select! {
        end = control.serve(Arc::clone(&device)) => InstanceEnd::ControlSocket(end),
        reason = ended(&device, exit) => InstanceEnd::Device(reason),
    }
}

async fn ended(device: &Device, exit: AsyncFd<OwnedFd>) -> DeviceExit {
    loop {
        if let Some(reason) = device.exit_reason() {
            return reason;
        }
        match exit.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => return DeviceExit::Failed(format!("its end can no longer be noticed: {error}")),
        }
    }
}

impl Interface for Device {
    fn engine(&self) -> &Engine {
        Device::engine(self)
    }

    fn configure<R>(&self, change: impl FnOnce(&Engine, Instant) -> R) -> R {
        Device::configure(self, change)
    }

    fn listen_port(&self) -> u16 {
        Device::listen_port(self)
    }

    fn set_listen_port(&self, port: u16) -> io::Result<()> {
        Device::set_listen_port(self, port)
    }

    fn fwmark(&self) -> u32 {
        Device::fwmark(self)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        Device::set_fwmark(self, mark)
    }

    fn is_up(&self) -> bool {
        Device::is_up(self)
    }

    fn zone_index(&self, zone: &str) -> Option<u32> {
        use rustix::net::{AddressFamily, SocketType, netdevice, socket};
        // Any socket can be asked; it only says which network namespace is meant.
        let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
        netdevice::name_to_index(any, zone).ok()
    }
}
