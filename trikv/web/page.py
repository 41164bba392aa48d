"""The page at `/`: the presenter's words and numbers in the shape that the page's template prints.

The template lays out the state as it is now. In a browser that runs scripts, those in `static/` then keep it up to date
from the live stream (`live.py`) and add what needs them: the ring, requests, switches. In another one the page asks for
itself again every few seconds, and says where that can be switched off, since some readers cannot read a page that
changes. What is said of the cluster is in `trikv.core.present` and `trikv.core.news`, for the command line as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from trikv.core.labels import spell_labels
from trikv.core.news import tell, tone_of
from trikv.core.present import (
    State,
    as_sentence,
    count_open,
    count_outcomes,
    count_partitions,
    describe_progress,
    judge_health,
    judge_notes,
    mode_of,
    notes_on,
    say_config_store,
    say_copies,
    say_duration,
    say_needs,
    say_place,
    say_promise,
    tell_masters,
)

REFRESH_S: Final = 5
EVENTS_SHOWN: Final = 10
# There are many of these while data moves. Other events say which workers join or leave, and when all is settled.
TOO_MANY_TO_SHOW: Final = ("partition_settled", "configuration_changed")

PAGE_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def view_of(state: State, events: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What the template prints: `state` as `GET /v1/cluster` answers it; `events` the latest, newest first."""
    promise = say_promise(state["promise"])
    return {
        "cluster": state["cluster"],
        "version": state["version"],
        "term": state["term"],
        "uptime": say_duration(state["uptime_s"]),
        "health": judge_health(state),
        "mode": {
            **mode_of(state),
            "name": state["mode"],
            "promise": state["promise"],
            "promise_word": promise.word,
            "promise_sentence": promise.meaning,
            "copies": say_copies(state),
            "needs_sentence": say_needs(state),
        },
        "other_modes": [other for other in state["modes"] if other["name"] != state["mode"]],
        "settling": _settling(state),
        "events": [_event(event, state["uptime_s"]) for event in events],
        "forming": state["forming"] and {**state["forming"], "detail": as_sentence(state["forming"]["detail"])},
        "partitions": count_partitions(state),
        "workers": [_worker(worker) for worker in state["workers"]],
        "masters": tell_masters(state.get("masters")),
        "config_store": say_config_store(state.get("masters")),
        "operations": [
            {"id": each.name.replace("in doubt", "pending").replace(" ", "_"), **asdict(each)}
            for each in (*count_outcomes(state), *count_open(state))
        ],
    }


def _settling(state: State) -> dict[str, Any] | None:
    progress = describe_progress(state)
    if progress is None:
        return None
    return {
        "title": progress.what[:1].upper() + progress.what[1:],
        "left": progress.left,
        "done": max(0, progress.total - progress.left),
        "total": progress.total,
        "detail": as_sentence(f"{progress.done} since this master started; reads and writes go on meanwhile"),
        "time_left": progress.time_left,
    }


def _event(event: Mapping[str, Any], uptime_s: float) -> dict[str, str]:
    return {
        "when": f"{say_duration(max(0.0, uptime_s - event['time_s']))} ago",
        "at": str(event.get("at", "")),
        "told": as_sentence(tell(event)),
        "kind": event["kind"],
        "tone": tone_of(event["kind"]),
    }


def _worker(worker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **worker,
        "place": say_place(worker["place"]),
        "key_count": "unknown" if worker["keys"] is None else f"{worker['keys']:,}",
        "last_heard": "silent" if worker["last_heard_s"] is None else f"{say_duration(worker['last_heard_s'])} ago",
        "labels_spelled": spell_labels(worker["labels"]),
        "notes": [as_sentence(note) for note in notes_on(worker)],
        "tone": judge_notes(worker),
    }
