"""Calls of etcd: its JSON gateway over HTTP/1.1, several endpoints, TLS, users.

etcd's own protocol is gRPC; beside it each member serves the same calls as JSON (`/v3/...`, from etcd 3.4 on). Keys and
values are base64, numbers of 64 bits are texts, false and zero are left out, and a stream is a line of JSON each.

*Endpoints.* A call goes to the endpoint that answered last, and to the others in turn if that one does not answer in
time. One that is down costs a refused connection; one that hangs costs `timeout_s` of one call, then it is asked last.

*Outcomes.* A call returns etcd's answer, or raises one of three. `EtcdRefusal`: etcd answered that it did not do it.
`NotChanged`: no byte of the request was sent to any endpoint. `ConfigStoreError`: anything else, and the request may
have been carried out, or may yet be. `EtcdAnswer.again` marks an answer to a request that was sent before to another
endpoint, which may have carried it out.

*Hostile answers.* At most `ANSWER_BYTES_MAX` are read of an answer and `LINE_BYTES_MAX` of a stream's line, nothing is
decompressed, no redirect is followed, no proxy of the environment is used, and the time covers all of an answer. What
is not JSON of the shape that the API documents is as good as no answer.

What it costs: one HTTP request on a connection that is kept, about 2 ms of CPU here and as much in etcd, of which the
half is JSON and base64. httpx is there for the client already, and speaks Trio.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import httpx
import trio

from trikv.core.text import escape
from trikv.master.configstore import ConfigStoreError, NotChanged
from trikv.net.etcdurl import EtcdSettings

ANSWER_BYTES_MAX: Final = 8 << 20  # a document of etcd's limit (1.5 MiB) is 2 MiB of base64
LINE_BYTES_MAX: Final = 1 << 20
CONNECT_S: Final = 0.7  # at most, of the time of one attempt
TEXT_CHARS_MAX: Final = 200  # of what a stranger answers, in an error

# gRPC's codes (google.golang.org/grpc/codes) that etcd answers if it did not carry out the request.
_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _PRECONDITION, _RANGE, _NO_SUCH_CALL, _WHO = 3, 5, 7, 8, 9, 11, 12, 16
_DEFINITE: Final = {_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _PRECONDITION, _RANGE, _NO_SUCH_CALL, _WHO}
_TOKEN_IS_OLD: Final = ("invalid auth token", "revision of auth store is old")


class EtcdRefusal(NotChanged):
    """etcd answered that it did not carry out the request."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason  # etcd's own words

    @property
    def no_such_lease(self) -> bool:
        return "lease not found" in self.reason

    @property
    def compacted(self) -> bool:
        return "compacted" in self.reason


class EtcdAnswer(NamedTuple):
    body: dict[str, Any]
    again: bool  # the request had been sent to another endpoint before, without an answer


class Nonsense(ValueError):
    """An answer is not what etcd's API documents."""


class _Unsent(Exception):
    """No byte of the request went to the endpoint."""


class _Unanswered(Exception):
    """The request went out, and no answer of etcd's came back."""


