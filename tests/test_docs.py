"""README.md is true: it says of the modes what they say of themselves, and its map is the tree that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from trikv.registry import load_registry

ROOT = Path(__file__).parent.parent
REPLICAS = 3


def test_the_table_of_modes_is_in_the_strategies_own_words() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.partition("<!-- modes")[2].partition("<!-- end of modes")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    said = [
        f"| {s.name} | {s.promise} | {s.copies(REPLICAS)} of {REPLICAS} | {s.protocol} | {s.gives_up} | {s.use_when} |"
        for s in sorted(load_registry().strategies.values(), key=lambda s: s.name)
        if load_registry().origins[s.name].startswith("trikv ")
    ]
    assert rows == said


def test_the_files_that_the_readmes_name_exist() -> None:
    for readme in (ROOT / "README.md", ROOT / "plugins" / "README.md", ROOT / "bench" / "README.md"):
        named = re.findall(r"`((?:trikv|plugins|tests|scripts|bench)/[\w./]+\.\w+)`", readme.read_text())
        assert named
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_map_is_the_tree_that_there_is() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "dev.py", "map"], check=True, capture_output=True, text=True
    ).stdout
    shown = (ROOT / "README.md").read_text().partition("<!-- map -->\n```text\n")[2].partition("```\n")[0]
    assert shown == printed, "put what `python scripts/dev.py map` prints into README.md"
