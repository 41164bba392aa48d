"""The words on the page, from states that a cluster can be in."""

from typing import Any

import pytest

from trikv.web.page import view_of


def state(readable: int = 1024, writable: int = 1024, short: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "cluster": "c-1", "version": "1", "term": 3, "mode": "m", "promise": "CP", "replicas": 3, "copies": 2,
        "uptime_s": 3661.0, "modes": [{"name": "m", "gives_up": "much"}, {"name": "other"}], "forming": None,
        "partitions": {"total": 1024, "settled": 1024, "readable": readable, "writable": writable, "short": short},
        "workers": [],
        "operations": {"committed": 1, "refused": 2, "unknown": 3}, "in_flight": 4, "pending": 5,
        "progress": progress(), **changes,
    }  # fmt: skip


def progress(settling: int = 0, operation: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "settling": settling, "keys_compared": 1200, "bytes_moved": 2_500_000, "seconds_left": 61.0,
        "operation": operation,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("readable", "writable", "word", "tone", "detail"),
    [
        (1024, 1024, "Serving", "good", "Every key can be read and written."),
        (1024, 1023, "Degraded", "fair", "Every key can be read, 99 % of them can be written."),
        (1024, 0, "Degraded", "fair", "Every key can be read, 0 % of them can be written."),
        (1, 1, "Degraded", "poor", "Of the keys, 1 % can be read, and 1 % can be written."),
        (0, 0, "Unavailable", "poor", "No key can be read: 0 of 0 workers are up; bring back those that are down."),
    ],
)
def test_health(readable: int, writable: int, word: str, tone: str, detail: str) -> None:
    assert view_of(state(readable, writable))["health"] == {"word": word, "tone": tone, "detail": detail}


def test_forming_is_neither_good_nor_poor() -> None:
    forming = {"needed": 3, "enlisted": 1, "missing": 2, "named_missing": [], "detail": "2 more needed"}
    view = view_of(state(0, 0, forming=forming))
    assert (view["health"]["word"], view["health"]["tone"]) == ("Forming", "fair")
    assert view["forming"]["detail"] == "2 more needed."


def test_partitions_with_fewer_replicas_than_there_should_be_are_told() -> None:
    health = view_of(state(short=256))["health"]
    assert health["tone"] == "fair"
    assert health["detail"] == (
        "Every key can be read and written. 25 % of the partitions have fewer than 3 replicas for now."
    )


def test_the_mode_speaks_for_itself() -> None:
    view = view_of(state())
    assert view["mode"]["gives_up"] == "much"
    assert view["mode"]["copies"] == "at least 2 of 3 copies of a key"
    assert view_of(state(copies=3))["mode"]["copies"] == "all 3 copies of a key"
    assert [mode["name"] for mode in view["other_modes"]] == ["other"]
    assert view["uptime"] == "1 h 1 min"


def test_a_full_worker_says_so() -> None:
    worker = {
        "id": "w-1", "address": "a:1", "incarnation": "i", "storage": "memory", "state": "up", "place": "member",
        "note": "", "primaries": 1, "copies": 2, "keys": 1000, "full": True, "disk_full": True,
        "max_keys": 1000, "last_heard_s": None,
    }  # fmt: skip
    (shown,) = view_of(state(workers=[worker]))["workers"]
    assert shown["notes"] == [
        "Full: it takes no key beyond its 1,000.",
        "Its disk is nearly full: it takes deletes alone until there is room.",
    ]
    assert (shown["key_count"], shown["last_heard"]) == ("1,000", "silent")


def test_what_is_under_way_is_said_with_how_much_is_left() -> None:
    assert view_of(state())["settling"] is None
    shown = view_of(state(progress=progress(24)))["settling"]
    assert (shown["title"], shown["left"], shown["done"], shown["time_left"]) == ("Settling", 24, 1000, "1 min 1 s")
    assert "1,200 keys compared and 2.5 MB moved" in shown["detail"]
    switch = {"kind": "mode", "mode": "chain", "partitions_left": 1024}
    assert view_of(state(progress=progress(1, switch)))["settling"]["title"] == "Switching to mode chain"
    drain = {"kind": "drain", "worker": "w-Ab", "partitions_left": 3}
    shown = view_of(state(progress=progress(0, drain)))["settling"]
    assert (shown["title"], shown["left"]) == ("Emptying worker w-Ab", 3)


def test_the_latest_events_are_told_with_their_age() -> None:
    down = {"id": "1-2", "time_s": 3601.0, "at": "2001-01-01T00:00:00Z", "kind": "worker_down", "worker": "w-1"}
    other = {"id": "1-1", "time_s": 1.0, "kind": "comet_seen"}
    first, second = view_of(state(), [down, other])["events"]
    assert (first["told"], first["when"], first["tone"]) == ("Worker w-1 is down.", "1 min 0 s ago", "poor")
    assert (second["told"], second["at"], second["tone"]) == ("Comet seen.", "", "plain")
