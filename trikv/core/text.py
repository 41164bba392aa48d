"""Text that somebody else wrote, made fit for one line of a log or a terminal."""

from __future__ import annotations


def escape(text: str) -> str:
    """The text on one line, as a terminal shows it and does not obey it: what is not printable is written as an escape.

    For eyes alone: a backslash stays one, so the text cannot be had back. Escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
