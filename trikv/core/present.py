"""The cluster's state in words: what the page, the command line and the demo say of it, each sentence in one place.

Everything here is made from the document that `GET /v1/cluster` answers, called `state`, or from a part of it. Fronts
only lay out: the page as HTML, the command line as rows. So both say the same, and a test needs neither.

A text is a clause, without a capital letter and a full stop, unless its docstring calls it a sentence. `as_sentence`
makes a sentence of a clause. Sentences about modes are the strategies' own, and `news.py` tells events.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, NamedTuple

State = Mapping[str, Any]

_UTC: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)", re.ASCII)


class Tone(StrEnum):
    """How a reader should take something; a front makes a colour of it."""

    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"
    PLAIN = "plain"


# --- the cluster as a whole -------------------------------------------------------------------------------------------


class ClusterHealth(NamedTuple):
    """`detail` is a sentence, or two."""

    tone: Tone
    word: str
    detail: str


def judge_health(state: State) -> ClusterHealth:
    """Can the cluster be read and written now?"""
    if state["forming"]:
        return ClusterHealth(Tone.FAIR, "Forming", "Nothing can be read or written yet.")
    parts = state["partitions"]
    total = parts["total"]
    if parts["readable"] == parts["writable"] == total:
        detail = "Every key can be read and written."
        if short := say_short(state):
            return ClusterHealth(Tone.FAIR, "Serving", f"{detail} {as_sentence(short)}")
        return ClusterHealth(Tone.GOOD, "Serving", detail)
    if parts["readable"] == 0:
        up = sum(worker["state"] == "up" for worker in state["workers"])
        why = f"{up} of {len(state['workers'])} workers are up; bring back those that are down."
        return ClusterHealth(Tone.POOR, "Unavailable", f"No key can be read: {why}")
    readable, writable = say_share(parts["readable"], total), say_share(parts["writable"], total)
    if parts["readable"] == total:
        return ClusterHealth(Tone.FAIR, "Degraded", f"Every key can be read, {writable} of them can be written.")
    return ClusterHealth(Tone.POOR, "Degraded", f"Of the keys, {readable} can be read, and {writable} can be written.")


def say_short(state: State) -> str:
    """How many partitions have fewer replicas than they should have; empty if none has."""
    parts = state["partitions"]
    if not parts["short"]:
        return ""
    return (
        f"{say_count(parts['short'], parts['total'])} partitions have fewer than {state['replicas']} replicas for now"
    )


def say_crowded(state: State) -> str:
    """How many partitions have more replicas in one zone than they must, and why; empty if none has."""
    parts = state["partitions"]
    if not parts.get("crowded"):
        return ""
    return (
        f"{say_count(parts['crowded'], parts['total'])} partitions have more replicas in one zone than they must: they "
        "are being moved, or a zone has too few workers for as much load as the others have"
    )


@dataclass(frozen=True, slots=True)
class PartitionCount:
    """How many of the partitions have a property; `meaning` says what the property is."""

    name: str
    count: int
    total: int
    tone: Tone
    meaning: str

    @property
    def share(self) -> str:
        return say_share(self.count, self.total)


_PARTITION_MEANINGS: Final = {
    "readable": "with enough replicas up to answer a read",
    "writable": "with enough replicas up to commit a write",
    "settled": "of which one configuration holds all that was written",
}


def count_partitions(state: State) -> list[PartitionCount]:
    parts = state["partitions"]
    total = parts["total"]
    counts = []
    for name, meaning in _PARTITION_MEANINGS.items():
        count = parts[name]
        tone = Tone.GOOD if count == total else Tone.POOR if count == 0 or name == "readable" else Tone.FAIR
        counts.append(PartitionCount(name, count, total, tone, meaning))
    return counts


@dataclass(frozen=True, slots=True)
class OperationCount:
    name: str
    count: int
    meaning: str


def count_outcomes(state: State) -> list[OperationCount]:
    """What clients' operations came to, since this master started."""
    done = state["operations"]
    return [
        OperationCount("committed", done["committed"], "done, and the mode's promise holds"),
        OperationCount("refused", done["refused"], "not done, and never will be"),
        OperationCount("unknown", done["unknown"], "perhaps done: read before you decide"),
    ]


def count_open(state: State) -> list[OperationCount]:
    """What has no outcome yet."""
    return [
        OperationCount("in flight", state["in_flight"], "under way now"),
        OperationCount("in doubt", state["pending"], "keys with a write of unknown outcome"),
    ]


