"""Events in words: one table of sentences that the page and the command line read.

An event is a JSON object with a `kind`; its other fields depend on the kind. The table has a sentence for each kind. An
event that has no sentence here, or lacks the sentence's fields, such as one of a newer trikv, is told by its fields. So
no event is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trikv.core.present import Tone

SENTENCES: Final[dict[str, str]] = {
    "gap": "some events cannot be told any more ({reason}): look at the state of the cluster",
    "term": "this master took term {term}",
    "master_leads": "the master at {master} leads",
    "master_rival": "another master leads this cluster from another config store: stop one of the two",
    "worker_enlisted": "worker {worker} enlisted at {address}",
    "worker_up": "worker {worker} is up",
    "worker_suspect": "worker {worker} is suspect: it has been silent for longer than usual",
    "worker_down": "worker {worker} is down",
    "worker_evicted": "worker {worker} was given up; partitions that go on without it: {partitions:,}",
    "worker_joined": "worker {worker} holds data now, of partitions: {partitions:,}",
    "worker_left": "worker {worker} holds nothing that counts any more",
    "worker_draining": "worker {worker} is being emptied; partitions that move: {partitions:,}",
    "worker_undrained": "worker {worker} may hold data again",
    "worker_drained": "worker {worker} is empty, and may be stopped",
    "worker_disk_full": "the disk of worker {worker} is nearly full: it takes deletes alone",
    "worker_disk_has_room": "the disk of worker {worker} has room again",
    "worker_removed": "worker {worker} was removed from the cluster",
    "scaling_up": "a worker is being started",
    "scaling_down": "worker {worker} is being taken away",
    "worker_started": "worker {worker} was started by the master",
    "worker_stopped": "worker {worker} was stopped by the master, and holds nothing",
    "worker_start_failed": "a worker could not be started, {failures} times in a row",
    "fault_injected": "a fault was injected into worker {worker}",
    "fault_ended": "a fault of worker {worker} has ended",
    "configuration_changed": "partitions that got another configuration: {partitions:,} ({reason})",
    "partition_settled": "partitions settled: {partitions:,}",
    "settled": "every partition is settled",
    "mode_switching": "switching from mode {before} to {mode}",
    "mode_switched": "mode {mode} is in force: everything is settled under it, after {duration_s:.1f} s",
    "promise_violated": "mode {mode} has broken its promise, {rule}",
    "repaired": "keys repaired whose copies differed: {keys:,}",
    "recovered": "partitions that go on with what is left of them, so that records may be lost: {partitions:,}",
    "records_salvaged": "records that worker {worker} alone had and brought back: {records:,}",
    "records_lost": "records of worker {worker} dropped, since they may have been deleted meanwhile: {records:,}",
}

_TONES: Final = {
    "worker_down": Tone.POOR, "worker_evicted": Tone.POOR, "worker_disk_full": Tone.POOR, "records_lost": Tone.POOR,
    "recovered": Tone.POOR, "promise_violated": Tone.POOR, "gap": Tone.POOR, "master_rival": Tone.POOR,
    "worker_suspect": Tone.FAIR, "fault_injected": Tone.FAIR, "worker_draining": Tone.FAIR, "mode_switching": Tone.FAIR,
    "master_leads": Tone.GOOD,
    "worker_up": Tone.GOOD, "worker_disk_has_room": Tone.GOOD, "settled": Tone.GOOD, "mode_switched": Tone.GOOD,
}  # fmt: skip
_NOT_TOLD: Final = frozenset({"id", "time_s", "at", "kind"})


def tone_of(kind: str) -> Tone:
    return _TONES.get(kind, Tone.PLAIN)


def tell(event: Mapping[str, Any]) -> str:
    """What happened, as a clause of one line."""
    kind = str(event.get("kind", ""))
    try:
        told = SENTENCES[kind].format_map(event)
        if event.get("without_its_data"):
            told += ", without the data that it had"
        return f"{told}: {event['why']}" if event.get("why") else told
    except (KeyError, ValueError, TypeError):
        fields = (f"{name}={value}" for name, value in event.items() if name not in _NOT_TOLD)
        return " ".join([kind.replace("_", " "), *fields])
