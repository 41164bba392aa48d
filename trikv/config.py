"""A node's settings, read at its start: a flag outweighs the environment, and the environment a file.

    trikv worker 8001 --storage memory           a flag
    TRIKV_WORKER_STORAGE=memory                  a variable: TRIKV, the role, the setting
    [worker]                                     a line of trikv.toml, in a table for each role
    storage = "memory"

The file is the one that `--config` or TRIKV_CONFIG names, else `trikv.toml` in the working directory, if it exists.

A setting means the same in all three sources, so there is one reader for each name. An error says where the setting
stands. Errors are an unknown name (it may be a typo), a value out of range, and an address beyond loopback without
`insecure`, since callers cannot prove their identity. The registry checks whether a mode or a storage engine is
installed, and the socket whether an address is free.

`notes` are lines for the log, about what was used or ignored without being asked for. One is the file of the working
directory, which may be a stranger's. Another is the variables that Kubernetes sets for a service called `trikv-master`,
`trikv-worker-metrics` or the like (TRIKV_MASTER_PORT=tcp://10.0.0.1:8000): they are no settings, and are ignored.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from trikv.core.configuration import WORKERS_MAX
from trikv.core.labels import Labels, parse_labels
from trikv.core.scaling import Limits
from trikv.net.doors import split_address
from trikv.net.etcdurl import PASSWORD_VARIABLE, EtcdSettings, parse_config_store

CONFIG_FILE: Final = Path("trikv.toml")
DATA_ROOT: Final = Path("trikv-data")
PORT_MAX: Final = 65_535
DOWN_AFTER_LEAST_S: Final = 1.5  # three heartbeats; with less, one lost packet would move data
DOWN_AFTER_MOST_S: Final = 3_600.0
_EVERYWHERE: Final = ("0.0.0.0", "::")  # listening there, a node is reached at other addresses
LEASE_S: Final = 3.0
LEASE_LEAST_S: Final = 2.0  # etcd grants none that is shorter
LEASE_MOST_S: Final = 60.0


class SettingsError(ValueError):
    """A setting is wrong. The message is one line: where it stands, and what would be right."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    port: int
    host: str = "127.0.0.1"
    master: tuple[str, ...] = ("127.0.0.1:8000",)  # one leads; empty ("none" in text): wait until a master enlists it
    data_dir: Path | None = None
    storage: str = "rocksdb"
    max_keys: int | None = None
    labels: Labels = field(default_factory=dict)  # what strategies and placement may tell it by
    metrics: str | None = None  # where GET /metrics is served; None: nowhere
    log: str | None = None  # "console" or "json"; None: console if stderr is a terminal
    insecure: bool = False
    exit_with_stdin: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def directory(self) -> Path:
        return self.data_dir or DATA_ROOT / f"worker-{self.port}"


@dataclass(frozen=True, slots=True)
class MasterSettings:
    port: int = 8000
    host: str = "127.0.0.1"
    http: str = "127.0.0.1:8080"
    mode: str | None = None  # None: as the cluster was founded, else "quorum"
    replicas: int | None = None  # None: as the cluster was founded, else 3
    data_dir: Path | None = None
    workers: tuple[str, ...] = ()
    timeout_s: float = 2.0
    down_after_s: float = 5.0  # a worker that is silent for so long is down, and may be replaced
    settle_rate_mb: float = 16.0  # MB moved in a second while partitions settle
    autoscale: Limits | None = None  # how many workers there may be; None: an operator's choice
    max_load: float | None = None  # requests a second that a worker is to have at most
    max_keys: int | None = None  # keys that it is to hold at most
    start_workers: int = 0  # how many workers the master founds the cluster with, as its own
    worker_port: int = 0  # where the first of those listens, the next ones following; 0: anywhere
    provisioner: str = "local"  # who starts workers
    worker_storage: str = "rocksdb"  # the engine of those that are started
    probe: bool = False  # whether the mode's promise is measured all the time
    break_it: bool = False  # whether faults may be injected on request
    # Where several masters share the document; None: it is a file of this master's. The other three are in its value.
    config_store: EtcdSettings | None = None
    config_store_ca: Path | None = None
    config_store_cert: Path | None = None
    config_store_key: Path | None = None
    lease_s: float = LEASE_S  # how long a leader that is silent goes on to be one
    advertise: str | None = None  # where other masters and workers reach this one, if not where it listens
    advertise_http: str | None = None  # where clients are sent to
    min_copies: int = 2  # a configuration does not shrink below it, however many workers are gone
    log: str | None = None  # as a worker's
    insecure: bool = False
    exit_with_stdin: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def directory(self) -> Path:
        return self.data_dir or DATA_ROOT / "master"


