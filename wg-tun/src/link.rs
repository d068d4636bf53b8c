//! Owns the news about a link and about routes: netlink events, read from our own sockets. Decides nothing.
//!
//! Why no netlink crate: three message types are read and two attributes of one of them, on a plain thread that also
//! waits for other descriptors; and a socket belongs to the network namespace it was made in, so that following a link
//! into another namespace means making one there, on a thread that ends afterwards.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use crate::cmsg::{self, LinkState};
use crate::tun::Tun;

/// Tells when a link changes, in the network namespace where it was made.
#[derive(Debug)]
pub(crate) struct LinkWatch {
    socket: OwnedFd,
    index: u32,
}

/// What happened to the link since one last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkNews {
    /// It is like this now.
    State {
        now: LinkState,
        /// It was down meanwhile, if only for a moment.
        was_down: bool,
    },
    /// It was deleted, or moved to another network namespace.
    Left,
    /// Some news were lost; look for yourself.
    Lost,
}

impl LinkWatch {
    /// Watches the link `name` in the calling thread's network namespace; also says how it is now.
    pub(crate) fn here(name: &str) -> io::Result<(LinkWatch, LinkState)> {
        // Listen first, then look: nothing can happen in between unnoticed.
        let socket = cmsg::netlink_socket(libc::RTMGRP_LINK as u32)?;
        let state = cmsg::link_state(name)?;
        Ok((LinkWatch { socket, index: state.index }, state))
    }

    /// Watches the link of `tun` if it is in the calling thread's network namespace, and may be known to be.
    pub(crate) fn at_home(tun: &Tun) -> Option<(LinkWatch, LinkState)> {
        let namespace = tun.namespace().ok()?;
        if !is_ours(&namespace) {
            return None;
        }
        LinkWatch::here(&tun.name().ok()?).ok()
    }

    /// Watches the link of `tun` wherever it is now. Needs CAP_NET_ADMIN there, and CAP_SYS_ADMIN here and there if that
    /// is another network namespace than the calling thread's.
    pub(crate) fn follow(tun: &Tun) -> io::Result<(LinkWatch, LinkState)> {
        let namespace = tun.namespace()?;
        let name = tun.name()?;
        if is_ours(&namespace) {
            return LinkWatch::here(&name);
        }
        let visit = move || {
            cmsg::enter_namespace(namespace.as_fd())?;
            LinkWatch::here(&name)
        };
        thread::Builder::new()
            .name("wgd-netns".into())
            .spawn(visit)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the visit to the link's network namespace panicked")))
    }

    /// The latest news; `None` if there is none. What was lost is asked for, by the same socket, so that it does not
    /// matter in which network namespace that is.
    pub(crate) fn poll(&self) -> Option<LinkNews> {
        let mut news = self.read_news();
        for _ in 0..ASK_AT_MOST {
            if news != Some(LinkNews::Lost) {
                break;
            }
            let mut question = Request::link(self.index);
            // The kernel has answered when the request was written, behind all events that came before.
            if cmsg::write(self.socket.as_fd(), question.finish()).is_err() {
                break;
            }
            news = self.read_news().or(news);
        }
        news
    }

