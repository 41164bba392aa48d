"""What matters in style, as tests: floors, no import circle, the doors, docstrings, class names, hooks.

A module imports its own floor and lower ones only, and no modules import each other in a circle. The core knows no
clock, dice, network or log. The nodes and what moves their bytes reach the clock through Trio and everything else
through `trikv.net.doors`, so that all of it runs in a simulated world as well. The files are read as syntax trees and
not run; each rule is also shown a file that breaks it, so that a rule that sees nothing is noticed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from trikv.api import Hooks

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("trikv", "plugins", "scripts", "bench", "tests")
FLOORS = {
    "trikv": 0, "trikv.core": 0,
    "trikv.api": 1,
    "trikv.storage": 2, "trikv.net": 2, "trikv.provision": 2,
    "trikv.registry": 3, "trikv.foreign": 3, "trikv.config": 3, "trikv.timeline": 3, "trikv.logs": 3,
    "trikv.worker": 4, "trikv.coordinator": 4,
    "trikv.healing": 5,
    "trikv.master": 6,
    "trikv.web": 7, "trikv.testing": 7, "trikv.client": 7,
    "trikv.cli": 8, "trikv.daemon": 8, "trikv.masterprocess": 8, "trikv.process": 8, "trikv.__main__": 8,
}  # fmt: skip

CLOCKS_AND_DICE = {"time", "datetime", "random", "secrets", "uuid"}
NOT_IN_CORE = CLOCKS_AND_DICE | {
    "asyncio", "concurrent", "logging", "multiprocessing", "os", "pathlib", "queue", "select", "selectors", "signal",
    "socket", "ssl", "subprocess", "tempfile", "threading", "trio",
}  # fmt: skip
NOT_BEHIND_DOORS = CLOCKS_AND_DICE | {"asyncio", "multiprocessing", "select", "selectors", "socket", "subprocess"}
DOORS = "trikv.net.doors"
BEHIND_DOORS = ("trikv.net", "trikv.worker", "trikv.coordinator", "trikv.healing", "trikv.master")
FRONTS = ("trikv.web",)


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor_of(module: str) -> int | None:
    """The floor of the nearest package that has one. `trikv` itself stands for its `__init__` alone."""
    if module == "trikv":
        return FLOORS[module]
    parts = module.split(".")
    return FLOORS.get(".".join(parts[:2]))


def imports(source: str, module: str) -> Iterator[str]:
    """Every module that the source imports, wherever in it; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def complaints(source: str, module: str) -> list[str]:
    """What a module of trikv, or a plugin of ours, imports and should not."""
    found = []
    floor = floor_of(module)
    for name in sorted(set(imports(source, module))):
        top = name.partition(".")[0]
        if top == "trikv" and floor is not None and (floor_of(name) or 0) > floor:
            found.append(f"{module} (floor {floor}) imports {name} (floor {floor_of(name)})")
        if module.startswith("trikv.core") and top in NOT_IN_CORE:
            found.append(f"{module} imports {name}: the core decides, it does not look outside")
        if (
            f"{module}.".startswith(tuple(f"{package}." for package in BEHIND_DOORS))
            and module != DOORS
            and top in NOT_BEHIND_DOORS
        ):
            found.append(f"{module} imports {name}: use {DOORS}, or trio's clock")
        if module.startswith(FRONTS) and name == "trikv.master.master":
            found.append(f"{module} imports {name}: a front takes the parts that it needs, as trikv.web.services")
        harmless = top in sys.stdlib_module_names or name in ("trikv", "trikv.api") or name.startswith("trikv.api.")
        if module.startswith("plugins.") and not harmless:
            found.append(f"{module} imports {name}: a strategy needs trikv.api alone")
    return found


