"""Schedules that a person saved: what a file may say, what is refused and how, and that all of it can be played."""

from __future__ import annotations

import base64
import json
import string
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trikv.api import Strategy
from trikv.coordinator.coordinator import RESERVED
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX
from trikv.core.ring import PARTITION_COUNT
from trikv.testing.certify.failure import draw_failure
from trikv.testing.judge.history import Finding, Kind
from trikv.testing.processes.cluster import LocalCluster
from trikv.testing.sim import FaultKind, Verdict, run_schedule, schedulefile
from trikv.testing.sim.plan import Expected
from trikv.testing.sim.schedulefile import (
    CLIENTS_MAX,
    FILE_BYTES_MAX,
    PAUSE_S,
    STEPS_MAX,
    SavedFault,
    SavedRequest,
    SavedSchedule,
    SavedSwitch,
    ScheduleFileError,
    Step,
    format_schedule,
    parse_schedule,
    read_schedule,
    write_schedule,
)
from trikv.timeline import to_text

SCHEDULES = Path(__file__).parent.parent / "certify" / "schedules"
GET = {"at_s": 1.0, "request": "get", "key": "k"}


def document(*steps: object, **fields: object) -> dict[str, Any]:
    return {"trikv_schedule": 1, "workers": 5, "replicas": 3, "mode": "quorum", "steps": [GET, *steps], **fields}


def parse(found: object) -> SavedSchedule:
    return parse_schedule(json.dumps(found).encode())


def example() -> SavedSchedule:
    """The one that the module's documentation shows."""
    told = schedulefile.__doc__ or ""
    text = told[told.index('    {"trikv_schedule"') :]
    return parse_schedule(text[: text.index("]}") + 2].encode())


# --- what a file may say ----------------------------------------------------------------------------------------------


def test_the_documented_example_says_what_it_seems_to() -> None:
    saved = example()
    assert (saved.workers, saved.replicas, saved.mode, saved.modes) == (5, 3, "quorum", ("chain",))
    assert saved.requests[0] == SavedRequest(0.8, Kind.PUT, b"color", b"red")
    assert saved.requests[-1] == SavedRequest(2.9, Kind.CAS, b"color", b"blue")
    assert saved.steps[-2:] == (SavedFault(15.0, "drain", 3), SavedFault(20.0, "drain", 3, ends=True))


def test_steps_may_stand_in_any_order() -> None:
    end = {"at_s": 3, "end": "cut", "worker": 1}
    begin = {"at_s": 2, "fault": "cut", "worker": 1}
    assert parse(document(end, begin)) == parse(document(begin, end))


ANY_KEYS = st.binary(min_size=1, max_size=20) | st.text(min_size=1, max_size=10).map(lambda text: text.encode())
KEYS = ANY_KEYS.filter(lambda key: not key.startswith(RESERVED))  # others are refused
VALUES = st.binary(max_size=20) | st.text(max_size=10).map(lambda text: text.encode())
TIMES = st.floats(0, 50)
REQUESTS = st.one_of(
    st.builds(SavedRequest, TIMES, st.just(Kind.PUT), KEYS, VALUES),
    st.builds(SavedRequest, TIMES, st.just(Kind.CAS), KEYS, VALUES, st.sampled_from(Expected)),
    st.builds(SavedRequest, TIMES, st.sampled_from([Kind.GET, Kind.DELETE]), KEYS),
)


