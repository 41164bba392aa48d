"""Seeded connections of plain and odd requests, cut anywhere: both lanes send the same bytes back, and do the same.

One connection begins in the express lane. Another has asked for `/livez` before, so Hypercorn has it, and knows nothing
of the lane. Both are sent the same, in the same pieces, from the same values on. Then the answers are equal byte for
byte, and so are the values afterwards, and the numbers of requests and operations. A model says besides what plain
requests must be answered.

The examples are the same at every run; `HYPOTHESIS_PROFILE=explore` takes many more, from a seed that a failure names.
"""

import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from itertools import zip_longest

import pytest
import trio
from trio.testing import MockClock

from tests.web.lanes import HOST, OTHER, Sent, Served, answers_in, comparable
from trikv.coordinator.coordinator import Coordinator
from trikv.core.errors import Outcome
from trikv.testing.fuzz import web_cases
from trikv.testing.fuzz.case import mutate, split
from trikv.testing.inprocess import InProcessCluster

EXPLORES = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
CASES = 20_000 if EXPLORES else 70
SEED = random.getrandbits(32) if EXPLORES else 1

KEYS = (b"fuzz-1", b"fuzz-2", b"fuzz-3")
BEFORE = {b"fuzz-1": b"before", b"fuzz-2": b"before"}
PLAIN_HEADERS = (
    b"User-Agent: fuzz", b"accept: */*", b"ACCEPT: application/json", b"Accept-Encoding: gzip", b"Accept-Language:",
    b"Connection: keep-alive", b"Content-Type: text/plain", b"If-Match: *", b"If-None-Match: *", b"if-match: \"1.1-0\"",
    b"Origin: http://localhost", b"Sec-Fetch-Site: none", b"Sec-Fetch-Mode: cors", b"Referer: http://localhost/x",
    b"User-Agent:\t a\tb \t", b"If-None-Match: \"x\", *", b"If-Match: x",
)  # fmt: skip
ODD_HEADERS = (
    OTHER, b"Connection: close", b"Connection: Close", b"Connection:", b"Connection: keep-alive, close",
    b"Connection: upgrade\r\nUpgrade: websocket", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
    b"Expect: 100-continue", b"Expect: other", b"TE: trailers", b"Accept: a\r\n b", b"Accept: a\r\n\tb",
    b"Accept: a\r\nAccept: b", b"Accept : a", b" Accept: a", b"Accept", b":", b"Accept: \0", b"Accept: \x7f",
    b"Accept: \xe9", b"Accept: a\nUser-Agent: b", b"Accept: a\rb", b"A" * 33 + b": x", b"User-Agent: " + b"x" * 9_000,
    b"Host: localhost", b"Host: evil.example", b"Origin: null", b"Sec-Fetch-Site: cross-site", b"X_Y: z",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Content-Length: 0", b"Content-Length: 5, 5",
    b"Content-Length: 1000000", b"Content-Length: 9999999", b"Content-Length: 0x5", b"Content-Length: -1",
    b"Content-Length: +5", b"Content-Length:", b"Content-Length: 00005", b"Content-Length: 65537",
    b"\r\n".join(b"Accept-Language-%c: x" % letter for letter in b"abcdefghijklmnopqrst"),
)  # fmt: skip
BEHIND = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\0", b"G", b"GET /v1/kv/", b"garbage" * 20, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x00\xc8", b"get /v1/kv/fuzz-1 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /v1/kv/fuzz-1\r\n\r\n",
    b"DELETE /v1/kv/fuzz-1 HTTP/1.1\nHost: localhost\n\n", b"DELETE /v1/kv/fuzz-1 HTTP/1.1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"DELETE  /v1/kv/fuzz-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
)  # fmt: skip
METHODS = (b"get", b"Put", b"POST", b"HEAD", b"OPTIONS", b"PATCH")
PREFIXES = (b"http://localhost", b"http://[", b"//", b"*", b"x", b"http:", b"/")
FRAMINGS = tuple(each for each in web_cases.FRAMINGS if 0 < len(each) < 1_000)
CHUNKS = tuple(each for each in (*web_cases.CHUNKS, b"hello") if len(each) < 1_000)
VERSIONS = (b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"HTTP/1.10", b"")


@pytest.fixture
def clock() -> MockClock:
    """Virtual time, for tests that name it. It passes when nothing happens for a moment: the sockets are real ones."""
    return MockClock(autojump_threshold=0.05)


@pytest.fixture
async def served(nursery: trio.Nursery, clock: MockClock) -> AsyncIterator[Served]:
    served = Served(await InProcessCluster.start(nursery))
    await nursery.start(served.run)
    yield served
    await served.end()