class _Refused(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Endpoint:
    """`answers`: None until it is tried. `error`: why it does not."""

    def __init__(self, address: str, url: str) -> None:
        self.address = address
        self.url = url
        self.answers: bool | None = None
        self.error: str | None = None


class EtcdGateway:
    """
    Args:
      noted: told of each call whether it was answered (None) or why not, for the log.

    Raises:
      ConfigStoreError: a certificate's file cannot be used.
    """

    def __init__(self, settings: EtcdSettings, noted: Callable[[str | None], None] = lambda _: None) -> None:
        self.name = f"config store {settings}"
        self.raft_term = 0  # the highest that an answer had
        self._settings = settings
        self._noted = noted
        scheme = "https" if settings.tls else "http"
        self._order = [Endpoint(address, f"{scheme}://{address}") for address in settings.endpoints]
        self._endpoints = tuple(self._order)
        self._token: str | None = None
        self._authenticating = trio.Lock()
        self._http = httpx.AsyncClient(
            verify=_tls(settings),
            trust_env=False,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
            # A limit would let calls wait for each other; there are few, and each ends in time.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
        )

    async def call(self, path: str, body: Mapping[str, Any], timeout_s: float) -> EtcdAnswer:
        """Each endpoint may take `timeout_s`, and as much again where the user's token has to be renewed.

        Raises:
          EtcdRefusal, NotChanged, ConfigStoreError: see above; one line with the remedy.
        """
        content = json.dumps(body).encode()
        was_sent = False
        for endpoint in tuple(self._order):
            try:
                found = await self._ask_as_user(endpoint, path, content, timeout_s)
            except _Unsent as error:
                self._failed(endpoint, str(error))
            except _Unanswered as error:
                self._failed(endpoint, str(error))
                was_sent = True
            except _Refused as refused:
                self._answered(endpoint)
                if was_sent:  # where it was sent before, it may have been carried out
                    raise ConfigStoreError(f"{self.name}: no answer, and then: {_spell(str(refused))}") from refused
                raise self._refusal(refused.code, str(refused)) from refused
            else:
                self._answered(endpoint)
                return EtcdAnswer(found, was_sent)
        text = self._unreachable()
        self._noted(text)
        raise (ConfigStoreError if was_sent else NotChanged)(text)

    async def follow(self, path: str, body: Mapping[str, Any], timeout_s: float, told: Callable[[Any], None]) -> None:
        """Open a stream at the best endpoint, and give each result to `told`, until it ends, which raises.

        Args:
          timeout_s: for the first result. After that silence is as good as news.

        Raises:
          ConfigStoreError: it ended, whichever way.
        """
        endpoint = self._order[0]
        content = json.dumps(body).encode()
        try:
            with trio.move_on_after(timeout_s) as patience:

                def take(line: bytes) -> None:
                    patience.deadline = float("inf")
                    message = _document(line)
                    if "error" in message:
                        raise _failure(message["error"])
                    told(message.get("result"))

                await self._authenticate(endpoint, timeout_s)
                await self._stream(endpoint, path, content, timeout_s, take)
                raise _Unanswered("the stream ended")
            raise _Unanswered(f"no answer within {timeout_s:g} s")
        except _Refused as refused:
            if _is_of_a_token(refused):
                self._token = None
            raise self._refusal(refused.code, str(refused)) from refused
        except (_Unsent, _Unanswered) as error:
            self._failed(endpoint, str(error))
            raise ConfigStoreError(f"{self.name}: {endpoint.address}: {error}") from error
        except Nonsense as error:
            self._failed(endpoint, str(error))
            raise ConfigStoreError(f"{self.name}: {endpoint.address} does not answer like an etcd: {error}") from error

    def describe(self) -> list[dict[str, Any]]:
        return [{"endpoint": each.address, "reachable": each.answers, "error": each.error} for each in self._endpoints]

    async def close(self) -> None:
        await self._http.aclose()

    # --- one endpoint -------------------------------------------------------------------------------------------------

    async def _ask_as_user(self, endpoint: Endpoint, path: str, content: bytes, timeout_s: float) -> dict[str, Any]:
        await self._authenticate(endpoint, timeout_s)
        try:
            return await self._ask(endpoint, path, content, timeout_s)
        except _Refused as refused:
            if not _is_of_a_token(refused) or self._settings.user is None:
                raise
        self._token = None  # it expired, or that member was started anew
        await self._authenticate(endpoint, timeout_s)
        return await self._ask(endpoint, path, content, timeout_s)

    async def _authenticate(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Have a token, if there is a user.

        Raises:
          _Unsent: there is none, so the request that needs it cannot be sent.
          _Refused: etcd does not take the user.
        """
        if self._settings.user is None:
            return
        async with self._authenticating:
            if self._token is not None:
                return
            names = {"name": self._settings.user, "password": self._settings.password}
            try:
                answer = await self._ask(endpoint, "/v3/auth/authenticate", json.dumps(names).encode(), timeout_s)
            except _Unanswered as error:
                raise _Unsent(str(error)) from error
            token = answer.get("token")
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise _Unsent("it does not answer like an etcd: it gave the user no token")
            self._token = token

    async def _ask(self, endpoint: Endpoint, path: str, content: bytes, timeout_s: float) -> dict[str, Any]:
        body = bytearray()

        def take(piece: bytes) -> None:
            body.extend(piece)
            if len(body) > ANSWER_BYTES_MAX:
                raise Nonsense("the answer does not end")

        try:
            with trio.fail_after(timeout_s):
                await self._post(endpoint, path, content, timeout_s, take)
            found = _document(bytes(body))
            self._note_term(found)
        except trio.TooSlowError as error:
            raise _Unanswered(f"no answer within {timeout_s:g} s") from error
        except Nonsense as error:
            raise _Unanswered(f"it does not answer like an etcd: {error}") from error
        return found

    async def _stream(
        self, endpoint: Endpoint, path: str, content: bytes, timeout_s: float, told: Callable[[bytes], None]
    ) -> None:
        rest = bytearray()

        def take(piece: bytes) -> None:
            rest.extend(piece)
            *lines, last = rest.split(b"\n")
            rest[:] = last
            for line in lines:
                if line.strip():
                    told(bytes(line))
            if len(rest) > LINE_BYTES_MAX:
                raise Nonsense("a line of the stream does not end")

        await self._post(endpoint, path, content, timeout_s, take)

    async def _post(
        self, endpoint: Endpoint, path: str, content: bytes, timeout_s: float, take: Callable[[bytes], None]
    ) -> None:
        """Send the request, and give what comes to `take`.

        Raises:
          _Unsent, _Unanswered, _Refused, Nonsense
        """
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = self._token
        timeout = httpx.Timeout(None, connect=min(CONNECT_S, timeout_s / 2))
        try:
            async with self._http.stream(
                "POST", endpoint.url + path, content=content, headers=headers, timeout=timeout
            ) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Nonsense("its answer is compressed")
                if response.status_code != 200:
                    await _raise_refusal(response, self._settings.tls)
                async for piece in response.aiter_raw():
                    take(piece)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            raise _Unsent(_why(error, self._settings)) from error
        except (httpx.HTTPError, httpx.StreamError, OSError, httpx.InvalidURL) as error:
            raise _Unanswered(_why(error, self._settings)) from error

    # --- what was found -----------------------------------------------------------------------------------------------

    def _note_term(self, found: Mapping[str, Any]) -> None:
        term = whole(_member(found, "header", dict), "raft_term")
        self.raft_term = max(self.raft_term, term)

    def _answered(self, endpoint: Endpoint) -> None:
        endpoint.answers = True
        endpoint.error = None
        if self._order[0] is not endpoint:
            self._order.remove(endpoint)
            self._order.insert(0, endpoint)
        self._noted(None)

    def _failed(self, endpoint: Endpoint, why: str) -> None:
        endpoint.answers = False
        endpoint.error = why
        self._order.remove(endpoint)
        self._order.append(endpoint)

    def _unreachable(self) -> str:
        tried = [f"{each.address}: {each.error}" for each in self._endpoints]
        return f"{self.name} cannot be used: {'; '.join(tried)}; start etcd, or correct --config-store"

    def _refusal(self, code: int, reason: str) -> EtcdRefusal:
        remedy = _REMEDIES.get(code, "")
        for words, special in _SPECIAL_REMEDIES:
            if words in reason:
                remedy = special
        return EtcdRefusal(f"{self.name} refused: {_spell(reason)}{remedy and '; '}{remedy}", reason)


_REMEDIES: Final = {
    _DENIED: "grant the user's role reading and writing of every key that begins with the prefix",
    _WHO: "check the user and the password",
    _NO_SUCH_CALL: "etcd 3.4 or later is needed",
}
_SPECIAL_REMEDIES: Final = (
    ("invalid user ID or password", "check the user and the password"),
    ("user name is empty", "etcd wants a user: write etcd://USER:PASSWORD@HOST:PORT"),
    ("authentication is not enabled", "leave USER:PASSWORD@ out, or enable it with etcdctl auth enable"),
    ("space exceeded", "compact and defragment etcd, then etcdctl alarm disarm"),
    ("request is too large", "start etcd with a larger --max-request-bytes, or have fewer workers"),
)


def _is_of_a_token(refused: _Refused) -> bool:
    return any(words in str(refused) for words in _TOKEN_IS_OLD)


async def _raise_refusal(response: httpx.Response, tls: bool) -> None:
    body = bytearray()
    async for piece in response.aiter_raw():
        body.extend(piece)
        if len(body) > LINE_BYTES_MAX:
            break
    if not tls and b"HTTPS server" in body:
        raise _Unanswered("it speaks TLS; write etcds:// in place of etcd://")
    try:
        document = _document(bytes(body).partition(b"}Grpc-Trailer")[0] + b"}" * (b"}Grpc-Trailer" in body))
    except Nonsense:
        raise Nonsense(f"HTTP {response.status_code} to a call of /v3, which etcd has from 3.4 on") from None
    raise _failure(document)


def _failure(document: object) -> _Refused | _Unanswered | Nonsense:
    """What etcd says if it does not do it, or cannot know: as an answer, or as the end of a stream."""
    if not isinstance(document, dict):
        return Nonsense("an error is no object")
    code = document.get("code", document.get("grpc_code"))
    reason = document.get("message", document.get("error"))
    if not isinstance(code, int) or not isinstance(reason, str):
        return Nonsense("an error has no code")
    if code in _DEFINITE:
        return _Refused(code, reason)
    return _Unanswered(f"it answers: {_spell(reason)}; see that most members of etcd run and reach each other")


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Nonsense("what it sends is not JSON") from None
    if not isinstance(found, dict):
        raise Nonsense("what it sends is no object")
    return found


def _member(document: Mapping[str, Any], name: str, kind: type) -> Any:
    """An object, a list or a text; empty if it is left out."""
    found = document.get(name, kind())
    if not isinstance(found, kind):
        raise Nonsense(f"{name!r} is no {kind.__name__}")
    return found


def member(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = _member(document, name, dict)
    return found


def members(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = _member(document, name, list)
    if not all(isinstance(each, dict) for each in found):
        raise Nonsense(f"{name!r} has what is no object")
    return list(found)


def text(document: Mapping[str, Any], name: str) -> str:
    found: str = _member(document, name, str)
    return found


def whole(document: Mapping[str, Any], name: str) -> int:
    """A number of 64 bits, which is a text; 0 if it is left out."""
    found = document.get(name, 0)
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) <= 20:
        return int(found)
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 64:
        return found
    raise Nonsense(f"{name!r} is no number")


def _spell(text: str) -> str:
    return escape(text[:TEXT_CHARS_MAX])


def _tls(settings: EtcdSettings) -> ssl.SSLContext:
    if not settings.tls:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused; cheaper than what httpx would load
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except OSError as error:
        raise ConfigStoreError(_of_a_file("--config-store-ca", settings.ca, error)) from error
    if settings.certificate is not None and settings.key is not None:
        try:
            # Without a password given, a key that has one would ask at the terminal.
            context.load_cert_chain(settings.certificate, settings.key, password=lambda: "")
        except OSError as error:
            flags = "--config-store-cert and --config-store-key"
            files = f"{settings.certificate} and {settings.key}"
            raise ConfigStoreError(_of_a_file(flags, files, error)) from error
    return context


def _of_a_file(flag: str, file: object, error: OSError) -> str:
    is_of_tls = isinstance(error, ssl.SSLError)
    why = "not PEM, encrypted, or not of each other" if is_of_tls else error.strerror
    return f"{file}: {why}; correct {flag}"


def _why(error: Exception, settings: EtcdSettings) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}; name what signed it with --config-store-ca"
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or str(cause)).lower().replace("_", " ")
            if "certificate required" in reason or "bad certificate" in reason:
                return f"it wants a client's certificate: {reason}; give --config-store-cert and --config-store-key"
            return f"TLS failed: {_spell(reason)}; write etcd:// if it serves no TLS"
        if isinstance(cause, ConnectionRefusedError):
            return "nobody listens there"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectTimeout):
        return "it cannot be reached in time"
    return _spell(str(error)) or type(error).__name__
