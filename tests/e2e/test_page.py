"""The page, in a browser: what a person sees of a cluster that is whole, and of one that is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trikv.testing.processes.cluster import LocalCluster, wait_until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_DEADLINE_S = 60.0

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH; apt-get install chromium")


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[str], str]:
    """The text of a page as the browser has laid it out, in one line."""

    def show(url: str) -> str:
        assert BROWSER is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        ended = subprocess.run(
            [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", url],
            capture_output=True,
            timeout=BROWSER_DEADLINE_S,
            check=True,
        )
        body = ended.stdout.decode().partition("<body")[2]
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))

    return show


def test_the_page_shows_the_mode_its_price_and_every_worker(
    quiet_cluster: LocalCluster, shown: Callable[[str], str]
) -> None:
    text = shown(quiet_cluster.url + "/")
    with quiet_cluster.client() as client:
        state = client.cluster()
    price = next(mode["gives_up"] for mode in state["modes"] if mode["name"] == "quorum")
    assert "Serving" in text
    assert price in text
    for worker in quiet_cluster.workers:
        assert worker.id in text


def test_the_page_shows_a_worker_that_is_down_and_what_happened(shown: Callable[[str], str]) -> None:
    with LocalCluster(workers=3, timeout_s=20.0) as cluster, cluster.client() as client:
        client.put(b"key", b"value")
        victim = cluster.workers[0]
        victim.kill()

        def down() -> bool:
            return any(w["id"] == victim.id and w["state"] == "down" for w in client.cluster()["workers"])

        wait_until(down, what="the master sees that the worker is gone")
        text = shown(cluster.url + "/")
    assert f"Nobody listens at {victim.address}" in text
    assert f"Worker {victim.id} is down." in text