@st.composite
def saved_schedules(draw: st.DrawFn) -> SavedSchedule:
    workers = draw(st.integers(3, 6))
    steps: list[Step] = draw(st.lists(REQUESTS, min_size=1, max_size=8))
    link = draw(st.sampled_from(["cut", "slow"]))
    for what in draw(st.sets(st.sampled_from([link, "kill", "drain"]))):
        worker, at_s = draw(st.integers(1, workers)), draw(TIMES)
        steps.append(SavedFault(at_s, what, worker, delay_ms=200.0 if what == "slow" else 0.0))
        if draw(st.booleans()):
            steps.append(SavedFault(at_s + draw(st.floats(0.1, 20)), what, worker, ends=True))
    if draw(st.booleans()):
        steps.append(SavedSwitch(draw(TIMES), draw(st.sampled_from(["sync", "chain", "quorum"]))))
    steps.sort(key=lambda step: step.at_s)
    note = draw(st.text(max_size=10))
    return SavedSchedule(workers, 3, "quorum", tuple(steps), down_after_s=draw(st.sampled_from([2.0, 5.0])), note=note)


@given(saved_schedules())
def test_what_is_written_is_read_as_the_same(saved: SavedSchedule) -> None:
    assert parse_schedule(format_schedule(saved).encode()) == saved


def test_a_file_is_written_with_a_line_for_each_step_and_read_again(tmp_path: Path) -> None:
    saved = example()
    write_schedule(tmp_path / "my.json", saved)
    assert read_schedule(tmp_path / "my.json") == saved
    lines = (tmp_path / "my.json").read_text().splitlines()
    assert '    {"at_s": 3.4, "fault": "kill", "worker": 2},' in lines


@pytest.mark.parametrize("file", sorted(SCHEDULES.glob("*.json")), ids=lambda file: file.stem)
def test_the_files_that_are_shipped_are_written_as_this_module_writes(file: Path) -> None:
    assert file.read_text() == format_schedule(read_schedule(file))


# --- what is played ---------------------------------------------------------------------------------------------------


def test_seeds_share_requests_and_faults_and_differ_in_latencies(strategies: dict[str, Strategy]) -> None:
    one, other = (example().draw(strategies["quorum"], seed) for seed in (1, 2))
    assert one.requests == other.requests
    assert one.faults == other.faults
    assert (one.latency_s, one.fsync_s) != (other.latency_s, other.fsync_s)
    assert one == example().draw(strategies["chain"], 1)
    kinds = [fault.kind for fault in one.faults]
    assert kinds == [FaultKind.CRASH, FaultKind.LATE_LINK, FaultKind.MODE_SWITCH, FaultKind.DRAIN]
    crash, slow, switch, drain = one.faults
    assert crash.nodes == ("w2",)
    assert crash.lasts_s == pytest.approx(5.6)
    assert slow.at_s + slow.lasts_s == pytest.approx(one.lasts_s)  # it was never ended
    assert (slow.delay_s, switch.mode, drain.lasts_s) == (0.2, "chain", 5.0)


def test_long_pauses_are_left_out(strategies: dict[str, Strategy]) -> None:
    saved = parse(document({"at_s": 86_000, "fault": "kill", "worker": 1}, {"at_s": 86_001, "switch": "sync"}))
    schedule = saved.draw(strategies["quorum"], 1)
    assert [fault.at_s for fault in schedule.faults] == [0.5 + 5 + PAUSE_S, 0.5 + 5 + PAUSE_S + 1]
    assert schedule.lasts_s == saved.played_s == 0.5 + 5 + PAUSE_S + 1


def test_a_slow_request_holds_up_no_other(strategies: dict[str, Strategy]) -> None:
    burst = [{"at_s": 1.0 + number / 100, "request": "get", "key": "k"} for number in range(40)]
    late = {"at_s": 9.0, "request": "get", "key": "k"}
    clients = [one.client for one in parse(document(*burst, late)).draw(strategies["quorum"], 1).requests]
    assert clients[:CLIENTS_MAX] == list(range(CLIENTS_MAX))
    assert max(clients) == CLIENTS_MAX - 1
    assert clients[-1] == 0


