"""ETags and preconditions: from `If-Match` and `If-None-Match` (RFC 9110, section 13) to an `Expect`.

An ETag is a record's stamp in quotes. A tag that is no stamp is valid and matches nothing. `If-Match` compares
strongly, so a weak tag (`W/"..."`) matches nothing there. `If-None-Match` compares weakly, so a weak tag counts there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from trikv.core.errors import Refused
from trikv.core.precondition import Expect
from trikv.core.record import Version

_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


def etag(stamp: Version) -> str:
    return f'"{stamp}"'


def if_match(headers: Mapping[str, str]) -> Expect | None:
    text = headers.get("if-match")
    if text is None:
        return None
    if text.strip() == "*":
        return Expect.present()
    return Expect.one_of(stamps_of(opaque for weak, opaque in _tags("If-Match", text) if not weak))


def if_none_match(headers: Mapping[str, str]) -> Expect | None:
    text = headers.get("if-none-match")
    if text is None:
        return None
    if text.strip() == "*":
        return Expect.absent()
    return Expect.none_of(stamps_of(opaque for _, opaque in _tags("If-None-Match", text)))


def expectation(headers: Mapping[str, str]) -> Expect | None:
    """The precondition of a write, if it has one.

    Raises:
      Refused: a header is malformed, or both headers are there; no write needs both.
    """
    if "if-match" not in headers and "if-none-match" not in headers:
        return None
    wanted, unwanted = if_match(headers), if_none_match(headers)
    if wanted is not None and unwanted is not None:
        raise Refused("bad_request", "a write takes If-Match or If-None-Match, not both")
    return wanted if wanted is not None else unwanted


def stamps_of(tags: Iterable[str]) -> list[Version]:
    """The stamps among some opaque tags. A tag that is spelt otherwise than `etag` spells it is no stamp."""
    stamps = []
    for tag in tags:
        try:
            stamp = Version.parse(tag)
        except ValueError:
            continue
        if str(stamp) == tag:
            stamps.append(stamp)
    return stamps


def _tags(header: str, text: str) -> list[tuple[bool, str]]:
    """(weak, opaque) of each tag in a header. The list may have empty elements."""
    tags = []
    at, expecting = 0, True
    while at < len(text):
        if text[at] in " \t":
            at += 1
        elif text[at] == ",":
            at, expecting = at + 1, True
        elif expecting and (found := _TAG.match(text, at)):
            tags.append((found[1] is not None, found[2]))
            at, expecting = found.end(), False
        else:
            raise Refused("bad_request", f'{header} must be * or a list of ETags in quotes, such as "1.1-7"')
    if not tags:
        raise Refused("bad_request", f"{header} names no ETag")
    return tags
