"""Workers as child processes, real ones without a master: what is left of them after each call, and what is refused."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.processes_of import children_of, is_alive
from trikv.api import WorkerOrder
from trikv.provision.local import PORT, LocalProcesses
from trikv.testing.processes.cluster import wait_until

NOBODY = "127.0.0.1:1"
FORMER: set[int] = set()  # children that this process had before the test


@pytest.fixture
async def local() -> AsyncIterator[LocalProcesses]:
    FORMER.update(children_of(os.getpid()))
    provisioner = LocalProcesses()
    yield provisioner
    await provisioner.close()
    await gone()
    FORMER.clear()


@pytest.fixture
def order(tmp_path: Path) -> WorkerOrder:
    return WorkerOrder(1, NOBODY, tmp_path / "1", "memory")


async def until(condition: Callable[[], object]) -> None:
    """Other processes cannot wake this one, so it asks again and again."""
    await trio.to_thread.run_sync(lambda: wait_until(condition, every_s=0.005))


def children() -> set[int]:
    """Those of the test."""
    return set(filter(is_alive, children_of(os.getpid()))) - FORMER


async def gone() -> None:
    await until(lambda: not children())


def pid_of(local: LocalProcesses) -> int:
    process = local.process(1)
    assert process is not None
    return process.pid


async def test_a_killed_worker_is_started_again_at_its_address(local: LocalProcesses, order: WorkerOrder) -> None:
    worker = await local.start(order)
    pid = pid_of(local)
    assert is_alive(pid)
    await local.kill(1)
    assert not is_alive(pid)
    assert local.process(1) is None
    assert await local.start(order) == worker  # a worker without a disk is known by its address
    assert pid_of(local) != pid
    with pytest.raises(OSError, match="it runs already"):
        await local.start(order)


async def test_a_paused_worker_is_stopped_until_it_is_resumed_and_ends_with_the_others(
    local: LocalProcesses, order: WorkerOrder
) -> None:
    await local.start(order)
    pid = pid_of(local)
    await local.pause(1)
    assert local.process(1) == (pid, True)
    assert state_of(pid) == "T"
    await local.resume(1)
    assert local.process(1) == (pid, False)
    await local.pause(1)
    process = local._children[1].process
    await local.close()
    assert process.returncode == 0  # it was woken, and did not have to be killed
    assert not is_alive(pid)
    await gone()  # the shell that would have woken it, too


async def test_a_pause_from_outside_is_seen(local: LocalProcesses, order: WorkerOrder) -> None:
    await local.start(order)
    pid = pid_of(local)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: local.process(1) == (pid, True))
    await local.resume(1)
    assert local.process(1) == (pid, False)


async def test_a_paused_worker_can_be_killed(local: LocalProcesses, order: WorkerOrder) -> None:
    await local.start(order)
    await local.pause(1)
    await local.kill(1)
    assert local.process(1) is None
    await gone()


async def test_a_worker_that_is_stopped_for_good_leaves_nothing_also_if_it_was_killed(
    local: LocalProcesses, order: WorkerOrder
) -> None:
    await local.start(order)
    await local.kill(1)
    await local.stop(1)
    assert not order.directory.exists()
    await local.stop(1)  # it is none of this provisioner's any more


async def test_a_start_that_is_cancelled_leaves_no_process(local: LocalProcesses, order: WorkerOrder) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(local.start, order)
        await until(children)
        nursery.cancel_scope.cancel()
    assert local.process(1) is None
    await gone()


async def test_a_worker_that_cannot_start_says_why(local: LocalProcesses, order: WorkerOrder) -> None:
    with pytest.raises(OSError, match="'nonsense' is no installed storage engine"):
        await local.start(order._replace(storage="nonsense"))
    assert local.process(1) is None
    await local.start(order)


@pytest.mark.parametrize("what", ["file", "link", "link to nothing", "file above"])
async def test_a_directory_that_is_none_is_refused(what: str, local: LocalProcesses, order: WorkerOrder) -> None:
    elsewhere = order.directory.parent / "elsewhere"
    elsewhere.mkdir()
    match what:
        case "file":
            order.directory.write_text("a file")
        case "link":
            order.directory.symlink_to(elsewhere)
        case "link to nothing":
            order.directory.symlink_to(elsewhere / "nothing")
        case _:
            (elsewhere / "file").write_text("a file")
            order = order._replace(directory=elsewhere / "file" / "1")
    with pytest.raises(OSError, match=r"1 is a file or a symbolic link|exists|Not a directory"):
        await local.start(order)
    assert children() == set()
    assert list(elsewhere.glob("*/*")) == []


async def test_a_worker_listens_where_it_is_wanted_or_else_anywhere(local: LocalProcesses, order: WorkerOrder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        elsewhere = await local.start(order._replace(port=port))
        assert elsewhere != f"127.0.0.1:{port}"
        await local.stop(1)
    assert await local.start(order._replace(port=port)) == f"127.0.0.1:{port}"


async def test_a_port_that_its_former_process_still_has_is_waited_for(
    local: LocalProcesses, order: WorkerOrder, nursery: trio.Nursery
) -> None:
    order.directory.mkdir()
    with socket.socket() as former:
        former.bind(("127.0.0.1", 0))
        former.listen()
        port = former.getsockname()[1]
        (order.directory / PORT).write_text(str(port))
        started: list[str] = []

        async def start() -> None:
            started.append(await local.start(order))

        nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
    await until(lambda: started)
    assert started == [f"127.0.0.1:{port}"]


@pytest.mark.parametrize("noted", ["", "port", "-1", "0", "70000", "9" * 5000, "\u0663\u0663\u0663", "8.5", None])
async def test_a_note_of_the_port_that_is_none_is_no_hindrance(
    noted: str | None, local: LocalProcesses, order: WorkerOrder
) -> None:
    order.directory.mkdir()
    if noted is None:
        (order.directory / PORT).mkdir()
    else:
        (order.directory / PORT).write_text(noted)
    assert (await local.start(order)).startswith("127.0.0.1:")


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_why_a_worker_did_not_start_is_told_in_its_own_words(local: LocalProcesses, order: WorkerOrder) -> None:
    """Its log is for programs; what an operator reads of it is a sentence."""
    with pytest.raises(OSError, match=r"^a worker did not start: 'nope' is no installed storage engine; there are"):
        await local.start(order._replace(storage="nope"))
