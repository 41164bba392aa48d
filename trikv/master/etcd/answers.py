"""What etcd answers, read with suspicion: JSON in which false, zero and what is empty are left out.

Numbers of 64 bits are texts, keys and values are base64. Each reader here raises `Nonsense` for what has another shape,
so that an answer of something else than etcd is an error of one line, whatever it is.

An error of etcd's has a code of gRPC's. `NotCarriedOut` is one that says that the request was not carried out; all
others leave that open.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from trikv.core.text import escape

TEXT_CHARS_MAX: Final = 200  # of what a stranger answers, in an error

# gRPC's codes that etcd answers only if it did not carry out the request.
_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _PRECONDITION, _OUT_OF_RANGE, _NO_SUCH_CALL, _UNKNOWN_USER = (
    3, 5, 7, 8, 9, 11, 12, 16,
)  # fmt: skip
_DEFINITE: Final = {
    _INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _PRECONDITION, _OUT_OF_RANGE, _NO_SUCH_CALL, _UNKNOWN_USER,
}  # fmt: skip

# By words of the error, then by its code.
_REMEDIES_BY_WORDS: Final = (
    ("invalid user ID or password", "check the user and the password"),
    ("user name is empty", "etcd wants a user: write etcd://USER:PASSWORD@HOST:PORT"),
    ("authentication is not enabled", "leave USER:PASSWORD@ out, or enable it with etcdctl auth enable"),
    ("space exceeded", "compact and defragment etcd, then etcdctl alarm disarm"),
    ("request is too large", "start etcd with a larger --max-request-bytes, or have fewer workers"),
)
_REMEDIES: Final = {
    _DENIED: "grant the user's role reading and writing of every key that begins with the prefix",
    _UNKNOWN_USER: "check the user and the password",
    _NO_SUCH_CALL: "etcd 3.4 or later is needed",
}


class Nonsense(ValueError):
    """An answer is not what etcd's API documents."""


class NotCarriedOut(Exception):
    """etcd did not carry out the request. `reason` has its words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        of_words = next((remedy for words, remedy in _REMEDIES_BY_WORDS if words in reason), None)
        self.remedy = of_words or _REMEDIES.get(code, "")

    def __str__(self) -> str:
        return f"{spell(self.reason)}{self.remedy and '; '}{self.remedy}"

    @property
    def is_of_the_token(self) -> bool:
        """The user's token has expired, or is of before a change of the users."""
        return "invalid auth token" in self.reason or "revision of auth store is old" in self.reason


class Unanswered(Exception):
    """The request went out, and no answer came that says what became of it."""


def error_of(document: object) -> NotCarriedOut | Unanswered | Nonsense:
    """An error of etcd's, as an answer or as the end of a stream."""
    if not isinstance(document, dict):
        return Nonsense("an error is no object")
    code = document.get("code", document.get("grpc_code"))
    reason = document.get("message", document.get("error"))
    if not isinstance(code, int) or not isinstance(reason, str):
        return Nonsense("an error has no code")
    # A limit of gRPC's may have been met by the answer.
    if code in _DEFINITE and (code != _EXHAUSTED or reason.startswith("etcdserver:")):
        return NotCarriedOut(code, reason)
    return Unanswered(f"it answers: {spell(reason)}; see that most members of etcd run and reach each other")


def read_error(status: int, body: bytes) -> NotCarriedOut | Unanswered | Nonsense:
    """The error in an HTTP answer that is none of success."""
    if b"HTTPS server" in body:
        return Unanswered("it speaks TLS; write etcds:// in place of etcd://")
    document, trailer, _ = body.partition(b"}Grpc-Trailer")  # it may follow the JSON in the body
    try:
        return error_of(read_object(document + b"}" if trailer else body))
    except Nonsense:
        return Nonsense(f"HTTP {status} to a call of /v3, which etcd has from 3.4 on")


def read_object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Nonsense("what it sends is not JSON") from None
    if not isinstance(found, dict):
        raise Nonsense("what it sends is no object")
    return found


def member(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise Nonsense(f"{name!r} is no object")
    return found


def members(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = document.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Nonsense(f"{name!r} is no list of objects")
    return found


def whole(document: Mapping[str, Any], name: str) -> int:
    """A number of 64 bits without a sign."""
    found = document.get(name, 0)
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) <= 20:
        found = int(found)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 64:
        raise Nonsense(f"{name!r} is no number")
    return found


def read_bytes(document: Mapping[str, Any], name: str) -> bytes:
    found = document.get(name, "")
    try:
        return base64.b64decode(found, validate=True)
    except (ValueError, TypeError):
        raise Nonsense(f"{name!r} is not base64") from None


def spell(text: str) -> str:
    """A stranger's words, for an error of one line."""
    return escape(text[:TEXT_CHARS_MAX])
