"""The probe over HTTP: `GET /v1/probe`, whether the mode in force keeps its promise as measured (`master/probe.py`)."""

from __future__ import annotations

from trikv.web.message import Request, Response, json_response, parse_query
from trikv.web.services import Services


async def show(services: Services, request: Request) -> Response:
    parse_query(request.query)
    probe = services.status.probe
    if probe is None:
        return json_response({"enabled": False, "detail": "start the master with --probe to have the promise measured"})
    return json_response(probe.describe())
