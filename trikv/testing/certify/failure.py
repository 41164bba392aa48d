"""Draws why a run failed, from its trace.

A run has thousands of messages; a failure has a key and a few operations. The drawing has only what concerns that key,
from the first request for it to the moment at which the promise was broken: every call to a replica with the value that
it carries, its answer, what clients asked and were told, which nodes were down, and which other faults were in force.
The operations of the finding have the same numbers as in the finding.

If a message's record has a value that a client wrote (`v3`), the drawing shows the value, which says more than a
version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from trikv.core.errors import Fault, Outcome
from trikv.testing.judge.history import Finding, Kind, Operation
from trikv.testing.sim import Run, TraceEvent
from trikv.testing.sim.names import Names
from trikv.testing.sim.plan import MASTER, FaultKind, ScheduledFault
from trikv.timeline import Band, ClientCall, Lane, Message, Role, Timeline

MESSAGES_MAX: Final = 240  # the last messages before the failure; more would not be read
_AFTER_S: Final = 0.02  # how long the drawing goes on after the failure
_BEFORE_S: Final = 0.2
_OF_LAST_READS: Final = ("acknowledged write lost", "deleted value is back")
_DRAWN_CALLS: Final = ("store", "fetch")
_DOWN: Final = (
    FaultKind.CRASH,
    FaultKind.POWER_CUT,
    FaultKind.DISK_LOSS,
    FaultKind.OLD_DISK,
    FaultKind.EVICTION,
    FaultKind.EVICTION_EMPTY,
    FaultKind.MASTER_CRASH,
    FaultKind.OLD_DOCUMENT,
    FaultKind.MASTER_STOP,
)


def draw_failure(run: Run, finding: Finding) -> Timeline:
    """The timeline that led to this finding. The run needs its trace."""
    key = finding.key
    ended = [op.returned_s for op in finding.operations if op.returned_s is not None and op.ended is not None]
    if finding.at_s is not None:
        ended = [finding.at_s]
    until_s = broken_s = max(ended, default=run.virtual_s)
    evidence = {_place_of(op) for op in finding.operations}
    operations = [
        op for op in run.history if _place_of(op) in evidence or (_concerns(op, key) and op.invoked_s < until_s)
    ]
    messages = [one for one in _messages(run, key, until_s + _AFTER_S) if one.sent_s <= until_s][-MESSAGES_MAX:]
    if len(messages) == MESSAGES_MAX:
        from_s = messages[0].sent_s
        operations = [
            op for op in operations if _place_of(op) in evidence or op.returned_s is None or op.returned_s >= from_s
        ]
    until_s += _AFTER_S
    from_s = min([*(op.invoked_s for op in operations), *(one.sent_s for one in messages), until_s]) - _BEFORE_S
    concerned = {MASTER} | {name for one in messages for name in (one.source, one.target)}
    bands = [band for band in _bands(run, from_s, until_s) if concerned.intersection(band.lanes)]
    shown = concerned | {name for band in bands for name in band.lanes}
    clients = sorted({op.client for op in operations})
    return Timeline(
        lanes=(
            *(Lane(name, Role.CLIENT) for name in clients),
            Lane(MASTER, Role.COORDINATOR),
            *(Lane(name, Role.REPLICA) for name in sorted(shown - {MASTER})),
        ),
        messages=tuple(messages),
        calls=tuple(_call(op, finding, until_s) for op in operations),
        bands=tuple(bands),
        broken_s=broken_s if ended else None,
    )


def with_last_read(finding: Finding, history: Sequence[Operation]) -> Finding:
    """For a lost write, the finding with the read that shows the loss: the last read of all."""
    reads = [op for op in history if op.kind is Kind.GET and op.key == finding.key and op.outcome is Outcome.COMMITTED]
    if finding.rule not in _OF_LAST_READS or not reads:
        return finding
    number = len(finding.operations) + 1
    return replace(finding, why=f"{finding.why}: [{number}]", operations=(*finding.operations, reads[-1]))


def _concerns(operation: Operation, key: str) -> bool:
    return operation.key == key or (operation.kind is Kind.SCAN and key.startswith(operation.key))


def _place_of(operation: Operation) -> tuple[str, int]:
    """What names an operation in a history. The get that a judge made of a scan has the scan's."""
    return operation.client, operation.began


