"""A small synchronous client of a cluster's HTTP API, for the CLI, the demo, the tests and any script.

    with Client("http://127.0.0.1:8080") as client:
        stamp = client.put(b"k", b"v")
        client.put(b"k", b"w", if_match=stamp)

A client may know several masters: `Client("http://a:8080,http://b:8080")`. It asks the one that answered last, and goes
on to the next one where that is safe: nothing was sent, or the answer says that nothing was done since that master does
not lead, or the request only reads and no answer came. A request that may have been carried out is never repeated.

Every failure is one exception, `TrikvError`. Its `kind` is a row of the error table, which tells the outcome (certainly
not done, or perhaps done) and the CLI's exit code. That holds also for failures of which the cluster says nothing. If
no connection could be made, nothing was sent, and the request is refused. If a connection broke after a write was sent,
the outcome is unknown. Nothing else is retried, since only the caller knows whether that is safe.

The URL may lead to something else: a login page, a gateway's error, another service on that port. Every answer of a
trikv server has the header `Trikv`. An answer without it, or without the expected content, is not believed, whatever
its status: a read is then unanswered, and the outcome of a change unknown.

Keys and values are bytes. A key goes into the path as it is if it is plain text, else as base64. Proxies that the
environment names are not used, since a write must not pass through one by accident. Threads may share a client; each
request takes a connection of its own from the pool.
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
EVENTS_SILENCE_S: Final = 45.0  # three times the silence after which a live stream sends a comment

_OURS: Final = "trikv"  # the header that every answer of a trikv server has
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
      url: the master's HTTP address, or those of several masters, with commas between them.
      timeout_s: the deadline of a request for keys, up to 60, instead of the cluster's own (2 s, or as its master is
        set).
      patience_s: how long to wait for an answer, beyond `timeout_s`, before the request fails.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_s: float | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        urls = [each.strip() for each in url.split(",")]
        self.urls = tuple(dict.fromkeys(_checked(each).rstrip("/") for each in urls if each or len(urls) == 1))
        if not self.urls:
            raise TrikvError("bad_request", f"{url!r} names no address like {DEFAULT_URL}")
        self._first = 0  # which of them is asked first: the one that answered last
        self._patience_s = patience_s
        self._unhurried = httpx.Timeout(patience_s, read=None)  # for requests that take longer with more data
        self._deadline = {} if timeout_s is None else {"timeout": f"{timeout_s:g}"}
        # Reading the authorities' certificates takes longer than a whole `trikv get`. Plain HTTP does not need them.
        is_plain = all(each.startswith("http:") for each in self.urls)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_plain else ssl.create_default_context()
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
        """The value and its stamp; None if the key has no value."""
        try:
            answer = self._ask_for_key("GET", key)
        except TrikvError as error:
            if error.kind.code == "not_found":
                return None
            raise
        return Found(answer.content, self._stamp(answer))

    def put(self, key: bytes, value: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Store, and return the new stamp; with a condition, only if the key has that stamp, or is absent."""
        if len(value) > VALUE_BYTES_MAX:  # else the server may stop reading half-way, and the outcome would be unknown
            raise TrikvError("value_too_large", f"the value has {len(value):,} bytes; the limit is {VALUE_BYTES_MAX:,}")
        headers = {"content-type": "application/octet-stream", **_conditions(if_match, if_absent)}
        return self._stamp(self._ask_for_key("PUT", key, content=value, headers=headers))

    def delete(self, key: bytes, *, if_match: str | None = None) -> str:
        """Delete, and return the stamp of the deletion. Deleting an absent key is a success too."""
        return self._stamp(self._ask_for_key("DELETE", key, headers=_conditions(if_match, False)))

    def scan(self, prefix: bytes = b"", *, after: bytes | None = None, limit: int | None = None) -> Iterator[Entry]:
        """The live keys that start with `prefix` and come after `after`, in byte order, fetched page by page.

        Each page is true when it is answered. Keys that are written during the scan may or may not be in it.
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
        """Carry out many independent changes in one request. Returns for each, in their order, its stamp or its error.

        Raises:
          TrikvError: the request as a whole failed; its outcome is that of every change in it.
        """
        import cbor2  # JSON has no bytes; only a batch needs this import

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
        """The cluster's state: mode, forming, partitions, workers. README.md has the fields."""
        return self._document(self._ask("GET", "/v1/cluster"))

    def masters(self) -> dict[str, Any]:
        """The masters that share a config store, which one leads, and since when; any of them answers."""
        return self._document(self._ask("GET", "/v1/masters"))

    def probe(self) -> dict[str, Any]:
        """Whether the mode keeps its promise, as the probe measured it; `enabled` says whether there is a probe."""
        return self._document(self._ask("GET", "/v1/probe"))

    def traces(self) -> list[dict[str, Any]]:
        """The latest requests that were traced, the newest first, each in brief."""
        traces: list[dict[str, Any]] = self._document(self._ask("GET", "/v1/traces"))["traces"]
        return traces

    def trace(self, trace_id: str, *, form: str = "json") -> bytes:
        """One of them, as JSON, text or SVG."""
        return self._ask("GET", f"/v1/trace/{quote(trace_id, safe='')}", params={"format": form}).content

    def locate(self, key: bytes) -> list[str]:
        """The ids of the workers that hold the key, first choice first."""
        place = self._document(self._ask("GET", "/v1/locate", params={"key": to_base64(key), "encoding": "base64"}))
        return [replica["id"] for replica in place["replicas"]]

    def mode(self) -> dict[str, Any]:
        """The mode in force, and how far a switch or a repair has come."""
        return self._document(self._ask("GET", "/v1/mode"))

    def set_mode(self, mode: str) -> dict[str, Any]:
        """Switch, and return the certificate of the switch at its end. There is no deadline."""
        return self._document(self._ask("PUT", "/v1/mode", json={"mode": mode}, timeout=self._unhurried))

    def plan_mode(self, mode: str) -> dict[str, Any]:
        """What a switch to that mode would do."""
        return self._document(self._ask("PUT", "/v1/mode", params={"plan": "true"}, json={"mode": mode}))

    def enlist(self, address: str) -> dict[str, Any]:
        """Have the master dial the worker at `address` ("localhost:8006") and enlist it."""
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
        """Whether the worker may be stopped, because everything is on enough others, and the reason."""
        answer = self._ask("GET", "/readyz", params={"safe_to_stop": worker}, also=503)
        told = self._document(answer)
        if "safe" not in told:
            raise self._refusal(answer, told)
        return told["safe"], told["detail"]

    def repair(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Compare all copies, and mend those that differ. There is no deadline."""
        return self._document(self._ask("POST", "/v1/repair", params=_dry(dry_run), timeout=self._unhurried))

    def recover(self, *, accept_loss: bool) -> dict[str, Any]:
        """Go on without what cannot be found any more. Without `accept_loss`, only return what that is."""
        return self._document(self._ask("POST", "/v1/recover", json={"accept_loss": accept_loss}))

    def faults(self) -> dict[str, Any]:
        """Whether faults may be injected, the condition of each worker, and what can be done to it."""
        return self._document(self._ask("GET", "/v1/faults"))

    def inject(self, kind: str, worker: str, *, delay_ms: float | None = None) -> dict[str, Any]:
        """Pause, resume, kill or start a worker's process, or cut, slow (by `delay_ms`) or mend the link to it."""
        delay = {} if delay_ms is None else {"delay_ms": delay_ms}
        return self._document(
            self._ask("POST", "/v1/faults", json={"kind": kind, "worker": worker, **delay}, timeout=self._unhurried)
        )

    def events(self, *, after: str | None = None, follow: bool = True) -> Iterator[dict[str, Any]]:
        """The events that the master remembers, or those after the event with the id `after`; then new ones.

        An event of kind `gap` says that events before it are missing. The events end when the master stops.

        Raises:
          TrikvError: there is no connection, or it broke. Call again with the id of the last event that was seen.
        """
        query = {"follow": "true" if follow else "false"} | ({} if after is None else {"after": after})
        patience = httpx.Timeout(self._patience_s, read=EVENTS_SILENCE_S)
        for url, attempt in self._in_turn(reads=True):
            with (
                attempt,
                self._answer(url, "GET", "/v1/events", params=query, timeout=patience, follow_redirects=True) as answer,
            ):  # a stream is not passed on: a master that stands by names the leader's address
                for line in answer.iter_lines():
                    attempt.is_last = True  # what comes after that event is the caller's to ask for
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))
                return

    def _ask_for_key(self, method: str, key: bytes, **request: Any) -> httpx.Response:
        path, query = _key_path(key)
        return self._ask(method, path, params={**query, **self._deadline}, **request)

    def _ask(self, method: str, path: str, *, also: int = 200, **request: Any) -> httpx.Response:
        """The answer, read to its end, if it is a success or has the status `also`."""
        reads = method == "GET" or not {"plan", "dry_run"}.isdisjoint(request.get("params") or ())
        for url, attempt in self._in_turn(reads=reads):
            with attempt, self._answer(url, method, path, also=also, **request) as answer:
                answer.read()
                return answer
        raise AssertionError("the last attempt raises")

    def _in_turn(self, *, reads: bool) -> Iterator[tuple[str, _Attempt]]:
        """The URLs to ask, one after another, each as an attempt to be entered. The last one raises for all."""
        first, failures = self._first, list[TrikvError]()
        for turn in range(len(self.urls)):
            self._first = (first + turn) % len(self.urls)
            url = self.urls[self._first]
            yield url, _Attempt(url, failures, reads, turn == len(self.urls) - 1)

    @contextmanager
    def _answer(self, url: str, method: str, path: str, *, also: int = 200, **request: Any) -> Iterator[httpx.Response]:
        """The answer, not read yet. If it is not of a trikv server, nothing of it is read."""
        with _in_our_words(url), self._http.stream(method, url + path, **request) as answer:
            if _OURS not in answer.headers:
                raise self._not_ours(answer)
            if not answer.is_success and answer.status_code != also:
                answer.read()
                raise self._refusal(answer, self._document(answer))
            yield answer

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
        said = f"{_base(answer.request)} answered {answer.status_code}"
        what = f"{said}, and not as trikv does: name the master's HTTP address"
        return _NoAnswer("unanswered" if _reads(answer.request) else "unknown", what)


