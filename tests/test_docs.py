"""What README.md says of the modes is what the modes say of themselves, and the files that it names are there."""

from __future__ import annotations

import re
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
    for readme in (ROOT / "README.md", ROOT / "plugins" / "README.md"):
        named = re.findall(r"`((?:trikv|plugins|tests|scripts|bench)/[\w./]+\.\w+)`", readme.read_text())
        assert named
        assert [name for name in named if not (ROOT / name).exists()] == []
