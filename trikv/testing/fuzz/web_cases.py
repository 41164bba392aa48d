"""What to send to the HTTP port: requests by a grammar of every route, their mutations, and other protocols.

Each case that writes has a key of its own (`prefix` and its number), so that a later read shows what became of the
write. No case asks for a change that an operator would have to undo: modes are only planned, the workers to drain do
not exist, no loss is accepted, and all addresses are of this machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import cbor2

from trikv.testing.fuzz.case import Case, Ending, FuzzWrite, mutate, split

LINE = b"\r\n"

METHODS: Final = (
    b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"PRI", b"get", b"G\xcbT",
    b"A" * 300, b"PROPFIND", b"M-SEARCH", b"",
)  # fmt: skip
VERSIONS: Final = (
    b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3.7", b"HTTP/1.1.1", b"http/1.1", b"HTTP/1.", b"HTTP/11",
    b"HTCPCP/1.0", b"HTTP/1.1 ", b"", b"HTTP/\xff.1",
)  # fmt: skip
TARGETS: Final = (
    b"*", b"/", b"//", b"///v1/kv/a", b"?key=k", b"http://[/", b"http://localhost/v1/kv/a", b"http://localhost",
    b"https://localhost:99999/livez", b"ftp://localhost/livez", b"http:///livez", b"http://user@localhost/livez",
    b"localhost:80", b"/v1/kv/", b"/v1/kv/%", b"/v1/kv/%zz", b"/v1/kv/%00", b"/v1/kv/%ff", b"/v1/kv/%ED%A0%80",
    b"/v1/kv/%2e%2e/%2e%2e", b"/v1/kv/../../livez", b"/v1/kv/" + b"k" * 5000, b"/v1/kv/" + b"%41" * 4096,
    b"/v1/kv/a?encoding=base64", b"/v1/kv/YQ==?encoding=base64", b"/v1/kv/a?encoding=latin-1", b"/v1/kv/a#b",
    b"/v1/kv/a?timeout=nan", b"/v1/kv/a?timeout=-1", b"/v1/kv/a?timeout=1e999", b"/v1/kv/a?timeout=1e-320",
    b"/v1/kv/a?timeout=" + b"9" * 5000, b"/v1/kv/a?timeout=1&timeout=2", b"/v1/kv/a?%ff=1", b"/v1/kv/a?&&&=&",
    b"/v1/kv?limit=0", b"/v1/kv?limit=-1", b"/v1/kv?limit=1e3", b"/v1/kv?limit=" + b"9" * 4500, b"/v1/kv?limit=%D9%A1",
    b"/v1/kv?limit=\xc2\xb2", b"/v1/kv?after=%%%", b"/v1/kv?after=AAA", b"/v1/kv?prefix=%ff", b"/v1/kv?values=maybe",
    b"/v1/kv?prefix=%00&values=false", b"/v1/locate?key=%ff", b"/v1/locate", b"/get?key=%ff", b"/get?key=",
    b"/put?key=a",
    b"/readyz?safe_to_stop=%00", b"/readyz?safe_to_stop=nobody", b"/static/../app.py", b"/static/%2e%2e/app.py",
    b"/static/" + b"s" * 400, b"/static/%00", b"/?refresh=maybe", b"/v1/workers/%ff/drain", b"/v1/workers/../drain",
    b"/v1/mode?plan=maybe", b"/v1/repair?dry_run=maybe", b"/\xff\xfe", b"/\x7f", b"/ a", b"/a b c", b"\\v1\\kv",
    b"/v1/events?x=1", b"/v1/" + b"x/" * 2000, b"/%", b"/%2", b"/v1%2Fkv%2Fa",
)  # fmt: skip
HEADERS: Final = (
    b"Host: example.org", b"Host:", b"Host: [::1", b"Host: \xff", b"Host: localhost, localhost", b"Host: a b",
    b"Origin: null", b"Origin: http://[", b"Referer: http://[", b"Referer: \xff\xfe", b"Sec-Fetch-Site: cross-site",
    b"Sec-Fetch-Site: \x80", b"X: \x00", b"X: \x01\x02", b"X: \xff\xfe", b"X:y", b"X : y", b" X: y", b"X\x00: y", b"X",
    b": y", b"X\xc3\xa9: y", b"X: a\rb", b"X: a\nb", b"X: a\n\tfolded", b"X: a\r\n folded", b"X: " + b"x" * 40_000,
    b"X" * 40_000 + b": y", b"\r\n".join(b"X: y" for _ in range(300)), b"Connection: close", b"Connection: \xff",
    b"Connection: keep-alive, close, upgrade", b"Connection: " + b"close," * 900, b"Keep-Alive: timeout=99999999999",
    b"Expect: 100-continue", b"Expect: 200-maybe", b"Expect: \xff", b"Upgrade: h2c", b"Upgrade: websocket",
    b"Upgrade: TLS/1.0, HTTP/2.0", b"TE: trailers, deflate;q=0.5", b"Trailer: Content-Length", b"Accept: */*;q=zz",
    b"Accept: application/json;q=nan", b"Accept: application/json;q=1e999, text/plain;q=-1", b"Accept: \xff",
    b"Accept-Encoding: gzip;q=\xff", b"Range: bytes=0-18446744073709551616", b"Range: bytes=-", b"If-Range: \xff",
    b"If-Modified-Since: Thu, 99 Zzz 99999 99:99:99 GMT", b"If-Modified-Since: Thu, 01 Jan 999999999999 00:00:00 GMT",
    b"If-Modified-Since: \xff", b"If-Unmodified-Since: -1", b"If-Match: *", b'If-Match: "', b'If-Match: "1.1-1"',
    b'If-Match: W/"1.1-1"', b'If-Match: "99999999999999999999.1-1"', b'If-Match: "1.1-1", *', b"If-Match: \xff",
    b"If-Match:", b"If-Match: " + b'"1.1-1",' * 3000, b"If-None-Match: *", b'If-None-Match: "4294967295.4294967295-1"',
    b'If-None-Match: "4294967296.0-99999999999999999999"', b"If-None-Match: *, *", b"Authorization: Basic \xff",
    b"Cookie: a=b; \xff; =; ;;;", b"Content-Type: application/json; charset=\xff", b"Content-Type: ;;;",
    b"Content-Type: application/cbor", b"Content-Type: multipart/form-data; boundary=", b"Content-Encoding: gzip",
    b"Content-Type: application/x-www-form-urlencoded", b"Last-Event-ID: -1", b"Last-Event-ID: \xff",
    b"Last-Event-ID: " + b"9" * 5000, b"X-Forwarded-For: \xff", b"X-HTTP-Method-Override: DELETE", b"Forwarded: for=[",
    b"HTTP2-Settings: AAM", b"Sec-WebSocket-Key: \xff", b"Max-Forwards: -1", b"Date: \xff", b"Via: " + b"1.1 a, " * 500,
)  # fmt: skip
FRAMINGS: Final = (  # in place of Content-Length; the body follows in any case
    b"", b"Content-Length: -1", b"Content-Length: +1", b"Content-Length: 0x10", b"Content-Length: 1e1",
    b"Content-Length: 99999999999999999999", b"Content-Length: " + b"9" * 5000, b"Content-Length: 1048577",
    b"Content-Length: 8388609", b"Content-Length: 0", b"Content-Length:", b"Content-Length: \xc2\xb2",
    b"Content-Length: 5, 5", b"Content-Length: 5, 6", b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"transfer-encoding: CHUNKED",
)  # fmt: skip
CHUNKS: Final = (
    b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nTrailer: x\r\n\r\n", b"5\nhello\n0\n\n",
    b"zz\r\nhello\r\n0\r\n\r\n", b"-1\r\n\r\n", b"ffffffffffffffffffff\r\nx", b"5\r\nhello0\r\n\r\n", b"05\r\nhel",
    b"5 \r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"5;" + b"e" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
    b"1\r\nh\r\n" * 400 + b"0\r\n\r\n", b"0\r\n" + b"T: x\r\n" * 500 + b"\r\n", b"0\r\nContent-Length: 5\r\n\r\n",
    b"5\r\nhello\r\n0\r\nBad\xff: \x00\r\n\r\n", b"", b"\r\n", b"\x00" * 64,
)  # fmt: skip
TEXTS: Final = (
    b"", b"null", b"true", b"1", b'"x"', b"[]", b"{}", b"{", b"[" * 100_000, b'{"a":' * 5000, b"\xff",
    b"\xef\xbb\xbf{}",
    b"NaN", b'{"items": NaN}', b'{"items": 1e999}', b'{"items": ' + b"9" * 5000 + b"}", b'{"items": {}}',
    b'{"items": []}', b'{"items": [null]}', b'{"items": [{}]}', b'{"items": [], "items": []}', b'{"items": [[]]}',
    b'{"items": [{"op": "put"}]}', b'{"items": [{"op": null, "key": "k"}]}', b'{"items": [{"op": "get", "key": 1}]}',
    b'{"items": [{"op": "get", "key": ""}]}', b'{"items": [{"op": "get", "key": "\\ud800"}]}',
    b'{"items": [{"op": "get", "key": "\\udfff\\ud800"}]}', b'{"items": [{"op": "\\ud800", "key": "k"}]}',
    b'{"\\ud800": 1}', b'{"items": [{"op": "get", "key": "k", "\\ud800": 1}]}', b'{"items": [], "\\u0000": 0}',
    b'{"items": [{"op": "get", "key": "k", "encoding": "base64"}]}', b'{"items": [{"op": "get", "key": "%"}]}',
    b'{"items": [{"op": "get", "key": "k", "encoding": []}]}', b'{"items": [{"op": ["get"], "key": "k"}]}',
    b'{"items": [{"op": "get", "key": "k", "if_match": "\\ud800"}]}', b'{"items": [{"op": {}, "key": {}}]}',
    b'{"items": [{"op": "delete", "key": "fuzz-absent", "if_match": "1.1-99999999999999999999999"}]}',
    b'{"items": [{"op": "delete", "key": "fuzz-absent", "if_match": 5}]}',
    b'{"mode": null}', b'{"mode": "\\ud800"}', b'{"mode": "nosuch"}', b'{"mode": ["quorum"]}', b'{"mode": "\\u0000"}',
    b'{"mode": "../../etc/passwd"}', b'{"mode": ' + json.dumps("m" * 60_000).encode() + b"}", b'{"mode": "os:system"}',
    b'{"address": null}', b'{"address": ""}', b'{"address": "\\ud800"}', b'{"address": "\\ud800:80"}',
    b'{"address": "127.0.0.1"}', b'{"address": "127.0.0.1:0"}', b'{"address": "127.0.0.1:-1"}', b'{"address": ":"}',
    b'{"address": "127.0.0.1:99999"}', b'{"address": "127.0.0.1:' + b"9" * 5000 + b'"}', b'{"address": "[::1"}',
    b'{"address": "127.0.0.1:\\u0661"}', b'{"address": "\\u0000:1"}', b'{"address": "[]:1"}', b'{"address": "[::]:1"}',
    b'{"address": ' + json.dumps("a" * 300 + ":1").encode() + b"}", b'{"address": "..:1"}',
    b'{"address": "127.0.0.1:1"}',
    b'{"address": "xn--:1"}', b'{"address": "\\u3002:1"}', b'{"address": "127.0.0.1:1e3"}', b'{"address": ["a"]}',
    b'{"accept_loss": null}', b'{"accept_loss": "true"}', b'{"accept_loss": 1}', b'{"accept_loss": false}',
)  # fmt: skip


def _dumps(item: Any) -> bytes:
    return bytes(cbor2.dumps(item))


CBORS: Final = (
    b"", b"\xff", b"\x9f", b"\x9f\xff", b"\xbf\xff", b"\x81" * 100_000, b"\xa1" * 1000, b"\xc0\x60", b"\xc2\x5a\xff",
    b"\xd8\x23\x61(", b"\xd8\x1c\x80", b"\xd8\x1d\x00", b"\x9b" + b"\xff" * 8, b"\xbb" + b"\xff" * 8,
    b"\x5b" + b"\xff" * 8,
    b"\xa1\x61a\x01\x61a\x02", b"\xa2\x61a\x01\x61a\x02", b"\xa1\x80\x80", b"\xa1\xa0\xa0", b"\x1c",
    b"\xf8\x00", b"\xf7",
    b"\xf9\x7e\x00", b"\x61\xff", _dumps({"items": []}), _dumps({"items": [[]]}), _dumps({"items": [{}]}),
    _dumps({"items": [{"op": "get", "key": "text"}]}), _dumps({"items": [{"op": "get", "key": b""}]}),
    _dumps({"items": [{"op": b"get", "key": b"k"}]}), _dumps({"items": [{"op": "get", "key": b"k", 1: 2}]}),
    _dumps({"items": [{"op": "get", "key": b"k", b"x": 2, "y": 3}]}), _dumps({b"items": []}), _dumps({1: 2, "a": 3}),
    _dumps({"items": [{"op": "get", "key": b"\xff" * 4097}]}), _dumps({"items": []}) + b"\x00", _dumps([1] * 5000),
    _dumps({"items": [{"op": "get", "key": b"k", "encoding": "base64"}]}), _dumps({"items": 2**64}),
    _dumps({"items": [{"op": "get", "key": b"k"}] * 1001}), b"\xa1\x65items\x9a\x00\x0f\x42\x40" + b"\x80" * 1_000_000,
    b"\xa1\x65items\x9a\x00\x0f\x42\x40" + b"\xa0" * 1_000_000,
)  # fmt: skip

TOKENS: Final = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b"\xff", b"%", b"%00", b"%ff", b"%ED%A0%80", b" ", b"\t", b":", b"&",
    b"?",
    b"#", b"=", b"[", b"\\ud800", b'"', b"HTTP/1.1", b"99999999999999999999", b"-1", b"chunked",
    b"Content-Length: 3\r\n",
    b"\xc3\xa9", b"\xed\xa0\x80", b"\x1b[31m", b"A" * 3000,
)  # fmt: skip


class FuzzRequest(NamedTuple):
    method: bytes
    target: bytes
    content_type: bytes = b""
    body: bytes = b""
    write: FuzzWrite | None = None


Route = Callable[[random.Random, str], FuzzRequest]
JSON: Final = b"application/json"
CBOR: Final = b"application/cbor"


def _write(key: str) -> FuzzWrite:
    return FuzzWrite(key, f"value of {key}")


def _put(dice: random.Random, key: str) -> FuzzRequest:
    write = _write(key)
    return FuzzRequest(b"PUT", b"/v1/kv/" + key.encode(), b"", write.value.encode(), write)


def _put_by_query(dice: random.Random, key: str) -> FuzzRequest:
    write = _write(key)
    method = dice.choice((b"GET", b"POST"))
    return FuzzRequest(method, f"/put?key={key}&value={write.value.replace(' ', '+')}".encode(), write=write)


def _batch_json(dice: random.Random, key: str) -> FuzzRequest:
    return FuzzRequest(b"POST", b"/v1/batch", JSON, json.dumps({"items": [_get_item(key)]}).encode())


def _batch_cbor(dice: random.Random, key: str) -> FuzzRequest:
    return FuzzRequest(b"POST", b"/v1/batch", CBOR, _dumps({"items": [{"op": "get", "key": key.encode()}]}))


def _get_item(key: str) -> dict[str, str]:
    return {"op": "get", "key": key}


def _odd_json(dice: random.Random, key: str) -> FuzzRequest:
    target = (b"/v1/batch", b"/v1/mode?plan=true", b"/config?plan=true", b"/v1/workers", b"/v1/recover", b"/v1/repair",
              b"/v1/faults")  # fmt: skip
    at = dice.randrange(len(target))
    return FuzzRequest(b"PUT" if at == 1 else b"POST", target[at], JSON, dice.choice(TEXTS))


def _odd_cbor(dice: random.Random, key: str) -> FuzzRequest:
    return FuzzRequest(b"POST", b"/v1/batch", CBOR, dice.choice(CBORS))


def _scan(dice: random.Random, key: str) -> FuzzRequest:
    limit = dice.choice((1, 10, 50))
    return FuzzRequest(b"GET", f"/v1/kv?prefix=f&limit={limit}&values=false".encode())


def _fixed(method: bytes, target: bytes, content_type: bytes = b"", body: bytes = b"") -> Route:
    return lambda dice, key: FuzzRequest(method, target, content_type, body)


ROUTES: Final[tuple[Route, ...]] = (
    *(_put,) * 8, *(_put_by_query,) * 4, *(_batch_json,) * 3, *(_batch_cbor,) * 2, *(_odd_json,) * 6,
    *(_odd_cbor,) * 4, *(_scan,) * 2,
    lambda dice, key: FuzzRequest(b"GET", b"/v1/kv/" + key.encode()),
    lambda dice, key: FuzzRequest(b"HEAD", b"/v1/kv/" + key.encode()),
    lambda dice, key: FuzzRequest(b"DELETE", b"/v1/kv/" + key.encode()),
    lambda dice, key: FuzzRequest(b"GET", b"/get?key=" + key.encode()),
    lambda dice, key: FuzzRequest(b"GET", b"/v1/locate?key=" + key.encode()),
    _fixed(b"GET", b"/v1/cluster"), _fixed(b"GET", b"/status"), _fixed(b"GET", b"/v1/mode"), _fixed(b"GET", b"/"),
    _fixed(b"PUT", b"/v1/mode?plan=true", JSON, b'{"mode": "chain"}'),
    _fixed(b"POST", b"/config?plan=true", JSON, b'{"mode": "sync"}'),
    _fixed(b"POST", b"/v1/workers", JSON, b'{"address": "127.0.0.1:1"}'),
    _fixed(b"GET", b"/v1/workers/plan"), _fixed(b"POST", b"/v1/workers/w-nobody/drain?dry_run=true"),
    _fixed(b"POST", b"/v1/workers/w-nobody/undrain"), _fixed(b"DELETE", b"/v1/workers/w-nobody"),
    _fixed(b"GET", b"/v1/faults"), _fixed(b"POST", b"/v1/faults", JSON, b'{"kind": "cut", "worker": "w-nobody"}'),
    _fixed(b"POST", b"/v1/recover", JSON, b'{"accept_loss": false}'), _fixed(b"GET", b"/v1/events"),
    _fixed(b"GET", b"/livez"), _fixed(b"GET", b"/readyz"), _fixed(b"GET", b"/static/style.css"),
    _fixed(b"GET", b"/readyz?safe_to_stop=w-nobody"), _fixed(b"OPTIONS", b"*"),
)  # fmt: skip


def spell(
    request: FuzzRequest, *, version: bytes = b"HTTP/1.1", headers: tuple[bytes, ...] = (), framing: bytes | None = None
) -> bytes:
    """The request's bytes. `framing` takes the place of Content-Length."""
    lines = [request.method + b" " + request.target + b" " + version, b"Host: localhost"]
    if request.content_type:
        lines.append(b"Content-Type: " + request.content_type)
    if framing is None and (request.body or request.method in (b"PUT", b"POST")):
        framing = b"Content-Length: " + str(len(request.body)).encode()
    if framing:
        lines.append(framing)
    return LINE.join((*lines, *headers, b"", b"")) + request.body


