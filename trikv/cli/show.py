"""How the CLI and the demo show a cluster: tables where a person looks, tab-separated lines where a program reads.

Each function lays out one of the cluster's answers as rows of plain text; the words for its state are in
`trikv.core.present`. Only `show` and `table` know about terminals, and rich is imported only on a terminal. Sentences
about modes are the strategies' own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from trikv.core.labels import spell_labels
from trikv.core.news import tell
from trikv.core.present import (
    WORD_TONES,
    State,
    Tone,
    count_outcomes,
    describe_progress,
    mode_of,
    notes_on,
    say_config_store,
    say_copies,
    say_count,
    say_crowded,
    say_duration,
    say_megabytes,
    say_needs,
    say_short,
    tell_masters,
)
from trikv.core.text import escape

if TYPE_CHECKING:
    from rich.table import Table

TRACE_COLUMNS: Final = ("id", "request", "key", "outcome", "took", "messages")
WORKER_COLUMNS: Final = (
    "worker", "address", "state", "place", "keys", "copies", "primaries", "storage", "labels", "note",
)  # fmt: skip
FAULT_COLUMNS: Final = ("worker", "process", "pid", "link", "what can be done")
MASTER_COLUMNS: Final = ("master", "http", "does", "note")
MODE_COLUMNS: Final = ("", "mode", "promise", "what it gives up", "when to use it")
PLUGIN_COLUMNS: Final = ("kind", "name", "promise", "from", "what it says of itself")

_COLOURS: Final = {Tone.GOOD: "green", Tone.FAIR: "yellow", Tone.POOR: "red", Tone.PLAIN: "cyan"}


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], *, label: str = "") -> None:
    """Print the rows: as a table on a terminal, else one line each, behind `label` if there is one.

    Cells are escaped, since servers and workers write them.
    """
    rows = [[escape(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(table(columns, rows))
        return
    for row in rows:
        print("\t".join((label, *row) if label else row))
    sys.stdout.flush()  # where that fails, it is this command's error


def show_workers(state: State, *, label: str = "") -> None:
    """Print a row for each worker. On a terminal the notes stand below the table, where there is room."""
    rows = worker_rows(state)
    if not sys.stdout.isatty():
        show(WORKER_COLUMNS, rows, label=label)
        return
    show(WORKER_COLUMNS[:-1], [row[:-1] for row in rows])
    for worker, *_, note in rows:
        if note:
            print(escape(f"{worker}: {note}"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_header=any(columns))
    for column in columns:
        drawn.add_column(column, no_wrap=column in WORKER_COLUMNS[:-1])
    for row in rows:
        drawn.add_row(*(Text(cell, style=_colour_of(cell)) for cell in row))  # Text: a cell is never markup
    return drawn


def _colour_of(cell: str) -> str:
    tone = WORD_TONES.get(cell)
    return "" if tone is None else _COLOURS[tone]


def summary_rows(state: State) -> list[tuple[str, str]]:
    """The cluster as a whole, the most important first."""
    uptime = say_duration(state["uptime_s"])
    rows = [
        ("cluster", f"{state['cluster']}, trikv {state['version']}, term {state['term']}, up {uptime}"),
        ("mode", f"{state['mode']} ({state['promise']}): a committed write is on {say_copies(state)}"),
        ("price", mode_of(state).get("gives_up", "")),
    ]
    if needs := say_needs(state):
        rows.append(("needs", needs))
    if state["forming"]:
        rows.append(("forming", state["forming"]["detail"]))
    parts = state["partitions"]
    counts = [f"{say_count(parts[word], parts['total'])} {word}" for word in ("settled", "readable", "writable")]
    rows.append(("partitions", ", ".join(counts)))
    if short := say_short(state):
        rows.append(("too few", short))
    if crowded := say_crowded(state):
        rows.append(("zones", crowded))
    if line := progress_line(state):
        rows.append(("healing", line))
    for master in tell_masters(state.get("masters")):
        rows += [("master", " ".join(filter(None, (master.address, master.role, master.note))))]
    if store := say_config_store(state.get("masters")):
        rows.append(("document", f"in {store}"))
    if scaling := state.get("autoscale"):
        rows.append(("scaling", f"{scaling['fewest']} to {scaling['most']} workers; {scaling['why']}"))
    rows.append(("operations", ", ".join(f"{each.count:,} {each.name}" for each in count_outcomes(state))))
    return rows


def master_rows(masters: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """One row per master, under `MASTER_COLUMNS`; none where one master has its document for itself."""
    return [(master.address, master.http, master.role, master.note) for master in tell_masters(masters)]


def trace_rows(traces: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row per trace, under `TRACE_COLUMNS`."""
    return [
        (
            trace["id"],
            trace["what"],
            trace["key"],
            trace["outcome"] or ("under way" if trace["ended_ms"] is None else "cancelled"),
            "" if trace["ended_ms"] is None else f"{trace['ended_ms']:.1f} ms",
            str(trace["messages"]),
        )
        for trace in traces
    ]


