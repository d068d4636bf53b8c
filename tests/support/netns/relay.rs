//! A translating router for one UDP flow, with a memory.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Host;

/// Which way a datagram went through a [`Relay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// To the fixed address the relay was made for.
    Server,
    /// Back to whoever sent last.
    Client,
}

/// A translating router for one UDP flow, on one host: datagrams to `listen` go on to the server from a port that
/// [`Relay::rebind`] changes; answers go back to whoever sent last. Remembers what it saw.
pub struct Relay {
    shared: Arc<RelayShared>,
    threads: Vec<JoinHandle<()>>,
}

struct RelayShared {
    stop: AtomicBool,
    drop_everything: AtomicBool,
    inside: UdpSocket,
    outside: Mutex<Arc<UdpSocket>>,
    client: Mutex<Option<SocketAddr>>,
    server: SocketAddr,
    seen: Mutex<Vec<(Toward, Vec<u8>)>>,
}

impl Relay {
    /// Starts one on `host`.
    pub fn start(host: &Host, listen: &str, server: &str) -> Relay {
        let server: SocketAddr = server.parse().expect("a socket address");
        let inside = host.within(|| UdpSocket::bind(listen).expect("the address is the host's"));
        inside.set_read_timeout(Some(RELAY_TICK)).expect("a timeout can be set");
        let shared = Arc::new(RelayShared {
            stop: AtomicBool::new(false),
            drop_everything: AtomicBool::new(false),
            inside,
            outside: Mutex::new(RelayShared::bind_outside(host, server)),
            client: Mutex::new(None),
            server,
            seen: Mutex::new(Vec::new()),
        });
        let loops: [fn(&RelayShared); 2] = [RelayShared::toward_server, RelayShared::toward_client];
        let threads = loops.map(|run| {
            let shared = shared.clone();
            thread::spawn(move || run(&shared))
        });
        Relay { shared, threads: threads.into() }
    }

    /// Forgets the mapping: from now on the server sees another port, and what it sends to the old one is lost.
    pub fn rebind(&self, host: &Host) {
        let new = RelayShared::bind_outside(host, self.shared.server);
        *self.shared.outside.lock().expect("no relay thread panics") = new;
    }

    /// The port the server sees.
    pub fn outside_port(&self) -> u16 {
        let outside = self.shared.outside.lock().expect("no relay thread panics");
        outside.local_addr().expect("it is bound").port()
    }

    /// Loses everything, or nothing, from now on.
    pub fn cut(&self, is_cut: bool) {
        self.shared.drop_everything.store(is_cut, Ordering::Relaxed);
    }

    /// Everything that came in so far.
    pub fn seen(&self) -> Vec<(Toward, Vec<u8>)> {
        self.shared.seen.lock().expect("no relay thread panics").clone()
    }
}

impl RelayShared {
    fn bind_outside(host: &Host, server: SocketAddr) -> Arc<UdpSocket> {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = host.within(|| UdpSocket::bind(any).expect("a free port"));
        socket.set_read_timeout(Some(RELAY_TICK)).expect("a timeout can be set");
        Arc::new(socket)
    }

    fn toward_server(&self) {
        let mut buffer = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = self.inside.recv_from(&mut buffer) else { continue };
            *self.client.lock().expect("no relay thread panics") = Some(from);
            if self.keep(Toward::Server, &buffer[..len]) {
                let outside = self.outside.lock().expect("no relay thread panics").clone();
                let _ = outside.send_to(&buffer[..len], self.server);
            }
        }
    }

    fn toward_client(&self) {
        let mut buffer = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let outside = self.outside.lock().expect("no relay thread panics").clone();
            let Ok((len, _)) = outside.recv_from(&mut buffer) else { continue };
            let client = *self.client.lock().expect("no relay thread panics");
            if let (Some(client), true) = (client, self.keep(Toward::Client, &buffer[..len])) {
                let _ = self.inside.send_to(&buffer[..len], client);
            }
        }
    }

    fn keep(&self, toward: Toward, datagram: &[u8]) -> bool {
        self.seen.lock().expect("no relay thread panics").push((toward, datagram.to_vec()));
        !self.drop_everything.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How soon the relay's threads notice that they should stop or use another socket.
const RELAY_TICK: Duration = Duration::from_millis(20);
