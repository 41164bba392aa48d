"""A sample's layer: by its innermost frame that has one; system calls by their line; other threads by nothing."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path

import pytest
import trio

import trikv_quorum
from bench.layers import ROOT, SYSTEM, Spent, layer_of, put_into, shorten, sum_up, to_speedscope
from trikv.net import sockets

TRIO = Path(trio.__file__).parent
LOOP = f"run ({TRIO}/_core/_run.py:2543);unrolled_run ({TRIO}/_core/_run.py:2866)"
SERVE = f"LaneConnection.run ({ROOT}/trikv/web/lane.py:1)"


def frame(path: str, line: int = 1) -> str:
    return f"function ({ROOT}/{path}:{line})"


@pytest.mark.parametrize(
    ("innermost", "layer"),
    [
        (frame("trikv/web/lane.py"), "lane"),
        (frame("trikv/web/keys.py"), "handler"),
        (frame("trikv/coordinator/coordinator.py"), "coordinator"),
        (frame("trikv/coordinator/replicas.py"), "strategy and rounds"),
        (frame("plugins/trikv_quorum.py"), "strategy and rounds"),
        (f"Quorum.write ({trikv_quorum.__file__}:1)", "strategy and rounds"),
        (frame("trikv/net/link.py"), "link and frames"),
        (frame("trikv/core/frames.py"), "link and frames"),
        (frame("trikv/core/record.py"), "coordinator"),
        (frame("trikv/worker/worker.py"), "worker and storage"),
        (frame("trikv/daemon.py"), "the rest of the node"),
        (f"reschedule ({TRIO}/_core/_run.py:1)", "trio"),
        ("__init__ (<attrs generated methods outcome._impl.Value>:15)", "trio"),
    ],
)
def test_a_sample_counts_for_the_layer_of_its_innermost_frame(innermost: str, layer: str) -> None:
    assert layer_of(f"{LOOP};{SERVE};{innermost}") == layer


def test_what_has_no_layer_counts_for_its_caller() -> None:
    library = f"formatdate ({Path(inspect.getfile(json)).parent.parent}/email/utils.py:1)"
    assert layer_of(f"{LOOP};{SERVE};{library}") == "lane"


def test_a_line_that_writes_to_a_socket_is_a_system_call_and_the_one_below_is_not() -> None:
    lines, first = inspect.getsourcelines(sockets.write_now)
    writes = next(number for number, line in enumerate(lines, first) if "os.write" in line)
    at_write, below = (f"write_now ({sockets.__file__}:{number})" for number in (writes, writes + 1))
    assert layer_of(f"{LOOP};{SERVE};{at_write}") == SYSTEM
    assert layer_of(f"{LOOP};{SERVE};{below}") == "link and frames"


def test_trios_own_wait_for_events_is_a_system_call() -> None:
    file = TRIO / "_core" / "_io_epoll.py"
    [polls] = [number for number, line in enumerate(file.read_text().splitlines(), 1) if "_epoll.poll(" in line]
    assert layer_of(f"run ({TRIO}/_core/_run.py:2543);get_events ({file}:{polls})") == SYSTEM


def test_other_threads_count_for_nothing_and_counts_are_added() -> None:
    lines = [f"{LOOP};{SERVE} 3", f"{LOOP};{SERVE};{frame('trikv/web/keys.py')} 2", f"{LOOP};{SERVE} 1"]
    lines.append("_bootstrap (/usr/lib/python3.11/threading.py:1);wait (/usr/lib/python3.11/threading.py:2) 50")
    assert sum_up("\n".join(lines)) == {"lane": 4, "handler": 2}


def test_the_kernels_time_is_system_calls_and_the_rest_is_shared_out() -> None:
    samples = Counter({"lane": 30, "trio": 10, SYSTEM: 500})
    assert Spent(80.0, 20.0).by_layer(samples) == {"lane": 60.0, "trio": 20.0, SYSTEM: 20.0}
    with pytest.raises(SystemExit, match="take more"):
        Spent(80.0, 20.0).by_layer(Counter({SYSTEM: 500}))


def test_paths_begin_with_their_package_once_they_are_shortened() -> None:
    told = shorten(f"{LOOP};{SERVE};{frame('plugins/trikv_quorum.py')};f (<string>:1) 7")
    assert told == (
        "run (trio/_core/_run.py:2543);unrolled_run (trio/_core/_run.py:2866);"
        "LaneConnection.run (trikv/web/lane.py:1);function (trikv_quorum.py:1);f (<string>:1) 7"
    )


def test_speedscope_is_given_each_frame_once_and_each_stack_with_its_weight() -> None:
    document = json.loads(json.dumps(to_speedscope("name", "a;b 2\na;c 3\n")))
    assert document["shared"]["frames"] == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    [profile] = document["profiles"]
    assert (profile["samples"], profile["weights"], profile["endValue"]) == ([[0, 1], [0, 2]], [2, 3], 5)


def test_a_budget_takes_the_place_of_the_former_one_and_of_nothing_else() -> None:
    readme = "before\n<!-- budget -->\n{}\n<!-- end of budget -->\nafter\n"
    assert put_into(readme.format("old\n| table |"), "new") == readme.format("new")
    with pytest.raises(SystemExit, match="<!-- end of budget -->"):
        put_into("before\n<!-- budget -->\nafter\n", "new")


def test_the_readme_has_a_place_for_the_budget() -> None:
    assert "\nnew\n" in put_into((ROOT / "bench" / "README.md").read_text(), "new")
