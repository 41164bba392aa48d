"""A request that asks for it is traced: its answer names the trace, and the trace has every message."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

import httpx
from click.testing import CliRunner

from tests.web.conftest import Ask
from trikv.cli.main import main
from trikv.testing.processes.cluster import LocalCluster, wait_until


def trace_of(web: httpx.Client, headers: Mapping[str, str]) -> dict[str, Any]:
    """The trace that the answer names, once all its messages have ended."""

    def whole() -> dict[str, Any]:
        told: dict[str, Any] = web.get(f"/v1/trace/{headers['trikv-trace']}").json()
        return told if all(message["ended"] for message in told["messages"]) else {}

    return wait_until(whole, what="every message has ended")


def test_a_put_is_traced_to_all_replicas(web: httpx.Client) -> None:
    answer = web.put("/v1/kv/traced", content=b"v", headers={"Trikv-Trace": "1"})
    assert answer.status_code == 204
    told = trace_of(web, answer.headers)
    assert (told["what"], told["key"], told["mode"], told["outcome"]) == ("put", "traced", "quorum", "committed")
    assert [message["what"] for message in told["messages"]] == ["store"] * 3
    assert len({message["replica"] for message in told["messages"]}) == 3
    assert told["promised_ms"] <= told["ended_ms"]


def test_reads_deletes_and_refusals_are_traced_too(web: httpx.Client) -> None:
    web.put("/v1/kv/also", content=b"v")
    read = trace_of(web, web.get("/v1/kv/also", headers={"Trikv-Trace": "1"}).headers)
    # Right after the put a replica may lack the value; then the read stores it there first.
    assert {message["what"] for message in read["messages"]} <= {"fetch", "store"}
    assert read["messages"][0]["what"] == "fetch"
    assert trace_of(web, web.delete("/v1/kv/also", headers={"Trikv-Trace": "1"}).headers)["what"] == "delete"
    missing = web.get("/v1/kv/also", headers={"Trikv-Trace": "1"})
    assert missing.status_code == 404
    assert web.get(f"/v1/trace/{missing.json()['trace']}").json()["what"] == "get"


def test_without_the_header_the_answer_names_none(web: httpx.Client) -> None:
    assert "trikv-trace" not in web.put("/v1/kv/untraced", content=b"v").headers


def test_the_latest_are_listed_and_drawn(web: httpx.Client) -> None:
    key = "<img src=x onerror=alert(1)>"
    answer = web.put(f"/v1/kv/{key}", content=b"v", headers={"Trikv-Trace": "1"})
    trace_id = answer.headers["trikv-trace"]
    assert web.get("/v1/traces").json()["traces"][0]["id"] == trace_id
    trace_of(web, answer.headers)
    text = web.get(f"/v1/trace/{trace_id}?format=text").text
    assert text.count("gets") == 6, "three stores, and three answers"
    picture = web.get(f"/v1/trace/{trace_id}?format=svg")
    assert picture.headers["content-type"] == "image/svg+xml"
    assert ElementTree.fromstring(picture.text).tag.endswith("svg")
    assert "<img" not in picture.text
    assert "<style>" in picture.text
    assert "style-src 'unsafe-inline'" in picture.headers["content-security-policy"]
    assert "script" not in picture.headers["content-security-policy"]


def test_an_unknown_trace_is_refused(ask: Ask) -> None:
    told = ask("GET", "/v1/trace/nothing")
    assert told.status == 404
    assert b"only the latest are kept" in told.body
    assert ask("GET", "/v1/trace/1?format=png").status == 400


def test_the_command_lists_and_draws_them(web: httpx.Client, cluster: LocalCluster) -> None:
    answer = web.put("/v1/kv/commanded", content=b"v", headers={"Trikv-Trace": "1"})
    trace_of(web, answer.headers)
    run = CliRunner().invoke
    listed = run(main, ["trace", "--url", cluster.url])
    assert listed.exit_code == 0, listed.output
    assert "commanded" in listed.output
    drawn = run(main, ["trace", answer.headers["trikv-trace"], "--url", cluster.url])
    assert "coordinator" in drawn.output
    assert run(main, ["trace", "--svg", "--url", cluster.url]).exit_code == 2
