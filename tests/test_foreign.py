"""What a plugin's code may do when it starts, and what is said of it."""

from __future__ import annotations

import importlib
import signal
import time
from pathlib import Path

import pytest

from trikv.foreign import ForeignCodeError, foreign_code


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, limit_s: float = 30) -> str:
    """Import this source; what is said of it."""
    module = f"{tmp_path.name}_foreign"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ForeignCodeError) as error, foreign_code(module, limit_s):
        importlib.import_module(module)
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time\n\ntime.sleep(60)", "did not let go for 0.2 s, at {file}:3 (time.sleep(60))"),
        ("while True:\n    pass", "did not let go for 0.2 s, at {file}:"),
        (
            "import time\ntry:\n    time.sleep(60)\nexcept Exception:\n    pass",
            "did not let go for 0.2 s, at {file}:3 (time.sleep(60))",
        ),
    ],
)
def test_what_hangs_is_ended_and_its_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    told = run(tmp_path, monkeypatch, source, limit_s=0.2)
    assert told.startswith(said.format(file=f"{tmp_path.name}_foreign.py"))


def test_the_line_named_is_the_authors_though_another_module_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(tmp_path, monkeypatch, "import json\n\njson.loads('{')")
    assert told.startswith("JSONDecodeError: ")
    assert told.endswith(f"at {tmp_path.name}_foreign.py:3 (json.loads('{{'))")


def test_an_alarm_that_was_set_before_rings_all_the_same() -> None:
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(ForeignCodeError), foreign_code("nowhere", 0.05):
            time.sleep(60)
        assert not rung
        while not rung:
            signal.pause()
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupt_from_the_keyboard_passes() -> None:
    with pytest.raises(KeyboardInterrupt), foreign_code("nowhere"):
        raise KeyboardInterrupt
