"""Which starts a worker's directory has seen: so an older copy that was put back is noticed.

A copy of a directory differs from the original in one way: it does not know what the original did afterwards. So each
start of a worker gets a number, and a name that no other start draws. The directory keeps a list: the start that its
master last confirmed, and all starts since. The master's document names the last start that it knows of each member. A
directory that does not know that start is an older copy.

The name is needed because a copy that is started again counts to the same number. The number is needed where neither
side knows the other's start: a document that was put back is older than the start that the directory has confirmed, so
it proves nothing against the directory.

The order of events: the worker notes its new start, durably, and greets. The document names the start, durably. The
worker notes, durably, that the start is confirmed. Only then does the worker serve, or count. After a stop at any point
in between, the list still has the document's start in it.

The list cannot tell a copy that was made during the present start, such as a snapshot of a running machine. For that
the worker counts its batches: a directory with fewer batches than the master has heard of is an older copy as well.

Bound: `STARTS_MAX` starts without a confirmation. After that the oldest start that was not confirmed is dropped from
the list. If the document names the dropped start, the worker loses its place; it never gives a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

STARTS_MAX: Final = 1_000


class Start(NamedTuple):
    """One start of one worker. Number 0 means that there was none."""

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


Starts = tuple[Start, ...]  # the confirmed start, or `NO_START`, then all since; the last is the present one
NO_START: Final = Start(0, "")


def begin(starts: Starts, name: str) -> Starts:
    """The list with a new start."""
    kept = starts[:1] + starts[2:] if len(starts) >= STARTS_MAX else starts
    return (*kept, Start(starts[-1].number + 1, name))


def begin_anew(starts: Starts, name: str) -> Starts:
    """The list of another member in the same directory. It claims nothing from before."""
    return begin((NO_START._replace(number=starts[-1].number),), name)


def is_confirmed(starts: Starts) -> bool:
    """Is the present start confirmed?"""
    return len(starts) == 1


def pack(starts: Starts) -> bytes:
    return " ".join(map(str, starts)).encode()


def unpack(note: bytes) -> Starts:
    """What `pack` wrote. A directory from before there were starts has none."""
    return tuple(Start.parse(text) for text in note.decode().split()) or (NO_START,)


class Claim(Enum):
    """What a directory's list is worth."""

    CONFIRMED = "the document names this start, and the worker knows that"
    NAMED = "the document names this start, and the worker is to be told"
    LATER = "it goes on from the start that the document names, which should name this one"
    OLDER = "it is an older copy"


def judge(starts: Sequence[Start], named: Start | None, batches: int, heard: int) -> Claim:
    """`named`: the start that the document names, None if it names none of this member. `heard`: how many batches the
    master has heard of."""
    if batches < heard:
        return Claim.OLDER
    if named == starts[-1]:
        return Claim.CONFIRMED if len(starts) == 1 else Claim.NAMED
    if named is None or named in starts or named.number < starts[0].number:
        return Claim.LATER
    return Claim.OLDER
