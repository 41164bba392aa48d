"""From an empty checkout to a running cluster, or to a tested change, with one command and nothing but Python.

    python3 scripts/dev.py demo [ARGS...]    a master and five workers in this terminal (ARGS go to `trikv demo`)
    python3 scripts/dev.py test [ARGS...]    the whole suite, on all cores (ARGS go to pytest)
    python3 scripts/dev.py lint              ruff, its formatter in check mode, and mypy --strict
    python3 scripts/dev.py check             lint, then test
    python3 scripts/dev.py map               every module of trikv in its room, with what it is for

The first run makes `.venv` beside this directory and installs trikv into it, editable, with its development tools. If
uv is on the PATH, uv does it by the lock file, else venv and pip within the ranges of pyproject.toml. A stamp in
`.venv` records the tool, the interpreter and the requirements, so that later runs start at once. If the requirements
change, the next run installs again; if the interpreter changes, it makes `.venv` anew.

The command then replaces this process, so signals reach it, and its exit code is the exit code of this process.

Left out: anything that needs a library, since none may be installed yet; and Windows, where trikv does not run.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / "trikv-installed-from"
PROJECT = ROOT / "pyproject.toml"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FAKE_CLOCKS = "*/faketime/libfaketime.so.1"  # below /usr/lib


class Stop(Exception):
    """The command cannot go on. The message is one line for the person at the terminal."""


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  # an older Python can parse this file, and gets this message
        return fail(f"trikv needs Python 3.11 or later, and {sys.executable} is {sys.version.split()[0]}")
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        asked = arguments[:1] in (["help"], ["-h"], ["--help"])
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        if command is not show_map:
            install()
        return command(arguments[1:])
    except Stop as stop:
        return fail(str(stop))
    except KeyboardInterrupt:
        return 130


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def say(message: str) -> None:
    print(f"dev.py: {message}", file=sys.stderr, flush=True)


# --- commands -----------------------------------------------------------------------------------------------------


def demo(arguments: list[str]) -> int:
    become([BIN / "trikv", "demo", *arguments])


def test(arguments: list[str]) -> int:
    find_browser()
    find_fake_clock()
    find_etcd()
    os.chdir(ROOT)  # pytest finds its settings and the tests from there
    # On all cores, and one test more, since many wait for other processes. `-n 0` runs one test at a time, as a
    # debugger needs it.
    together = str((os.cpu_count() or 1) + 1)
    become([BIN / "python", "-m", "pytest", "-n", together, "--dist", "worksteal", *arguments])


def lint(arguments: list[str]) -> int:
    """Run every linter, even after one has complained, so that all complaints are seen."""
    if arguments:
        raise Stop("lint takes no arguments: what it checks is written in pyproject.toml")
    checks = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])
    complaints = [" ".join(check) for check in checks if run([BIN / "python", "-m", *check])]
    return fail(f"{', '.join(complaints)} complained") if complaints else 0


def check(arguments: list[str]) -> int:
    return lint([]) or test(arguments)


def show_map(arguments: list[str]) -> int:
    """Print the tree of the package, each module with the first sentence of its docstring, as README.md shows it."""
    if arguments:
        raise Stop("map takes no arguments")
    print("\n".join(map_of(ROOT / "trikv")))
    return 0


def map_of(package: Path, depth: int = 0) -> list[str]:
    lines = [map_line(f"{package.name}/", package / "__init__.py", depth)]
    for entry in sorted(package.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
        if (entry / "__init__.py").exists():
            lines += map_of(entry, depth + 1)
        elif entry.suffix == ".py" and entry.name != "__init__.py":
            lines.append(map_line(entry.name, entry, depth + 1))
    return lines


def map_line(name: str, file: Path, depth: int) -> str:
    purpose = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[0]
    sentence = re.split(r"(?<=[.!?])\s", purpose.replace("\n", " "))[0]
    return f"{'  ' * depth + name:<24}{sentence}"


COMMANDS = {"demo": demo, "test": test, "lint": lint, "check": check, "map": show_map}


# --- the environment ----------------------------------------------------------------------------------------------


def install() -> None:
    """Bring `.venv` up to what pyproject.toml says. A lock makes two first runs in one checkout wait for each other."""
    with PROJECT.open("rb") as project:
        fcntl.flock(project, fcntl.LOCK_EX)
        uv = shutil.which("uv")
        # The base prefix is the same inside `.venv` and outside, so an activated `.venv` is not made anew.
        maker = f"{'uv' if uv else 'pip'}, {sys.base_prefix}, {sys.version}, {ROOT}".replace("\n", " ")
        wanted = digest()
        had = STAMP.read_text().splitlines() if STAMP.exists() else []
        if had == [maker, wanted]:
            return
        say(f"installing trikv and its tools into {VENV} ({'uv' if uv else 'pip'}) ...")
        STAMP.unlink(missing_ok=True)  # an install that is cut short must not look done
        if uv:
            need([uv, "sync", "--quiet", "--python", sys.executable], "uv sync failed")
        else:
            if had[:1] != [maker]:
                need_venv_module()
                need([sys.executable, "-m", "venv", "--clear", VENV], f"cannot make {VENV}")
            pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
            need([BIN / "python", *pip, "install", "--editable", f"{ROOT}[dev]"], "pip install failed")
        STAMP.write_text(f"{maker}\n{wanted}\n")


def digest() -> str:
    files = (file for file in (PROJECT, ROOT / "uv.lock") if file.exists())
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def need_venv_module() -> None:
    """Stop if `ensurepip` is missing and cannot be installed: Debian packages it apart from Python."""
    if importlib.util.find_spec("ensurepip") is None and not apt_install("python3-venv"):
        raise Stop("this Python cannot make virtual environments; as root: apt-get install python3-venv")


def find_browser() -> None:
    """Install a browser if it can be: some tests of the page need one, and are skipped without."""
    if not any(map(shutil.which, BROWSERS)) and not apt_install("chromium"):
        say("no chromium on the PATH, so the tests of the page in a browser will be skipped")


def find_fake_clock() -> None:
    """Install libfaketime if it can be: one test sets the clocks of a whole cluster, and is skipped without."""
    if not any(Path("/usr/lib").glob(FAKE_CLOCKS)) and not apt_install("libfaketime"):
        say("no libfaketime below /usr/lib, so the test of clocks that jump will be skipped")


def find_etcd() -> None:
    """Install etcd if it can be: several masters share one, and their tests are skipped without."""
    if not shutil.which("etcd") and not apt_install("etcd-server"):
        say("no etcd on the PATH, so the tests of several masters will be skipped")


def apt_install(package: str) -> bool:
    """Install a Debian package if this is root on a Debian; False if it is not, or if that failed."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return False
    say(f"installing {package} (apt-get) ...")
    # In runlevel 1 Debian's scripts start no service of a package that is installed.
    install_it = ["env", "RUNLEVEL=1", "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", package]
    if run(install_it, quiet=True) == 0:
        return True
    run(["apt-get", "update"], quiet=True)  # a fresh image has no list of packages, or an old one
    return run(install_it, quiet=True) == 0


# --- processes ----------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """This process's environment, with the tools of `.venv` first and without another virtual environment."""
    ours = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME")}
    return {
        **ours,
        "PATH": f"{BIN}{os.pathsep}{ours.get('PATH', os.defpath)}",
        "UV_PROJECT_ENVIRONMENT": str(VENV),
        "DEBIAN_FRONTEND": "noninteractive",
    }


def run(command: Sequence[str | Path], *, quiet: bool = False) -> int:
    out = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, cwd=ROOT, env=environment(), stdout=out, stderr=out, check=False).returncode


def need(command: Sequence[str | Path], otherwise: str) -> None:
    status = run(command)
    if status:
        raise Stop(f"{otherwise} (exit code {status}); what it said is above")


def become(command: Sequence[str | Path]) -> NoReturn:
    sys.stdout.flush()
    os.execve(command[0], [str(part) for part in command], environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
