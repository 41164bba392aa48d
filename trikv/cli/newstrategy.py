"""`trikv new-strategy`: the starting files of a strategy, as a distribution that installs, runs and passes its test.

The files are in `trikv/starter/`, with `$`-words in place of the names. The result is a package beside trikv, not a
part of it: its author changes it and installs it with pip, without touching trikv.

The name is checked before anything is written. It is the name of the mode, and part of the names of a distribution, a
module and a class, so it must be free as each of them. An existing directory is left alone, empty or not.

Left out: a licence, an author and a repository, which the author chooses.
"""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Final

from trikv import __version__
from trikv.registry import Registry

_NAME: Final = re.compile(r"[a-z]([a-z0-9_-]{0,30}[a-z0-9])?")  # what a mode and a distribution may both be called
_FILES: Final = {  # as written: as kept
    "pyproject.toml": "pyproject.toml.txt",
    "$module.py": "strategy.py.txt",
    "test_$module.py": "test_strategy.py.txt",
    "README.md": "README.md.txt",
}


class NotWritten(Exception):
    """The starting files cannot be written, and none was written; one line says why."""


def write_starting_files(name: str, directory: Path | None, registry: Registry) -> list[Path]:
    """Write the files for a strategy `name` into a new `directory` (default: its distribution's name, here).

    Raises:
      NotWritten: the name cannot be used or is taken, or the directory exists.
      OSError: the directory cannot be written.
    """
    words = _words(name, registry)
    directory = Path(words["distribution"]) if directory is None else directory
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise NotWritten(f"{directory} exists already; give another one with --directory") from None
    starter = files("trikv") / "starter"
    written = []
    for path, kept in _FILES.items():
        file = directory / Template(path).substitute(words)
        file.write_text(Template((starter / kept).read_text()).substitute(words))
        written.append(file)
    return written


def _words(name: str, registry: Registry) -> dict[str, str]:
    if _NAME.fullmatch(name) is None:
        raise NotWritten(
            f"{name!r} cannot be a mode's name: at most 32 lower-case letters, digits, - and _, "
            "a letter first and no - or _ last"
        )
    if name in registry.origins:
        raise NotWritten(f"the name {name!r} is taken by {registry.origins[name]}")
    module = f"trikv_{name.replace('-', '_')}"
    if find_spec(module) is not None:
        raise NotWritten(f"the name {name!r} is taken: a module {module} is installed already")
    return {
        "name": name,
        "distribution": f"trikv-{name}",
        "module": module,
        "class_name": "".join(part.capitalize() for part in re.split("[-_]+", name)) + "Strategy",
        "version": __version__,
    }
