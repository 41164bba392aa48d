"""What the probe says over HTTP, on the command line and in the metrics; and its keys, which nobody may use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

from tests.helpers import run_trikv
from trikv.testing.processes.cluster import LocalCluster, wait_until


def test_it_is_told_everywhere() -> None:
    with LocalCluster(workers=3, master_options=["--probe"]) as cluster:
        with httpx.Client(base_url=cluster.url, trust_env=False, timeout=30) as web:
            wait_until(lambda: web.get("/v1/probe").json()["verdict"] == "kept", what="enough reads were judged")
            told = web.get("/v1/probe").raise_for_status().json()
            assert (told["enabled"], told["mode"], told["promise"], told["violations"]) == (True, "quorum", "CP", [])
            assert told["operations"] == told["reads"] + told["writes"] > 100
            assert web.get("/v1/cluster").json()["probe"]["verdict"] == "kept"
            assert "\ntrikv_probe_violations_total 0.0\n" in web.get("/metrics").text
            assert web.get("/v1/kv", params={"limit": 1000}).json()["items"] == []
        said = run_trikv("probe", "--url", cluster.url)
        assert (said.returncode, said.stderr) == (0, "")
        assert "kept: no operation contradicted the promise" in said.stdout
        as_json = run_trikv("probe", "--json", "--url", cluster.url)
        assert json.loads(as_json.stdout)["verdict"] == "kept"


def test_where_there_is_none_that_is_said_with_the_remedy(web: httpx.Client, cluster: LocalCluster) -> None:
    assert web.get("/v1/probe").raise_for_status().json()["enabled"] is False
    assert web.get("/v1/cluster").json()["probe"] is None
    assert web.get("/v1/probe?x=1").status_code == 400
    said = run_trikv("probe", "--url", cluster.url)
    assert said.returncode == 1
    assert "start the master with --probe" in said.stderr


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_keys_of_the_clusters_own_are_refused(web: httpx.Client, method: str) -> None:
    answer = web.request(method, "/v1/kv/%00trikv/probe/x")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_key")
    batch = {"items": [{"op": "put", "key": "\0trikv/x", "value": "v"}]}
    assert "bad_key" in web.post("/v1/batch", json=batch).text


FORGETFUL = """
from trikv.api import hookimpl, newest
from trikv_quorum import Quorum

class Forgetful(Quorum):
    name = "forgetful"
    reads = 0
    held = {}

    async def read(self, key, replicas):
        record = await super().read(key, replicas)
        former, last = self.held.get(key, (None, None))
        if record != last:
            former, last = self.held[key] = last, record
        self.reads += 1
        return former if self.reads % 100 == 0 else record

@hookimpl
def trikv_strategies():
    return [Forgetful()]
"""


def test_a_strategy_that_lies_is_told_everywhere_with_the_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    about = tmp_path / "forgetful-1.dist-info"  # as pip would leave it
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetful\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[trikv]\nforgetful = forgetful\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with LocalCluster(mode="forgetful", workers=3, master_options=["--probe"]) as cluster:
        with cluster.client() as client:
            told = wait_until(
                lambda: (told := client.probe())["verdict"] == "broken" and told, what="the lie is found", deadline_s=90
            )
            assert client.cluster()["probe"]["verdict"] == "broken"
        violation = told["violations"][0]
        assert len(violation["operations"]) == 2
        for operation in violation["operations"]:
            said = run_trikv("trace", operation["trace"], "--url", cluster.url)
            assert said.returncode == 0, said.stderr
            assert operation["what"] in said.stdout
        said = run_trikv("probe", "--url", cluster.url)
        assert said.returncode == 1
        assert violation["told"] in said.stdout
        assert (
            "forgetful has broken its promise"
            in run_trikv("events", "--no-follow", "--after", "0", "--url", cluster.url).stdout
        )


def test_a_master_that_was_killed_and_starts_again_accuses_nothing() -> None:
    with LocalCluster(workers=3, master_options=["--probe"]) as cluster:
        with cluster.client() as client:
            wait_until(lambda: client.probe()["verdict"] == "kept", what="enough reads were judged")
            cluster.master.kill()
            cluster.master.start()
            wait_until(lambda: client.probe()["verdict"] == "kept", what="enough reads were judged")
            assert client.probe()["violation_count"] == 0
