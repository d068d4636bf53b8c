//! Owns the hosts of the tests in this folder: network namespaces of this process's own, with devices opened inside.

#![allow(dead_code, reason = "every test target uses its part")]

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wg_core::{PrivateKey, PublicKey};
use wg_tun::{Device, DeviceConfig, DeviceError};

/// Whether namespaces can be made; says so if not.
pub(crate) fn can_make_namespaces() -> bool {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let has_tun = File::open("/dev/net/tun").is_ok();
    if !is_root || !has_tun {
        println!("skipped: network namespaces and TUN devices need root and /dev/net/tun");
    }
    is_root && has_tun
}

/// A network namespace that goes away with the value, whatever happens to the test.
pub(crate) struct Namespace(pub(crate) String);

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Namespace {
    pub(crate) fn new() -> Namespace {
        let name = format!("wgt{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let namespace = Namespace(name);
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` inside; panics if it refuses.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.0];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// A command to be run inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// Runs a command inside; panics if it refuses.
    pub(crate) fn run(&self, program: &str, arguments: &str) -> String {
        let mut all = vec!["netns", "exec", &self.0, program];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// Does something on a thread inside.
    pub(crate) fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let file = File::open(format!("/run/netns/{}", self.0)).expect("the namespace exists");
        let visit = || {
            // SAFETY: setns takes integers and changes this thread only, which ends after `work`.
            let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "root may enter a namespace");
            work()
        };
        thread::scope(|scope| scope.spawn(visit).join().expect("the work inside panicked"))
    }

    pub(crate) fn open(&self, name: &str) -> Result<Device, DeviceError> {
        self.inside(|| Device::open(DeviceConfig::new(name)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).stderr(Stdio::null()).status();
    }
}

/// Runs a command to its end and returns what it printed; panics if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition; panics after ten seconds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Connects two namespaces by a veth pair, 192.0.2.1/24 and 192.0.2.2/24, fd00:2::1/64 and fd00:2::2/64.
pub(crate) fn connect(left: &Namespace, right: &Namespace) {
    left.ip(&format!("link add v0 type veth peer name v0 netns {}", right.0));
    for (namespace, host) in [(left, 1), (right, 2)] {
        namespace.ip(&format!("addr add 192.0.2.{host}/24 dev v0"));
        namespace.ip(&format!("addr add fd00:2::{host}/64 dev v0 nodad"));
        namespace.ip("link set v0 up");
    }
}

pub(crate) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

/// Makes `device` know a peer.
pub(crate) fn add_peer(device: &Device, key: PublicKey, endpoint: Option<SocketAddr>, prefixes: &[&str]) {
    device.configure(|engine, now| {
        let id = engine.add_peer(key).unwrap();
        for prefix in prefixes {
            engine.add_allowed_ip(id, prefix.parse().unwrap()).unwrap();
        }
        if let Some(endpoint) = endpoint {
            engine.set_endpoint(id, endpoint, now).unwrap();
        }
    });
}

/// Two hosts on a link, a tunnel `wg0` between them: 10.9.0.1 and 10.9.0.2, fd00:9::1 and fd00:9::2. The right one
/// listens on 51820 and does not know where the left one is.
pub(crate) struct Pair {
    // Devices go before their namespaces.
    pub(crate) left: Device,
    pub(crate) right: Device,
    pub(crate) left_host: Namespace,
    pub(crate) right_host: Namespace,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        Pair::over("192.0.2.2:51820".parse().unwrap())
    }

    /// The tunnel goes to this endpoint of the right one.
    pub(crate) fn over(endpoint: SocketAddr) -> Pair {
        let (left_host, right_host) = (Namespace::new(), Namespace::new());
        connect(&left_host, &right_host);
        let left = left_host.open("wg0").unwrap();
        let right = right_host.open("wg0").unwrap();
        right.set_listen_port(51820).unwrap();
        left.configure(|engine, now| engine.set_private_key(Some(key(1)), now));
        right.configure(|engine, now| engine.set_private_key(Some(key(2)), now));
        add_peer(&left, key(2).public_key(), Some(endpoint), &["10.9.0.2/32", "fd00:9::2/128"]);
        add_peer(&right, key(1).public_key(), None, &["10.9.0.1/32", "fd00:9::1/128"]);
        for (device, host, number) in [(&left, &left_host, 1), (&right, &right_host, 2)] {
            host.ip(&format!("addr add 10.9.0.{number}/24 dev wg0"));
            host.ip(&format!("addr add fd00:9::{number}/64 dev wg0 nodad"));
            host.ip("link set wg0 up");
            wait_for("the interface coming up", || device.is_up());
        }
        Pair { left, right, left_host, right_host }
    }

    /// Pings from left to right; panics if one is lost.
    pub(crate) fn ping(&self, address: &str, count: u32) {
        let output = self.left_host.run("ping", &format!("-c {count} -i 0.01 -W 2 -q {address}"));
        assert!(output.contains(" 0% packet loss"), "{output}");
    }
}