def worker_rows(state: State) -> list[tuple[str, ...]]:
    """One row per worker, under `WORKER_COLUMNS`."""
    return [
        (
            worker["id"],
            worker["address"],
            worker["state"],
            worker["place"],
            "?" if worker["keys"] is None else f"{worker['keys']:,}",
            str(worker["copies"]),
            str(worker["primaries"]),
            worker["storage"],
            spell_labels(worker.get("labels", {})),
            "; ".join(notes_on(worker)),
        )
        for worker in state["workers"]
    ]


def fault_rows(faults: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per worker, under `FAULT_COLUMNS`."""
    return [
        (
            worker["id"],
            worker["process"],
            "" if worker["pid"] is None else str(worker["pid"]),
            f"slow: {worker['delay_ms']:g} ms" if worker["link"] == "slow" else worker["link"],
            ", ".join(worker["can"]),
        )
        for worker in faults["workers"]
    ]


def mode_rows(state: State) -> list[tuple[str, ...]]:
    """One row per installed mode, under `MODE_COLUMNS`; the one in force is marked."""
    fields = ("name", "promise", "gives_up", "use_when")
    return [
        ("*" if mode["name"] == state["mode"] else " ", *(mode[field] for field in fields)) for mode in state["modes"]
    ]


def progress_line(state: State) -> str:
    """What is being moved or mended, and how much is left; empty if nothing is."""
    progress = describe_progress(state)
    if progress is None:
        return ""
    line = f"{progress.what}: {progress.left:,} of {progress.total:,} partitions left, {progress.done}"
    return line if progress.time_left is None else f"{line}, about {progress.time_left} to go"


def certificate_rows(certificate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The certificate of a switch of the mode."""
    if not certificate["partitions"]:
        return []  # the mode was in force already
    epochs = certificate["epochs"]
    return [
        ("before", certificate["from"]),
        ("partitions", f"{certificate['partitions']:,}, epochs {epochs['first']} to {epochs['last']}"),
        ("keys", f"{certificate['keys_compared']:,} compared, {certificate['keys_repaired']:,} repaired"),
        (
            "took",
            f"{certificate['duration_s']:.1f} s; no request waited longer than {certificate['longest_pause_s']:.3f} s",
        ),
        ("not asked", ", ".join(certificate["could_not_ask"]) or "nobody whose answer was needed"),
    ]


def mode_plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a switch of the mode would do."""
    return [
        ("mode", f"{plan['mode']} ({plan['promise']}), now {plan['from']}"),
        ("partitions", f"{plan['partitions']:,} to settle anew" if plan["partitions"] else "none: it is in force"),
        ("members up", f"{plan['members_up']:,}"),
        ("cannot ask", ", ".join(plan["cannot_ask"]) or "none: every replica is up"),
        *(("note", note) for note in plan["notes"]),
    ]


def move_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What draining a worker, or giving spares their share, moves."""
    size = "unknown" if plan["bytes"] is None else f"about {say_megabytes(plan['bytes'])}"
    takes = "" if plan["seconds"] is None else f", which takes {plan['seconds']:,.0f} s or longer"
    return [
        *([("worker", plan["worker"])] if "worker" in plan else []),
        ("partitions", f"{plan['partitions']:,}"),
        ("copies", f"{plan['copies']:,}"),
        ("data", f"{size}{takes}"),
        *((f"copies to {worker}", f"{copies:,}") for worker, copies in plan["to"].items()),
    ]


def repair_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report of a repair. Where digests agree, no key is compared."""
    rows = [(f"keys {word}", f"{report[word]:,}") for word in ("compared", "differing", "repaired")]
    if "partitions" in report:
        skipped = f"; {report['skipped']:,} left out, a replica being down or data on the move"
        rows.insert(0, ("partitions", f"{report['partitions']:,} compared{skipped if report['skipped'] else ''}"))
    return rows


def recover_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The partitions that cannot be settled, and the members that are missing."""
    if not report["partitions"]:
        return [("partitions", "none is in need of it: everything that was committed can be found")]
    named = ", ".join(map(str, report["partitions"][:8])) + (", ..." if len(report["partitions"]) > 8 else "")
    silent = report.get("not_asked", [])
    return [
        ("partitions", f"{len(report['partitions']):,} ({named})"),
        ("missing", ", ".join(report["lost_members"]) or "nobody"),
        *([("not asked", f"{', '.join(silent)}: no answer from the disk")] if silent else []),
        ("price", "what only they held is lost, as far as it was acknowledged, and older values may be read instead"),
    ]


def event_line(event: Mapping[str, Any]) -> str:
    """One event as one line: its id, the time (of day in UTC, or since the master started), what happened."""
    when = f"{event['at'][:19].replace('T', ' ')}Z" if "at" in event else f"{event['time_s']:.1f} s"
    return f"{event['id']}\t{when}\t{readable_key(tell(event).encode())}"


def readable_key(key: bytes) -> str:
    """The key as text on one line, for eyes alone: what is not printable is written as an escape."""
    return escape(key.decode("utf-8", "backslashreplace"))
