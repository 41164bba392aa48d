"""Calls of etcd: its JSON gateway over HTTP/1.1, several endpoints, TLS, users.

etcd's own protocol is gRPC. Beside it each member serves the same calls as JSON, under `/v3/` from etcd 3.4 on: a POST
of one object each, answered by one object, or by a stream of lines with an object each.

*Endpoints.* A call goes to the endpoint that answered last, and to the others in turn if that one does not answer in
time. One that is down costs a refused connection. One that hangs costs `timeout_s` of one call; then it is asked last.

*Outcomes.* A call returns etcd's answer, or raises one of three. `EtcdRefusal`: etcd answered that it did not do it.
`NotChanged`: no byte of the request was sent to any endpoint. `ConfigStoreError`: anything else, and the request may
have been carried out, or may yet be. `EtcdAnswer.again` marks the answer to a request that was sent to another endpoint
before, without an answer: that one may have carried it out.

*Hostile answers.* At most `ANSWER_BYTES_MAX` are read of an answer and `LINE_BYTES_MAX` of a stream's line. Nothing is
decompressed, no redirect is followed, no proxy of the environment is used, and the time covers all of an answer. What
does not have the shape that the API documents is as good as no answer.

What it costs: one HTTP request on a connection that is kept, 1 ms of CPU here; and httpx, which takes 0.3 s of CPU to
import. httpx, since trikv's client has it already and it speaks Trio. What it leaves out: gRPC's own resending,
balancing and discovery.
"""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import httpx
import trio

from trikv.master.configstore import ConfigStoreError, NotChanged
from trikv.master.etcd.answers import (
    Nonsense,
    NotCarriedOut,
    Unanswered,
    error_of,
    member,
    read_error,
    read_object,
    spell,
    whole,
)
from trikv.net.etcdurl import EtcdSettings

ANSWER_BYTES_MAX: Final = 8 << 20  # a document of etcd's limit (1.5 MiB) is 2 MiB of base64
LINE_BYTES_MAX: Final = 1 << 20
ERROR_BYTES_MAX: Final = 64 << 10
CONNECT_S: Final = 0.7  # at most, of the time of one attempt
TOKEN_S: Final = 1.0  # at least, for a token: etcd hashes the password at leisure


