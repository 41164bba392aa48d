"""What a stranger gets: a lock file that works anywhere, a typed package, a developer's script that explains."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import trikv

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text())


def test_the_lock_names_the_public_index_and_nothing_of_this_machine() -> None:
    sources = {tuple(package["source"].items()) for package in LOCK["package"]}
    assert sources == {(("registry", "https://pypi.org/simple"),), (("editable", "."),)}
    distributions = [one for package in LOCK["package"] for one in [*package.get("wheels", []), package.get("sdist")]]
    assert [d["url"] for d in distributions if d and not d["url"].startswith("https://files.pythonhosted.org/")] == []


def test_the_lock_knows_every_requirement() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    [metadata] = [package["metadata"] for package in LOCK["package"] if package["name"] == "trikv"]
    locked = {one["name"]: one.get("specifier", "") for one in metadata["requires-dist"]}
    parts = [re.match(r"([a-z0-9-]+)(?:\[.*\])?(.*)", requirement) for requirement in wanted]
    assert {part[1]: part[2] for part in parts if part} == locked, "run: uv lock"


def test_the_package_knows_its_version_and_that_it_is_typed() -> None:
    assert trikv.__version__ == version("trikv") == PROJECT["project"]["version"]
    assert files("trikv").joinpath("py.typed").is_file()


def dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "dev.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_developers_script_says_what_it_can_do() -> None:
    asked = dev("--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    for command in ("demo", "test", "lint", "check"):
        assert f"scripts/dev.py {command}" in asked.stdout
    for wrong in ((), ("tset",)):
        told = dev(*wrong)
        assert (told.returncode, told.stdout, told.stderr) == (2, "", asked.stdout)
