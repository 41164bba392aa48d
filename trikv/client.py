"""A small synchronous client of a cluster's HTTP API: what the CLI, the demo, the tests and any script talk through.

    with Client("http://127.0.0.1:8080") as client:
        stamp = client.put(b"k", b"v")
        client.put(b"k", b"w", if_match=stamp)

Whatever ends other than as hoped is one exception, `TrikvError`, whose `kind` is a row of the error table: it tells
the outcome (is it certainly not done, or perhaps done?) and the CLI's exit code. That holds also for what the cluster
cannot tell us itself: where no connection could be made nothing was sent, so it is refused; where a connection broke
after a write had been sent, the outcome is unknown. Nothing is retried: only the caller knows whether it may be.

Whatever answers at the URL may be something else: a login page, a gateway's error, another service on that port. So no
answer is believed, whatever its status, that lacks the header `Trikv`, which every answer of a trikv server has, or
lacks what is wanted of it: a read that ends so is unanswered, and the outcome of a change unknown.

Keys and values are bytes. A key goes into the path where it is plain text, else as base64. Proxies named by the
environment are not followed: a cluster is not reached through them, and a write must not visit a stranger.
One client may be shared by threads; each request then takes a connection of its own from the pool.
"""

from __future__ import annotations

import json
import re
import ssl
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

import httpx

from trikv.core.errors import KINDS, Outcome, TrikvError
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX
from trikv.core.text import to_base64

__all__ = ["DEFAULT_URL", "Change", "Client", "Entry", "Found", "TrikvError"]

DEFAULT_URL: Final = "http://127.0.0.1:8080"
PATIENCE_S: Final = 10.0
SCAN_PAGE_KEYS: Final = 100
EVENTS_SILENCE_S: Final = 45.0  # three times that of a stream that lives

_OURS: Final = "trikv"  # the header by which an answer is known
_ETAG: Final = re.compile(r'"([0-9a-f.-]+)"')


class Found(NamedTuple):
    value: bytes
    stamp: str


class Entry(NamedTuple):
    """One key of a scan."""

    key: bytes
    value: bytes
    stamp: str


class Change(NamedTuple):
    """One item of a batch: a put, or a delete where `value` is None."""

    key: bytes
    value: bytes | None


