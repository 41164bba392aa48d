"""Pictures of the page, of a cluster at work: `python scripts/screenshot.py DIRECTORY`.

Starts a cluster like the demo's, puts some load on it, kills a worker, sends a request from the page, and writes
`page-1280-light.png`, `page-1280-dark.png`, `page-390-light.png` and `page-390-dark.png`. With `--readme FILE` also the
upper part at 1280 pixels, as README shows it. Needs Playwright and a chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

from trikv.cli.demo import demo_options
from trikv.core.errors import TrikvError
from trikv.testing.processes.cluster import LocalCluster, wait_until

WIDTHS: Final = (1280, 390)
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
UPPER_PART: Final[FloatRect] = {"x": 0, "y": 0, "width": 1280, "height": 1800}
CLIENTS: Final = 3
LOOK_S: Final = 20.0  # how long the charts are filled
DEADLINE_MS: Final = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--readme", type=Path, help="also write the upper part to this file")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("error: no chromium on the PATH; apt-get install chromium")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    cluster = LocalCluster(workers=0, master_options=demo_options(5, "memory"))
    with cluster, cluster.client(patience_s=10) as client, sync_playwright() as playwright:
        wait_until(lambda: client.cluster()["partitions"]["writable"] == client.cluster()["partitions"]["total"])
        stop = threading.Event()
        for number in range(CLIENTS):
            threading.Thread(target=_ask, args=(cluster, number, stop), daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        victim = client.cluster()["workers"][0]["id"]
        stop.wait(LOOK_S / 2)
        client.inject("kill", victim)
        stop.wait(LOOK_S / 2)
        for width in WIDTHS:
            for scheme in SCHEMES:
                path = arguments.directory / f"page-{width}-{scheme}.png"
                with _open(browser, cluster.url, width, scheme) as page:
                    page.screenshot(path=path, full_page=True)
                print(path)
        if arguments.readme is not None:
            with _open(browser, cluster.url, WIDTHS[0], SCHEMES[0]) as page:
                page.screenshot(path=arguments.readme, clip=UPPER_PART, full_page=True)
            print(arguments.readme)
        browser.close()
        stop.set()


@contextmanager
def _open(browser: Browser, url: str, width: int, scheme: Literal["light", "dark"]) -> Iterator[Page]:
    """The page, with a request sent from it and its picture drawn."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(DEADLINE_MS)
    page.goto(url)
    page.wait_for_selector(".token")
    page.click("#request-send")
    page.wait_for_selector("svg.spacetime")
    page.wait_for_selector("#ring-detail .preference")
    yield page
    page.close()


def _ask(cluster: LocalCluster, number: int, stop: threading.Event) -> None:
    with cluster.client(patience_s=10) as client:
        count = 0
        while not stop.wait(0.01):
            count += 1
            key = b"key-%d-%d" % (number, count % 500)
            try:
                client.put(key, b"x" * 50)
                client.get(key)
            except TrikvError:
                continue  # a worker is dead


if __name__ == "__main__":
    main()
