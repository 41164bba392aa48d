"""Refusing requests that a web page of another origin makes through its reader's browser.

Every page that a user opens can send requests to a server on the user's own machine. So four headers of each request
are checked, whatever its method, since `GET /put` exists:

- `Sec-Fetch-Site`: browsers set it and pages cannot. `same-origin` and `none` (typed, or from a bookmark) pass.
- `Origin`: if the browser sends it, it must name the host that was asked.
- `Referer`: if the browser sends it, it must be a page of the host that was asked. It tells the page behind a plain GET
  (an image, a link) where the browser sends no `Sec-Fetch-Site`, which is so where the server's address is neither
  HTTPS nor loopback. A page can forbid its browser to send a `Referer`, and its requests are not noticed there: use
  HTTPS on a network.
- `Host`: on loopback, it must be a name of loopback. A foreign name that resolves to 127.0.0.1 (DNS rebinding) would
  make the page and this server one origin for the browser, and the other checks would pass.

The page itself may be opened from anywhere: a link to it changes nothing, and it lies in no frame. So masters can link
to each other, and one that stands by can send a reader to the leader's page. Only `Host` is checked for that.

A program that is no browser sends none of these headers but `Host`, so the checks cost it nothing. If the operator
opened the server to a network (`--insecure`), the server's names are not known here, and the last check is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from trikv.config import is_loopback
from trikv.core.errors import Refused

_TRUSTED_SITES: Final = ("same-origin", "none")


def opens_page(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Does a browser ask for the page, to show it in a tab of its own?"""
    navigates = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return method == "GET" and path == "/" and navigates


def refuse_foreign(headers: Mapping[str, str], *, loopback_only: bool, from_anywhere: bool = False) -> None:
    """
    Args:
      from_anywhere: the request may be made by a page of another origin.

    Raises:
      Refused: a page of another origin made this request, or may have made it.
    """
    host = headers.get("host", "")
    if loopback_only and host and not names_loopback(host):
        raise Refused("forbidden", f"this server is on loopback, and {host} is none of its names; say localhost")
    if from_anywhere:
        return
    site = headers.get("sec-fetch-site", "none")
    if site not in _TRUSTED_SITES:
        raise Refused("forbidden", f"a page of another origin asked for this (Sec-Fetch-Site: {site})")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        raise Refused("forbidden", f"a page of another origin asked for this (Origin: {origin})")
    if (referrer := headers.get("referer")) is not None and host and _host_of(referrer) != host.lower():
        raise Refused("forbidden", "a page of another origin asked for this: its Referer names another host")


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