class EtcdRefusal(NotChanged):
    """etcd answered that it did not carry out the request. `reason` has its words."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason

    @property
    def no_such_lease(self) -> bool:
        return "lease not found" in self.reason


class EtcdAnswer(NamedTuple):
    body: dict[str, Any]
    again: bool  # the request had been sent to another endpoint before, without an answer


class _Unsent(Exception):
    """No byte of the request went to the endpoint."""


class Endpoint:
    """`reachable`: None until it is tried. `error`: why it is not."""

    def __init__(self, address: str, url: str) -> None:
        self.address = address
        self.url = url
        self.reachable: bool | None = None
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
        self._answered_s = -math.inf
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
        """Each endpoint may take `timeout_s`, and three times as much, or `TOKEN_S`, where a token has to be renewed.

        Raises:
          EtcdRefusal, NotChanged, ConfigStoreError: see above; one line with the remedy.
        """
        content = json.dumps(body).encode()
        began_s = trio.current_time()
        was_sent = False
        for endpoint in tuple(self._order):
            try:
                found = await self._ask_as_user(endpoint, path, content, timeout_s)
            except _Unsent as error:
                self._failed(endpoint, str(error))
            except Unanswered as error:
                self._failed(endpoint, str(error))
                was_sent = True
            except NotCarriedOut as refused:
                self._answered(endpoint)
                text = f"{self.name} refuses: {refused}"
                if was_sent:  # where it was sent before, it may have been carried out
                    raise ConfigStoreError(f"{text}; another endpoint did not answer") from refused
                raise EtcdRefusal(text, refused.reason) from refused
            else:
                self._answered(endpoint)
                return EtcdAnswer(found, was_sent)
        text = self._unreachable()
        if began_s >= self._answered_s:  # else it is known by now that an endpoint answers again
            self._noted(text)
        raise (ConfigStoreError if was_sent else NotChanged)(text)

    async def follow(
        self, path: str, body: Mapping[str, Any], timeout_s: float, told: Callable[[dict[str, Any]], None]
    ) -> None:
        """Open a stream at the best endpoint, and give each result to `told`, until it ends, which raises.

        Args:
          timeout_s: for the first result. After that, silence is as good as news.

        Raises:
          ConfigStoreError: it ended, whichever way.
        """
        endpoint = self._order[0]
        rest = bytearray()

        def take(piece: bytes) -> None:
            patience.deadline = math.inf
            *lines, last = piece.split(b"\n")
            for line in lines:
                message = read_object(bytes(rest + line)) if rest + line else {}
                rest.clear()
                if "error" in message:
                    raise error_of(message["error"])
                told(member(message, "result"))
            rest.extend(last)
            if len(rest) > LINE_BYTES_MAX:
                raise Nonsense("a line of the stream does not end")

        try:
            with trio.move_on_after(timeout_s) as patience:
                await self._authenticate(endpoint, timeout_s)
                await self._post(endpoint, path, json.dumps(body).encode(), timeout_s, take)
                raise Unanswered("the stream ended")
            raise Unanswered(f"no answer within {timeout_s:g} s")
        except NotCarriedOut as refused:
            if refused.is_of_the_token:
                self.forget_token()
            raise EtcdRefusal(f"{self.name} refuses: {refused}", refused.reason) from refused
        except (_Unsent, Unanswered) as error:
            self._failed(endpoint, str(error))
            raise ConfigStoreError(f"{self.name}: {endpoint.address}: {error}") from error
        except Nonsense as error:
            self._failed(endpoint, _not_etcd(error))
            raise ConfigStoreError(f"{self.name}: {endpoint.address}: {_not_etcd(error)}") from error

    def forget_token(self) -> None:
        """Authenticate anew before the next call, if there is a user."""
        self._token = None

    async def recheck(self, timeout_s: float) -> None:
        """Ask the endpoints that failed once more, so that what is told of them is true."""
        for endpoint in [each for each in self._order[1:] if each.reachable is False]:
            try:
                await self._ask_as_user(endpoint, "/v3/kv/range", b'{"key": "AA==", "serializable": true}', timeout_s)
            except (_Unsent, Unanswered) as error:
                endpoint.error = str(error)
            except NotCarriedOut:
                endpoint.reachable, endpoint.error = True, None
            else:
                endpoint.reachable, endpoint.error = True, None

    def describe(self) -> list[dict[str, Any]]:
        return [
            {"endpoint": each.address, "reachable": each.reachable, "error": each.error} for each in self._endpoints
        ]

    async def close(self) -> None:
        await self._http.aclose()

    # --- one endpoint -------------------------------------------------------------------------------------------------

    async def _ask_as_user(self, endpoint: Endpoint, path: str, content: bytes, timeout_s: float) -> dict[str, Any]:
        await self._authenticate(endpoint, timeout_s)
        used = self._token
        try:
            return await self._ask(endpoint, path, content, timeout_s)
        except NotCarriedOut as refused:
            if not refused.is_of_the_token or used is None:
                raise
        if self._token == used:  # it expired, or that member was started anew
            self.forget_token()
        await self._authenticate(endpoint, timeout_s)
        return await self._ask(endpoint, path, content, timeout_s)

    async def _authenticate(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Have a token, if there is a user.

        Raises:
          _Unsent: there is none, so the request that needs it cannot be sent.
          NotCarriedOut: etcd does not take the user.
        """
        if self._settings.user is None or self._token is not None:
            return
        timeout_s = max(timeout_s, TOKEN_S)
        with trio.move_on_after(timeout_s):
            async with self._authenticating:
                if self._token is None:
                    self._token = await self._fetch_token(endpoint, timeout_s)
                return
        raise _Unsent(f"no answer within {timeout_s:g} s")

    async def _fetch_token(self, endpoint: Endpoint, timeout_s: float) -> str:
        names = {"name": self._settings.user, "password": self._settings.password}
        try:
            answer = await self._ask(endpoint, "/v3/auth/authenticate", json.dumps(names).encode(), timeout_s)
        except Unanswered as error:
            raise _Unsent(str(error)) from error
        token = answer.get("token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise _Unsent(_not_etcd("it gave the user no token"))
        return token

    async def _ask(self, endpoint: Endpoint, path: str, content: bytes, timeout_s: float) -> dict[str, Any]:
        body = bytearray()

        def take(piece: bytes) -> None:
            body.extend(piece)
            if len(body) > ANSWER_BYTES_MAX:
                raise Nonsense("what it sends does not end")

        try:
            with trio.fail_after(timeout_s):
                await self._post(endpoint, path, content, timeout_s, take)
            found = read_object(bytes(body))
            self.raft_term = max(self.raft_term, whole(member(found, "header"), "raft_term"))
        except trio.TooSlowError:
            raise Unanswered(f"no answer within {timeout_s:g} s") from None
        except Nonsense as error:
            raise Unanswered(_not_etcd(error)) from error
        return found

    async def _post(
        self, endpoint: Endpoint, path: str, content: bytes, timeout_s: float, take: Callable[[bytes], None]
    ) -> None:
        """Send the request, and give what comes to `take`.

        Raises:
          _Unsent, Unanswered, NotCarriedOut, Nonsense
        """
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        if self._token is not None:
            headers["Authorization"] = self._token
        timeout = httpx.Timeout(None, connect=min(CONNECT_S, timeout_s / 2))
        request = self._http.build_request("POST", endpoint.url + path, headers=headers, timeout=timeout)
        request.stream = _Content(content)
        failure: Exception | None = None
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Nonsense("what it sends is compressed")
                error = bytearray()
                async for piece in response.aiter_raw():
                    try:
                        if response.status_code == 200:
                            take(piece)
                        elif len(error) < ERROR_BYTES_MAX:
                            error.extend(piece)
                        else:
                            raise Nonsense("an error does not end")
                    except (Nonsense, Unanswered, NotCarriedOut, ConfigStoreError) as found:
                        failure = failure or found
                        await response.aclose()  # the next piece fails then; a generator left alone would be a warning
                if response.status_code != 200:
                    raise read_error(response.status_code, bytes(error))
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error_:
            raise _Unsent(_why(error_, self._settings.tls)) from error_
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error_:
            raise failure or Unanswered(_why(error_, self._settings.tls)) from error_
        if failure is not None:
            raise failure

    # --- what is known of them ----------------------------------------------------------------------------------------

    def _answered(self, endpoint: Endpoint) -> None:
        self._answered_s = trio.current_time()
        endpoint.reachable = True
        endpoint.error = None
        if self._order[0] is not endpoint:
            self._order.remove(endpoint)
            self._order.insert(0, endpoint)
        self._noted(None)

    def _failed(self, endpoint: Endpoint, why: str) -> None:
        endpoint.reachable = False
        endpoint.error = why
        self._order.remove(endpoint)
        self._order.append(endpoint)

    def _unreachable(self) -> str:
        tried = [f"{each.address}: {each.error}" for each in self._endpoints]
        return f"{self.name} cannot be used: {'; '.join(tried)}; start etcd, or correct --config-store"


class _Content(httpx.AsyncByteStream):
    """What a request sends. httpx's own is a generator, which a cancelled request would leave to the collector."""

    def __init__(self, content: bytes) -> None:
        self._pieces = [content]

    def __aiter__(self) -> _Content:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


def _not_etcd(why: object) -> str:
    return f"it does not answer like an etcd: {why}"


# --- TLS --------------------------------------------------------------------------------------------------------------


def _tls(settings: EtcdSettings) -> ssl.SSLContext:
    if not settings.tls:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and cheaper than what httpx would load
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


_GIVE_CERTIFICATE: Final = "give --config-store-cert and --config-store-key"


def _why(error: Exception, tls: bool) -> str:
    """What httpx says, as a sentence with the remedy where there is one."""
    if isinstance(error, httpx.ConnectTimeout):
        return "it cannot be reached in time"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"no trust in its certificate: {cause.verify_message}; name what signed it with --config-store-ca"
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or str(cause)).lower().replace("_", " ")
            if "certificate required" in reason or "bad certificate" in reason:
                return f"it wants a client's certificate; {_GIVE_CERTIFICATE}"
            return f"TLS failed: {spell(reason)}; write etcd:// if it serves no TLS"
        if isinstance(cause, ConnectionRefusedError):
            return "nobody listens there"
        if isinstance(cause, ConnectionResetError | BrokenPipeError):
            return _ended(tls)
        if isinstance(cause, OSError) and cause.strerror:
            return spell(cause.strerror)
    if "peer closed connection" in str(error):
        return "it ended the connection in the middle of an answer"
    return spell(str(error)) if str(error) and "disconnected" not in str(error) else _ended(tls)


def _ended(tls: bool) -> str:
    """So ends a connection of which one side only speaks TLS, and one whose client's certificate is missing."""
    if not tls:
        return "it ended the connection; write etcds:// if it speaks TLS"
    return f"it ended the connection; write etcd:// if it serves no TLS; if it wants a certificate, {_GIVE_CERTIFICATE}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what brought it about; of attempts that failed together, the last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.exceptions[-1] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
