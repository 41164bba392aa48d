"""Keys and values through the whole of a cluster: what goes in comes out, and what is wrong is said."""

import base64
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_from_bytes

import httpx
import pytest

from tests.web.conftest import Ask

TEXT_KEYS = [
    "a", "a/b", "a//b", "/x", "//", "..", "../..", ".", "a/../b", "a/", "%", "100%41", "a b", "a+b", "?", "#",
    "a?b=c&d",     "ключ", "鍵/🔑", "e\u0301", "é", "new\nline", "nul\0", "\r\n", "\\", "'\"<>", "k" * 4096, "ü" * 2048,
]  # fmt: skip

EVERY_BYTE = bytes(range(256))


def in_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def url_of(key: bytes) -> str:
    return f"/v1/kv/{in_base64(key)}?encoding=base64"


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == answer.status_code
    return answer.status_code, document["code"], document["outcome"]


@pytest.mark.parametrize("key", TEXT_KEYS, ids=lambda key: ascii(key[:12]))
def test_every_text_is_a_key_of_its_own(ask: Ask, key: str) -> None:
    value = f"the value of {key}".encode()
    assert ask("PUT", "/v1/kv/" + quote(key, safe=""), value).status == 204
    assert ask("GET", "/v1/kv/" + quote(key, safe="")).body == value
    assert ask("GET", url_of(key.encode())).body == value


def test_slashes_and_dots_are_sent_as_they_are(ask: Ask) -> None:
    for target in ("/v1/kv/s//../t", "/v1/kv//s", "/v1/kv/s/"):
        assert ask("PUT", target, target.encode()).status == 204
    for target in ("/v1/kv/s//../t", "/v1/kv//s", "/v1/kv/s/"):
        assert ask("GET", target).body == target.encode()
    assert ask("GET", "/v1/kv/s%2F").body == b"/v1/kv/s/"


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 1024 * 1024])
def test_values_come_back_byte_for_byte(web: httpx.Client, size: int) -> None:
    value = EVERY_BYTE if size == 256 else random.Random(size).randbytes(size)
    put = web.put("/v1/kv/bytes", content=value, headers={"content-type": "text/html"})
    assert (put.status_code, put.content) == (204, b"")
    assert "content-length" not in put.headers
    got = web.get("/v1/kv/bytes")
    assert got.content == value
    assert got.headers["etag"] == put.headers["etag"]
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["x-content-type-options"] == "nosniff"


def test_binary_keys_do_not_collide(web: httpx.Client) -> None:
    keys = [b"\xff", b"\xfe", b"\xef\xbf\xbd", EVERY_BYTE, b"\xff/\xff"]
    for key in keys:
        assert web.put(url_of(key), content=key).status_code == 204
    assert [web.get(url_of(key)).content for key in keys] == keys


def test_bytes_in_a_path_are_refused_and_the_other_form_is_named(ask: Ask, web: httpx.Client) -> None:
    told = ask("PUT", "/v1/kv/%ff", b"x")
    assert told.status == 400
    assert b"encoding=base64" in told.body
    assert web.get(url_of(b"\xff")).content != b"x"


def test_head_is_a_get_without_the_value(web: httpx.Client) -> None:
    put = web.put("/v1/kv/head", content=b"12345")
    head = web.head("/v1/kv/head")
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["content-length"], head.headers["etag"]) == ("5", put.headers["etag"])
    assert web.head("/v1/kv/never there").status_code == 404


def test_delete_can_be_repeated(web: httpx.Client) -> None:
    web.put("/v1/kv/gone", content=b"x")
    first, second = web.delete("/v1/kv/gone"), web.delete("/v1/kv/gone")
    assert (first.status_code, second.status_code) == (204, 204)
    assert first.headers["etag"] != second.headers["etag"]
    assert problem(web.get("/v1/kv/gone")) == (404, "not_found", "committed")


# --- conditions -------------------------------------------------------------------------------------------------------


def test_compare_and_set(web: httpx.Client) -> None:
    web.delete("/v1/kv/cas")
    absent, present = {"if-none-match": "*"}, {"if-match": "*"}
    assert problem(web.put("/v1/kv/cas", content=b"0", headers=present)) == (412, "precondition_failed", "refused")
    first = web.put("/v1/kv/cas", content=b"1", headers=absent)
    assert first.status_code == 204
    assert problem(web.put("/v1/kv/cas", content=b"2", headers=absent)) == (412, "precondition_failed", "refused")

    seen = first.headers["etag"]
    second = web.put("/v1/kv/cas", content=b"2", headers={"if-match": f'"0.0-0", {seen}'})
    assert second.status_code == 204
    for stale in (seen, f"W/{second.headers['etag']}", '"of another maker"'.replace(" ", "-")):
        assert web.put("/v1/kv/cas", content=b"3", headers={"if-match": stale}).status_code == 412
    assert web.get("/v1/kv/cas").content == b"2"

    assert web.delete("/v1/kv/cas", headers={"if-match": seen}).status_code == 412
    assert web.delete("/v1/kv/cas", headers={"if-match": second.headers["etag"]}).status_code == 204
    assert web.put("/v1/kv/cas", content=b"4", headers={"if-match": second.headers["etag"]}).status_code == 412


