"""`headrace jobs`: the dispatcher and the recorder."""

from __future__ import annotations

import uvloop

from api.jobs.recorder import Recorder
from cli.lifecycle import Parts, StopSignal, say
from cli.services import amqp_broker, connected, make_dispatcher, opened_store
from cli.settings import JobsSettings


def run(settings: JobsSettings) -> None:
    """Work until SIGINT or SIGTERM. Raises StartError, PartEnded."""
    uvloop.run(_run(settings))


async def _run(settings: JobsSettings) -> None:
    stop = StopSignal().install()
    async with (
        opened_store(settings) as store,
        connected(amqp_broker(settings, "headrace-jobs")) as broker,
    ):
        parts = Parts()
        parts.start("recorder", Recorder(broker, store).run())
        parts.start("dispatcher", make_dispatcher(broker, store).run())
        say("ready: dispatching batches, recording results")
        try:
            await parts.wait(stop)
        finally:
            await parts.cancel("dispatcher", "recorder")
    say("stopped")
