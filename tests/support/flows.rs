//! TCP and UDP between simulated hosts with every byte checked: owns what is sent, how, and the comparison at the other
//! end. Between which hosts, and through what, is the test's matter.
//!
//! A flow has a content of its own, a stream that its seed determines. A datagram carries what follows the datagram
//! before it, so anything lost, doubled, out of order, cut, or of another flow differs from what is expected there.

#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of the harness")]

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::socket::sockopt::{RcvBufForce, UdpGroSegment};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, setsockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::netns::{Host, SOON};

// ------------------------------------------------------------------------------------------------------------- content

/// An endless stream of bytes that its seed determines; it repeats after [`PERIOD`] bytes.
pub struct Content {
    bytes: Vec<u8>,
}

impl Content {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Content {
        let mut state = seed;
        let words = std::iter::repeat_with(|| splitmix(&mut state).to_le_bytes());
        Content { bytes: words.flatten().take(PERIOD).collect() }
    }

    /// Writes what the stream has from `offset`.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        self.pieces(offset, buffer.len(), |at, expected| buffer[at..at + expected.len()].copy_from_slice(expected));
    }

    /// Panics unless `received` is what the stream has from `offset`.
    #[track_caller]
    pub fn check(&self, offset: u64, received: &[u8], what: &str) {
        self.pieces(offset, received.len(), |at, expected| {
            let part = &received[at..at + expected.len()];
            if part != expected {
                let wrong = part.iter().zip(expected).position(|(one, other)| one != other).unwrap_or_default();
                let byte = at + wrong;
                panic!("{what}: byte {byte} of {} differs ({} of the stream)", received.len(), offset + byte as u64);
            }
        });
    }

    fn pieces(&self, offset: u64, len: usize, mut each: impl FnMut(usize, &[u8])) {
        let mut done = 0;
        while done < len {
            let place = ((offset + done as u64) % PERIOD as u64) as usize;
            let piece = &self.bytes[place..PERIOD.min(place + len - done)];
            each(done, piece);
            done += piece.len();
        }
    }
}

/// A prime, so that nothing in a packet or a super-packet repeats in step with the content.
const PERIOD: usize = 1_048_573;

/// splitmix64, by Steele, Lea and Flood.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

// --------------------------------------------------------------------------------------------------------------- hosts

/// One direction between two hosts.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// Who sends.
    pub from: &'a Host,
    /// From where.
    pub source: IpAddr,
    /// Who receives.
    pub to: &'a Host,
    /// Where.
    pub target: IpAddr,
}

impl Way<'_> {
    /// The same the other way round.
    pub fn back(self) -> Self {
        Way { from: self.to, source: self.target, to: self.from, target: self.source }
    }

    /// Bytes of the IP header.
    pub fn ip_header_len(self) -> usize {
        if self.source.is_ipv4() { 20 } else { 40 }
    }

    fn name(self) -> String {
        format!("{} {} -> {} {}", self.from.name(), self.source, self.to.name(), self.target)
    }
}

// ----------------------------------------------------------------------------------------------------------------- UDP

/// Datagrams that leave together: `count` of `len` bytes, then one of `last_len` unless that is 0.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    pub len: usize,
    pub count: usize,
    pub last_len: usize,
}

impl Burst {
    /// One datagram.
    pub fn one(len: usize) -> Burst {
        Burst { len, count: 1, last_len: 0 }
    }

    fn lens(self) -> impl Iterator<Item = usize> {
        std::iter::repeat_n(self.len, self.count).chain((self.last_len > 0).then_some(self.last_len))
    }
}

/// How a burst is handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// A system call per datagram.
    Singly,
    /// As [`Sending::Singly`], without a checksum. IPv4 only.
    WithoutChecksum,
    /// One system call with `UDP_SEGMENT`.
    Segmented,
}

/// How the other end takes datagrams from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiving {
    /// As they are.
    Singly,
    /// With `UDP_GRO`: several of one flow at once.
    Joined,
}

/// A UDP flow to that port, from the port after it.
#[derive(Clone, Copy)]
pub struct UdpFlow<'a> {
    pub way: Way<'a>,
    pub port: u16,
    pub sending: Sending,
    pub receiving: Receiving,
    pub seed: u64,
}

/// What the receiver of a UDP flow saw, beyond what was expected.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpReport {
    /// Datagrams received.
    pub datagrams: u64,
    /// System calls that returned more than one.
    pub joined: u64,
}

