"""`headrace api`: the HTTP tier, in one or several processes that share a port."""

from __future__ import annotations

import os
import socket
from multiprocessing.connection import Connection

import uvloop

from cli.errors import PartEnded, StartError
from cli.http import HttpServer, address_of, http_config, listen, listen_side_by_side, make_app, who_may_come
from cli.lifecycle import Parts, StopSignal, freeze_heap, say
from cli.main import EXIT_FAILED, configure_logging, fail
from cli.processes import Siblings, hold
from cli.services import amqp_broker, connected, opened_store
from cli.settings import ApiCommandSettings


def run(settings: ApiCommandSettings) -> None:
    """Serve until SIGINT or SIGTERM. Raises StartError, PartEnded."""
    if settings.processes == 1:
        uvloop.run(_serve(settings, listen(settings)))
    else:
        uvloop.run(_supervise(settings))
    say("stopped")


async def _serve(settings: ApiCommandSettings, listener: socket.socket, lifeline: Connection | None = None) -> None:
    stop = StopSignal().install()
    if lifeline is not None:
        hold(lifeline, stop.request)
    async with opened_store(settings) as store, connected(amqp_broker(settings, "headrace-api")) as broker:
        server = HttpServer(http_config(make_app(broker, store, settings), settings))
        parts = Parts()
        parts.start("HTTP server", server.serve([listener]))
        if lifeline is None:
            _announce(settings, listener, await who_may_come(settings, store))
        freeze_heap()
        try:
            await parts.wait(stop)
            server.should_exit = True
            await parts.join("HTTP server", timeout=settings.drain_seconds + 10)
        finally:
            await parts.cancel()


async def _supervise(settings: ApiCommandSettings) -> None:
    async with opened_store(settings) as store, connected(amqp_broker(settings, "headrace-api")):
        # Fail here, in one line, rather than in every process.
        access = await who_may_come(settings, store)
    listeners = listen_side_by_side(settings, settings.processes)
    siblings = Siblings(_process, [(settings, listener) for listener in listeners])

    def exit_now(code: int) -> None:
        siblings.kill()
        os._exit(code)

    stop = StopSignal(exit_now).install()
    parts = Parts()
    parts.start("HTTP processes", siblings.run())
    _announce(settings, listeners[0], access)
    try:
        await parts.wait(stop)
    finally:
        await parts.cancel()
        await siblings.stop(settings.drain_seconds + 15)


def _process(settings: ApiCommandSettings, listener: socket.socket, lifeline: Connection) -> None:
    configure_logging(settings)
    try:
        uvloop.run(_serve(settings, listener, lifeline))
    except StartError as error:
        fail(str(error))
    except PartEnded as error:
        fail(str(error), EXIT_FAILED)


def _announce(settings: ApiCommandSettings, listener: socket.socket, access: str) -> None:
    say(f"listening on {address_of(listener)} ({settings.processes} process{'es' * (settings.processes > 1)})")
    say(access)
