"""Two hosts, a cable, and a tunnel between them.

      left                                        right
    +---------------------------+    +---------------------------+
    |  10.77.N.1    192.0.2.1   |    |   192.0.2.2    10.77.N.2  |
    |   left-N ~ daemon - cable ======= cable - daemon ~ right-N |
    |   overlay (VXLAN)         |    |          overlay (VXLAN)  |
    |   10.88.0.1               |    |                10.88.0.2  |
    +---------------------------+    +---------------------------+

N counts tunnels: one, or more if a test wants several instances side by side. Must run inside of a sandbox, which is what
ends the daemons and removes the namespaces if this program does not get to it.
"""

import os
import shlex
import socket
import subprocess
import tempfile
import time

TUNNEL_MTU = 1420
CABLE_MTU = 1500
NO_TUNNEL = "@cable"  # as a command: measure the bare cable


class LabError(Exception):
    """The lab could not be built, or something in it died."""


class Contender:
    """A daemon that takes part: its name in the tables and the command that starts it.

    The command stays in the foreground, creates the interface that `{if}` stands for and answers on the control socket
    of that name.
    """

    def __init__(self, name, command):
        self.name = name
        self.command = command

    @property
    def is_bare_cable(self):
        return self.command == NO_TUNNEL

    @classmethod
    def parse(cls, text):
        name, equals, command = text.partition("=")
        if not (name and equals and command):
            raise ValueError(f"{text!r} is not NAME=COMMAND")
        if command != NO_TUNNEL and "{if}" not in command:
            raise ValueError(f"{text!r} has no {{if}} where the interface's name belongs")
        return cls(name, command)


class Host:
    """One network namespace and how to run programs in it."""

    def __init__(self, name, number, cpu):
        self.name = name
        self.number = number
        self.cpu = cpu
        self.prefix = ["ip", "netns", "exec", name]
        if cpu is not None:
            self.prefix += ["taskset", "-c", str(cpu)]

    @property
    def cable_address(self):
        return f"192.0.2.{self.number}"

    @property
    def overlay_address(self):
        return f"10.88.0.{self.number}"

    def tunnel_address(self, index):
        return f"10.77.{index}.{self.number}"

    def interface(self, index):
        return f"{self.name}-{index}"

    def port(self, index):
        return 51820 + index

    def start(self, *command, **popen):
        popen.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([*self.prefix, *map(str, command)], **popen)

    def run(self, *command, **options):
        return run(*self.prefix, *command, **options)

    def ip(self, *lines):
        run("ip", "-netns", self.name, "-batch", "-", stdin="\n".join(lines) + "\n")


