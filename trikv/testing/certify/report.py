"""A certificate for people: as lines on a terminal, and as one page without scripts.

Both say the same in the same order: what was promised and what was delivered, what was tried, and for a failure the
smallest schedule that shows it, as a timeline, with the command that plays it again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import Final

from trikv.api import Promise
from trikv.core.errors import Outcome
from trikv.core.text import escape as escape_for_terminal
from trikv.testing.certify.certificate import PROMISED, Certificate, Counterexample, Grade
from trikv.testing.sim import Schedule, ScheduledRequest
from trikv.timeline import DEFINITIONS, STYLE, to_svg, to_text, width_of

_BROKEN_SHOWN: Final = 8
_SCALE_LEAST: Final = 0.75  # of the picture, so that its labels can be read
_AROUND_PICTURE: Final = 110  # the margins of the page and of the figure, in pixels
_PRICE: Final = (
    "The price of the mode: it promises less than linearizability, and this is what clients can see of that."
)


def verdict_of(certificate: Certificate) -> str:
    """The certificate in one sentence."""
    mode, promised = certificate.mode, PROMISED[certificate.promise]
    runs = _count(certificate.runs, "run")
    if certificate.is_kept:
        return f"{mode} keeps its promise: {promised} in {_all(certificate.runs)}"
    if certificate.breaks_its_promise:
        where = "the one run" if certificate.runs == 1 else f"{len(certificate.broken)} of {runs}"
        return f"{mode} breaks its promise to be {promised} in {where}"
    if certificate.broken or certificate.noticed or certificate.stuck:
        reasons = [f"it {how}" for how in certificate.noticed or (["hangs"] if certificate.stuck else [])]
        rules = Counter(one.finding.rule for one in certificate.broken)
        reasons += [f"{rule} in {count:,} of {runs}" for rule, count in rules.items()]
        return f"{mode} cannot be certified: {', '.join(reasons)}"
    if certificate.undecided:
        return f"{mode} is not decided: the checker ran out of steps in {len(certificate.undecided)} of {runs}"
    return f"{mode} cannot be certified: nothing was ever committed"


def facts_of(certificate: Certificate) -> list[tuple[str, str]]:
    """What was tried and what came of it, as (name, text)."""
    operations = ", ".join(f"{certificate.outcomes[outcome]:,} {outcome.value}" for outcome in Outcome)
    faults = ", ".join(f"{count:,} {kind.value}" for kind, count in certificate.faults.most_common())
    hours = certificate.virtual_s / 3600
    rate = certificate.runs / certificate.elapsed_s if certificate.elapsed_s else 0.0
    first, last = certificate.seeds
    seeds = f"seed {first}" if first == last else f"seeds {first:,} to {last:,}"
    if certificate.stopped_at_first:
        seeds += "; the first that fails ends it"
    facts = [
        ("strategy", f"{certificate.mode}, from {certificate.origin}"),
        ("promises", f"{certificate.promise}: {PROMISED[certificate.promise]}"),
        ("delivers", _delivered(certificate)),
        *_played_of(certificate),
        ("histories", f"{certificate.runs:,} ({seeds}), {hours:.2f} simulated hours, {rate:.1f} histories a second"),
        ("operations", f"{sum(certificate.outcomes.values()):,} checked: {operations}"),
        ("faults", f"{sum(certificate.faults.values()):,} injected: {faults}" if faults else "none injected"),
    ]
    if certificate.broken:
        shown = [f"{one.seed} ({one.finding.rule})" for one in certificate.broken[:_BROKEN_SHOWN]]
        more = len(certificate.broken) - len(shown)
        facts.append(
            (
                "broken by",
                ("seed " if len(certificate.broken) == 1 else "seeds ")
                + ", ".join(shown)
                + (f" and {more} more" if more else ""),
            )
        )
    if certificate.undecided:
        seeds = ", ".join(map(str, certificate.undecided[:_BROKEN_SHOWN]))
        facts.append(("not decided", f"{len(certificate.undecided)} histories, of seeds {seeds}"))
    for kind, detail in certificate.noticed.items():
        facts.append((kind.value, f"{detail} (in {_count(certificate.seen_in[kind], 'run')})"))
    if certificate.stuck:
        facts.append(("no end", f"{_count(certificate.stuck, 'run')}, of which nothing else is known"))
    return facts


def _played_of(certificate: Certificate) -> Iterator[tuple[str, str]]:
    saved = certificate.schedule
    if saved is not None:
        requests, faults = len(saved.requests), len(saved.steps) - len(saved.requests)
        size = f"{_count(requests, 'request')} and {_count(faults, 'other step')} in {saved.played_s:.0f} s"
        yield "schedule", f"{escape_for_terminal(saved.source)}: {size}, saved under {saved.mode}"


def _delivered(certificate: Certificate) -> str:
    grade = certificate.delivers
    if grade is Grade.CONVERGENT and certificate.promise is Promise.AP:
        linearizable = certificate.runs - certificate.not_linearizable
        return f"{grade}: {linearizable:,} of {_count(certificate.runs, 'run')} were linearizable"
    if grade is Grade.CONVERGENT and certificate.weakened:
        return f"{grade}: under the promise of convergence alone it kept that in {_all(certificate.weakened[0])}"
    return grade.value


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _all(runs: int) -> str:
    return "the one run" if runs == 1 else f"all {runs:,} runs"


def schedule_lines(schedule: Schedule) -> list[str]:
    """Every fault and request of a schedule in the order of their time."""
    lines = [(fault.at_s, str(fault)) for fault in schedule.faults]
    lines += [(one.at_s, f"c{one.client + 1} {_asked(one)}") for one in schedule.requests]
    return [f"{at_s:9.4f} s  {text}" for at_s, text in sorted(lines)]


def _asked(request: ScheduledRequest) -> str:
    value = "" if request.value is None else f" = {request.value}"
    size = "" if request.size_bytes is None else f", a value of {request.size_bytes:,} bytes"
    batch = f", in batch {request.batch}" if request.batch else ""
    return f"{request.kind.value} {request.key}{value}{size}{batch}"


def _size_of(example: Counterexample) -> str:
    faults, requests = len(example.schedule.faults), len(example.schedule.requests)
    size = f"{_count(faults, 'fault')} and {_count(requests, 'request')}"
    if not example.runs:
        return f"{size}, as the seed has them"
    of = f"of {example.shrunk_from[0]} and {example.shrunk_from[1]}"
    return f"{size}, {of}; the smallest found in {_count(example.runs, 'run')}"


def to_lines(certificate: Certificate) -> list[str]:
    """For a terminal or a log."""
    facts = facts_of(certificate)
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {text}" for name, text in facts]
    if (example := certificate.counterexample or certificate.price) is not None:
        if certificate.price is not None:
            lines += ["", _PRICE]
        lines += ["", f"seed {example.seed}: {example.finding}"]
        lines += ["", f"The schedule: {_size_of(example)}.", *schedule_lines(example.schedule)]
        lines += ["", "What happened (simulated seconds):", *to_text(example.timeline).splitlines()]
        lines += ["", f"Play it again: {certificate.replay_command}"]
    elif certificate.broken:
        lines += ["", f"Seed {certificate.broken[0].seed} did not fail a second time; see what was noticed above."]
    return [*lines, "", verdict_of(certificate)]


# --- a page -----------------------------------------------------------------------------------------------------------


def to_html(certificate: Certificate) -> str:
    """A whole page. It has no scripts and loads nothing."""
    title = verdict_of(certificate)
    body = "\n".join(_body(certificate, title))
    example = certificate.counterexample or certificate.price
    style = _PAGE_STYLE if example is None else _PAGE_STYLE + _style_for(width_of(example.timeline))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(certificate: Certificate, title: str) -> Iterator[str]:
    kind = "kept" if certificate.is_kept else "broken"
    yield f'<header><p class="over">trikv certify {escape(certificate.target)}</p>'
    yield f'<h1 class="{kind}">{escape(title)}</h1></header>'
    if (example := certificate.counterexample or certificate.price) is not None:
        if certificate.price is not None:
            yield f"<p>{escape(_PRICE)}</p>"
        yield from _example(example, certificate)
    yield "<section><h2>What was tried</h2><dl>"
    for name, text in facts_of(certificate):
        yield f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
    yield "</dl></section>"


def _example(example: Counterexample, certificate: Certificate) -> Iterator[str]:
    finding = example.finding
    numbers = {str(number) for number in range(1, 1 + len(finding.operations))}

    def badge(match: re.Match[str]) -> str:
        return f'<b class="badge">{match[1]}</b>' if match[1] in numbers else match[0]

    why = re.sub(r"\[(\d+)\]", badge, escape(finding.why))
    yield f"<section><h2>{escape(finding.rule)}, key {escape(finding.key)}</h2><p>{why}</p>"
    yield '<ol class="evidence">'
    for number, operation in enumerate(finding.operations, start=1):
        yield f'<li><b class="badge">{number}</b> {escape(str(operation))}</li>'
    yield "</ol></section>"
    yield '<section><h2>What happened</h2><p class="quiet">Time runs down, in simulated seconds, and is not to scale.'
    timeline = example.timeline
    wide, compact = to_svg(timeline, defined=True), to_svg(timeline, compact=True, defined=True)
    yield f"{DEFINITIONS}{_LEGEND}</p><figure>{wide}{compact}</figure><details open><summary>Line by line</summary>"
    lines = "".join(f"<span>{escape(line)}</span>" for line in to_text(timeline).splitlines())
    yield f'<pre class="lines">{lines}</pre></details></section>'
    yield f"<section><h2>The schedule</h2><p>Seed {example.seed}: {escape(_size_of(example))}.</p>"
    yield f"<pre>{escape(chr(10).join(schedule_lines(example.schedule)))}</pre>"
    yield f"<p>Play it again: <code>{escape(certificate.replay_command)}</code></p></section>"


def _key(shape: str, width: int, word: str) -> str:
    return f'<span class="key"><svg width="{width}" height="12">{shape}</svg>{word}</span>'


_LEGEND: Final = "\n".join(
    (
        _key('<path class="k call" d="M1 6h32"/>', 34, "a client's call"),
        _key('<path class="k" d="M1 6h32"/>', 34, "to a replica"),
        _key('<path class="k answer" d="M1 6h32"/>', 34, "its answer"),
        _key('<path class="k lost" d="M2 1l10 10M2 11 12 1"/>', 14, "lost"),
        _key('<rect class="k trouble" width="14" height="12" rx="3"/>', 14, "trouble"),
        _key('<rect class="k down" x=".5" y=".5" width="13" height="11" rx="3"/>', 14, "down"),
    )
)


def _style_for(width: int) -> str:
    """How a picture of this width is shown: scaled down as far as it can be read, and compact on what is narrower."""
    narrow = round(width * _SCALE_LEAST) + _AROUND_PICTURE
    return f"""