def request_case(dice: random.Random, number: int, prefix: str) -> Case:
    """One connection's worth of HTTP/1.1, plain or odd."""
    key = f"{prefix}-{number:05}-"  # the dash at its end: cut short, it is no other case's key
    what = dice.choices(("plain", "odd", "mutated", "framed", "pipelined"), (15, 30, 30, 15, 10))[0]
    if what == "pipelined":
        return _pipelined(dice, key)
    request = dice.choice(ROUTES)(dice, key)
    writes = (request.write,) if request.write else ()
    if what == "plain":
        data = spell(request)
    elif what == "odd":
        data = _odd(dice, request)
    elif what == "mutated":
        data = mutate(dice, spell(request), TOKENS)
    else:
        framing = dice.choice(FRAMINGS)
        body = dice.choice(CHUNKS) if b"ransfer" in framing or dice.random() < 0.3 else request.body
        data = spell(request._replace(body=body), framing=framing)
        what = "framing"
    return _case(dice, f"HTTP/1.1, {what}", data, plain=what == "plain", writes=writes)


def _odd(dice: random.Random, request: FuzzRequest) -> bytes:
    version = b"HTTP/1.1"
    headers: tuple[bytes, ...] = ()
    for _ in range(dice.choice((1, 1, 2))):
        match dice.randrange(8):
            case 0:
                request = request._replace(method=dice.choice(METHODS))
            case 1 | 2 | 3:
                request = request._replace(target=dice.choice(TARGETS))
            case 4:
                version = dice.choice(VERSIONS)
            case _:
                headers = (*headers, dice.choice(HEADERS))
    return spell(request, version=version, headers=headers)


