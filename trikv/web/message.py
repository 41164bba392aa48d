"""Requests and responses as plain values, and the reading of queries and bodies.

A handler takes a `Request`, the bytes as they were sent, and answers a `Response`; it does not know the server that
calls it. Everything here is read strictly. A parameter that is silently ignored would be a precondition or a deadline
that silently does not hold, so unknown, repeated and malformed parameters are refused by name.

Keys are bytes, and travel as text in three places. In a *path* or *query* a key is percent-encoded text, or base64 with
`encoding=base64`. Percent-encoded bytes that are not UTF-8 are refused, since many tools would replace each of them by
the same character. In *JSON* keys and values are text or base64. Base64 is written with the URL's alphabet (RFC 4648,
section 5), and read in either alphabet, with or without padding.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from trikv.core.errors import Refused, TrikvError
from trikv.core.record import TIMEOUT_MOST_S
from trikv.core.serving import is_request_id
from trikv.core.text import spell_bytes, to_base64

JSON_VALUES_MAX: Final = 64 * 1024
INTEGER_CHARS_MAX: Final = 100  # the time to read one grows with their square, and no number of ours has half as many
STRANGE_NAMED_MAX: Final = 8  # members without a meaning that a refusal names, each by its first `_NAME_CHARS_MAX`
RETRY_AFTER_S: Final = 1  # a worker's return or room in a queue may come soon; a better guess is not known

# On every response. A value may be anybody's bytes, so no browser may take it for a page, a script or a style. `trikv`
# is the version of this API: a client believes no answer without it, since a login page may be a 200 as well.
SAFE_HEADERS: Final = {
    "trikv": "1",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}

_NAME_CHARS_MAX: Final = 100
_TO_PLAIN_BASE64: Final = bytes.maketrans(b"-_", b"+/")
# A string without an end matches up to the end of the body. Else each quote in it would be tried as a beginning.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NUMBER: Final = re.compile(rb"[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20}")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)


class Request(NamedTuple):
    """`path` and `query` are as sent, percent-encoded. Header names are in lower case, and repeated headers joined."""

    method: str
    path: bytes
    query: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


class RequestIds:
    """Names requests. A client may give its request an id (`X-Request-Id`); another one is made if that is none."""

    def __init__(self) -> None:
        self._first = secrets.token_hex(4)
        self._count = 0

    def of(self, given: str) -> str:
        return given if is_request_id(given) else self.make()

    def make(self) -> str:
        self._count += 1
        return f"{self._first}-{self._count}"


# --- writing ----------------------------------------------------------------------------------------------------------


def json_response(document: Any, *, status: int = 200, **headers: str) -> Response:
    return json_answer(dump_json(document) + b"\n", status=status, **headers)


def json_answer(body: bytes, *, status: int = 200, **headers: str) -> Response:
    """The response with a document that is written already, and the end of its line."""
    return Response(status, {"content-type": "application/json", "cache-control": "no-store", **headers}, body)


def dump_json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(", ", ": ")).encode()


def problem_document(error: TrikvError) -> dict[str, Any]:
    """The error as a problem document (RFC 9457): its row of the error table, its detail, and its extra members."""
    kind = error.kind
    return {
        "type": f"urn:trikv:error:{kind.code}",
        "title": kind.title,
        "status": kind.http,
        "detail": error.detail,
        "code": kind.code,
        "outcome": kind.outcome.value,
        "remedy": kind.remedy,
        **error.extra,
    }


def problem_response(error: TrikvError) -> Response:
    headers = {"content-type": "application/problem+json"}
    if error.kind.http == 503:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if error.kind.code == "bad_method":
        headers["allow"] = ", ".join(error.extra["allow"])
    if error.kind.code in ("value_too_large", "too_slow"):
        headers["connection"] = "close"  # the rest of the body may still arrive, and is no next request
    answer = json_response(problem_document(error), status=error.kind.http)
    return Response(answer.status, {**answer.headers, **headers}, answer.body)


# --- reading ----------------------------------------------------------------------------------------------------------


def percent_decode(raw: bytes, what: str) -> bytes:
    """
    Raises:
      Refused: a percent sign is not followed by two hexadecimal digits.
    """
    if b"%" not in raw:
        return raw
    if bad := _BAD_ESCAPE.search(raw):
        sample = bad[0].decode("ascii", "replace")
        raise Refused("bad_request", f"{what} has {sample!r}, which is no percent-encoding; a percent sign is %25")
    return unquote_to_bytes(raw)


def parse_query(raw: bytes, *allowed: str) -> dict[str, bytes]:
    """The query's parameters, as HTML forms send them: `+` is a space.

    Raises:
      Refused: a parameter is not one of `allowed`, is repeated, or is badly encoded.
    """
    parameters: dict[str, bytes] = {}
    for piece in raw.replace(b"+", b" ").split(b"&") if raw else ():
        raw_name, _, raw_value = piece.partition(b"=")
        name = percent_decode(raw_name, "the query").decode(errors="replace")
        if name not in allowed:
            those = f"there are {', '.join(allowed)}" if allowed else "there are none here"
            raise Refused("bad_request", f"there is no parameter {name!r}; {those}")
        if name in parameters:
            raise Refused("bad_request", f"parameter {name!r} is given twice")
        parameters[name] = percent_decode(raw_value, f"parameter {name!r}") if b"%" in raw_value else raw_value
    return parameters


def require(parameters: Mapping[str, bytes], *names: str) -> list[bytes]:
    """
    Raises:
      Refused: some are missing; the detail names all of them.
    """
    if missing := [name for name in names if name not in parameters]:
        raise Refused("bad_request", f"missing: {', '.join(missing)}", missing=missing)
    return [parameters[name] for name in names]


def timeout_of(parameters: Mapping[str, bytes]) -> float | None:
    """`timeout`, in seconds. None: there is none, and the master's own holds."""
    if "timeout" not in parameters:
        return None
    written = _NUMBER.fullmatch(parameters["timeout"])
    timeout_s = float(written[0]) if written else 0.0
    if not 0 < timeout_s <= TIMEOUT_MOST_S:
        raise Refused("bad_request", f"timeout must be a number of seconds above 0 and up to {TIMEOUT_MOST_S:g}")
    return timeout_s


