"""Asking several members at once, for what is not on the path of a request: listings, digests, discards, signs of life.

One call each, and one task that sleeps until all have answered or the deadline has passed. If k of n answers suffice,
use `Round` in `replicas.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import trio

from trikv.coordinator.replicas import Target
from trikv.core.calls import Op


class Question(NamedTuple):
    target: Target
    arguments: list[Any]
    size_bytes: int = 64


async def ask_all(
    op: Op, questions: Sequence[Question], deadline_s: float, heard: Callable[[int, int, list[Any]], None]
) -> None:
    """Put these calls, and return when each has ended, or at `deadline_s` (an absolute `trio.current_time`).

    `heard(number, fault, payload)` is told of every end when it comes, with the question's place in `questions`; of one
    that ends after the deadline, after this has returned.
    """
    outstanding = len(questions)
    finished = trio.Event()

    def expect(number: int) -> Callable[[int, list[Any]], None]:
        def done(fault: int, payload: list[Any]) -> None:
            nonlocal outstanding
            outstanding -= 1
            heard(number, fault, payload)
            if not outstanding:
                finished.set()

        return done

    for number, (target, arguments, size_bytes) in enumerate(questions):
        target.call(op, arguments, deadline_s, expect(number), size_bytes)
    if questions:
        with trio.move_on_at(deadline_s):
            await finished.wait()
