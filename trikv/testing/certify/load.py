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
from trikv.foreign import ForeignCodeError, foreign_code
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
            why = [one.why for one in registry.unusable if one.name == target]
            raise LoadError(
                why[0] if why else f"no such mode: {error.detail}; a class is written package.module:Class"
            ) from error
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
        with foreign_code(module_name):
            found: object = importlib.import_module(module_name)
    except ForeignCodeError as error:
        raise LoadError(f"the module {module_name!r} cannot be imported: {error}") from error
    for name in class_name.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise LoadError(f"the module {module_name!r} has no {class_name!r}") from None
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise LoadError(f"{module_name}:{class_name} is no strategy: it is not a subclass of trikv.api.Strategy")
    try:
        with foreign_code(module_name):
            return found()
    except ForeignCodeError as error:
        raise LoadError(f"{module_name}:{class_name} cannot be made: {error}") from error
