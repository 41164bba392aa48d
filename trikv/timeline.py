"""A space-time diagram of messages and clients' calls, as text and as SVG.

A `Timeline` is plain data: lanes (a client, the coordinator, a replica), messages between them, calls of clients, and
bands of trouble. It does not know where they come from, so the same code can draw a failing run of the simulator or a
single request.

Time runs down. It is not to scale: the interesting events happen within microseconds, and seconds lie between them. The
distance of two moments on paper grows with the logarithm of their distance in time, and gives way where two labels of
one lane would touch. So the order is exact, and a length is a hint; the margin has the seconds.

`to_svg` draws a picture that takes its colours from `STYLE`, light or dark like the reader's screen. It has no scripts,
and every text in it is escaped. A narrow screen has no room for labels: a `compact` picture has all lanes and lines,
and the text beside it says what they are.

Cost: n log n in what is drawn. The caller bounds that: a person can read a few hundred messages at most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from html import escape
from typing import Final, NamedTuple


class Role(StrEnum):
    CLIENT = "client"
    COORDINATOR = "coordinator"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class Lane:
    """One participant. Lanes stand side by side in this order: clients, the coordinator, replicas."""

    name: str
    role: Role
    note: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """`arrived_s` None: it was lost, or (`is_under_way`) it arrives after the picture ends."""

    source: str
    target: str
    sent_s: float
    arrived_s: float | None
    text: str
    is_answer: bool = False
    is_under_way: bool = False

    @property
    def is_lost(self) -> bool:
        return self.arrived_s is None and not self.is_under_way


@dataclass(frozen=True, slots=True)
class ClientCall:
    """What a client asked and was told. `number` is its number in the evidence; 0 if it is not evidence.

    `why`: the reason for the answer, which only the text and a pointer at the call have room for.
    """

    lane: str
    began_s: float
    ended_s: float | None
    text: str
    answer: str
    number: int = 0
    why: str = ""

    @property
    def told(self) -> str:
        return f"{self.answer}, because {self.why}" if self.why else self.answer


@dataclass(frozen=True, slots=True)
class Band:
    """Trouble on some lanes for a while. `is_down`: the node is down."""

    lanes: tuple[str, ...]
    began_s: float
    ended_s: float | None
    text: str
    is_down: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that one participant came to know at a moment, such as that a promise is met."""

    lane: str
    time_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """
    Attributes:
      broken_s: the moment at which clients could see that something was broken, which `broken` says.
      in_ms: all of it takes milliseconds: the margin has these, and moments lie further apart.
    """

    lanes: tuple[Lane, ...]
    messages: tuple[Message, ...] = ()
    calls: tuple[ClientCall, ...] = ()
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()
    in_ms: bool = False
    broken_s: float | None = None
    broken: str = "here the promise is broken"

    def moments(self) -> list[float]:
        """Every instant at which something begins or ends, in order."""
        found = {message.sent_s for message in self.messages}
        found |= {message.arrived_s for message in self.messages if message.arrived_s is not None}
        lasting: tuple[ClientCall | Band, ...] = (*self.calls, *self.bands)
        for one in lasting:
            found |= {time_s for time_s in (one.began_s, one.ended_s) if time_s is not None}
        if self.broken_s is not None:
            found.add(self.broken_s)
        found |= {mark.time_s for mark in self.marks}
        return sorted(found)


# --- as text ----------------------------------------------------------------------------------------------------------


def to_text(timeline: Timeline) -> str:
    """One line for each event, in order: when, to whom, what."""
    rows = sorted(_rows(timeline))
    names = max((len(row.name) for row in rows), default=0)
    verbs = max((len(row.verb) for row in rows), default=0)
    spell = _spell_ms if timeline.in_ms else _spell_s
    return "\n".join(f"{spell(row.time_s)}  {row.name:<{names}}  {row.verb:<{verbs}}  {row.text}" for row in rows)


def _spell_s(time_s: float) -> str:
    return f"{time_s:11.4f} s"


def _spell_ms(time_s: float) -> str:
    return f"{1000 * time_s:10.2f} ms"