def _pipelined(dice: random.Random, key: str) -> Case:
    """Two to five plain requests at once, often followed by bytes that are no request."""
    requests = [dice.choice(ROUTES)(dice, f"{key}{number}-") for number in range(dice.randint(2, 5))]
    requests = [request for request in requests if request.target not in (b"/v1/events", b"*")] or [_put(dice, key)]
    data = b"".join(map(spell, requests))
    behind = dice.choice((b"", b"", b"\r\n", b"\r\n\r\n", b"x", b"\0" * 100, b"GET", b"GET / HTTP/1.1\r\nHost"))
    writes = tuple(request.write for request in requests if request.write)
    return _case(dice, "HTTP/1.1, pipelined", data + behind, plain=not behind, requests=len(requests), writes=writes)


def _case(
    dice: random.Random, kind: str, data: bytes, *, plain: bool, requests: int = 1, writes: tuple[FuzzWrite, ...] = ()
) -> Case:
    streams = b"/v1/events" in data
    if streams:
        ending = Ending.LINGER
    else:
        ending = dice.choices((Ending.HALF_CLOSE, Ending.LINGER, Ending.ABORT), (85, 5, 10))[0]
    if ending is Ending.ABORT and dice.random() < 0.5:
        data = data[: dice.randrange(len(data) + 1)]
        plain = False
    pieces = split(dice, data, 5) if dice.random() < 0.5 else (data,)
    slow = len(pieces) > 1 and dice.random() < 0.2
    return Case(kind, pieces, ending, slow, plain and not streams, requests, writes)