class Done:
    """What became of one case in one lane."""

    def __init__(
        self,
        received: bytes,
        values: dict[bytes, bytes | None],
        answered: Counter[tuple[str, str, int]],
        outcomes: Counter[Outcome],
    ) -> None:
        self.received = comparable(received)
        self.values = values
        self.answered = answered
        self.outcomes = outcomes


async def values_in(coordinator: Coordinator) -> dict[bytes, bytes | None]:
    return {key: record.value for key, record in (await coordinator.scan(limit=1_000)).items}


async def play(served: Served, pieces: tuple[bytes, ...], *, detour: bool) -> Done:
    coordinator = served.cluster.coordinator
    for key in (await values_in(coordinator)).keys() - set(BEFORE):
        await coordinator.delete(key)
    for key, value in BEFORE.items():
        await coordinator.put(key, value)
    answered, outcomes = Counter(served.services.answered), Counter(coordinator.outcomes)
    received = await served.ask(*pieces, detour=detour)
    answered, outcomes = served.services.answered - answered, Counter(coordinator.outcomes) - outcomes
    if detour:
        answered -= Counter({("GET", "/livez", 200): 1})
    return Done(received, await values_in(coordinator), answered, outcomes)


async def compare(served: Served, pieces: tuple[bytes, ...]) -> Done:
    slow = await play(served, pieces, detour=True)
    express = await play(served, pieces, detour=False)
    for one, other in zip_longest(express.received.split(b"HTTP/1.1 "), slow.received.split(b"HTTP/1.1 ")):
        assert one == other
    assert express.values == slow.values
    assert express.answered == slow.answered
    assert express.outcomes == slow.outcomes
    assert not served.lane.connections
    return express


def plain(dice: random.Random, number: int) -> Sent:
    key = dice.choice(KEYS)
    path = b"/v1/kv/" + key
    if dice.random() < 0.15:
        path += dice.choice((b"?timeout=1", b"?encoding=text", b"?x=1", b"?encoding=base64", b"?timeout=x", b"#", b"%"))
    headers = tuple({each.partition(b":")[0].lower(): each for each in dice.choices(PLAIN_HEADERS, k=2)}.values())
    headers = (HOST, *headers[: dice.choice((0, 0, 1, 2))])
    value = dice.choice((b"", b"v%d" % number, b"v%d\r\n\r\nGET / HTTP/1.1\r\n\r\n" % number, b"v%d" % number * 900))
    return dice.choice(
        (
            Sent(b"GET", path, None, headers),
            Sent(b"GET", path, b"" if dice.random() < 0.5 else None, headers),
            Sent(b"PUT", path, value, headers),
            Sent(b"PUT", path, value, headers),
            Sent(b"PUT", path, None, headers),
            Sent(b"DELETE", path, None, headers),
            Sent(b"GET", b"/get?key=" + key, None, headers),
            Sent(b"GET", b"/put?key=%s&value=v%d" % (key, number), None, headers),
            Sent(b"GET", b"/put?key=%s&value=v%d" % (key, number), dice.choice((b"", b"body")), headers),
            batch(dice, number),
        )
    )


def batch(dice: random.Random, number: int) -> Sent:
    items = []
    for _ in range(dice.choice((0, 1, 2, 3, 70))):
        op = dice.choice((b"get", b"put", b"put", b"delete", b"odd" if dice.random() < 0.1 else b"get"))
        value = b', "value": "v%d"' % number if op == b"put" else b""
        items.append(b'{"op": "%b", "key": "%b"%b}' % (op, dice.choice((*KEYS, b"")), value))
    target = b"/v1/batch" + dice.choice((b"", b"", b"", b"?", b"?timeout=1", b"?x=1"))
    kind = dice.choice((b"application/json", b"application/json", b"application/cbor", b"text/plain"))
    body = b'{"items": [%b]}' % b", ".join(items)
    return Sent(b"POST", target, dice.choice((body, body, body, body[:-1], None)), (HOST, b"Content-Type: " + kind))


def odd(dice: random.Random, number: int) -> bytes:
    request = plain(dice, number)
    match dice.randrange(8):
        case 0 | 1:
            return request.having(dice.choice(ODD_HEADERS)).spelt
        case 2:
            return mutate(dice, request.spelt, web_cases.TOKENS)
        case 3:
            return request.spelt.replace(b"HTTP/1.1", dice.choice(VERSIONS), 1)
        case 4:
            return request._replace(body=None).having(dice.choice(FRAMINGS)).spelt + dice.choice(CHUNKS)
        case 5:
            return request._replace(method=dice.choice(METHODS)).spelt
        case 6:
            return request._replace(target=dice.choice(PREFIXES) + request.target).spelt
        case _:
            return dice.choice(BEHIND)