impl UdpFlow<'_> {
    /// Sends all bursts, never more at a time than any queue on the way holds; panics unless every datagram arrives
    /// once, in order, with its length and its content.
    #[track_caller]
    pub fn run(&self, bursts: &[Burst]) -> UdpReport {
        let (source, target) = self.ends();
        let sender = open(self.way.from, source, target);
        let receiver = open(self.way.to, target, source);
        setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).expect("root sets any buffer size");
        receiver.set_read_timeout(Some(SOON)).expect("a timeout can be set");
        if self.sending == Sending::WithoutChecksum {
            setsockopt(&sender, NoChecksum, &true).expect("SO_NO_CHECK is old");
        }
        if self.receiving == Receiving::Joined {
            setsockopt(&receiver, UdpGroSegment, &true).expect("UDP_GRO is there since Linux 5.0");
        }
        let window = Window::default();
        thread::scope(|scope| {
            let receiving = scope.spawn(|| self.receive(&receiver, bursts, &window));
            self.send(&sender, bursts, &window);
            receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// From a port of its own: the flow back, at the same time, is another one.
    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (SocketAddr::new(self.way.source, self.port + 1), SocketAddr::new(self.way.target, self.port))
    }

    fn send(&self, socket: &UdpSocket, bursts: &[Burst], window: &Window) {
        let content = Content::new(self.seed);
        let mut buffer = vec![0; 65_535];
        let (mut offset, mut cost) = (0, 0);
        for &burst in bursts {
            if !window.wait_until_under_way_is_at_most(cost, WINDOW) {
                return;
            }
            let mut end = 0;
            for len in burst.lens() {
                content.fill(offset, &mut buffer[end..end + len]);
                if self.sending != Sending::Segmented {
                    let sent = socket.send(&buffer[end..end + len]);
                    assert_eq!(sent.ok(), Some(len), "{}: sending {burst:?}", self.name());
                }
                (end, offset, cost) = (end + len, offset + len as u64, cost + cost_of(len));
            }
            if self.sending == Sending::Segmented {
                let segment_len = burst.len.try_into().expect("a length of a datagram");
                let train = [IoSlice::new(&buffer[..end])];
                let control = [ControlMessage::UdpGsoSegments(&segment_len)];
                let descriptor = std::os::fd::AsRawFd::as_raw_fd(socket);
                let sent = sendmsg::<()>(descriptor, &train, &control, MsgFlags::empty(), None);
                assert_eq!(sent, Ok(end), "{}: sending {burst:?}", self.name());
            }
        }
    }

    fn receive(&self, socket: &UdpSocket, bursts: &[Burst], window: &Window) -> UdpReport {
        let _closed = CloseOnDrop(window);
        let content = Content::new(self.seed);
        let mut expected = bursts.iter().flat_map(|burst| burst.lens()).enumerate().peekable();
        let mut buffer = vec![0; 65_536];
        let mut offset = 0;
        let mut report = UdpReport::default();
        while let Some(&(number, first_len)) = expected.peek() {
            let (len, segment_len) = receive(socket, &mut buffer).unwrap_or_else(|error| {
                panic!("{}: datagram {number} of {first_len} bytes did not come: {error}", self.name())
            });
            report.joined += u64::from(segment_len < len);
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let (datagram, behind) = rest.split_at(segment_len.min(rest.len()));
                let (number, len) = expected.next().expect("more came than was sent");
                assert_eq!(datagram.len(), len, "{}: length of datagram {number}", self.name());
                content.check(offset, datagram, &format!("{}: datagram {number}", self.name()));
                offset += len as u64;
                report.datagrams += 1;
                window.arrived(cost_of(len));
                rest = behind;
            }
        }
        socket.set_nonblocking(true).expect("sockets can be nonblocking");
        let more = socket.recv(&mut buffer).map_err(|error| error.kind());
        assert_eq!(more, Err(ErrorKind::WouldBlock), "{}: more came than was sent", self.name());
        report
    }

    fn name(&self) -> String {
        format!("UDP {}, {:?} to {:?}, port {}", self.way.name(), self.sending, self.receiving, self.port)
    }
}

/// A socket of `host` for datagrams between the two.
#[track_caller]
fn open(host: &Host, own: SocketAddr, other: SocketAddr) -> UdpSocket {
    let socket = host.within(|| Socket::new(Domain::for_address(own), Type::DGRAM, None).expect("a socket"));
    // Several flows of one host use the same port; each is connected to its own other end.
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.bind(&SockAddr::from(own)).expect("the address is the host's");
    socket.connect(&SockAddr::from(other)).expect("there is a route");
    socket.into()
}

/// Sends without a checksum: SO_NO_CHECK. udp(7) and socket(7) do not describe it.
#[derive(Clone, Copy)]
struct NoChecksum;

nix::setsockopt_impl!(NoChecksum, libc::SOL_SOCKET, libc::SO_NO_CHECK, bool, nix::sys::socket::sockopt::SetBool);

/// Length of what came, and of each datagram in it but the last.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> nix::Result<(usize, usize)> {
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(buffer)];
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(socket);
    let message = recvmsg::<()>(descriptor, &mut parts, Some(&mut control), MsgFlags::empty())?;
    let segment_len = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(len) => usize::try_from(len).ok(),
        _ => None,
    });
    Ok((message.bytes, segment_len.unwrap_or(message.bytes).max(1)))
}

/// How much is under way: what the sender has sent and the receiver has not seen.
#[derive(Default)]
struct Window {
    arrived: Mutex<(u64, bool)>,
    moved: Condvar,
}

impl Window {
    fn arrived(&self, cost: u64) {
        self.arrived.lock().expect("nobody panics with it").0 += cost;
        self.moved.notify_one();
    }

