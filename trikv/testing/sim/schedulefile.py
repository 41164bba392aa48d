"""What a person did to a live cluster, saved as a file: requests and faults, to be played again in simulated worlds.

    saved = read_schedule(Path("my.json"))
    assert certify("quorum", schedule=saved).is_kept

The page writes such a file ("keep it as a test"), and a person may write one by hand. It is one JSON object:

    {"trikv_schedule": 1, "workers": 5, "replicas": 3, "mode": "quorum",
     "steps": [
       {"at_s": 0.8, "request": "put", "key": "color", "value": "red"},
       {"at_s": 2.1, "request": "get", "key": "color"},
       {"at_s": 2.5, "request": "delete", "key": "color"},
       {"at_s": 2.9, "request": "compare_and_set", "key": "color", "value": "blue", "expect": "etag-of-last-read"},
       {"at_s": 3.4, "fault": "kill", "worker": 2},
       {"at_s": 4.0, "fault": "slow", "worker": 1, "delay_ms": 200},
       {"at_s": 9.0, "end": "kill", "worker": 2},
       {"at_s": 12.0, "switch": "chain"},
       {"at_s": 15.0, "drain": 3}, {"at_s": 20.0, "undrain": 3}]}

    workers        how many, or their ids. With the ids, keys lie on the same workers as they did in that cluster
    worker         a worker by its place in that list, from 1, or by its id
    key, value     text, or {"base64": "..."} for bytes that are no text
    expect         "etag-of-last-read": what clients last read or wrote of the key; "absent": nothing; "another-etag":
                   a version that the key never has
    fault, end     "kill": its process ends, and at the end it starts again with its disk; "pause": it is stopped;
                   "cut": nothing passes between it and the master; "slow": what the master sends it waits for delay_ms
    down_after_s   optional, beside "mode": for how long a worker is silent before others replace it
    note           optional, anywhere: a text for people

As on a live cluster, a paused worker may be killed, which ends the pause, and a link that is cut or slow may be cut or
slowed anew; to drain twice is to drain once. A fault that is not ended ends with the last step. Steps need not be in
order.

*What is drawn.* `SavedSchedule.draw` makes the schedule of one seed: requests and faults are as they were saved, while
latencies, the speed of disks and the order of tasks come from the seed. So a file stands for many runs. Each request
has a client that is not waiting for another answer, as far as `CLIENTS_MAX` suffice. If nothing happens for longer than
`PAUSE_S` beyond the time after which a worker is down, the rest of that pause is left out.

*What is refused.* A file comes from outside. What is not as above is refused with one line that names the step, the
field and the remedy. Bounds: `FILE_BYTES_MAX`, `STEPS_MAX` and `PLAYED_S_MAX`, so that a run takes seconds.

Left out: scans, and what happened to the cluster before its first step.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from trikv.api import Strategy
from trikv.coordinator.coordinator import RESERVED
from trikv.core.breaking import DELAY_MOST_MS
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX
from trikv.core.ring import PARTITION_COUNT
from trikv.core.suspicion import DOWN_AFTER_S
from trikv.core.text import escape, to_base64
from trikv.testing.judge.history import Kind
from trikv.testing.sim.names import Names
from trikv.testing.sim.plan import (
    MASTER,
    Expected,
    FaultKind,
    Plan,
    Schedule,
    ScheduledFault,
    ScheduledRequest,
    draw_between,
)

FORMAT: Final = 1
FILE_BYTES_MAX: Final = 8 * 1024 * 1024
STEPS_MAX: Final = 1_000
WORKERS_MAX: Final = 32
REPLICAS_MAX: Final = 9
AT_S_MAX: Final = 604_800.0  # a week
FAULT_S_MIN: Final = 0.01
DOWN_AFTER_S_RANGE: Final = (0.5, 60.0)
PAUSE_S: Final = 10.0  # beyond the time after which a worker is down: enough to replace it and to settle
PLAYED_S_MAX: Final = 900.0
CLIENTS_MAX: Final = 16
SHOWN_MAX: Final = 60  # characters of the file in an error

_REQUEST_S: Final = 2.5  # a request has ended by then
_FIRST_S: Final = 0.5  # before the first step
_PARTITIONS: Final = 8  # if the workers are not those of a real cluster

_REQUESTS: Final = {"put": Kind.PUT, "get": Kind.GET, "delete": Kind.DELETE, "compare_and_set": Kind.CAS}
_FAULTS: Final = {
    "kill": FaultKind.CRASH,
    "pause": FaultKind.PAUSE,
    "cut": FaultKind.CUT_LINK,
    "slow": FaultKind.LATE_LINK,
    "drain": FaultKind.DRAIN,
}
_SORTS: Final = {"kill": "process", "pause": "process", "cut": "link", "slow": "link", "drain": "drain"}
_EXPECTATIONS: Final = {
    "etag-of-last-read": Expected.LAST_SEEN,
    "absent": Expected.ABSENCE,
    "another-etag": Expected.ANOTHER,
}
_SAID: Final = {"drain": "drained", "kill": "killed", "pause": "paused", "cut": "cut off", "slow": "slow"}

_MODE: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_WORKER_ID: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,128}")
_TAKEN_ID: Final = re.compile(rf"{MASTER}|operator|c[0-9]+|-+")  # they mean something else in what is drawn


class ScheduleFileError(ValueError):
    """The file is no schedule that this trikv can play. One line says where, why, and what to do."""


@dataclass(frozen=True, slots=True)
class SavedRequest:
    """A client's request. `value`: what it writes. `expected`: of a compare-and-set."""

    at_s: float
    kind: Kind
    key: bytes
    value: bytes | None = None
    expected: Expected = Expected.LAST_SEEN


