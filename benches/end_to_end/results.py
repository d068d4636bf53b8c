"""Samples, what became of them, and the file that they are kept in.

A sample is what one measurement of one contender said in one run. Figures are medians over runs; nothing is left out, and
a measurement that failed or that was disturbed by other programs is counted and reported.
"""

import json
import statistics

DISTURBED_PERCENT = 10.0  # of one CPU, spent by programs that do not belong to the measurement


class Stat:
    def __init__(self, values):
        self.median = statistics.median(values)
        self.least = min(values)
        self.most = max(values)
        self.count = len(values)


class Results:
    def __init__(self, environment, contenders):
        self.environment = environment
        self.contenders = contenders  # names, the first one being ours
        self.samples = []

    def add(self, contender, run, measurement, values=None, error=None):
        self.samples.append({"contender": contender, "run": run, "measurement": measurement,
                             "values": values or {}, "error": error})

    def stat(self, contender, key):
        """`None` where nothing was measured."""
        measurement, _, number = key.partition(".")
        values = [sample["values"][number] for sample in self.samples
                  if sample["contender"] == contender and sample["measurement"] == measurement
                  and number in sample["values"]]
        return Stat(values) if values else None

    def ratio(self, contender, other, key):
        """Median of one by median of the other."""
        one, two = self.stat(contender, key), self.stat(other, key)
        return one.median / two.median if one and two and two.median else None

    def rivals(self):
        """Every tunnel but ours."""
        return [name for name in self.contenders[1:] if name != self.environment.get("bare")]

    def best_rival(self, figure):
        known = [name for name in self.rivals() if self.stat(name, figure.key)]
        choose = max if figure.better == "more" else min
        return choose(known, key=lambda name: self.stat(name, figure.key).median, default=None)

    def runs(self):
        return 1 + max((sample["run"] for sample in self.samples), default=-1)

    def errors(self):
        return [sample for sample in self.samples if sample["error"]]

    def disturbed(self):
        return [sample for sample in self.samples
                if sample["values"].get("disturbed_percent", 0.0) > DISTURBED_PERCENT]

    def as_json(self):
        return json.dumps({"environment": self.environment, "contenders": self.contenders,
                           "samples": self.samples}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text):
        data = json.loads(text)
        results = cls(data["environment"], data["contenders"])
        results.samples = data["samples"]
        return results

    def join(self, later):
        """Adds another file's samples as further runs; both must have measured the same contenders in the same way."""
        for same in ("cpu", "options"):
            if self.environment.get(same) != later.environment.get(same):
                raise ValueError(f"these results differ in their {same} and cannot be joined")
        if self.contenders != later.contenders:
            raise ValueError("these results are of different contenders and cannot be joined")
        before = self.runs()
        self.samples += [{**sample, "run": sample["run"] + before} for sample in later.samples]
