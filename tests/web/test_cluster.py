"""What the cluster says of itself, who may ask, and what is answered where there is nothing."""

import json
import logging
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from tests.web.conftest import Ask
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.web.app import create_app


@pytest.mark.parametrize("path", ["/v1/cluster", "/status"])
def test_the_state(web: httpx.Client, cluster: LocalCluster, path: str) -> None:
    state = web.get(path).raise_for_status().json()
    assert (state["mode"], state["promise"], state["forming"]) == ("quorum", "CP", None)
    assert {worker["id"] for worker in state["workers"]} == {node.id for node in cluster.workers}


def test_alive_and_ready(web: httpx.Client) -> None:
    assert web.get("/livez").json() == {"alive": True}
    ready = web.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


def test_enlisting(web: httpx.Client, cluster: LocalCluster) -> None:
    known = cluster.workers[0]
    again = web.post("/v1/workers", json={"address": known.address}).raise_for_status().json()
    assert again["id"] == known.id
    nobody = web.post("/v1/workers", json={"address": "127.0.0.1:1"})
    assert (nobody.status_code, nobody.json()["code"]) == (409, "conflict")
    for address in ("", "no port", "127.0.0.1:99999", 7, None):
        answer = web.post("/v1/workers", json={"address": address})
        assert answer.status_code in (400, 409), address
        assert answer.json()["outcome"] == "refused"
    assert len(web.get("/v1/cluster").json()["workers"]) == 3


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/v1",
        "/v1/",
        "/v1/kvx",
        "/static/nope.css",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "*",
        "/v1//kv/a",
        "///v1/kv/a",
        "//livez",
        "http:///livez",
        "gopher://localhost/livez",
        "/static/" + "a" * 5000,
        "/static/%00",
    ],
)
def test_where_there_is_nothing(ask: Ask, path: str) -> None:
    told = ask("GET", path)
    document = json.loads(told.body)
    assert (told.status, document["code"], document["outcome"]) == (404, "no_route", "refused")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/kv/a", "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "/v1/kv/a", "DELETE, GET, HEAD, PUT"),
        ("PUT", "/v1/kv", "GET, HEAD"),
        ("GET", "/v1/batch", "POST"),
        ("DELETE", "/v1/mode", "GET, HEAD, PUT"),
        ("GET", "/v1/workers/w-1/drain", "POST"),
        ("POST", "/v1/events", "GET, HEAD"),
        ("DELETE", "/put", "GET, POST"),
        ("POST", "/", "GET, HEAD"),
        ("BREW", "/livez", "GET, HEAD"),
    ],
)
def test_methods(web: httpx.Client, method: str, path: str, allow: str) -> None:
    answer = web.request(method, path)
    assert (answer.status_code, answer.headers["allow"], answer.json()["code"]) == (405, allow, "bad_method")


def test_a_head_changes_nothing(web: httpx.Client) -> None:
    answer = web.head("/put?key=asked-for-its-head&value=1")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert web.get("/v1/kv/asked-for-its-head").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/put?key=crossed&value=1"),
        ("PUT", "/v1/kv/crossed"),
        ("GET", "/v1/cluster"),
        ("GET", "/v1/events"),
        ("POST", "/v1/workers/w-1/drain"),
        ("GET", "/"),
        ("GET", "/nope"),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"host": "evil.example"},
    ],
)
def test_foreign_pages(web: httpx.Client, method: str, path: str, headers: dict[str, str]) -> None:
    answer = web.request(method, path, headers=headers)
    assert (answer.status_code, answer.json()["code"], answer.json()["outcome"]) == (403, "forbidden", "refused")
    assert web.get("/v1/kv/crossed").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/kv/absent"), ("PUT", "/v1/kv/marked"), ("DELETE", "/v1/kv/marked"), ("GET", "/v1/kv"),
        ("POST", "/v1/batch"), ("GET", "/v1/cluster"), ("GET", "/readyz"), ("GET", "/nope"), ("GET", "/"),
        ("POST", "/v1/cluster"), ("HEAD", "/v1/events"),
    ],
)  # fmt: skip
def test_every_answer_says_that_it_is_trikvs(web: httpx.Client, method: str, path: str) -> None:
    assert web.request(method, path).headers["trikv"] == "1"


def test_the_page(web: httpx.Client) -> None:
    page = web.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "Serving" in page.text
    assert "quorum" in page.text
    assert 'http-equiv="refresh"' in page.text
    assert 'http-equiv="refresh"' not in web.get("/?refresh=off").text
    assert re.findall("<script[^>]*>[^<]*", page.text) == ['<script type="module" src="/static/main.js">']
    assert re.search(r"\s(style|on\w+)=", page.text) is None
    for path in ("/static/page.css", "/static/icon.svg", "/static/main.js", "/timeline.css"):
        assert path in page.text
        assert web.get(path).status_code == 200


def test_too_few_replicas_refuse_writes_and_say_so() -> None:
    with (
        LocalCluster(workers=3, timeout_s=20.0) as cluster,
        httpx.Client(base_url=cluster.url, trust_env=False) as web,
    ):
        for node in cluster.workers[1:]:
            node.kill()
        wait_until(lambda: web.get("/readyz").status_code == 503, what="too few replicas are left")
        refused = web.put("/v1/kv/a", content=b"2")
        assert (refused.status_code, refused.json()["outcome"]) == (503, "refused")
        assert refused.headers["retry-after"]
        page = web.get("/").text
        assert "Unavailable" in page
        assert "state-down" in page


def test_a_forming_cluster_says_what_it_waits_for() -> None:
    cluster = LocalCluster(workers=2, replicas=3, storage="memory")
    try:
        for node in (cluster.master, *cluster.workers):
            node.start()
        with httpx.Client(base_url=cluster.url, trust_env=False) as web:
            wait_until(
                lambda: web.get("/v1/cluster").json()["forming"]["missing"] == 1, what="two workers have enlisted"
            )
            refused = web.put("/v1/kv/a", content=b"1")
            assert (refused.status_code, refused.json()["code"], refused.json()["outcome"]) == (
                503,
                "forming",
                "refused",
            )
            assert "1 more needed" in refused.json()["detail"]
            assert web.get("/readyz").status_code == 503
            page = web.get("/").text
            assert "Waiting for workers" in page
            assert "1 more needed" in page
    finally:
        cluster.stop()


async def test_an_unforeseen_error_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(cast("Any", SimpleNamespace(answered=Counter())))
    with caplog.at_level(logging.ERROR):
        answer = await app.test_client().get("/readyz", headers={"host": "localhost"})
    document = await answer.get_json(force=True)
    assert (answer.status_code, document["code"], document["outcome"]) == (500, "internal", "unknown")
    assert "describe" not in str(document)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], AttributeError)
