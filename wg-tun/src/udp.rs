//! Owns the UDP sockets of one interface: an IPv4 and an IPv6 one on the same port, and their options. Sends and
//! receives nothing itself; read `batch.rs` for that.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Weak;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::cmsg;

/// Buffer of a socket each way, in bytes: 50 ms at 1 Gbit/s, as wireguard-go has it.
const BUFFER_LEN: usize = 7 << 20;
/// How often a random port is drawn until both families can have it.
const PORT_ATTEMPTS: usize = 100;
/// How often one looks whether one's own old sockets are closed.
const CLOSING_STEP: Duration = Duration::from_millis(1);

/// The sockets of one interface. At least one family is there.
#[derive(Debug)]
pub(crate) struct UdpSockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
    port: u16,
    takes_trains: bool,
    mark: AtomicU32,
}

impl UdpSockets {
    /// Binds both families to `port`, or to one random port if it is 0, in the calling thread's network namespace.
    ///
    /// A family the host does not have is left out.
    pub(crate) fn bind(port: u16, mark: u32) -> io::Result<UdpSockets> {
        let mut attempts = if port == 0 { PORT_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            match Self::bind_once(port, mark) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
                result => return result,
            }
        }
    }

    /// Like `bind`, but waits up to `patience` for those of `retired` that are in the way to be closed: whoever used
    /// them may not have let go yet.
    pub(crate) fn bind_after(
        retired: &[Weak<UdpSockets>],
        port: u16,
        mark: u32,
        patience: Duration,
    ) -> io::Result<UdpSockets> {
        let in_the_way = || retired.iter().filter_map(Weak::upgrade).any(|sockets| sockets.port == port);
        let begun = Instant::now();
        let mut were_ours = in_the_way();
        loop {
            match Self::bind(port, mark) {
                // Once more after nobody has them: the last reference goes before the descriptors do.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && were_ours && begun.elapsed() < patience => {
                    thread::sleep(CLOSING_STEP);
                    were_ours = in_the_way();
                }
                result => return result,
            }
        }
    }

    fn bind_once(port: u16, mark: u32) -> io::Result<UdpSockets> {
        let v4 = match bind_family(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into(), mark, false) {
            Err(error) if is_family_missing(&error) => None,
            result => Some(result?),
        };
        let bound = match &v4 {
            Some(socket) => port_of(socket)?,
            None => port,
        };
        let v6 = match bind_family(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, bound).into(), mark, false) {
            Err(error) if is_family_missing(&error) && v4.is_some() => {
                tracing::info!(port = bound, "this host has no IPv6: IPv4 only");
                None
            }
            result => Some(result?),
        };
        let port = match &v6 {
            Some(socket) => port_of(socket)?,
            None => bound,
        };
        let takes_trains = v4.iter().chain(&v6).all(takes_trains);
        if !takes_trains {
            tracing::debug!("the kernel does not know trains: datagrams are sent one by one");
        }
        Ok(UdpSockets { v4, v6, port, takes_trains, mark: AtomicU32::new(mark) })
    }

    /// Sockets on the same port as these, in the same families: the kernel gives each pair of them a part of the flows,
    /// by remote address and port.
    ///
    /// The first ones are bound without sharing, so that a port that somebody else has is noticed. From now on another
    /// program of the same user that wants to share the port could.
    pub(crate) fn another(&self) -> io::Result<UdpSockets> {
        self.all().try_for_each(|socket| socket.set_reuse_port(true))?;
        let mark = self.mark();
        let bind = |domain, address: SocketAddr| bind_family(domain, address, mark, true);
        let v4 = self.v4.as_ref().map(|_| bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, self.port).into())).transpose()?;
        let v6 = self.v6.as_ref().map(|_| bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, self.port).into())).transpose()?;
        Ok(UdpSockets { v4, v6, port: self.port, mark: AtomicU32::new(mark), takes_trains: self.takes_trains })
    }

    /// The port both families have.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether the kernel knows trains at all. Linux before 4.18 takes one for a single long datagram and sends that.
    pub(crate) fn takes_trains(&self) -> bool {
        self.takes_trains
    }

    /// Marks what is sent from now on; 0 is no mark.
    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.all().try_for_each(|socket| set_mark(socket, mark))?;
        self.mark.store(mark, Ordering::Relaxed);
        Ok(())
    }

    /// The mark of what is sent; 0 is none.
    pub(crate) fn mark(&self) -> u32 {
        self.mark.load(Ordering::Relaxed)
    }

    /// The sockets there are.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.all().map(AsFd::as_fd)
    }

    /// The socket of one family.
    pub(crate) fn fd_of(&self, family: Family) -> Option<BorrowedFd<'_>> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
        .map(AsFd::as_fd)
    }

    fn all(&self) -> impl Iterator<Item = &Socket> {
        self.v4.iter().chain(&self.v6)
    }
}

