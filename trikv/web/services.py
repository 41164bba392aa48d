"""The parts of a master that a request may reach: the one value that every handler takes.

A handler needs the coordinator for keys, and a few parts beside it. It never sees the master that they belong to. So a
request cannot reach a part that is not named here, and a front that is not HTTP can take the same value.
`trikv.masterprocess.services_of` makes it from a master.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from trikv.coordinator.coordinator import Coordinator
from trikv.master.breaking import Breaking
from trikv.master.enlist import Enlisting
from trikv.master.events import EventLog
from trikv.master.operations import Operations
from trikv.master.passing import PassedOn
from trikv.master.sampling import Sampling
from trikv.master.status import Status

T = TypeVar("T")


class RunDetached(Protocol):
    """Run an operation to its end, also if the caller is cancelled meanwhile (`trikv.master.tasks`)."""

    async def __call__(self, operation: Callable[[], Awaitable[T]]) -> T: ...


class CarryOut(Protocol):
    """Do what an operator asks for, and answer for it in time (`trikv.master.master`)."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T: ...


@dataclass(frozen=True, slots=True)
class Services:
    """`coordinator`: keys. `status`: what the cluster says of itself. `operations`, `enlisting`, `breaking`: operators'
    changes. `passed_on`: requests that standbys pass on. `sampling`: the last quarter of an hour in numbers.
    `answered`: how many HTTP requests were, by method, route and status."""

    coordinator: Coordinator
    status: Status
    operations: Operations
    enlisting: Enlisting
    breaking: Breaking
    passed_on: PassedOn
    events: EventLog
    sampling: Sampling
    run_detached: RunDetached
    carry_out: CarryOut
    answered: Counter[tuple[str, str, int]] = field(default_factory=Counter)
