"""Which etcd: `--config-store` as a text and as a value.

    etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...][/PREFIX]
    etcds://...                                               the same over TLS

The keys of a cluster lie under PREFIX, `trikv` if there is none; clusters of one etcd need different ones. In USER and
PASSWORD, `%40` is an @, `%3A` a colon and so on. A password that is given apart stays out of the list of processes.

No message and no `repr` has the password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from trikv.net.doors import join_address, split_address

PREFIX: Final = "trikv"
PASSWORD_VARIABLE: Final = "TRIKV_CONFIG_STORE_PASSWORD"
_SYNTAX: Final = "write etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...][/PREFIX], or etcds:// for TLS"
_PREFIX: Final = re.compile(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")
_PREFIX_CHARS_MAX: Final = 200
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]+")
_ENDPOINTS_MAX: Final = 16  # a call may try each in turn


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    endpoints: tuple[str, ...]  # HOST:PORT
    prefix: str = PREFIX
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None  # what signed the certificate of etcd; None: what this machine trusts
    certificate: Path | None = None  # of this client, with its key
    key: Path | None = None

    def __str__(self) -> str:
        """The URL, without the user and the password."""
        return f"{'etcds' if self.tls else 'etcd'}://{','.join(self.endpoints)}/{self.prefix}"


def is_etcd_url(text: str) -> bool:
    return text.startswith(("etcd://", "etcds://"))


def parse_config_store(
    text: str,
    *,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    password: str | None = None,
) -> EtcdSettings:
    """
    Args:
      password: counts if the text has none.

    Raises:
      ValueError: it cannot be meant; one line with the remedy.
    """
    scheme, _, rest = text.partition("://")
    if not is_etcd_url(text):
        raise ValueError(f"this is no config store; {_SYNTAX}")
    tls = scheme == "etcds"
    where, _, prefix = rest.rpartition("@")[2].partition("/")
    user, password = _credentials(rest.rpartition("@")[0], password) if "@" in rest else (None, None)
    if prefix and (not _PREFIX.fullmatch(prefix) or len(prefix) > _PREFIX_CHARS_MAX):
        raise ValueError(
            f"{prefix!r} cannot be the prefix of a cluster's keys; take letters, digits and . _ ~ - with / between them"
        )
    endpoints = tuple(_endpoint(n, each) for n, each in enumerate(where.split(","), 1))
    if len(set(endpoints)) != len(endpoints):
        raise ValueError("an endpoint is named twice; name each once")
    if len(endpoints) > _ENDPOINTS_MAX:
        raise ValueError(f"{len(endpoints)} endpoints are too many; name at most {_ENDPOINTS_MAX}")
    if not tls and (ca or certificate or key):
        raise ValueError("certificates are for TLS; write etcds:// in place of etcd://, or leave them out")
    if (certificate is None) != (key is None):
        raise ValueError("a client's certificate needs its key, and the key needs it; give both or neither")
    return EtcdSettings(endpoints, prefix or PREFIX, tls, user, password, ca, certificate, key)


def _credentials(text: str, password: str | None) -> tuple[str, str]:
    user, colon, own = text.partition(":")
    if not user:
        raise ValueError(f"there is no user before the @; {_SYNTAX}")
    if not colon and not password:
        raise ValueError(
            f"the user {unquote(user)!r} has no password; set {PASSWORD_VARIABLE}, or write USER:PASSWORD@"
        )
    return unquote(user), unquote(own) if colon else password or ""


def _endpoint(number: int, text: str) -> str:
    """The text is not in the message: without an @ it may be a password."""
    try:
        host, port = split_address(text)
    except ValueError:
        host, port = "", 0
    if not _HOST.fullmatch(host) or port == 0:
        raise ValueError(f"endpoint {number} of the config store is not HOST:PORT; {_SYNTAX}")
    return join_address(host, port)
