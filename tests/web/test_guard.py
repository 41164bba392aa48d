"""Which requests a browser may bring here, by their headers alone."""

import pytest

from trikv.core.errors import Refused
from trikv.web.guard import names_loopback, opens_page, refuse_foreign

HERE = "127.0.0.1:8080"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": HERE},
        {"host": "localhost:8080"},
        {"host": HERE, "sec-fetch-site": "none"},
        {"host": HERE, "sec-fetch-site": "same-origin", "origin": f"http://{HERE}"},
        {"host": "LocalHost:8080", "origin": "http://localhost:8080"},
        {"host": "[::1]:8080", "origin": "http://[::1]:8080"},
        {"host": HERE, "referer": f"http://{HERE}/"},
        {"host": "LOCALHOST:8080", "referer": "http://localhost:8080/?refresh=off"},
    ],
)
def test_own_pages_and_programs_pass(headers: dict[str, str]) -> None:
    refuse_foreign(headers, loopback_only=True)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HERE, "sec-fetch-site": "cross-site"},
        {"host": HERE, "sec-fetch-site": "same-site"},
        {"host": HERE, "sec-fetch-site": "something-new"},
        {"host": HERE, "origin": "http://evil.example"},
        {"host": HERE, "origin": "null"},
        {"host": HERE, "referer": "http://evil.example/page"},
        {"host": HERE, "referer": f"http://evil.example/{HERE}"},
        {"host": HERE, "referer": "http://[/"},
        {"host": HERE, "referer": "about:blank"},
        {"host": HERE, "origin": "http://127.0.0.1:9999"},
        {"host": HERE, "origin": "http://localhost:8080"},
        {"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"},
        {"host": "evil.example:8080"},
    ],
)
def test_other_pages_do_not(headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as refusal:
        refuse_foreign(headers, loopback_only=True)
    assert refusal.value.kind.code == "forbidden"


def test_the_page_may_be_opened_from_anywhere_and_by_its_own_name_alone() -> None:
    link = {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert opens_page("GET", "/", link)
    refuse_foreign({"host": HERE, **link}, loopback_only=True, from_anywhere=True)
    with pytest.raises(Refused):
        refuse_foreign({"host": "evil.example", **link}, loopback_only=True, from_anywhere=True)


@pytest.mark.parametrize(
    ("method", "path", "changed"),
    [
        ("POST", "/", {}),
        ("GET", "/put", {}),
        ("GET", "/v1/live", {}),
        ("GET", "/", {"sec-fetch-dest": "iframe"}),
        ("GET", "/", {"sec-fetch-mode": "no-cors"}),
        ("GET", "/", {"sec-fetch-mode": ""}),
    ],
)
def test_nothing_else_opens_the_page(method: str, path: str, changed: dict[str, str]) -> None:
    assert not opens_page(method, path, {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", **changed})


def test_a_server_on_a_network_has_names_that_it_does_not_know() -> None:
    refuse_foreign({"host": "db.example.org"}, loopback_only=False)
    with pytest.raises(Refused):
        refuse_foreign({"host": "db.example.org", "sec-fetch-site": "cross-site"}, loopback_only=False)
    with pytest.raises(Refused):  # a browser that sends no Sec-Fetch-Site to plain HTTP
        refuse_foreign({"host": "10.1.2.3:8080", "referer": "http://evil.example/"}, loopback_only=False)


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:80", "LOCALHOST:8080"]
)
def test_names_of_loopback(host: str) -> None:
    assert names_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example#localhost", "[::1", "0.0.0.0",
        "192.168.1.4", "localhost@evil.example", "evil.example/localhost", "x y",
    ],
)  # fmt: skip
def test_names_of_others(host: str) -> None:
    assert not names_loopback(host)
