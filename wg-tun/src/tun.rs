//! Owns the TUN device: made through tun-rs or adopted as a descriptor, read from and written to frame by frame. The
//! only file that names tun-rs. What frames contain is the business of `offload.rs`; what happens to the link, of
//! `link.rs`.
//!
//! tun-rs makes the device and turns its offloads on; it is not asked for anything later, because its management calls
//! act on whatever has the device's name in the *caller's* network namespace. It cannot adopt a descriptor with a virtio
//! header either, so that an adopted one is read and written directly, as the other kind is too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tun_rs::{DeviceBuilder, SyncDevice};

use crate::cmsg::{self, TunOffloads};
use crate::offload::{HEADER_LEN, Kind, LONG_HEADER_LEN, TUNNEL_HEADER_LEN};

/// An open TUN device.
pub(crate) struct Tun {
    handle: Handle,
    is_ours: bool,
    header_len: usize,
    takes_udp: bool,
}

enum Handle {
    Made(SyncDevice),
    Adopted(OwnedFd),
}

/// One more queue of a device: some of the flows, in both directions.
#[derive(Debug)]
pub(crate) struct TunQueue(OwnedFd);

impl TunQueue {
    /// Reads one frame; `WouldBlock` if there is none.
    #[inline]
    pub(crate) fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        cmsg::read(self.0.as_fd(), frame)
    }

    /// Writes one frame; what its flow sends the other way comes to this queue from then on.
    #[inline]
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<usize> {
        cmsg::write(self.0.as_fd(), frame)
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a bare descriptor tells about its link. Found by experiment: a TUN descriptor can be written to exactly while
/// its link is up, in whatever namespace that is, and is in error once the link is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    Up,
    Down,
    Deleted,
}

impl Tun {
    /// Makes a device in the calling thread's network namespace; it vanishes with the value. `%d` in `name` becomes the
    /// first free number.
    ///
    /// With `many_queues` it can have more than one. Asked for a queue of a device that has many, the kernel gives it to
    /// anybody; asked for the only one of a device that is there, it refuses if that is in use.
    pub(crate) fn create(name: &str, mtu: u16, many_queues: bool) -> io::Result<Tun> {
        let make = |many_queues| {
            let builder = DeviceBuilder::new().name(name).mtu(mtu).offload(true).multi_queue(many_queues);
            // The device stays down: whoever configures it brings it up.
            builder.inherit_enable_state().build_sync()
        };
        let is_there = cmsg::link_state(name).is_ok();
        let mut device = match make(many_queues && !is_there) {
            // Said of what is no TUN device, or has many queues. By now it may be gone.
            Err(error) if is_there && error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            made => made?,
        };
        let mut flags = cmsg::tun_flags(device.as_fd())?;
        if is_there && many_queues && !flags.is_persistent {
            // What was there has gone, and this is a new one after all.
            drop(device);
            device = make(many_queues)?;
            flags = cmsg::tun_flags(device.as_fd())?;
        }
        device.set_nonblocking(true)?;
        ask_for_no_address(&flags.name);
        let takes_udp = device.udp_gso();
        // The length of the header stays with a link that stays, and its next user may not expect it.
        let header_len = match flags.is_persistent {
            true => header_len(device.as_fd())?,
            false => ask_for_tunnels(device.as_fd(), takes_udp)?,
        };
        Ok(Tun { handle: Handle::Made(device), is_ours: !flags.is_persistent, header_len, takes_udp })
    }

