"""Text from another node or a user, made fit for one line of a log or a terminal."""

from __future__ import annotations


def escape(text: str) -> str:
    """The text on one line that a terminal shows and does not obey: what is not printable is written as an escape.

    It is for eyes alone: a backslash stays as it is, so the text cannot be recovered. Escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