def test_keys_lie_where_they_lay_in_the_cluster_whose_workers_are_named(strategies: dict[str, Strategy]) -> None:
    ids = ["w-1f04d2aa", "w-5cb42d6c", "127.0.0.1:40001"]
    schedule = parse(document({"at_s": 2, "fault": "pause", "worker": 3}, workers=ids)).draw(strategies["quorum"], 1)
    assert schedule.partitions == PARTITION_COUNT
    assert schedule.worker_ids == tuple(ids)
    assert [fault.nodes for fault in schedule.faults] == [("127.0.0.1:40001",)]
    assert run_schedule(strategies["quorum"], schedule).verdict is Verdict.HELD


def test_a_slow_link_is_late_by_its_delay_which_may_change_from_one_moment_to_the_next(
    strategies: dict[str, Strategy],
) -> None:
    def of_all(at_s: float, what: str, **fields: object) -> list[dict[str, object]]:
        return [{"at_s": at_s, what: "slow", "worker": worker, **fields} for worker in (1, 2, 3)]

    faults = [
        *of_all(1.0, "fault", delay_ms=300),
        *of_all(3.0, "fault", delay_ms=600),
        *of_all(5.0, "end"),
    ]  # fmt: skip
    asks = [{"at_s": at_s, "request": "put", "key": "k", "value": f"at {at_s}"} for at_s in (2.0, 4.0, 6.0)]
    saved = parse(document(*faults, *asks, workers=3))
    run = run_schedule(strategies["quorum"], saved.draw(strategies["quorum"], 1))
    took_s = {op.value: op.returned_s - op.invoked_s for op in run.history if op.returned_s is not None}
    assert 0.3 < took_s["at 2.0"] < 0.6 < took_s["at 4.0"] < 0.9
    assert took_s["at 6.0"] < 0.3


def test_nothing_passes_a_link_that_is_cut_in_either_direction(strategies: dict[str, Strategy]) -> None:
    puts = [{"at_s": 1.0 + number / 1000, "request": "put", "key": "k", "value": "v"} for number in range(30)]
    cut, mend = {"at_s": 1.02, "fault": "cut", "worker": 1}, {"at_s": 3.0, "end": "cut", "worker": 1}
    waited = set()
    for seed in range(1, 6):  # of what is on its way at that moment, seeds have more or less
        schedule = parse(document(*puts, cut, mend, workers=3)).draw(strategies["quorum"], seed)
        run = run_schedule(strategies["quorum"], schedule, trace=True)
        assert run.faults == {FaultKind.CUT_LINK: 1}
        (begins,) = [event.time_s for event in run.trace if event.what == "fault"]
        (ends,) = [event.time_s for event in run.trace if event.what == "heal"]
        of_link = [event for event in run.trace if {event.source, event.target} == {"master", "w1"}]
        assert [e for e in of_link if e.what == "arrive" and begins < e.time_s < ends] == []
        waited |= {event.source for event in of_link if event.what == "arrive" and event.time_s == ends}
    assert waited == {"master", "w1"}


def test_a_paused_worker_that_is_killed_does_not_go_on_before(strategies: dict[str, Strategy]) -> None:
    steps = [
        {"at_s": 1.0, "fault": "pause", "worker": 1},
        {"at_s": 2.0, "fault": "kill", "worker": 1},
        {"at_s": 3.0, "end": "kill", "worker": 1},
    ]  # fmt: skip
    ask = {"at_s": 1.5, "request": "put", "key": "k", "value": "v"}
    schedule = parse(document(*steps, ask, workers=3)).draw(strategies["quorum"], 1)
    run = run_schedule(strategies["quorum"], schedule, trace=True)
    began_s, killed_s = (event.time_s for event in run.trace if event.what == "fault")
    got = [event.time_s for event in run.trace if event.what == "arrive" and event.target == "w1"]
    (started_s,) = [event.time_s for event in run.trace if event.what == "start" and event.text == "life 2"
                    and event.source == "w1"]  # fmt: skip
    assert [time_s for time_s in got if began_s < time_s < started_s] == []
    assert killed_s < started_s


