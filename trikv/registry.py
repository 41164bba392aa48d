"""The modes and storage engines that are installed, under the entry-point group `trikv`.

trikv's own are found in the same way as any other distribution's. pluggy calls the plugins' hooks. The entry points are
loaded here and not by pluggy, since pluggy silently skips an entry point whose name is taken, and a user would get
another mode than the installed one. Two distributions that offer one name are refused, and both are named. A plugin
that cannot be imported, or that hands over something malformed, is refused too. A refusal is one line at the start,
before any data is touched.

Modes, engines and provisioners share one set of names. All this happens once, at the start, and never on a request's
path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Final, TypeVar

import pluggy

from trikv.api import Hooks, Promise, Provisioner, StorageEngine, Strategy
from trikv.core.errors import Refused

GROUP: Final = "trikv"
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_REPLICAS_TRIED: Final = range(1, 17)  # for each such n, `copies(n)` must be from 1 to n
_SENTENCES: Final = ("gives_up", "use_when", "protocol")


class PluginError(Exception):
    """A plugin cannot be used. The message is one line that names the plugin's distribution."""


@dataclass(frozen=True)
class Registry:
    """What is installed. `origins` has for each name the distribution that brought it, with its version."""

    strategies: Mapping[str, Strategy] = field(default_factory=dict)
    storage_engines: Mapping[str, StorageEngine] = field(default_factory=dict)
    provisioners: Mapping[str, Provisioner] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def strategy(self, name: str) -> Strategy:
        """
        Raises:
          Refused: there is no such mode; `modes` lists the installed ones.
        """
        try:
            return self.strategies[name]
        except KeyError:
            modes = sorted(self.strategies)
            raise Refused("unknown_mode", f"{name!r} is none of {', '.join(modes)}", modes=modes) from None

    def storage_engine(self, name: str) -> StorageEngine:
        """
        Raises:
          Refused: there is no such engine; `storage_engines` lists the installed ones.
        """
        return _find(name, self.storage_engines, "storage engine")

    def provisioner(self, name: str) -> Provisioner:
        """
        Raises:
          Refused: there is no such provisioner; `provisioners` lists those that there are.
        """
        return _find(name, self.provisioners, "provisioner")

    def with_strategy(self, strategy: Strategy, origin: str) -> Registry:
        """This registry with one strategy more, which need not be installed.

        Raises:
          PluginError: the strategy is malformed, or its name is taken.
        """
        check_strategy(strategy, origin)
        return replace(
            self,
            strategies={**self.strategies, strategy.name: strategy},
            origins=self._with_origin(strategy.name, origin),
        )

    def with_storage_engine(self, engine: StorageEngine, origin: str) -> Registry:
        """This registry with one storage engine more; as `with_strategy`."""
        check_storage_engine(engine, origin)
        return replace(
            self,
            storage_engines={**self.storage_engines, engine.name: engine},
            origins=self._with_origin(engine.name, origin),
        )

    def with_provisioner(self, provisioner: Provisioner, origin: str) -> Registry:
        """As `with_strategy`."""
        check_provisioner(provisioner, origin)
        return replace(
            self,
            provisioners={**self.provisioners, provisioner.name: provisioner},
            origins=self._with_origin(provisioner.name, origin),
        )

    def _with_origin(self, name: str, origin: str) -> dict[str, str]:
        if name in self.origins:
            raise PluginError(f"{name!r} is offered by {self.origins[name]} and by {origin}; uninstall one of them")
        return {**self.origins, name: origin}


Offer = TypeVar("Offer")


def _find(name: str, offers: Mapping[str, Offer], kind: str) -> Offer:
    if name in offers:
        return offers[name]
    names = sorted(offers)
    detail = f"{name!r} is no installed {kind}; there are {', '.join(names)}"
    raise Refused("bad_request", detail, **{f"{kind.replace(' ', '_')}s": names})