def _call(operation: Operation, finding: Finding, until_s: float) -> ClientCall:
    evidence = {_place_of(op): number for number, op in enumerate(finding.operations, start=1)}
    ended_s = operation.returned_s
    if ended_s is not None and ended_s > until_s:
        ended_s = None
    return ClientCall(
        lane=operation.client,
        began_s=operation.invoked_s,
        ended_s=ended_s,
        text=_asked(operation),
        answer=_told(operation, finding.key),
        number=evidence.get(_place_of(operation), 0),
        why=operation.why or "",
    )


def _asked(operation: Operation) -> str:
    key, value = operation.key, operation.value or "nothing"
    if operation.kind is Kind.PUT:
        return f"put {key} = {value}"
    if operation.kind is Kind.CAS:
        return f"cas {key}: {operation.expect or 'nothing'} → {value}"
    if operation.kind is Kind.SCAN:
        return f"scan {key}*"
    return f"{operation.kind.value} {key}"


def _told(operation: Operation, key: str) -> str:
    if operation.outcome is not Outcome.COMMITTED:
        return f"{operation.outcome.value}: {operation.code}" if operation.code else operation.outcome.value
    if operation.kind is Kind.GET:
        return operation.result or "nothing"
    if operation.kind is Kind.SCAN:
        return next((row.value for row in operation.rows if row.key == key), "nothing")
    return "committed"


def _messages(run: Run, key: str, until_s: float) -> Iterator[Message]:
    """Every call about this key and its answer, each with its arrival, in the order of their sending.

    All that goes out in one frame is one message.
    """
    sent: dict[tuple[int, bool], list[TraceEvent]] = {}
    arrived: dict[int, float] = {}
    for event in run.trace:
        if event.key == key and event.call.startswith(_DRAWN_CALLS):
            if event.what == "send":
                sent.setdefault((event.number, event.fault is not None), []).append(event)
            else:
                arrived[event.number] = event.time_s
    for (number, is_answer), together in sent.items():
        first = together[0]
        arrived_s = arrived.get(number)
        is_under_way = arrived_s is not None and arrived_s > until_s
        yield Message(
            source=first.source,
            target=first.target,
            sent_s=first.time_s,
            arrived_s=None if is_under_way else arrived_s,
            text=" + ".join(dict.fromkeys(_said(event, run.schedule.names) for event in together)),
            is_answer=is_answer,
            is_under_way=is_under_way,
        )


def _said(event: TraceEvent, names: Names) -> str:
    record = event.record
    if record is None:
        value = "nothing"
    elif record.value is None:
        value = "a delete"
    else:
        value = names.decode(record.value)
    if event.fault is None:
        return f"store {value}" if event.call == "store" else "fetch"
    if event.fault is not Fault.OK:
        return event.fault.name.lower().replace("_", " ")
    return f"stored {value}" if event.call == "store answer" else f"holds {value}"


def _bands(run: Run, from_s: float, until_s: float) -> Iterator[Band]:
    """The faults in force and the nodes that were down, as far as they reach into the drawing."""
    for band in _all_bands(run):
        ended_s = None if band.ended_s is None or band.ended_s > until_s else band.ended_s
        if band.began_s <= until_s and (ended_s is None or ended_s >= from_s):
            yield replace(band, began_s=max(band.began_s, from_s), ended_s=ended_s)


def _all_bands(run: Run) -> Iterator[Band]:
    faults = {str(fault): fault for fault in run.struck}
    open_bands: dict[str, Band] = {}
    for event in run.trace:
        fault = faults.get(event.text)
        if event.what == "down":
            text = "stopped" if fault is None else fault.kind.value
            open_bands[event.source] = Band((event.source,), event.time_s, None, text, is_down=True)
        elif event.what == "fault" and fault is not None and fault.kind not in _DOWN:
            open_bands[event.text] = Band(fault.nodes, event.time_s, None, _named(fault))
        elif event.what in ("start", "heal"):
            band = open_bands.pop(event.source if event.what == "start" else event.text, None)
            if band is not None:
                yield replace(band, ended_s=event.time_s)
    yield from open_bands.values()


def _named(fault: ScheduledFault) -> str:
    return fault.kind.value if len(fault.nodes) == 1 else f"{fault.kind.value} {' → '.join(fault.nodes)}"
