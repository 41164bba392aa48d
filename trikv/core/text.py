"""Foreign text and bytes, made fit for a log, a terminal, a URL or a JSON document."""

from __future__ import annotations

import base64
import json
from contextlib import suppress


def escape(text: str) -> str:
    """The text on one line that a terminal shows and does not obey: what is not printable is written as an escape.

    It is for eyes alone: a backslash stays as it is, so the text cannot be recovered. Escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def to_base64(data: bytes) -> str:
    """URL-safe base64 with padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).decode()


def spell_bytes(name: str, data: bytes) -> dict[str, str]:
    """A JSON member that carries bytes: `name` with text if the bytes are UTF-8, else `name_base64`."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": to_base64(data)}


def last_words(log: str) -> str:
    """The sentence in the last line of a node's log, written for people or for programs; "" if there is no line."""
    lines = log.strip().splitlines()
    line = lines[-1] if lines else ""
    with suppress(ValueError, RecursionError):
        document = json.loads(line)
        if isinstance(document, dict) and isinstance(event := document.get("event"), str):
            return event
    return line.removeprefix("error: ")
