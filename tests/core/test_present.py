"""The cluster's state in words, from states that a cluster can be in."""

from __future__ import annotations

from typing import Any

import pytest

from tests.states import masters_of, progress_of, state_of, worker_of
from trikv.core.present import (
    Progress,
    Tone,
    as_sentence,
    count_open,
    count_outcomes,
    count_partitions,
    describe_progress,
    judge_health,
    judge_notes,
    mode_of,
    notes_on,
    say_config_store,
    say_copies,
    say_count,
    say_crowded,
    say_duration,
    say_instant,
    say_megabytes,
    say_needs,
    say_place,
    say_promise,
    say_share,
    say_short,
    tell_masters,
)


@pytest.mark.parametrize(
    ("readable", "writable", "word", "tone", "detail"),
    [
        (1024, 1024, "Serving", "good", "Every key can be read and written."),
        (1024, 1023, "Degraded", "fair", "Every key can be read, 99 % of them can be written."),
        (1024, 0, "Degraded", "fair", "Every key can be read, 0 % of them can be written."),
        (1, 1, "Degraded", "poor", "Of the keys, 1 % can be read, and 1 % can be written."),
        (0, 0, "Unavailable", "poor", "No key can be read: 1 of 2 workers are up; bring back those that are down."),
    ],
)
def test_health(readable: int, writable: int, word: str, tone: str, detail: str) -> None:
    workers = [worker_of("up"), worker_of("suspect")]
    assert judge_health(state_of(readable, writable, workers=workers)) == (tone, word, detail)


def test_forming_is_neither_good_nor_poor() -> None:
    health = judge_health(state_of(0, 0, forming={"detail": "2 more needed"}))
    assert (health.word, health.tone) == ("Forming", Tone.FAIR)


def test_partitions_with_fewer_replicas_than_there_should_be_are_told() -> None:
    health = judge_health(state_of(short=256))
    assert health.tone is Tone.FAIR
    assert health.detail == (
        "Every key can be read and written. 256 of 1,024 partitions have fewer than 3 replicas for now."
    )
    assert say_short(state_of()) == ""
    assert say_short(state_of(short=1024)) == "all 1,024 partitions have fewer than 3 replicas for now"


def test_partitions_are_counted_with_what_that_means() -> None:
    partitions = {"total": 1024, "settled": 0, "readable": 1023, "writable": 1, "short": 0}
    counts = count_partitions(state_of(partitions=partitions))
    assert [(each.name, each.count, each.share, each.tone) for each in counts] == [
        ("readable", 1023, "99 %", "poor"),
        ("writable", 1, "1 %", "fair"),
        ("settled", 0, "0 %", "poor"),
    ]
    assert all(each.meaning and each.total == 1024 for each in counts)
    assert {each.tone for each in count_partitions(state_of())} == {Tone.GOOD}


def test_operations_are_counted_by_what_they_came_to() -> None:
    counts = [(each.name, each.count) for each in (*count_outcomes(state_of()), *count_open(state_of()))]
    assert counts == [("committed", 1), ("refused", 2), ("unknown", 3), ("in flight", 4), ("in doubt", 5)]


@pytest.mark.parametrize(
    ("copies", "replicas", "said"),
    [
        (2, 3, "at least 2 of 3 replicas"),
        (1, 3, "at least 1 of 3 replicas"),
        (3, 3, "all 3 replicas"),
        (1, 1, "the one replica that there is of each key"),
    ],
)
def test_where_a_committed_write_is(copies: int, replicas: int, said: str) -> None:
    assert say_copies(state_of(copies=copies, replicas=replicas)) == said


def test_the_mode_in_force_speaks_for_itself() -> None:
    assert mode_of(state_of())["gives_up"] == "much"
    assert mode_of(state_of(modes=[])) == {}
    assert say_promise("CP").word == "consistent"
    assert say_promise("AP").word == "available"
    assert say_promise("of a later trikv") == ("", "")


@pytest.mark.parametrize(
    ("settling", "operation", "what", "left"),
    [
        (24, None, "settling", 24),
        (1, {"kind": "mode", "mode": "chain", "partitions_left": 1024}, "switching to mode chain", 1024),
        (0, {"kind": "drain", "worker": "w-Ab", "partitions_left": 3}, "emptying worker w-Ab", 3),
        (0, {"kind": "of_a_later_trikv", "partitions_left": 3}, "of a later trikv", 3),
    ],
)
def test_what_is_under_way_is_said_with_how_much_is_left(
    settling: int, operation: dict[str, Any] | None, what: str, left: int
) -> None:
    told = describe_progress(state_of(progress=progress_of(settling, operation)))
    assert told == Progress(what, left, 1024, "1,200 keys compared and 2.5 MB moved", "1 min 1 s")


def test_nothing_is_under_way_in_a_cluster_that_is_settled() -> None:
    assert describe_progress(state_of()) is None
    told = describe_progress(state_of(progress=progress_of(1, seconds_left=None)))
    assert told is not None
    assert told.time_left is None