class VerdictWords(NamedTuple):
    tone: Tone
    word: str
    meaning: str


# --- the mode ---------------------------------------------------------------------------------------------------------


class PromiseWords(NamedTuple):
    """`meaning` is a sentence."""

    word: str
    meaning: str


_PROMISES: Final = {
    "CP": PromiseWords("consistent", "Reads return the latest committed write, or are refused."),
    "AP": PromiseWords("available", "Answers while any replica can; a read may be out of date."),
}


def say_promise(promise: str) -> PromiseWords:
    return _PROMISES.get(promise, PromiseWords("", ""))


def mode_of(state: State) -> Mapping[str, Any]:
    """What the cluster says of the mode in force."""
    return next((mode for mode in state["modes"] if mode["name"] == state["mode"]), {})


def say_copies(state: State) -> str:
    """On which replicas of a key a committed write is."""
    copies, replicas = state["copies"], state["replicas"]
    if replicas == 1:
        return "the one replica that there is of each key"
    return f"all {replicas} replicas" if copies == replicas else f"at least {copies} of {replicas} replicas"


def say_needs(state: State) -> str:
    """Which replicas of a key a write and a read cannot do without, as a sentence; empty if the mode does not say."""
    needs = mode_of(state).get("needs")
    return f"A write needs {needs['write']['detail']}, a read {needs['read']['detail']}." if needs else ""


# --- what is being moved or mended ------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """`what` is under way; `left` of `total` partitions remain, for about `time_left` if that can be told."""

    what: str
    left: int
    total: int
    done: str
    time_left: str | None


def describe_progress(state: State) -> Progress | None:
    """None: every partition is settled, and no operator's wish is being fulfilled."""
    progress = state["progress"]
    operation = progress["operation"]
    if operation is None and not progress["settling"]:
        return None
    return Progress(
        _say_operation(operation),
        progress["settling"] if operation is None else operation["partitions_left"],
        state["partitions"]["total"],
        f"{progress['keys_compared']:,} keys compared and {say_megabytes(progress['bytes_moved'])} moved",
        None if progress["seconds_left"] is None else say_duration(progress["seconds_left"]),
    )


def _say_operation(operation: Mapping[str, Any] | None) -> str:
    """None: the cluster heals by itself."""
    match operation:
        case {"kind": "mode", "mode": mode}:
            return f"switching to mode {mode}"
        case {"kind": "drain", "worker": worker}:
            return f"emptying worker {worker}"
        case {"kind": kind}:
            return str(kind).replace("_", " ")
    return "settling"


# --- workers ----------------------------------------------------------------------------------------------------------

# Of a worker's state, of its place, and of what a master does. A member's place says nothing of how it is.
WORD_TONES: Final = {
    "up": Tone.GOOD, "suspect": Tone.FAIR, "down": Tone.POOR,
    "leads": Tone.GOOD, "stands by": Tone.PLAIN,
    "lost": Tone.POOR, "draining": Tone.FAIR, "leaving": Tone.FAIR, "spare": Tone.PLAIN, "drained": Tone.PLAIN,
}  # fmt: skip
_PLACES: Final = {"lost": "holds no place"}  # the other words stand for themselves


_PROCESSES: Final = {"paused": "its process is paused", "gone": "its process has ended"}
_LINKS: Final = {
    "cut": "its link to the master is cut on purpose",
    "slow": "its link to the master is slowed on purpose, by {delay_ms:g} ms",
}


def say_place(place: str) -> str:
    return _PLACES.get(place, place)


def notes_on(worker: Mapping[str, Any]) -> list[str]:
    """What there is to say of a worker beside its numbers."""
    notes = [worker["note"]] if worker["note"] else []
    notes += filter(None, (_PROCESSES.get(worker["process"]), _LINKS.get(worker["link"], "").format_map(worker)))
    if worker["full"]:
        notes.append(f"full: it takes no key beyond its {worker['max_keys']:,}")
    if worker["disk_full"]:
        notes.append("its disk is nearly full: it takes deletes alone until there is room")
    return notes


def judge_notes(worker: Mapping[str, Any]) -> Tone:
    """How the notes on a worker are to be taken."""
    state, place = WORD_TONES.get(worker["state"]), WORD_TONES.get(worker["place"])
    if Tone.POOR in (state, place):
        return Tone.POOR
    return Tone.PLAIN if place is Tone.PLAIN and state is Tone.GOOD else Tone.FAIR


