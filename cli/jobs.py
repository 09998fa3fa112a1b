"""`headrace jobs`: the dispatcher and the recorder."""

from __future__ import annotations

import uvloop

from cli.parts import amqp_broker, connected, dispatcher, opened_store, recorder, stop_signal, until
from cli.settings import JobsSettings


def run_jobs(settings: JobsSettings) -> None:
    """Run until SIGINT or SIGTERM. Raises StartError."""
    uvloop.run(_run(settings))


async def _run(settings: JobsSettings) -> None:
    stop = stop_signal()
    async with (
        opened_store(settings, migrate=False) as store,
        connected(amqp_broker(settings, "headrace-jobs")) as broker,
    ):
        await until(stop, recorder(broker, store).run(), dispatcher(broker, store).run())
