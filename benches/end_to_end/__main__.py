"""End-to-end benchmark: two daemons of a kind on either end of a cable, and what can be had through them.

Started by benches/end_to_end.sh, which builds and finds the daemons. Reads options, runs the measurements in turn and
writes what came out. One run takes each contender once through everything; the next one begins with another contender, so
what drifts on the machine meets all of them.
"""

import argparse
import datetime
import fcntl
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time

import measurements
import plot
import report
import sandbox
from lab import NO_TUNNEL, Contender, Lab, LabError
from meter import wait_until_quiet
from results import DISTURBED_PERCENT, Results

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TRIES = 3
QUIET_SHARE = 0.1
TOOLS = {"ip": "iproute2", "wg": "wireguard-tools", "iperf3": "iperf3", "ping": "iputils-ping", "taskset": "util-linux"}


def main():
    options = parse_options()
    if options.from_files:
        return publish(options, joined(options.from_files))
    require_tools(options)
    if options.smoke:
        return sandbox.run(lambda: smoke(options))
    with one_at_a_time():
        return sandbox.run(lambda: measure_and_publish(options))


def parse_options():
    names = ", ".join(measurement.name for measurement in measurements.MEASUREMENTS)
    parser = argparse.ArgumentParser(prog="benches/end_to_end.sh", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__.split("\n\n")[0], epilog=f"tests: {names}")
    add = parser.add_argument
    add("--impl", action="append", default=[], type=contender_of, metavar="NAME=COMMAND",
        help="a contender instead of the usual ones; COMMAND stays in the foreground, {if} in it is the interface; the "
             f"first one is what the others are compared with; {NO_TUNNEL} measures the cable alone; may be repeated")
    add("--default-impl", action="append", default=[], type=contender_of, help=argparse.SUPPRESS)
    add("--tests", metavar="NAME,...", help="only these; see below")
    add("--runs", type=positive, metavar="N", help="how often everything is measured (default 5)")
    add("--seconds", type=positive, metavar="N", help="how long each stream of traffic is measured (default 4)")
    add("--quick", action="store_true", help="2 runs of 1 second: to see that it works, not to compare")
    add("--no-udp-segmentation", action="store_true",
        help="a cable whose ends do not segment UDP, as with many network cards")
    add("--patience", type=float, default=30, metavar="SECONDS",
        help="how long to wait before each measurement for a quiet machine (default 30)")
    add("--json", metavar="FILE", help="write every sample")
    add("--markdown", metavar="FILE", help="write the tables, not only print them")
    add("--svg", metavar="FILE", help="write the plot")
    add("--update-docs", action="store_true", help="put tables and plot into docs/ and README.md")
    add("--from", dest="from_files", action="append", default=[], metavar="JSON",
        help="measure nothing, show what an earlier run wrote; several files become one")
    add("--smoke", action="store_true", help="the first contender alone, some seconds; fails if anything does not work")
    options = parser.parse_args()
    options.runs = options.runs or (2 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 4)
    options.warm_up, options.tries = 1, TRIES
    options.impl = options.impl or options.default_impl
    try:
        options.chosen = measurements.chosen(options.tests.split(",") if options.tests else [])
    except ValueError as unknown:
        parser.error(str(unknown))
    if not options.impl and not options.from_files:
        parser.error("nothing to measure: --impl NAME=COMMAND, or start benches/end_to_end.sh")
    if len({contender.name for contender in options.impl}) != len(options.impl):
        parser.error("two contenders have the same name")
    return options


def contender_of(text):
    try:
        return Contender.parse(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def require_tools(options):
    if os.geteuid() != 0:
        sys.exit("this needs root: it makes network namespaces")
    needed = dict(TOOLS, ethtool="ethtool") if options.no_udp_segmentation else TOOLS
    missing = [package for tool, package in needed.items() if not shutil.which(tool)]
    if missing:
        sys.exit(f"please install: {' '.join(missing)}")


class one_at_a_time:
    """Two measurements at once would measure each other; the second one of the same checkout waits."""

    def __enter__(self):
        self.lock = os.open(os.path.dirname(os.path.abspath(__file__)), os.O_RDONLY)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another benchmark is running; waiting for its end")
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def __exit__(self, *_reason):
        os.close(self.lock)


def measure_and_publish(options):
    results = Results(environment(options), [contender.name for contender in options.impl])
    try:
        for run in range(options.runs):
            first = run % len(options.impl)
            for each in options.impl[first:] + options.impl[:first]:
                say(f"run {run + 1} of {options.runs}: {each.name}")
                measure(each, run, options, results)
    except sandbox.Interrupted:
        if results.samples:
            publish(options, results, is_complete=False)
        raise
    return publish(options, results)


def measure(contender, run, options, results):
    """One contender once through everything. What fails is noted and the rest goes on."""
    is_first = contender is options.impl[0]
    wanted = [measurement for measurement in options.chosen
              if not (measurement.only_first and not is_first) and not (
                  contender.is_bare_cable and measurement.place == measurements.TWO_TUNNELS)]
    places = dict.fromkeys(measurement.place for measurement in wanted)
    for place in places:
        here = [measurement for measurement in wanted if measurement.place == place]
        try:
            if place == measurements.NEW_LABS:
                take(here, lambda: open_lab(contender, options), contender, run, options, results)
            else:
                with open_lab(contender, options, place) as lab:
                    take(here, lab, contender, run, options, results)
        except (LabError, subprocess.TimeoutExpired) as error:
            say(f"  {place}: {error}")
            done = {sample["measurement"] for sample in results.samples
                    if sample["contender"] == contender.name and sample["run"] == run}
            for measurement in here:
                if measurement.name not in done:
                    results.add(contender.name, run, measurement.name, error=str(error))


def open_lab(contender, options, place=measurements.ONE_LAB):
    return Lab(contender,
               tunnels=2 if place == measurements.TWO_TUNNELS else 1,
               cpu=min(os.sched_getaffinity(0)) if place == measurements.ONE_CPU else None,
               segmentation_offload=not options.no_udp_segmentation)


def take(wanted, lab, contender, run, options, results):
    for measurement in wanted:
        try:
            values = least_disturbed(measurement, lab, options)
        except LabError as error:
            results.add(contender.name, run, measurement.name, error=str(error))
            say(f"  {measurement.name:<15} {error}")
            if isinstance(lab, Lab):
                lab.check_alive()
            continue
        results.add(contender.name, run, measurement.name, values)
        say(f"  {measurement.name:<15} " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))


