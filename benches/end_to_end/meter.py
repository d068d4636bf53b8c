"""What a piece of work cost the daemons, and whether somebody else was at work meanwhile.

The daemons' CPU time is the kernel's count for their processes, all threads, both ends together. Work that the kernel does
on behalf of nobody in particular (softirq) is in no process's count, for no contender.

Others are told by user time: what the whole machine spent in user mode, minus what every process of this sandbox did. Their
system time cannot be told from ours; whoever compiles or computes shows in user time.
"""

import os
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Meter:
    """Counts from `start` to `stop`."""

    def __init__(self, daemons):
        self.pids = [daemon.pid for daemon in daemons]

    def start(self):
        self.began = time.monotonic()
        self.daemons_before = daemon_seconds(self.pids)
        self.others_before = user_seconds_of_machine() - user_seconds_of_sandbox()
        return self

    def stop(self):
        self.seconds = time.monotonic() - self.began
        self.daemon_seconds = daemon_seconds(self.pids) - self.daemons_before
        others = user_seconds_of_machine() - user_seconds_of_sandbox() - self.others_before
        self.disturbed_percent = max(0.0, round(100 * others / self.seconds, 1))
        return self


def daemon_seconds(pids):
    return sum(seconds(process_stat(pid), "utime", "stime") for pid in pids)


def user_seconds_of_sandbox():
    """Of every process that is or was: those that ended are counted at whoever waited for them."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return sum(seconds(process_stat(pid), "utime", "cutime") for pid in pids)


def user_seconds_of_machine():
    with open("/proc/stat") as stat:
        return sum(cpu_fields(stat.readline())[:2]) / TICKS_PER_SECOND


def busy_share(window):
    """How much of the machine was in use during the next `window` seconds, 0 to 1."""
    def sample():
        with open("/proc/stat") as stat:
            fields = cpu_fields(stat.readline())
        return sum(fields), fields[3] + fields[4]

    total_before, idle_before = sample()
    time.sleep(window)
    total, idle = sample()
    return 1 - (idle - idle_before) / max(1, total - total_before)


def wait_until_quiet(limit_share, patience):
    """Waits until the machine is idle but for `limit_share`, at most `patience` seconds."""
    deadline = time.monotonic() + patience
    while busy_share(0.2) > limit_share and time.monotonic() < deadline:
        time.sleep(0.3)


def memory_mb(pid, field):
    """`VmRSS` is what a process holds in memory now, `VmHWM` the most that it ever held."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) / 1024
    raise KeyError(field)


def process_stat(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None  # ended just now; its time is at its parent


def seconds(stat, *fields):
    return sum(int(stat[FIELD_AFTER_NAME[field]]) for field in fields) / TICKS_PER_SECOND if stat else 0.0


def cpu_fields(line):
    """user, nice, system, idle, iowait, irq, softirq, steal; the guests' are part of the first two."""
    return [int(word) for word in line.split()[1:9]]


# proc(5), counted from the field after the name in brackets
FIELD_AFTER_NAME = {"utime": 11, "stime": 12, "cutime": 13, "cstime": 14}
