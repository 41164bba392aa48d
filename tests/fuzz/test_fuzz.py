"""The fuzz by itself: cases that follow from the seed, and a judge that sees what it is there for."""

import random
from pathlib import Path

import cbor2
import pytest

from trikv.core.calls import Op, vitals_from_wire
from trikv.core.session import Greeted, Hello, Session
from trikv.testing.fuzz import rpc_cases, web_cases
from trikv.testing.fuzz.case import Case, Ending, FuzzWrite
from trikv.testing.fuzz.drive import Heard
from trikv.testing.fuzz.judge import LOG_BYTES_MAX, judge_found, judge_log, judge_web
from trikv.testing.fuzz.rpc_cases import FuzzedNode

PEER = FuzzedNode("worker", "cluster", "w-1", "life", 7, 1 << 32)
WRITE = FuzzWrite("k", "value")
PUT = Case("a put", (b"PUT /v1/kv/k HTTP/1.1\r\n\r\n",), plain=True, writes=(WRITE,))
NO_CONTENT = b"HTTP/1.1 204 \r\n\r\n"
PROBLEM = b'{"outcome": "unknown"}'


def answer(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def heard(data: bytes, *, late: bool = False) -> Heard:
    return Heard(bytearray(data), ended=not late, late=late)


def rules(case: Case, data: bytes) -> list[str]:
    return [finding.rule for finding in judge_web(case, heard(data)).findings]


def test_cases_follow_from_the_seed() -> None:
    def all_of(seed: int) -> list[Case]:
        dice = random.Random(seed)
        return [
            *(web_cases.request_case(dice, number, "p") for number in range(300)),
            *rpc_cases.strangers(dice, PEER),
            *(case for case in rpc_cases.after_greeting(dice, PEER) if "000,000" not in case.kind),
        ]

    assert all_of(1) == all_of(1)
    assert all_of(1) != all_of(2)


def test_there_are_a_hundred_kinds_of_what_is_not_http_1() -> None:
    dice = random.Random(1)
    kinds = {case.kind for case in (*web_cases.other_protocols(), *rpc_cases.strangers(dice, PEER))}
    assert len(kinds) > 200


@pytest.mark.parametrize(("op", "behind"), [("DIGEST", 0), ("LIST", 4)])
def test_a_call_that_names_a_partition_many_times_is_otherwise_well_formed(op: str, behind: int) -> None:
    """Else it would be refused for another reason, and show nothing."""
    kind = f"{op} of 100,000 times one partition"
    case = next(case for case in rpc_cases.after_greeting(random.Random(1), PEER) if case.kind.endswith(kind))
    kind_of_frame, [[_, budget_ms, number, *arguments]] = cbor2.loads(case.pieces[1][4:])
    assert (kind_of_frame, budget_ms, number) == (1, 1000, int(Op[op]))
    assert arguments[0] == "life"
    assert arguments[1] == [[7, 1]] * 100_000
    assert len(arguments) == 2 + behind


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (answer(500, PROBLEM), "no 5xx but 503, 504 and 507"),
        (answer(501), "no 5xx but 503, 504 and 507"),
        (answer(504, b"oops"), "a 5xx says an outcome"),
        (answer(413, b"too large")[:-1], "an answer is whole"),
        (b"HTTP/9 hello\r\n\r\n", "an answer is HTTP/1.1"),
        (b"", "a plain request is answered"),
        (NO_CONTENT * 2, "a plain request is answered"),
    ],
)
def test_a_broken_rule_is_seen(data: bytes, rule: str) -> None:
    assert rule in rules(PUT, data)


@pytest.mark.parametrize("data", [NO_CONTENT, answer(400, b"{}"), answer(504, PROBLEM), answer(503, PROBLEM)])
def test_what_keeps_the_rules_is_left_alone(data: bytes) -> None:
    assert rules(PUT, data) == []


def test_an_answer_to_head_has_no_body() -> None:
    case = Case("head", (b"HEAD / HTTP/1.1\r\n\r\n",), plain=True)
    assert rules(case, answer(200, b"x" * 9)[:-9]) == []


def test_a_connection_that_we_left_owes_nothing() -> None:
    case = Case("gone", (b"GET / HTTP/1.1\r\n\r\n",), Ending.ABORT)
    assert rules(case, answer(200, b"x" * 9)[:-3]) == []


def test_a_write_is_held_to_its_answer() -> None:
    assert judge_web(PUT, heard(NO_CONTENT)).committed == (WRITE,)
    assert judge_web(PUT, heard(answer(400, b"{}"))).refused == (WRITE,)
    unknown = judge_web(PUT, heard(answer(504, PROBLEM)))
    assert (unknown.committed, unknown.refused) == ((), ())
    assert judge_found({"k": "value"}, [], [WRITE]) == []
    assert judge_found({"k": None}, [WRITE], []) == []
    assert [finding.rule for finding in judge_found({"k": None}, [], [WRITE])] == ["a committed write is found"]
    assert [finding.rule for finding in judge_found({"k": "value"}, [WRITE], [])] == ["a refused write is never found"]


def test_a_log_is_held_to_its_bounds(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("a line\n")
    assert judge_log("node", log) == []
    log.write_text("Traceback (most recent call last):\n" + "x" * LOG_BYTES_MAX)
    assert [finding.rule for finding in judge_log("node", log)] == ["no traceback in a log", "a log is bounded"]


@pytest.mark.parametrize("role", ["master", "worker"])
def test_greetings_and_vitals_are_those_of_the_present_protocol(role: str) -> None:
    """Else every case behind a greeting would be turned away, and show nothing."""
    node = Session(Hello(role, "n", "life", "cluster"), dialer=False)
    (event,) = node.receive(rpc_cases.frame(rpc_cases.greeting_fields(PEER._replace(role=role))))
    assert isinstance(event, Greeted)
    vitals = vitals_from_wire(cbor2.loads(cbor2.dumps(rpc_cases.good_vitals("p-1", "3/m-1"))))
    assert (vitals.process, vitals.master) == ("p-1", "3/m-1")
