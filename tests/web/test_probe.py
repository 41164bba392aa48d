"""What the probe says over HTTP, on the command line and in the metrics; and its keys, which nobody may use."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest

from trikv.testing.processes.cluster import LocalCluster, wait_until


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trikv", *words], capture_output=True, text=True, timeout=60)


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
        said = run("probe", "--url", cluster.url)
        assert (said.returncode, said.stderr) == (0, "")
        assert "kept: no operation contradicted the promise" in said.stdout
        as_json = run("probe", "--json", "--url", cluster.url)
        assert json.loads(as_json.stdout)["verdict"] == "kept"


def test_where_there_is_none_that_is_said_with_the_remedy(web: httpx.Client, cluster: LocalCluster) -> None:
    assert web.get("/v1/probe").raise_for_status().json()["enabled"] is False
    assert web.get("/v1/cluster").json()["probe"] is None
    assert web.get("/v1/probe?x=1").status_code == 400
    said = run("probe", "--url", cluster.url)
    assert said.returncode == 1
    assert "start the master with --probe" in said.stderr


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_keys_of_the_clusters_own_are_refused(web: httpx.Client, method: str) -> None:
    answer = web.request(method, "/v1/kv/%00trikv/probe/x")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_key")
    batch = {"items": [{"op": "put", "key": "\0trikv/x", "value": "v"}]}
    assert "bad_key" in web.post("/v1/batch", json=batch).text