# --- other protocols --------------------------------------------------------------------------------------------------

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UPGRADE: Final = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
WEBSOCKET: Final = UPGRADE + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
WEBSOCKET_KEY: Final = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
H2C: Final = UPGRADE + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
SETTINGS_BASE64: Final = b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"

GREETINGS: Final = {
    "a TLS greeting": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "a TLS greeting, cut": bytes.fromhex("1603010200010001fc0303"),
    "an SSLv2 greeting": bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0"),
    "an SSH greeting": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a Redis command": b"*1\r\n$4\r\nPING\r\n",
    "an inline Redis command": b"PING\r\n",
    "a memcached command": b"get a\r\n",
    "a PostgreSQL greeting": bytes.fromhex("0000000804d2162f"),
    "a MySQL greeting": bytes.fromhex("200000010d82a2000000000021000000") + bytes(20),
    "a MongoDB command": bytes.fromhex("3a000000010000000000000dd4070000") + bytes(42),
    "an SMB greeting": bytes.fromhex("00000045ff534d4272000000001801c8") + bytes(53),
    "an RDP greeting": bytes.fromhex("0300000b06e00000000000"),
    "a SOCKS5 greeting": b"\x05\x01\x00",
    "a SOCKS4 greeting": b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
    "a PROXY line": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
    "a PROXY v2 header": b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c" + bytes(12),
    "an SMTP greeting": b"EHLO localhost\r\n",
    "an IRC greeting": b"NICK a\r\nUSER a 0 * :a\r\n",
    "an MQTT greeting": bytes.fromhex("100c00044d5154540402003c0000"),
    "a Kafka request": bytes.fromhex("00000014001200000000000100046b63617400"),
    "a DNS question": bytes.fromhex("001d1234010000010000000000000765") + b"xample\x03org\0\0\x01\0\x01",
    "a BitTorrent greeting": b"\x13BitTorrent protocol" + bytes(48),
    "an X11 greeting": b"l\0\x0b\0\0\0\0\0\0\0\0\0",
    "a gopher request": b"/a\r\n",
    "one zero byte": b"\0",
    "many zero bytes": bytes(100_000),
    "many line ends": b"\r\n" * 20_000,
    "nothing": b"",
}


