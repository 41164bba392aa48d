"""The log: never in the way, never a flood, and nothing in it but text."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import os
import subprocess
import sys
import threading
from copy import copy
from typing import Any

import pytest
import structlog

from trikv.core import serving
from trikv.core.record import make_epoch
from trikv.core.text import escape, last_words
from trikv.logs import (
    TEXT_CHARS_MAX,
    TRACEBACK_CHARS_MAX,
    BackgroundHandler,
    Limiter,
    make_formatter,
    start_log,
)
from trikv.testing.processes.process import wait_until


def record(created_s: float, message: str = "peer %s left", *arguments: object) -> logging.LogRecord:
    made = logging.LogRecord("trikv", logging.INFO, "file", 1, message, arguments, None)
    made.created = created_s
    return made


def passed(limiter: Limiter, made: logging.LogRecord) -> str | None:
    return made.getMessage() if limiter.filter(made) else None


def test_what_repeats_is_held_back_and_counted() -> None:
    limiter = Limiter(burst=2, period_s=10)
    told = [passed(limiter, record(100.0 + n, "peer %s left", n)) for n in range(5)]
    assert told == ["peer 0 left", "peer 1 left", None, None, None]
    assert passed(limiter, record(104.0, "another kind")) == "another kind"
    assert passed(limiter, record(110.0, "peer %s left", 5)) == "peer 5 left (and 3 more like it)"
    assert passed(limiter, record(110.0, "peer %s left", 6)) == "peer 6 left"
    assert passed(limiter, record(110.0, "peer %s left", 7)) is None


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    limiter = Limiter(burst=1, period_s=10)
    assert passed(limiter, record(100.0, "it")) == "it"
    assert passed(limiter, record(50.0, "it")) == "it"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünd more", "plain, ünd more"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\u202eright to left", r"\u202eright to left"),
        ("\ud800", r"\ud800"),
        ("\0", r"\x00"),
    ],
)
def test_what_is_no_text_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


def written(style: str, *records: logging.LogRecord, **about: object) -> str:
    """What is written of these records."""
    stream = io.StringIO()
    formatter = make_formatter(style)
    formatter.about = lambda: about
    handler = BackgroundHandler(stream, formatter)
    for each in records:
        handler.handle(each)
    handler.close()
    return stream.getvalue()


def object_of(text: str) -> dict[str, Any]:
    """The one line of that text, which is an object."""
    (line,) = text.splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


def failed() -> logging.LogRecord:
    try:
        raise ValueError("first\x1b[2J\nsecond")
    except ValueError as error:
        made = record(1.0, "peer %s\n%s", "w-1\x07", "x")
        made.exc_info = (ValueError, error, error.__traceback__)
    return made


def test_for_a_person_a_message_is_one_line_and_a_traceback_is_not() -> None:
    first, *trace = written("console", failed(), node="w-1", term=3).splitlines()
    assert r"peer w-1\x07\nx" in first
    assert "node=w-1" in first
    assert "term=3" in first
    assert trace[0].startswith("Traceback")
    assert trace[-2:] == [r"ValueError: first\x1b[2J", "second"]


def test_for_a_program_a_line_is_an_object_also_with_a_traceback() -> None:
    told = object_of(written("json", failed(), role="worker", node="w-1", term=3))
    exception = told.pop("exception")
    assert told == {
        "timestamp": "1970-01-01T00:00:01.000Z", "level": "info", "logger": "trikv", "event": r"peer w-1\x07\nx",
        "role": "worker", "node": "w-1", "term": 3,
    }  # fmt: skip
    assert exception.splitlines()[0] == "Traceback (most recent call last):"
    assert exception.splitlines()[-2:] == [r"ValueError: first\x1b[2J", "second"]


class Hostile:
    """An argument whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def with_fields(**fields: object) -> logging.LogRecord:
    made = record(1.0, "it")
    made.trikv_fields = fields
    return made


