"""The log: never in the way, never a flood, and nothing in it but text."""

from __future__ import annotations

import io
import logging
import os
import threading

import pytest

from trikv.core.text import escape
from trikv.logs import BackgroundHandler, Limiter
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


def test_a_message_is_one_line_and_a_traceback_is_not() -> None:
    stream = io.StringIO()
    handler = BackgroundHandler(stream)
    try:
        raise ValueError("first\x1b[2J\nsecond")
    except ValueError as error:
        failed = record(1.0, "peer %s\n%s", "w-1\x07", "x")
        failed.exc_info = (ValueError, error, error.__traceback__)
    handler.handle(failed)
    handler.close()
    first, *trace = stream.getvalue().splitlines()
    assert first.endswith(r"peer w-1\x07\nx")
    assert trace[0].startswith("Traceback")
    assert trace[-2:] == [r"ValueError: first\x1b[2J", "second"]


def test_a_pipe_that_nobody_reads_holds_up_nobody() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as pipe:
        handler = BackgroundHandler(pipe, lines_max=10)
        for number in range(5_000):
            handler.handle(record(1.0, "%s", f"{number} " + "x" * 100))
        heard: list[str] = []
        thread = threading.Thread(target=lambda: heard.extend(reader))
        thread.start()
        wait_until(lambda: heard and heard[-1].startswith(tuple("0123456789")), what="what was written is read")

        def says_how_many() -> bool:
            handler.handle(record(2.0, "again"))
            return any("were dropped" in line for line in heard)

        wait_until(says_how_many, what="the log says what is missing")
        handler.close()
        pipe.close()
        thread.join()
    assert heard[0].endswith("x\n")