@dataclass(frozen=True, slots=True)
class SavedFault:
    """The beginning or the end of a fault: "kill", "pause", "cut", "slow" or "drain". `worker` counts from 1."""

    at_s: float
    what: str
    worker: int
    ends: bool = False
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SavedSwitch:
    """An operator asks for another mode."""

    at_s: float
    mode: str


Step = SavedRequest | SavedFault | SavedSwitch


@dataclass(frozen=True, slots=True)
class SavedSchedule:
    """What the file says. `steps` are in the order of their time. `ids`: of the workers, or none.

    `mode`: the mode that was in force when it was saved. `source`: the file's name.
    """

    workers: int
    replicas: int
    mode: str
    steps: tuple[Step, ...]
    ids: tuple[str, ...] = ()
    down_after_s: float = DOWN_AFTER_S
    note: str = ""
    source: str = field(default="", compare=False)

    @property
    def requests(self) -> list[SavedRequest]:
        return [step for step in self.steps if isinstance(step, SavedRequest)]

    @property
    def modes(self) -> tuple[str, ...]:
        """Those that are switched to."""
        return tuple(dict.fromkeys(step.mode for step in self.steps if isinstance(step, SavedSwitch)))

    @property
    def played_s(self) -> float:
        """For how long a run plays its steps."""
        return max(self._played().values())

    def draw(self, strategy: Strategy, seed: int) -> Schedule:
        """The schedule of this seed, whatever the strategy."""
        dice = random.Random(f"saved/{seed}")
        plan = Plan()
        played = self._played()
        values = _told_apart(request.value for request in self.requests)
        names = Names.of([*(request.key for request in self.requests), *(v for v in values if v is not None)])
        clients = _share_out([played[request.at_s] for request in self.requests])
        requests = tuple(
            ScheduledRequest(
                played[request.at_s],
                client,
                request.kind,
                names.decode(request.key),
                None if value is None else names.decode(value),
                request.expected,
            )
            for request, value, client in zip(self.requests, values, clients, strict=True)
        )
        return Schedule(
            seed=seed,
            workers=self.workers,
            replicas=self.replicas,
            clients=max(clients) + 1,
            partitions=PARTITION_COUNT if self.ids else _PARTITIONS,
            latency_s=draw_between(dice, *plan.latency_s),
            fsync_s=draw_between(dice, *plan.fsync_s),
            keys=tuple(dict.fromkeys(request.key for request in requests)),
            requests=requests,
            faults=tuple(self._faults(played)),
            down_after_s=self.down_after_s,
            modes=self.modes,
            ids=self.ids,
            names=names,
            lasts_s=self.played_s,
            think_s=0.0,
        )

    def _played(self) -> dict[float, float]:
        """When each moment of the file is played."""
        times = sorted({step.at_s for step in self.steps})
        played = {times[0]: min(times[0], _FIRST_S)}
        for before_s, time_s in pairwise(times):
            played[time_s] = played[before_s] + min(time_s - before_s, self.down_after_s + PAUSE_S)
        return played

    def _faults(self, played: Mapping[float, float]) -> Iterator[ScheduledFault]:
        """Every fault with its end, and every switch, in the order of their time."""
        workers = self.ids or [f"w{number + 1}" for number in range(self.workers)]
        ends_s = _ends_of(list(enumerate(self.steps, start=1)))
        for number, step in enumerate(self.steps, start=1):
            at_s = played[step.at_s]
            if isinstance(step, SavedSwitch):
                yield ScheduledFault(at_s, FaultKind.MODE_SWITCH, (MASTER,), 0.0, mode=step.mode)
            elif isinstance(step, SavedFault) and number in ends_s:
                end_s = ends_s[number]
                lasts_s = (self.played_s if end_s is None else played[end_s]) - at_s
                name = workers[step.worker - 1]
                nodes = (MASTER, name) if _SORTS[step.what] == "link" else (name,)
                yield ScheduledFault(at_s, _FAULTS[step.what], nodes, lasts_s, delay_s=step.delay_ms / 1000)


