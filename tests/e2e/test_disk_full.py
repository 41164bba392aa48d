"""Real disks that fill up: small file systems of this test's own, which only root may mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from trikv.testing.processes.cluster import LocalCluster, wait_until

VALUE = os.urandom(60_000)


def mount(path: Path, size: str) -> None:
    path.mkdir()
    told = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if told.returncode:
        pytest.skip(f"this test needs small disks, and may not mount any: {told.stderr.strip()}")


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[list[Path]]:
    paths = [tmp_path / f"worker-{number}" for number in (1, 2, 3)]
    mounted = []
    try:
        for path in paths:
            mount(path, "12m")
            mounted.append(path)
        yield paths
    finally:
        for path in mounted:
            subprocess.run(["umount", "-l", path], check=True)


def put_until_full(web: httpx.Client) -> list[str]:
    """The keys that were acknowledged before the first refusal for want of room."""
    keys: list[str] = []
    for number in range(5_000):
        answer = web.put(f"/v1/kv/k{number}", content=VALUE)
        if answer.status_code == 507:
            assert answer.json()["outcome"] == "refused"
            return keys
        # 504: a worker's disk was full between two of its heartbeats, and some of the others have the value.
        assert answer.status_code in (204, 503, 504), answer.text
        if answer.status_code == 204:
            keys.append(f"k{number}")
    raise AssertionError("the disks were never full")


def test_full_disks_serve_reads_and_deletes_and_start_again(small_disks: list[Path], tmp_path: Path) -> None:
    with (
        LocalCluster(mode="quorum", workers=3, storage="rocksdb", directory=tmp_path) as cluster,
        httpx.Client(base_url=cluster.url, trust_env=False, timeout=30) as web,
    ):
        keys = put_until_full(web)
        assert len(keys) > 20
        state = web.get("/v1/cluster").json()
        assert any(worker["disk_full"] for worker in state["workers"])
        assert web.delete(f"/v1/kv/{keys[0]}").status_code == 204
        assert web.get(f"/v1/kv/{keys[1]}").content == VALUE

        # Somebody else takes what is left, to the last block, and the workers are killed.
        for path in small_disks:
            with (path / "somebody-elses").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        for worker in cluster.workers:
            worker.kill()
        for worker in cluster.workers:
            cluster.start_worker(worker)
        cluster.await_up(cluster.workers)
        wait_until(lambda: web.get(f"/v1/kv/{keys[1]}").status_code == 200, what="what was acknowledged is read")
        wait_until(lambda: web.delete(f"/v1/kv/{keys[2]}").status_code == 204, what="a delete is taken")
        assert web.get(f"/v1/kv/{keys[0]}").status_code == 404

        for path in small_disks:
            (path / "somebody-elses").unlink()
            subprocess.run(["mount", "-o", "remount,size=100m", path], check=True)
        wait_until(lambda: web.put("/v1/kv/again", content=VALUE).status_code == 204, what="there is room again")
        assert [key for key in keys[3:] if web.get(f"/v1/kv/{key}").content != VALUE] == []