def test_a_compare_and_set_of_another_version_writes_nothing(strategies: dict[str, Strategy]) -> None:
    put = {"at_s": 1.0, "request": "put", "key": "k", "value": "v"}
    cas = {"request": "compare_and_set", "key": "k"}
    asked = {"another-etag": "no", "absent": "not either", "etag-of-last-read": "yes"}
    steps = [{**cas, "at_s": 2.0 + n, "value": v, "expect": e} for n, (e, v) in enumerate(asked.items())]
    run = run_schedule(strategies["quorum"], parse(document(put, *steps)).draw(strategies["quorum"], 1))
    assert run.verdict is Verdict.HELD, run.findings
    outcomes = [(op.value, op.code) for op in run.history if op.kind is Kind.CAS]
    assert outcomes == [("no", "precondition_failed"), ("not either", "precondition_failed"), ("yes", None)]


def test_what_the_page_records_is_read() -> None:
    """As `recorder.js` writes it: without the end of a pause by a kill, and of one fault of a link by the next."""
    steps = [
        {"at_s": 0, "request": "compare_and_set", "key": "color", "value": "", "expect": "etag-of-last-read"},
        {"at_s": 1, "fault": "pause", "worker": 2},
        {"at_s": 2.125, "fault": "kill", "worker": 2},
        {"at_s": 3, "fault": "slow", "worker": 2, "delay_ms": 200},
        {"at_s": 4, "fault": "slow", "worker": 2, "delay_ms": 400},
        {"at_s": 5, "fault": "cut", "worker": 2},
        {"at_s": 6, "end": "kill", "worker": 2},
        {"at_s": 7, "end": "cut", "worker": 2},
        {"at_s": 8, "undrain": 3},
        {"at_s": 9, "drain": 3},
        {"at_s": 10, "drain": 3},
        {"at_s": 11, "undrain": 3},
    ]
    saved = parse(document(steps=steps))
    faults = saved.draw(_quorum(), 1).faults
    assert [(fault.kind, fault.lasts_s) for fault in faults] == [
        (FaultKind.PAUSE, 1.125),
        (FaultKind.CRASH, 3.875),
        (FaultKind.LATE_LINK, 1.0),
        (FaultKind.LATE_LINK, 1.0),
        (FaultKind.CUT_LINK, 2.0),
        (FaultKind.DRAIN, 2.0),
    ]


def test_workers_may_be_named_by_their_ids() -> None:
    ids = ["w-1", "w-2", "w-3"]
    by_id = document({"at_s": 1, "fault": "cut", "worker": "w-3"}, {"at_s": 2, "drain": "w-2"}, workers=ids)
    by_number = document({"at_s": 1, "fault": "cut", "worker": 3}, {"at_s": 2, "drain": 2}, workers=ids)
    assert parse(by_id) == parse(by_number)


ODD = [
    b"\x00\xff\xfe", b"\xff\xfe\x00", b" ", b"  ", b"\x1b[2J\nrm", "dürüm ☃".encode(), b"v1", b"last1", b"[2]",
    b"k" * KEY_BYTES_MAX, "\u202eevil".encode(), b"nothing", b"<img src=x onerror=alert(1)>",
]  # fmt: skip


def test_any_key_and_value_that_clients_may_use_survives(strategies: dict[str, Strategy]) -> None:
    def spell(data: bytes) -> object:
        return {"base64": base64.b64encode(data).decode()}

    values = [*ODD[:-1], b""]
    values += [b"V" * VALUE_BYTES_MAX] * 2 + [b"again"] * 3 + [b"again (2)"]
    steps: list[dict[str, object]] = []
    for number, value in enumerate(values):
        key = spell(ODD[number % len(ODD)])
        steps.append({"at_s": 2.0 + number, "request": "put", "key": key, "value": spell(value)})
        steps.append({"at_s": 2.5 + number, "request": "get", "key": key})
    saved = parse(document(*steps))
    run = run_schedule(strategies["quorum"], saved.draw(strategies["quorum"], 3), trace=True)
    assert run.verdict is Verdict.HELD, run.findings
    assert len(run.schedule.keys) == len(ODD) + 1
    puts = {request.value for request in run.schedule.requests if request.value is not None}
    gets = {op.result for op in run.history if op.kind is Kind.GET and op.result is not None}
    written = [op.value for op in run.history if op.kind is Kind.PUT]
    assert len(set(written)) == len(written)  # each write can be told from all others
    assert len(puts) == len(values)
    assert puts <= gets
    for text in (*run.schedule.keys, *puts):
        assert text.isprintable()
        assert text.strip()
        assert len(text) < 100
    names = run.schedule.names
    assert {names.encode(text) for text in run.schedule.keys} == {b"k", *ODD}
    assert all(len(names.encode(text)) <= VALUE_BYTES_MAX for text in puts)


