"""The commands that watch and steer a running cluster: what they print, what they change, how they exit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Trikv
from tests.helpers import filled_cluster, put_right
from trikv.client import Client
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.process import NodeProcess

KEYS = 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with filled_cluster(workers=4, keys=KEYS) as running:
        yield running


@pytest.fixture
def steered(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """For tests that change the cluster: it is put right after each."""
    yield cluster
    put_right(cluster)


def state_of(cluster: LocalCluster) -> dict[str, Any]:
    with cluster.client() as client:
        return client.cluster()


def row_of(output: bytes, name: str) -> str:
    """The rest of the line that starts with this name."""
    return next(line for line in output.decode().splitlines() if line.split("\t")[0] == name).partition("\t")[2]


def test_a_master_alone_has_no_others_beside_it(cluster: LocalCluster, trikv: Trikv) -> None:
    alone = trikv("masters", url=cluster.url)
    assert alone.stdout == b"one master, which has its document for itself\n"
    assert json.loads(trikv("masters", "--json", url=cluster.url).stdout)["masters"] == []
    assert state_of(cluster)["masters"] is None


# --- the mode ---------------------------------------------------------------------------------------------------------


def test_a_plan_tells_what_a_switch_would_do_and_does_not_do_it(cluster: LocalCluster, trikv: Trikv) -> None:
    plan = trikv("mode", "--plan", "async", url=cluster.url)
    assert plan.returncode == 0
    assert row_of(plan.stdout, "mode") == "async (AP), now quorum"
    assert "1,024" in row_of(plan.stdout, "partitions")
    assert json.loads(trikv("mode", "--plan", "async", "--json", url=cluster.url).stdout)["cannot_ask"] == []
    assert state_of(cluster)["mode"] == "quorum"
    assert trikv("mode", "--plan", url=cluster.url).returncode == 2


def test_a_switch_prints_its_certificate(steered: LocalCluster, trikv: Trikv) -> None:
    switched = trikv("mode", "chain", url=steered.url)
    assert switched.returncode == 0
    assert switched.stdout.decode().splitlines()[0] == "the mode is chain"
    assert row_of(switched.stdout, "before") == "quorum"
    assert "no request waited longer than" in row_of(switched.stdout, "took")
    assert state_of(steered)["mode"] == "chain"
    assert trikv("mode", "chain", url=steered.url).stdout == b"the mode is chain\n"
    certificate = json.loads(trikv("mode", "sync", "--json", url=steered.url).stdout)
    assert (certificate["mode"], certificate["from"], certificate["partitions"]) == ("sync", "chain", 1024)
    assert certificate["keys_compared"] >= KEYS


def test_what_is_no_mode_is_one_line_and_a_usage_error(cluster: LocalCluster, trikv: Trikv) -> None:
    unknown = trikv("mode", "sink", url=cluster.url)
    assert (unknown.returncode, unknown.stdout, unknown.stderr.decode().count("\n")) == (2, b"", 1)
    assert "chain" in unknown.stderr.decode()


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_are_listed_with_or_without_the_group_s_options(cluster: LocalCluster, trikv: Trikv) -> None:
    listed = trikv("workers", url=cluster.url).stdout.decode().splitlines()
    assert {line.split("\t")[0] for line in listed} == {node.id for node in cluster.workers}
    named = trikv("workers", "--url", cluster.url, "--json", "plan", url="http://127.0.0.1:1")
    assert json.loads(named.stdout)["copies"] == 0, "said to the group, it holds for its commands"
    assert {w["id"] for w in json.loads(trikv("workers", "--json", url=cluster.url).stdout)} == {
        node.id for node in cluster.workers
    }


def test_a_worker_is_drained_taken_back_and_at_last_removed(steered: LocalCluster, trikv: Trikv) -> None:
    node, url = steered.workers[0], steered.url
    plan = trikv("workers", "drain", node.address, "--dry-run", url=url)
    assert row_of(plan.stdout, "worker") == node.id
    assert int(row_of(plan.stdout, "copies").replace(",", "")) > 0
    assert not any(w["place"] != "member" for w in state_of(steered)["workers"])

    held = trikv("workers", "remove", node.id, url=url)
    assert (held.returncode, held.stderr.decode().count("\n")) == (4, 1)
    assert f"trikv workers drain {node.id}" in held.stderr.decode()

    drained = trikv("workers", "drain", node.id, url=url)
    assert drained.returncode == 0
    assert drained.stdout.decode().splitlines()[-1] == f"worker {node.id} is empty, and may be stopped"
    assert {w["id"]: w["held"] for w in state_of(steered)["workers"]}[node.id] == 0
    assert trikv("workers", "undrain", node.id, url=url).returncode == 0
    wait_until(lambda: state_of(steered)["workers"][0]["place"] == "member", what="it has a place again")

    too_many = trikv("workers", "drain", "--no-wait", node.id, url=url)
    assert too_many.returncode == 0
    refused = trikv("workers", "drain", steered.workers[1].id, url=url)
    assert (refused.returncode, refused.stderr.decode().count("\n")) == (4, 1)


@pytest.mark.parametrize(
    "words", [("drain", "w-9"), ("drain", "w-9", "--dry-run"), ("undrain", "w-9"), ("remove", "w-9")]
)
def test_an_unknown_worker_is_one_line_and_a_usage_error(
    cluster: LocalCluster, trikv: Trikv, words: tuple[str, ...]
) -> None:
    unknown = trikv("workers", *words, url=cluster.url)
    assert (unknown.returncode, unknown.stdout, unknown.stderr.decode().count("\n")) == (2, b"", 1)
    assert "w-9" in unknown.stderr.decode()
    assert cluster.workers[0].id in unknown.stderr.decode()


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_are_told_a_line_each_and_from_any_point(cluster: LocalCluster, trikv: Trikv) -> None:
    lines = trikv("events", "--no-follow", url=cluster.url).stdout.decode().splitlines()
    assert any(f"worker {cluster.workers[0].id} enlisted" in line for line in lines)
    assert all(line.split("\t")[1].endswith("Z") for line in lines)
    third = lines[2].split("\t")[0]
    rest = trikv("events", "--no-follow", "--after", third, "--json", url=cluster.url).stdout.decode().splitlines()
    told = [line.split("\t")[0] for line in lines[3:]]
    assert [json.loads(line)["id"] for line in rest][: len(told)] == told  # more may have happened since
    gap = trikv("events", "--no-follow", "--after", "0-99", url=cluster.url).stdout.decode().splitlines()[0]
    assert "some events cannot be told any more" in gap


def test_who_follows_events_comes_back_after_the_master_did(tmp_path: Path) -> None:
    """Through a restart: the other master knows nothing of the old ids, and that is said."""
    with LocalCluster(workers=1, replicas=1, timeout_s=20.0) as cluster:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIKV_")}
        out = tmp_path / "out"
        with out.open("wb") as stdout, subprocess.Popen(
            [sys.executable, "-m", "trikv", "events", "--json", "--url", cluster.url],
            stdout=stdout, stderr=subprocess.PIPE, env=clean,
        ) as following:  # fmt: skip
            try:

                def told() -> list[dict[str, Any]]:
                    return [json.loads(line) for line in out.read_text().splitlines()]

                wait_until(lambda: told(), what="the first events")
                cluster.master.stop()
                cluster.master.start()
                wait_until(
                    lambda: [e for e in told() if e["kind"] == "worker_up" and e["id"][:2] == "2-"], what="the rest"
                )
            finally:
                following.terminate()
            assert following.stderr is not None
            assert b"trying again" in following.stderr.read()
    kinds = [(event["kind"], event["id"].partition("-")[0]) for event in told()]
    first_of_second_life = next(index for index, (_, term) in enumerate(kinds) if term == "2")
    assert kinds[first_of_second_life][0] == "gap"
    assert [kind for kind, _ in kinds].count("gap") == 1


def test_who_reaches_nobody_is_told_at_once(trikv: Trikv, free_tcp_port: int) -> None:
    nobody = trikv("events", url=f"http://127.0.0.1:{free_tcp_port}")
    assert (nobody.returncode, nobody.stderr.decode().count("\n")) == (4, 1)


# --- how the master is told -------------------------------------------------------------------------------------------


def test_how_fast_it_heals_is_said_at_the_start(tmp_path: Path) -> None:
    flags = ["--down-after", "1.5", "--settle-rate", "2.5", "--min-copies", "1", "--http", "127.0.0.1:0"]
    master = NodeProcess(
        "master", lambda node: ["master", "0", *flags, "--data-dir", str(tmp_path / "data")], log=tmp_path / "log"
    )
    try:
        master.start()
        with Client(f"http://127.0.0.1:{master.http_port}") as client:
            state = client.cluster()
    finally:
        master.stop()
    assert (state["down_after_s"], state["settle_rate_bytes"]) == (1.5, 2.5e6)


@pytest.mark.parametrize("flag", ["--down-after", "--settle-rate", "--min-copies"])
def test_a_setting_that_cannot_be_meant_is_a_usage_error(trikv: Trikv, flag: str) -> None:
    refused = trikv("master", flag, "0")
    assert (refused.returncode, refused.stderr.decode().count("\n")) == (2, 1)
    assert flag in refused.stderr.decode()


# --- when something is wrong ------------------------------------------------------------------------------------------


def test_copies_are_compared_and_what_differs_is_counted(cluster: LocalCluster, trikv: Trikv) -> None:
    compared = trikv("repair", "--dry-run", url=cluster.url)
    assert compared.returncode == 0
    assert row_of(compared.stdout, "partitions") == "1,024 compared"
    assert row_of(compared.stdout, "keys differing") == "0"
    assert json.loads(trikv("repair", "--json", url=cluster.url).stdout)["repaired"] == 0


def test_recover_says_what_would_be_lost_before_it_is_done(trikv: Trikv) -> None:
    with LocalCluster(mode="chain", workers=2, replicas=2, timeout_s=20.0) as cluster:
        url = cluster.url
        with cluster.client() as client:
            client.put(b"key", b"value")
            whole = trikv("recover", url=url)
            assert (whole.returncode, b"none" in whole.stdout) == (0, True)
            for node in cluster.workers:
                node.kill()
            cluster.workers[0].start()  # empty: what both held is gone

            def stuck() -> bool:
                return bool(client.recover(accept_loss=False)["partitions"])

            wait_until(stuck, what="the master knows that nothing is left")

            def told_what_is_lost() -> subprocess.CompletedProcess[bytes] | None:
                asked = trikv("recover", url=url)
                assert asked.returncode in (2, 4), asked.stderr  # refused while a worker may yet be heard
                return asked if asked.returncode == 2 else None

            asked = wait_until(told_what_is_lost, what="it is said what would be lost")
            assert asked is not None
            assert cluster.workers[1].id in row_of(asked.stdout, "missing")
            assert "--accept-loss" in asked.stderr.decode()
            assert client.cluster()["partitions"]["readable"] == 0

            def recovered() -> bytes:
                done = trikv("recover", "--accept-loss", "--json", url=url)
                assert done.returncode in (0, 4), done.stderr  # refused while the worker may yet be heard
                return done.stdout

            told = wait_until(recovered, what="it is accepted")
            assert len(json.loads(told)["partitions"]) == 1024
