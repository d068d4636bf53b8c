//! Echo requests from simulated hosts, with exact counts.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Host, SOON, wait_until};

impl Host {
    /// Sends one echo request at a time, as fast as the answers come, until one is answered. Panics after [`SOON`].
    #[track_caller]
    pub fn reach(&self, target: &str) {
        let target: IpAddr = target.parse().expect("an address");
        let answered = self.within(|| {
            let deadline = Instant::now() + SOON;
            let pinger = Pinger::new(target);
            (0..).take_while(|_| Instant::now() < deadline).any(|number| pinger.ask(number, Duration::from_millis(500)))
        });
        assert!(answered, "{} cannot reach {target}", self.name);
    }

    /// Whether one echo request is answered within `patience`.
    pub fn ping(&self, target: &str, patience: Duration) -> bool {
        let target: IpAddr = target.parse().expect("an address");
        self.within(|| Pinger::new(target).ask(0, patience))
    }

    /// Sends echo requests at a steady pace until [`Pings::finish`].
    pub fn ping_every(&self, interval: Duration, target: &str) -> Pings {
        let target: IpAddr = target.parse().expect("an address");
        Pings::start(self.within(|| Pinger::new(target)), interval)
    }
}

/// Asks one address for echoes, over a socket of one namespace.
struct Pinger {
    socket: UdpSocket,
    target: IpAddr,
}

impl Pinger {
    fn new(target: IpAddr) -> Pinger {
        let (domain, protocol) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).expect("the host allows echo sockets to root");
        Pinger { socket: socket.into(), target }
    }

    /// Sends echo request `number`; whether the host had a way to send it. The kernel fills identifier and checksum.
    fn send(&self, number: u32) -> bool {
        let request = if self.target.is_ipv4() { 8 } else { 128 };
        let mut message = vec![0; 64];
        message[0] = request;
        message[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        message[8..12].copy_from_slice(&number.to_be_bytes());
        self.socket.send_to(&message, SocketAddr::new(self.target, 0)).is_ok()
    }

    /// The number of the next echo that comes within `patience`.
    fn receive(&self, patience: Duration) -> Option<u32> {
        let answer = if self.target.is_ipv4() { 0 } else { 129 };
        let deadline = Instant::now() + patience;
        let mut message = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).expect("a timeout can be set");
            match self.socket.recv_from(&mut message) {
                Ok((64, from)) if message[0] == answer && from.ip() == self.target => {
                    return Some(u32::from_be_bytes(message[8..12].try_into().expect("four bytes")));
                }
                Ok(_) => continue,
                // An ICMP error for an earlier request, or the end of our patience, which the next round finds.
                Err(_) => thread::sleep(Duration::from_millis(1).min(left)),
            }
        }
    }

    fn ask(&self, number: u32, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        if !self.send(number) {
            thread::sleep(Duration::from_millis(10));
            return false;
        }
        loop {
            match self.receive(deadline.saturating_duration_since(Instant::now())) {
                Some(answer) if answer == number => return true,
                Some(_) => continue,
                None => return false,
            }
        }
    }
}

/// A running series of echo requests.
pub struct Pings {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<PingReport>,
}

/// What became of a series of echo requests.
#[derive(Debug)]
pub struct PingReport {
    /// How many went out.
    pub sent: u32,
    /// The numbers (from 0, in the order of sending) that were never answered.
    pub lost: BTreeSet<u32>,
    /// The longest time to an answer.
    pub slowest: Duration,
}

impl PingReport {
    /// Panics unless at least `at_least` were sent and all were answered.
    #[track_caller]
    pub fn assert_nothing_lost(&self, at_least: u32) {
        assert!(self.sent >= at_least, "only {} requests were sent", self.sent);
        assert!(self.lost.is_empty(), "{} of {} lost: numbers {:?}", self.lost.len(), self.sent, self.lost);
    }
}

impl Pings {
    fn start(pinger: Pinger, interval: Duration) -> Pings {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, answered) = (stop.clone(), answered.clone());
            move || Pings::run(&pinger, interval, &stop, &answered)
        });
        Pings { stop, answered, thread }
    }

    fn run(pinger: &Pinger, interval: Duration, stop: &AtomicBool, answered: &AtomicU64) -> PingReport {
        let mut report = PingReport { sent: 0, lost: BTreeSet::new(), slowest: Duration::ZERO };
        let mut sent_at: Vec<Instant> = Vec::new();
        let take = |patience: Duration, sent_at: &[Instant], report: &mut PingReport| {
            let Some(number) = pinger.receive(patience) else { return };
            if report.lost.remove(&number) {
                report.slowest = report.slowest.max(sent_at[number as usize].elapsed());
                answered.fetch_add(1, Ordering::Relaxed);
            }
        };
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            sent_at.push(Instant::now());
            report.lost.insert(report.sent);
            pinger.send(report.sent);
            report.sent += 1;
            let next = start + interval * report.sent;
            while Instant::now() < next {
                take(next.saturating_duration_since(Instant::now()), &sent_at, &mut report);
            }
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while !report.lost.is_empty() && Instant::now() < deadline {
            take(Duration::from_millis(100), &sent_at, &mut report);
        }
        report
    }

    /// How many were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Returns when `count` more have been answered than now.
    #[track_caller]
    pub fn wait_for(&self, count: u64) {
        let goal = self.answered() + count;
        wait_until("echo replies come", Duration::from_secs(60), || (self.answered() >= goal).then_some(()));
    }

    /// Stops sending, waits two seconds for what is still under way, and reports.
    pub fn finish(self) -> PingReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