    /// Whether anybody still receives then.
    fn wait_until_under_way_is_at_most(&self, sent: u64, most: u64) -> bool {
        let arrived = self.arrived.lock().expect("nobody panics with it");
        let enough = |state: &mut (u64, bool)| !state.1 && sent - state.0 > most;
        let (state, _) = self.moved.wait_timeout_while(arrived, 2 * SOON, enough).expect("nobody panics with it");
        !state.1 && sent - state.0 <= most
    }
}

/// Lets the sender go when the receiver has ended, however it has.
struct CloseOnDrop<'a>(&'a Window);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.arrived.lock() {
            state.1 = true;
        }
        self.0.moved.notify_one();
    }
}

/// What a datagram takes of a socket buffer, roughly.
fn cost_of(len: usize) -> u64 {
    len as u64 + 512
}

/// Far less than a TUN device's queue of 500 packets or any socket's buffer takes; a burst more may be under way.
const WINDOW: u64 = 65_536;
/// In bytes: a window and a burst of the smallest datagrams, with what the kernel adds to each.
const RECEIVE_BUFFER: usize = 8 << 20;

// ----------------------------------------------------------------------------------------------------------------- TCP

/// What is in flight between two writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A write waits until all before it has arrived: each leaves as a packet of its size, or as a super-packet.
    EachArrives,
    /// As fast as TCP takes it.
    Stream,
}

/// A TCP connection that carries bytes one way.
#[derive(Clone, Copy)]
pub struct TcpFlow<'a> {
    pub way: Way<'a>,
    pub port: u16,
    pub pace: Pace,
    /// `None` for what the route gives.
    pub segment_len: Option<u32>,
    pub seed: u64,
}

impl TcpFlow<'_> {
    /// Makes the writes, of those lengths; panics unless the stream arrives, and ends, as it was written.
    #[track_caller]
    pub fn run(&self, writes: &[usize]) {
        let (sender, receiver) = connect(self.way, self.port, self.segment_len);
        sender.set_nodelay(true).expect("TCP_NODELAY");
        receiver.set_read_timeout(Some(SOON)).expect("a timeout can be set");
        sender.set_write_timeout(Some(SOON)).expect("a timeout can be set");
        let window = Window::default();
        thread::scope(|scope| {
            let receiving = scope.spawn(|| self.receive(receiver, writes.iter().map(|&len| len as u64).sum(), &window));
            self.send(sender, writes, &window);
            receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    fn send(&self, mut sender: TcpStream, writes: &[usize], window: &Window) {
        let content = Content::new(self.seed);
        let mut buffer = vec![0; writes.iter().copied().max().unwrap_or(0)];
        let mut offset = 0;
        for &len in writes {
            if self.pace == Pace::EachArrives && !window.wait_until_under_way_is_at_most(offset, 0) {
                return;
            }
            content.fill(offset, &mut buffer[..len]);
            if let Err(error) = sender.write_all(&buffer[..len]) {
                panic!("{}: writing {len} bytes at {offset}: {error}", self.name());
            }
            offset += len as u64;
        }
        sender.shutdown(Shutdown::Write).expect("the connection is open");
    }

    fn receive(&self, mut receiver: TcpStream, total: u64, window: &Window) {
        let _closed = CloseOnDrop(window);
        let content = Content::new(self.seed);
        let mut buffer = vec![0; 1 << 18];
        let mut offset = 0;
        loop {
            let len = receiver
                .read(&mut buffer)
                .unwrap_or_else(|error| panic!("{}: reading at {offset} of {total}: {error}", self.name()));
            if len == 0 {
                break;
            }
            content.check(offset, &buffer[..len], &self.name());
            offset += len as u64;
            window.arrived(len as u64);
        }
        assert_eq!(offset, total, "{}: bytes until the end", self.name());
    }

    fn name(&self) -> String {
        format!("TCP {}, {:?}, segments of {:?}, port {}", self.way.name(), self.pace, self.segment_len, self.port)
    }
}

/// The two ends of a new connection: the one at `way.from` first.
#[track_caller]
pub fn connect(way: Way<'_>, port: u16, segment_len: Option<u32>) -> (TcpStream, TcpStream) {
    let listening = SocketAddr::new(way.target, port);
    let listener = way.to.within(|| TcpListener::bind(listening)).expect("the address is the host's, the port free");
    let socket = way.from.within(|| Socket::new(Domain::for_address(listening), Type::STREAM, None)).expect("a socket");
    if let Some(len) = segment_len {
        socket.set_tcp_mss(len).expect("TCP_MAXSEG");
    }
    socket.bind(&SockAddr::from(SocketAddr::new(way.source, 0))).expect("the address is the host's");
    if let Err(error) = socket.connect_timeout(&SockAddr::from(listening), SOON) {
        panic!("{}, port {port}: {error}", way.name());
    }
    let (receiver, _) = listener.accept().expect("the other end is connected");
    (socket.into(), receiver)
}

/// How long a connection may stand still while its tunnel is taken from under it.
pub const STANDSTILL: Duration = Duration::from_secs(60);