def _told_apart(values: Iterator[bytes | None]) -> list[bytes | None]:
    """The values, each with a number if it was written before: a read must tell which write it saw."""
    taken: set[bytes] = set()
    apart: list[bytes | None] = []
    for value in values:
        one, number = value, 1
        while value is not None and one in taken:
            number += 1
            mark = b" (%d)" % number
            one = value[: VALUE_BYTES_MAX - len(mark)] + mark
        if one is not None:
            taken.add(one)
        apart.append(one)
    return apart


def _share_out(times: Sequence[float]) -> list[int]:
    """The client of each request: one that has no other under way, or the one that has waited longest."""
    free_s: list[float] = []
    clients = []
    for at_s in times:
        client = next((number for number, since_s in enumerate(free_s) if since_s <= at_s), len(free_s))
        if client == CLIENTS_MAX:
            client = free_s.index(min(free_s))
        free_s[client : client + 1] = [at_s + _REQUEST_S]
        clients.append(client)
    return clients


# --- reading ----------------------------------------------------------------------------------------------------------


def read_schedule(path: Path | str) -> SavedSchedule:
    """The schedule in this file.

    Raises:
      ScheduleFileError: see there; the file cannot be read, too.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ScheduleFileError(f"{escape(str(path))} cannot be read: {reason}") from None
    return parse_schedule(data, source=str(path))


def parse_schedule(data: bytes, *, source: str = "schedule") -> SavedSchedule:
    """The schedule in these bytes; `source` names them in errors.

    Raises:
      ScheduleFileError: see there.
    """
    if len(data) > FILE_BYTES_MAX:
        raise ScheduleFileError(
            f"{escape(source)}: a schedule has at most {FILE_BYTES_MAX:,} bytes; save a shorter one"
        )
    try:
        return _parse(_load(data), source)
    except _Wrong as wrong:
        raise ScheduleFileError(f"{escape(source)}: {wrong}") from None


class _Wrong(Exception):
    """What is wrong, without the file's name."""


def _load(data: bytes) -> object:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise _Wrong(f"an object has {_quote(twice[0])} twice; leave one of them out")
        return dict(pairs)

    def refuse_constant(text: str) -> float:
        raise _Wrong(f"{text} is no number of JSON; write a finite one")

    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=refuse_twice, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise _Wrong(f"line {error.lineno}, column {error.colno} is not JSON ({error.msg}); correct it there") from None
    except UnicodeDecodeError as error:
        raise _Wrong(f"byte {error.start:,} is not UTF-8; save the file as UTF-8") from None
    except RecursionError:
        raise _Wrong("lists or objects are nested too deeply; a schedule needs four levels") from None
    except ValueError:  # an integer of thousands of digits
        raise _Wrong("a number has too many digits; write a smaller one") from None