def worker_settings(
    flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None = None
) -> WorkerSettings:
    """The settings of a worker. `flags` has the names of the fields; None or an empty tuple: the flag is not given.

    Raises:
      SettingsError: a setting is wrong.
    """
    settings = WorkerSettings(**_gather("worker", flags, environ, config))
    hosts = [settings.host, *([] if settings.metrics is None else [split_address(settings.metrics)[0]])]
    _check_reach(settings.insecure, *hosts)
    return settings


def master_settings(
    flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None = None
) -> MasterSettings:
    """The settings of a master; as `worker_settings`."""
    gathered = _gather("master", flags, environ, config)
    if (url := gathered.pop("config_store", None)) is not None:
        gathered["config_store"] = _config_store(url, gathered, environ)
    settings = MasterSettings(**gathered)
    _check_reach(settings.insecure, settings.host, split_address(settings.http)[0])
    if settings.config_store is None:
        if settings.lease_s != LEASE_S:
            raise SettingsError("--lease is for a master among several: give --config-store with it")
        for name in ("config_store_ca", "config_store_cert", "config_store_key", "advertise", "advertise_http"):
            if getattr(settings, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise SettingsError(f"{flag} is for a master among several: give --config-store with it")
    else:
        _check_advertised("--advertise", settings.advertise, settings.host)
        _check_advertised("--advertise-http", settings.advertise_http, split_address(settings.http)[0])
    if settings.config_store is not None and (settings.start_workers or settings.autoscale is not None):
        raise SettingsError(
            "--start-workers and --autoscale are for a master alone; with --config-store, start workers with "
            "trikv worker PORT --master A,B,C"
        )
    if settings.autoscale is None and (settings.max_load is not None or settings.max_keys is not None):
        raise SettingsError("--max-load and --max-keys say when to scale: give --autoscale MIN..MAX with them")
    if settings.autoscale is not None:
        if settings.max_load is None and settings.max_keys is None:
            raise SettingsError("--autoscale needs to know when: give --max-load or --max-keys, for each worker")
        limits = replace(settings.autoscale, max_load=settings.max_load, max_keys=settings.max_keys)
        settings = replace(settings, autoscale=limits)
        if settings.start_workers > limits.most:
            raise SettingsError(
                f"--start-workers {settings.start_workers} is more than --autoscale allows, {limits.most}; change one"
            )
    return settings


def _check_advertised(flag: str, address: str | None, host: str) -> None:
    if address is None and host in _EVERYWHERE:
        raise SettingsError(f"{host} is no address that others can call: say with {flag} HOST:PORT where they reach it")


def _config_store(url: str, gathered: Mapping[str, Any], environ: Mapping[str, str]) -> EtcdSettings:
    try:
        return parse_config_store(
            url,
            ca=gathered.get("config_store_ca"),
            certificate=gathered.get("config_store_cert"),
            key=gathered.get("config_store_key"),
            password=environ.get(PASSWORD_VARIABLE),
        )
    except ValueError as error:
        raise SettingsError(f"--config-store: {error}") from None


def is_loopback(host: str) -> bool:
    """Does the host stand for this machine alone? Names other than `localhost` are not resolved, so they do not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_reach(insecure: bool, *hosts: str) -> None:
    for host in hosts:
        if not insecure and not is_loopback(host):
            raise SettingsError(
                f"{host} can be reached from other machines, and nothing yet proves who calls; "
                "use 127.0.0.1, or --insecure where everyone on that network may read and write"
            )


# --- the three sources ------------------------------------------------------------------------------------------------

_ROLES: Final[dict[str, type[WorkerSettings | MasterSettings]]] = {"worker": WorkerSettings, "master": MasterSettings}
_NO_SETTINGS: Final = {"exit_with_stdin", "notes"}  # they concern one process, not the node

# Variables that Kubernetes sets in each container for each service: the name behind the service's, and the value.
_SERVICE_URL: Final = r"(tcp|udp|sctp)://\S+:[0-9]+"
_SERVICE_VARIABLES: Final = tuple(
    (re.compile(rf"([A-Z0-9_]+_)?({name})"), re.compile(value))
    for name, value in (
        (r"PORT(_[0-9]+_(TCP|UDP|SCTP))?", _SERVICE_URL),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO", "tcp|udp|sctp"),
        (r"SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)_PORT", "[0-9]+"),
        (r"SERVICE_HOST|PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR", r"[0-9.]+|[0-9a-fA-F:]+"),
    )
)


class _Given(NamedTuple):
    """A value as it was given, and where it stands, for messages."""

    where: str
    value: object


def _gather(role: str, flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None) -> dict[str, Any]:
    """Every setting that a source gives, read. If several sources give it, the weightiest counts."""
    given: dict[str, _Given] = {}
    notes: list[str] = []
    given.update(_from_file(role, environ, config, notes))
    given.update(_from_environment(role, environ, notes))
    given.update(_from_flags(flags))
    for setting in fields(_ROLES[role]):
        if setting.default is MISSING and setting.default_factory is MISSING and setting.name not in given:
            raise SettingsError(f"a {role} needs a {setting.name}: trikv {role} {setting.name.upper()}")
    return {**{name: _read(name, *one) for name, one in given.items()}, "notes": tuple(notes)}


def _read(name: str, where: str, value: object) -> object:
    try:
        return _READERS[name](value)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None


def _from_flags(flags: Mapping[str, object]) -> Iterator[tuple[str, _Given]]:
    for name, value in flags.items():
        if value is not None and value != ():
            flag = "--" + name.removesuffix("_s").removesuffix("_mb").replace("_", "-")  # flags name no units
            yield name, _Given({"port": "PORT", "workers": "WORKER", "labels": "--label"}.get(name, flag), value)


def _from_environment(role: str, environ: Mapping[str, str], notes: list[str]) -> Iterator[tuple[str, _Given]]:
    start = f"TRIKV_{role.upper()}_"
    of_a_service = []
    for variable in sorted(environ):
        if variable.startswith(start):
            if _is_of_a_service(variable.removeprefix(start), environ[variable]):
                of_a_service.append(variable)
                continue
            name = variable.removeprefix(start).lower()
            _check_name(role, name, variable, lambda known: start + known.upper())
            yield name, _Given(variable, environ[variable])
    if of_a_service:
        notes.append(f"not taken for settings, since Kubernetes sets them for a service: {', '.join(of_a_service)}")


def _is_of_a_service(name: str, value: str) -> bool:
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in _SERVICE_VARIABLES)


def _from_file(
    role: str, environ: Mapping[str, str], config: Path | None, notes: list[str]
) -> Iterator[tuple[str, _Given]]:
    named = config or (Path(environ["TRIKV_CONFIG"]) if environ.get("TRIKV_CONFIG") else None)
    if named is None:
        if not CONFIG_FILE.exists():
            return
        notes.append(f"settings are taken from {CONFIG_FILE.absolute()}, which is in the working directory")
    file = named or CONFIG_FILE
    try:
        tables = tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not text
        raise SettingsError(f"{file}: {error}") from None
    # The other role's table is checked too, so that a typo there is found now, and not at that role's next start.
    for table, settings in tables.items():
        if table not in _ROLES or not isinstance(settings, dict):
            raise SettingsError(
                f"{file}: {table}: there are two tables, [worker] and [master], and nothing outside them"
            )
        for name in settings:
            _check_name(table, name, f"{file}: [{table}] {name}", str)
    for name, value in tables.get(role, {}).items():
        yield name, _Given(f"{file}: [{role}] {name}", value)


def _check_name(role: str, name: str, where: str, spell: Callable[[str], str]) -> None:
    known = [setting.name for setting in fields(_ROLES[role]) if setting.name not in _NO_SETTINGS]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {spell(near[0])}?" if near else f"there are {', '.join(map(spell, known))}"
        raise SettingsError(f"{where}: no such setting; {remedy}")


# --- one reader for each name -----------------------------------------------------------------------------------------

Read = TypeVar("Read")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a name")
    return value


def _whole(value: object, what: str, low: int, high: float = math.inf) -> int:
    """An integer in a range. The environment gives it as text."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise ValueError(f"{value!r} is not {what}, {low} {f'to {high:.0f}' if high < math.inf else 'or more'}")
    return number


def _float(value: object) -> float:
    """A number; NaN, which is in no range, if the value is none. The environment gives it as text."""
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return math.nan


def _seconds(value: object) -> float:
    if not 0 < (seconds := _float(value)) < math.inf:
        raise ValueError(f"{value!r} is not a time in seconds, more than 0")
    return seconds


def _between(value: object, what: str, low: float, high: float) -> float:
    if not low <= (number := _float(value)) <= high:
        raise ValueError(f"{value!r} is not {what}, {low:g} to {high:,.0f}")
    return number


def _one_of(value: object, *choices: str) -> str:
    if value not in choices:
        raise ValueError(f"{value!r} is none of {', '.join(choices)}")
    return str(value)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    meaning = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if not isinstance(value, str) or value.lower() not in meaning:
        raise ValueError(f"{value!r} is neither true nor false")
    return meaning[value.lower()]


def _address(value: object) -> str:
    text = _text(value)
    split_address(text)
    return text


def _addresses(value: object) -> tuple[str, ...]:
    """A list of addresses, or a text that has commas or spaces between them."""
    several = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(several, list | tuple):
        raise ValueError(f"{value!r} is not a list of addresses")
    return tuple(map(_address, several))


def _masters(value: object) -> tuple[str, ...]:
    if value == "none":
        return ()
    if not (masters := _addresses(value)):
        raise ValueError(f"{value!r} names no master; write HOST:PORT[,HOST:PORT...], or none")
    return tuple(dict.fromkeys(masters))


def _labels(value: object) -> dict[str, str]:
    """A list of texts like zone=a, a text that has commas or spaces between them, or a table."""
    if isinstance(value, Mapping):
        value = [f"{name}={text}" for name, text in value.items()]
    several = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not all(isinstance(one, str) for one in several):
        raise ValueError(f"{value!r} is not a list of labels like zone=a")
    return parse_labels(several)


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    try:
        path = Path(_text(value)).expanduser()
        str(path).encode()
    except RuntimeError:
        raise ValueError(f"{value!r}: there is no such user's home; write the whole path") from None
    except UnicodeEncodeError:  # SQLite and RocksDB take only names that are text
        raise ValueError(f"{value!r} is not UTF-8; choose another directory") from None
    if "\0" in str(path):
        raise ValueError(f"{value!r} has a NUL byte; choose another directory")
    return path


def _limits(value: object) -> Limits:
    """MIN..MAX workers."""
    least, dots, most = str(value).partition("..")
    if not dots or not least.isdecimal() or not most.isdecimal() or not 1 <= int(least) <= int(most) <= WORKERS_MAX:
        raise ValueError(f"{value!r} is not MIN..MAX, two numbers of workers like 3..9")
    return Limits(int(least), int(most))


def _or_none(read: Callable[[object], Read]) -> Callable[[object], Read | None]:
    return lambda value: None if value == "none" else read(value)


_READERS: Final[dict[str, Callable[[object], object]]] = {
    "port": lambda value: _whole(value, "a port", 0, PORT_MAX),
    "host": _text,
    "http": _address,
    "metrics": _or_none(_address),
    "log": lambda value: None if value == "auto" else _one_of(value, "auto", "console", "json"),
    "master": _masters,
    "workers": _addresses,
    "labels": _labels,
    "data_dir": _path,
    "storage": _text,
    "mode": _text,
    "replicas": lambda value: _whole(value, "a number of replicas", 1),
    "max_keys": _or_none(lambda value: _whole(value, "a number of keys", 1)),
    "autoscale": _or_none(_limits),
    "max_load": _or_none(lambda value: _between(value, "a number of requests a second", 0.1, 1e9)),
    "start_workers": lambda value: _whole(value, "a number of workers", 0, WORKERS_MAX),
    "worker_port": lambda value: _whole(value, "a port", 0, PORT_MAX),
    "provisioner": _text,
    "worker_storage": _text,
    "timeout_s": _seconds,
    "down_after_s": lambda value: _between(value, "a time in seconds", DOWN_AFTER_LEAST_S, DOWN_AFTER_MOST_S),
    "settle_rate_mb": lambda value: _between(value, "a number of MB per second", 0.1, 10_000),
    "min_copies": lambda value: _whole(value, "a number of copies", 1),
    "config_store": _text,
    "config_store_ca": _path,
    "config_store_cert": _path,
    "config_store_key": _path,
    "lease_s": lambda value: _between(value, "a time in seconds", LEASE_LEAST_S, LEASE_MOST_S),
    "advertise": _address,
    "advertise_http": _address,
    "probe": _switch,
    "break_it": _switch,
    "insecure": _switch,
    "exit_with_stdin": _switch,
}