/// Outer address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(remote: SocketAddr) -> Family {
        match remote {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        }
    }
}

fn bind_family(domain: Domain, address: SocketAddr, mark: u32, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    if mark != 0 {
        set_mark(&socket, mark)?;
    }
    set_buffers(&socket);
    set_ancillary(&socket, domain)?;
    if is_shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    socket.set_mark(mark)
}

/// Large buffers if we may, as large as the host's limits allow otherwise.
fn set_buffers(socket: &Socket) {
    let len = BUFFER_LEN as libc::c_int;
    let fd = socket.as_fd();
    if cmsg::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, len).is_err()
        && let Err(error) = socket.set_recv_buffer_size(BUFFER_LEN)
    {
        tracing::debug!(%error, "the receive buffer keeps its size");
    }
    if cmsg::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, len).is_err()
        && let Err(error) = socket.set_send_buffer_size(BUFFER_LEN)
    {
        tracing::debug!(%error, "the send buffer keeps its size");
    }
}

/// Asks for our own address and the ECN field with every datagram, and for trains where the kernel makes them.
fn set_ancillary(socket: &Socket, domain: Domain) -> io::Result<()> {
    let fd = socket.as_fd();
    if domain == Domain::IPV4 {
        cmsg::set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        cmsg::set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        // No DF: routers may fragment what carries a packet of the full MTU over a narrower link.
        cmsg::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    } else {
        cmsg::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        cmsg::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    if let Err(error) = cmsg::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1) {
        tracing::debug!(%error, "the kernel does not join received datagrams to trains");
    }
    Ok(())
}

fn takes_trains(socket: &Socket) -> bool {
    cmsg::get_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT).is_ok()
}

fn port_of(socket: &Socket) -> io::Result<u16> {
    Ok(socket.local_addr()?.as_socket().map_or(0, |address| address.port()))
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn both_families_share_a_random_port_and_a_taken_port_is_refused() {
        let first = UdpSockets::bind(0, 0).unwrap();
        assert_ne!(first.port(), 0);
        for fd in first.fds() {
            let socket = fd.try_clone_to_owned().map(Socket::from).unwrap();
            assert_eq!(port_of(&socket).unwrap(), first.port());
        }
        let taken = UdpSockets::bind(first.port(), 0).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let port = first.port();
        drop(first);
        assert_eq!(UdpSockets::bind(port, 0).unwrap().port(), port);
    }

    #[test]
    fn old_sockets_of_ones_own_are_waited_for_and_those_of_others_are_not() {
        let long = Duration::from_secs(60);
        let old = Arc::new(UdpSockets::bind(0, 0).unwrap());
        let (port, retired) = (old.port(), [Arc::downgrade(&old)]);
        let user = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            drop(old);
        });
        assert_eq!(UdpSockets::bind_after(&retired, port, 0, long).unwrap().port(), port);
        user.join().unwrap();

        let stranger = UdpSockets::bind(0, 0).unwrap();
        let begun = Instant::now();
        let taken = UdpSockets::bind_after(&retired, stranger.port(), 0, long).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(begun.elapsed() < long);
    }
}
