"""The page of a cluster with several masters: where it is found, what it shows of them, and where it goes."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from trikv.client import Client
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.etcd import etcd_missing

pytestmark = pytest.mark.skipif(etcd_missing() is not None, reason=str(etcd_missing()))


def test_a_page_is_sent_to_the_leader_and_follows_it(browser: Browser) -> None:
    with LocalCluster(workers=3, masters=2, etcd_members=1, master_options=("--lease", "2")) as cluster:
        leader = wait_until(cluster.leader, what="a master leads")
        assert leader is not None
        [standby] = [master for master in cluster.masters if master is not leader]
        at_leader, at_standby = (f"http://127.0.0.1:{master.http_port}/" for master in (leader, standby))
        page = browser.new_context().new_page()
        page.goto(at_standby)
        expect(page).to_have_url(at_leader)
        expect(page.locator("#link")).to_have_text("live")
        rows = page.locator("#masters-list li")
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text(re.compile(r"leads.*since 2.*in term \d"))
        expect(rows.last).to_contain_text("stands by")
        expect(page.locator("#masters-store")).to_have_text("etcd, 1 endpoint")
        rows.last.locator("a").click()  # the page of the one that stands by is the leader's
        expect(page.locator("#link")).to_have_text("live")
        expect(page).to_have_url(at_leader)

        leader.pause()
        with Client(at_standby) as client:
            wait_until(
                lambda: (client.masters()["leader"] or {}).get("address") == standby.address, what="the other one leads"
            )
        leader.resume()  # it stands by from now on, so the page goes to its successor
        expect(page).to_have_url(at_standby)
        expect(page.locator("#link")).to_have_text("live")
        expect(rows.first).to_contain_text(f":{standby.http_port}")
        page.context.close()
