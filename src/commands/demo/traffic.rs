//! Owns what the client and the nodes say to each other: questions that name the node that answers, pings, and bulk
//! TCP. Plain sockets in the namespace they are told; knows nothing of tunnels.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::namespaces::Netns;

/// Answers every question that reaches `service` inside `place` with the question and `node`, until the process ends.
pub(super) fn answer_questions(place: &Netns, service: SocketAddrV4, node: u8) -> io::Result<()> {
    let socket = place.within(|| UdpSocket::bind(service))?;
    thread::spawn(move || {
        let mut buffer = [0; ANSWER_LEN];
        loop {
            // Only a question fits; an error, such as an earlier answer that was refused, concerns one packet.
            if let Ok((QUESTION_LEN, asker)) = socket.recv_from(&mut buffer) {
                buffer[QUESTION_LEN] = node;
                let _ = socket.send_to(&buffer, asker);
            }
        }
    });
    Ok(())
}

/// Asks the service which node it is on; each question is one packet there and one back.
pub(super) struct Asker {
    socket: UdpSocket,
    next: u64,
}

/// One question on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trip {
    /// When it was sent.
    pub(super) sent: Instant,
    /// When and by which node it was answered, if it was.
    pub(super) answered: Option<(Instant, u8)>,
}

impl Asker {
    /// Asks from inside `place`.
    pub(super) fn new(place: &Netns, service: SocketAddrV4) -> io::Result<Asker> {
        let socket = place.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(service)?;
            Ok(socket)
        })?;
        Ok(Asker { socket, next: 0 })
    }

    /// Sends one packet and waits for its answer: the node, and the time there and back.
    pub(super) fn ask(&mut self) -> io::Result<(u8, Duration)> {
        self.socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        // Sending may hand the processor to whoever answers, so the clock is read before.
        let begin = Instant::now();
        let number = self.send()?;
        loop {
            let (answer, node) = self.receive()?;
            if answer == number {
                return Ok((node, begin.elapsed()));
            }
        }
    }

    /// Sends `count` packets, one every `interval`, while `meanwhile` runs; then what became of each, in order.
    pub(super) fn ask_steadily<T>(
        &mut self,
        count: usize,
        interval: Duration,
        meanwhile: impl FnOnce() -> T,
    ) -> io::Result<(Vec<Trip>, T)> {
        let first = self.next;
        self.next += count as u64;
        let this = &*self;
        thread::scope(|scope| {
            let sender = scope.spawn(move || this.send_steadily(first, count, interval));
            let receiver = scope.spawn(move || this.receive_all(first, count));
            let result = meanwhile();
            let sent = sender.join().expect("the sender does not panic")?;
            let answered = receiver.join().expect("the receiver does not panic")?;
            let trips = sent.into_iter().zip(answered).map(|(sent, answered)| Trip { sent, answered });
            Ok((trips.collect(), result))
        })
    }

    fn send(&mut self) -> io::Result<u64> {
        let number = self.next;
        self.next += 1;
        self.socket.send(&number.to_be_bytes())?;
        Ok(number)
    }

    fn send_steadily(&self, first: u64, count: usize, interval: Duration) -> io::Result<Vec<Instant>> {
        let begin = Instant::now();
        let mut sent = Vec::with_capacity(count);
        for index in 0..count {
            let due = begin + interval * index as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            sent.push(Instant::now());
            self.socket.send(&(first + index as u64).to_be_bytes())?;
        }
        Ok(sent)
    }

    /// Collects the answers until all are there or none comes any more.
    fn receive_all(&self, first: u64, count: usize) -> io::Result<Vec<Option<(Instant, u8)>>> {
        self.socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut answers = vec![None; count];
        let mut missing = count;
        while missing > 0 {
            let (number, node) = match self.receive() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                other => other?,
            };
            let index = number.checked_sub(first).and_then(|index| usize::try_from(index).ok());
            let Some(answer) = index.and_then(|index| answers.get_mut(index)) else { continue };
            if answer.replace((Instant::now(), node)).is_none() {
                missing -= 1;
            }
        }
        Ok(answers)
    }

    fn receive(&self) -> io::Result<(u64, u8)> {
        let mut answer = [0; ANSWER_LEN];
        loop {
            if self.socket.recv(&mut answer)? == ANSWER_LEN {
                let (number, node) = answer.split_at(QUESTION_LEN);
                return Ok((u64::from_be_bytes(number.try_into().expect("eight bytes")), node[0]));
            }
        }
    }
}

/// The times of a series of echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echoes {
    /// Echo requests sent.
    pub(super) sent: u32,
    /// Echo replies received.
    pub(super) received: u32,
    /// The fastest.
    pub(super) min: Duration,
    /// The mean.
    pub(super) average: Duration,
    /// The slowest.
    pub(super) max: Duration,
}

