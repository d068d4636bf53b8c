"""Results as Markdown: what README and docs/performance.md show, and what a run prints."""

from measurements import FIGURES

SHORT = ["tcp1.gbit", "tcp1.cpu_s_per_gb", "udp64.kpps", "ping-load.avg_us", "memory-loaded.mb"]


def full(results):
    parts = [conditions(results), medians(results), ratios(results), remarks(results)]
    return "\n".join(part.strip() + "\n" for part in parts if part)


def short(results):
    """The table of README, without ranges."""
    names = [name for name in results.contenders if name == results.contenders[0] or name in results.rivals()]
    figures = [figure for figure in FIGURES if figure.key in SHORT]
    return table(names, [[figure.label, *(number(results.stat(name, figure.key), figure) for name in names)]
                                for figure in figures])


def conditions(results):
    environment = results.environment
    text = (f"{environment['cpu']}, {environment['cpus']} CPUs, Linux {environment['kernel']}, "
            f"{environment['distribution']}. {environment['date']}, {runs(results)}, {environment['options']}.")
    commands = [f"- {name}: `{command}`{version}" for name, command, version in
                ((name, environment["commands"][name], with_comma(environment["versions"].get(name)))
                 for name in results.contenders)]
    return "\n".join([text, "", *commands])


def runs(results):
    return "1 run" if results.runs() == 1 else f"{results.runs()} interleaved runs"


def with_comma(version):
    return f", {version}" if version else ""


def medians(results):
    rows = []
    for figure in FIGURES:
        stats = [results.stat(name, figure.key) for name in results.contenders]
        if any(stats):
            rows.append([figure.label, *(with_range(stat, figure) for stat in stats)])
    return "Medians, and least and most of the runs in brackets.\n\n" + table(results.contenders, rows)


def ratios(results):
    ours, rivals = results.contenders[0], results.rivals()
    if not rivals:
        return ""
    rows = []
    for figure in FIGURES:
        best = figure.better and results.best_rival(figure)
        if best is None or not results.stat(ours, figure.key):
            continue
        rows.append([figure.label, figure.better, *(times(results.ratio(ours, name, figure.key)) for name in rivals),
                     f"{times(results.ratio(ours, best, figure.key))} ({best})"])
    if not rows:
        return ""
    return (f"{ours} by each of the others, median by median; the last column takes the best of them, line by line.\n\n"
            + table(["better is", *rivals, "the best"], rows))


def remarks(results):
    lines = [f"- {sample['contender']}, {sample['measurement']}, run {sample['run'] + 1}: {sample['error']}"
             for sample in results.errors()]
    if lines:
        lines = ["Not measured:", "", *lines, ""]
    disturbed = results.disturbed()
    if disturbed:
        lines.append(f"Other programs used the machine during {len(disturbed)} of {len(results.samples)} measurements, "
                     "repetitions included; the least disturbed try counts.")
    else:
        lines.append("No other program used the machine noticeably during any measurement.")
    return "\n".join(lines)


def table(header, rows):
    """The first column needs no name."""
    head = "| | " + " | ".join(header) + " |\n" + "| --- " * (len(header) + 1) + "|\n"
    return head + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def number(stat, figure):
    return f"{stat.median:.{figure.digits}f}" if stat else "-"


def with_range(stat, figure):
    if stat is None:
        return "-"
    if stat.count == 1:
        return number(stat, figure)
    return f"{number(stat, figure)} ({stat.least:.{figure.digits}f}-{stat.most:.{figure.digits}f})"


def times(ratio):
    if ratio is None:
        return "-"
    return f"{ratio:.1f} x" if ratio >= 2 else f"{ratio:.2f} x"


def between(text, mark, content):
    """`text` with what stands between the comments `mark: begin` and `mark: end` replaced."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the marks {begin} and {end} are missing")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"
