"""The config store in etcd: who leads, until when, and what outages and rivals do to that; against real members."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
import trio

from tests.master.etcd.relay import Relay
from trikv.master.configstore import CHANGE, ConfigConflict, ConfigStoreError, NotChanged
from trikv.master.etcd import EtcdConfigStore
from trikv.master.leadership import Candidate
from trikv.net.doors import Doors
from trikv.net.etcdurl import parse_config_store
from trikv.testing.processes.etcd import EtcdCluster, EtcdMember, etcd_missing

if (missing := etcd_missing()) is not None:
    pytest.skip(missing, allow_module_level=True)

ONE = Candidate("one", "127.0.0.1:8000", "127.0.0.1:8080")
TWO = Candidate("two", "127.0.0.1:8001", "127.0.0.1:8081")
LEASE_S = 1.0
QUICK = ("--heartbeat-interval", "50", "--election-timeout", "300")  # so that etcd grants leases of 1 s
DOCUMENT = {"term": 1, CHANGE: "one/0"}

_prefixes = count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), arguments=QUICK) as cluster:
        yield cluster


@pytest.fixture
def member(etcd: EtcdCluster) -> EtcdMember:
    return etcd.members[0]


@pytest.fixture
def prefix() -> str:
    """A config store of this test's own."""
    return f"test/{next(_prefixes)}"


@pytest.fixture
def url(member: EtcdMember, prefix: str) -> str:
    return f"etcd://{member.address}/{prefix}"


@pytest.fixture
async def relay(nursery: trio.Nursery, member: EtcdMember) -> Relay:
    relay = Relay(member.port)
    relay.address = await nursery.start(relay.run)
    return relay


@asynccontextmanager
async def opened(url: str, lease_s: float = LEASE_S, **how: Any) -> AsyncIterator[EtcdConfigStore]:
    store = await EtcdConfigStore.open(parse_config_store(url), lease_s=lease_s, **how)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def running(url: str, me: Candidate, lease_s: float = LEASE_S, **how: Any) -> AsyncIterator[EtcdConfigStore]:
    async with opened(url, lease_s, **how) as store, trio.open_nursery() as nursery:
        await nursery.start(store.run, me)
        yield store
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], Any], deadline_s: float = 20.0) -> None:
    with trio.fail_after(deadline_s):
        while not condition():  # noqa: ASYNC110 - etcd's state is not ours to wait for
            await trio.sleep(0.01)


async def take_lead(store: EtcdConfigStore, since: str) -> None:
    with trio.fail_after(20):
        while not await store.take_lead(since):
            await store.changed.wait(0.01)


