"""`headrace serve`: the whole service in one command."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

import uvloop

from broker.base import Broker
from broker.memory import MemoryBroker, MemoryHub
from cli.parts import (
    amqp_broker,
    bound_socket,
    connected,
    dispatcher,
    http_server,
    make_worker,
    opened_store,
    recorder,
    run_http,
    run_worker,
    stop_signal,
    until,
)
from cli.settings import ServeSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(settings: ServeSettings) -> None:
    """Run until SIGINT or SIGTERM. Raises StartError."""
    uvloop.run(_serve(settings))


async def _serve(settings: ServeSettings) -> None:
    stop = stop_signal()
    hub = MemoryHub()

    def broker(name: str) -> Broker:
        return amqp_broker(settings, name) if settings.amqp_url else MemoryBroker(hub)

    listener = bound_socket(settings)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened_store(settings, migrate=True))
        door = await stack.enter_async_context(connected(broker("headrace-api")))
        ledger = await stack.enter_async_context(connected(broker("headrace-jobs")))
        queue = await stack.enter_async_context(connected(broker("headrace-worker")))
        say(f"loading {settings.model} ...")
        worker = await make_worker(queue, settings)
        server = http_server(door, store, settings)
        address = f"http://{settings.host}:{listener.getsockname()[1]}"
        await until(
            stop,
            run_http(server, listener),
            recorder(ledger, store).run(),
            dispatcher(ledger, store).run(),
            run_worker(worker, stop, settings.drain_seconds),
            _announce(address, settings),
        )
    say("stopped")


async def _announce(address: str, settings: ServeSettings) -> None:
    where = "the embedded broker" if not settings.amqp_url else "RabbitMQ"
    say(f"ready: {settings.model_name} at {address}/v1 ({where})")
    if settings.host in LOOPBACK:
        say("open to this machine only, without keys; --host makes it reachable from others")
    else:
        say(f"open to everyone who reaches {settings.host}: there are no keys")
    say(
        f"try: curl {address}/v1/chat/completions -H 'content-type: application/json' "
        f"""-d '{{"model": "{settings.model_name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'"""
    )
    await asyncio.Event().wait()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