    /// Reads until there is nothing more.
    fn read_news(&self) -> Option<LinkNews> {
        let (mut news, mut was_down, mut has_lost) = (None, false, false);
        let mut buffer = [0; BUFFER_LEN];
        loop {
            match cmsg::read(self.socket.as_fd(), &mut buffer) {
                Ok(len) => {
                    for message in Messages(&buffer[..len]) {
                        let Some(heard) = self.understand(message) else { continue };
                        was_down |= matches!(heard, LinkNews::State { now, .. } if !now.is_up);
                        news = Some(heard);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_lost = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was lost came after what could be read.
                Err(_) if has_lost => return Some(LinkNews::Lost),
                Err(_) => break,
            }
        }
        match news {
            Some(LinkNews::State { now, .. }) => Some(LinkNews::State { now, was_down }),
            other => other,
        }
    }

    fn understand(&self, message: Message<'_>) -> Option<LinkNews> {
        if i32::from(message.kind) == libc::NLMSG_ERROR {
            // The answer to the question how it is.
            return Some(LinkNews::Left);
        }
        let info: &[u8; LINK_INFO_LEN] = message.body.first_chunk()?;
        if u32_at(info, 4) != self.index {
            return None;
        }
        match message.kind {
            libc::RTM_DELLINK => Some(LinkNews::Left),
            libc::RTM_NEWLINK => link_state(message.body).map(|now| LinkNews::State { now, was_down: false }),
            _ => None,
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Tells when routes or addresses change, in the network namespace where it was made.
#[derive(Debug)]
pub(crate) struct RouteWatch {
    socket: OwnedFd,
}

impl RouteWatch {
    pub(crate) fn here() -> io::Result<RouteWatch> {
        let groups =
            libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        Ok(RouteWatch { socket: cmsg::netlink_socket(groups as u32)? })
    }

    /// Whether anything changed since one last asked.
    pub(crate) fn poll(&self) -> bool {
        let mut has_changed = false;
        let mut buffer = [0; BUFFER_LEN];
        loop {
            match cmsg::read(self.socket.as_fd(), &mut buffer) {
                Ok(_) => has_changed = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return has_changed,
            }
        }
    }
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for routes, in the network namespace where it was made.
#[derive(Debug)]
pub(crate) struct RouteQuery {
    socket: OwnedFd,
}

impl RouteQuery {
    pub(crate) fn here() -> io::Result<RouteQuery> {
        Ok(RouteQuery { socket: cmsg::netlink_socket(0)? })
    }

    /// The index of the interface by which a datagram from `source` to `remote`, marked `mark`, would leave; `None` if
    /// there is no such route.
    pub(crate) fn interface(&self, remote: SocketAddr, source: IpAddr, mark: u32) -> Option<u32> {
        let mut request = Request::route(remote.ip());
        for (kind, address) in [(libc::RTA_DST, remote.ip()), (libc::RTA_SRC, source)] {
            match address {
                IpAddr::V4(address) => request.put(kind, &address.octets()),
                IpAddr::V6(address) => request.put(kind, &address.octets()),
            }
        }
        // A link-local address means nothing without its link. RFC 4007 6.
        if let SocketAddr::V6(remote) = remote
            && remote.scope_id() != 0
        {
            request.put(libc::RTA_OIF, &remote.scope_id().to_ne_bytes());
        }
        if mark != 0 {
            request.put(RTA_MARK, &mark.to_ne_bytes());
        }
        let answer = ask(&self.socket, request, libc::RTM_NEWROUTE)?;
        number_in(answer.get(ROUTE_INFO_LEN..)?, libc::RTA_OIF)
    }
}

/// Takes the queueing discipline from the link `name` in the calling thread's network namespace.
///
/// A TUN device never tells it to wait, so that it only costs time; and one with many queues would be given a discipline
/// for each of 256 it may have.
pub(crate) fn remove_queueing(name: &str) -> io::Result<()> {
    let index = cmsg::link_state(name)?.index;
    let mut request = Request::new(libc::RTM_NEWQDISC, DISCIPLINE_INFO_LEN);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
    request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    request.bytes[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&index.to_ne_bytes());
    request.bytes[HEADER_LEN + 12..HEADER_LEN + 16].copy_from_slice(&TC_H_ROOT.to_ne_bytes());
    request.put(TCA_KIND, b"noqueue\0");
    let socket = cmsg::netlink_socket(0)?;
    let answer = ask(&socket, request, libc::NLMSG_ERROR as u16);
    match answer.as_deref().and_then(<[u8]>::first_chunk).map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether the link of `tun` is in the calling thread's network namespace, and may be known to be.
pub(crate) fn is_at_home(tun: &Tun) -> bool {
    tun.namespace().is_ok_and(|namespace| is_ours(&namespace))
}

/// The state of the link of `tun` in a network namespace that may not be entered. Needs CAP_NET_ADMIN here and there.
pub(crate) fn state_elsewhere(tun: &Tun) -> Option<LinkState> {
    let (namespace, name) = (tun.namespace().ok()?, tun.name().ok()?);
    let socket = cmsg::netlink_socket(0).ok()?;
    let namespace = namespace.as_raw_fd().to_ne_bytes();
    // A namespace is named by a number of ours. It is refused one if it has one; either way it has one then.
    let mut naming = Request::new(libc::RTM_NEWNSID, NAMESPACE_INFO_LEN);
    naming.put(NETNSA_FD, &namespace);
    naming.put(NETNSA_NSID, &NETNSA_NSID_NOT_ASSIGNED.to_ne_bytes());
    ask(&socket, naming, libc::RTM_NEWNSID);
    let mut question = Request::new(libc::RTM_GETNSID, NAMESPACE_INFO_LEN);
    question.put(NETNSA_FD, &namespace);
    let answer = ask(&socket, question, libc::RTM_NEWNSID)?;
    let number = number_in(answer.get(NAMESPACE_INFO_LEN..)?, NETNSA_NSID)?;

    let mut question = Request::link(0);
    let mut padded_name = [0; libc::IFNAMSIZ];
    padded_name[..name.len()].copy_from_slice(name.as_bytes());
    question.put(libc::IFLA_IFNAME, &padded_name);
    question.put(IFLA_TARGET_NETNSID, &number.to_ne_bytes());
    link_state(&ask(&socket, question, libc::RTM_NEWLINK)?)
}

/// Asks the kernel; returns the body of its answer.
fn ask(socket: &OwnedFd, mut question: Request, answer_kind: u16) -> Option<Vec<u8>> {
    cmsg::write(socket.as_fd(), question.finish()).ok()?;
    // The kernel has answered when the request was written.
    let mut buffer = [0; BUFFER_LEN];
    let len = cmsg::read(socket.as_fd(), &mut buffer).ok()?;
    let answer = Messages(&buffer[..len]).find(|message| message.kind == answer_kind)?;
    Some(answer.body.to_vec())
}

/// The state in the body of a message about a link.
fn link_state(body: &[u8]) -> Option<LinkState> {
    let info: &[u8; LINK_INFO_LEN] = body.first_chunk()?;
    let is_up = u32_at(info, 8) & libc::IFF_UP as u32 != 0;
    Some(LinkState { index: u32_at(info, 4), mtu: number_in(&body[LINK_INFO_LEN..], libc::IFLA_MTU)?, is_up })
}

/// The integer that is the value of an attribute.
fn number_in(attributes: &[u8], kind: u16) -> Option<u32> {
    let attribute = Attributes(attributes).find(|attribute| attribute.kind == kind)?;
    attribute.value.first_chunk().map(|value| u32::from_ne_bytes(*value))
}

/// Whether a network namespace is that of the calling thread.
fn is_ours(namespace: &OwnedFd) -> bool {
    let identity = |file: File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
    let theirs = namespace.try_clone().ok().and_then(|fd| identity(fd.into()));
    let ours = File::open("/proc/thread-self/ns/net").ok().and_then(identity);
    theirs.is_some() && theirs == ours
}

/// A netlink request being written.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// For the state of a link.
    fn link(index: u32) -> Request {
        let mut request = Request::new(libc::RTM_GETLINK, LINK_INFO_LEN);
        request.bytes[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&index.to_ne_bytes());
        request
    }

    /// For the route to `remote`.
    fn route(remote: IpAddr) -> Request {
        let (family, prefix_len) = match remote {
            IpAddr::V4(_) => (libc::AF_INET, 32),
            IpAddr::V6(_) => (libc::AF_INET6, 128),
        };
        let mut request = Request::new(libc::RTM_GETROUTE, ROUTE_INFO_LEN);
        request.bytes[HEADER_LEN] = family as u8;
        request.bytes[HEADER_LEN + 1] = prefix_len;
        request.bytes[HEADER_LEN + 2] = prefix_len;
        request
    }

    fn new(kind: u16, fixed_len: usize) -> Request {
        let mut bytes = vec![0; HEADER_LEN + fixed_len];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        Request { bytes }
    }

    /// `value` is a multiple of four bytes.
    fn put(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(((ATTRIBUTE_HEADER_LEN + value.len()) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
    }

    fn finish(&mut self) -> &[u8] {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        &self.bytes
    }
}

/// How often one asks for lost news: the answer may be lost in a flood too.
const ASK_AT_MOST: usize = 4;
/// Length of `struct tcmsg`.
const DISCIPLINE_INFO_LEN: usize = 20;
/// `linux/pkt_sched.h`, `linux/rtnetlink.h`; libc does not name them for every target.
const TC_H_ROOT: u32 = 0xffff_ffff;
const TCA_KIND: u16 = 1;
/// Length of `struct rtmsg`.
const ROUTE_INFO_LEN: usize = 12;
/// Length of `struct rtgenmsg`, padded.
const NAMESPACE_INFO_LEN: usize = 4;
/// Attributes of namespaces, and the number that asks for any. `linux/net_namespace.h`; libc does not name them.
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const NETNSA_NSID_NOT_ASSIGNED: i32 = -1;
/// In which namespace a link is asked for, by number. `linux/if_link.h`.
const IFLA_TARGET_NETNSID: u16 = 46;
/// `RTA_MARK`, which libc does not name.
const RTA_MARK: u16 = 16;
/// Larger than any message about one link.
const BUFFER_LEN: usize = 16 << 10;
/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// Length of `struct ifinfomsg`: family, type, index, flags, change mask.
const LINK_INFO_LEN: usize = 16;
/// Length of `struct rtattr`.
const ATTRIBUTE_HEADER_LEN: usize = 4;

#[derive(Clone, Copy)]
struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

/// The messages of one read.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; HEADER_LEN] = self.0.first_chunk()?;
        let len = u32_at(header, 0) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = self.0.get(HEADER_LEN..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    }
}

#[derive(Clone, Copy)]
struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
}

/// The attributes behind a message's fixed part.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let header: &[u8; ATTRIBUTE_HEADER_LEN] = self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = self.0.get(ATTRIBUTE_HEADER_LEN..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Does something in a network namespace that ends with it; says so if that is not allowed.
    fn in_new_namespace(work: impl FnOnce() + Send) {
        let visit = || match cmsg::enter_new_namespace() {
            Ok(()) => work(),
            Err(error) => println!("skipped: no network namespace can be made: {error}"),
        };
        thread::scope(|scope| scope.spawn(visit).join().expect("the work inside panicked"));
    }

    /// Runs these commands of `ip`, one a line, in the calling thread's namespace.
    fn ip(commands: &str) {
        let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn what_was_lost_of_the_news_is_asked_for_where_the_link_is() {
        in_new_namespace(|| {
            ip("link add v0 mtu 1400 type veth peer name v1\n");
            let (watch, state) = LinkWatch::here("v0").unwrap();
            assert_eq!((state.mtu, watch.poll()), (1400, None));
            cmsg::set_option(watch.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 4096).unwrap();
            let flood = |last: &str| {
                let changes = (0..200).map(|n| format!("link set v0 mtu {}\n", 1300 + n % 2));
                ip(&changes.chain([last.to_owned()]).collect::<String>());
            };
            let home = File::open("/proc/thread-self/ns/net").unwrap();
            let news_elsewhere = || {
                // The socket is where the link is; it does not matter where we are.
                cmsg::enter_new_namespace().unwrap();
                let news = (watch.poll(), watch.poll());
                cmsg::enter_namespace(home.as_fd()).unwrap();
                news
            };
            flood("link set v0 mtu 1280 up\n");
            let state = LinkState { index: state.index, mtu: 1280, is_up: true };
            assert_eq!(news_elsewhere(), (Some(LinkNews::State { now: state, was_down: false }), None));
            flood("link delete v0\n");
            assert_eq!(news_elsewhere(), (Some(LinkNews::Left), None));
        });
    }

    #[test]
    fn a_link_local_address_is_looked_up_on_its_own_link() {
        in_new_namespace(|| {
            ip("link add v0 up type veth peer name v1\nlink set v1 up\n");
            ip("addr add fe80::1/64 dev v0 nodad\naddr add fe80::1/64 dev v1 nodad\n");
            let query = RouteQuery::here().unwrap();
            for name in ["v0", "v1"] {
                let index = cmsg::link_state(name).unwrap().index;
                let remote = std::net::SocketAddrV6::new("fe80::9".parse().unwrap(), 1, 0, index);
                assert_eq!(query.interface(remote.into(), "fe80::1".parse().unwrap(), 0), Some(index), "{name}");
            }
        });
    }
}
