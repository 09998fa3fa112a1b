from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.memory import MemoryBroker, MemoryHub
from tests.front.harness import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    hub = MemoryHub()
    bench = Bench(lambda: MemoryBroker(hub))
    await bench.start()
    yield bench
    await bench.close()