class Daemon:
    """One running contender on one host."""

    def __init__(self, contender, host, index):
        self.contender = contender
        self.host = host
        self.interface = host.interface(index)
        self.log = tempfile.TemporaryFile()
        command = shlex.split(contender.command.replace("{if}", self.interface))
        self.process = host.start(*command, stdout=self.log, stderr=self.log)

    @property
    def pid(self):
        return self.process.pid

    def wait_for_control_socket(self, limit=10.0):
        path = f"/var/run/wireguard/{self.interface}.sock"
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            self.check_alive()
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(path) == 0:
                    return
            time.sleep(0.001)
        raise LabError(f"{self.contender.name} opened no control socket; it said: {self.said()}")

    def check_place(self):
        if self.host.cpu is not None and os.sched_getaffinity(self.pid) != {self.host.cpu}:
            raise LabError(f"{self.contender.name} left the CPU it was given")

    def check_alive(self):
        if self.process.poll() is not None:
            raise LabError(f"{self.contender.name} ended by itself; it said: {self.said()}")

    def said(self):
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - 600))
        return " ".join(self.log.read().decode(errors="replace").split()) or "nothing"

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Lab:
    """Both hosts with a contender at work. Use in `with`; everything is gone afterwards."""

    def __init__(self, contender, tunnels=1, cpu=None, segmentation_offload=True):
        self.contender = contender
        self.tunnels = 0 if contender.is_bare_cable else tunnels
        self.segmentation_offload = segmentation_offload
        self.left = Host("left", 1, cpu)
        self.right = Host("right", 2, cpu)
        self.daemons = []
        self.start_to_first_ping_ms = None

    def __enter__(self):
        try:
            self.lay_cable()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_reason):
        for daemon in self.daemons:
            daemon.stop()
        self.daemons = []
        for host in self.hosts:
            run("ip", "netns", "delete", host.name, check=False)
        return False

    @property
    def hosts(self):
        return (self.left, self.right)

    def target(self, index=0):
        """The address on the right that the left talks to."""
        return self.right.tunnel_address(index) if self.tunnels else self.right.cable_address

    def check_alive(self):
        for daemon in self.daemons:
            daemon.check_alive()

    def lay_cable(self):
        for host in self.hosts:
            run("ip", "netns", "add", host.name)
        run("ip", "link", "add", "cable", "mtu", CABLE_MTU, "netns", "left",
            "type", "veth", "peer", "name", "cable", "mtu", CABLE_MTU, "netns", "right")
        for host in self.hosts:
            if not self.segmentation_offload:
                without_udp_segmentation(host)
            host.ip("link set lo up", f"address add {host.cable_address}/24 dev cable", "link set cable up")

    def start(self):
        keys = {host: [key_pair() for _ in range(self.tunnels)] for host in self.hosts}
        began = time.monotonic()
        for index in range(self.tunnels):
            self.daemons += [Daemon(self.contender, host, index) for host in self.hosts]
        for daemon in self.daemons:
            daemon.wait_for_control_socket()
        for index in range(self.tunnels):
            for host, other in (self.hosts, self.hosts[::-1]):
                self.configure(host, other, index, keys)
        self.wait_for_ping(self.target())
        self.start_to_first_ping_ms = (time.monotonic() - began) * 1e3
        for index in range(1, self.tunnels):
            self.wait_for_ping(self.target(index))
        for daemon in self.daemons:
            daemon.check_place()

    def configure(self, host, other, index, keys):
        interface = host.interface(index)
        settings = [
            "[Interface]",
            f"PrivateKey = {keys[host][index].private}",
            f"ListenPort = {host.port(index)}",
            "[Peer]",
            f"PublicKey = {keys[other][index].public}",
            f"Endpoint = {other.cable_address}:{other.port(index)}",
            f"AllowedIPs = {other.tunnel_address(index)}/32",
        ]
        host.run("wg", "setconf", interface, "/dev/stdin", stdin="\n".join(settings) + "\n")
        host.ip(f"address add {host.tunnel_address(index)}/24 dev {interface}",
                f"link set {interface} mtu {TUNNEL_MTU} up")

    def wait_for_ping(self, address, limit=15.0):
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self.left.run("ping", "-n", "-c", 1, "-W", 1, address, check=False).returncode == 0:
                return
            self.check_alive()
        raise LabError(f"{self.contender.name} answers no ping")

    def add_overlay(self):
        """A VXLAN device on top of the tunnel at both ends; the kernel lowers its MTU by what VXLAN adds."""
        for host, other in (self.hosts, self.hosts[::-1]):
            device = host.interface(0) if self.tunnels else "cable"
            local = host.tunnel_address(0) if self.tunnels else host.cable_address
            remote = other.tunnel_address(0) if self.tunnels else other.cable_address
            host.ip(f"link add overlay type vxlan id 77 dev {device} local {local} remote {remote} dstport 4789",
                    f"address add {host.overlay_address}/24 dev overlay", "link set overlay up")
        self.wait_for_ping(self.right.overlay_address)

    def remove_overlay(self):
        for host in self.hosts:
            host.ip("link delete overlay")


def without_udp_segmentation(host):
    host.run("ethtool", "-K", "cable", "tx-udp-segmentation", "off")
    if "tx-udp-segmentation: off" not in host.run("ethtool", "-k", "cable").stdout:
        raise LabError("the cable still segments UDP")


class KeyPair:
    def __init__(self, private, public):
        self.private = private
        self.public = public


def key_pair():
    private = run("wg", "genkey").stdout.strip()
    return KeyPair(private, run("wg", "pubkey", stdin=private).stdout.strip())


def run(*command, check=True, stdin=None, timeout=60):
    """Runs a program to its end and returns what it printed; raises if it failed and `check` is set."""
    command = [str(word) for word in command]
    done = subprocess.run(command, input=stdin or "", text=True, timeout=timeout,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if check and done.returncode != 0:
        raise LabError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
    return done