def choice_of(parameters: Mapping[str, bytes], name: str, *choices: str) -> str:
    """A parameter with few values; the first is the default."""
    if name not in parameters:
        return choices[0]
    value = parameters[name].decode(errors="replace")
    if value not in choices:
        raise Refused("bad_request", f"{name} must be {' or '.join(choices)}, not {value!r}")
    return value


def integer_of(parameters: Mapping[str, bytes], name: str, *, default: int, most: int) -> int:
    raw = parameters.get(name, str(default).encode())
    if not raw.isdigit() or len(raw) > 9 or not 1 <= int(raw) <= most:
        raise Refused("bad_request", f"{name} must be a whole number from 1 to {most:,}")
    return int(raw)


def read_bytes(data: bytes, encoding: str, what: str) -> bytes:
    """The bytes that `data` stands for: `data` itself with the encoding "text", else what it is the base64 of.

    Raises:
      Refused: `data` is not UTF-8, or not base64, as its encoding wants it.
    """
    if encoding == "base64":
        plain = data.translate(_TO_PLAIN_BASE64).rstrip(b"=")
        try:
            return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
        except ValueError as error:
            raise Refused("bad_request", f"{what} is not base64: {error}") from error
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise Refused(
            "bad_request", f"{what} is not UTF-8 text; send bytes as URL-safe base64, with encoding=base64"
        ) from error
    return data


def spell(name: str, data: bytes, encoding: str) -> dict[str, str]:
    """A JSON member that carries bytes: `name` with text, or with base64 if that is wanted; and `name_base64` where
    text is wanted and the bytes are none."""
    return {name: to_base64(data)} if encoding == "base64" else spell_bytes(name, data)


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def prefers_json(request: Request) -> bool:
    """Is JSON the first of the media types that `Accept` gives the highest quality (RFC 9110, section 12.5.1)?"""
    if "accept" not in request.headers:
        return False
    best, best_quality = "", 0.0
    for piece in request.headers["accept"].split(","):
        name, *parameters = (part.strip().lower() for part in piece.split(";"))
        try:
            quality = float(next((text[2:] for text in parameters if text.startswith("q=")), 1))
        except ValueError:
            continue
        if quality > best_quality:
            best, best_quality = name, quality
    return best == "application/json"


def parse_json(request: Request) -> Any:
    """
    Raises:
      Refused: the content type is not JSON's, or the body is not JSON; the detail says where.
    """
    if media_type(request) not in ("application/json", ""):
        raise Refused("bad_media", "this body is JSON: send it with the header Content-Type: application/json")
    if not request.body:
        raise Refused("bad_request", "there is no body; send a JSON object")
    if _has_too_many_values(request.body):
        raise Refused("bad_request", f"the body has more than {JSON_VALUES_MAX:,} values")
    try:
        document = json.loads(
            request.body.decode(),
            object_pairs_hook=_object_without_repeats,
            parse_constant=_no_constant,
            parse_int=_read_integer,
        )
        if _SURROGATE.search(request.body):  # JSON's grammar allows half a pair, but it is no text
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Refused("bad_request", f"the body is not UTF-8: byte {error.start} cannot be") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused("bad_request", f"the body is not JSON: {error.msg} at {where}", position=error.pos) from error
    except UnicodeEncodeError as error:
        raise Refused("bad_request", "the body has half a surrogate pair (\\ud800 to \\udfff) in a string") from error
    except (ValueError, RecursionError) as error:
        raise Refused("bad_request", f"the body is not JSON that can be read here: {error}") from error
    return document


def _has_too_many_values(body: bytes) -> bool:
    """Count the values before the body is parsed: millions of empty lists would hold up every other request meanwhile.
    Marks inside strings do not count."""

    def marks(text: bytes) -> int:
        return text.count(b",") + text.count(b"[") + text.count(b"{")

    if marks(body) <= JSON_VALUES_MAX:
        return False
    strings_max = 2 * JSON_VALUES_MAX  # a member is a name and a value
    bare, strings = _STRING.subn(b"", body, count=strings_max + 1)
    return strings > strings_max or marks(bare) > JSON_VALUES_MAX


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has two members of one name")
    return members


def _read_integer(text: str) -> int:
    if len(text) > INTEGER_CHARS_MAX:
        raise ValueError(f"an integer has more than {INTEGER_CHARS_MAX} characters")
    return int(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def members_of(
    document: Any, what: str, *, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    """`document`, if it is an object that has all of `required`, and besides them only members of `optional`.

    Raises:
      Refused: it is not; the detail names the members that are missing or unknown.
    """
    if not isinstance(document, dict):
        raise Refused("bad_request", f"{what} must be an object")
    if missing := [name for name in required if name not in document]:
        raise Refused("bad_request", f"{what} lacks {', '.join(missing)}", missing=missing)
    if strange := [str(name)[:_NAME_CHARS_MAX] for name in document if name not in required and name not in optional]:
        named = ", ".join(map(repr, sorted(strange)[:STRANGE_NAMED_MAX]))
        others = len(strange) - STRANGE_NAMED_MAX
        more = f" and {others:,} others" if others > 0 else ""
        raise Refused("bad_request", f"{what} has {named}{more}, which means nothing here")
    return document
