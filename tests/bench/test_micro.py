"""Every case of `bench/micro.py` runs, once or twice: its figures mean nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.micro import BARE, LAYERS, measure_all

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("name", [*LAYERS, *BARE])
def test_a_layer_runs(name: str) -> None:
    said: list[str] = []
    results = measure_all({name: {**LAYERS, **BARE}[name]}, repeats=1, burst_s=0.0, says=said.append)
    assert len(results) >= 1
    assert len({result.name for result in results}) == len(results)
    assert len(said) == 1 + len(results)
    for result in results:
        assert result.layer == name
        assert result.least_us >= 0
        assert min(result.wall_us) > 0


def test_the_script_writes_its_figures_and_draws_them(tmp_path: Path) -> None:
    figures, picture = tmp_path / "micro.json", tmp_path / "micro.svg"
    command: list[str | Path] = [sys.executable, ROOT / "bench" / "micro.py", "--quick", "--only", "tally", "locks"]
    ran = subprocess.run(
        [*command, "--json", figures, "--picture", picture], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    document = json.loads(figures.read_text())
    assert document["bench"] == "micro"
    assert document["machine"] in ran.stdout
    assert {row["layer"] for row in document["rows"]} == {"tally", "locks"}
    assert all(row["cpu_us"] > 0 and row["case"] in ran.stdout for row in document["rows"])
    texts = [element.text for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {row["case"] for row in document["rows"]} <= set(texts)
