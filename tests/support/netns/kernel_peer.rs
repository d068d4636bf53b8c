//! A real Linux kernel as a peer: owns booting it and running commands in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::daemon::PeerLine;
use super::{Host, command_inside};

/// A real Linux kernel with its own WireGuard, as a peer of one host; ends with the host at the latest.
///
/// Made by a script that boots such a kernel on a tap device of the host: `WGD_KERNEL_PEER`, or `kernel-peer.sh` in a lab
/// folder beside the repository. The repository stands alone: without the script these tests are left out.
pub struct KernelPeer {
    host_init: u32,
    name: String,
}

/// How a [`KernelPeer`] is reached and what it is told. The tap of the host is called `tap0`.
pub struct KernelPeerConfig<'a> {
    /// Addresses of the kernel's own eth0, with prefix lengths.
    pub outer: &'a [&'a str],
    /// Addresses of the host's end of the cable, with prefix lengths.
    pub host_outer: &'a [&'a str],
    /// Addresses of the kernel's wg0, with prefix lengths.
    pub inner: &'a [&'a str],
    /// For `wg setconf`.
    pub conf: &'a str,
    /// Seconds after which it is ended whatever happens.
    pub life_seconds: u32,
}

impl KernelPeer {
    /// Why there is no kernel peer here, or `None`.
    pub fn skip() -> Option<String> {
        let script = kernel_peer_script();
        (!script.is_file())
            .then(|| format!("no {}; WGD_KERNEL_PEER names the script that boots a kernel", script.display()))
    }

    /// Boots it; the tunnel is configured when this returns.
    #[track_caller]
    pub fn boot(host: &Host, config: &KernelPeerConfig<'_>) -> KernelPeer {
        kernel_peer_build();
        // The script wants a name for the namespace; one that exists inside the host alone vanishes with it.
        host.sh("mkdir -p /run/netns && touch /run/netns/own && mount --bind /proc/self/ns/net /run/netns/own");
        host.write_conf("kernel", config.conf);
        let number = KERNEL_PEERS.fetch_add(1, Ordering::Relaxed);
        let peer = KernelPeer { host_init: host.init(), name: format!("wgd{}-{number}", std::process::id()) };
        let mut up = peer.script();
        up.args(["up", "--ttl", &config.life_seconds.to_string()]);
        for address in config.outer {
            up.args(["--eth", address]);
        }
        for address in config.host_outer {
            up.args(["--tap-addr", address]);
        }
        for address in config.inner {
            up.args(["--wg", address]);
        }
        let output = up.args(["own", "tap0", "/etc/wireguard/kernel.conf"]).output().expect("nsenter starts");
        assert!(output.status.success(), "no kernel peer: {}", String::from_utf8_lossy(&output.stderr));
        peer
    }

    /// Runs a shell script inside that kernel; its standard output. Panics when it fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.script().args(["exec", "-t", "30", script]).output().expect("nsenter starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kernel peer: `{script}` ended with {}\n{errors}", output.status);
        String::from_utf8(output.stdout).expect("output is UTF-8").trim_end().to_owned()
    }

    /// What `wg show wg0 dump` says of its only peer.
    #[track_caller]
    pub fn first_peer(&self) -> PeerLine {
        PeerLine::parse(self.sh("wg show wg0 dump").lines().nth(1).expect("there is a peer"))
    }

    fn script(&self) -> Command {
        let script = kernel_peer_script();
        let mut command = command_inside(self.host_init, script.to_str().expect("a path in UTF-8"));
        command.arg("--cache").arg(kernel_peer_cache()).args(["--name", &self.name]);
        command
    }
}

impl Drop for KernelPeer {
    fn drop(&mut self) {
        let _ = self.script().arg("down").output();
    }
}

static KERNEL_PEERS: AtomicU32 = AtomicU32::new(0);

fn kernel_peer_script() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/lab/kernel-peer.sh");
    let script = std::env::var_os("WGD_KERNEL_PEER").map_or_else(beside, PathBuf::from);
    fs::canonicalize(&script).unwrap_or(script)
}

fn kernel_peer_cache() -> PathBuf {
    std::env::var_os("KPEER_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-peer"), PathBuf::from)
}

/// Builds what the script needs, once per machine; two test programs at once wait for each other.
fn kernel_peer_build() {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let cache = kernel_peer_cache();
        fs::create_dir_all(&cache).expect("the cache can be made");
        let lock = fs::File::create(cache.join("build.lock")).expect("the lock can be made");
        lock.lock().expect("the lock can be taken");
        let output = Command::new(kernel_peer_script())
            .arg("--cache")
            .arg(&cache)
            .arg("build")
            .output()
            .expect("the script starts");
        assert!(output.status.success(), "kernel peer: {}", String::from_utf8_lossy(&output.stderr));
    });
}
