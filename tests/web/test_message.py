"""How requests are read and problems written, with no server."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.errors import KINDS, Refused, TrikvError
from trikv.core.text import to_base64
from trikv.web.message import (
    Request,
    integer_of,
    members_of,
    parse_json,
    parse_query,
    percent_decode,
    prefers_json,
    problem_response,
    read_bytes,
    require,
    spell,
    timeout_of,
)


@given(st.binary())
def test_every_byte_survives_percent_encoding(data: bytes) -> None:
    assert percent_decode("".join(f"%{byte:02x}" for byte in data).encode(), "it") == data


@pytest.mark.parametrize("raw", [b"%", b"a%", b"%1", b"%zz", b"%%41", b"100%\n"])
def test_half_an_escape_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused, match="no percent-encoding"):
        percent_decode(raw, "it")


@given(st.binary())
def test_base64_is_read_in_both_alphabets_with_and_without_padding(data: bytes) -> None:
    for spelt in (base64.urlsafe_b64encode(data), base64.b64encode(data)):
        assert read_bytes(spelt, "base64", "it") == read_bytes(spelt.rstrip(b"="), "base64", "it") == data


@pytest.mark.parametrize("raw", [b"a", b"ab!d", b"a b=", b"\xff\xff\xff\xff"])
def test_what_is_not_base64_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused, match="not base64"):
        read_bytes(raw, "base64", "it")


def test_bytes_are_no_text() -> None:
    with pytest.raises(Refused, match="encoding=base64"):
        read_bytes(b"\xff", "text", "the key")


@given(st.binary())
def test_a_json_member_gives_the_bytes_back(data: bytes) -> None:
    ((name, text),) = spell("key", data, "text").items()
    assert (text.encode() if name == "key" else base64.urlsafe_b64decode(text)) == data
    assert spell("key", data, "base64") == {"key": to_base64(data)}


def test_a_query_is_read_as_forms_send_it() -> None:
    assert parse_query(b"a=x+y&b=%2B%00&c=", "a", "b", "c") == {"a": b"x y", "b": b"+\0", "c": b""}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"tiemout=1", "no parameter 'tiemout'; there are key, timeout"),
        (b"key=1&key=2", "'key' is given twice"),
        (b"key=%g0", "parameter 'key' has '%g0'"),
        (b"&", "no parameter ''"),
        (b"%ff=1", "no parameter"),
    ],
)
def test_a_query_is_read_strictly(raw: bytes, said: str) -> None:
    with pytest.raises(Refused, match="parameter") as refusal:
        parse_query(raw, "key", "timeout")
    assert said in refusal.value.detail


def test_all_that_is_missing_is_named() -> None:
    with pytest.raises(Refused, match="missing: key, value"):
        require({}, "key", "value")


@pytest.mark.parametrize("text", [b"0", b"-1", b"60.1", b"nan", b"inf", b"", b"1s", b"\xff", b"1e400"])
def test_a_timeout_has_bounds(text: bytes) -> None:
    with pytest.raises(Refused, match="timeout must be"):
        timeout_of({"timeout": text})


def test_a_timeout_is_in_seconds() -> None:
    assert timeout_of({}) is None
    assert timeout_of({"timeout": b"0.25"}) == 0.25
    assert timeout_of({"timeout": b"60"}) == 60


@pytest.mark.parametrize("text", [b"0", b"1001", b"-5", b"1.5", b"", b"1_0", "²".encode(), b"9" * 5000])
def test_a_limit_has_bounds(text: bytes) -> None:
    with pytest.raises(Refused, match=r"limit must be a whole number from 1 to 1,000"):
        integer_of({"limit": text}, "limit", default=100, most=1000)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "there is no body; send a JSON object"),
        (b'{\n "mode": quorum"}', "at line 2, column 10"),
        (b'{"a": 1, "a": 2}', "two members of one name"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"\xff\xfe\xfd", "the body is not UTF-8: byte 0 cannot be"),
        (b"[" * 60_000, "the body is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the body is not JSON"),
        (b'{"a": -' + b"9" * 100 + b"}", "an integer has more than 100 characters"),
    ],
)
def test_bad_json_is_refused_with_where(body: bytes, said: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse_json(Request("PUT", b"/", body=body))
    assert refusal.value.kind.code == "bad_request"
    assert said in refusal.value.detail


def test_json_under_another_name_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        parse_json(Request("PUT", b"/", headers={"content-type": "application/x-www-form-urlencoded"}, body=b"{}"))
    assert refusal.value.kind.code == "bad_media"


def test_members_are_checked_by_name() -> None:
    with pytest.raises(Refused, match="the body lacks mode"):
        members_of({}, "the body", required=["mode"])
    with pytest.raises(Refused, match="has 'mood', which means nothing here"):
        members_of({"mode": 1, "mood": 2}, "the body", required=["mode"])
    with pytest.raises(Refused, match="must be an object"):
        members_of([], "the body", required=["mode"])


def test_a_refusal_names_few_of_many_strange_members() -> None:
    with pytest.raises(
        Refused, match="has '0', '1', '2', '3', '4', '5', '6', '7' and 2 others, which means nothing here"
    ):
        members_of({str(number): None for number in range(10)}, "the body", required=[])
    with pytest.raises(Refused, match=r"has 'n{100}', which"):
        members_of({"n" * 100_000: None}, "the body", required=[])


@pytest.mark.parametrize("code", KINDS)
def test_every_error_is_a_problem_document(code: str) -> None:
    answer = problem_response(TrikvError(code, "what happened", allow=["GET", "PUT"]))
    document = json.loads(answer.body)
    kind = KINDS[code]
    assert answer.status == document["status"] == kind.http
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["code"] == code
    assert document["outcome"] == kind.outcome.value
    assert document["detail"] == "what happened"
    assert document["title"] == kind.title
    assert document["remedy"] == kind.remedy
    assert ("retry-after" in answer.headers) == (kind.http == 503)
    assert (answer.headers.get("connection") == "close") == (kind.http in (408, 413))
    assert answer.headers.get("allow") == ("GET, PUT" if kind.http == 405 else None)


@pytest.mark.parametrize(
    ("accept", "json_first"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json, text/plain, */*", True),
        ("text/html, application/json;q=0.9", False),
        ("text/plain;q=0.5, application/json;q=0.7", True),
        ("application/json;q=0", False),
        ("application/json;q=nan", False),
        (";;,,q=", False),
    ],
)
def test_json_is_preferred_where_it_is_the_first_of_the_best(accept: str | None, json_first: bool) -> None:
    headers = {} if accept is None else {"accept": accept}
    assert prefers_json(Request("GET", b"/get", headers=headers)) is json_first


@pytest.mark.parametrize("escape", [rb"\ud800", rb"\uDFFF", rb"\udc00\ud800"])
def test_half_a_surrogate_pair_is_no_text(escape: bytes) -> None:
    with pytest.raises(Refused, match="surrogate"):
        parse_json(Request("POST", b"/", body=b'{"address": "' + escape + b':1"}'))
    assert parse_json(Request("POST", b"/", body=rb'"\ud83d\ude00"')) == "\U0001f600"


def test_millions_of_values_are_refused_before_they_are_read() -> None:
    for body in (b"[" + b"[]," * 2_000_000 + b"1]", b'{"a":' * 100_000, b"[" + b"1," * 100_000 + b"1]"):
        with pytest.raises(Refused, match="more than 65,536 values"):
            parse_json(Request("POST", b"/", body=body))


def test_what_stands_in_a_string_is_no_value() -> None:
    text = '[{"\\",' * 50_000
    assert parse_json(Request("POST", b"/", body=json.dumps([text, text]).encode())) == [text, text]


@pytest.mark.parametrize("end", [b"", b"\\"])
def test_a_text_without_an_end_is_read_once(end: bytes) -> None:
    """Were each of its quotes tried as the beginning of a text, eight megabytes would take days."""
    body = b'"' + b',\\"' * 2_000_000 + end
    with pytest.raises(Refused):
        parse_json(Request("POST", b"/v1/batch", b"", {}, body))


def test_texts_are_values() -> None:
    with pytest.raises(Refused, match="values"):
        parse_json(Request("POST", b"/v1/batch", b"", {}, b"[" + b'"",' * 200_000 + b'""]'))
