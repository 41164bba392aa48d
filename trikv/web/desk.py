"""Where a front has its requests answered: by this process's own master, or by the master that leads.

Both fronts of the HTTP port, the express lane and the framework's side, recognise a request, hand it to a `Desk` with
its route, and write the answer. They need not know which desk it is. `OwnDesk` calls the route's handler; the desk of a
master that stands by passes the request on (`standby.py`). At the other end of that, `answer_passed` calls the same
handler.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable
from functools import partial
from typing import Final

from trikv.core.calls import PassOn
from trikv.core.errors import Refused, TrikvError, Unknown
from trikv.core.serving import epoch, is_request_id, request_id
from trikv.master.passing import NotLeading
from trikv.web.message import Request, Response, problem_response
from trikv.web.routes import ROUTES, Route
from trikv.web.services import Services

_ROUTES: Final = {(route.method, route.path): route for route in ROUTES}

_log = logging.getLogger(__name__)


class Desk(ABC):
    """`answered`: how many HTTP requests were, by method, route and status; the fronts count."""

    answered: Counter[tuple[str, str, int]]

    @abstractmethod
    def answer(self, route: Route, request: Request) -> Awaitable[Response]:
        """The answer. The caller's task is not cancelled before it has it.

        Raises:
          TrikvError: the answer is a problem document.
        """

    @abstractmethod
    async def answer_detached(self, route: Route, request: Request) -> Response:
        """As `answer`, for a route that is `detached`: what has begun goes on if the caller is cancelled meanwhile."""


class OwnDesk(Desk):
    """Answers with the parts of this process's master."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.answered = services.answered

    def answer(self, route: Route, request: Request) -> Awaitable[Response]:
        return route.handle(self.services, request)

    async def answer_detached(self, route: Route, request: Request) -> Response:
        return await self.services.run_detached(partial(route.handle, self.services, request))


def internal_error() -> Unknown:
    """What the client is told of an exception that nothing foresaw."""
    return Unknown("this node met a condition that its authors did not foresee", code="internal")


async def answer_passed(services: Services, passed: PassOn) -> Response:
    """The answer to a request that a standby passed on.

    Raises:
      NotLeading: this master is about to stop, and the request was not begun.
    """
    request_id.set(passed.request_id if is_request_id(passed.request_id) else "")
    epoch.set(0)
    try:
        route = _ROUTES.get(passed.route)
        if route is None:  # of another version, or no master at all
            raise Refused("no_route", f"this master does not know {passed.route[0]} of {passed.route[1]!r}")
        request = Request(passed.method, passed.path, passed.query, passed.headers, passed.body)
        return await route.handle(services, request)
    except TrikvError as error:
        if error.kind.code == "stopping":
            raise NotLeading from error
        return problem_response(error)
    except Exception:  # noqa: BLE001 any error is this request's alone
        _log.exception("%s %s, which a standby passed on, failed", passed.method, passed.path)
        return problem_response(internal_error())
