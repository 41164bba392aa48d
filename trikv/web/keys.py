"""Keys over HTTP: put, get, delete, scan, and the older forms `/put` and `/get` for curl and scripts.

    PUT    /v1/kv/{key}   the body is the value, byte for byte                      204, ETag
    GET    /v1/kv/{key}   the value, as application/octet-stream                    200, ETag; 304; 404
    DELETE /v1/kv/{key}   a key without a value may be deleted too                  204, ETag of the deletion
    GET    /v1/kv         a page of keys in byte order: prefix, after, limit, values

With `encoding=base64` the key is base64; in a scan also the prefix and everything that is answered. `timeout`, in
seconds, bounds the request. A put answers 204 and never 201: to know whether the key existed would take a read. The
content type of a put is not kept.

The cursor `after` of a page is opaque, and base64 in either encoding. The last page has none.

Handlers raise `TrikvError`; the front that calls them makes a problem document of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.scan import PAGE_MAX
from trikv.coordinator.trace import RequestTrace
from trikv.core.errors import Refused, TrikvError
from trikv.core.record import Version
from trikv.core.text import to_base64
from trikv.web.conditions import etag, expectation, if_match, if_none_match
from trikv.web.message import (
    Request,
    Response,
    choice_of,
    integer_of,
    json_response,
    parse_query,
    percent_decode,
    prefers_json,
    read_bytes,
    require,
    spell,
    timeout_of,
)
from trikv.web.services import Services
from trikv.web.traces import traced

KEY_PATH: Final = b"/v1/kv/"
SCAN_LIMIT: Final = 100


async def put(services: Services, request: Request) -> Response:
    key, timeout_s = _key_and_timeout(request)
    expect = expectation(request.headers)

    async def put(trace: RequestTrace | None) -> Response:
        coordinator = services.coordinator
        stamp = await coordinator.put(key, request.body, expect=expect, timeout_s=timeout_s, trace=trace)
        return Response(204, {"etag": etag(stamp)})

    return await traced(services, request, put)


async def delete(services: Services, request: Request) -> Response:
    key, timeout_s = _key_and_timeout(request)
    expect = expectation(request.headers)

    async def delete(trace: RequestTrace | None) -> Response:
        stamp = await services.coordinator.delete(key, expect=expect, timeout_s=timeout_s, trace=trace)
        return Response(204, {"etag": etag(stamp)})

    return await traced(services, request, delete)


async def get(services: Services, request: Request) -> Response:
    key, timeout_s = _key_and_timeout(request)

    async def get(trace: RequestTrace | None) -> Response:
        return await _read(services.coordinator, request, key, timeout_s, _value_response, trace)

    return await traced(services, request, get)


async def scan(services: Services, request: Request) -> Response:
    parameters = parse_query(request.query, "prefix", "after", "limit", "values", "encoding", "timeout")
    encoding = choice_of(parameters, "encoding", "text", "base64")
    with_values = choice_of(parameters, "values", "true", "false") == "true"
    prefix = read_bytes(parameters.get("prefix", b""), encoding, "prefix")
    after = read_bytes(parameters["after"], "base64", "after") if "after" in parameters else None
    limit = integer_of(parameters, "limit", default=SCAN_LIMIT, most=PAGE_MAX)
    page = await services.coordinator.scan(prefix, after=after, limit=limit, timeout_s=timeout_of(parameters))
    items = []
    for key, record in page.items:
        item = {**spell("key", key, encoding), "etag": str(record.stamp)}
        if with_values and record.value is not None:
            item |= spell("value", record.value, encoding)
        items.append(item)
    return json_response({"items": items, "after": None if page.after is None else to_base64(page.after)})


async def put_by_query(services: Services, request: Request) -> Response:
    """`/put?key=&value=`: answers one line, or JSON if the request prefers it."""
    parameters = parse_query(request.query, "key", "value", "timeout")
    if request.body:
        raise Refused("bad_request", "the value goes into the query here; PUT /v1/kv/{key} takes a body")
    key, value = require(parameters, "key", "value")
    key = read_bytes(key, "text", "the key")
    expect = expectation(request.headers)
    stamp = await services.coordinator.put(key, value, expect=expect, timeout_s=timeout_of(parameters))
    if prefers_json(request):
        return json_response({"outcome": "committed", "key": key.decode(), "etag": str(stamp)}, etag=etag(stamp))
    headers = {"etag": etag(stamp), "content-type": "text/plain; charset=utf-8", "cache-control": "no-store"}
    return Response(200, headers, f"OK (Mode: {services.coordinator.mode})\n".encode())


async def get_by_query(services: Services, request: Request) -> Response:
    """`/get?key=`: answers the value itself, or JSON if the request prefers it."""
    parameters = parse_query(request.query, "key", "timeout")
    (key,) = require(parameters, "key")
    key = read_bytes(key, "text", "the key")

    def as_json(stamp: Version, value: bytes) -> Response:
        document = {"key": key.decode(), **spell("value", value, "text"), "etag": str(stamp)}
        return json_response(document, etag=etag(stamp))

    answer = as_json if prefers_json(request) else _value_response
    return await _read(services.coordinator, request, key, timeout_of(parameters), answer)


async def _read(
    coordinator: Coordinator,
    request: Request,
    key: bytes,
    timeout_s: float | None,
    answer: Callable[[Version, bytes], Response],
    trace: RequestTrace | None = None,
) -> Response:
    """Read the key under the preconditions of the request. `answer` makes the response of a stamp and a value."""
    wanted, unwanted = if_match(request.headers), if_none_match(request.headers)
    record = await coordinator.get(key, timeout_s=timeout_s, trace=trace)
    if record is None or record.value is None:
        raise _not_found(key)
    if wanted is not None and not wanted.holds(record):
        raise Refused("precondition_failed", wanted.describe_failure(record))
    if unwanted is not None and not unwanted.holds(record):
        return Response(304, {"etag": etag(record.stamp), "cache-control": "no-cache"})
    return answer(record.stamp, record.value)


def _value_response(stamp: Version, value: bytes) -> Response:
    headers = {"etag": etag(stamp), "cache-control": "no-cache", "content-type": "application/octet-stream"}
    return Response(200, headers, value)


def _key_and_timeout(request: Request) -> tuple[bytes, float | None]:
    parameters = parse_query(request.query, "encoding", "timeout")
    if not request.path.startswith(KEY_PATH):  # letters of it were escaped, so it is unclear where the key begins
        raise Refused("no_route", f"spell {KEY_PATH.decode()} without percent signs")
    raw = percent_decode(request.path[len(KEY_PATH) :], "the key")
    return read_bytes(raw, choice_of(parameters, "encoding", "text", "base64"), "the key"), timeout_of(parameters)


def _not_found(key: bytes) -> TrikvError:
    return TrikvError("not_found", "there is no value under this key", **spell("key", key, "text"))