def test_what_happened_to_a_binary_key_is_drawn(strategies: dict[str, Strategy]) -> None:
    key, value = {"base64": "AP/+"}, {"base64": "/w=="}
    saved = parse(document({"at_s": 1.0, "request": "put", "key": key, "value": value}))
    run = run_schedule(strategies["quorum"], saved.draw(strategies["quorum"], 1), trace=True)
    (put,) = (op for op in run.history if op.value == "\\xff")
    drawn = to_text(draw_failure(run, Finding("for show", put.key, "[1]", (put,))))
    assert put.key == "\\x00\\xff\\xfe"
    assert "store \\xff, from master" in drawn


def test_keys_lie_where_they_lay_in_a_real_cluster(strategies: dict[str, Strategy]) -> None:
    keys = ["color", "fruit", "dürüm"]
    with LocalCluster(mode="quorum", workers=5, storage="memory") as cluster, httpx.Client() as client:
        ids = [worker["id"] for worker in client.get(f"{cluster.url}/v1/cluster").json()["workers"]]
        lay = {}
        for key in keys:
            told = client.get(f"{cluster.url}/v1/locate", params={"key": key}).json()
            lay[key] = {replica["id"] for replica in told["replicas"]}
    puts = [{"at_s": 1.0, "request": "put", "key": key, "value": f"of {key}"} for key in keys]
    schedule = parse(document(*puts, workers=ids)).draw(strategies["quorum"], 1)
    run = run_schedule(strategies["quorum"], schedule, trace=True)
    lie = {
        key: {event.target for event in run.trace if (event.what, event.call, event.key) == ("send", "store", key)}
        for key in keys
    }
    assert lie == lay


@settings(max_examples=6)
@given(saved_schedules(), st.integers(0, 1_000))
def test_what_can_be_read_can_be_played(saved: SavedSchedule, seed: int) -> None:
    strategy = _quorum()
    run = run_schedule(strategy, saved.draw(strategy, seed))
    assert run.verdict is Verdict.HELD, (run.findings, format_schedule(saved))


def _quorum() -> Strategy:
    from trikv_quorum import Quorum

    return Quorum()


# --- what is refused --------------------------------------------------------------------------------------------------

