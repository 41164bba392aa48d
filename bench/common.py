"""What the scripts of this folder share: processor time and memory of processes, JSON and pictures.

A script that writes JSON writes one document: the script's name, the machine, the date, its options (the seed among
them), and `rows`, of which each is one measurement. A picture is SVG, drawn here: bars in sections, with a light and a
dark ground of its own, since the page around it may be either.

Left out: systems other than Linux, since processor time and memory are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import log10
from pathlib import Path
from typing import Final, NamedTuple

from trikv.testing.machine import describe_machine

TELLS_CPU: Final = Path("/proc/self/stat").exists()
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s_of(pid: int) -> float:
    """The processor time of a process until now, in steps of 10 ms. Only where `TELLS_CPU`."""
    return sum(user_and_system_s_of(pid))


def user_and_system_s_of(pid: int) -> tuple[float, float]:
    """The same, for the process's own code and for the kernel on its behalf (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) * _TICK_S, int(fields[12]) * _TICK_S


def idle_s_of_machine() -> float:
    """For how long its cores have been idle until now, all together."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) * _TICK_S


def memory_bytes_of(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what is written --------------------------------------------------------------------------------------------------


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that `write_outputs` reads."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw them there, as SVG")


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def write_outputs(options: argparse.Namespace, name: str, rows: Sequence[Mapping[str, object]], picture: str) -> None:
    """Write the JSON document and the picture, where they were asked for."""
    if options.json is not None:
        asked = {key: value for key, value in vars(options).items() if key not in ("json", "picture")}
        document = {
            "bench": name,
            "machine": describe_machine(),
            "date": today(),
            "options": asked,
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=1, default=str) + "\n")
    if options.picture is not None:
        options.picture.write_text(picture)


# --- pictures ---------------------------------------------------------------------------------------------------------

# The colours of a ground of its own, in a light and a dark version, and the text on it.
GROUND: Final = """
  svg { --ground: #ffffff; --ink: #1f2328; --faint: #d1d9e0; --quiet: #59636e; --done: #0969da; --bad: #cf222e;
        --slow: #8250df; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #0d1117; --ink: #f0f6fc; --faint: #3d444d; --quiet: #9198a1; --done: #4493f8; --bad: #f85149;
          --slow: #ab7df8; }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--ink); }
  .quiet { fill: var(--quiet); font-size: 12px; }
  .ground { fill: var(--ground); }
"""
_BARS: Final = """
  .bar { fill: var(--done); }
  .level { stroke: var(--bad); stroke-dasharray: 4 3; }
  .heading { font-weight: 600; }
"""
_WIDTH: Final = 960
_LEFT: Final = 420
_RIGHT: Final = 760  # the longest bar ends here, and its text follows
_STEP: Final = 20


class Bar(NamedTuple):
    """`told` stands behind the bar."""

    label: str
    value: float
    told: str


def make_svg(width: int, height: int, title: str, style: str, body: str) -> str:
    """A picture on its ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{GROUND}{style}</style>\n'
        f'<rect class="ground" width="{width}" height="{height}"/>\n{body}\n</svg>\n'
    )


def draw_bars(
    title: str, note: str, sections: Mapping[str, Sequence[Bar]], *, level: float | None = None, by_powers: bool = False
) -> str:
    """Bars in sections. A line marks `level`. `by_powers`: on a logarithmic scale, where values differ a lot."""
    values = [bar.value for bars in sections.values() for bar in bars if bar.value > 0] or [1.0]
    least, most = min(values) / 2, max(*values, level or 0.0)

    def length(value: float) -> float:
        if value <= 0:
            return 0.0
        share = log10(value / least) / log10(most / least) if by_powers else value / most
        return (_RIGHT - _LEFT) * share

    drawn = [f'<text x="16" y="28" class="heading">{escape(title)}</text>']
    y = 40
    for heading, bars in sections.items():
        y += _STEP + 8
        drawn.append(f'<text x="16" y="{y}" class="heading">{escape(heading)}</text>')
        for bar in bars:
            y += _STEP
            wide = length(bar.value)
            drawn.append(f'<text x="{_LEFT - 8}" y="{y}" text-anchor="end">{escape(bar.label)}</text>')
            drawn.append(f'<rect class="bar" x="{_LEFT}" y="{y - 12}" width="{wide:.1f}" height="14"/>')
            drawn.append(f'<text x="{_LEFT + wide + 6:.1f}" y="{y}" class="quiet">{escape(bar.told)}</text>')
    if level is not None:
        x = _LEFT + length(level)
        drawn.append(f'<line class="level" x1="{x:.1f}" y1="48" x2="{x:.1f}" y2="{y + 6}"/>')
    y += _STEP + 12
    scale = " The scale is logarithmic." if by_powers else ""
    drawn.append(f'<text x="16" y="{y}" class="quiet">{escape(note)}.{scale}</text>')
    return make_svg(_WIDTH, y + 16, title, _BARS, "\n".join(drawn))
