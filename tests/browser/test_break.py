"""Break it, from the page: the cluster has each fault, and all that was done is kept as a file that can be played."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import WORKERS, OpenPage, make_demo, send
from trikv.testing.processes.cluster import LocalCluster

SEEDS = 3
CERTIFY_S = 120.0
SLOW_MS = 60_000


@pytest.fixture(scope="module")
def broken() -> Iterator[LocalCluster]:
    with make_demo(WORKERS) as cluster:
        yield cluster


def test_what_was_broken_is_kept_and_played_again(broken: LocalCluster, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(broken)
    one, two, three = ids(page)
    expected: list[dict[str, Any]] = []

    send(page, "put", "color", "red")
    expected.append({"request": "put", "key": "color", "value": "red"})

    press(page, "pause", one)
    expect(condition(page, one)).to_contain_text("process paused")
    assert fault_of(broken, one)["process"] == "paused"
    expect(page.locator(f'tr[data-worker="{one}"] .state')).not_to_have_text("up")
    press(page, "resume", one)
    expect(page.locator(f'tr[data-worker="{one}"] .state')).to_have_text("up")
    expected += [{"fault": "pause", "worker": 1}, {"end": "pause", "worker": 1}]

    press(page, "cut", two)
    expect(condition(page, two)).to_contain_text(", link cut")
    assert fault_of(broken, two)["link"] == "cut"
    press(page, "mend", two)
    expect(condition(page, two)).not_to_contain_text(", link")
    expected += [{"fault": "cut", "worker": 2}, {"end": "cut", "worker": 2}]

    press(page, "slow", three)
    expect(condition(page, three)).to_contain_text(", link slow")
    assert fault_of(broken, three)["link"] == "slow"
    press(page, "mend", three)
    expect(condition(page, three)).not_to_contain_text(", link")
    expected += [{"fault": "slow", "worker": 3, "delay_ms": 300}, {"end": "slow", "worker": 3}]

    press(page, "kill", two)
    expect(condition(page, two)).to_contain_text("process gone")
    expect(page.locator(f'tr[data-worker="{two}"] .state')).to_have_text("down")
    press(page, "start", two)
    expect(page.locator(f'tr[data-worker="{two}"] .state')).to_have_text("up", timeout=SLOW_MS)
    expected += [{"fault": "kill", "worker": 2}, {"end": "kill", "worker": 2}]

    send(page, "get", "color")
    expected.append({"request": "get", "key": "color"})
    expect(page.locator("#recorded")).to_contain_text(f"{len(expected)} steps")

    file = save(page, tmp_path)
    saved = json.loads(file.read_text())
    assert [{name: value for name, value in step.items() if name != "at_s"} for step in saved["steps"]] == expected
    assert saved["workers"] == [one, two, three]
    played = subprocess.run(
        [sys.executable, "-m", "trikv", "certify", "quorum", "--schedule", file, "--seeds", str(SEEDS)],
        capture_output=True, timeout=CERTIFY_S, check=False,
    )  # fmt: skip
    told = played.stdout.decode() + played.stderr.decode()
    assert played.returncode == 0, told


def ids(page: Page) -> list[str]:
    """The workers in the order of their numbers, as the file names them."""
    rows = page.locator("tr[data-worker]")
    numbered = rows.evaluate_all(
        "(rows) => rows.map((row) => [Number(row.querySelector('.swatch').textContent), row.dataset.worker])"
    )
    return [worker for _, worker in sorted(numbered)]


def fault_of(cluster: LocalCluster, worker: str) -> dict[str, Any]:
    with cluster.client() as client:
        found: dict[str, Any] = next(one for one in client.faults()["workers"] if one["id"] == worker)
        return found


def press(page: Page, kind: str, worker: str) -> None:
    page.locator(f'#victims [data-fault="{kind} {worker}"]').click()
    expect(page.locator("#break-outcome")).to_contain_text(f"{kind} ")
    expect(page.locator("#break-outcome")).to_contain_text("done")


def condition(page: Page, worker: str) -> Locator:
    """What the list of victims says of one worker."""
    return page.locator("#victims li").filter(has=page.locator(f'[data-fault="cut {worker}"]'))


def save(page: Page, directory: Path) -> Path:
    with page.expect_download() as downloading:
        page.locator("#record-save").click()
    file = directory / downloading.value.suggested_filename
    downloading.value.save_as(file)
    command = page.locator("#record-command").inner_text()
    assert command == f"trikv certify quorum --schedule {file.name}"
    return file