class Client:
    """
    Args:
      url: the master's HTTP address.
      timeout_s: the deadline of a request for keys, up to 60, which the cluster then keeps instead of its own (2 s
        unless its master was told otherwise).
      patience_s: how long to wait for any answer, beyond `timeout_s`, before we give the master or the network up.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_s: float | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self.url = _checked(url).rstrip("/")
        self._patience_s = patience_s
        self._unhurried = httpx.Timeout(patience_s, read=None)  # for what takes as long as there is data
        self._deadline = {} if timeout_s is None else {"timeout": f"{timeout_s:g}"}
        # To read the authorities' certificates takes longer than a whole `trikv get`; plain HTTP has no use for them.
        context = ssl.create_default_context() if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._http = httpx.Client(
            timeout=patience_s + (timeout_s or 0.0),
            trust_env=False,
            verify=context,
            limits=httpx.Limits(max_keepalive_connections=32),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- keys -----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Found | None:
        """The value and its stamp; None where there is none."""
        try:
            answer = self._ask_for_key("GET", key)
        except TrikvError as error:
            if error.kind.code == "not_found":
                return None
            raise
        return Found(answer.content, self._stamp(answer))

    def put(self, key: bytes, value: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Store, and return the new stamp; with a condition, only if the key still has that stamp, or is absent."""
        if len(value) > VALUE_BYTES_MAX:  # a server that stops listening half-way would make it unknown
            raise TrikvError("value_too_large", f"the value has {len(value):,} bytes; the limit is {VALUE_BYTES_MAX:,}")
        headers = {"content-type": "application/octet-stream", **_conditions(if_match, if_absent)}
        return self._stamp(self._ask_for_key("PUT", key, content=value, headers=headers))

    def delete(self, key: bytes, *, if_match: str | None = None) -> str:
        """Delete, and return the stamp of the deletion. To delete what is absent is a success too."""
        return self._stamp(self._ask_for_key("DELETE", key, headers=_conditions(if_match, False)))

    def scan(self, prefix: bytes = b"", *, after: bytes | None = None, limit: int | None = None) -> Iterator[Entry]:
        """The live keys that start with `prefix` and come after `after`, in byte order, fetched page by page.

        Each page is true when it is answered; keys written meanwhile may or may not be seen.
        """
        left = limit
        while left is None or left > 0:
            size = SCAN_PAGE_KEYS if left is None else min(left, SCAN_PAGE_KEYS)
            query = {"prefix": to_base64(prefix), "limit": str(size), "encoding": "base64", **self._deadline}
            if after is not None:
                query["after"] = to_base64(after)
            page = self._document(self._ask("GET", "/v1/kv", params=query))
            entries = [
                Entry(urlsafe_b64decode(row["key"]), urlsafe_b64decode(row["value"]), row["etag"])
                for row in page["items"]
            ]
            yield from entries
            if page["after"] is None:
                return
            after = urlsafe_b64decode(page["after"])
            left = None if left is None else left - len(entries)

    def batch(self, changes: Sequence[Change]) -> list[str | TrikvError]:
        """Carry out many changes in one request. They are independent: each gets its stamp, or its error, in order.

        Raises:
          TrikvError: the request as a whole failed; its outcome is that of every change in it.
        """
        import cbor2  # JSON has no bytes; and nothing but a batch needs this

        items = [
            {"op": "delete", "key": key} if value is None else {"op": "put", "key": key, "value": value}
            for key, value in changes
        ]
        answer = self._ask(
            "POST",
            "/v1/batch",
            params=self._deadline,
            content=cbor2.dumps({"items": items}),
            headers={"content-type": "application/cbor"},
        )
        try:
            results = cbor2.loads(answer.content)["results"]
            told = [row["etag"] if row["outcome"] == Outcome.COMMITTED else _error(row) for row in results]
        except (ValueError, TypeError, KeyError):
            told = []
        if len(told) != len(changes):
            raise self._not_ours(answer)
        return told

    # --- the cluster ----------------------------------------------------------------------------------------------

    def cluster(self) -> dict[str, Any]:
        """Its state: mode, forming, partitions, workers. README.md tells the fields."""
        return self._document(self._ask("GET", "/v1/cluster"))

    def locate(self, key: bytes) -> list[str]:
        """The ids of the workers that hold the key, first choice first."""
        place = self._document(self._ask("GET", "/v1/locate", params={"key": to_base64(key), "encoding": "base64"}))
        return [replica["id"] for replica in place["replicas"]]

    def mode(self) -> dict[str, Any]:
        """The mode in force, and how far a switch or a repair has come."""
        return self._document(self._ask("GET", "/v1/mode"))

    def set_mode(self, mode: str) -> dict[str, Any]:
        """Switch, and return the certificate of the switch at its end, however long that takes."""
        return self._document(self._ask("PUT", "/v1/mode", json={"mode": mode}, timeout=self._unhurried))

    def plan_mode(self, mode: str) -> dict[str, Any]:
        """What a switch to that mode would do."""
        return self._document(self._ask("PUT", "/v1/mode", params={"plan": "true"}, json={"mode": mode}))

    def enlist(self, address: str) -> dict[str, Any]:
        """Have the master dial the worker at `address` ("localhost:8006") and take it in."""
        return self._document(self._ask("POST", "/v1/workers", json={"address": address}))

    def plan_workers(self) -> dict[str, Any]:
        """What would move if the spare workers that are up were given their share."""
        return self._document(self._ask("GET", "/v1/workers/plan"))

    def drain(self, worker: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Have the cluster empty a worker, named by its id or its address; returns at once, with the plan."""
        return self._document(self._ask("POST", f"{_worker_path(worker)}/drain", params=_dry(dry_run)))

    def undrain(self, worker: str) -> dict[str, Any]:
        return self._document(self._ask("POST", f"{_worker_path(worker)}/undrain"))

    def remove(self, worker: str) -> dict[str, Any]:
        """Have the cluster forget a worker that holds nothing."""
        return self._document(self._ask("DELETE", _worker_path(worker)))

    def safe_to_stop(self, worker: str) -> tuple[bool, str]:
        """May the worker be stopped without leaving anything on too few others? And why (not)."""
        answer = self._ask("GET", "/readyz", params={"safe_to_stop": worker}, also=503)
        told = self._document(answer)
        if "safe" not in told:
            raise self._refusal(answer, told)
        return told["safe"], told["detail"]

    def repair(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Compare all copies, and mend those that differ, however long that takes."""
        return self._document(self._ask("POST", "/v1/repair", params=_dry(dry_run), timeout=self._unhurried))

    def recover(self, *, accept_loss: bool) -> dict[str, Any]:
        """Go on without what cannot be found any more; without `accept_loss` only learn what that is."""
        return self._document(self._ask("POST", "/v1/recover", json={"accept_loss": accept_loss}))

    def events(self, *, after: str | None = None, follow: bool = True) -> Iterator[dict[str, Any]]:
        """What happened in the cluster, after the event of that id if one is given; then what happens.

        One of kind `gap` says that some are missing before it. Ends when the master stops.

        Raises:
          TrikvError: there is no connection, or it broke; come back with the id of the last event that was seen.
        """
        query = {"follow": "true" if follow else "false"} | ({} if after is None else {"after": after})
        patience = httpx.Timeout(self._patience_s, read=EVENTS_SILENCE_S)
        with self._answer("GET", "/v1/events", params=query, timeout=patience) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    def _ask_for_key(self, method: str, key: bytes, **request: Any) -> httpx.Response:
        path, query = _key_path(key)
        return self._ask(method, path, params={**query, **self._deadline}, **request)

    def _ask(self, method: str, path: str, *, also: int = 200, **request: Any) -> httpx.Response:
        """The answer, read to its end, if it is a success or has the status `also`."""
        with self._answer(method, path, also=also, **request) as answer:
            answer.read()
            return answer

    @contextmanager
    def _answer(self, method: str, path: str, *, also: int = 200, **request: Any) -> Iterator[httpx.Response]:
        """The answer, while it is there to be read. Of one that is not trikv's nothing is read."""
        with self._in_our_words(), self._http.stream(method, self.url + path, **request) as answer:
            if _OURS not in answer.headers:
                raise self._not_ours(answer)
            if not answer.is_success and answer.status_code != also:
                answer.read()
                raise self._refusal(answer, self._document(answer))
            yield answer

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Whatever goes wrong on the way, as our exception."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise TrikvError("unreachable", f"{self.url} ({_why(error)})") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:  # a host's name that can be none
            raise TrikvError("bad_request", f"{self.url!r} is not an address like {DEFAULT_URL}") from error
        except httpx.RequestError as error:
            if _reads(error.request):
                raise TrikvError("unanswered", f"no answer came from {self.url} ({_why(error)})") from error
            raise TrikvError("unknown", f"the request was sent to {self.url}, and {_why(error)}") from error

    def _stamp(self, answer: httpx.Response) -> str:
        stamp = _ETAG.fullmatch(answer.headers.get("etag", ""))
        if stamp is None:
            raise self._not_ours(answer)
        return stamp[1]

    def _document(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            document = json.loads(answer.content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self._not_ours(answer)
        return document

    def _refusal(self, answer: httpx.Response, problem: Mapping[str, Any]) -> TrikvError:
        return _error(problem) if "outcome" in problem else self._not_ours(answer)

    def _not_ours(self, answer: httpx.Response) -> TrikvError:
        what = f"{self.url} answered {answer.status_code}, and not as trikv does; is it the master's HTTP address?"
        return TrikvError("unanswered" if _reads(answer.request) else "unknown", what)


def _checked(url: str) -> str:
    """The URL of a cluster, to which paths can be added.

    Raises:
      TrikvError: it is none.
    """
    try:
        parsed = httpx.URL(url)
        good = parsed.scheme in ("http", "https") and bool(parsed.host)
    except (httpx.InvalidURL, UnicodeError):
        good = False
    if not good:
        raise TrikvError("bad_request", f"{url!r} is not an address like {DEFAULT_URL}")
    if "?" in url or "#" in url:
        raise TrikvError("bad_request", f"the address {url!r} has a query or a fragment; leave that out")
    return url


def _reads(request: httpx.Request) -> bool:
    """Does the request change nothing?"""
    return request.method == "GET" or not {"plan", "dry_run"}.isdisjoint(request.url.params.keys())


def _key_path(key: bytes) -> tuple[str, dict[str, str]]:
    """Path and query under which a key is addressed: itself if it is text that no URL library rewrites, else base64."""
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise TrikvError("bad_key", f"the key has {len(key):,} bytes")
    plain = all(part not in (b"", b".", b"..") for part in key.split(b"/"))
    try:
        key.decode()
    except UnicodeDecodeError:
        plain = False
    if plain:
        return f"/v1/kv/{quote(key, safe='/')}", {}
    return f"/v1/kv/{to_base64(key)}", {"encoding": "base64"}


def _worker_path(worker: str) -> str:
    return f"/v1/workers/{quote(worker, safe=':')}"


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dry_run": "true"} if dry_run else {}


def _conditions(if_match: str | None, if_absent: bool) -> dict[str, str]:
    headers = {}
    if if_match is not None:
        headers["if-match"] = if_match if if_match == "*" else f'"{if_match}"'
    if if_absent:
        headers["if-none-match"] = "*"
    return headers


def _error(problem: Mapping[str, Any]) -> TrikvError:
    """What a server sent, as our exception. A kind that this client does not know is told by its outcome."""
    ours = ("type", "title", "status", "detail", "code", "outcome", "remedy")
    extra = {name: value for name, value in problem.items() if name not in ours}
    code = problem.get("code", "")
    if code not in KINDS:
        code = "conflict" if problem["outcome"] == Outcome.REFUSED else "unknown"
    return TrikvError(code, str(problem.get("detail", "")), **extra)


def _why(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer came in time"
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).rstrip(".") or "the connection broke"
