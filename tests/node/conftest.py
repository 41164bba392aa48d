"""Workers to ask: on every engine, and on a disk that is as slow as a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.helpers import Desk, GatedStorage
from trikv.api import Storage
from trikv.storage.memory import MemoryStorage
from trikv.storage.rocksdb import RocksEngine


@pytest.fixture(params=["memory", "rocksdb"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    opened = MemoryStorage() if request.param == "memory" else await RocksEngine().open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def desk(storage: Storage, nursery: trio.Nursery) -> AsyncIterator[Desk]:
    desk = await Desk(nursery, storage).start()
    yield desk
    await desk.stop()


@pytest.fixture
async def gated(nursery: trio.Nursery) -> Desk:
    return await Desk(nursery, GatedStorage()).start()
