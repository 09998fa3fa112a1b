"""`headrace api`: the HTTP tier, in one or several processes that share a port."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from api.store import Store
from cli.errors import PartEnded
from cli.http import HttpServer, address_of, http_config, listen, make_app, who_may_come
from cli.lifecycle import Parts, StopSignal, say
from cli.main import configure_logging
from cli.services import amqp_broker, connected, opened_store
from cli.settings import ApiCommandSettings


def run(settings: ApiCommandSettings) -> None:
    """Serve until SIGINT or SIGTERM. Raises StartError, PartEnded."""
    listener = listen(settings)
    if settings.processes == 1:
        uvloop.run(_run(settings, listener))
    else:
        uvloop.run(_check(settings))
        _supervise(settings, listener)
    say("stopped")


async def _run(settings: ApiCommandSettings, listener: socket.socket) -> None:
    stop = StopSignal().install()
    async with opened_store(settings) as store, connected(amqp_broker(settings, "headrace-api")) as broker:
        server = HttpServer(http_config(make_app(broker, store, settings), settings))
        parts = Parts()
        parts.start("HTTP server", server.serve([listener]))
        _announce(settings, listener)
        try:
            await parts.wait(stop)
            server.should_exit = True
            await parts.join("HTTP server", timeout=settings.drain_seconds + 10)
        finally:
            await parts.cancel()


async def _check(settings: ApiCommandSettings) -> None:
    """Fail here, in one line, rather than in every process."""
    async with opened_store(settings), connected(amqp_broker(settings, "headrace-api")):
        pass


def _supervise(settings: ApiCommandSettings, listener: socket.socket) -> None:
    """uvicorn's supervisor starts the processes, replaces one that dies, and hands them the stop signal."""
    _announce(settings, listener)
    supervisor = Multiprocess(http_config(AppFactory(settings), settings, processes=settings.processes), [listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise PartEnded("HTTP server", None)


def _announce(settings: ApiCommandSettings, listener: socket.socket) -> None:
    say(f"listening on {address_of(listener)} ({settings.processes} process{'es' * (settings.processes > 1)})")
    say(who_may_come(settings))


@dataclass(frozen=True)
class AppFactory:
    """Makes one process's app, which opens its store and its broker when it starts. Travels to the process pickled."""

    settings: ApiCommandSettings

    def __call__(self) -> FastAPI:
        configure_logging(self.settings)
        broker = amqp_broker(self.settings, "headrace-api")
        store = Store(self.settings.store_url)
        app = make_app(broker, store, self.settings)
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            await store.open()
            try:
                async with connected(broker), inner(app):
                    yield
            finally:
                await store.close()

        app.router.lifespan_context = lifespan
        return app
