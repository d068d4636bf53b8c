//! How the daemon starts, reports and logs, on simulated hosts: the part of `wgd IFNAME` that is not WireGuard.
//! `netns_wg_quick.rs` has the rest. Needs root; left out with the reason otherwise.
#![cfg(not(virtual_time))]

#[path = "support/netns.rs"]
mod netns;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use netns::{Daemon, Host, Keys, Running, SOON, needs_namespaces, wait_until};

/// Longest time to the end of a daemon that was told to; it takes hundredths of a second on an idle machine.
const A_SECOND: Duration = Duration::from_secs(3);

#[test]
fn a_start_in_the_background_prints_nothing_and_holds_no_descriptor_of_its_starter() {
    needs_namespaces!();
    let host = Host::new("host");
    let program = program();
    // `sh` reads to the end of the pipe: it would wait for as long as the daemon held any copy of it.
    assert_eq!(host.sh(&format!("exec 7>&1 8>&2; {program} wg0 2>&1")), "");
    let daemon = host.processes("wgd")[0];
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid)).expect("alive");
    let targets: Vec<String> = open
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    assert!(!targets.iter().any(|target| target.starts_with("pipe:")), "{targets:?}");
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", daemon.pid)).expect("alive"), fs::canonicalize("/").expect("is"));
}

#[test]
fn a_start_that_fails_says_why_in_one_line_and_leaves_nothing() {
    needs_namespaces!();
    let program = program();
    let cases = [
        ("mount -t tmpfs tmpfs /dev/net", "modprobe tun"),
        ("ip link add wg0 type veth peer name other", "wg0: the name is in use"),
        ("mount -o remount,ro /run", "read-only"),
        ("mkdir -p /run/wireguard/wg0.sock", "is not a socket"),
        (
            "chmod 000 /dev/net/tun; exec setpriv --bounding-set -net_admin --inh-caps -net_admin bash -c \"$WGD\"",
            "CAP_NET_ADMIN",
        ),
    ];
    for (obstacle, hint) in cases {
        for option in ["", "-f"] {
            let host = Host::new("host");
            host.sh("mount -t tmpfs -o dev tmpfs /mnt; mknod /mnt/tun c 10 200; mount --bind /mnt /dev/net");
            let command = format!("{program} {option} wg0");
            let output = host.try_sh(&format!("export WGD='{command}'; {obstacle}; $WGD"));
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{obstacle}: {complaint}");
            let lines: Vec<&str> = complaint.lines().filter(|line| line.starts_with("wgd: ")).collect();
            assert_eq!(lines.len(), 1, "{obstacle}: {complaint}");
            assert!(lines[0].contains(hint), "{obstacle}: {complaint}");
            assert_eq!(host.processes("wgd"), [], "{obstacle}");
            assert!(!host.try_sh("ip tuntap show dev wg0 | grep -q .").status.success(), "{obstacle}: a link is left");
        }
    }
}

#[test]
fn a_daemon_may_follow_at_once_on_one_whose_socket_was_removed() {
    needs_namespaces!();
    let host = Host::new("host");
    let program = program();
    host.sh(&format!("{program} wg0"));
    for _ in 0..20 {
        host.sh(&format!("rm /run/wireguard/wg0.sock; {program} wg0; wg show wg0 listen-port"));
    }
    let mut daemons = Vec::new();
    wait_until("only the last one stays", SOON, || {
        daemons = host.processes("wgd");
        (daemons.len() == 1).then_some(())
    });
    host.sh("wg show wg0 listen-port");
}

