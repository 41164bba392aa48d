"""How the command line lays out a cluster; and that a terminal never obeys what servers and file names say."""

from __future__ import annotations

import pytest
from rich.text import Text

from tests.states import masters_of, progress_of, state_of, worker_of
from trikv.cli.shared import say_error
from trikv.cli.show import WORKER_COLUMNS, mode_rows, readable_key, show, summary_rows, table, worker_rows

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


def test_the_summary_of_a_cluster_that_is_whole() -> None:
    assert summary_rows(state_of()) == [
        ("cluster", "c-1, trikv 1, term 3, up 1 h 1 min"),
        ("mode", "m (CP): a committed write is on at least 2 of 3 replicas"),
        ("price", "much"),
        ("partitions", "all 1,024 settled, all 1,024 readable, all 1,024 writable"),
        ("operations", "1 committed, 2 refused, 3 unknown"),
    ]


def test_the_summary_of_a_cluster_in_trouble() -> None:
    forming = {"detail": "2 more needed"}
    rows = dict(summary_rows(state_of(1000, 0, 256, forming=forming, progress=progress_of(24))))
    assert rows["forming"] == "2 more needed"
    assert rows["partitions"] == "all 1,024 settled, 1,000 of 1,024 readable, 0 of 1,024 writable"
    assert rows["too few"] == "256 of 1,024 partitions have fewer than 3 replicas for now"
    assert rows["healing"] == (
        "settling: 24 of 1,024 partitions left, 1,200 keys compared and 2.5 MB moved, about 1 min 1 s to go"
    )


def test_a_row_for_each_worker() -> None:
    workers = [
        worker_of(note="it waits", full=True, labels={"zone": "a", "disk": "ssd"}),
        worker_of("down", "lost", keys=None),
    ]
    first, second = worker_rows(state_of(workers=workers))
    assert first == (
        "w-1", "a:1", "up", "member", "1,000", "2", "1", "memory", "disk=ssd, zone=a",
        "it waits; full: it takes no key beyond its 1,000",
    )  # fmt: skip
    assert second == ("w-1", "a:1", "down", "lost", "?", "2", "1", "memory", "", "")


def test_a_row_for_each_mode_and_the_one_in_force_is_marked() -> None:
    assert mode_rows(state_of()) == [("*", "m", "CP", "much", "now"), (" ", "other", "AP", "more", "never")]


def test_on_a_terminal_a_word_has_the_colour_of_its_tone() -> None:
    drawn = table(WORKER_COLUMNS, worker_rows(state_of(workers=[worker_of("down", "spare", "suspect")])))
    styles = [cell.style for column in drawn.columns for cell in column.cells if isinstance(cell, Text)]
    assert styles == ["", "", "red", "cyan", "", "", "", "", "", "yellow"]


def test_the_summary_names_each_master_and_their_store() -> None:
    rows = summary_rows(state_of(masters=masters_of(silent=1)))
    assert ("master", "h:8000 leads since today, in term 4") in rows
    assert ("master", "h:8002 stands by") in rows
    assert ("document", "in etcd, 3 endpoints, of which 1 cannot be reached (e:0)") in rows
    assert "master" not in dict(summary_rows(state_of(masters=None)))
