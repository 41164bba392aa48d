"""What the benches share: processor time is that of the process that is asked about, and bars are as long as values."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.common import Bar, add_outputs, cpu_s_of, draw_bars, memory_bytes_of, write_outputs
from trikv.testing.processes.cluster import wait_until

SVG = "{http://www.w3.org/2000/svg}"


def bars_of(picture: str) -> list[float]:
    """Their lengths."""
    rects = ElementTree.fromstring(picture).iter(f"{SVG}rect")
    return [float(rect.get("width", "")) for rect in rects if rect.get("class") == "bar"]


def test_bars_are_in_proportion_and_on_a_logarithmic_scale_in_steps() -> None:
    bars = [Bar("a", 1.0, "1"), Bar("b", 10.0, "10"), Bar("c", 100.0, "100")]
    one, ten, longest = bars_of(draw_bars("title", "note", {"all": bars}))
    assert [longest / ten, ten / one] == pytest.approx([10, 10], rel=0.1)
    one, ten, hundred = bars_of(draw_bars("title", "note", {"all": bars}, by_powers=True))
    assert hundred - ten == pytest.approx(ten - one, abs=0.2)
    assert (hundred, one > 0) == (longest, True)


def test_a_value_of_zero_and_a_picture_of_nothing_are_drawn() -> None:
    assert bars_of(draw_bars("title", "note", {"all": [Bar("a", 0.0, "0")]}, by_powers=True)) == [0.0]
    assert bars_of(draw_bars("title", "note", {}, level=1.0)) == []


def test_words_of_a_picture_are_escaped() -> None:
    picture = draw_bars("a < b", "c & d", {"<e>": [Bar("f > g", 1.0, '"h"')]})
    texts = [element.text for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert texts == ["a < b", "<e>", "f > g", '"h"', "c & d."]


def test_a_document_says_what_was_asked_and_on_which_machine(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    add_outputs(parser)
    file = tmp_path / "figures.json"
    write_outputs(parser.parse_args(["--json", str(file)]), "name", [{"rate": 1.5}], "no picture")
    document = json.loads(file.read_text())
    assert (document["bench"], document["options"], document["rows"]) == ("name", {"seed": 7}, [{"rate": 1.5}])
    assert document["machine"]
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]


def test_processor_time_and_memory_are_of_the_process_that_is_asked_about() -> None:
    code = "data = bytearray(64 << 20)\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            wait_until(lambda: cpu_s_of(process.pid) >= 0.1, what="it has worked")
            assert memory_bytes_of(process.pid) > 64 << 20
        finally:
            process.kill()