# --- masters ----------------------------------------------------------------------------------------------------------


class MasterWords(NamedTuple):
    """One of the masters that share a config store: where it is, what it does, and what there is to say of that."""

    address: str
    http: str
    role: str
    tone: Tone
    note: str


def tell_masters(masters: Mapping[str, Any] | None) -> list[MasterWords]:
    """`masters`: as `GET /v1/masters` answers, or as the state has them. The leader comes first."""
    if masters is None:
        return []
    leader = masters["leader"]
    told = []
    for master in sorted(masters["masters"], key=lambda master: (master["role"] != "leader", master["address"])):
        if master["role"] != "leader":
            told.append(MasterWords(master["address"], master["http"], "stands by", Tone.PLAIN, ""))
            continue
        term = "" if leader["term"] is None else f", in term {leader['term']}"
        since = f"since {say_instant(leader['since'])}{term}"
        told.append(MasterWords(master["address"], master["http"], "leads", Tone.GOOD, since))
    return told


def say_config_store(masters: Mapping[str, Any] | None) -> str:
    """What the masters share, and whether it answers; empty where one master has its document for itself."""
    store = masters and masters["config_store"]
    if not store:
        return ""
    silent = [each for each in store["endpoints"] if each["reachable"] is False]
    count = len(store["endpoints"])
    said = f"{store['kind']}, {count} {'endpoint' if count == 1 else 'endpoints'}"
    if silent:
        said += f", of which {len(silent)} cannot be reached ({', '.join(each['endpoint'] for each in silent)})"
    return f"{said}: {store['error']}" if store["error"] else said


# --- what was measured ------------------------------------------------------------------------------------------------

VERDICTS: Final = {
    "kept": VerdictWords(Tone.GOOD, "kept", "no operation contradicted the promise"),
    "broken": VerdictWords(Tone.POOR, "broken", "some operations contradict the promise"),
    "measuring": VerdictWords(Tone.PLAIN, "not known yet", "too few reads were judged so far"),
}


def probe_rows(probe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `GET /v1/probe` answers, as rows of a name and a text."""
    verdict, stale = VERDICTS[probe["verdict"]], probe["stale"]
    allowed = ", which AP allows" if probe["promise"] == "AP" and stale["reads"] else ""
    rows = [
        ("mode", f"{probe['mode']}, judged as {probe['promise']}"),
        ("promise", f"{verdict.word}: {verdict.meaning}"),
        ("checked", f"{probe['operations']:,} operations in {say_duration(probe['since_s'])}, since the mode changed"),
        ("violations", f"{probe['violation_count']:,}"),
        ("stale reads", f"{stale['reads']:,}{allowed}"),
        ("refused", f"{probe['refused']:,}"),
        ("unknown", f"{probe['unknown']:,}"),
    ]
    if stale["reads"]:
        worst = f"{stale['worst_ms']:,.1f} ms and {stale['worst_versions']:,} versions behind"
        rows.insert(5, ("stalest read", worst))
    for violation in probe["violations"]:
        rows.append((violation["rule"], f"{violation['told']} (key {violation['key']})"))
        for one in violation["operations"]:
            value = "" if one["value"] is None else f" {one['value']}"
            when = f"from {one['began_ms']:,.1f} to {one['ended_ms']:,.1f} ms"
            trace = f"; trikv trace {one['trace']}" if one["trace"] else ""
            rows.append(("", f"{one['what']}{value}, {when}: {one['outcome']}{trace}"))
    return rows


# --- numbers and sentences --------------------------------------------------------------------------------------------


def say_count(count: int, total: int) -> str:
    return f"all {total:,}" if count == total else f"{count:,} of {total:,}"


def say_share(count: int, total: int) -> str:
    """A percentage that says 100 only for all and 0 only for none."""
    if count in (0, total):
        return f"{100 if count else 0} %"
    return f"{min(99, max(1, round(100 * count / total)))} %"


def say_duration(seconds: float) -> str:
    """In the largest unit that is reached, and the one below it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for (unit, unit_s), (below, below_s) in pairwise(units):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // below_s} {below}"
    return f"{whole} s"


def say_instant(instant: str) -> str:
    """An ISO time in UTC to the second; another text as it is."""
    found = _UTC.fullmatch(instant)
    return instant if found is None else f"{found[1]} {found[2]} UTC"


def say_megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def as_sentence(text: str) -> str:
    """A clause or a sentence, as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