def _parse(found: object, source: str) -> SavedSchedule:
    top = _Fields(found, "")
    number = top.take("trikv_schedule")
    if number != FORMAT or isinstance(number, bool):
        raise _Wrong(
            f"trikv_schedule is {_quote(number)}, and this trikv reads format {FORMAT}; save the schedule again"
        )
    workers, ids = _parse_workers(top)
    replicas = top.whole("replicas", 1, min(workers, REPLICAS_MAX))
    mode = top.mode("mode")
    down_after_s = top.number("down_after_s", *DOWN_AFTER_S_RANGE) if "down_after_s" in top else DOWN_AFTER_S
    note = top.note()
    steps = top.take("steps")
    top.end()
    if not isinstance(steps, list) or not 1 <= len(steps) <= STEPS_MAX:
        raise _Wrong(f"steps must be a list of 1 to {STEPS_MAX:,} steps")
    parsed = [(number, _parse_step(step, number, workers, ids)) for number, step in enumerate(steps, start=1)]
    parsed.sort(key=lambda each: each[1].at_s)
    _ends_of(parsed)
    saved = SavedSchedule(
        workers, replicas, mode, tuple(step for _, step in parsed), ids, down_after_s, note, source=source
    )
    if not saved.requests:
        raise _Wrong("no step is a request, so there is nothing to judge; make at least one put or get")
    if saved.played_s > PLAYED_S_MAX:
        raise _Wrong(
            f"the steps take {saved.played_s:,.0f} s without the longest pauses, and at most {PLAYED_S_MAX:,.0f} s can "
            "be played; cut it into shorter files"
        )
    return saved


def _parse_workers(top: _Fields) -> tuple[int, tuple[str, ...]]:
    workers = top["workers"]
    if not isinstance(workers, list):
        return top.whole("workers", 1, WORKERS_MAX), ()
    ids = top.take("workers")
    if not 1 <= len(ids) <= WORKERS_MAX:
        raise _Wrong(f"workers must be a number or a list of ids, from 1 to {WORKERS_MAX}")
    for one in ids:
        if not isinstance(one, str) or not _WORKER_ID.fullmatch(one) or _TAKEN_ID.fullmatch(one):
            raise _Wrong(f"workers has {_quote(one)}, which is no worker's id; write it as `trikv status` shows it")
    if len(set(ids)) < len(ids):
        raise _Wrong("workers names one id twice; leave one of them out")
    return len(ids), tuple(ids)


def _parse_step(found: object, number: int, workers: int, ids: Sequence[str]) -> Step:
    step = _Fields(found, f"step {number}: ")
    kinds = [kind for kind in ("request", "fault", "end", "switch", "drain", "undrain") if kind in step]
    if len(kinds) != 1:
        what = f"has {' and '.join(kinds)}" if kinds else "does nothing"
        raise _Wrong(f"step {number} {what}; give it one of request, fault, end, switch, drain, undrain")
    (kind,) = kinds
    at_s = step.number("at_s", 0.0, AT_S_MAX)
    step.note()
    parsed: Step
    if kind == "request":
        parsed = _parse_request(step, at_s)
    elif kind == "switch":
        parsed = SavedSwitch(at_s, step.mode("switch"))
    elif kind in ("drain", "undrain"):
        parsed = SavedFault(at_s, "drain", step.worker(kind, workers, ids), kind == "undrain")
    else:
        what = step.one_of(kind, [name for name in _FAULTS if name != "drain"])
        delay_ms = step.number("delay_ms", 1, DELAY_MOST_MS) if (kind, what) == ("fault", "slow") else 0.0
        parsed = SavedFault(at_s, what, step.worker("worker", workers, ids), kind == "end", delay_ms)
    step.end()
    return parsed


