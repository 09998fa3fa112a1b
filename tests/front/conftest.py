from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.front.harness import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.start()
    yield bench
    await bench.close()