def spell(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


def look_up(member: EtcdMember, key: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = member.call("/v3/kv/range", {"key": spell(key)}).get("kvs", [{}])
    return found[0]


# --- leading ----------------------------------------------------------------------------------------------------------


async def test_one_of_two_leads_and_the_other_takes_over_when_it_gives_up(url: str) -> None:
    async with running(url, ONE) as one, running(url, TWO) as two:
        await until(lambda: one.masters == (ONE, TWO) == two.masters)
        assert await one.take_lead("today")
        assert (one.leads, one.leader) == (True, (ONE, "today"))
        assert not await two.take_lead("today")
        assert not two.leads
        assert not two.holds()
        await until(lambda: two.leader == (ONE, "today"))
        await one.give_up_lead()
        assert not one.leads
        assert not one.holds()
        await until(lambda: two.leader is None)
        assert await two.take_lead("tomorrow")
        await until(lambda: one.leader == (TWO, "tomorrow"))
    assert not two.leads


async def test_a_lease_is_renewed_and_the_key_stays(url: str, prefix: str, member: EtcdMember) -> None:
    async with running(url, ONE) as one:
        assert await one.take_lead("today")
        before = look_up(member, f"{prefix}/leader")
        await trio.sleep(1.8 * LEASE_S)
        await until(one.holds)
        assert look_up(member, f"{prefix}/leader")["create_revision"] == before["create_revision"]


async def test_a_master_that_goes_is_gone_from_the_list_at_once(url: str) -> None:
    async with running(url, ONE, 60.0) as one:
        async with running(url, TWO, 60.0) as two:
            assert await two.take_lead("today")
            await until(lambda: one.leader is not None and len(one.masters) == 2)
        await until(lambda: one.leader is None and one.masters == (ONE,))


async def test_nobody_takes_over_before_the_lease_of_a_leader_that_is_cut_off_has_ended(
    url: str, prefix: str, relay: Relay
) -> None:
    async with running(f"etcd://{relay.address}/{prefix}", ONE) as one, running(url, TWO) as two:
        assert await one.take_lead("today")
        await until(lambda: relay.heard.count("/v3/lease/keepalive") > 6)  # it was renewed
        relay.is_cut = True
        await take_lead(two, "tomorrow")
        assert not one.holds()
        assert one.leads  # it cannot know
        relay.is_cut = False
        await until(lambda: not one.leads)
        assert one.leader == (TWO, "tomorrow")


async def test_a_leader_whose_lease_has_ended_leads_on_if_nobody_else_has(
    url: str, prefix: str, member: EtcdMember
) -> None:
    async with running(url, ONE) as one:
        await one.compare_and_set(DOCUMENT, 0)
        assert await one.take_lead("today")
        lost = look_up(member, f"{prefix}/leader")
        member.call("/v3/lease/revoke", {"ID": lost["lease"]})
        await until(lambda: look_up(member, f"{prefix}/leader").get("lease") not in (None, lost["lease"]))
        await until(one.holds)
        assert one.leads


async def test_a_leader_whose_lease_has_ended_leads_no_more_if_the_document_was_changed(
    url: str, prefix: str, member: EtcdMember
) -> None:
    async with running(url, ONE) as one, opened(url) as other:
        revision = await one.compare_and_set(DOCUMENT, 0)
        assert await one.take_lead("today")
        await other.compare_and_set({"term": 2}, revision)
        await one.read()  # which does not make it this master's own
        member.call("/v3/lease/revoke", {"ID": look_up(member, f"{prefix}/leader")["lease"]})
        await until(lambda: not one.leads)
        assert not one.holds()


async def test_a_leader_leads_no_more_once_it_hears_of_another(url: str, prefix: str, member: EtcdMember) -> None:
    async with running(url, ONE, 60.0) as one:
        assert await one.take_lead("today")
        member.call("/v3/kv/put", {"key": spell(f"{prefix}/leader"), "value": spell("something else")})
        await until(lambda: not one.leads)
        assert not one.holds()
        assert one.leader is None
        assert not await one.take_lead("tomorrow")


async def test_a_leader_that_hears_that_its_key_is_gone_does_not_hold(
    prefix: str, member: EtcdMember, relay: Relay
) -> None:
    async with running(f"etcd://{relay.address}/{prefix}", ONE, 60.0) as one:
        assert await one.take_lead("today")
        relay.held.add("/v3/lease/grant")
        member.call("/v3/lease/revoke", {"ID": look_up(member, f"{prefix}/leader")["lease"]})
        await until(lambda: not one.holds())
        assert one.leads


async def test_a_keep_alive_of_a_member_that_was_deposed_does_not_count(
    prefix: str, member: EtcdMember, relay: Relay
) -> None:
    """It answers from its own memory that the lease goes on; the others have ended it."""
    relay.held.add("/v3/watch")
    async with running(f"etcd://{relay.address}/{prefix}", ONE) as one:
        assert await one.take_lead("today")
        lease = look_up(member, f"{prefix}/leader")["lease"]
        relay.answers["/v3/lease/keepalive"] = lambda: {"result": {"ID": lease, "TTL": "1"}}
        relay.held |= {"/v3/kv/range", "/v3/lease/grant"}
        member.call("/v3/lease/revoke", {"ID": lease})
        await until(lambda: not one.holds())
        heard = relay.heard.count("/v3/lease/keepalive")
        await until(lambda: relay.heard.count("/v3/lease/keepalive") > heard + 2)
        assert not one.holds()


async def test_a_lease_counts_from_before_its_renewal_was_sent(prefix: str, relay: Relay) -> None:
    now_s = 0.0

    def answer_late() -> dict[str, Any]:
        nonlocal now_s
        now_s += 10 * LEASE_S
        return {"result": {"TTL": "1"}}

    async with running(f"etcd://{relay.address}/{prefix}", ONE, clock=lambda: now_s) as one:
        assert await one.take_lead("today")
        assert one.holds()
        relay.answers["/v3/lease/keepalive"] = answer_late
        relay.held.add("/v3/lease/grant")
        await until(lambda: now_s > 0)
        while now_s < 60 * LEASE_S:  # several renewals, each too late
            assert not one.holds()
            await trio.sleep(0.001)


async def test_in_a_new_term_of_etcd_the_leader_takes_a_new_lease(url: str, prefix: str, member: EtcdMember) -> None:
    async with running(url, ONE) as one:
        assert await one.take_lead("today")
        before = look_up(member, f"{prefix}/leader")
        member.kill()
        member.start()
        await until(lambda: member.healthy and look_up(member, f"{prefix}/leader").get("lease") != before["lease"])
        await until(one.holds)
        assert one.leads


async def test_a_lead_that_was_taken_without_an_answer_ends_soon(
    url: str, prefix: str, member: EtcdMember, relay: Relay
) -> None:
    async with running(f"etcd://{relay.address}/{prefix}", ONE, 60.0) as one:
        relay.lost.add("/v3/kv/txn")
        assert not await one.take_lead("today")
        assert not one.leads
        relay.lost.clear()
        await until(lambda: one.leader is None and not look_up(member, f"{prefix}/leader"))
        assert await one.take_lead("tomorrow")


async def test_a_key_that_was_bound_anew_without_an_answer_is_this_masters_still(
    prefix: str, member: EtcdMember, relay: Relay
) -> None:
    async with running(f"etcd://{relay.address}/{prefix}", ONE) as one:
        await one.compare_and_set(DOCUMENT, 0)
        assert await one.take_lead("today")
        first = look_up(member, f"{prefix}/leader")
        relay.lost.add("/v3/kv/txn")
        member.call("/v3/lease/revoke", {"ID": first["lease"]})
        await until(lambda: look_up(member, f"{prefix}/leader").get("lease") not in (None, first["lease"]))
        relay.lost.clear()
        await until(one.holds)
        assert one.leads
        assert one.leader == (ONE, "today")


# --- outages ----------------------------------------------------------------------------------------------------------


async def test_an_outage_is_waited_out_with_a_line_at_its_begin_and_at_its_end(
    prefix: str, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trikv")
    async with running(f"etcd://{relay.address}/{prefix}", ONE) as one:
        assert await one.take_lead("today")
        relay.is_cut = True
        heard = len(relay.heard)
        await until(lambda: not one.holds() and one.describe()["error"])
        assert one.leads
        assert one.describe()["endpoints"] == [
            {"endpoint": relay.address, "reachable": False, "error": "no answer within 0.25 s"}
        ]
        await trio.sleep(LEASE_S)
        unanswered = len(relay.heard) - heard
        relay.is_cut = False
        await until(lambda: one.describe()["error"] is None)
        await until(one.holds)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("trikv")]
    assert "no answer within 0.25 s; start etcd, or correct --config-store; trying again" in lines[0]
    assert "answers again, after" in lines[-1]
    assert unanswered > len(lines)  # a busy machine may make two outages of it


async def test_a_watch_survives_the_end_of_its_member_and_a_compaction(url: str, member: EtcdMember) -> None:
    async with running(url, ONE) as one, running(url, TWO) as two:
        member.kill()
        member.start()
        await until(lambda: member.healthy)
        revision = member.call("/v3/kv/put", {"key": spell("other"), "value": ""})["header"]["revision"]
        member.call("/v3/kv/compaction", {"revision": revision})
        await take_lead(two, "today")
        await until(lambda: one.leader == (TWO, "today"))


async def test_an_endpoint_that_is_down_or_hangs_is_passed_over(prefix: str, member: EtcdMember, relay: Relay) -> None:
    async with running(f"etcd://127.0.0.1:1,{relay.address},{member.address}/{prefix}", ONE) as one:
        assert await one.take_lead("today")
        assert relay.heard
        relay.is_cut = True
        await until(lambda: one.describe()["endpoints"][1]["reachable"] is False)
        await until(one.holds)
        assert one.describe()["error"] is None
        assert one.leads


# --- the document -----------------------------------------------------------------------------------------------------


async def test_a_change_without_an_answer_is_in_doubt_and_its_name_tells_that_it_was_made(
    url: str, prefix: str, relay: Relay
) -> None:
    async with opened(f"etcd://{relay.address}/{prefix}") as one:
        relay.lost.add("/v3/kv/txn")
        with pytest.raises(ConfigStoreError, match="cannot be used") as raised:
            await one.compare_and_set(DOCUMENT, 0)
        assert not isinstance(raised.value, NotChanged)
        relay.lost.clear()
        with pytest.raises(ConfigConflict):
            await one.compare_and_set(DOCUMENT, 0)
        found, _ = await one.read()
        assert found == DOCUMENT


async def test_a_change_that_a_second_endpoint_refuses_was_made_by_the_first(
    prefix: str, member: EtcdMember, relay: Relay
) -> None:
    async with opened(f"etcd://{relay.address},{member.address}/{prefix}") as one:
        relay.lost.add("/v3/kv/txn")
        revision = await one.compare_and_set(DOCUMENT, 0)
        assert await one.read() == (DOCUMENT, revision)


@pytest.mark.parametrize("mine", [{"term": 1}, {"term": 1, CHANGE: "one/1"}])
async def test_a_change_that_may_be_anothers_stays_in_doubt(
    mine: dict[str, Any], prefix: str, member: EtcdMember, relay: Relay
) -> None:
    """Without a name of its own, two masters could both take the same document for theirs."""
    async with opened(f"etcd://{relay.address},{member.address}/{prefix}") as one:
        relay.dropped.add("/v3/kv/txn")  # it does not even reach etcd
        async with opened(f"etcd://{member.address}/{prefix}") as two:
            await two.compare_and_set({"term": 1}, 0)
        with pytest.raises(ConfigStoreError, match="no answer to a change") as raised:
            await one.compare_and_set(mine, 0)
        assert not isinstance(raised.value, NotChanged)


async def test_where_nobody_listens_nothing_was_changed(url: str) -> None:
    async with opened(url) as one:
        one._gateway._order[0].url = "http://127.0.0.1:1"
        with pytest.raises(NotChanged, match=r"nobody listens there; start etcd, or correct --config-store$"):
            await one.compare_and_set(DOCUMENT, 0)


async def test_a_document_beyond_etcds_limit_is_refused_with_the_remedy(url: str) -> None:
    async with opened(url) as one:
        with pytest.raises(NotChanged, match=r"request is too large; start etcd with a larger --max-request-bytes"):
            await one.compare_and_set({"noise": Doors().dice.randbytes(1_600_000)}, 0)
        large = {"noise": Doors().dice.randbytes(1_500_000)}
        revision = await one.compare_and_set(large, 0)
        assert await one.read() == (large, revision)


async def test_a_document_of_somebody_elses_is_an_error(url: str, prefix: str, member: EtcdMember) -> None:
    for body in ("", "hello", "\x02hello", "\x01\x01"):
        member.call("/v3/kv/put", {"key": spell(f"{prefix}/document"), "value": spell(body)})
        with pytest.raises(ConfigStoreError, match=r"its document is none of this trikv's: .*; choose another /PREFIX"):
            await EtcdConfigStore.open(parse_config_store(url))
