"""What the tests of the live page share: one headless Chromium, and pages that are watched from their first request on.

`open_page` gives a page that has drawn the state of a cluster. When the test ends, it fails if the page had anything to
complain of: an error in the console, an exception, a request that failed, something that the Content-Security-Policy
forbids, a dialog, or a request to another origin. A test that provokes one of these says so (`allowed`).

Pages are found by what they mean to a reader or to a script: ids, roles, labels, data attributes. No test looks at
where something stands.

Each wait has a deadline, `DEADLINE_MS` unless the test names another one, and none is a pause of a fixed length.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, Final, Literal, Protocol

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, expect, sync_playwright

from trikv.testing.processes.cluster import LocalCluster, wait_until

DEADLINE_MS: Final = 20_000
WORKERS: Final = 3
WIDE: Final = 1280
NARROW: Final = 390

_AXE: Final = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS: Final = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
# Chromium writes a line for each of these too, but the event has the directive and the address.
_TELL_OF_VIOLATIONS: Final = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`forbidden by the policy: ${event.violatedDirective} ${event.blockedURI}`));
"""

expect.set_options(timeout=DEADLINE_MS)


class OpenPage(Protocol):
    def __call__(
        self,
        cluster: LocalCluster,
        *,
        width: int = ...,
        scheme: Literal["light", "dark"] = ...,
        scripts: bool = ...,
        formed: bool = ...,
        stream: str = ...,
        allowed: Sequence[str] = ...,
    ) -> Page: ...


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no chromium on the PATH; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_OPTIONS))
        yield browser
        browser.close()


class Watch:
    """Notes everything that should not happen on a page of one origin."""

    def __init__(self, page: Page, origin: str) -> None:
        self.complaints: list[str] = []
        self._origin = origin
        page.add_init_script(_TELL_OF_VIOLATIONS)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        page.on("request", self._on_request)
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url} {request.failure}"))
        page.on("dialog", self._on_dialog)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self._origin}/", f"blob:{self._origin}/")):
            self.complaints.append(f"another origin: {request.url}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    opened: list[tuple[Page, Watch, Sequence[str]]] = []

    def open_one(
        cluster: LocalCluster,
        *,
        width: int = WIDE,
        scheme: Literal["light", "dark"] = "light",
        scripts: bool = True,
        formed: bool = True,
        stream: str = "",
        allowed: Sequence[str] = (),
    ) -> Page:
        """
        `formed` False: there is no ring yet. `stream`: what the page is given in place of the cluster's live stream.
        `allowed`: patterns of the complaints that the test provokes.
        """
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        context.set_default_timeout(DEADLINE_MS)
        page = context.new_page()
        opened.append((page, Watch(page, cluster.url), allowed))
        if stream:
            told = {"status": 200, "content_type": "text/event-stream", "body": f"retry: 600000\n\n{stream}"}
            page.route("**/v1/live", lambda route: route.fulfill(**told))
        page.goto(f"{cluster.url}/", wait_until="load")
        if scripts and not stream:
            expect(page.locator("#link")).to_have_text("live")
        if scripts and formed:
            expect(page.locator("#ring-picture [data-token]").first).to_be_attached()
        return page

    yield open_one
    complaints = []
    for page, watch, allowed in opened:
        page.title()  # an answer of the browser: what it told before has been heard by then
        complaints += [each for each in watch.complaints if not any(re.search(pattern, each) for pattern in allowed)]
        page.context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A quorum of three as the demo has it, so that all of the page is shown; for tests that leave it whole."""
    with make_demo(WORKERS) as cluster:
        yield cluster


def make_demo(workers: int, *options: str, replicas: int = 3) -> LocalCluster:
    """A master that starts its workers itself, lets them be broken, measures its promise, and may scale."""
    scaling = options or ("--autoscale", f"{workers}..{workers}", "--max-load", "100000")
    own = ("--start-workers", str(workers), "--worker-storage", "memory", "--break-it", "--probe")
    return _Demo(workers=0, replicas=replicas, timeout_s=10.0, master_options=(*own, *scaling), own_workers=workers)


class _Demo(LocalCluster):
    def __init__(self, *, own_workers: int, **options: Any) -> None:
        super().__init__(**options)
        self._own_workers = own_workers

    def start(self) -> None:
        super().start()
        with self.client() as client:
            wait_until(
                lambda: sum(worker["state"] == "up" for worker in client.cluster()["workers"]) == self._own_workers,
                what=f"{self._own_workers} workers are up",
                deadline_s=60.0,
            )


# --- what a reader does -----------------------------------------------------------------------------------------------


def send(page: Page, operation: str, key: str, value: str | None = None, *, expected: str | None = None) -> str:
    """Fill in the form, send it, and return the outcome that the page tells. `expected`: the ETag for the condition."""
    form = page.locator("#request")
    form.locator("[name=operation]").select_option(operation)
    form.locator("[name=key]").fill(key)
    if value is not None:
        form.locator("[name=value]").fill(value)
    if expected is not None:
        form.locator("[name=expect]").fill(expected)
    return press_send(page, page.locator("#request-send").click)


def press_send(page: Page, press: Callable[[], None]) -> str:
    """The button is disabled from the press until the answer is shown."""
    with page.expect_request_finished(lambda request: "/v1/kv/" in request.url):
        press()
    expect(page.locator("#request-send")).to_be_enabled()
    return page.locator("#request-answer .outcome").inner_text().lower()


def violations_of(page: Page) -> list[str]:
    """What axe-core takes for serious or critical, with the first places where it found it.

    axe-core comes with the package `axe-playwright-python`; of that, only the script is used. It runs in the page by
    way of the debugger, to which the page's Content-Security-Policy does not apply, so the policy stays in force.
    """
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(_AXE)
    found: list[dict[str, Any]] = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")["violations"]
    return [
        f"{one['id']}: {one['help']}; {len(one['nodes'])} times, at {[node['target'] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def overflow_of(page: Page) -> int:
    """By how many pixels the page is wider than the screen."""
    width: int = page.evaluate("() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth")
    return width


def answer_of(page: Page) -> str:
    return page.locator("#request-answer .answer").inner_text()