body {{ max-width: max(92rem, {width + _AROUND_PICTURE}px); }}
@media (min-width: {narrow}px) {{ figure svg.compact {{ display: none; }} }}
@media not all and (min-width: {narrow}px) {{ figure svg.spacetime:not(.compact) {{ display: none; }} }}
"""


_PAGE_STYLE: Final = """
*, *::before, *::after { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 92rem; background: var(--paper);
  color: var(--ink);
  font: 1rem/1.55 Inter, ui-sans-serif, system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif;
}
header { padding-bottom: 1.25rem; border-bottom: 1px solid var(--line); }
.over, .quiet { color: var(--quiet); font-size: .875rem; }
.over { margin: 0; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
h1 { margin: .25rem 0 0; font-size: clamp(1.5rem, 1.2rem + 1.4vw, 2.25rem); line-height: 1.2; letter-spacing: -.02em; }
h1::before { content: ""; display: inline-block; width: .6em; height: .6em; margin-right: .45em; border-radius: 50%; }
h1.kept::before { background: var(--accent); }
h1.broken::before { background: var(--poor); }
h2 { margin: 2rem 0 .5rem; font-size: 1.125rem; letter-spacing: -.01em; }
p { margin: .5rem 0; max-width: 80ch; }
figure {
  margin: 1rem 0; padding: 1.25rem .75rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px;
}
figure svg { display: block; max-width: 100%; height: auto; }
summary { cursor: pointer; }
pre.lines span { display: block; padding-left: 2em; text-indent: -2em; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { pre.lines span { white-space: normal; } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
pre, code { font: .875em/1.6 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre {
  margin: .5rem 0; padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.evidence { margin: .5rem 0; padding: 0; list-style: none; }
.evidence li { margin: .25rem 0; overflow-wrap: anywhere; }
b.badge {
  display: inline-block; min-width: 1.45em; border-radius: 1em; background: var(--poor); color: var(--card);
  font-size: .8em; line-height: 1.45em; text-align: center;
}
.quiet { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; max-width: none; }
.key { display: inline-flex; align-items: center; gap: .4rem; white-space: nowrap; }
.k { fill: none; stroke: var(--ink); stroke-width: 1.6; }
path.k.call { stroke: var(--accent); stroke-width: 2; }
path.k.answer { stroke: var(--quiet); stroke-dasharray: 5 3; }
path.k.lost { stroke: var(--poor); stroke-width: 2.2; }
rect.k.trouble { fill: var(--fair-soft); stroke: none; }
rect.k.down { fill: url(#hatch); stroke: var(--quiet); stroke-width: 1; }
@media print { body { max-width: none; } figure { overflow: visible; } }
"""
