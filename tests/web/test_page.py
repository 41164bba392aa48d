"""What the page's template is given, and that it prints all of it."""

from __future__ import annotations

from tests.states import progress_of, state_of, worker_of
from trikv.core.present import judge_health
from trikv.web.page import view_of


def test_the_cluster_as_a_whole() -> None:
    view = view_of(state_of())
    assert view["health"] == judge_health(state_of())
    assert (view["cluster"], view["term"], view["uptime"]) == ("c-1", 3, "1 h 1 min")
    assert [part.name for part in view["partitions"]] == ["readable", "writable", "settled"]
    assert [each["count"] for each in view["operations"]] == [1, 2, 3, 4, 5]


def test_what_it_waits_for_is_a_sentence() -> None:
    forming = {"needed": 3, "enlisted": 1, "missing": 2, "named_missing": [], "detail": "2 more needed"}
    assert view_of(state_of())["forming"] is None
    assert view_of(state_of(forming=forming))["forming"] == {**forming, "detail": "2 more needed."}


def test_the_mode_speaks_for_itself() -> None:
    view = view_of(state_of())
    assert (view["mode"]["name"], view["mode"]["promise"], view["mode"]["gives_up"]) == ("m", "CP", "much")
    assert view["mode"]["copies"] == "at least 2 of 3 replicas"
    assert view["mode"]["promise_word"] == "consistent"
    assert view["mode"]["promise_sentence"].endswith(".")
    assert [mode["name"] for mode in view["other_modes"]] == ["other"]


def test_a_full_worker_says_so() -> None:
    worker = worker_of(full=True, disk_full=True, last_heard_s=None)
    (shown,) = view_of(state_of(workers=[worker]))["workers"]
    assert shown["notes"] == [
        "Full: it takes no key beyond its 1,000.",
        "Its disk is nearly full: it takes deletes alone until there is room.",
    ]
    assert (shown["key_count"], shown["last_heard"], shown["tone"]) == ("1,000", "silent", "fair")


def test_a_worker_of_which_little_is_known() -> None:
    (shown,) = view_of(state_of(workers=[worker_of("down", "lost", keys=None)]))["workers"]
    assert (shown["key_count"], shown["place"], shown["tone"]) == ("unknown", "holds no place", "poor")
    assert (shown["last_heard"], shown["notes"]) == ("0.2 s ago", [])


def test_a_worker_shows_its_labels() -> None:
    worker = worker_of(labels={"zone": "a", "disk": "ssd"})
    (shown,) = view_of(state_of(workers=[worker]))["workers"]
    assert shown["labels_spelled"] == "disk=ssd, zone=a"


def test_what_is_under_way_is_said_with_how_much_is_left() -> None:
    assert view_of(state_of())["settling"] is None
    shown = view_of(state_of(progress=progress_of(24)))["settling"]
    assert (shown["title"], shown["left"], shown["done"], shown["time_left"]) == ("Settling", 24, 1000, "1 min 1 s")
    assert "1,200 keys compared and 2.5 MB moved" in shown["detail"]
    drain = {"kind": "drain", "worker": "w-Ab", "partitions_left": 3}
    assert view_of(state_of(progress=progress_of(0, drain)))["settling"]["title"] == "Emptying worker w-Ab"


def test_the_latest_events_are_told_with_their_age() -> None:
    down = {"id": "1-2", "time_s": 3601.0, "at": "2001-01-01T00:00:00Z", "kind": "worker_down", "worker": "w-1"}
    other = {"id": "1-1", "time_s": 1.0, "kind": "comet_seen"}
    first, second = view_of(state_of(), [down, other])["events"]
    assert (first["told"], first["when"], first["tone"]) == ("Worker w-1 is down.", "1 min 0 s ago", "poor")
    assert (second["told"], second["at"], second["tone"]) == ("Comet seen.", "", "plain")
