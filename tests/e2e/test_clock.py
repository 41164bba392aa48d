"""A clock that jumps by an hour changes what the log says, and nothing else: no decision is made by the time of day.

The processes run under libfaketime, which tells them another time of day whenever a file says so, and leaves the
monotonic clock alone, as somebody who sets a machine's clock does.
"""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from trikv.testing.processes.cluster import LocalCluster

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
KEYS = [b"key-%02d" % number for number in range(30)]


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed; as root: apt-get install libfaketime")
def test_a_clock_that_jumps_by_an_hour_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("FAKETIME_FORCE_MONOTONIC_FIX", "0")  # else it misdates what threads wait for each other
    # Much longer than any pause of a busy machine, and much shorter than an hour.
    running = LocalCluster(workers=3, storage="rocksdb", directory=tmp_path, down_after_s=600, timeout_s=30)
    with running as cluster, cluster.client() as client:
        before = client.cluster()["workers"]
        for jump, value in (("+1h", b"an hour later"), ("-1h", b"an hour earlier")):
            for key in KEYS:
                client.put(key, b"before")
            offset.write_text(jump)
            for key in KEYS:
                client.put(key, value)
            assert [entry.value for entry in client.scan()] == [value] * len(KEYS)
        offset.write_text("+1h")
        spare = cluster.add_worker()  # it is told of, at a time that nobody has lived through
        cluster.await_whole()
        assert [entry.value for entry in client.scan()] == [value] * len(KEYS)
        events = list(client.events(follow=False))
        assert not {event["kind"] for event in events} & {"worker_down", "worker_evicted"}
        assert {worker["id"] for worker in client.cluster()["workers"]} == {*(w["id"] for w in before), spare.id}
        joined = next(e for e in events if e["kind"] == "worker_joined" and e["worker"] == spare.id)
        ahead = datetime.fromisoformat(joined["at"]) - datetime.now().astimezone()
        assert ahead > timedelta(minutes=50), "the clock did not jump"
