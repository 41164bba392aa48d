"""Commands where an installed plugin cannot be used: it is named, and stops nothing that does not ask for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers import run_trikv


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has a plugin `broken`, which ends the process that imports it."""
    (tmp_path / "trikv_broken.py").write_text("import sys\n\nsys.exit(4)\n")
    information = tmp_path / "trikv_broken-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: trikv-broken\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[trikv]\nbroken = trikv_broken\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


WHY = (
    "the plugin 'broken' of trikv-broken 1.0 (trikv_broken) cannot be loaded: "
    "calls sys.exit(4), at trikv_broken.py:3 (sys.exit(4))"
)


def test_the_list_has_it_once_and_with_the_reason(broken: dict[str, str]) -> None:
    listed = run_trikv("plugins", "--json", environment=broken)
    assert (listed.returncode, listed.stderr) == (0, "")
    rows = json.loads(listed.stdout)
    assert {"quorum", "memory", "local"} <= {row["name"] for row in rows}
    assert [row for row in rows if row["kind"] == "unusable"] == [
        {"kind": "unusable", "name": "broken", "promise": "", "from": "trikv-broken 1.0", "about": WHY}
    ]


def test_it_is_refused_where_it_is_asked_for(broken: dict[str, str], tmp_path: Path) -> None:
    certified = run_trikv("certify", "broken", environment=broken)
    assert certified.returncode == 2
    assert WHY in certified.stderr
    worker = run_trikv("worker", "0", "--storage", "broken", "--data-dir", str(tmp_path / "w"), environment=broken)
    assert worker.returncode == 2
    assert WHY in worker.stderr


def test_another_strategy_is_certified_beside_it(broken: dict[str, str]) -> None:
    certified = run_trikv("certify", "quorum", "--replay", "1", "--json", environment=broken)
    assert certified.returncode == 0, certified.stderr
    assert json.loads(certified.stdout)["misconduct"] == {}