class _Row(NamedTuple):
    """One event. `place` orders those of one instant: what ended before what began, and a cause before its effect."""

    time_s: float
    place: tuple[int, int, int]
    name: str
    verb: str
    text: str


def _rows(timeline: Timeline) -> Iterator[_Row]:
    for number, band in enumerate(timeline.bands):
        name = ", ".join(band.lanes)
        yield _Row(band.began_s, (0, number, 0), name, "down" if band.is_down else "trouble", band.text)
        if band.ended_s is not None:
            yield _Row(band.ended_s, (0, number, 1), name, "up again" if band.is_down else "mended", band.text)
    for number, message in enumerate(timeline.messages):
        if message.arrived_s is None:
            verb = "misses" if message.is_lost else "has yet to get"
            yield _Row(message.sent_s, (4, number, 0), message.target, verb, f"{message.text}, from {message.source}")
        else:
            took_ms = (message.arrived_s - message.sent_s) * 1000
            told = f"{message.text}, from {message.source} after {took_ms:.1f} ms"
            yield _Row(message.arrived_s, (1, number, 0), message.target, "gets", told)
    for number, call in enumerate(timeline.calls):
        mark = f"[{call.number}] " if call.number else ""
        yield _Row(call.began_s, (3, number, 0), call.lane, "asks", mark + call.text)
        if call.ended_s is not None:
            at_once = call.ended_s == call.began_s
            place = (3, number, 1) if at_once else (2, number, 0)
            yield _Row(call.ended_s, place, call.lane, "is told", mark + call.told)
    for number, one in enumerate(timeline.marks):
        yield _Row(one.time_s, (2, number, 0), one.lane, "knows", one.text)
    if timeline.broken_s is not None:
        yield _Row(timeline.broken_s, (5, 0, 0), "", "", timeline.broken.upper())


# --- as a picture -----------------------------------------------------------------------------------------------------

_MARGIN_X: Final = 96  # where the seconds stand
_COMPACT_MARGIN_X: Final = 66
_COMPACT_LANE_X: Final = 34
_LANE_X: Final = {Role.CLIENT: 190, Role.COORDINATOR: 190, Role.REPLICA: 176}  # the distance to the next lane
_BOTTOM_Y: Final = 40
_CALL_HALF: Final = 6  # half the width of a client's call; then of a band, and of a lost message's cross
_BAND_HALF: Final = 13
_CROSS_HALF: Final = 5
_LETTER_X: Final = 6.8  # of a label, on average
_LABEL_Y: Final = 14  # the least distance of two labels in one column
_GAP_Y: Final = (3.0, 64.0)  # between two moments, at least and at most
_GAP_UNIT_S: Final = 0.0002  # beyond this, distances grow with their logarithm
_GAP_UNIT_IN_MS_S: Final = 0.000005
_BREAK_S: Final = 1.0  # the margin shows a silence of this length


@dataclass(frozen=True, slots=True)
class _Label:
    """A text at a moment (None: the end) and a column. It may push the moments after it down."""

    time_s: float | None
    column: str
    offset: float
    text: str
    anchor: str
    x: float
    style: str


