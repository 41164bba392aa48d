"""`trikv new-strategy`: the starting files of a plugin, as a distribution that installs, runs and passes its test.

The plugin is a replication strategy, or with `--storage` a storage engine.

The files are in `trikv/starter/`, with `$`-words in place of the names. The result is a package beside trikv, not a
part of it: its author changes it and installs it with pip, without touching trikv.

The name is checked before anything is written. It is the name of the mode or the engine, and part of the names of a
distribution, a module and a class, so it must be free as each of them. An existing directory is left alone, empty or
not.

Left out: a licence, an author and a repository, which the author chooses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Final

from trikv import __version__
from trikv.registry import Registry

_NAME: Final = re.compile(r"[a-z]([a-z0-9_-]{0,30}[a-z0-9])?")  # what a mode and a distribution may both be called


@dataclass(frozen=True, slots=True)
class _Starter:
    """What differs between the kinds of plugins. `files`: as written, and as kept. `words`: see the files."""

    files: Mapping[str, str]
    class_suffix: str
    words: Mapping[str, str]


STRATEGY: Final = _Starter(
    {
        "pyproject.toml": "pyproject.toml.txt",
        "$module.py": "strategy.py.txt",
        "test_$module.py": "test_strategy.py.txt",
        "README.md": "README_strategy.md.txt",
    },
    "Strategy",
    {"kind": "replication strategy", "dependencies": "", "test_dependencies": "", "test_settings": ""},
)
ENGINE: Final = _Starter(
    {
        "pyproject.toml": "pyproject.toml.txt",
        "$module.py": "engine.py.txt",
        "test_$module.py": "test_engine.py.txt",
        "README.md": "README_engine.md.txt",
    },
    "Engine",
    {
        "kind": "storage engine",
        "dependencies": '"trio", ',
        "test_dependencies": '"pytest-trio>=0.8,<0.9", ',
        "test_settings": "trio_mode = true\n",
    },
)


class NotWritten(Exception):
    """The starting files cannot be written, and none was written; one line says why."""


def write_starting_files(
    name: str, directory: Path | None, registry: Registry, starter: _Starter = STRATEGY
) -> list[Path]:
    """Write the files for a plugin `name` into a new `directory` (default: its distribution's name, here).

    Raises:
      NotWritten: the name cannot be used or is taken, or the directory exists.
      OSError: the directory cannot be written.
    """
    words = _words(name, registry, starter)
    directory = Path(words["distribution"]) if directory is None else directory
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise NotWritten(f"{directory} exists already; give another one with --directory") from None
    shelf = files("trikv") / "starter"
    written = []
    for path, kept in starter.files.items():
        file = directory / Template(path).substitute(words)
        file.write_text(Template((shelf / kept).read_text()).substitute(words))
        written.append(file)
    return written


def _words(name: str, registry: Registry, starter: _Starter) -> dict[str, str]:
    if _NAME.fullmatch(name) is None:
        raise NotWritten(
            f"{name!r} cannot be a {starter.words['kind']}'s name: at most 32 lower-case letters, digits, - and _, "
            "a letter first and no - or _ last"
        )
    if name in registry.origins:
        raise NotWritten(f"the name {name!r} is taken by {registry.origins[name]}")
    module = f"trikv_{name.replace('-', '_')}"
    if find_spec(module) is not None:
        raise NotWritten(f"the name {name!r} is taken: a module {module} is installed already")
    stem = "".join(part.capitalize() for part in re.split("[-_]+", name))
    return {
        **starter.words,
        "name": name,
        "distribution": f"trikv-{name}",
        "module": module,
        "class_name": stem + starter.class_suffix,
        "storage_name": stem + "Storage",
        "version": __version__,
    }