def find_circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others: each circle once, in alphabetical order."""
    reached: dict[str, set[str]] = {}
    for module in imported:
        found: set[str] = set()
        ahead = list(imported[module])
        while ahead:
            if (name := ahead.pop()) not in found:
                found.add(name)
                ahead += imported.get(name, ())
        reached[module] = found
    circles = {
        frozenset(other for other in reached[module] if module in reached.get(other, ()))
        for module in reached
        if module in reached[module]
    }
    return sorted(sorted(circle) for circle in circles)


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_of(file): file.read_text() for file in files("trikv")}
    imported = {}
    for module, source in modules.items():
        names = set(imports(source, module))
        # `from a import b` names both; where `a.b` is a module, it is what is imported.
        packages = {name.rpartition(".")[0] for name in names if name in modules}
        imported[module] = {name for name in names if name in modules and name != module} - packages
    assert find_circles(imported) == []


def test_a_circle_is_found() -> None:
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def classes_defined_twice(sources: dict[str, str]) -> dict[str, list[str]]:
    """By name: the modules of each public class that more than one module defines."""
    found: dict[str, list[str]] = {}
    for module, source in sorted(sources.items()):
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def test_each_public_class_name_exists_once() -> None:
    assert classes_defined_twice({module_of(file): file.read_text() for file in files("trikv")}) == {}


def test_a_class_name_that_exists_twice_is_found() -> None:
    sources = {"b": "class Row: ...\nclass _Own: ...", "a": "class Row: ...\nclass _Own: ...\nclass Page: ..."}
    assert classes_defined_twice(sources) == {"Row": ["a", "b"]}


def test_every_module_of_trikv_has_a_floor() -> None:
    homeless = [module for file in files("trikv") if floor_of(module := module_of(file)) is None]
    assert homeless == [], "give it a line in FLOORS"


def is_test(file: Path) -> bool:
    """A plugin that is a distribution of its own brings its own tests, which use more than the plugin may."""
    return file.name.startswith("test_")


@pytest.mark.parametrize("file", [file for file in files("trikv", "plugins") if not is_test(file)], ids=module_of)
def test_a_module_imports_its_own_floor_and_lower_ones_only(file: Path) -> None:
    assert complaints(file.read_text(), module_of(file)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trikv.core.tally", "import trio"),
        ("trikv.core.tally", "def f():\n    from os import urandom"),
        ("trikv.core.tally", "from trikv.api import Row"),
        ("trikv.core.tally", "from trikv import api"),
        ("trikv.core.tally", "from .. import api"),
        ("trikv.core.tally", "from ..net import link"),
        ("trikv.api", "import trikv.net.link"),
        ("trikv.storage.memory", "from trikv import config"),
        ("trikv.worker.worker", "import time"),
        ("trikv.worker.worker", "from datetime import datetime"),
        ("trikv.worker.worker", "from trikv.web import app"),
        ("trikv.web.keys", "from trikv.master.master import Master"),
        ("trikv.net.link", "import random"),
        ("trikv.net.link", "from socket import socket"),
        ("plugins.trikv_sync", "from trikv.core.record import Record"),
        ("plugins.trikv_sync", "import trio"),
        ("plugins.trikv_sync", "from trikv import core"),
    ],
)
def test_the_rules_see_what_breaks_them(module: str, source: str) -> None:
    assert complaints(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trikv.core.tally", "from trikv.core.record import Record\nimport struct"),
        ("trikv.net.doors", "import random"),
        ("trikv.worker.worker", "import trio\nfrom trikv import __version__\nfrom trikv.net import link"),
        ("trikv.testing.processes.cluster", "import time, os, subprocess"),
        ("plugins.trikv_sync", "from trikv.api import Strategy\nimport struct"),
    ],
)
def test_the_rules_leave_the_rest_alone(module: str, source: str) -> None:
    assert complaints(source, module) == []


@pytest.mark.parametrize("file", files(*FOLDERS), ids=module_of)
def test_a_file_opens_by_saying_why_it_exists(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text())), "a docstring comes first"


def files_of_tests(names: set[str]) -> list[str]:
    """Those of these modules that lie in a file of tests."""
    return sorted(
        name for name in names if name.startswith("tests.") and any(p.startswith("test_") for p in name.split("."))
    )


@pytest.mark.parametrize("file", files(*FOLDERS), ids=module_of)
def test_nothing_is_imported_from_a_file_of_tests(file: Path) -> None:
    """What tests share is in a module of its own, or in a `conftest.py`."""
    assert files_of_tests(set(imports(file.read_text(), module_of(file)))) == []


@pytest.mark.parametrize("source", ["from tests.net.test_link import x", "from tests.net import test_link"])
def test_an_import_from_a_file_of_tests_is_seen(source: str) -> None:
    assert files_of_tests(set(imports(source, "tests.web.test_page"))) != []
    assert files_of_tests(set(imports("from tests.helpers import fill", "tests.web.test_page"))) == []


@pytest.mark.parametrize("hook", [name for name in vars(Hooks) if name.startswith("trikv_")])
def test_a_hook_is_documented_and_implemented(hook: str) -> None:
    assert inspect.getdoc(getattr(Hooks, hook))
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["trikv"]
    modules = [importlib.import_module(module) for module in entry_points.values()]
    # The mark that `hookimpl` leaves on a function: without it, pluggy never calls the function.
    assert any(hasattr(getattr(module, hook, None), "trikv_impl") for module in modules)


def test_a_worker_starts_without_what_it_never_uses() -> None:
    """The HTTP stack is half of a process's start, and a cluster has more workers than masters."""
    program = "import sys, trikv.daemon; print(*{'quart', 'hypercorn', 'httpx', 'rich'} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
    assert loaded.split() == []
