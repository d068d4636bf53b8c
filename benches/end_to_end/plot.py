"""Results as one SVG: a panel for each figure, a bar for each contender, from zero and to scale.

The picture brings its own background and follows the reader's choice of a light or dark page. Bars are medians; the thin
line across the end of a bar reaches from the least to the most of the runs.
"""

from xml.sax.saxutils import escape

import report

PANELS = [
    ("tcp1.gbit", "TCP, one stream", "Gbit/s", 2),
    ("tcp1.cpu_s_per_gb", "CPU of both daemons for it", "seconds per GB", 1),
    ("udp64.kpps", "UDP of 64 bytes, delivered", "1000 packets/s", 0),
    ("udp1392.gbit", "UDP of 1392 bytes, delivered", "Gbit/s", 2),
    ("vxlan.gbit", "TCP in VXLAN in the tunnel", "Gbit/s", 2),
    ("one-cpu-tcp1.gbit", "TCP, everything on one CPU", "Gbit/s", 2),
    ("ping-idle.avg_us", "Ping, idle, average", "microseconds", 0),
    ("ping-load.avg_us", "Ping under bulk TCP, average", "microseconds", 0),
    ("memory-loaded.mb", "Resident memory, most ever", "MB", 1),
    ("start.ms", "Start to first ping", "milliseconds", 0),
]

COLUMNS = 2
MARGIN = 28
PANEL_WIDTH = 420
PANEL_GAP = 36
HEADER = 44
ROW = 24
BAR = 14
NAMES = 108
LABEL = 64
FOOTER = 30

STYLE = """
  .page { fill: #ffffff; stroke: #d8dee4; }
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a; }
  .title { font-weight: 600; font-size: 14px; fill: #1f2328; }
  .ours { font-weight: 600; fill: #1f2328; }
  .note { font-size: 12px; }
  .bar { fill: #b6bec8; }
  .bar.ours { fill: #0b7a75; }
  .range { stroke: #57606a; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d; }
    text { fill: #9aa4af; }
    .title, .ours { fill: #f0f6fc; }
    .bar { fill: #4a5360; }
    .bar.ours { fill: #2fb5ad; }
    .range { stroke: #9aa4af; }
  }
"""


def svg(results, figures):
    """`figures` tell which direction is better, by key."""
    names = [results.contenders[0], *results.rivals()]
    panels = [panel for panel in PANELS if results.stat(names[0], panel[0])]
    panel_height = HEADER + ROW * len(names) + 22
    rows = -(-len(panels) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * PANEL_WIDTH + (COLUMNS - 1) * PANEL_GAP
    height = 2 * MARGIN + rows * panel_height + FOOTER - 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{quoted(summary(results, panels, names))}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
    ]
    for place, panel in enumerate(panels):
        left = MARGIN + (place % COLUMNS) * (PANEL_WIDTH + PANEL_GAP)
        top = MARGIN + (place // COLUMNS) * panel_height
        parts += draw_panel(results, names, panel, figures[panel[0]].better, left, top)
    environment = results.environment
    parts.append(line_of_text("note", MARGIN, height - 20,
                              f"Medians of {report.runs(results)}, lines from least to most; "
                              f"{environment['cpus']} CPUs for both ends: {environment['cpu']}"))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def draw_panel(results, names, panel, better, left, top):
    key, title, unit, digits = panel
    stats = {name: results.stat(name, key) for name in names}
    longest = max(stat.most for stat in stats.values() if stat) or 1
    scale = (PANEL_WIDTH - NAMES - LABEL) / longest
    parts = [line_of_text("title", left, top + 14, title),
             line_of_text("note", left, top + 31, f"{unit}, {better} is better")]
    for row, name in enumerate(names):
        ours = " ours" if row == 0 else ""
        y = top + HEADER + row * ROW
        middle = y + BAR / 2
        parts.append(line_of_text(ours.strip() or "name", left, middle + 4.5, name))
        stat = stats[name]
        if stat is None:
            parts.append(line_of_text("note", left + NAMES, middle + 4.5, "not measured"))
            continue
        begin = left + NAMES
        parts.append(f'<rect class="bar{ours}" x="{begin}" y="{y}" width="{max(1, stat.median * scale):.1f}"'
                     f' height="{BAR}" rx="2"/>')
        if stat.count > 1:
            parts.append(f'<line class="range" x1="{begin + stat.least * scale:.1f}" y1="{middle:.1f}"'
                         f' x2="{begin + stat.most * scale:.1f}" y2="{middle:.1f}"/>')
        parts.append(line_of_text(ours.strip() or "value", begin + stat.most * scale + 7, middle + 4.5,
                                  f"{stat.median:.{digits}f}"))
    return parts


def summary(results, panels, names):
    """What somebody who does not see the picture is told."""
    told = []
    for key, title, unit, digits in panels:
        stats = ((name, results.stat(name, key)) for name in names)
        values = ", ".join(f"{name} {stat.median:.{digits}f}" for name, stat in stats if stat)
        told.append(f"{title}, {unit}: {values}.")
    return " ".join(told)


def line_of_text(kind, x, y, text):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def quoted(text):
    return escape(text, {'"': "&quot;"})