def _parse_request(step: _Fields, at_s: float) -> SavedRequest:
    kind = _REQUESTS[step.one_of("request", list(_REQUESTS))]
    key = step.data("key", 1, KEY_BYTES_MAX)
    if key.startswith(RESERVED):
        raise _Wrong(f"{step.where}key begins like the cluster's own keys, which clients cannot use; take another")
    value = step.data("value", 0, VALUE_BYTES_MAX) if kind in (Kind.PUT, Kind.CAS) else None
    if kind is not Kind.CAS:
        return SavedRequest(at_s, kind, key, value)
    return SavedRequest(at_s, kind, key, value, _EXPECTATIONS[step.one_of("expect", list(_EXPECTATIONS))])


def _ends_of(steps: Sequence[tuple[int, Step]]) -> dict[int, float | None]:
    """When each fault ends, by the number of the step that begins it; None: nothing ends it.

    Raises:
      _Wrong: a fault ends that there is not, or begins where it cannot.
    """
    ends_s: dict[int, float | None] = {}
    under_way: dict[tuple[str, int], tuple[int, SavedFault]] = {}  # by sort and worker
    ended_s: dict[tuple[str, int], float] = {}
    for number, step in steps:
        if not isinstance(step, SavedFault):
            continue
        sort, said = _SORTS[step.what], f"step {number}: worker {step.worker}"
        subject = sort, step.worker
        if sort == "drain" and step.ends != (subject in under_way):
            continue  # to drain a worker that is being drained changes nothing, nor does the opposite
        former = under_way.pop(subject, None)
        if step.ends and (former is None or (sort == "process" and former[1].what != step.what)):
            raise _Wrong(f"{said} is not {_SAID[step.what]} at that time; leave the step out")
        if not step.ends and former is not None and sort != "link" and (former[1].what, step.what) != ("pause", "kill"):
            raise _Wrong(f"{said} is {_SAID[former[1].what]} already, by step {former[0]}; end that first")
        if former is not None:
            if step.at_s - former[1].at_s < FAULT_S_MIN:
                raise _Wrong(
                    f"{said} is {_SAID[former[1].what]} for too short a time, by step {former[0]}; leave "
                    f"{FAULT_S_MIN:g} s in between"
                )
            ends_s[former[0]] = ended_s[subject] = step.at_s
        elif sort != "link" and step.at_s - ended_s.get(subject, -math.inf) < FAULT_S_MIN:
            raise _Wrong(f"{said} is {_SAID[step.what]} again too soon; leave {FAULT_S_MIN:g} s in between")
        if not step.ends:
            ends_s[number] = None
            under_way[subject] = number, step
    return ends_s


class _Fields:
    """The fields of one object of the file, each taken once. `where` begins every complaint."""

    def __init__(self, found: object, where: str) -> None:
        if not isinstance(found, dict):
            what = where.removesuffix(": ") or "a schedule"
            raise _Wrong(f"{what} must be an object in braces, and is {_quote(found)}")
        self._left: dict[str, object] = dict(found)
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def __getitem__(self, name: str) -> object:
        return self._left.get(name)

    def take(self, name: str) -> Any:
        if name not in self._left:
            raise _Wrong(f"{self.where}{name} is missing; add it")
        return self._left.pop(name)

    def end(self) -> None:
        """Nothing else may be left: it would be ignored, and the schedule would not do what its author means."""
        for name in self._left:
            raise _Wrong(f"{self.where}{_quote(name)} means nothing here; leave it out, or write it as note")

    def number(self, name: str, least: float, most: float) -> float:
        found = self.take(name)
        if isinstance(found, bool) or not isinstance(found, int | float) or not least <= found <= most:
            raise self._bad(name, found, f"a number from {least:g} to {most:g}")
        assert math.isfinite(found)
        return float(found)

    def whole(self, name: str, least: int, most: int) -> int:
        found = self.take(name)
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
            raise self._bad(name, found, f"a whole number from {least} to {most}")
        return found

    def worker(self, name: str, workers: int, ids: Sequence[str]) -> int:
        """A worker's place, from 1."""
        found = self[name]
        if isinstance(found, str) and ids:
            return ids.index(self.one_of(name, ids)) + 1
        return self.whole(name, 1, workers)

    def one_of(self, name: str, choices: Sequence[str]) -> str:
        found = self.take(name)
        if not isinstance(found, str) or found not in choices:
            raise self._bad(name, found, f"one of {', '.join(choices)}")
        return found

    def mode(self, name: str) -> str:
        found = self.take(name)
        if not isinstance(found, str) or not _MODE.fullmatch(found):
            raise self._bad(name, found, "the name of a mode, such as quorum")
        return found

    def note(self) -> str:
        found = self._left.pop("note", "")
        if not isinstance(found, str):
            raise self._bad("note", found, "a text")
        return found

    def data(self, name: str, least: int, most: int) -> bytes:
        """Text as UTF-8, or bytes in base64."""
        found = self.take(name)
        data = _data(found)
        if data is None:
            raise self._bad(name, found, 'a text, or {"base64": "..."} with padded base64')
        if not least <= len(data) <= most:
            raise _Wrong(f"{self.where}{name} has {len(data):,} bytes; it must have {least} to {most:,}")
        return data

    def _bad(self, name: str, found: object, wanted: str) -> _Wrong:
        return _Wrong(f"{self.where}{name} is {_quote(found)}; it must be {wanted}")


