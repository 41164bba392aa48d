"""Whom a browser may not send here: pages of other origins, and names that were bent to point at this machine.

A server on loopback is within reach of every page that its user opens. Four checks, on every request, whatever its
method, since `GET /put` exists:

- `Sec-Fetch-Site`, which browsers set and pages cannot: only `same-origin` and `none` (typed, or from a bookmark) pass.
- `Origin`: where a browser names one, it must be the host that was asked.
- `Referer`, which tells the page behind a plain GET (an image, a link) where the browser sends no `Sec-Fetch-Site`: it
  leaves that out where the server's own address is neither HTTPS nor loopback. It must be a page of the host that was
  asked, too. A page that forbids its browser to send one is not noticed there: serve a network over HTTPS.
- `Host`: on loopback, a name that stands for loopback. A stranger's name that resolves to 127.0.0.1 (DNS rebinding)
  would make the page and this server one origin in the browser's eyes, and the other two checks blind.

Programs that are no browsers send none of these headers but `Host`, and lose nothing. Where the operator opened the
server to a network (`--insecure`), its names are not known here, and the last check is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from trikv.config import is_loopback
from trikv.core.errors import Refused

_TRUSTED_SITES: Final = ("same-origin", "none")


def refuse_foreign(headers: Mapping[str, str], *, loopback_only: bool) -> None:
    """
    Raises:
      Refused: a page of another origin is behind this request, or may be.
    """
    site = headers.get("sec-fetch-site", "none")
    if site not in _TRUSTED_SITES:
        raise Refused("forbidden", f"a page of another origin asked for this (Sec-Fetch-Site: {site})")
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        raise Refused("forbidden", f"a page of another origin asked for this (Origin: {origin})")
    if (referrer := headers.get("referer")) is not None and host and _host_of(referrer) != host.lower():
        raise Refused("forbidden", "a page of another origin asked for this: its Referer names another host")
    if loopback_only and host and not names_loopback(host):
        raise Refused("forbidden", f"this server is on loopback, and {host} is none of its names; say localhost")


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return None


def names_loopback(host: str) -> bool:
    """Does a `Host` header (`name`, `name:port`, `[v6]:port`) name this machine's loopback?"""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name.endswith(".localhost") or is_loopback(name)