    /// Takes over an open descriptor, with or without a virtio header.
    ///
    /// The header keeps the length it came with: it is the link's, so that every other queue and every duplicate that the
    /// owner kept has the same. Super-packets within tunnels are asked for if it came with room for them.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Tun> {
        let flags = cmsg::tun_flags(fd.as_fd())?;
        if !flags.is_tun {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is a TAP device, not TUN"));
        }
        cmsg::set_nonblocking(fd.as_fd())?;
        let (mut header_len_found, mut takes_udp) = (0, false);
        if flags.has_virtio_header {
            header_len_found = header_len(fd.as_fd())?;
            let with_udp = TunOffloads { udp: true, tunnels: false };
            takes_udp = cmsg::set_tun_offloads(fd.as_fd(), with_udp).is_ok();
            if !takes_udp {
                cmsg::set_tun_offloads(fd.as_fd(), TunOffloads { udp: false, ..with_udp })?;
            }
            if header_len_found == TUNNEL_HEADER_LEN {
                // Without them it is only a longer header.
                let _ = cmsg::set_tun_offloads(fd.as_fd(), TunOffloads { udp: takes_udp, tunnels: true });
            }
        }
        Ok(Tun { handle: Handle::Adopted(fd), is_ours: false, header_len: header_len_found, takes_udp })
    }

    /// Whether its link was made by us, and so in the network namespace of the thread that did.
    pub(crate) fn is_made_here(&self) -> bool {
        matches!(self.handle, Handle::Made(_))
    }

    /// Whether its link vanishes with it, and so is nobody else's to configure.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// The name of its link now.
    pub(crate) fn name(&self) -> io::Result<String> {
        Ok(cmsg::tun_flags(self.as_fd())?.name)
    }

    /// Bytes of virtio header in front of every packet, either way; 0 if there is none.
    pub(crate) fn header_len(&self) -> usize {
        self.header_len
    }

    /// The kinds of super-packets it takes.
    pub(crate) fn joined_kinds(&self) -> &'static [Kind] {
        match (self.header_len, self.takes_udp) {
            (0, _) => &[],
            (_, false) => &[Kind::Tcp4, Kind::Tcp6],
            (_, true) => Kind::ALL,
        }
    }

    /// The queue that it begins with.
    pub(crate) fn first_queue(&self) -> io::Result<TunQueue> {
        self.as_fd().try_clone_to_owned().map(TunQueue)
    }

    /// Opens one more queue. Its link must be in the calling thread's network namespace.
    pub(crate) fn another_queue(&self) -> io::Result<TunQueue> {
        if !cmsg::tun_flags(self.as_fd())?.has_many_queues {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the device was made for a single queue"));
        }
        cmsg::open_tun_queue(self.as_fd()).map(TunQueue)
    }

    /// Asks the descriptor about its link.
    pub(crate) fn probe(&self) -> Probe {
        match cmsg::poll_writable(self.as_fd(), Duration::ZERO) {
            Ok(polled) if polled.is_error => Probe::Deleted,
            Ok(polled) if polled.is_writable => Probe::Up,
            _ => Probe::Down,
        }
    }

    /// The network namespace its link is in, as far as we may know.
    pub(crate) fn namespace(&self) -> io::Result<OwnedFd> {
        cmsg::tun_namespace(self.as_fd())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.handle {
            Handle::Made(device) => device.as_fd(),
            Handle::Adopted(fd) => fd.as_fd(),
        }
    }
}

/// Keeps the kernel from giving the link an IPv6 address of its own making, as it does for its own WireGuard: nobody
/// configured it, `wg-quick save` would write it down, and no peer may send from it.
fn ask_for_no_address(name: &str) {
    const NO_ADDRESS: &str = "1";
    let setting = format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode");
    if let Err(error) = std::fs::write(&setting, NO_ADDRESS) {
        tracing::debug!(%error, setting, "the link keeps its link-local address");
    }
}

/// Lets the kernel hand over super-packets within tunnels such as VXLAN, which it would have to segment itself
/// otherwise. Returns the length of the virtio header, which stays as it was if the kernel does not know them.
fn ask_for_tunnels(fd: BorrowedFd<'_>, takes_udp: bool) -> io::Result<usize> {
    let plain_len = header_len(fd)?;
    // The header first: from the moment they are allowed, the kernel writes a long one into whatever room there is.
    if cmsg::set_tun_header_len(fd, TUNNEL_HEADER_LEN).is_err() {
        return Ok(plain_len);
    }
    match cmsg::set_tun_offloads(fd, TunOffloads { udp: takes_udp, tunnels: true }) {
        Ok(()) => Ok(TUNNEL_HEADER_LEN),
        Err(error) => {
            tracing::debug!(%error, "tunnels over the link are segmented by the kernel");
            cmsg::set_tun_header_len(fd, plain_len)?;
            Ok(plain_len)
        }
    }
}

fn header_len(fd: BorrowedFd<'_>) -> io::Result<usize> {
    match cmsg::tun_header_len(fd)? {
        len @ (HEADER_LEN | LONG_HEADER_LEN | TUNNEL_HEADER_LEN) => Ok(len),
        len => {
            let message = format!("the device has a virtio header of {len} bytes; known are 10, 12 and 24");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}
