"""`headrace serve`: the whole service in one command."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop
from fastapi import FastAPI

from api.jobs.recorder import Recorder
from api.probes import not_ready
from broker.base import Broker
from broker.memory import MemoryBroker, MemoryHub
from cli.http import HttpServer, address_of, http_config, listen, make_app, who_may_come
from cli.lifecycle import Parts, StopSignal, freeze_heap, say
from cli.services import amqp_broker, connected, make_dispatcher, opened_store
from cli.settings import ServeSettings
from cli.worker import NewEngine, WorkerHost
from schemas.topology import RESULTS
from workers.front.engine_client import ProcessEngine

POLL_SECONDS = 0.05
RECORD_TIMEOUT = 10.0
_HELLO = '"messages": [{"role": "user", "content": "Hello"}]'


def run(settings: ServeSettings, new_engine: NewEngine = ProcessEngine) -> None:
    """Serve until SIGINT or SIGTERM. Raises StartError, PartEnded."""
    uvloop.run(_serve(settings, new_engine))


async def _serve(settings: ServeSettings, new_engine: NewEngine) -> None:
    stop = StopSignal().install()
    hub = None if settings.amqp_url else MemoryHub()
    listener = listen(settings)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened_store(settings, migrate=True))
        clients = [
            await stack.enter_async_context(connected(_broker(settings, hub, name)))
            for name in ("headrace-api", "headrace-jobs", "headrace-worker")
        ]
        app = make_app(clients[0], store, settings)
        server = HttpServer(http_config(app, settings))
        parts = Parts()
        parts.start("HTTP server", server.serve([listener]))
        parts.start("recorder", Recorder(clients[1], store).run())
        parts.start("dispatcher", make_dispatcher(clients[1], store).run())
        service = Service(settings, parts, server, app, hub, WorkerHost(clients[2], settings, new_engine))
        try:
            await service.serve(stop, address_of(listener))
        finally:
            await service.close()
    say("stopped")


def _broker(settings: ServeSettings, hub: MemoryHub | None, name: str) -> Broker:
    return amqp_broker(settings, name) if hub is None else MemoryBroker(hub)


@dataclass
class Service:
    """The running parts, and the order in which they stop."""

    settings: ServeSettings
    parts: Parts
    server: HttpServer
    app: FastAPI
    hub: MemoryHub | None
    host: WorkerHost

    async def serve(self, stop: StopSignal, address: str) -> None:
        """Load the worker, announce, and serve until told to stop. Raises StartError, PartEnded."""
        if await stop.unless(self.host.load()) is None:
            return
        freeze_heap()
        self.parts.start("worker", self.host.run())
        self.parts.start("announcement", self._announce(address))
        await self.parts.wait(stop)

    async def _announce(self, address: str) -> None:
        """Say once that the service is ready, and how to use it."""
        while await not_ready(self.app.state.services):  # noqa: ASYNC110 (three services, none of them has an event)
            await asyncio.sleep(POLL_SECONDS)
        name = self.settings.model_name
        say(f"ready: {name} at {address}/v1 ({'RabbitMQ' if self.hub is None else 'embedded broker'})")
        say(await who_may_come(self.settings, self.app.state.services.store))
        models = self.app.state.services.models.models()
        say(_example(name, address, embeds=any(one.id == name and one.embedding_dimensions for one in models)))
        await asyncio.Event().wait()

    async def close(self) -> None:
        """No new work in; what is under way gets its time; then what has ended is recorded."""
        say(f"stopping: requests under way get up to {self.settings.drain_seconds:g} s")
        self.server.should_exit = True
        await self.parts.cancel("announcement", "dispatcher")
        await self.parts.join("worker", self.host.drain(self.settings.drain_seconds))
        if self.hub is not None:
            # Nobody is left to serve what still waits in this process's queues.
            await self.app.state.services.client.close()
            await self._recorded(self.hub)
        await self.parts.join("HTTP server", timeout=self.settings.drain_seconds + 5)
        await self.parts.cancel()

    async def _recorded(self, hub: MemoryHub) -> None:
        """Wait until every Result is in the store: the embedded queue ends with the process."""
        try:
            async with asyncio.timeout(RECORD_TIMEOUT):
                while hub.unsettled(RESULTS):  # noqa: ASYNC110 (once, at the end)
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            say(f"{hub.unsettled(RESULTS)} results could not be recorded")


def _example(model: str, address: str, *, embeds: bool) -> str:
    """A first request, for a shell."""
    path, given = ("embeddings", '"input": "Hello"') if embeds else ("chat/completions", _HELLO)
    body = f'{{"model": "{model}", {given}}}'
    return f"try: curl {address}/v1/{path} -H 'content-type: application/json' -d '{body}'"
