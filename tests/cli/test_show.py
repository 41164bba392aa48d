"""What servers, workers and file names say reaches the terminal as text, and is never obeyed by it."""

from __future__ import annotations

import pytest

from trikv.cli.shared import say_error
from trikv.cli.show import readable_key, show

ODD = "w-1\x1b]0;owned\x07\nsecond\u202e"
SHOWN = r"w-1\x1b]0;owned\x07\nsecond\u202e"


def test_cells_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    show(("id", "note"), [(ODD, "plain")])
    assert capsys.readouterr().out == f"{SHOWN}\tplain\n"


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(ODD)
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


def test_a_key_is_shown_on_one_line_whatever_its_bytes_are() -> None:
    assert readable_key(b"a\n\xff") == r"a\n\xff"