def test_get_if_changed(web: httpx.Client) -> None:
    old = web.put("/v1/kv/cached", content=b"1").headers["etag"]
    for same in (old, f"W/{old}", "*", f'"other", {old}'):
        unchanged = web.get("/v1/kv/cached", headers={"if-none-match": same})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", old)
    web.put("/v1/kv/cached", content=b"1")
    assert web.get("/v1/kv/cached", headers={"if-none-match": old}).status_code == 200
    assert web.get("/v1/kv/cached", headers={"if-match": old}).status_code == 412
    assert web.get("/v1/kv/never there", headers={"if-none-match": "*"}).status_code == 404


@pytest.mark.parametrize(
    "headers", [{"if-match": "1.1-1"}, {"if-none-match": ""}, {"if-match": "*", "if-none-match": "*"}]
)
def test_a_malformed_condition_is_never_ignored(web: httpx.Client, headers: dict[str, str]) -> None:
    assert problem(web.put("/v1/kv/cond", content=b"x", headers=headers)) == (400, "bad_request", "refused")
    assert web.get("/v1/kv/cond").status_code == 404


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "code", "said"),
    [
        ("PUT", "/v1/kv/", "bad_key", "0 bytes"),
        ("GET", "/v1/kv/?encoding=base64", "bad_key", "0 bytes"),
        ("PUT", "/v1/kv/" + "k" * 4097, "bad_key", "4,097 bytes"),
        ("GET", "/v1/kv/%zz", "bad_request", "no percent-encoding"),
        ("GET", "/v1/kv/!!!!?encoding=base64", "bad_request", "not base64"),
        ("GET", "/v1/kv/a?encoding=hex", "bad_request", "encoding must be text or base64"),
        ("GET", "/v1/kv/a?timeout=0", "bad_request", "timeout must be"),
        ("GET", "/v1/kv/a?timeout=61", "bad_request", "timeout must be"),
        ("PUT", "/v1/kv/a?tiemout=1", "bad_request", "no parameter 'tiemout'"),
        ("GET", "/v1/kv?limit=0", "bad_request", "limit must be"),
        ("GET", "/v1/kv?limit=1001", "bad_request", "limit must be"),
        ("GET", "/v1/kv?after=~", "bad_request", "after is not base64"),
        ("GET", "/v1/kv?prefix=%ff", "bad_request", "prefix is not UTF-8"),
        ("GET", "/v1/kv?values=perhaps", "bad_request", "values must be true or false"),
        ("GET", "/put", "bad_request", "missing: key, value"),
        ("GET", "/put?key=a", "bad_request", "missing: value"),
        ("GET", "/get", "bad_request", "missing: key"),
        ("GET", "/get?key=", "bad_key", "0 bytes"),
        ("GET", "/get?key=a&value=b", "bad_request", "no parameter 'value'"),
    ],
)
def test_bad_requests(ask: Ask, method: str, target: str, code: str, said: str) -> None:
    told = ask(method, target, b"x" if method == "PUT" else None)
    document = httpx.Response(told.status, content=told.body).json()
    assert (told.status, document["code"], document["outcome"]) == (400, code, "refused")
    assert said in document["detail"]


def test_a_value_beyond_the_limit_and_the_next_request(web: httpx.Client) -> None:
    web.put("/v1/kv/large", content=b"before")
    too_large = bytes(1024 * 1024 + 1)

    def in_pieces() -> Iterator[bytes]:
        for start in range(0, len(too_large), 65_536):
            yield too_large[start : start + 65_536]

    for content in (too_large, in_pieces()):
        refused = web.put("/v1/kv/large", content=content)
        assert problem(refused) == (413, "value_too_large", "refused")
        assert refused.headers["connection"] == "close"
        assert web.get("/v1/kv/large").content == b"before"


# --- scans ------------------------------------------------------------------------------------------------------------


