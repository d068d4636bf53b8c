"""What goes through a tunnel: TCP by iperf3, UDP by datagrams.py, pings. Always from left to right unless it says otherwise.

Each function returns plain numbers, with the unit in the name.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time

import datagrams
from lab import LabError
from meter import Meter

IPERF_PORT = 5201
STARTING_SECONDS = 10.0


class Bulk:
    """One iperf3 client on the left and its server on the right. Use in `with`."""

    def __init__(self, lab, target, options, streams=1, extra=(), port=IPERF_PORT):
        self.lab = lab
        self.server_command = ["iperf3", "-s", "-1", "-p", port, "--forceflush"]
        self.client_command = ["iperf3", "-c", target, "-p", port, "-P", streams, "-t", options.seconds,
                               "-O", options.warm_up, "-C", "cubic", "-J", "--connect-timeout", 5000, *extra]
        self.running = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as started:
            server = started.enter_context(running(self.lab.right, self.server_command))
            wait_for_line(server, "listening")
            self.client = started.enter_context(running(self.lab.left, self.client_command))
            self.running = started.pop_all()
        return self

    def __exit__(self, *_reason):
        self.running.close()

    def gbit_per_s(self, patience):
        """Waits for the end; what arrived, both directions together."""
        try:
            report = json.loads(self.client.communicate(timeout=patience)[0])
        except subprocess.TimeoutExpired:
            raise LabError("iperf3 did not finish") from None
        except ValueError:
            raise LabError("iperf3 ended without a report") from None
        if "error" in report:
            raise LabError(f"iperf3: {report['error']}")
        sums = (report["end"].get(name, {}) for name in ("sum_received", "sum_received_bidir_reverse"))
        return sum(part.get("bits_per_second", 0.0) for part in sums) / 1e9


def tcp(lab, options, streams=1, extra=(), targets=None):
    """Bulk TCP to every target at once; the daemons' CPU time is taken between warm-up and end."""
    targets = targets or [lab.target()]
    with contextlib.ExitStack() as started:
        flows = [started.enter_context(Bulk(lab, target, options, streams, extra, IPERF_PORT + number))
                 for number, target in enumerate(targets)]
        time.sleep(options.warm_up)
        meter = Meter(lab.daemons).start()
        time.sleep(options.seconds)
        meter.stop()
        gbit = sum(flow.gbit_per_s(STARTING_SECONDS + options.seconds) for flow in flows)
    if gbit <= 0:
        raise LabError("no TCP went through")
    values = {"gbit": gbit, "disturbed_percent": meter.disturbed_percent}
    if lab.daemons:
        values["cpu_s_per_gb"] = meter.daemon_seconds / (gbit / 8 * meter.seconds)
    return values


def udp(lab, options, size):
    """Datagrams of one size, more than can be carried: what arrives, what is lost, what it costs the daemons."""
    program = [sys.executable, "-B", os.path.abspath(datagrams.__file__)]
    where = [lab.target(), datagrams.PORT]
    with running(lab.right, [*program, "sink", *where]) as sink:
        wait_for_line(sink, "ready")
        meter = Meter(lab.daemons).start()
        source = lab.left.run(*program, "send", *where, size, options.seconds, check=False)
        # A second of silence after the last datagram is part of it; the daemons have nothing to do then.
        counted = sink.communicate(timeout=datagrams.PATIENCE_SECONDS + options.seconds)[0]
        meter.stop()
    if source.returncode != 0:
        raise LabError(f"the source of datagrams failed: {source.stderr.strip()[-200:]}")
    sent, received = json.loads(source.stdout), json.loads(counted)
    if not sent["sent"] or not received["received"]:
        raise LabError("no UDP went through")
    # What is still queued when the source stops must not count as rate.
    seconds = max(sent["seconds"], received["seconds"])
    values = {
        "kpps": received["received"] / seconds / 1e3,
        "offered_kpps": sent["sent"] / sent["seconds"] / 1e3,
        "gbit": received["received"] * size * 8 / seconds / 1e9,
        "lost_percent": 100 * (1 - received["received"] / sent["sent"]),
        "disturbed_percent": meter.disturbed_percent,
    }
    if lab.daemons:
        values["cpu_us_per_packet"] = meter.daemon_seconds * 1e6 / received["received"]
    return values


def ping(lab, count, interval):
    """Echo requests at a fixed interval, whether or not the one before was answered."""
    meter = Meter(lab.daemons).start()
    said = lab.left.run("ping", "-n", "-q", "-c", count, "-i", interval, "-W", 2, lab.target(), check=False).stdout
    meter.stop()
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/", said)
    lost = re.search(r"([\d.]+)% packet loss", said)
    if not times or not lost:
        raise LabError("no ping was answered")
    least, average, most = (float(number) * 1e3 for number in times.groups())
    return {"min_us": least, "avg_us": average, "max_us": most, "lost_percent": float(lost.group(1)),
            "disturbed_percent": meter.disturbed_percent}


def ping_under_load(lab, options, streams):
    """The same every 5 ms while TCP fills the tunnel in one direction."""
    with Bulk(lab, lab.target(), options, streams) as bulk:
        time.sleep(options.warm_up)
        values = ping(lab, int(options.seconds / 0.005), 0.005)
        values["gbit_meanwhile"] = bulk.gbit_per_s(STARTING_SECONDS + options.seconds)
    return values


@contextlib.contextmanager
def running(host, command):
    """A program on a host whose output can be read; ended afterwards if it did not end by itself."""
    process = host.start(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_line(process, word):
    for line in process.stdout:
        if word in line:
            return
    raise LabError(f"a helper ended before it was {word}")