class _Paper:
    """The positions of moments and lanes on the drawing."""

    def __init__(self, timeline: Timeline, labels: Sequence[_Label], xs: dict[str, float], *, compact: bool) -> None:
        self.xs = xs
        self.compact = compact
        self.margin_x = _COMPACT_MARGIN_X if compact else _MARGIN_X
        last_x = max(xs.values(), default=0)
        longest = max((len(lane.name) for lane in timeline.lanes), default=0)
        self.lanes_y = 14 + _LETTER_X * longest if compact else 44  # names stand aslant above their lanes
        if compact:
            self.width = max(last_x + 24, self.margin_x + _LETTER_X * len(timeline.broken) + 16)
        else:
            ends = [xs[band.lanes[-1]] + _BAND_HALF + _LETTER_X * (len(band.text) + 2) for band in timeline.bands]
            self.width = max([*ends, last_x + 190])
        self.moments = timeline.moments()
        self._ys: dict[float, float] = {}
        waiting: dict[float | None, list[_Label]] = {}
        for label in labels:
            waiting.setdefault(label.time_s, []).append(label)
        taken: dict[str, float] = {}  # by column: the lowest label so far
        unit_s = _GAP_UNIT_IN_MS_S if timeline.in_ms else _GAP_UNIT_S
        y, before_s = self.lanes_y + 30.0, None
        for moment_s in self.moments:
            if before_s is not None:
                y += _distance((moment_s - before_s) / unit_s)
            here = sorted(waiting.get(moment_s, ()), key=lambda label: label.offset)
            y = max([y, *(taken[label.column] + _LABEL_Y - label.offset for label in here if label.column in taken)])
            for label in here:
                taken[label.column] = y + label.offset
            self._ys[moment_s] = y
            before_s = moment_s
        self.end_y = y + _BOTTOM_Y
        self.height = self.end_y + 16

    def y(self, time_s: float | None) -> float:
        """None: the end of the picture."""
        return self.end_y if time_s is None else self._ys[time_s]


def _stacked(labels: Iterable[_Label]) -> list[_Label]:
    """Labels of one moment and column, one above (or below) the other."""
    stacked: list[_Label] = []
    heights: Counter[tuple[float | None, str, float]] = Counter()
    for label in labels:
        place = (label.time_s, label.column, label.offset)
        stacked.append(replace(label, offset=label.offset + math.copysign(_LABEL_Y * heights[place], label.offset)))
        heights[place] += 1
    return stacked


def _distance(units: float) -> float:
    low, high = _GAP_Y
    return min(high, max(low, 13 * math.log10(1 + units)))


def to_svg(timeline: Timeline, *, standalone: bool = False, compact: bool = False, defined: bool = False) -> str:
    """The `<svg>` element, for a page that has `STYLE`.

    `standalone`: with the style and a ground of its own. `compact`: lanes side by side and no labels, for a narrow
    screen; what is at a place is told by a pointer that rests there. `defined`: the page has `DEFINITIONS` elsewhere,
    as it must where it may hide this picture.
    """
    xs = _place_lanes(timeline.lanes, compact=compact)
    labels = _stacked(
        []
        if compact
        else [
            *_message_labels(timeline.messages, xs),
            *_call_labels(timeline.calls, xs),
            *(
                _Label(one.time_s, one.lane, 4.0, one.text, "end", xs[one.lane] - 12, "label mark")
                for one in timeline.marks
            ),
        ]
    )
    paper = _Paper(timeline, labels, xs, compact=compact)
    parts = [
        *_draw_lanes(timeline.lanes, paper),
        *_draw_bands(timeline.bands, paper),
        *_draw_broken(timeline, paper),
        *_draw_messages(timeline.messages, paper),
        *_draw_calls(timeline.calls, timeline.lanes, paper),
        *_draw_marks(timeline.marks, paper),
        *(_text(one.x, paper.y(one.time_s) + one.offset, one.text, one.style, one.anchor) for one in labels),
        *_draw_seconds(paper, in_ms=timeline.in_ms),
    ]
    size = f'viewBox="0 0 {paper.width:.0f} {paper.height:.0f}" width="{paper.width:.0f}" height="{paper.height:.0f}"'
    kind = "spacetime compact" if compact else "spacetime"
    return f'<svg class="{kind}" xmlns="http://www.w3.org/2000/svg" role="img" {size}>\n' + "\n".join(
        [
            "<title>Space-time diagram: lanes from left to right, time runs down</title>",
            *([f"<style>{STYLE}</style>", _GROUND] if standalone else []),
            *([] if defined else [_DEFINITIONS]),
            *parts,
            "</svg>",
        ]
    )


_GROUND: Final = '<rect width="100%" height="100%" style="fill: var(--card)"/>'
_DEFINITIONS: Final = """<defs>
<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse">\
<path class="head" d="M0 .8 7.5 4 0 7.2z"/></marker>
<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">\
<rect class="hatch-ground" width="6" height="6"/><path class="hatch-line" d="M0 0V6"/></pattern>
</defs>"""