def load_registry(installed: Iterable[Distribution] | None = None) -> Registry:
    """Everything that the installed distributions (default: those of this Python) offer.

    Raises:
      PluginError: a plugin cannot be imported or is malformed, two offer one name, or no mode is installed.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    origins: dict[str, str] = {}
    for entry_point, origin in _entry_points(distributions() if installed is None else installed):
        if entry_point.name in origins:
            raise PluginError(
                f"the plugin {entry_point.name!r} is offered by {origins[entry_point.name]} and by {origin}; "
                "uninstall one of them"
            )
        origins[entry_point.name] = origin
        _register(manager, entry_point, origin)
    registry = Registry()
    for engine, origin in _handed_over(manager.hook.trikv_storage_engines, origins):
        registry = registry.with_storage_engine(engine, origin)
    for provisioner, origin in _handed_over(manager.hook.trikv_provisioners, origins):
        registry = registry.with_provisioner(provisioner, origin)
    for strategy, origin in _handed_over(manager.hook.trikv_strategies, origins):
        registry = registry.with_strategy(strategy, origin)
    if not registry.strategies:
        raise PluginError(
            "no mode is installed, not even trikv's own: pip install trikv (a checkout: pip install -e .)"
        )
    return registry


def _entry_points(installed: Iterable[Distribution]) -> list[tuple[EntryPoint, str]]:
    """Each entry point of the group with the name and version of its distribution, in the order of their names.

    A distribution that is found twice counts once: imports do not see a copy further down the path either.
    """
    found: dict[str, list[tuple[EntryPoint, str]]] = {}
    for distribution in installed:
        origin = f"{distribution.name} {distribution.version}"
        offers = [(one, origin) for one in distribution.entry_points if one.group == GROUP]
        found.setdefault(re.sub(r"[-_.]+", "-", distribution.name).lower(), offers)
    return sorted((offer for offers in found.values() for offer in offers), key=lambda offer: offer[0].name)


def _register(manager: pluggy.PluginManager, entry_point: EntryPoint, origin: str) -> None:
    try:
        manager.register(entry_point.load(), name=entry_point.name)
        manager.check_pending()  # a hook that trikv does not have is a typo, or a later trikv's
    except Exception as error:  # any module may be imported here, and it may raise anything
        raise PluginError(
            f"the plugin {entry_point.name!r} of {origin} ({entry_point.value}) cannot be loaded: {_told(error)}"
        ) from error


def _handed_over(hook: pluggy.HookCaller, origins: Mapping[str, str]) -> list[tuple[Any, str]]:
    """What each plugin's implementation of the hook returns, with the plugin's origin, in the order of their names.

    Each implementation is called on its own: the hook as a whole would give one list, without origins.
    """
    offers: list[tuple[Any, str]] = []
    for implementation in sorted(hook.get_hookimpls(), key=lambda one: one.plugin_name):
        origin = origins[implementation.plugin_name]
        try:
            handed_over: Any = implementation.function()
            offers += [(one, origin) for one in handed_over]
        except Exception as error:  # a plugin's code may raise anything
            raise PluginError(
                f"the plugin {implementation.plugin_name!r} of {origin} fails in {hook.name}: {_told(error)}"
            ) from error
    return offers


def _told(error: Exception) -> str:
    """An exception in words that fit into a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


# --- what a plugin hands over -----------------------------------------------------------------------------------------


def check_strategy(strategy: object, origin: str) -> None:
    """
    Raises:
      PluginError: it lacks something that trikv prints or relies on.
    """
    complain = _check_kind("strategy", strategy, Strategy, origin)
    assert isinstance(strategy, Strategy)
    if not isinstance(getattr(strategy, "promise", None), Promise):
        raise complain("needs a promise: Promise.CP or Promise.AP")
    if not isinstance(strategy.compare_and_set, bool):
        raise complain("needs compare_and_set to be True or False")
    for sentence in _SENTENCES:
        text = getattr(strategy, sentence, None)
        if not isinstance(text, str) or not text.strip():
            raise complain(f"needs a sentence for {sentence}")
    for n in _REPLICAS_TRIED:
        try:
            copies: object = strategy.copies(n)
        except Exception as error:  # a plugin's code may raise anything
            raise complain(f"fails in copies({n}): {_told(error)}") from error
        if not can_keep(copies, n):
            raise complain(f"says copies({n}) = {copies!r}, which is not from 1 to {n}")


def can_keep(copies: object, replicas: int) -> bool:
    """Is `copies` a number of copies that so many replicas can keep: an integer from 1 to `replicas`?"""
    return isinstance(copies, int) and not isinstance(copies, bool) and 1 <= copies <= replicas


def check_storage_engine(engine: object, origin: str) -> None:
    """
    Raises:
      PluginError: it lacks something that trikv prints or relies on.
    """
    complain = _check_kind("storage engine", engine, StorageEngine, origin)
    if not isinstance(getattr(engine, "durable", None), bool):
        raise complain("needs durable to be True or False")


def check_provisioner(provisioner: object, origin: str) -> None:
    """
    Raises:
      PluginError: it lacks something that trikv prints or relies on.
    """
    complain = _check_kind("provisioner", provisioner, Provisioner, origin)
    if not isinstance(getattr(provisioner, "can_break", None), bool):
        raise complain("needs can_break to be True or False")


def _check_kind(kind: str, offer: object, base: type, origin: str) -> Callable[[str], PluginError]:
    """Check what all kinds of offers need; what makes further complaints about this one.

    Raises:
      PluginError: it is no instance of `base`, or has no name that trikv can use.
    """
    name = getattr(offer, "name", None)

    def complain(complaint: str) -> PluginError:
        called = type(offer).__name__ if name is None else name
        return PluginError(f"the {kind} {called!r} of {origin} {complaint}")

    if not isinstance(offer, base):
        raise complain(f"is not an instance of trikv.api.{base.__name__}")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise complain("needs a name of lower-case letters, digits, - and _")
    return complain