def least_disturbed(measurement, lab, options):
    """Repeats a measurement during which other programs were busy, and takes the best of the tries."""
    best = None
    for _ in range(options.tries):
        wait_until_quiet(QUIET_SHARE, options.patience)
        values = measurement.work(lab, options)
        disturbed = values.get("disturbed_percent", 0.0)
        if best is None or disturbed < best["disturbed_percent"]:
            best = {**values, "disturbed_percent": disturbed}
        if disturbed <= DISTURBED_PERCENT:
            break
    return best


def publish(options, results, is_complete=True):
    text = report.full(results)
    if not is_complete:
        text = "Interrupted; what was measured until then:\n\n" + text
    print(text)
    picture = plot.svg(results, {figure.key: figure for figure in measurements.FIGURES})
    for path, content in ((options.json, results.as_json()), (options.markdown, text), (options.svg, picture)):
        if path:
            write(path, content)
    if options.update_docs and is_complete:
        write(os.path.join(ROOT, "docs/end_to_end.svg"), picture)
        replace(os.path.join(ROOT, "docs/performance.md"), text)
        replace(os.path.join(ROOT, "README.md"), report.short(results))
    return 1 if results.errors() else 0


def write(path, content):
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


def replace(path, content):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    write(path, report.between(text, "end_to_end", content))


def joined(paths):
    results = None
    for path in paths:
        with open(path, encoding="utf-8") as file:
            more = Results.from_json(file.read())
        if results is None:
            results = more
        else:
            results.join(more)
    return results


def smoke(options):
    """Everything that is measured works with our daemon; how fast it is does not matter."""
    options.runs, options.seconds, options.warm_up, options.patience, options.tries = 1, 1, 0, 0, 1
    options.impl = options.impl[:1]
    options.chosen = measurements.chosen(["ping-idle", "tcp1", "udp64", "memory-loaded", "two-tunnels"])
    results = Results(environment(options), [options.impl[0].name])
    measure(options.impl[0], 0, options, results)
    report.full(results)
    plot.svg(results, {figure.key: figure for figure in measurements.FIGURES})
    missing = {measurement.name for measurement in options.chosen} - {
        sample["measurement"] for sample in results.samples if sample["values"]}
    for name in sorted(missing):
        say(f"not measured: {name}")
    return 1 if missing or results.errors() else 0


def environment(options):
    seconds = f"{options.seconds} s each after {options.warm_up} s of warm-up"
    cable = "cable without UDP segmentation" if options.no_udp_segmentation else "cable with all offloads"
    return {
        "date": datetime.date.today().isoformat(),
        "kernel": platform.release(),
        "distribution": distribution(),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "options": f"{seconds}, tunnel MTU 1420, {cable}",
        "bare": next((contender.name for contender in options.impl if contender.is_bare_cable), None),
        "commands": {contender.name: shown(contender.command) for contender in options.impl},
        "versions": {contender.name: version(contender) for contender in options.impl},
    }


def shown(command):
    """Without the folders that programs happen to lie in."""
    return "veth alone, no tunnel" if command == NO_TUNNEL else " ".join(
        os.path.basename(word) if word.startswith("/") else word for word in shlex.split(command))


def version(contender):
    if contender.is_bare_cable:
        return None
    program = next((word for word in shlex.split(contender.command) if shutil.which(word) and word != "env"), None)
    try:
        said = subprocess.run([program, "--version"], text=True, timeout=5, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    except (OSError, TypeError, subprocess.TimeoutExpired):
        return None
    return said.strip().splitlines()[0] if said.strip() else None


def distribution():
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except (OSError, AttributeError):  # no such file; Python before 3.10
        return platform.system()


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
