"""How the CLI and the demo show a cluster: tables where a person looks, tab-separated lines where a program reads.

Each function here turns what the cluster said into rows of plain text; `show` alone knows about terminals. rich is
imported only when there is one. Sentences about modes are the strategies' own, as the cluster passes them on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

State = Mapping[str, Any]  # the document of GET /v1/cluster

WORKER_COLUMNS: Final = ("worker", "address", "state", "place", "keys", "copies", "primaries", "storage", "note")
MODE_COLUMNS: Final = ("", "mode", "promise", "what it gives up", "when to use it")
PLUGIN_COLUMNS: Final = ("kind", "name", "promise", "from", "what it says of itself")

_STYLES: Final = {"up": "green", "suspect": "yellow", "down": "red", "lost": "red", "spare": "cyan"}
_LOST: Final = "came back without its data, holds no place"


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], *, label: str = "") -> None:
    """Print the rows: as a table on a terminal, else one line each, with `label` in front if there is one."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(table(columns, rows))
        return
    for row in rows:
        print("\t".join((label, *row) if label else row))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))  # Text: a cell is never markup
    return drawn


def summary_rows(state: State) -> list[tuple[str, str]]:
    """What there is to say of the cluster as a whole, most important first."""
    rows = [
        ("cluster", f"{state['cluster']}, trikv {state['version']}, term {state['term']}, {_age(state['uptime_s'])}"),
        ("mode", f"{state['mode']} ({state['promise']}): a committed write is on {_of_replicas(state)}"),
        ("price", mode_of(state).get("gives_up", "")),
    ]
    if state["forming"]:
        rows.append(("forming", state["forming"]["detail"]))
    parts = state["partitions"]
    total = parts["total"]
    rows.append(
        ("partitions", ", ".join(f"{_all(parts[word], total)} {word}" for word in ("settled", "readable", "writable")))
    )
    done = state["operations"]
    rows.append(("operations", ", ".join(f"{done[word]:,} {word}" for word in ("committed", "refused", "unknown"))))
    return rows


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
            _note(worker),
        )
        for worker in state["workers"]
    ]


def mode_rows(state: State) -> list[tuple[str, ...]]:
    """One row per installed mode, under `MODE_COLUMNS`; the one in force is marked."""
    fields = ("name", "promise", "gives_up", "use_when")
    return [
        ("*" if mode["name"] == state["mode"] else " ", *(mode[field] for field in fields)) for mode in state["modes"]
    ]


def mode_of(state: State) -> Mapping[str, Any]:
    """What the cluster says of the mode in force."""
    return next((mode for mode in state["modes"] if mode["name"] == state["mode"]), {})


def readable_key(key: bytes) -> str:
    """The key as text on one line: what is not printable is written as an escape, so this is for eyes alone."""
    text = key.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _note(worker: Mapping[str, Any]) -> str:
    notes = [worker["note"] or (_LOST if worker["place"] == "lost" else "")]
    if worker["full"]:
        notes.append(f"full: it takes no key beyond its {worker['max_keys']:,}")
    return "; ".join(note for note in notes if note)


def _of_replicas(state: State) -> str:
    copies, replicas = state["copies"], state["replicas"]
    return f"all {replicas} replicas" if copies == replicas else f"at least {copies} of {replicas} replicas"


def _all(count: int, total: int) -> str:
    return f"all {total:,}" if count == total else f"{count:,} of {total:,}"


def _age(seconds: float) -> str:
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"up {seconds / unit_s:.0f} {unit}"
    return f"up {seconds:.0f} s"
