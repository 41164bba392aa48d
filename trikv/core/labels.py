"""Labels of workers: names with values, which say where a worker runs or what it is made of.

    trikv worker 8001 --label zone=a --label disk=ssd

A worker tells its labels with every heartbeat, and they stand in the cluster's document. Strategies select replicas by
them (`ReplicaSet.where`), and placement spreads the replicas of a partition over the values of one of them, `ZONE`.

Names are those of Python's arguments, since a strategy writes `where(zone="a")`. Both names and values are short, and
there are few, because every heartbeat and every document carries them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

Labels = Mapping[str, str]

ZONE: Final = "zone"
LABELS_MAX: Final = 8
NAME_CHARACTERS_MAX: Final = 32
VALUE_CHARACTERS_MAX: Final = 64
_NAME: Final = re.compile(rf"[a-z][a-z0-9_]{{0,{NAME_CHARACTERS_MAX - 1}}}", re.ASCII)
_VALUE: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{VALUE_CHARACTERS_MAX}}}", re.ASCII)


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """The labels of texts like `zone=a`.

    Raises:
      ValueError: a text has another form, a name or a value is none, a name comes twice, or there are too many.
    """
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not NAME=VALUE, like zone=a")
        if name in labels:
            raise ValueError(f"the label {name} is given twice, as {labels[name]!r} and as {value!r}")
        labels[name] = value
    check_labels(labels)
    return labels


def check_labels(labels: Mapping[str, str]) -> None:
    """
    Raises:
      ValueError: a name or a value is none, or there are too many; the message names it.
    """
    for name, value in labels.items():
        if _NAME.fullmatch(name) is None:
            raise ValueError(
                f"a label's name is a small letter, and up to {NAME_CHARACTERS_MAX - 1} more, digits or _; {name!r} is "
                "none"
            )
        if _VALUE.fullmatch(value) is None:
            raise ValueError(
                f"the value of the label {name} has 1 to {VALUE_CHARACTERS_MAX} letters, digits, '.', '_' and '-'; "
                f"{value!r} is none"
            )
    if len(labels) > LABELS_MAX:
        raise ValueError(f"a worker has at most {LABELS_MAX} labels, not {len(labels)}")


def spell_labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
