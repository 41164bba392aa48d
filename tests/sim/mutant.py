"""A mutant: trikv with exactly one thing broken, for as long as its `breaks()` is entered.

`by_search` says that random schedules find it, and `seed` with which one they did; the others are driven by hand, by a
script or a test that is made for them (`test_schedules.py` has both tables).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from trikv.api import Strategy
from trikv.testing.sim import Plan

Break = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Mutant:
    """`seed`: one that caught it, None for those that are driven by hand; `plan`: if not the usual one."""

    name: str
    strategy: Strategy
    breaks: Break = nullcontext
    seed: int | None = None
    plan: Plan | None = None

    @property
    def by_search(self) -> bool:
        return self.seed is not None

    def __str__(self) -> str:
        return self.name


@contextmanager
def replaced(owner: Any, name: str, broken: Any) -> Iterator[None]:
    """Inside, `owner.name` is `broken`."""
    real = vars(owner)[name]
    setattr(owner, name, broken)
    try:
        yield
    finally:
        setattr(owner, name, real)