def case(dice: random.Random) -> tuple[bytes, ...]:
    """The pieces of what is sent on one connection."""
    many = dice.random() < 0.03
    requests = []
    for number in range(dice.randint(100, 400) if many else dice.choice((1, 1, 2, 3, 5))):
        is_odd = dice.random() < (0.01 if many else 0.5)
        requests.append(odd(dice, number) if is_odd else plain(dice, number).spelt)
    sent = b"".join(requests)
    if dice.random() < 0.1:
        sent = sent[: dice.randrange(len(sent)) + 1]
    return split(dice, sent, dice.choice((2, 2, 5, 20))) or (sent,)


PUT = Sent(b"PUT", b"/v1/kv/fuzz-1", b"after")
ODD = {
    **{header: PUT.having(header).spelt for header in ODD_HEADERS},
    **{version: PUT.spelt.replace(b"HTTP/1.1", version) for version in VERSIONS},
    **{framing: PUT._replace(body=None).having(framing).spelt + b"hello" for framing in FRAMINGS},
    **{method: PUT._replace(method=method).spelt for method in METHODS},
    **{prefix: PUT._replace(target=prefix + PUT.target).spelt for prefix in PREFIXES},
    **{behind: behind for behind in BEHIND},
}


async def test_each_odd_request_is_treated_alike_between_plain_ones(served: Served, clock: MockClock) -> None:
    before, behind = Sent(b"PUT", b"/v1/kv/fuzz-2", b"after").spelt, Sent(b"GET", b"/v1/kv/fuzz-1").spelt
    for name, sent in ODD.items():
        try:
            await compare(served, (before + sent + behind,))
        except BaseException as error:
            error.add_note(ascii(name[:200]))
            raise


async def test_what_comes_back_does_not_depend_on_the_lane(served: Served, clock: MockClock) -> None:
    for number in range(CASES):
        pieces = case(random.Random(f"{SEED}-{number}"))
        try:
            with trio.fail_after(300):
                await compare(served, pieces)
        except BaseException as error:
            error.add_note(f"seed {SEED}, case {number}: {pieces!r}"[:5_000])
            raise


PIPELINED = (
    Sent(b"PUT", b"/v1/kv/fuzz-3", b"a\r\n\r\nb", (HOST, b"If-None-Match: *")),
    Sent(b"DELETE", b"/v1/kv/fuzz-3", None, (HOST, b"If-Match: *")),
    Sent(b"PUT", b"/v1/kv/fuzz-3", b"c", (HOST, OTHER, b"If-None-Match: *")),
    Sent(b"DELETE", b"/v1/kv/fuzz-3", None, (HOST, b"If-Match: *")),
)


async def test_requests_may_be_cut_at_every_byte(served: Served, clock: MockClock) -> None:
    """None of them could be done twice, since each has a condition that it ends itself."""
    sent = b"".join(each.spelt for each in PIPELINED)
    whole = await compare(served, (sent,))
    assert whole.received.count(b"HTTP/1.1 204 ") == whole.outcomes[Outcome.COMMITTED] == len(PIPELINED)
    for at in range(1, len(sent)):
        assert comparable(await served.ask(sent[:at], sent[at:])) == whole.received, at
    one_by_one = await compare(served, tuple(sent[at : at + 1] for at in range(len(sent))))
    assert one_by_one.received == whole.received


@pytest.mark.parametrize("odd_at", [None, 0, 1, 150, 299])
async def test_hundreds_of_requests_are_each_answered_once_and_in_order(
    served: Served, clock: MockClock, odd_at: int | None
) -> None:
    """`odd_at`: the request at which Hypercorn takes over; what it does not know was answered already."""
    dice = random.Random(odd_at)
    values: dict[bytes, bytes] = {}
    requests, expected = [], []
    for number in range(300):
        key = b"model-%d" % dice.randrange(5)
        match dice.randrange(4):
            case 0:
                values[key] = b"%d" % number
                requests.append(Sent(b"PUT", b"/v1/kv/" + key, values[key]))
                expected.append((204, b""))
            case 1:
                values.pop(key, None)
                requests.append(Sent(b"DELETE", b"/v1/kv/" + key))
                expected.append((204, b""))
            case _:
                requests.append(Sent(b"GET", dice.choice((b"/v1/kv/", b"/get?key=")) + key))
                expected.append((200, values[key]) if key in values else (404, b""))
        if number == odd_at:
            requests[-1] = requests[-1].having(OTHER)
    sent = b"".join(each.spelt for each in requests)
    answers = answers_in(await served.ask(*split(dice, sent, 10)))
    assert [(a.status, b"" if a.status == 404 else a.body) for a in answers] == expected
    assert served.services.answered.total() == served.cluster.coordinator.outcomes[Outcome.COMMITTED] == 300
