"""What the page at `/` shows: the cluster's state, turned into the words and numbers that its template prints.

The template only lays out. It carries no script; the page asks for itself again every few seconds, and says where that
can be switched off, since a page that changes under a reader's eyes is no help to everybody. Sentences about modes
are the strategies' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from trikv.core.news import say_operation, tell

REFRESH_S: Final = 5
EVENTS_SHOWN: Final = 10
# Of these there are many while data moves; others say who joins or leaves, and when everything is settled.
TOO_MANY_TO_SHOW: Final = ("partition_settled", "configuration_changed")

PAGE_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}

_PROMISES: Final = {"CP": "consistent", "AP": "available"}
_PROMISE_SENTENCES: Final = {
    "CP": "Reads return the latest committed write, or are refused.",
    "AP": "Answers while any replica can; a read may be out of date.",
}
_PLACES: Final = {"lost": "holds no place"}  # the other words stand for themselves
_TONES: Final = {
    "worker_down": "poor", "worker_evicted": "poor", "records_lost": "poor", "recovered": "poor", "gap": "poor",
    "worker_suspect": "fair",
    "worker_disk_full": "poor", "worker_disk_has_room": "good", "worker_draining": "fair", "mode_switching": "fair",
    "worker_up": "good", "settled": "good", "mode_switched": "good",
}  # fmt: skip


def view_of(state: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """`state` as `GET /v1/cluster` answers it; `events` the latest, newest first."""
    mode: Mapping[str, Any] = next((mode for mode in state["modes"] if mode["name"] == state["mode"]), {})
    return {
        "cluster": state["cluster"],
        "version": state["version"],
        "term": state["term"],
        "uptime": _duration(state["uptime_s"]),
        "health": _health(state),
        "mode": {
            **mode,
            "name": state["mode"],
            "promise": state["promise"],
            "promise_word": _PROMISES.get(state["promise"], ""),
            "promise_sentence": _PROMISE_SENTENCES.get(state["promise"], ""),
            "copies": _copies(state["copies"], state["replicas"]),
        },
        "other_modes": [other for other in state["modes"] if other["name"] != state["mode"]],
        "settling": _settling(state),
        "events": [_event(event, state["uptime_s"]) for event in events],
        "forming": state["forming"] and {**state["forming"], "detail": _sentence(state["forming"]["detail"])},
        "partitions": _partitions(state["partitions"]),
        "workers": [_worker(worker) for worker in state["workers"]],
        "operations": [
            ("committed", state["operations"]["committed"], "done, and the mode's promise holds"),
            ("refused", state["operations"]["refused"], "not done, and never will be"),
            ("unknown", state["operations"]["unknown"], "perhaps done: read before you decide"),
            ("in flight", state["in_flight"], "under way now"),
            ("in doubt", state["pending"], "keys with a write of unknown outcome"),
        ],
    }


def _health(state: Mapping[str, Any]) -> dict[str, str]:
    """The one thing to know: can the cluster be read and written now? `tone` is good, fair or poor."""
    if state["forming"]:
        return {"tone": "fair", "word": "Forming", "detail": "Nothing can be read or written yet."}
    parts = state["partitions"]
    total = parts["total"]
    if parts["readable"] == parts["writable"] == total:
        share = _share(parts["short"], total)
        short = f" {share} of the partitions have fewer than {state['replicas']} replicas for now."
        return {
            "tone": "fair" if parts["short"] else "good",
            "word": "Serving",
            "detail": f"Every key can be read and written.{short if parts['short'] else ''}",
        }
    if parts["readable"] == 0:
        up = sum(worker["state"] == "up" for worker in state["workers"])
        why = f"{up} of {len(state['workers'])} workers are up; bring back those that are down."
        return {"tone": "poor", "word": "Unavailable", "detail": f"No key can be read: {why}"}
    if parts["readable"] == total:
        return {
            "tone": "fair",
            "word": "Degraded",
            "detail": f"Every key can be read, {_share(parts['writable'], total)} of them can be written.",
        }
    shares = f"{_share(parts['readable'], total)} can be read, and {_share(parts['writable'], total)} can be written"
    return {"tone": "poor", "word": "Degraded", "detail": f"Of the keys, {shares}."}


def _settling(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is being moved or mended, if anything is."""
    progress = state["progress"]
    operation = progress["operation"]
    if not progress["settling"] and operation is None:
        return None
    total = state["partitions"]["total"]
    left = progress["settling"] if operation is None else operation["partitions_left"]
    title = say_operation(operation)
    return {
        "title": title[:1].upper() + title[1:],
        "left": left,
        "done": max(0, total - left),
        "total": total,
        "detail": _sentence(
            f"{progress['keys_compared']:,} keys compared and {progress['bytes_moved'] / 1e6:,.1f} MB moved since this "
            "master started; reads and writes go on meanwhile"
        ),
        "time_left": None if progress["seconds_left"] is None else _duration(progress["seconds_left"]),
    }