/// Pings `target` from inside `place`, one ICMP echo every `interval`, until `count` are sent or `is_over` says so, or
/// [`TOO_MANY_LOST`] were not answered.
pub(super) fn ping(
    place: &Netns,
    target: Ipv4Addr,
    count: u32,
    interval: Duration,
    is_over: impl Fn() -> bool,
) -> io::Result<Echoes> {
    let mut socket = place.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.connect(&SocketAddr::from((target, 0)).into())?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(socket)
    })?;
    let identifier = std::process::id() as u16;
    let (mut sent, mut times) = (0, Vec::new());
    while sent < count && sent - (times.len() as u32) < TOO_MANY_LOST && !is_over() {
        let begin = Instant::now();
        socket.write_all(&echo_request(identifier, sent as u16))?;
        match wait_for_echo(&mut socket, identifier, sent as u16) {
            Ok(()) => times.push(begin.elapsed()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        sent += 1;
        thread::sleep((begin + interval).saturating_duration_since(Instant::now()));
    }
    let received = times.len() as u32;
    let total: Duration = times.iter().sum();
    let (min, max) = (times.iter().min(), times.iter().max());
    let (min, max) = (min.copied().unwrap_or_default(), max.copied().unwrap_or_default());
    Ok(Echoes { sent, received, min, average: total.checked_div(received).unwrap_or_default(), max })
}

fn wait_for_echo(socket: &mut Socket, identifier: u16, sequence: u16) -> io::Result<()> {
    let mut buffer = [0; 1500];
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        let len = socket.read(&mut buffer)?;
        if is_echo_reply(&buffer[..len], identifier, sequence) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(ErrorKind::WouldBlock.into());
        }
    }
}

/// An ICMP echo request with 56 bytes of payload, as ping sends. RFC 792.
fn echo_request(identifier: u16, sequence: u16) -> [u8; 64] {
    let mut message = [0; 64];
    message[0] = ECHO_REQUEST;
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    let words = message.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    message
}

/// Whether `packet`, an IPv4 packet as a raw socket delivers it, is the answer to that request.
fn is_echo_reply(packet: &[u8], identifier: u16, sequence: u16) -> bool {
    let header_len = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    let Some(message) = packet.get(header_len..).filter(|message| message.len() >= 8) else { return false };
    message[0] == ECHO_REPLY && message[4..6] == identifier.to_be_bytes() && message[6..8] == sequence.to_be_bytes()
}

/// Which end of a TCP connection sends the bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client that connects.
    ToNode,
    /// From the node that listens.
    ToClient,
}

/// What arrived over a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    /// Bytes the receiver read.
    pub(super) bytes: u64,
    /// From its start to its end of the stream.
    pub(super) time: Duration,
}

/// One TCP connection from `client` to `service` on `node`, filled for `length`.
pub(super) fn transfer(
    (client, node): (&Netns, &Netns),
    service: SocketAddrV4,
    direction: Direction,
    length: Duration,
) -> io::Result<Transfer> {
    let listener = node.within(|| TcpListener::bind(service))?;
    let near = client.within(|| TcpStream::connect_timeout(&service.into(), ANSWER_TIMEOUT))?;
    let (far, _) = listener.accept()?;
    let (sender, receiver) = match direction {
        Direction::ToNode => (near, far),
        Direction::ToClient => (far, near),
    };
    sender.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    receiver.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    thread::scope(|scope| {
        let filling = scope.spawn(move || fill(sender, length));
        let received = drain(receiver);
        filling.join().expect("the sender does not panic")?;
        received
    })
}

fn fill(mut sender: TcpStream, length: Duration) -> io::Result<()> {
    let bulk = vec![0x5a; BULK_LEN];
    let begin = Instant::now();
    while begin.elapsed() < length {
        sender.write_all(&bulk)?;
    }
    sender.shutdown(Shutdown::Write)
}

fn drain(mut receiver: TcpStream) -> io::Result<Transfer> {
    let mut buffer = vec![0; BULK_LEN];
    let begin = Instant::now();
    let mut bytes = 0;
    loop {
        match receiver.read(&mut buffer)? {
            0 => return Ok(Transfer { bytes, time: begin.elapsed() }),
            len => bytes += len as u64,
        }
    }
}

/// A question is its number; an answer repeats it and adds the node.
const QUESTION_LEN: usize = 8;
const ANSWER_LEN: usize = QUESTION_LEN + 1;
/// Long enough for a handshake on a busy machine and for none to be repeated (5 s, \[W\] 6.1).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Each lost echo costs [`ANSWER_TIMEOUT`]; a dead path must not cost minutes.
const TOO_MANY_LOST: u32 = 2;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const BULK_LEN: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_sums_to_minus_zero() {
        let message = echo_request(0xbeef, 0xff01);
        let sum: u32 = message.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn only_the_reply_to_this_very_request_counts() {
        let mut packet = vec![0x46; 24];
        packet.extend(echo_request(7, 9));
        assert!(!is_echo_reply(&packet, 7, 9), "a request is no reply");
        packet[24] = ECHO_REPLY;
        assert!(is_echo_reply(&packet, 7, 9));
        assert!(!is_echo_reply(&packet, 8, 9));
        assert!(!is_echo_reply(&packet, 7, 8));
        for len in 0..32 {
            assert!(!is_echo_reply(&packet[..len], 7, 9), "{len} bytes");
        }
    }
}