def _data(found: object) -> bytes | None:
    """None: it is neither."""
    if isinstance(found, str):
        try:
            return found.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return None
    match found:
        case {"base64": str(text), **rest} if not rest:
            try:
                return base64.b64decode(text.translate(_TO_STANDARD), validate=True)
            except (binascii.Error, ValueError):
                return None
    return None


_TO_STANDARD: Final = str.maketrans("-_", "+/")


def _quote(found: object) -> str:
    """What stands in the file, short and on one line."""
    match found:
        case dict():
            return "an object"
        case list():
            return "a list"
        case int() if abs(found) >= 10**SHOWN_MAX:
            return "a huge number"
    text = escape(json.dumps(found, ensure_ascii=True))
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


# --- writing ----------------------------------------------------------------------------------------------------------


def write_schedule(path: Path | str, saved: SavedSchedule) -> None:
    """Write a file that `read_schedule` reads as the same schedule: a line for each step."""
    Path(path).write_text(format_schedule(saved), encoding="utf-8")


def format_schedule(saved: SavedSchedule) -> str:
    """What `write_schedule` writes."""
    head: dict[str, object] = {
        "trikv_schedule": FORMAT,
        "workers": list(saved.ids) if saved.ids else saved.workers,
        "replicas": saved.replicas,
        "mode": saved.mode,
    }
    if saved.down_after_s != DOWN_AFTER_S:
        head["down_after_s"] = saved.down_after_s
    if saved.note:
        head["note"] = saved.note
    lines = [f'  "{name}": {json.dumps(value)},' for name, value in head.items()]
    steps = ",\n".join(f"    {json.dumps(_step_to_json(step), ensure_ascii=False)}" for step in saved.steps)
    return "\n".join(["{", *lines, '  "steps": [', steps, "  ]", "}", ""])


def _step_to_json(step: Step) -> dict[str, object]:
    match step:
        case SavedSwitch():
            return {"at_s": step.at_s, "switch": step.mode}
        case SavedFault(what="drain"):
            return {"at_s": step.at_s, "undrain" if step.ends else "drain": step.worker}
        case SavedFault():
            delay: dict[str, object] = {"delay_ms": step.delay_ms} if step.delay_ms else {}
            return {"at_s": step.at_s, "end" if step.ends else "fault": step.what, "worker": step.worker, **delay}
    names = {kind: name for name, kind in _REQUESTS.items()}
    request: dict[str, object] = {"at_s": step.at_s, "request": names[step.kind], "key": _spell(step.key)}
    if step.value is not None:
        request["value"] = _spell(step.value)
    if step.kind is Kind.CAS:
        request["expect"] = next(name for name, expected in _EXPECTATIONS.items() if expected is step.expected)
    return request


def _spell(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": to_base64(data)}