def test_a_worker_that_is_full_says_so() -> None:
    assert notes_on(worker_of()) == []
    assert notes_on(worker_of(note="it waits", full=True, disk_full=True)) == [
        "it waits",
        "full: it takes no key beyond its 1,000",
        "its disk is nearly full: it takes deletes alone until there is room",
    ]


def test_a_worker_that_is_broken_on_purpose_says_so() -> None:
    assert notes_on(worker_of(process="paused", link="cut")) == [
        "its process is paused",
        "its link to the master is cut on purpose",
    ]
    assert notes_on(worker_of(process="gone", link="slow", delay_ms=250.0)) == [
        "its process has ended",
        "its link to the master is slowed on purpose, by 250 ms",
    ]
    assert notes_on(worker_of(process="foreign")) == []


@pytest.mark.parametrize(
    ("state", "place", "tone"),
    [
        ("up", "spare", Tone.PLAIN), ("up", "drained", Tone.PLAIN), ("up", "member", Tone.FAIR),
        ("up", "draining", Tone.FAIR), ("suspect", "spare", Tone.FAIR), ("up", "lost", Tone.POOR),
        ("down", "member", Tone.POOR), ("down", "spare", Tone.POOR), ("of a later", "trikv", Tone.FAIR),
    ],
)  # fmt: skip
def test_how_the_notes_on_a_worker_are_to_be_taken(state: str, place: str, tone: Tone) -> None:
    assert judge_notes(worker_of(state, place)) is tone


def test_a_place_is_a_word_that_stands_for_itself_or_is_put_into_others() -> None:
    assert [say_place(place) for place in ("member", "lost")] == ["member", "holds no place"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"),
        (3661, "1 h 1 min"), (86_399, "23 h 59 min"), (86_400, "1 d 0 h"), (1_000_000, "11 d 13 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert say_duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "total", "said"),
    [(0, 1024, "0 %"), (1, 1024, "1 %"), (512, 1024, "50 %"), (1023, 1024, "99 %"), (1024, 1024, "100 %")],
)
def test_a_share_is_all_only_of_all_and_nothing_only_of_nothing(count: int, total: int, said: str) -> None:
    assert say_share(count, total) == said


def test_counts_and_sizes() -> None:
    assert (say_count(1024, 1024), say_count(1000, 1024)) == ("all 1,024", "1,000 of 1,024")
    assert say_megabytes(1_234_560_000) == "1,234.6 MB"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("it waits", "It waits."), ("It waits.", "It waits."), ("what now?", "What now?"), ("7 are left", "7 are left.")],
)
def test_a_clause_becomes_a_sentence_once(text: str, sentence: str) -> None:
    assert as_sentence(text) == as_sentence(as_sentence(text)) == sentence


def test_partitions_that_are_not_spread_over_the_zones_are_counted() -> None:
    state = state_of()
    assert say_crowded(state) == ""
    state["partitions"]["crowded"] = 52
    assert say_crowded(state).startswith("52 of 1,024 partitions have more replicas in one zone than they must")


def test_what_a_mode_needs_is_a_sentence() -> None:
    assert say_needs(state_of()) == ""
    needs = {"write": {"detail": "all 3 replicas"}, "read": {"detail": "the first replica"}}
    state = state_of(modes=[{"name": "m", "promise": "CP", "gives_up": "much", "use_when": "now", "needs": needs}])
    assert say_needs(state) == "A write needs all 3 replicas, a read the first replica."


def test_the_master_that_leads_comes_first() -> None:
    told = tell_masters(masters_of(leader=1, count=2))
    assert [(master.address, master.role, master.note) for master in told] == [
        ("h:8001", "leads", "since today, in term 4"),
        ("h:8000", "stands by", ""),
    ]
    assert {master.role for master in tell_masters(masters_of(leader=None))} == {"stands by"}
    assert tell_masters(None) == []


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        (0, "etcd, 3 endpoints"),
        (1, "etcd, 3 endpoints, of which 1 cannot be reached (e:0)"),
        (3, "etcd, 3 endpoints, of which 3 cannot be reached (e:0, e:1, e:2): no answer"),
    ],
)
def test_where_the_document_is(silent: int, said: str) -> None:
    assert say_config_store(masters_of(silent=silent)) == said
    assert say_config_store(None) == ""


@pytest.mark.parametrize(
    ("instant", "said"),
    [
        ("2026-11-29T01:28:42.534+00:00", "2026-11-29 01:28:42 UTC"),
        ("2026-11-29T01:28:42Z", "2026-11-29 01:28:42 UTC"),
        ("2026-11-29T01:28:42+02:00", "2026-11-29T01:28:42+02:00"),
        ("today", "today"),
    ],
)
def test_an_instant_is_told_to_the_second(instant: str, said: str) -> None:
    assert say_instant(instant) == said
