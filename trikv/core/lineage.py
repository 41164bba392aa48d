"""Which starts a worker's directory has seen: how one that was put back from an older copy is told from the original.

A copy of a directory looks like the original in every way but one: it does not know what the original did afterwards.
So each start of a worker is given a number and a name that no other start draws, and the directory keeps a list: the
start that its master last confirmed, and all starts since. The master's document names the last start that it knows of
each member. A directory that does not know that start is an older copy. The number alone would not tell: a copy that
is started again counts to the same one. It tells which side is the older one where neither knows the other: a document
that was put back is older than the start that the directory has confirmed, and proves nothing against it.

The order of events is: the worker notes its new start, durably, and greets; the document names it, durably; the worker
notes, durably, that it is confirmed; only then does the worker serve, or count. Whoever stops in between finds a list
that has the document's start in it.

What a copy of the present start lacks, as a snapshot of a running machine does, no list can tell. The worker counts its
batches for that: fewer than the master has heard of is an older copy as well.

Bound: `STARTS_MAX` starts without one confirmation; then the oldest but the confirmed one falls out of the list. If the
document names just that one, the worker loses its place. It never gives a wrong answer for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

STARTS_MAX: Final = 1_000


class Start(NamedTuple):
    """One start of one worker. Number 0 stands for none."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.number}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> Start:
        """The start that `str()` gave.

        Raises:
          ValueError: for anything else.
        """
        number, dot, name = text.partition(".")
        if not (_is_short(number, 10) and number.isdigit() and dot and (not name or _is_short(name, 32))):
            raise ValueError(f"{text[:50]!r} names no start")
        return cls(int(number), name)


def _is_short(text: str, most: int) -> bool:
    return text.isascii() and text.isalnum() and len(text) <= most


Starts = tuple[Start, ...]  # the one that was confirmed, or `NO_START`, and all since; the last is the present one
NO_START: Final = Start(0, "")


def begin(starts: Starts, name: str) -> Starts:
    """The list with a new start."""
    kept = starts[:1] + starts[2:] if len(starts) >= STARTS_MAX else starts
    return (*kept, Start(starts[-1].number + 1, name))


def begin_anew(starts: Starts, name: str) -> Starts:
    """The list of another member in the same directory: it claims nothing from before."""
    return begin((NO_START._replace(number=starts[-1].number),), name)


def is_confirmed(starts: Starts) -> bool:
    """Is the present start confirmed?"""
    return len(starts) == 1


def pack(starts: Starts) -> bytes:
    return " ".join(map(str, starts)).encode()


def unpack(note: bytes) -> Starts:
    """What `pack` wrote; for a directory from before there were starts, none."""
    return tuple(Start.parse(text) for text in note.decode().split()) or (NO_START,)


class Claim(Enum):
    """What a directory's list is worth."""

    CONFIRMED = "the document names this start, and the worker knows that"
    NAMED = "the document names this start, and the worker is to be told"
    LATER = "it goes on from the start that the document names, which should name this one"
    OLDER = "it is an older copy"


def judge(starts: Sequence[Start], named: Start | None, batches: int, heard: int) -> Claim:
    """`named`: by the document, None if it knows none of this member; `heard`: of how many batches the master has."""
    if batches < heard:
        return Claim.OLDER
    if named == starts[-1]:
        return Claim.CONFIRMED if len(starts) == 1 else Claim.NAMED
    if named is None or named in starts or named.number < starts[0].number:
        return Claim.LATER
    return Claim.OLDER
