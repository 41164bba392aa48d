"""The scenarios in `scripts/` end as they say; and whoever writes one that cannot be run is told where and why.

    TRIKV_REWRITE_SCRIPTS=1 python -m pytest tests/sim/test_scripts.py

writes into them the outcomes that there are now: then read the difference before you believe it.
"""

import os
from pathlib import Path

import pytest

from tests.sim.conftest import SCRIPTS, read_script
from trikv.api import Strategy
from trikv.testing.sim.script import play, read
from trikv.testing.sim.script_world import ScriptError

REWRITE = "TRIKV_REWRITE_SCRIPTS"


@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("*.txt")), ids=lambda file: file.stem)
def test_a_scenario_ends_as_it_says(file: Path, strategies: dict[str, Strategy]) -> None:
    script = read_script(file)
    played = play(script, strategies[script.mode])
    if os.environ.get(REWRITE):
        file.write_text(played.text)
    assert played.text == file.read_text(), f"if that is right now: {REWRITE}=1 writes it down"
    assert played.findings == []


HEAD = "cluster quorum, 4 workers\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "s: there is nothing in it"),
        ("# a comment\n", "s: there is nothing in it"),
        ("crash m1\n", "s, line 1: the first line is `cluster MODE, N workers`"),
        ("cluster quorum, 3 workers, 4 replicas", "s, line 1: 4 replicas cannot be had of 3 workers"),
        ("cluster quorum, 10 workers", "s, line 1: the first line is"),
        (HEAD + HEAD, "s, line 2: `cluster quorum, 4 workers` is none of the lines that there are"),
        (HEAD + "\n# x\nfrobnicate m1", "s, line 4: `frobnicate m1` is none of the lines that there are"),
        (HEAD + "crash m4", "s, line 2: there is no 'm4' in this cluster, only m1, m2, m3, master, s1"),
        (HEAD + "crash", "s, line 2: `crash`: whom?"),
        (HEAD + "reconfigure m1 m1", "s, line 2: `reconfigure m1 m1`: one of them twice"),
        (HEAD + "client a put k nothing -> ?", "s, line 2: a client can `put KEY VALUE`, "),
        (HEAD + "freeze master", "s, line 2: `freeze master`: that can befall workers only"),
        (HEAD + "hold m1", "s, line 2: 'm1' is not of the form FROM>TO"),
        (HEAD + "hold m1>m1", "s, line 2: 'm1>m1' is not of the form FROM>TO"),
        (HEAD + "hold m1>x", "s, line 2: there is no 'x' in this cluster"),
        (HEAD + "wait a bit", "s, line 2: `wait a bit` is none of the lines that there are"),
        (HEAD + "wait -1", "s, line 2: '-1' is not a number of seconds"),
        (HEAD + "client a put k", "s, line 2: a client can `put KEY VALUE`, "),
        (HEAD + "client a steal k", "s, line 2: a client can `put KEY VALUE`, "),
        (HEAD + "client a get k", "s, line 2: `client a get k`: say `-> OUTCOME` after it"),
        (HEAD + "client a get k ->", "s, line 2: `client a get k`: say `-> OUTCOME` after it"),
        (HEAD + "client a begins get k -> v", "s, line 2: `client a begins get k`: nothing can stand after `->`"),
    ],
)
def test_what_is_no_script_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read("s", text)
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("client a is told -> ?", "s, line 2: client a has no request under way"),
        ("client a begins get k\nclient a get k -> ?", "s, line 3: client a has a request under way already"),
        ("client a cas k old new -> ?", "s, line 2: clients last saw nothing under k, not old"),
        ("crash m1\ncrash m1", "s, line 3: m1 is off already"),
        ("start m1", "s, line 2: m1 is on already"),
        ("release m1>m2", "s, line 2: m1>m2 is not held"),
        ("hold m1>m2\nset aside m1>m2", "s, line 3: no m1 that is dead has anything under way to m2"),
        ("deliver m1>m2", "s, line 2: nothing from m1 to m2 was set aside"),
        ("reconfigure m1 m2", "s, line 2: the document can be changed by hand only while the master is off"),
    ],
)
def test_what_cannot_be_done_at_that_point_is_refused(
    text: str, complaint: str, strategies: dict[str, Strategy]
) -> None:
    script = read("s", HEAD + text)
    with pytest.raises(ScriptError) as caught:
        play(script, strategies[script.mode])
    assert str(caught.value).startswith(complaint)


def test_outcomes_are_filled_in_and_the_rest_stays_as_it_is(strategies: dict[str, Strategy]) -> None:
    text = "# why\ncluster quorum, 3 workers\n\nclient  a put k v1   -> no idea\nwait 1\nclient a get k->?\n"
    script = read("s", text)
    played = play(script, strategies[script.mode])
    assert played.text == (
        "# why\ncluster quorum, 3 workers\n\nclient  a put k v1   -> committed\nwait 1\nclient a get k-> v1\n"
    )
