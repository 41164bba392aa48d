"""A case: the bytes to send, their pieces, how the connection ends, and what may be concluded from the answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Ending(Enum):
    """What the client does once it has sent everything."""

    HALF_CLOSE = "half-close"  # it closes its half, and reads to the end
    LINGER = "linger"  # it keeps the connection open, and reads until nothing more comes
    ABORT = "abort"  # it resets the connection at once


class FuzzWrite(NamedTuple):
    """A write that the bytes ask for. No other case names the key."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Case:
    """`plain`: all requests are whole and well-formed, so each is answered, in order. `requests`: their number."""

    kind: str
    pieces: tuple[bytes, ...]
    ending: Ending = Ending.HALF_CLOSE
    slow: bool = False
    plain: bool = False
    requests: int = 1
    writes: tuple[FuzzWrite, ...] = ()

    @property
    def sent(self) -> bytes:
        return b"".join(self.pieces)


def split(dice: random.Random, data: bytes, pieces_max: int) -> tuple[bytes, ...]:
    """`data` cut at random places."""
    places = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(pieces_max)))
    return tuple(data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True) if begin < end)


def mutate(dice: random.Random, data: bytes, tokens: Sequence[bytes]) -> bytes:
    """`data` with one to four changes: bytes replaced, removed, repeated, exchanged; an odd token put in."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        begin = dice.randrange(len(changed) + 1)
        end = min(len(changed), begin + dice.choice((1, 1, 2, 4, 16, 64)))
        match dice.randrange(6):
            case 0:
                changed[begin:end] = dice.randbytes(end - begin)
            case 1:
                del changed[begin:end]
            case 2:
                changed[begin:begin] = changed[begin:end] * dice.choice((1, 2, 50))
            case 3:
                changed[begin:begin] = dice.choice(tokens)
            case 4:
                changed[begin:end] = dice.choice(tokens)
            case 5 if begin < len(changed):
                changed[begin] ^= 1 << dice.randrange(8)
    return bytes(changed)