PUT = {"at_s": 1, "request": "put", "key": "k", "value": "v"}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ([], "a schedule must be an object in braces, and is a list"),
        ({"workers": 5}, "trikv_schedule is missing; add it"),
        (document(trikv_schedule=2), "trikv_schedule is 2, and this trikv reads format 1; save the schedule again"),
        (document(trikv_schedule=True), "trikv_schedule is true"),
        (document(workers=0), "workers is 0; it must be a whole number from 1 to 32"),
        (document(workers=True), "workers is true"),
        (document(workers=2), "replicas is 3; it must be a whole number from 1 to 2"),
        (document(workers=[]), "workers must be a number or a list of ids"),
        (document(workers=["w-1", "w-1", "w-2"]), "workers names one id twice"),
        (document(workers=["w-1", "master", "w-2"]), 'workers has "master", which is no worker'),
        (document(workers=["w-1", "\u001b[2J", "w-2"]), "which is no worker"),
        (document(mode="Quorum!"), 'mode is "Quorum!"; it must be the name of a mode'),
        (document(colour="red"), '"colour" means nothing here; leave it out, or write it as note'),
        (document(note=5), "note is 5; it must be a text"),
        (document(down_after_s=0), "down_after_s is 0; it must be a number from 0.5 to 60"),
        (document(steps={}), "steps must be a list of 1 to 1,000 steps"),
        (document(steps=[GET] * (STEPS_MAX + 1)), "steps must be a list of 1 to 1,000 steps"),
        (document(steps=[{"at_s": 1, "switch": "chain"}]), "no step is a request, so there is nothing to judge"),
        (document(7), "step 2 must be an object in braces, and is 7"),
        (document({"at_s": 1}), "step 2 does nothing; give it one of request, fault, end, switch, drain, undrain"),
        (document({"at_s": 1, "drain": 1, "undrain": 1}), "step 2 has drain and undrain; give it one of"),
        (document({**GET, "at_s": -1}), "step 2: at_s is -1; it must be a number from 0 to 604800"),
        (document({**GET, "at_s": "1"}), 'step 2: at_s is "1"; it must be a number'),
        (document({**GET, "at_s": 10**400}), "step 2: at_s is a huge number"),
        (document({**GET, "request": "scan"}), "it must be one of put, get, delete, compare_and_set"),
        (document({**GET, "request": ["get"]}), "request is a list"),
        (document({**GET, "value": "v"}), 'step 2: "value" means nothing here'),
        (document({**GET, "key": "\0trikv/probe"}), "step 2: key begins like the cluster's own keys"),
        (document({**GET, "key": ""}), "step 2: key has 0 bytes; it must have 1 to 4,096"),
        (document({**GET, "key": "k" * 4_097}), "step 2: key has 4,097 bytes"),
        (document({**GET, "key": "\ud800"}), 'step 2: key is "\\ud800"; it must be a text, or {"base64"'),
        (document({**GET, "key": {"base64": "?"}}), "step 2: key is an object; it must be a text"),
        (document({**GET, "key": {"base64": "aw==", "x": 1}}), "step 2: key is an object"),
        (document({**PUT, "value": "v" * (VALUE_BYTES_MAX + 1)}), "value has 1,048,577 bytes"),
        (document({"at_s": 1, "request": "put", "key": "k"}), "step 2: value is missing; add it"),
        (document({**PUT, "request": "compare_and_set"}), "step 2: expect is missing"),
        (document({**PUT, "request": "compare_and_set", "expect": "x"}),
         '"x"; it must be one of etag-of-last-read, absent'),
        (document({"at_s": 1, "fault": "burn", "worker": 1}), 'fault is "burn"; it must be one of kill, pause'),
        (document({"at_s": 1, "fault": "drain", "worker": 1}), 'fault is "drain"'),
        (document({"at_s": 1, "fault": "kill", "worker": 6}), "worker is 6; it must be a whole number from 1 to 5"),
        (document({"at_s": 1, "fault": "kill", "worker": 1.0}), "worker is 1.0; it must be a whole number"),
        (document({"at_s": 1, "fault": "slow", "worker": 1}), "step 2: delay_ms is missing"),
        (document({"at_s": 1, "fault": "kill", "worker": 1, "delay_ms": 3}), '"delay_ms" means nothing here'),
        (document({"at_s": 1, "drain": 6}), "drain is 6; it must be a whole number from 1 to 5"),
        (document({"at_s": 1, "drain": "w-9"}, workers=["w-1", "w-2", "w-3"]), "must be one of w-1, w-2, w-3"),
        (document({"at_s": 1, "drain": "w-1"}), 'drain is "w-1"; it must be a whole number'),
        (document({"at_s": 1, "end": "kill", "worker": 1}), "step 2: worker 1 is not killed at that time; leave"),
        (
            document({"at_s": 1, "fault": "kill", "worker": 1}, {"at_s": 2, "fault": "kill", "worker": 1}),
            "step 3: worker 1 is killed already, by step 2; end that first",
        ),
        (
            document({"at_s": 1, "fault": "kill", "worker": 1}, {"at_s": 2, "fault": "pause", "worker": 1}),
            "step 3: worker 1 is killed already, by step 2; end that first",
        ),
        (
            document({"at_s": 1, "fault": "kill", "worker": 1}, {"at_s": 2, "end": "pause", "worker": 1}),
            "step 3: worker 1 is not paused at that time; leave the step out",
        ),
        (
            document(
                {"at_s": 1, "drain": 1}, {"at_s": 2, "undrain": 1}, {"at_s": 2, "drain": 1}, {"at_s": 3, "undrain": 1}
            ),
            "step 4: worker 1 is drained again too soon; leave 0.01 s in between",
        ),
        (
            document({"at_s": 1, "fault": "cut", "worker": 1}, {"at_s": 1, "end": "cut", "worker": 1}),
            "step 3: worker 1 is cut off for too short a time, by step 2; leave 0.01 s in between",
        ),
        (
            document(*({**GET, "at_s": 100 * number} for number in range(100))),
            "the steps take 1,486 s without the longest pauses, and at most 900 s can be played; cut it into shorter",
        ),
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused_in_one_line_that_says_where(found: object, line: str) -> None:
    with pytest.raises(ScheduleFileError) as caught:
        parse(found)
    told = str(caught.value)
    assert line in told
    assert told.startswith("schedule: ")
    assert told.isprintable()
    assert len(told) < 300


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "line 1, column 1 is not JSON (Expecting value); correct it there"),
        (b'{\n "a": }', "line 2, column 7 is not JSON"),
        (b"\xff", "byte 0 is not UTF-8; save the file as UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', 'an object has "a" twice; leave one of them out'),
        (b'{"trikv_schedule": NaN}', "NaN is no number of JSON"),
        (b'{"trikv_schedule": -Infinity}', "-Infinity is no number of JSON"),
        (b'{"trikv_schedule": ' + b"9" * 10_000 + b"}", "a number has too many digits"),
        (b" " * (FILE_BYTES_MAX + 1), "a schedule has at most 8,388,608 bytes; save a shorter one"),
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_json_is_refused_in_one_line_that_says_where(data: bytes, line: str) -> None:
    with pytest.raises(ScheduleFileError) as caught:
        parse_schedule(data)
    assert line in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path, Path("\x00"), Path("/dev/zero")):
        with pytest.raises(ScheduleFileError) as caught:
            read_schedule(path)
        assert str(caught.value).isprintable()


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(string.printable, max_size=5), st.text(max_size=5)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _read_or_refuse(data: bytes) -> None:
    refusal = ""
    try:
        saved = parse_schedule(data)
        assert parse_schedule(format_schedule(saved).encode()) == saved
        saved.draw(_quorum(), 1)
    except ScheduleFileError as error:
        refusal = str(error)
    assert refusal.isprintable()  # one line, which a terminal shows and does not obey
    assert len(refusal) < 400


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    """One value of a good file is another one; or a field is gone; or there is one more."""
    found = json.loads(format_schedule(example()))
    at: Any = found
    while True:
        place = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[place], dict | list) and at[place] and data.draw(st.integers(0, 3)):
            at = at[place]
            continue
        match data.draw(st.sampled_from(["other", "gone", "more"])):
            case "other":
                at[place] = data.draw(JSON)
            case "gone":
                del at[place]
            case "more" if isinstance(at, dict):
                at[data.draw(st.text(max_size=5))] = data.draw(JSON)
        break
    _read_or_refuse(json.dumps(found).encode())


@given(st.data())
def test_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    good = format_schedule(example()).encode()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 20)))
    _read_or_refuse(good[:start] + data.draw(st.binary(max_size=8)) + good[end:])


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _read_or_refuse(data)
