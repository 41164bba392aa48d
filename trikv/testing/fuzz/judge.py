"""The rules, and whether the cluster kept them.

Over HTTP: every answer is well-formed HTTP/1.1, read as strictly as h11 can. There is no 5xx but 503, 504 and 507, and
each of these says an outcome. A plain request is answered. A refused write is never found, a committed write always is.
Of each process: it lives, counts as up, answers an ordinary put and get in time, keeps its memory and its log below a
bound, and writes no traceback.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import h11

from trikv.core.errors import Outcome
from trikv.testing.fuzz.case import Case, Ending, FuzzWrite
from trikv.testing.fuzz.drive import Heard

ALLOWED_5XX: Final = (503, 504, 507)
MEMORY_BYTES_MAX: Final = 512 * 1024 * 1024
"""Resident, at the peak. A node takes 60 to 80 MiB. A frame or a batch at its cap of 8 MiB takes a few times its bytes
while it is read, and several arrive at once."""
LOG_BYTES_MAX: Final = 1024 * 1024  # of one process in one run: lines that repeat are limited in rate
_SHOWN_BYTES_MAX: Final = 2000
_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)


class FuzzFinding(NamedTuple):
    """A rule that was broken, and the bytes that broke it."""

    rule: str
    detail: str
    kind: str
    sent: bytes

    def __str__(self) -> str:
        sent = repr(self.sent)
        if len(sent) > _SHOWN_BYTES_MAX:
            sent = f"{sent[:_SHOWN_BYTES_MAX]}... ({len(self.sent):,} bytes)"
        return f"{self.rule}: {self.detail} [{self.kind}]\n    {sent}"


class FuzzAnswer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    whole: bool


class NotHttp(Exception):
    """What was heard is not HTTP/1.1."""


def parse_answers(data: bytes, *, head: bool) -> list[FuzzAnswer]:
    """The final answers in `data`; the last one may be cut off. `head`: some may answer a HEAD, and lack a body.

    Raises:
      NotHttp: see there.
    """
    answers: list[FuzzAnswer] = []
    while data:
        try:
            answer, rest = _parse_one(data, b"GET")
            if head and (not answer.whole or (rest and not rest.startswith(b"HTTP/1.1 "))):
                answer, rest = _parse_one(data, b"HEAD")
        except h11.RemoteProtocolError as error:
            raise NotHttp(f"{error}: {data[:200]!r}") from error
        answers.append(answer)
        data = rest
    return answers


def _parse_one(data: bytes, method: bytes) -> tuple[FuzzAnswer, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"localhost")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    status, headers, body, whole = 0, {}, bytearray(), False
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            break
        if isinstance(event, h11.Response):
            status, headers = event.status_code, dict(event.headers)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            whole = True
            break
    return FuzzAnswer(status, headers, bytes(body), whole), client.trailing_data[0] if whole else b""


@dataclass(frozen=True, slots=True)
class FuzzVerdict:
    """What one connection showed. No write of `refused` may ever be found, and each of `committed` must be."""

    statuses: tuple[int, ...] = ()
    findings: tuple[FuzzFinding, ...] = ()
    refused: tuple[FuzzWrite, ...] = ()
    committed: tuple[FuzzWrite, ...] = ()


def judge_web(case: Case, heard: Heard) -> FuzzVerdict:
    sent = case.sent
    findings: list[FuzzFinding] = []

    def broke(rule: str, detail: str) -> None:
        findings.append(FuzzFinding(rule, detail, case.kind, sent))

    try:
        answers = parse_answers(bytes(heard.data), head=b"HEAD" in sent or b"CONNECT" in sent)
    except NotHttp as error:
        broke("an answer is HTTP/1.1", str(error))
        return FuzzVerdict(findings=tuple(findings))
    for answer in answers:
        if answer.status >= 500:
            if answer.status not in ALLOWED_5XX:
                broke("no 5xx but 503, 504 and 507", f"{answer.status} {answer.body[:300]!r}")
            elif answer.whole and answer.body and b"/readyz" not in sent and _outcome_of(answer) not in _OUTCOMES:
                broke("a 5xx says an outcome", f"{answer.status} {answer.body[:300]!r}")
        if not answer.whole and case.ending is Ending.HALF_CLOSE and heard.ended:
            broke("an answer is whole", f"{answer.status}, cut off after {len(answer.body)} bytes of its body")
    if heard.late:
        broke("a connection ends", f"it was open after all that was waited for; {len(answers)} answers so far")
    statuses = tuple(answer.status for answer in answers)
    in_order = case.plain and len(answers) == case.requests
    hung_up = bool(answers) and answers[-1].headers.get(b"connection") == b"close"  # what is behind it is not read
    if case.plain and case.ending is Ending.HALF_CLOSE and not (in_order or hung_up or heard.late):
        broke("a plain request is answered", f"{case.requests} requests, answers: {statuses}")
    committed: tuple[FuzzWrite, ...] = ()
    refused: tuple[FuzzWrite, ...] = ()
    if in_order and case.requests == 1 and 200 <= statuses[0] < 300:
        committed = case.writes
    if statuses and all(_is_refusal(answer) for answer in answers) and len(answers) >= case.requests:
        refused = case.writes
    return FuzzVerdict(statuses, tuple(findings), refused, committed)


def _is_refusal(answer: FuzzAnswer) -> bool:
    return 400 <= answer.status < 500 or answer.status in (503, 507)


def _outcome_of(answer: FuzzAnswer) -> object:
    try:
        document = json.loads(answer.body)
    except ValueError:
        return None
    return document.get("outcome") if isinstance(document, dict) else None


def judge_found(
    found: dict[str, str | None], refused: Sequence[FuzzWrite], committed: Sequence[FuzzWrite]
) -> list[FuzzFinding]:
    """`found`: by key, the answer of a read, for the keys that could be read."""
    findings = [
        FuzzFinding(
            "a refused write is never found", f"{write.key} holds {found[write.key]!r}", "a write", write.key.encode()
        )
        for write in refused
        if found.get(write.key) is not None
    ]
    return findings + [
        FuzzFinding(
            "a committed write is found", f"{write.key} holds {found[write.key]!r}", "a write", write.key.encode()
        )
        for write in committed
        if write.key in found and found[write.key] != write.value
    ]


def judge_log(name: str, log: Path) -> list[FuzzFinding]:
    text = log.read_bytes()
    findings = []
    if (at := text.find(b"Traceback")) >= 0:
        detail = text[max(0, at - 300) : at + 3000].decode(errors="replace")
        findings.append(FuzzFinding("no traceback in a log", f"{name}: {detail}", "a log", b""))
    if len(text) > LOG_BYTES_MAX:
        findings.append(FuzzFinding("a log is bounded", f"{name}: {len(text):,} bytes", "a log", text[-300:]))
    return findings


def memory_of(pid: int) -> tuple[int, int] | None:
    """Resident bytes of a process, now and at its peak. None if it has ended, or if the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in fields:
        return None
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024