DEFINITIONS: Final = (
    f'<svg class="spacetime defined" width="0" height="0" style="position: absolute" aria-hidden="true">{_DEFINITIONS}'
    "</svg>"
)


def width_of(timeline: Timeline) -> int:
    """Of the picture that is not compact, in pixels."""
    return round(_Paper(timeline, (), _place_lanes(timeline.lanes), compact=False).width)


def _place_lanes(lanes: Sequence[Lane], *, compact: bool = False) -> dict[str, float]:
    xs: dict[str, float] = {}
    x = float(_COMPACT_MARGIN_X + 24 if compact else _MARGIN_X + 30)
    for lane in lanes:
        xs[lane.name] = x
        x += _COMPACT_LANE_X if compact else _LANE_X[lane.role]
    return xs


def _draw_lanes(lanes: Sequence[Lane], paper: _Paper) -> Iterator[str]:
    for lane in lanes:
        x = paper.xs[lane.name]
        yield f'<path class="lane" d="M{x:.1f} {paper.lanes_y:.1f}V{paper.end_y:.1f}"/>'
        if paper.compact:
            aslant = f"translate({x + 4:.1f} {paper.lanes_y - 6:.1f}) rotate(-60)"
            yield f'<text class="name {lane.role}" transform="{aslant}">{escape(lane.name)}</text>'
            continue
        half = max(34.0, len(lane.name) * 4.4 + 12)
        yield f'<rect class="name {lane.role}" x="{x - half:.1f}" y="8" width="{half * 2:.1f}" height="28" rx="14"/>'
        yield _text(x, 27, lane.name, f"name {lane.role}", "middle")
        if lane.note:
            yield _text(x, 54, lane.note, "note", "middle")


def _draw_bands(bands: Sequence[Band], paper: _Paper) -> Iterator[str]:
    taken: list[tuple[float, float]] = []
    for band in sorted(bands, key=lambda band: band.began_s):
        top, bottom = paper.y(band.began_s), paper.y(band.ended_s)
        kind = "down" if band.is_down else "trouble"
        for name in band.lanes:
            x = paper.xs[name]
            yield (
                f'<rect class="band {kind}" x="{x - _BAND_HALF:.1f}" y="{top:.1f}" width="{_BAND_HALF * 2}" '
                f'height="{max(6.0, bottom - top):.1f}" rx="4"><title>{escape(band.text)}</title></rect>'
            )
        if paper.compact:
            continue
        x = paper.xs[band.lanes[-1]]
        y = top + 12
        while any(abs(y - other_y) < _LABEL_Y and x == other_x for other_x, other_y in taken):
            y += _LABEL_Y
        taken.append((x, y))
        yield _text(x + _BAND_HALF + 5, y, band.text, f"label {kind}", "start")


def _draw_messages(messages: Sequence[Message], paper: _Paper) -> Iterator[str]:
    for message in messages:
        x1, x2 = paper.xs[message.source], paper.xs[message.target]
        y1 = paper.y(message.sent_s)
        lost = message.is_lost
        y2 = y1 + 12 if lost else paper.y(message.arrived_s)
        if lost:  # the cross is where it should have arrived
            x2 -= math.copysign(_BAND_HALF, x2 - x1)
        kind = " ".join(["message", *(["answer"] if message.is_answer else []), *(["lost"] if lost else [])])
        told = f"{message.source} to {message.target}: {message.text}" + (", lost" if lost else "")
        end = "" if lost else ' marker-end="url(#head)"'
        yield f'<g class="{kind}"><title>{escape(told)}</title><path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"{end}/>'
        if lost:
            c = _CROSS_HALF
            cross = f"M{x2 - c:.1f} {y2 - c:.1f}l{2 * c} {2 * c}M{x2 - c:.1f} {y2 + c:.1f}l{2 * c} {-2 * c}"
            yield f'<path class="cross" d="{cross}"/>'
        yield "</g>"