class _NoAnswer(TrikvError):
    """No answer came that can be believed; what the cluster knows of the request is not known."""


class _Attempt:
    """One master's turn with a request. On leaving it, a failure that the next one may do better at is kept.

    `is_last`: there is no next one.
    """

    def __init__(self, url: str, failures: list[TrikvError], reads: bool, is_last: bool) -> None:
        self.is_last = is_last
        self._url = url
        self._failures = failures
        self._reads = reads

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, TrikvError) or not (
            error.kind.code in _ELSEWHERE or (self._reads and isinstance(error, _NoAnswer))
        ):
            return False
        self._failures.append(error)
        if not self.is_last:
            return True
        if len(self._failures) > 1:
            raise _of_all(self._failures) from error
        return False


_ELSEWHERE: Final = ("unreachable", "no_leader", "stopping")  # nothing was done, and another master may lead


def _of_all(failures: Sequence[TrikvError]) -> TrikvError:
    """One error for a request that several masters did not answer. None of them has carried it out."""
    told = next((error for error in failures if error.kind.code != "unreachable"), failures[-1])
    return TrikvError(told.kind.code, "; ".join(dict.fromkeys(error.detail for error in failures)), **told.extra)


@contextmanager
def _in_our_words(url: str) -> Iterator[None]:
    """Raise a failure of httpx as a `TrikvError`."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise TrikvError("unreachable", f"{url} ({_why(error)})") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:  # it cannot be a host's name
        raise TrikvError("bad_request", f"{url!r} is not an address like {DEFAULT_URL}") from error
    except httpx.RequestError as error:
        if _reads(error.request):
            raise _NoAnswer("unanswered", f"no answer came from {url} ({_why(error)})") from error
        raise _NoAnswer("unknown", f"the request was sent to {url}, and {_why(error)}") from error


def _base(request: httpx.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode()}"


def _checked(url: str) -> str:
    """`url`, if it is the URL of a cluster, to which paths can be added.

    Raises:
      TrikvError: it is not.
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
    """Path and query of a key: the key itself if it is text that no URL library rewrites, else base64."""
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
    """A problem document as an exception. A code that this client does not know becomes one of the same outcome."""
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