#[test]
fn a_log_level_keeps_standard_error_and_a_log_file_gets_json_if_asked() {
    needs_namespaces!();
    let host = Host::new("host");
    let program = program();
    let output = host.try_sh(&format!("LOG_LEVEL=verbose {program} wg0; ip link delete wg0"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("interface wg0 is ready") && text.contains("link wg0 was deleted"), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");

    let silent = host.try_sh(&format!("LOG_LEVEL=silent {program} wg0; ip link delete wg0"));
    assert_eq!(String::from_utf8_lossy(&silent.stderr), "");

    host.sh(&format!("WG_LOG_LEVEL=info WG_LOG_FORMAT=json WG_LOG_FILE=run/log {program} wg0; ip link delete wg0"));
    // Relative to where it was started, although the daemon lives elsewhere.
    let log = wait_until("the end is logged", SOON, || {
        let log = host.try_sh("cat run/log");
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        log.contains("was deleted").then_some(log)
    });
    for line in log.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(object["level"].is_string() && object["fields"]["message"].is_string(), "{line}");
    }
    assert_eq!(host.sh("stat -c %a run/log"), "600");
}

#[test]
fn no_key_is_ever_logged() {
    needs_namespaces!();
    let host = Host::new("host");
    let program = program();
    host.sh(&format!("WG_LOG_LEVEL=trace WG_LOG_FILE=/run/log {program} wg0"));
    let (own, peer, preshared) = (Keys::new(), Keys::new(), Keys::preshared());
    host.sh(&format!(
        "ip link set wg0 up; wg set wg0 private-key <(echo {}) peer {} preshared-key <(echo {preshared}) \
         endpoint 127.0.0.1:9 persistent-keepalive 1 allowed-ips 10.0.0.0/8; wg show wg0 dump",
        own.private, peer.public
    ));
    let secrets = [own.private.as_str(), preshared.as_str()];
    let in_hex: Vec<String> =
        secrets.iter().map(|key| host.sh(&format!("echo {key} | base64 -d | od -An -v -tx1 | tr -d ' \\n'"))).collect();
    // Requests that are refused, with a secret at every place that a complaint might quote.
    for secret in &in_hex {
        for lines in [
            format!("private_key={secret}00"),
            secret.clone(),
            format!("private_key{secret}"),
            format!("preshared_key={secret}"),
            format!("public_key={}\npreshared_key=x{secret}", "1".repeat(64)),
        ] {
            let mut client = UnixStream::connect(host.path("/run/wireguard/wg0.sock")).expect("served");
            client.write_all(format!("set=1\n{lines}\n\n").as_bytes()).expect("sent");
            let mut answer = [0; 64];
            let len = client.read(&mut answer).expect("answered");
            assert!(answer[..len].starts_with(b"errno=-"), "{lines}");
        }
    }
    host.sh("ip link delete wg0");
    let log = wait_until("the end is logged", SOON, || {
        let log = fs::read_to_string(host.path("/run/log")).ok()?;
        log.contains("was deleted").then_some(log)
    });
    assert!(log.contains("set refused"), "{log}");
    for secret in secrets.into_iter().chain(in_hex.iter().map(String::as_str)) {
        assert!(!log.contains(&secret[..20]), "{log}");
    }
}

#[test]
fn a_tun_device_and_a_listening_socket_may_be_handed_over() {
    needs_namespaces!();
    let host = Host::new("host");
    host.sh("mkdir -m 755 /run/wireguard");
    let tun = host.within(|| open_tun("wg7")).expect("a TUN device");
    let listener = UnixListener::bind(host.path("/run/wireguard/wg7.sock")).expect("bound");
    let mut command = host.command(&program());
    command.arg("ignored").env("WG_TUN_FD", "210").env("WG_UAPI_FD", "211");
    let output =
        pass_on(&mut command, &[(tun.as_raw_fd(), 210), (listener.as_raw_fd(), 211)]).output().expect("started");
    assert!(output.status.success(), "{output:?}");
    drop((tun, listener));
    let daemon = host.processes("wgd")[0];
    // It goes by the name that the link has.
    host.sh("wg set wg7 listen-port 4711; ip link set wg7 up; wg show wg7 listen-port | grep -qx 4711");
    assert_eq!(host.sh("wg show interfaces"), "wg7");
    host.sh("rm /run/wireguard/wg7.sock");
    daemon.ends_within(A_SECOND);
    assert!(!host.try_sh("ip link show wg7").status.success());
}

#[test]
fn one_connected_client_may_be_handed_over_and_ends_the_daemon_with_its_connection() {
    needs_namespaces!();
    let host = Host::new("host");
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    ours.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut command = host.command(&program());
    command.args(["--uapi-fd", "210", "wg0"]);
    let output = pass_on(&mut command, &[(theirs.as_raw_fd(), 210)]).output().expect("started");
    assert!(output.status.success(), "{output:?}");
    drop(theirs);
    let daemon = host.processes("wgd")[0];
    ours.write_all(b"set=1\nlisten_port=5\n\nget=1\n\n").expect("sent");
    let mut answer = String::new();
    wait_until("both are answered", SOON, || {
        let mut bytes = [0; 256];
        let len = ours.read(&mut bytes).expect("an answer in time");
        answer.push_str(std::str::from_utf8(&bytes[..len]).expect("text"));
        (answer == "errno=0\n\nlisten_port=5\nerrno=0\n\n").then_some(())
    });
    assert!(!host.path("/run/wireguard/wg0.sock").exists());
    drop(ours);
    daemon.ends_within(A_SECOND);
    assert!(!host.try_sh("ip link show wg0").status.success());
}

#[test]
fn show_prints_what_wg_prints() {
    needs_namespaces!();
    let host = Host::new("host");
    host.start(Daemon::Wgd, "wg0");
    host.start(Daemon::Wgd, "wg1");
    let (own, peer, other, near) = (Keys::new(), Keys::new(), Keys::new(), Keys::new());
    host.sh(&format!(
        "wg set wg0 private-key <(echo {}) listen-port 4711 fwmark 0x2a \
           peer {} endpoint [2001:db8::9]:99 allowed-ips 10.0.0.0/8,fd00::/8 persistent-keepalive 25 \
             preshared-key <(echo {}) \
           peer {} \
           peer {} endpoint [fe80::9%wg1]:99",
        own.private,
        peer.public,
        Keys::preshared(),
        other.public,
        near.public
    ));
    let program = program();
    assert_eq!(host.sh(&format!("{program} show interfaces")), "wg0 wg1");
    assert_eq!(host.sh(&format!("{program} show wg0")), host.sh("wg show wg0"));
    assert_eq!(host.sh(&format!("WG_HIDE_KEYS=never {program} show wg0")), host.sh("WG_HIDE_KEYS=never wg show wg0"));
    assert_eq!(host.sh(&format!("{program} show all")), host.sh(&format!("{program} show")));
    let json: serde_json::Value = serde_json::from_str(&host.sh(&format!("{program} show --json"))).expect("json");
    let shown = &json["wg0"]["peers"][peer.public.as_str()];
    assert_eq!(json["wg0"]["listenPort"], 4711);
    assert_eq!(shown["endpoint"], "[2001:db8::9]:99");
    assert_eq!(shown["hasPresharedKey"], true);
    assert_eq!(json["wg0"]["peers"][near.public.as_str()]["endpoint"], "[fe80::9%wg1]:99");
    assert!(shown.get("presharedKey").is_none() && json["wg0"].get("privateKey").is_none());
}

#[test]
fn show_counts_what_was_dropped_by_reason_and_says_nothing_where_a_daemon_does_not_tell() {
    needs_namespaces!();
    let host = Host::new("host");
    let program = program();
    let peer = Keys::new();
    for daemon in [Daemon::Wgd, Daemon::WireguardGo] {
        let process = host.start(daemon, "wg0");
        host.sh(&format!(
            "wg set wg0 private-key <(echo {}) peer {} allowed-ips 10.9.0.2/32; ip address add 10.9.0.1/24 dev wg0; \
             ip link set wg0 up",
            Keys::new().private,
            peer.public
        ));
        let show = || -> serde_json::Value {
            serde_json::from_str(&host.sh(&format!("{program} show --json"))).expect("json")
        };
        if daemon == Daemon::Wgd {
            // It takes a moment to see that the link is up; until then that is the reason.
            wait_until("the reason is the destination", SOON, || {
                host.sh("ping -c 1 -W 0.1 10.9.0.3 || :");
                (!show()["wg0"]["drops"]["destination_not_allowed"].is_null()).then_some(())
            });
        }
        host.sh("ping -c 1 -W 1 10.9.0.2 || :");
        let json = show();
        let (of_interface, of_peer) = (&json["wg0"]["drops"], &json["wg0"]["peers"][peer.public.as_str()]["drops"]);
        if daemon == Daemon::Wgd {
            assert_eq!(of_peer["no_endpoint"], 1, "{json}");
            assert!(of_interface["destination_not_allowed"].as_u64() >= Some(1), "{json}");
        } else {
            assert!(of_interface.is_null() && of_peer.is_null(), "{json}");
        }
        host.sh("ip link delete wg0");
        process.ends_within(A_SECOND);
    }
}

#[test]
fn a_standard_error_that_nobody_reads_holds_up_neither_clients_nor_the_end() {
    needs_namespaces!();
    let host = Host::new("host");
    let (mut reader, writer) = io::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("the smallest");
    let mut command = host.command(&program());
    command.args(["-f", "-v", "error", "wg0"]).stderr(writer);
    let mut daemon = Running::start(&mut command);
    drop(command);
    wait_until("it is ready", SOON, || host.path("/run/wireguard/wg0.sock").exists().then_some(()));
    for _ in 0..45 {
        let mut client = host.uapi("wg0");
        client.write_all(b"set=1\nnonsense=1\n\n").expect("sent");
        let mut answer = [0; 64];
        let len = client.read(&mut answer).expect("answered, although it cannot log");
        assert!(answer[..len].starts_with(b"errno=-"));
    }
    daemon.process().signal("TERM");
    assert_eq!(daemon.exit_code(A_SECOND), Some(0));
    let mut written = String::new();
    reader.read_to_string(&mut written).expect("text");
    assert!(written.contains("set refused") && written.lines().count() < 45, "the pipe was full: {written}");
}

/// The program under test, as a word for a shell.
fn program() -> String {
    Daemon::Wgd.program().to_str().expect("a path in UTF-8").to_owned()
}

/// Has the command start with copies of these descriptors of ours under those numbers.
/// The numbers are higher than any that this process has: a copy onto itself would stay closed on exec.
fn pass_on<'a>(command: &'a mut Command, descriptors: &[(RawFd, RawFd)]) -> &'a mut Command {
    let descriptors = descriptors.to_vec();
    let copy_all = move || {
        for &(from, to) in &descriptors {
            // SAFETY: `dup2` may be called between fork and exec, and touches no memory.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only calls `dup2`, and the list it reads was made before the fork.
    unsafe { command.pre_exec(copy_all) }
}

/// A TUN device as another program might open it, without a virtio header.
fn open_tun(name: &str) -> io::Result<OwnedFd> {
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: `request` lives for the length of the call and is what TUNSETIFF reads and writes.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) } {
        0 => Ok(OwnedFd::from(file)),
        _ => Err(io::Error::last_os_error()),
    }
}