def _message_labels(messages: Iterable[Message], xs: dict[str, float]) -> Iterator[_Label]:
    """A call's label is where it arrives, an answer's where it leaves: there is more room at the replica's end."""
    for message in messages:
        near, other = (message.source, message.target) if message.is_answer else (message.target, message.source)
        lost = message.is_lost
        to_the_left = xs[other] < xs[near]
        x = xs[near] + (-_BAND_HALF if to_the_left else _BAND_HALF)
        if lost and not message.is_answer:
            x += -_CROSS_HALF - 4 if to_the_left else _CROSS_HALF + 4
        time_s = message.sent_s if message.is_answer or lost else message.arrived_s
        offset = 15.0 if message.is_answer else (0.0 if lost else -6.0)
        style = "label lost" if lost else ("label answer" if message.is_answer else "label")
        side = "left" if to_the_left else "right"
        text = f"{message.text}, lost" if lost else message.text
        yield _Label(time_s, f"{near} {side}", offset, text, "end" if to_the_left else "start", x, style)


def _draw_calls(calls: Sequence[ClientCall], lanes: Sequence[Lane], paper: _Paper) -> Iterator[str]:
    coordinator = next((lane.name for lane in lanes if lane.role is Role.COORDINATOR), None)
    for call in calls:
        x, top, bottom = paper.xs[call.lane], paper.y(call.began_s), paper.y(call.ended_s)
        kind = "call evidence" if call.number else "call"
        told = escape(f"{call.text}: {call.told}")
        yield (
            f'<rect class="{kind}" x="{x - _CALL_HALF}" y="{top:.1f}" width="{_CALL_HALF * 2}" '
            f'height="{max(4.0, bottom - top):.1f}" rx="3"><title>{told}</title></rect>'
        )
        if coordinator is not None:
            far = paper.xs[coordinator]
            yield f'<path class="{kind} ask" d="M{x + _CALL_HALF} {top:.1f}H{far:.1f}" marker-end="url(#head)"/>'
            if call.ended_s is not None:
                back = f"M{far:.1f} {bottom:.1f}H{x + _CALL_HALF}"
                yield f'<path class="{kind} told" d="{back}" marker-end="url(#head)"/>'
        if call.number:
            yield f'<circle class="badge" cx="{x - 20}" cy="{top + 9:.1f}" r="10"/>'
            yield _text(x - 20, top + 13, str(call.number), "badge", "middle")


def _call_labels(calls: Iterable[ClientCall], xs: dict[str, float]) -> Iterator[_Label]:
    for call in calls:
        x = xs[call.lane] + _CALL_HALF + 6
        style = "label call evidence" if call.number else "label call"
        yield _Label(call.began_s, call.lane, -5.0, call.text, "start", x, style)
        if call.ended_s is not None:
            yield _Label(call.ended_s, call.lane, 14.0, call.answer, "start", x, style)


def _draw_marks(marks: Sequence[Mark], paper: _Paper) -> Iterator[str]:
    for mark in marks:
        x, y = paper.xs[mark.lane], paper.y(mark.time_s)
        told = f"<title>{escape(mark.text)}</title>"
        yield f'<path class="mark" d="M{x - 8:.1f} {y:.1f}l8 -8 8 8 -8 8z">{told}</path>'


def _draw_broken(timeline: Timeline, paper: _Paper) -> Iterator[str]:
    if timeline.broken_s is not None:
        y = paper.y(timeline.broken_s)
        yield f'<path class="broken" d="M{paper.margin_x - 14} {y:.1f}H{paper.width:.1f}"/>'
        yield _text(paper.width - 8, y - 7, timeline.broken, "label broken", "end")


