"""What is measured, in which order, and how it is called.

A measurement is a function from a lab to numbers; a figure is one of these numbers with the name that tables and plot give
it. `cpu` in a name means CPU seconds of both daemons together.
"""

import statistics
import time

import meter
import traffic

ONE_LAB, ONE_CPU, TWO_TUNNELS, NEW_LABS = "one lab", "one CPU", "two tunnels", "new labs"
STARTS = 3


class Measurement:
    def __init__(self, name, place, work, only_first=False):
        self.name = name
        self.place = place  # measurements of one place share a lab, in the order of the table below
        self.work = work
        self.only_first = only_first  # for the first contender only


class Figure:
    """`key` is MEASUREMENT.NUMBER; `better` is more, less, or None where a ratio says nothing."""

    def __init__(self, key, label, digits, better=None):
        self.key = key
        self.label = label
        self.digits = digits
        self.better = better


def memory(lab, _options, field):
    """The larger of both ends."""
    if field == "VmRSS":
        time.sleep(0.5)
    if not lab.daemons:
        return {}
    return {"mb": max(meter.memory_mb(daemon.pid, field) for daemon in lab.daemons)}


def start(open_lab, _options):
    """From starting both daemons to the first answered ping: control sockets, keys, addresses, handshake included."""
    times = []
    for _ in range(STARTS):
        with open_lab() as lab:
            times.append(lab.start_to_first_ping_ms)
    return {"ms": statistics.median(times)}


def overlay(lab, options):
    """TCP in VXLAN in the tunnel, and right before it plain TCP in the same tunnel."""
    plain = traffic.tcp(lab, options)
    lab.add_overlay()
    try:
        values = traffic.tcp(lab, options, targets=[lab.right.overlay_address])
    finally:
        lab.remove_overlay()
    values["percent_of_plain"] = 100 * values["gbit"] / plain["gbit"]
    values["disturbed_percent"] = max(values["disturbed_percent"], plain["disturbed_percent"])
    return values


def two_tunnels(lab, options):
    """One stream through each of two tunnels with daemons of their own, and right before it through one of them."""
    one = traffic.tcp(lab, options)
    both = traffic.tcp(lab, options, targets=[lab.target(0), lab.target(1)])
    return {
        "gbit": both["gbit"],
        "cpu_s_per_gb": both["cpu_s_per_gb"],
        "one_gbit": one["gbit"],
        "one_cpu_s_per_gb": one["cpu_s_per_gb"],
        "cpu_ratio": both["cpu_s_per_gb"] / one["cpu_s_per_gb"],
        "disturbed_percent": max(both["disturbed_percent"], one["disturbed_percent"]),
    }


MEASUREMENTS = [
    Measurement("start", NEW_LABS, start),
    Measurement("memory-idle", ONE_LAB, lambda lab, options: memory(lab, options, "VmRSS")),
    Measurement("ping-idle", ONE_LAB, lambda lab, options: traffic.ping(lab, 200, 0.01)),
    Measurement("tcp1", ONE_LAB, lambda lab, options: traffic.tcp(lab, options)),
    Measurement("tcp4", ONE_LAB, lambda lab, options: traffic.tcp(lab, options, 4)),
    Measurement("tcp8", ONE_LAB, lambda lab, options: traffic.tcp(lab, options, 8)),
    Measurement("tcp1-reverse", ONE_LAB, lambda lab, options: traffic.tcp(lab, options, extra=["-R"])),
    Measurement("tcp1-both-ways", ONE_LAB, lambda lab, options: traffic.tcp(lab, options, extra=["--bidir"])),
    Measurement("udp64", ONE_LAB, lambda lab, options: traffic.udp(lab, options, 64)),
    Measurement("udp1392", ONE_LAB, lambda lab, options: traffic.udp(lab, options, 1392)),
    Measurement("vxlan", ONE_LAB, overlay),
    Measurement("ping-load", ONE_LAB, lambda lab, options: traffic.ping_under_load(lab, options, 4)),
    Measurement("memory-loaded", ONE_LAB, lambda lab, options: memory(lab, options, "VmHWM")),
    Measurement("one-cpu-tcp1", ONE_CPU, lambda lab, options: traffic.tcp(lab, options)),
    Measurement("one-cpu-udp64", ONE_CPU, lambda lab, options: traffic.udp(lab, options, 64)),
    Measurement("two-tunnels", TWO_TUNNELS, two_tunnels, only_first=True),
]

