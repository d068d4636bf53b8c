//! TUN and UDP drivers for `wg-core`, and the device facade for embedders.
//!
//! [`Device`] is a whole WireGuard interface in this process: a TUN device, UDP sockets, and two threads around an
//! [`Engine`](wg_core::Engine). This crate decides nothing about the protocol; it moves bytes in as few system calls as
//! the kernel allows:
//!
//! 1. One read from the TUN device brings a super-packet ([`offload`]), whose packets are sealed straight into a train
//!    of datagrams (`batch`), which leaves in one call.
//! 2. One receive call brings trains, whose datagrams are opened straight into a buffer where the packets of a flow
//!    join again, to be written to the TUN device as one.
//! 3. Handshakes, the link's state and the sockets are the business of a second thread (`control`), so that no
//!    packet waits for them.
//!
//! What a kernel, a device or a path cannot do is found out when it refuses, remembered for that device or peer alone,
//! and tried again later.

mod batch;
mod cmsg;
mod control;
mod device;
mod link;
mod load;
pub mod offload;
mod tun;
mod udp;
mod worker;

pub use device::{Device, DeviceConfig, DeviceError, DeviceExit, TunSource};