def _draw_seconds(paper: _Paper, *, in_ms: bool) -> Iterator[str]:
    """The seconds (or milliseconds) in the margin, as many as there is room for, and the length of each silence."""
    last_y, before_s = -math.inf, None
    for moment_s in paper.moments:
        y = paper.y(moment_s)
        if before_s is not None and moment_s - before_s >= _BREAK_S:
            middle = (y + paper.y(before_s)) / 2
            yield _text(paper.margin_x - 24, middle + 4, f"⋮ {moment_s - before_s:.1f} s", "seconds silence", "end")
        if y - last_y >= _LABEL_Y:
            yield f'<path class="tick" d="M{paper.margin_x - 18} {y:.1f}h8"/>'
            told = f"{1000 * moment_s:.2f} ms" if in_ms else f"{moment_s:.4f}"
            yield _text(paper.margin_x - 24, y + 4, told, "seconds", "end")
            last_y = y
        before_s = moment_s


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


_COLOURS: Final = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f1; --card: #fff; --ink: #1b1f24; --quiet: #5b636d; --line: #d5d2c9;
  --accent: #0f766e; --fair: #9a5b00; --fair-soft: #fbe3b1; --poor: #b42318; --poor-soft: #fde8e6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1317; --card: #171c22; --ink: #e7eaee; --quiet: #9aa4b0; --line: #343d48;
    --accent: #4fd1c1; --fair: #f2b84b; --fair-soft: #4a3710; --poor: #ff8a80; --poor-soft: #431c19;
  }
}
"""
RULES: Final = """
.spacetime { font: 12px/1 ui-sans-serif, system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; }
.spacetime text { fill: var(--ink); font-variant-numeric: tabular-nums; }
.spacetime path { fill: none; stroke: var(--ink); stroke-width: 1.3; }
.spacetime .lane { stroke: var(--line); stroke-width: 1.5; }
.spacetime rect.name { fill: var(--paper); stroke: var(--quiet); stroke-width: 1.3; }
.spacetime rect.name.coordinator { fill: var(--ink); stroke: var(--ink); }
.spacetime text.name { font-weight: 650; font-size: 13px; }
.spacetime text.name.coordinator { fill: var(--card); }
.spacetime.compact text.name { fill: var(--ink); font-size: 12px; }
.spacetime .note, .spacetime .seconds { fill: var(--quiet); font-size: 11px; }
.spacetime .silence { font-style: italic; }
.spacetime .tick { stroke: var(--line); }
.spacetime .label { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.spacetime .label.answer { fill: var(--quiet); }
.spacetime .message path { stroke: var(--ink); }
.spacetime .message.answer path { stroke: var(--quiet); stroke-dasharray: 5 3; }
.spacetime .message.lost path { stroke: var(--poor); }
.spacetime .message .cross { stroke: var(--poor); stroke-width: 2.2; stroke-dasharray: none; }
.spacetime .head { fill: context-stroke; stroke: none; }
.spacetime .label.lost { fill: var(--poor); }
.spacetime .band.trouble { fill: var(--fair-soft); opacity: .8; }
.spacetime .band.down { fill: url(#hatch); stroke: var(--quiet); stroke-width: 1; }
.spacetime .hatch-ground { fill: var(--card); }
.spacetime .hatch-line { stroke: var(--quiet); stroke-width: 1.6; }
.spacetime .label.trouble { fill: var(--fair); }
.spacetime .label.down { fill: var(--quiet); }
.spacetime rect.call { fill: var(--accent); opacity: .75; }
.spacetime path.call { stroke: var(--accent); }
.spacetime path.told { stroke-dasharray: 5 3; }
.spacetime .label.call { fill: var(--accent); }
.spacetime rect.evidence { fill: var(--poor); opacity: 1; }
.spacetime path.evidence { stroke: var(--poor); stroke-width: 1.8; }
.spacetime .label.evidence { fill: var(--poor); font-weight: 650; }
.spacetime circle.badge { fill: var(--poor); }
.spacetime text.badge { fill: var(--card); font-weight: 700; }
.spacetime path.mark { fill: var(--accent); stroke: var(--card); stroke-width: 1.5; }
.spacetime .label.mark { fill: var(--accent); font-weight: 650; }
.spacetime path.broken { stroke: var(--poor); stroke-width: 1.5; stroke-dasharray: 2 4; }
.spacetime .label.broken { fill: var(--poor); font-weight: 650; }
"""

STYLE: Final = _COLOURS + RULES