ATTACKS = [
    pytest.param(record(1.0, "%s", "\x1b]0;owned\x07\x9b2J\r\n{}\u2028\u202e"), id="a terminal's commands"),
    pytest.param(record(1.0, '%s", "level": "error', '"}'), id="an object's marks"),
    pytest.param(record(1.0, "%s", "\ud800\0\x7f"), id="what is no text"),
    pytest.param(record(1.0, "%s", "x" * 10_000_000), id="ten million characters"),
    pytest.param(record(1.0, "%s", "\x1b" * 1_000_000), id="a million escapes"),
    pytest.param(record(1.0, "%d", "no number"), id="arguments that do not fit"),
    pytest.param(record(1.0, "%s %s", 1), id="too few arguments"),
    pytest.param(record(1.0, "%s", Hostile()), id="an argument that raises"),
    pytest.param(record(1.0, Hostile()), id="a message that raises"),  # type: ignore[arg-type]
    pytest.param(record(1.0, "%s", 10**5000), id="a number that is too long for text"),
    pytest.param(with_fields(x=Hostile()), id="a field that raises"),
    pytest.param(with_fields(**{"a\nb\x1b": "c\nd\x1b"}), id="a field of escapes"),
    pytest.param(with_fields(timestamp=1, level="x", logger=2, event=3, exception="x", stack="y"), id="names of ours"),
    pytest.param(with_fields(x=float("nan"), y=float("inf"), z=10**5000, w={"deep": [1]}), id="what JSON has not"),
    pytest.param(with_fields(**{f"f{n}": "x" * 100_000 for n in range(1000)}), id="a thousand large fields"),
]


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_is_logged_is_one_short_line_of_printable_text(attack: logging.LogRecord, style: str) -> None:
    text = written(style, copy(attack), record(2.0, "the next"))
    first, second = text.removesuffix("\n").split("\n")
    assert "the next" in second
    assert first.isprintable()
    assert len(first) < 35 * TEXT_CHARS_MAX * 6
    if style == "json":
        told = json.loads(first, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert {"timestamp", "level", "logger", "event"} <= told.keys()
        assert all(len(str(value)) < 11 * TEXT_CHARS_MAX for value in told.values())


def test_of_a_long_text_the_beginning_is_told_and_of_a_traceback_the_end() -> None:
    told = object_of(written("json", record(1.0, "%s", "x" * 10_000)))
    assert told["event"] == "x" * TEXT_CHARS_MAX + "... (10,000 characters)"
    made = record(1.0, "it")
    error = ValueError("y" * 100_000 + "the end")
    made.exc_info = (ValueError, error, None)
    exception = object_of(written("json", made))["exception"]
    assert len(exception) < 2 * TRACEBACK_CHARS_MAX
    assert exception.startswith("Traceback")
    assert exception.endswith("the end")


def test_what_the_task_serves_is_on_its_lines() -> None:
    def serve() -> str:
        serving.request_id.set("r-7")
        serving.epoch.set(make_epoch(3, 2))
        return written("json", record(1.0, "it"))

    assert object_of(contextvars.copy_context().run(serve)).items() >= {"request": "r-7", "epoch": "3.2"}.items()
    assert object_of(written("json", record(1.0, "it"))).keys().isdisjoint({"request", "epoch"})


def test_a_line_about_a_node_that_cannot_be_asked_is_told_without_it() -> None:
    stream = io.StringIO()
    formatter = make_formatter("json")
    formatter.about = lambda: {"node": 1 / 0}
    handler = BackgroundHandler(stream, formatter)
    handler.handle(record(1.0, "it"))
    handler.close()
    assert object_of(stream.getvalue())["event"] == "it"


def test_lines_of_structlog_come_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    handler = BackgroundHandler(stream, make_formatter("json"))
    monkeypatch.setattr(logging.getLogger("a.plugin"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("a.plugin"), "propagate", False)
    logger = structlog.get_logger("a.plugin")
    logger.warning("100% done", name="x", args=(1,), key=b"\x00", event_id=7)
    handler.close()
    told = object_of(stream.getvalue())
    assert told.items() >= {"event": "100% done", "level": "warning", "logger": "a.plugin", "event_id": 7}.items()
    assert (told["name"], told["args"], told["key"]) == ("x", "(1,)", r"b'\x00'")


@pytest.mark.parametrize(
    ("style", "terminal", "line"),
    [
        (None, True, "error: no\\nroom"),
        ("console", False, "error: no\\nroom"),
        (None, False, None),
        ("json", True, None),
    ],
)
def test_why_a_node_ends_is_a_plain_line_for_a_person(style: str | None, terminal: bool, line: str | None) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream, root = Stream(), logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log = start_log(style, stream=stream)
        log.say_error("no\nroom")
        log.close()
    finally:
        root.handlers[:], _ = before
        root.setLevel(before[1])
        logging.captureWarnings(False)
    assert last_words(stream.getvalue()) == "no\\nroom"
    if line is None:
        assert object_of(stream.getvalue()).items() >= {"event": "no\\nroom", "level": "error"}.items()
    else:
        assert stream.getvalue() == line + "\n"


def test_rich_is_not_imported_for_it() -> None:
    program = (
        "import sys; from trikv.logs import make_formatter; make_formatter('console'); print('rich' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


@pytest.mark.parametrize("error", [OSError("disk is full"), ValueError("closed"), BrokenPipeError()])
def test_a_stream_that_takes_nothing_harms_nobody(error: Exception) -> None:
    handler = BackgroundHandler(Broken(error), make_formatter("json"))
    for number in range(100):
        handler.handle(record(1.0, "%d", number))
    handler.close()
    assert not handler._thread.is_alive()


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_pipe_that_nobody_reads_holds_up_nobody(style: str) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as pipe:
        handler = BackgroundHandler(pipe, make_formatter(style), lines_max=10)
        for number in range(5_000):
            handler.handle(record(1.0, "%s", f"{number} " + "x" * 100))
        heard: list[str] = []
        thread = threading.Thread(target=lambda: heard.extend(reader))
        thread.start()
        wait_until(lambda: any("x" * 100 in line for line in heard), what="what was written is read")

        def says_how_many() -> bool:
            handler.handle(record(2.0, "again"))
            return any("were dropped" in line for line in heard)

        wait_until(says_how_many, what="the log says what is missing")
        handler.close()
        pipe.close()
        thread.join()
    assert "x" * 100 in heard[0]
