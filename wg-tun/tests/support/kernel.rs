//! A kernel that is older, or whose devices are poorer, than the one the tests run on. Owns a seccomp filter with a
//! supervisor, which sees every system call of a device's threads that concerns offloads, counts it, and answers some of
//! them as that kernel would. Everything else is the real kernel's.

#![allow(clippy::unnecessary_cast, reason = "C libraries do not agree on the widths of these integers")]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use libc::{c_int, c_long};
use wg_tun::{Device, DeviceConfig};

use crate::support::Namespace;

/// What the kernel does not have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lacks {
    /// It does not know `UDP_SEGMENT`: before Linux 4.18.
    pub(crate) trains: bool,
    /// It does not know `UDP_GRO`: before Linux 5.0.
    pub(crate) received_trains: bool,
    /// Its TUN devices hand over no UDP super-packets: before Linux 6.2.
    pub(crate) udp_super_packets: bool,
    /// Its TUN devices refuse what is written to them as a super-packet of these virtio types.
    pub(crate) written_types: Vec<u8>,
}

/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub(crate) const TCP4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
pub(crate) const TCP6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
pub(crate) const UDP: u8 = 5;

/// What a device was seen to send to one address.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) trains: usize,
    pub(crate) singles: usize,
    /// Trains refused, by us or by the real kernel.
    pub(crate) refused_trains: usize,
    /// Single datagrams refused.
    pub(crate) refused_singles: usize,
    /// Datagrams of the longest train.
    pub(crate) longest: usize,
}

/// What a device was seen to write to its TUN device, by virtio type; 0 for packets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    pub(crate) taken: HashMap<u8, usize>,
    pub(crate) refused: HashMap<u8, usize>,
}

/// The kernel, as one or more devices see it.
pub(crate) struct Kernel(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lacks: Lacks,
    refused_trains: HashMap<IpAddr, c_int>,
    sent: HashMap<IpAddr, Sent>,
    written: Written,
    refused_options: usize,
    socket: Option<RawFd>,
}

impl Kernel {
    pub(crate) fn lacking(lacks: Lacks) -> Kernel {
        Kernel(Arc::new(Mutex::new(State { lacks, ..State::default() })))
    }

    /// Opens a device whose threads live with this kernel.
    pub(crate) fn open(&self, host: &Namespace, config: DeviceConfig) -> Device {
        host.inside(|| {
            self.govern();
            Device::open(config).expect("a device")
        })
    }

    /// Trains to this address are refused from now on.
    pub(crate) fn refuse_trains(&self, to: IpAddr, errno: c_int) {
        self.state().refused_trains.insert(to, errno);
    }

    pub(crate) fn sent(&self, to: IpAddr) -> Sent {
        self.state().sent.get(&to).copied().unwrap_or_default()
    }

    pub(crate) fn written(&self) -> Written {
        self.state().written.clone()
    }

    /// Socket options and offloads that were asked for in vain.
    pub(crate) fn refused_options(&self) -> usize {
        self.state().refused_options
    }

    /// The socket that was last sent from.
    pub(crate) fn socket(&self) -> Option<RawFd> {
        self.state().socket
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("the supervisor does not panic")
    }

    /// From now on the calling thread, and every thread that it starts, lives with this kernel.
    fn govern(&self) {
        let (give, take) = mpsc::channel::<OwnedFd>();
        let state = Arc::clone(&self.0);
        // Started before the filter is there, so that it is not subject to it.
        thread::spawn(move || {
            let Ok(calls) = take.recv() else { return };
            supervise(&calls, &state);
        });
        give.send(install_filter()).expect("the supervisor waits");
    }
}

const GOVERNED: [c_long; 5] =
    [libc::SYS_sendmmsg, libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_ioctl, libc::SYS_write];

