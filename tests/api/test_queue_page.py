"""The example in docs/queue.md, as it stands in the page, against a real RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from broker.amqp import AmqpBroker
from tests.api.stub_worker import serving

PAGE = Path(__file__).parents[2] / "docs" / "queue.md"


def example() -> str:
    """The page's one Python block."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(code)


def test_the_example_is_short() -> None:
    assert len(example().splitlines()) <= 25


async def test_the_example_runs(amqp_vhost_url: str) -> None:
    broker = AmqpBroker(amqp_vhost_url, name="test-queue-page")
    await broker.connect()
    try:
        async with serving(broker, "demo") as worker:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                example(),
                env=os.environ | {"AMQP_URL": amqp_vhost_url},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            async with asyncio.timeout(30):
                output, _ = await process.communicate()
            assert process.returncode == 0, output.decode()
            assert output.decode().startswith("Name three rivers.\ncompleted: {")
            assert [job.stream for job in worker.jobs.values()] == [True]
    finally:
        await broker.close()
