"""The doors to the outside: transport and dice here, the clock through Trio.

All higher floors reach the network through `Transport`, draw through `Doors.dice`, and read the time through
`trio.current_time`, which Trio's own MockClock replaces. So the same code runs on real sockets and in a simulated
world, where time is virtual, and network and dice follow a seed. Nothing else in trikv opens a socket between nodes.

`boottime` is the one other clock. Trio's stands still while the machine is suspended, and a lease goes on.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import trio


class Listening(NamedTuple):
    """An open listener. `address` is what others dial, with the real port."""

    listener: trio.abc.Listener[trio.abc.Stream]
    address: str


class Transport(ABC):
    """How bytes reach another node. Addresses are `host:port`."""

    @abstractmethod
    async def connect(self, address: str) -> trio.abc.Stream:
        """Raises:
        ConnectionRefusedError: no process listens there; the machine itself says so.
        OSError: the address cannot be reached."""

    @abstractmethod
    async def listen(self, address: str) -> Listening:
        """Listen; port 0 takes a free one.

        Raises:
          OSError: the address is taken or not ours; the message names it.
        """


class TcpTransport(Transport):
    async def connect(self, address: str) -> trio.abc.Stream:
        host, port = split_address(address)
        try:
            return await trio.open_tcp_stream(host, port)
        except UnicodeError as error:
            raise unresolved(host, error) from error
        except OSError as error:
            tried = error.__cause__
            causes = tried.exceptions if isinstance(tried, BaseExceptionGroup) else (tried,)
            if all(isinstance(cause, ConnectionRefusedError) for cause in causes):
                raise ConnectionRefusedError(f"nobody listens at {address}") from error
            raise

    async def listen(self, address: str) -> Listening:
        host, port = split_address(address)
        # Only the first address that the name stands for: with port 0, several addresses would get several ports.
        try:
            infos = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise unresolved(host, error, "; choose another with --host") from error
        family, kind, protocol, _, where = infos[0]
        sock = trio.socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await sock.bind(where)
            sock.listen(1024)
        except OSError as error:
            sock.close()
            what_to_do = "; stop who listens there, or choose another port" if error.errno == errno.EADDRINUSE else ""
            raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}{what_to_do}") from error
        return Listening(trio.SocketListener(sock), join_address(host, sock.getsockname()[1]))


def accept_now(listener: trio.abc.Listener[trio.abc.Stream]) -> trio.SocketStream | None:
    """A connection that waits already. None: there is none, or the listener is to say what is the matter."""
    if not isinstance(listener, trio.SocketListener) or (descriptor := listener.socket.fileno()) < 0:
        return None
    door = socket.socket(fileno=descriptor)
    try:
        accepted, _ = door.accept()
    except OSError:
        return None
    finally:
        door.detach()  # the descriptor is the listener's
    return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))


@dataclass(frozen=True, slots=True)
class Doors:
    """What a node is given of the outside world."""

    transport: Transport = field(default_factory=TcpTransport)
    dice: random.Random = field(default_factory=random.SystemRandom)

    def new_id(self, digits: int = 8) -> str:
        """Hexadecimal digits, drawn, for names that must not collide, such as incarnations."""
        return f"{self.dice.getrandbits(4 * digits):0{digits}x}"


def boottime() -> float:
    """Seconds since some moment, those of a suspended machine included where the system counts them (Linux does)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def unresolved(host: str, error: OSError | UnicodeError, remedy: str = "") -> OSError:
    """An error in one sentence: the host's name stands for no address, or (UnicodeError) cannot be a host's name."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    return OSError(number, f"{host!r} cannot be resolved: {why}{remedy}")


def split_address(address: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`.

    Raises:
      ValueError: anything else; the message names it.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise ValueError(f"{address!r} is not an address; write HOST:PORT, such as localhost:8001")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
