"""Checks of everything here that is arithmetic, parsing or drawing. Measures nothing and needs neither root nor a daemon."""

import copy
import json
import os
import socket
import subprocess
import sys
import types
import unittest
import xml.etree.ElementTree as xml

import datagrams
import measurements
import meter
import plot
import report
import traffic
from lab import Contender, LabError
from results import Results, Stat

SVG = "{http://www.w3.org/2000/svg}"
LEAST_SECONDS = 1e-9  # over after one batch
BY_KEY = {figure.key: figure for figure in measurements.FIGURES}


def sample_results():
    """Three contenders, three runs; `slow` failed once and the cable has no daemons."""
    environment = {"date": "2000-01-01", "kernel": "6.0", "distribution": "Debian", "cpu": "a <fast> CPU", "cpus": 2,
                   "options": "1 s", "bare": "cable", "versions": {},
                   "commands": {"ours": "wgd", "slow": "slow", "small": "small", "cable": "none"}}
    results = Results(environment, ["ours", "slow", "small", "cable"])
    for run, gbit in enumerate([6.0, 5.0, 100.0]):
        results.add("ours", run, "tcp1", {"gbit": gbit, "cpu_s_per_gb": 2.0, "disturbed_percent": 0.0})
        results.add("slow", run, "tcp1", {"gbit": 2.0, "cpu_s_per_gb": 8.0, "disturbed_percent": 50.0 * (run == 1)})
        results.add("small", run, "tcp1", {"gbit": 1.0, "cpu_s_per_gb": 4.0})
        results.add("cable", run, "tcp1", {"gbit": 30.0})
    results.add("slow", 2, "udp64", error="it fell over")
    return results


class Figures(unittest.TestCase):
    def test_every_figure_belongs_to_a_measurement_and_has_its_own_name(self):
        names = {measurement.name for measurement in measurements.MEASUREMENTS}
        for figure in measurements.FIGURES:
            self.assertIn(figure.key.split(".")[0], names)
        self.assertEqual(len(BY_KEY), len(measurements.FIGURES))

    def test_what_plot_and_readme_show_are_figures_with_a_better_direction(self):
        for key in report.SHORT + [panel[0] for panel in plot.PANELS]:
            self.assertIn(BY_KEY[key].better, ("more", "less"))

    def test_tests_are_chosen_by_name_and_a_wrong_name_is_refused(self):
        self.assertEqual([m.name for m in measurements.chosen(["udp64", "tcp1"])], ["tcp1", "udp64"])
        self.assertEqual(measurements.chosen([]), measurements.MEASUREMENTS)
        with self.assertRaisesRegex(ValueError, "no such test: tcp3"):
            measurements.chosen(["tcp3"])


class Statistics(unittest.TestCase):
    def test_a_figure_is_the_median_and_no_single_run_moves_it(self):
        stat = sample_results().stat("ours", "tcp1.gbit")
        self.assertEqual((stat.median, stat.least, stat.most, stat.count), (6.0, 5.0, 100.0, 3))
        self.assertEqual(Stat([1.0, 2.0]).median, 1.5)

    def test_nothing_measured_is_none_and_not_nought(self):
        self.assertIsNone(sample_results().stat("slow", "udp64.kpps"))
        self.assertIsNone(sample_results().ratio("ours", "slow", "udp64.kpps"))

    def test_the_best_rival_is_chosen_by_direction_and_is_never_the_bare_cable(self):
        results = sample_results()
        self.assertEqual(results.best_rival(BY_KEY["tcp1.gbit"]), "slow")
        self.assertEqual(results.best_rival(BY_KEY["tcp1.cpu_s_per_gb"]), "small")
        self.assertIsNone(results.best_rival(BY_KEY["udp64.kpps"]))

    def test_results_survive_their_file(self):
        results = sample_results()
        again = Results.from_json(results.as_json())
        self.assertEqual(again.as_json(), results.as_json())

    def test_joined_files_are_further_runs_and_must_have_been_measured_alike(self):
        results, more = sample_results(), sample_results()
        results.join(more)
        self.assertEqual((results.runs(), results.stat("ours", "tcp1.gbit").count), (6, 6))
        other = copy.deepcopy(more)
        other.environment["options"] = "9 s"
        with self.assertRaisesRegex(ValueError, "options"):
            results.join(other)


class Markdown(unittest.TestCase):
    def test_medians_carry_ranges_and_ratios_are_of_medians(self):
        text = report.full(sample_results())
        self.assertIn("| TCP, 1 stream, Gbit/s | 6.00 (5.00-100.00) | 2.00 (2.00-2.00) |", text)
        self.assertIn("| TCP, 1 stream, Gbit/s | more | 3.0 x | 6.0 x | 3.0 x (slow) |", text)
        self.assertIn("| daemons' CPU, TCP, 1 stream, s/GB | less | 0.25 x | 0.50 x | 0.50 x (small) |", text)

    def test_failures_and_disturbance_are_reported(self):
        text = report.full(sample_results())
        self.assertIn("- slow, udp64, run 3: it fell over", text)
        self.assertIn("during 1 of 13 measurements", text)

    def test_rows_of_a_table_have_as_many_cells_as_its_header(self):
        for text in (report.full(sample_results()), report.short(sample_results())):
            for block in text.split("\n\n"):
                cells = {line.count(" |") for line in block.splitlines() if line.startswith("| ")}
                self.assertLessEqual(len(cells), 1, block)

    def test_only_what_is_between_the_marks_is_replaced(self):
        text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
        new = report.between(text, "x", "new\n")
        self.assertEqual(new, "a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n")
        self.assertEqual(report.between(new, "x", "new"), new)
        with self.assertRaisesRegex(ValueError, "missing"):
            report.between("no marks", "x", "new")