FIGURES = [
    Figure("tcp1.gbit", "TCP, 1 stream, Gbit/s", 2, "more"),
    Figure("tcp4.gbit", "TCP, 4 streams, Gbit/s", 2, "more"),
    Figure("tcp8.gbit", "TCP, 8 streams, Gbit/s", 2, "more"),
    Figure("tcp1-reverse.gbit", "TCP, 1 stream, right to left, Gbit/s", 2, "more"),
    Figure("tcp1-both-ways.gbit", "TCP, 1 stream each way, sum, Gbit/s", 2, "more"),
    Figure("one-cpu-tcp1.gbit", "TCP, 1 stream, everything on one CPU, Gbit/s", 2, "more"),
    Figure("tcp1.cpu_s_per_gb", "daemons' CPU, TCP, 1 stream, s/GB", 2, "less"),
    Figure("tcp4.cpu_s_per_gb", "daemons' CPU, TCP, 4 streams, s/GB", 2, "less"),
    Figure("tcp1-both-ways.cpu_s_per_gb", "daemons' CPU, TCP, both ways, s/GB", 2, "less"),
    Figure("one-cpu-tcp1.cpu_s_per_gb", "daemons' CPU, everything on one CPU, s/GB", 2, "less"),
    Figure("udp64.kpps", "UDP of 64 bytes, delivered, 1000/s", 0, "more"),
    Figure("udp64.lost_percent", "lost of these, %", 1),
    Figure("udp64.cpu_us_per_packet", "daemons' CPU for each delivered, us", 2, "less"),
    Figure("one-cpu-udp64.kpps", "UDP of 64 bytes, everything on one CPU, delivered, 1000/s", 0, "more"),
    Figure("one-cpu-udp64.lost_percent", "lost of these, %", 1),
    Figure("udp1392.gbit", "UDP of 1392 bytes, delivered, Gbit/s", 2, "more"),
    Figure("udp1392.lost_percent", "lost of these, %", 1),
    Figure("udp1392.cpu_us_per_packet", "daemons' CPU for each delivered, us", 2, "less"),
    Figure("vxlan.gbit", "TCP in VXLAN in the tunnel, Gbit/s", 2, "more"),
    Figure("vxlan.percent_of_plain", "of plain TCP in the same tunnel, %", 0),
    Figure("ping-idle.avg_us", "ping, idle, average, us", 0, "less"),
    Figure("ping-idle.min_us", "ping, idle, least, us", 0, "less"),
    Figure("ping-load.avg_us", "ping under bulk TCP, average, us", 0, "less"),
    Figure("ping-load.max_us", "ping under bulk TCP, most, us", 0, "less"),
    Figure("ping-load.gbit_meanwhile", "TCP, 4 streams, during these pings, Gbit/s", 2, "more"),
    Figure("memory-idle.mb", "resident memory, idle, MB", 1, "less"),
    Figure("memory-loaded.mb", "resident memory, most ever, MB", 1, "less"),
    Figure("start.ms", "start to first ping, ms", 0, "less"),
    Figure("two-tunnels.one_cpu_s_per_gb", "two pairs of daemons, one in use: CPU, s/GB", 2),
    Figure("two-tunnels.cpu_s_per_gb", "two pairs of daemons, both in use: CPU, s/GB", 2),
    Figure("two-tunnels.cpu_ratio", "the latter by the former", 2),
    Figure("two-tunnels.gbit", "two pairs of daemons, both in use: sum, Gbit/s", 2),
]


def chosen(names):
    """The measurements with these names, or all of them."""
    known = {measurement.name for measurement in MEASUREMENTS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"no such test: {name}; there are {', '.join(m.name for m in MEASUREMENTS)}")
    return [measurement for measurement in MEASUREMENTS if not names or measurement.name in names]
