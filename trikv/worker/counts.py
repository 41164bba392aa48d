"""What a worker counts of its work: calls by kind, calls that it did not serve by kind and fault.

A count of a call that was served costs one addition, so it is kept for every call. All else is read from the worker
when it is asked for (`web/worker_metrics.py`).
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from trikv.core.calls import Op, RpcRequest
from trikv.core.errors import Fault

# What a worker answers instead of serving a call.
_FAULTS: Final = (Fault.STALE, Fault.OTHER_MEMBER, Fault.BUSY, Fault.FULL, Fault.RELAY_BROKE, Fault.BAD_CALL)
NOT_ANSWERED: Final = "late"  # in place of a fault: its deadline passed while it waited, so there was no answer

FAULTS: Final = (*(fault.name.lower() for fault in _FAULTS), NOT_ANSWERED)


class CallCounts:
    """`calls[op]`: how many arrived. `faults`: how many of these ended in that fault, or in `NOT_ANSWERED`."""

    __slots__ = ("calls", "faults")

    def __init__(self) -> None:
        self.calls = [0] * (max(Op) + 1)
        self.faults: Counter[tuple[Op, str]] = Counter()

    def note_fault(self, request: RpcRequest, fault: Fault | None) -> None:
        """It was refused so; None: it is not answered, since its deadline has passed."""
        op = Op[type(request).__name__.upper()]
        self.faults[op, NOT_ANSWERED if fault is None else fault.name.lower()] += 1
