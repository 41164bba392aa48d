"""What can go wrong, as data: one table that HTTP, the CLI and the documentation read.

An error is only useful if it says what the caller now *knows*. So every entry carries an outcome:

- committed: the operation happened, but the answer is not the hoped-for one (no such key);
- refused: it did not happen and never will, because nothing that carries its value left this node;
- unknown: it may have happened, may happen later, or may never happen.

The idea of listing errors with their definiteness is Maelstrom's (`resources/errors.edn`). Our outcome says more:
"refused" promises more than "failed", since no read will ever see the value.

An error is raised as `Refused` or `Unknown`; its `kind` is a row of `KINDS`. Faults of single replicas (`Fault`) are a
separate, smaller table. They travel over RPC, and only a coordinator turns them into outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Final


class Outcome(StrEnum):
    """What a caller knows after an operation."""

    COMMITTED = "committed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One way in which an operation ends other than as hoped.

    `http` is the status code, `exit` the CLI's exit code (0 done, 1 error, 2 usage, 3 not found,
    4 refused or unavailable, 5 precondition failed, 6 unknown).
    """

    code: str
    outcome: Outcome
    http: int
    exit: int
    title: str
    remedy: str


_C, _R, _U = Outcome.COMMITTED, Outcome.REFUSED, Outcome.UNKNOWN

KINDS: Final[dict[str, ErrorKind]] = {
    row[0]: ErrorKind(*row)
    for row in (
        # The answer is true, though not what was hoped for.
        ("not_found", _C, 404, 3, "No such key", "Put it first, or scan for its neighbours."),
        # What the caller sent cannot be taken.
        ("bad_request", _R, 400, 2, "The request cannot be understood", "See the detail."),
        ("bad_key", _R, 400, 2, "This can be no key", "Use a key of 1 to 4,096 bytes."),
        ("unknown_mode", _R, 400, 2, "No such mode", "Choose one of the installed modes."),
        ("unknown_worker", _R, 404, 2, "No such worker", "Name one by its id or its address."),
        ("forbidden", _R, 403, 4, "Refused for its origin", "Call from the same origin, or not from a browser."),
        (
            "no_faults",
            _R,
            403,
            4,
            "Nothing may be broken here",
            "Start the master with --break-it, or try it in trikv demo.",
        ),
        ("no_route", _R, 404, 1, "No such resource", "Try /v1/kv, /v1/cluster, /v1/mode, /v1/workers or /v1/events."),
        ("bad_method", _R, 405, 1, "Method not allowed here", "Use a method from the Allow header."),
        ("too_slow", _R, 408, 4, "The request did not arrive in time", "Send it faster, or in smaller pieces."),
        ("value_too_large", _R, 413, 2, "The value is too large", "Values go up to 1 MiB; split it."),
        ("bad_media", _R, 415, 2, "This kind of body is not taken", "Send the type that the detail names."),
        ("no_compare_and_set", _R, 409, 4, "No compare-and-set in this mode", "Switch to a CP mode."),
        ("conflict", _R, 409, 4, "The cluster's state does not allow this now", "See the detail."),
        ("operation_under_way", _R, 409, 4, "Another change is under way", "Wait until it has ended, or undo it."),
        ("unsafe", _R, 409, 4, "This could lose data", "See the detail."),
        ("precondition_failed", _R, 412, 5, "The precondition fails", "Read the key again and decide anew."),
        # The cluster cannot do it now, and has sent nothing.
        ("forming", _R, 503, 4, "The cluster is still forming", "Start the workers that are missing."),
        ("unavailable", _R, 503, 4, "Too few replicas can be reached", "Bring workers back, or try again."),
        ("unanswered", _R, 503, 4, "No truthful answer within the deadline", "Try again, or allow more time."),
        ("overloaded", _R, 503, 4, "Too much is waiting already", "Try again after a moment."),
        ("no_leader", _R, 503, 4, "No master leads just now", "Try again in a few seconds; trikv masters shows them."),
        ("no_store", _R, 503, 4, "The config store does not answer", "Start etcd; the rest goes on meanwhile."),
        ("stopping", _R, 503, 4, "This node is shutting down", "Try again when it is back."),
        ("recover", _R, 503, 4, "This partition's past is in doubt", "Start the master on its newest data directory."),
        (
            "full",
            _R,
            507,
            4,
            "A worker has no room for this",
            "Delete keys, make room on its disk, or raise --max-keys.",
        ),
        # A client finds this out by itself.
        ("unreachable", _R, 503, 4, "Nobody answers there", "Start the master, or name its address with --url."),
        # Something was sent, and its end is not known.
        ("unknown", _U, 504, 6, "The outcome is unknown", "Read the key before you decide; writing again is safe."),
        ("internal", _U, 500, 6, "An error of trikv's own", "Please report it with the log of this node."),
    )
}


class TrikvError(Exception):
    """An operation that did not end as hoped. `kind` says how; `detail` says about what, for a person.

    `extra` holds what a program may want besides (JSON-ready), such as the list of modes.
    """

    def __init__(self, code: str, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.kind = KINDS[code]
        self.detail = detail
        self.extra = extra


class Refused(TrikvError):
    """It did not happen and never will."""

    def __init__(self, code: str, detail: str, **extra: Any) -> None:
        super().__init__(code, detail, **extra)
        assert self.kind.outcome is Outcome.REFUSED, code


class Unknown(TrikvError):
    """It may have happened, may happen later, or may never happen."""

    def __init__(self, detail: str, code: str = "unknown", **extra: Any) -> None:
        super().__init__(code, detail, **extra)
        assert self.kind.outcome is Outcome.UNKNOWN, code


class Fault(IntEnum):
    """Why a single replica gave no usable answer. Positive codes travel over RPC; negative ones are local."""

    OK = 0
    STALE = 1  # it has promised a newer epoch; the answer names it
    OTHER_MEMBER = 2  # another worker, or another incarnation, lives at that address
    BUSY = 3  # its queue is full; it did nothing
    RELAY_BROKE = 4  # it stored, but some further member of the chain did not answer
    STORAGE = 5  # its disk failed; it may have stored
    BAD_CALL = 6  # it did not understand the call
    FULL = 7  # its disk is full; it did nothing
    NOT_LEADING = 8  # this master does not lead; it did nothing, and names the address of the one that may
    NO_ROOM = 9  # it did what was asked, and cannot keep the answer
    NOT_SENT = -1  # there was no link; nothing left this node
    LOST = -2  # the link broke while the call was under way
    LATE = -3  # the deadline passed first
    CROWDED = -4  # too much waits for that link already; nothing left this node
