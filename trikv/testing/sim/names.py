"""The texts under which a run shows keys and values, and the bytes that they stand for.

A history is read by people and compared by checkers, so keys and values are short texts in it. In a schedule that was
drawn a text is its own bytes. A schedule that a person saved may have any bytes: binary keys, values of a megabyte,
terminal escapes, one value written twice. Its `Names` give each of them a text of its own that a terminal can show.

A text that was drawn may say how long it is: `v7 (4,096 bytes)` stands for so many bytes, of which these are the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from trikv.core.text import escape

SHOWN_MAX = 48  # characters of a text; a longer one is cut
EMPTY = "(empty)"
_FILLING = b"."
_SIZED = re.compile(r".* \(([0-9,]{1,9}) bytes\)", re.DOTALL)


def sized(text: str, size_bytes: int) -> str:
    """A text that begins so and stands for so many bytes; one that is too long for that stands for itself."""
    if not size_bytes:
        return EMPTY
    told = f"{text} ({size_bytes:,} bytes)"
    return told if len(told.encode()) <= size_bytes else text


@dataclass(frozen=True, slots=True)
class Names:
    """Texts and their bytes, one to one. What is not in the tables is UTF-8, filled up if it says how long it is.

    `fresh`: with what the values begin that a run makes up itself; no text in the tables begins with it.
    """

    data_of: dict[str, bytes] = field(default_factory=dict)
    text_of: dict[bytes, str] = field(default_factory=dict)
    fresh: str = "v"

    @classmethod
    def of(cls, data: Iterable[bytes]) -> Names:
        """A text for each of these, as like it as possible."""
        data_of: dict[str, bytes] = {}
        text_of: dict[bytes, str] = {}
        for one in dict.fromkeys(data):
            text = shown = _shown(one)
            number = 1
            while text in data_of:
                number += 1
                text = f"{shown} [{number}]"
            data_of[text], text_of[one] = one, text
        fresh = "last"
        while any(text.startswith(fresh) for text in data_of):
            fresh += "-"
        return cls(data_of, text_of, fresh)

    def encode(self, text: str) -> bytes:
        data = self.data_of.get(text)
        return _encode(text) if data is None else data

    def decode(self, data: bytes) -> str:
        text = self.text_of.get(data)
        return _decode(data) if text is None else text


def _encode(text: str) -> bytes:
    data = b"" if text == EMPTY else text.encode()
    return data.ljust(_size_of(text), _FILLING)


def _decode(data: bytes) -> str:
    if not data:
        return EMPTY
    if data.endswith(_FILLING):
        text = data.rstrip(_FILLING).decode(errors="replace")
        if _size_of(text) == len(data):
            return text
    return data.decode(errors="replace") if len(data) <= SHOWN_MAX else _shown(data)


def _size_of(text: str) -> int:
    """How long it says that it is; 0 if it does not say so."""
    match = _SIZED.fullmatch(text)
    return 0 if match is None else int(match[1].replace(",", ""))


def _shown(data: bytes) -> str:
    text = escape(data.decode(errors="backslashreplace"))
    if len(text) > SHOWN_MAX:
        text = f"{text[:SHOWN_MAX]}... ({len(data):,} bytes)"
    return text if text.strip() else f"({len(data)} spaces)" if text else "(empty)"