class Plot(unittest.TestCase):
    def setUp(self):
        self.results = sample_results()
        self.svg = xml.fromstring(plot.svg(self.results, BY_KEY))

    def test_bars_are_to_scale(self):
        bars = [float(rect.get("width")) for rect in self.svg.iter(f"{SVG}rect") if "bar" in rect.get("class")]
        self.assertEqual(len(bars), 6)  # two figures, three contenders; the cable is no contender
        self.assertAlmostEqual(bars[0] / bars[2], 6.0, delta=0.1)
        self.assertAlmostEqual(bars[4] / bars[3], 4.0, delta=0.1)

    def test_nothing_leaves_the_picture(self):
        width, height = (float(self.svg.get(side)) for side in ("width", "height"))
        for element in self.svg.iter():
            for name, limit in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height)):
                self.assertTrue(0 <= float(element.get(name, 0)) <= limit, xml.tostring(element))

    def test_what_is_shown_is_also_told(self):
        self.assertIn("TCP, one stream, Gbit/s: ours 6.00, slow 2.00, small 1.00.", self.svg.get("aria-label"))


class Traffic(unittest.TestCase):
    def test_a_contender_is_a_name_a_command_and_an_interface(self):
        parsed = Contender.parse("x=env A=b /x -f {if}")
        self.assertEqual((parsed.name, parsed.command), ("x", "env A=b /x -f {if}"))
        self.assertTrue(Contender.parse("veth=@cable").is_bare_cable)
        for wrong in ("x", "=x {if}", "x=", "x=no interface"):
            with self.assertRaises(ValueError):
                Contender.parse(wrong)

    def test_one_call_sends_a_whole_batch_of_the_asked_size(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            sent = datagrams.send("127.0.0.1", receiver.getsockname()[1], 100, LEAST_SECONDS)["sent"]
            receiver.setblocking(False)
            sizes = [len(receiver.recv(2000)) for _ in range(sent)]
        self.assertEqual(sizes, [100] * datagrams.BATCH)

    def test_the_sink_counts_what_was_sent(self):
        program = [sys.executable, "-B", datagrams.__file__]
        sink = subprocess.Popen([*program, "sink", "127.0.0.1", "0"], stdout=subprocess.PIPE, text=True)
        try:
            sink.stdout.readline()
            sent = datagrams.send("127.0.0.1", bound_port(sink.pid), 64, LEAST_SECONDS)["sent"]
            received = json.loads(sink.communicate(timeout=10)[0])["received"]
        finally:
            sink.kill()
            sink.wait()
        self.assertEqual((sent, received), (datagrams.BATCH, datagrams.BATCH))

    def test_both_directions_of_iperf3_are_added_and_its_errors_are_errors(self):
        def bulk(report_of_client):
            flow = object.__new__(traffic.Bulk)
            flow.client = types.SimpleNamespace(communicate=lambda timeout: (json.dumps(report_of_client), None))
            return flow.gbit_per_s(1)

        one = {"sum_received": {"bits_per_second": 2e9}}
        self.assertEqual(bulk({"end": one}), 2.0)
        self.assertEqual(bulk({"end": {**one, "sum_received_bidir_reverse": {"bits_per_second": 3e9}}}), 5.0)
        with self.assertRaisesRegex(LabError, "refused"):
            bulk({"end": {}, "error": "refused"})


class Counting(unittest.TestCase):
    def test_the_cpu_time_of_a_process_grows_as_it_works(self):
        before = meter.daemon_seconds([os.getpid()])
        while os.times().user + os.times().system < before + 0.1:
            pass
        self.assertGreaterEqual(meter.daemon_seconds([os.getpid()]), before + 0.05)

    def test_a_process_that_ended_counts_nothing(self):
        child = subprocess.Popen(["true"])
        child.wait()
        self.assertEqual(meter.daemon_seconds([child.pid]), 0.0)

    def test_memory_is_read_in_megabytes_and_its_peak_is_not_below_it(self):
        now = meter.memory_mb(os.getpid(), "VmRSS")
        self.assertTrue(1 < now < 1000)
        self.assertGreaterEqual(meter.memory_mb(os.getpid(), "VmHWM"), now)


def bound_port(pid):
    """The port of the only UDP socket of a process; the test asks for any free one."""
    sockets = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        sockets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    with open("/proc/net/udp", encoding="utf-8") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in sockets:
                return int(fields[1].rpartition(":")[2], 16)
    raise AssertionError("no socket")


if __name__ == "__main__":
    unittest.main()