def _large_batches() -> dict[str, tuple[bytes, bytes]]:
    """Bodies just below the bound, of which little can be kept as it is."""
    items = b"\xa1\x65items"
    many = 8_000_000
    head = b"\x9a" + many.to_bytes(4, "big")
    return {
        "8,000,000 empty lists": (CBOR, items + head + b"\x80" * many),
        "8,000,000 empty maps": (CBOR, items + head + b"\xa0" * many),
        "8,000,000 empty texts": (CBOR, items + head + b"\x60" * many),
        "4,000,000 lists of a list": (
            CBOR, items + b"\x9a" + (many // 2).to_bytes(4, "big") + b"\x81\x80" * (many // 2)
        ),
        "a map of 2,000,000": (CBOR, b"\xba" + (many // 4).to_bytes(4, "big") + b"".join(
            b"\x1a" + number.to_bytes(4, "big")[:2] + b"\x00\x00" for number in range(many // 5))),
        "4,000,000 zeros": (JSON, b'{"items": [' + b"0," * (many // 2) + b"0]}"),
        "2,000,000 empty objects": (JSON, b'{"items": [' + b"{}," * (many // 4) + b"{}]}"),
        "2,000,000 empty lists": (JSON, b'{"items": [' + b"[]," * (many // 4) + b"[]]}"),
        "2,000,000 empty texts": (JSON, b'{"items": [' + b'"",' * (many // 4) + b'""]}'),
        "1,000,000 members": (JSON, b"{" + b",".join(b'"%d":0' % number for number in range(many // 12)) + b"}"),
        "a text of escapes": (JSON, b'{"items": "' + b"\\u0000" * (many // 6) + b'"}'),
        "one text of all bytes": (JSON, b'{"items": "' + b"\xc3\xa9" * (many // 2 - 20) + b'"}'),
        "a text of quotes without an end": (JSON, b'"' + b',\\"' * (many // 3)),
        "a text without an end, cut in an escape": (JSON, b'"' + b',\\"' * (many // 3) + b"\\"),
        "nothing but spaces": (JSON, b" " * many),
        "an open bracket": (JSON, b"[" * many),
    }  # fmt: skip


def h2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def other_protocols() -> Iterator[Case]:
    """HTTP/2, upgrades, and the greetings of other protocols."""
    settings = h2_frame(4, 0, 0)
    get = h2_frame(1, 5, 1, bytes.fromhex("828684"))
    post = h2_frame(1, 4, 1, bytes.fromhex("838684"))
    http2 = {
        "a whole request": settings + get,
        "no settings": get,
        "a preface alone": b"",
        "data before headers": settings + h2_frame(0, 0, 1, b"x" * 1000),
        "data behind the end": settings + get + h2_frame(0, 1, 1, b"x" * 1000),
        "much data": settings + post + h2_frame(0, 0, 1, b"x" * 16_384) * 8,
        "bytes in the path": settings + h2_frame(1, 5, 1, bytes.fromhex("82864401ff")),
        "bytes in the method": settings + h2_frame(1, 5, 1, bytes.fromhex("4201ff8684")),
        "CONNECT without a path": settings + h2_frame(1, 5, 1, b"\x42\x07CONNECT\x41\x01a"),
        "a thousand priorities": settings + h2_frame(2, 0, 3, bytes(5)) * 1000,
        "a thousand pings": settings + h2_frame(6, 0, 0, bytes(8)) * 1000,
        "a thousand settings": settings * 1000,
        "a thousand resets": settings + h2_frame(3, 0, 1, bytes(4)) * 1000,
        "a rapid reset": settings + b"".join(
            h2_frame(1, 5, stream, bytes.fromhex("828684")) + h2_frame(3, 0, stream, bytes(4))
            for stream in range(1, 401, 2)
        ),
        "endless continuations": settings + h2_frame(1, 0, 1, bytes.fromhex("82")) + h2_frame(9, 0, 1, b"\x84") * 500,
        "a window of nothing": settings + h2_frame(8, 0, 0, bytes(4)),
        "a window beyond the end": settings + h2_frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,
        "an unknown frame": settings + h2_frame(200, 255, 7, b"x" * 100),
        "a frame of the largest size": settings + b"\xff\xff\xff\0\0\0\0\0\1",
        "settings of a wrong size": h2_frame(4, 0, 0, b"abc"),
        "settings with odd values": h2_frame(4, 0, 0, b"\0\4\xff\xff\xff\xff\0\5\0\0\0\0"),
        "an even stream": settings + h2_frame(1, 5, 2, bytes.fromhex("828684")),
        "headers on stream zero": settings + h2_frame(1, 5, 0, bytes.fromhex("828684")),
        "a push": settings + h2_frame(5, 4, 1, bytes(4) + bytes.fromhex("828684")),
        "a farewell": settings + h2_frame(7, 0, 0, bytes(8)) + get,
        "a header table that is not there": settings + h2_frame(1, 5, 1, b"\xff\xff\xff\xff\x7f"),
        "padding beyond the frame": settings + h2_frame(1, 0x0D, 1, b"\xff\x82"),
    }  # fmt: skip
    for name, data in http2.items():
        yield Case(f"HTTP/2, {name}", (PREFACE, data) if data else (PREFACE,))
    yield Case("HTTP/2, a preface in pieces", tuple(PREFACE[at : at + 1] for at in range(len(PREFACE))), slow=True)
    yield Case("HTTP/2, a preface cut off", (PREFACE[:10],))
    yield Case("HTTP/2, a preface behind a request", (UPGRADE + b"\r\n", PREFACE + settings))
    websockets = {
        "as it should be": WEBSOCKET_KEY + b"\r\n",
        "a byte behind it": WEBSOCKET_KEY + b"\r\nx",
        "a frame behind it": WEBSOCKET_KEY + b"\r\n\x81\x85\0\0\0\0hello",
        "a body": WEBSOCKET_KEY + b"Content-Length: 5\r\n\r\nhello",
        "a chunked body": WEBSOCKET_KEY + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "no key": b"\r\n",
        "a short key": b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n",
        "a key of bytes": b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \xff\xff\r\n\r\n",
        "version 99": WEBSOCKET_KEY.replace(b"13", b"99") + b"\r\n",
        "a version of bytes": WEBSOCKET_KEY.replace(b"13", b"\xff") + b"\r\n",
        "protocols of bytes": WEBSOCKET_KEY + b"Sec-WebSocket-Protocol: caf\xe9\r\n\r\n",
        "extensions of bytes": WEBSOCKET_KEY + b"Sec-WebSocket-Extensions: \xff\xff\r\n\r\n",
        "odd extensions": WEBSOCKET_KEY + b"Sec-WebSocket-Extensions: permessage-deflate;=;;,,\r\n\r\n",
        "a connection of bytes": WEBSOCKET_KEY + b"Connection: caf\xe9\r\n\r\n",
        "twice": WEBSOCKET_KEY * 2 + b"\r\n",
        "a request behind it": WEBSOCKET_KEY + b"\r\n" + UPGRADE + b"\r\n",
    }
    for name, data in websockets.items():
        yield Case(f"WebSocket, {name}", (WEBSOCKET + data,))
        yield Case(f"WebSocket, {name}, in two pieces", (WEBSOCKET, data), slow=True)
    h2c = {
        "as it should be": SETTINGS_BASE64 + b"\r\n",
        "with its preface": SETTINGS_BASE64 + b"\r\n" + PREFACE + settings,
        "with a body": SETTINGS_BASE64 + b"Content-Length: 5\r\n\r\nhello",
        "short settings": b"HTTP2-Settings: AAMA\r\n\r\n",
        "bad settings": b"HTTP2-Settings: \xff!\r\n\r\n",
        "empty settings": b"HTTP2-Settings:\r\n\r\n",
        "settings twice": SETTINGS_BASE64 * 2 + b"\r\n",
        "no settings": b"\r\n",
        "no settings and a preface": b"\r\n" + PREFACE + settings + get,
        "long settings": b"HTTP2-Settings: " + b"AAMAAABk" * 1000 + b"\r\n\r\n",
    }
    for name, data in h2c.items():
        yield Case(f"h2c, {name}", (H2C + data,))
    for name, data in GREETINGS.items():
        yield Case(f"HTTP port, {name}", (data,) if data else ())
    for name, (content_type, body) in _large_batches().items():
        request = FuzzRequest(b"POST", b"/v1/batch", content_type, body)
        yield Case(f"batch, {name}", (spell(request),), plain=True)
    for wait, behind in ((False, b"\r\n"), (True, b"\r\n"), (False, b"\r\n\r\n"), (True, b"x")):
        late = ", later" if wait else ""
        yield Case(
            f"HTTP/1.1, {behind!r} behind the last request{late}",
            (UPGRADE + b"Connection: close\r\n\r\n", behind),
            slow=wait,
        )
