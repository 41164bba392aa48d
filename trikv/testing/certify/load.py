"""Finds the strategy that a person names: `quorum`, or `package.module:Class`.

A class need not be installed: its module is also looked for in the current directory. Any error is reported in one
line, before a run begins.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

from trikv.api import Strategy
from trikv.core.errors import Refused
from trikv.registry import PluginError, load_registry


class LoadError(Exception):
    """There is no such strategy, or the class cannot be one. One line says why."""


@dataclass(frozen=True, slots=True)
class Loaded:
    strategy: Strategy
    origin: str  # the distribution with its version, or the module


def load_strategy(target: str) -> Loaded:
    """Raises:
    LoadError: see there."""
    try:
        registry = load_registry()
    except PluginError as error:
        raise LoadError(str(error)) from error
    module_name, colon, class_name = target.partition(":")
    if not colon:
        try:
            return Loaded(registry.strategy(target), registry.origins[target])
        except Refused as error:
            raise LoadError(f"no such mode: {error.detail}; a class is written package.module:Class") from error
    made = _make(module_name, class_name)
    if any(type(installed) is type(made) for installed in registry.strategies.values()):
        return Loaded(made, module_name)
    try:
        return Loaded(registry.with_strategy(made, module_name).strategies[made.name], module_name)
    except PluginError as error:
        raise LoadError(str(error)) from error


def _make(module_name: str, class_name: str) -> Strategy:
    """An instance of the class, imported by its path."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise any error while it is imported
        raise LoadError(f"the module {module_name!r} cannot be imported: {_told(error)}") from error
    for name in class_name.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise LoadError(f"the module {module_name!r} has no {class_name!r}") from None
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise LoadError(f"{module_name}:{class_name} is no strategy: it is not a subclass of trikv.api.Strategy")
    try:
        return found()
    except (Exception, SystemExit) as error:  # as above
        raise LoadError(f"{module_name}:{class_name} cannot be made: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
