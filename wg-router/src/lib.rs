//! Which WireGuard instances one process runs, and what they may claim. No sockets, threads or clocks.
//!
//! An *instance* is one key on one port with one TUN device. So far this crate names instances and keeps them apart;
//! see [`Instance`] and [`Registry`].
#![forbid(unsafe_code)]

pub mod instance;
pub mod registry;

pub use instance::{Instance, InstanceId, InstanceName, InstanceNameError};
pub use registry::{Registry, RegistryError};