def pages(web: httpx.Client, **query: str) -> list[dict[str, Any]]:
    """The items of all pages, which must each be as long as allowed but for the last."""
    items: list[dict[str, Any]] = []
    while True:
        page = web.get("/v1/kv", params=query).raise_for_status().json()
        items += page["items"]
        if page["after"] is None:
            return items
        query["after"] = page["after"]


def test_a_scan_lists_each_live_key_once_in_byte_order(web: httpx.Client) -> None:
    keys = [b"scan/" + suffix for suffix in (b"a", b"a\0", b"\xff", b"\xff\xfe", b"z", "é".encode(), b"", b"/", b"b")]
    for key in keys:
        web.put(url_of(key), content=key).raise_for_status()
    web.delete(url_of(b"scan/b"))
    keys.remove(b"scan/b")
    for limit in ("1", "2", "100"):
        items = pages(web, prefix=in_base64(b"scan/"), encoding="base64", limit=limit)
        assert [base64.urlsafe_b64decode(item["key"]) for item in items] == sorted(keys)
        assert [base64.urlsafe_b64decode(item["value"]) for item in items] == sorted(keys)
    etags = [item["etag"] for item in pages(web, prefix="scan/")]
    assert etags == [web.get(url_of(key)).headers["etag"].strip('"') for key in sorted(keys)]


def test_a_scan_in_text_marks_what_is_no_text(web: httpx.Client) -> None:
    web.put(url_of(b"text/1"), content=b"\xff")
    web.put(url_of(b"text/2\xff"), content="größe".encode())
    first, second = pages(web, prefix="text/", limit="1")
    assert (first["key"], first["value_base64"]) == ("text/1", "_w==")
    assert (second["key_base64"], second["value"]) == (in_base64(b"text/2\xff"), "größe")
    assert set(pages(web, prefix="text/1", values="false")[0]) == {"key", "etag"}


def test_a_prefix_that_nothing_has(web: httpx.Client) -> None:
    assert web.get("/v1/kv", params={"prefix": "nothing has this"}).json() == {"items": [], "after": None}


# --- the older forms --------------------------------------------------------------------------------------------------


JSON = {"accept": "application/json"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_put_and_get_by_query(web: httpx.Client, method: str) -> None:
    key, value = f"old/{method} ü", "a+b & c"
    put = web.request(method, "/put", params={"key": key, "value": value})
    assert put.text == "OK (Mode: quorum)\n"
    assert put.headers["content-type"] == "text/plain; charset=utf-8"
    got = web.get("/get", params={"key": key})
    assert got.content == value.encode()
    assert got.headers["etag"] == put.headers["etag"]
    assert problem(web.get("/get", params={"key": key + "?"})) == (404, "not_found", "committed")


def test_put_and_get_by_query_in_json(web: httpx.Client) -> None:
    put = web.get("/put", params={"key": "old", "value": "v"}, headers=JSON)
    assert put.json() == {"outcome": "committed", "key": "old", "etag": put.headers["etag"].strip('"')}
    assert web.get("/get?key=old", headers=JSON).json() == {"key": "old", "value": "v", "etag": put.json()["etag"]}


def test_put_by_query_takes_every_byte(ask: Ask, web: httpx.Client) -> None:
    assert ask("GET", "/put?key=bytes&value=" + quote_from_bytes(EVERY_BYTE, safe="")).status == 200
    assert web.get("/v1/kv/bytes").content == EVERY_BYTE
    assert web.get("/get?key=bytes").content == EVERY_BYTE
    assert base64.urlsafe_b64decode(web.get("/get?key=bytes", headers=JSON).json()["value_base64"]) == EVERY_BYTE


def test_preconditions_hold_in_the_older_forms(web: httpx.Client) -> None:
    absent = {"if-none-match": "*"}
    assert web.get("/put?key=once&value=1", headers=absent).status_code == 200
    refused = web.get("/put?key=once&value=2", headers=absent)
    assert problem(refused) == (412, "precondition_failed", "refused")
    got = web.get("/get?key=once")
    assert got.content == b"1"
    for accept in ({}, JSON):
        unchanged = web.get("/get?key=once", headers={"if-none-match": got.headers["etag"], **accept})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert web.get("/get?key=once", headers={"if-match": '"1.1-0"', **accept}).status_code == 412


def test_put_by_query_refuses_a_body(web: httpx.Client) -> None:
    assert problem(web.post("/put?key=a&value=b", content=b"c")) == (400, "bad_request", "refused")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/v1%2Fkv%2Fa", "/v%31/kv/a", "/%761/kv/a"])
def test_a_route_is_spelt_out(web: httpx.Client, method: str, path: str) -> None:
    assert problem(web.request(method, path)) == (404, "no_route", "refused")