fn install_filter() -> OwnedFd {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut program = vec![step(LOAD_NUMBER, 0, 0)];
    for (index, number) in GOVERNED.into_iter().enumerate() {
        program.push(step(JUMP_IF_EQUAL, (GOVERNED.len() - index) as u8, number as u32));
    }
    program.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(RETURN, 0, libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call and has the stated length; a non-negative result is a new descriptor.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let fd = libc::syscall(libc::SYS_seccomp, mode, flags, ptr::from_ref(&program));
        assert!(fd >= 0, "seccomp: {}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as RawFd)
    }
}

/// What a system call gets.
enum Answer {
    /// The real kernel's answer.
    Real,
    Value(i64),
    Error(c_int),
}

/// Answers until no governed thread is left.
fn supervise(calls: &OwnedFd, state: &Mutex<State>) {
    loop {
        let mut entry = libc::pollfd { fd: calls.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, one notification and one response, all of which live through the calls; zero is a value
        // of each.
        unsafe {
            libc::poll(&mut entry, 1, -1);
            if entry.revents & libc::POLLIN == 0 {
                if entry.revents & libc::POLLHUP != 0 {
                    return;
                }
                continue;
            }
            let mut call: libc::seccomp_notif = std::mem::zeroed();
            if libc::ioctl(calls.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) != 0 {
                continue;
            }
            let mut response: libc::seccomp_notif_resp = std::mem::zeroed();
            response.id = call.id;
            match answer(&call.data, state) {
                Answer::Real => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                Answer::Value(value) => response.val = value,
                Answer::Error(errno) => response.error = -errno,
            }
            libc::ioctl(calls.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response);
        }
    }
}

fn answer(call: &libc::seccomp_data, state: &Mutex<State>) -> Answer {
    let lock = || state.lock().expect("the supervisor does not panic");
    let refuse = |is_refused: bool, errno| {
        lock().refused_options += usize::from(is_refused);
        if is_refused { Answer::Error(errno) } else { Answer::Real }
    };
    let [first, second, third, fourth, ..] = call.args;
    let option = (second as c_int, third as c_int);
    match c_long::from(call.nr) {
        libc::SYS_getsockopt | libc::SYS_setsockopt if option == (libc::SOL_UDP, libc::UDP_SEGMENT) => {
            let lacks = lock().lacks.trains;
            refuse(lacks, libc::ENOPROTOOPT)
        }
        libc::SYS_setsockopt if option == (libc::SOL_UDP, libc::UDP_GRO) => {
            let lacks = lock().lacks.received_trains;
            refuse(lacks, libc::ENOPROTOOPT)
        }
        libc::SYS_ioctl if second == libc::TUNSETOFFLOAD as u64 => {
            let wants_udp = third & u64::from(libc::TUN_F_USO4 | libc::TUN_F_USO6) != 0;
            let lacks = lock().lacks.udp_super_packets;
            refuse(lacks && wants_udp, libc::EINVAL)
        }
        libc::SYS_write if is_tun(first as RawFd) && third >= 10 => {
            // SAFETY: the thread that writes waits for the answer, so that its buffer of `third` bytes stays.
            let gso_type = unsafe { *(second as *const u8).add(1) };
            let mut state = lock();
            let is_refused = state.lacks.written_types.contains(&gso_type);
            let Written { taken, refused } = &mut state.written;
            *if is_refused { refused } else { taken }.entry(gso_type).or_default() += 1;
            if is_refused { Answer::Error(libc::EINVAL) } else { Answer::Real }
        }
        // SAFETY: the thread that sends waits for the answer, so that its messages stay.
        libc::SYS_sendmmsg => unsafe {
            send(state, first as RawFd, second as *mut libc::mmsghdr, third, fourth as c_int)
        },
        _ => Answer::Real,
    }
}

fn is_tun(fd: RawFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|path| path.as_os_str() == "/dev/net/tun")
}

/// Sends in the place of the governed thread, up to the first message that this kernel refuses.
///
/// SAFETY: `messages` are `count` messages as sendmmsg wants them.
unsafe fn send(state: &Mutex<State>, socket: RawFd, messages: *mut libc::mmsghdr, count: u64, flags: c_int) -> Answer {
    // SAFETY: as promised.
    let headers = unsafe { std::slice::from_raw_parts(messages, count as usize) };
    // SAFETY: as promised.
    let described: Vec<_> = headers.iter().map(|header| unsafe { describe(&header.msg_hdr) }).collect();
    let mut locked = state.lock().expect("the supervisor does not panic");
    locked.socket = Some(socket);
    let refusal = |&(to, len): &(IpAddr, usize)| if len > 1 { locked.refused_trains.get(&to).copied() } else { None };
    let allowed = described.iter().position(|message| refusal(message).is_some()).unwrap_or(described.len());
    let refused = described.first().and_then(refusal);
    // The lock is kept, so that nobody sees what has arrived and not what was sent.
    let result = match refused {
        Some(errno) => Err(errno),
        None => {
            // SAFETY: as promised.
            let sent = unsafe { libc::sendmmsg(socket, messages, allowed as u32, flags) };
            usize::try_from(sent).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
        }
    };
    match result {
        Ok(count) => {
            for &(to, len) in &described[..count] {
                let sent = locked.sent.entry(to).or_default();
                *if len > 1 { &mut sent.trains } else { &mut sent.singles } += 1;
                sent.longest = sent.longest.max(len);
            }
            Answer::Value(count as i64)
        }
        Err(errno) => {
            if let Some(&(to, len)) = described.first() {
                let sent = locked.sent.entry(to).or_default();
                *if len > 1 { &mut sent.refused_trains } else { &mut sent.refused_singles } += 1;
            }
            Answer::Error(errno)
        }
    }
}

/// Where a message goes, and how many datagrams it is.
///
/// SAFETY: the header must be as sendmmsg wants it.
unsafe fn describe(header: &libc::msghdr) -> (IpAddr, usize) {
    // SAFETY: the name is as long as its family needs, the control messages are well formed, and all vectors are there.
    unsafe {
        let to = match c_int::from((*header.msg_name.cast::<libc::sockaddr>()).sa_family) {
            libc::AF_INET => {
                let name = header.msg_name.cast::<libc::sockaddr_in>().read_unaligned();
                IpAddr::from(Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)))
            }
            _ => {
                let name = header.msg_name.cast::<libc::sockaddr_in6>().read_unaligned();
                IpAddr::from(Ipv6Addr::from(name.sin6_addr.s6_addr))
            }
        };
        let len: usize = (0..header.msg_iovlen as usize).map(|index| (*header.msg_iov.add(index)).iov_len).sum();
        let mut segment_len = len;
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            if ((*at).cmsg_level, (*at).cmsg_type) == (libc::SOL_UDP, libc::UDP_SEGMENT) {
                segment_len = usize::from(libc::CMSG_DATA(at).cast::<u16>().read_unaligned());
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
        (to, len.div_ceil(segment_len.max(1)))
    }
}
