"""`headrace api`: the HTTP tier, in one or several processes that share a port."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import sys
from multiprocessing.connection import wait

import uvloop

from cli.parts import amqp_broker, bound_socket, connected, http_server, opened_store, run_http, stop_signal, until
from cli.settings import ApiCommandSettings

STOP_TIMEOUT = 30.0


def run_api(settings: ApiCommandSettings) -> None:
    """Run until SIGINT or SIGTERM. Raises StartError."""
    listener = bound_socket(settings)
    print(f"listening on http://{settings.host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    if settings.processes == 1:
        uvloop.run(_run(settings, listener))
    else:
        _supervise(settings, listener)


def _child(settings: ApiCommandSettings, listener: socket.socket) -> None:
    uvloop.run(_run(settings, listener))


def _supervise(settings: ApiCommandSettings, listener: socket.socket) -> None:
    """Start the processes; when told to stop, or when one of them ends, stop all."""
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_child, args=(settings, listener)) for _ in range(settings.processes)]
    for child in children:
        child.start()

    def stop(*_: object) -> None:
        for child in children:
            child.terminate()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    wait([child.sentinel for child in children])
    stop()
    for child in children:
        child.join(STOP_TIMEOUT)
    sys.exit(max(child.exitcode or 0 for child in children))


async def _run(settings: ApiCommandSettings, listener: socket.socket) -> None:
    stop = stop_signal()
    async with (
        opened_store(settings, migrate=False) as store,
        connected(amqp_broker(settings, "headrace-api")) as broker,
    ):
        await until(stop, run_http(http_server(broker, store, settings), listener))