def _event(event: Mapping[str, Any], uptime_s: float) -> dict[str, str]:
    at = str(event.get("at", ""))
    return {
        "when": f"{_duration(max(0.0, uptime_s - event['time_s']))} ago",
        "at": at,
        "told": _sentence(tell(event)),
        "kind": event["kind"],
        "tone": _TONES.get(event["kind"], "plain"),
    }


def _partitions(parts: Mapping[str, int]) -> list[dict[str, Any]]:
    meanings = {
        "readable": "with enough replicas up to answer a read",
        "writable": "with enough replicas up to commit a write",
        "settled": "of which one configuration holds all that was written",
    }
    total = parts["total"]
    return [
        {
            "name": name,
            "count": parts[name],
            "total": total,
            "share": _share(parts[name], total),
            "tone": "good" if parts[name] == total else "poor" if parts[name] == 0 or name == "readable" else "fair",
            "meaning": meaning,
        }
        for name, meaning in meanings.items()
    ]


def _worker(worker: Mapping[str, Any]) -> dict[str, Any]:
    notes = [worker["note"]]
    if worker["full"]:
        notes.append(f"Full: it takes no key beyond its {worker['max_keys']:,}.")
    if worker["disk_full"]:
        notes.append("Its disk is nearly full: it takes deletes alone until there is room.")
    return {
        **worker,
        "place": _PLACES.get(worker["place"], worker["place"]),
        "key_count": "unknown" if worker["keys"] is None else f"{worker['keys']:,}",
        "last_heard": "silent" if worker["last_heard_s"] is None else f"{_duration(worker['last_heard_s'])} ago",
        "notes": [_sentence(note) for note in notes if note],
        "tone": _tone(worker),
    }


def _tone(worker: Mapping[str, Any]) -> str:
    if worker["place"] == "lost" or worker["state"] == "down":
        return "poor"
    return "plain" if worker["place"] in ("drained", "spare") and worker["state"] == "up" else "fair"


def _copies(copies: int, replicas: int) -> str:
    if replicas == 1:
        return "the one copy that there is of each key"
    if copies == replicas:
        return f"all {replicas} copies of a key"
    return f"at least {copies} of {replicas} copies of a key"


def _sentence(text: str) -> str:
    """Details come as sentences or as clauses; here each stands alone."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _share(count: int, total: int) -> str:
    """A percentage that says 100 only for all and 0 only for none."""
    if count in (0, total):
        return f"{100 if count else 0} %"
    return f"{min(99, max(1, round(100 * count / total)))} %"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, size, below in (("d", 86400, "h"), ("h", 3600, "min"), ("min", 60, "s")):
        if whole >= size:
            smaller = {"h": 3600, "min": 60, "s": 1}[below]
            return f"{whole // size} {unit} {whole % size // smaller} {below}"
    return f"{whole} s"
