"""Makes the parts that several commands share: broker, store, HTTP server, jobs, worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

from api.app import create_app
from api.jobs.dispatcher import Dispatcher
from api.jobs.recorder import Recorder
from api.requests import job_from_body
from api.responses import body_from_result
from api.settings import ApiSettings
from api.store import Store
from api.store.errors import StoreUnavailable
from api.store.migrate import upgrade
from broker.base import Broker, BrokerUnavailable
from cli.errors import StartError
from cli.settings import BrokerSettings, HttpSettings, StoreSettings, WorkerSettings
from schemas.topology import topology
from workers.front.engine_client import EngineStartError, ProcessEngine
from workers.front.text import TextProcessor
from workers.front.worker import EngineDiedError, Worker
from workers.model.loaders.errors import ModelLoadError
from workers.model.loaders.resolve import resolve
from workers.model.loaders.tokenizer import load_tokenizer

CONNECT_TIMEOUT = 30.0


@asynccontextmanager
async def connected(broker: Broker) -> AsyncIterator[Broker]:
    """The broker, connected, its topology declared."""
    try:
        await asyncio.wait_for(broker.connect(), CONNECT_TIMEOUT)
    except (BrokerUnavailable, TimeoutError) as error:
        raise StartError(f"cannot reach the broker: {error}; check --amqp-url and that RabbitMQ runs") from error
    try:
        await broker.declare(topology())
        yield broker
    finally:
        await broker.close()


def amqp_broker(settings: BrokerSettings, name: str) -> Broker:
    """A RabbitMQ client. Raises StartError without an address."""
    from broker.amqp import AmqpBroker

    if not settings.amqp_url:
        raise StartError("no broker: give --amqp-url or set AMQP_URL, or use `headrace serve` with its embedded broker")
    return AmqpBroker(settings.amqp_url, name=name)


@asynccontextmanager
async def opened_store(settings: StoreSettings, *, migrate: bool) -> AsyncIterator[Store]:
    """The store; with `migrate` its schema is brought up to date first."""
    if not settings.database_url:
        settings.data_dir.expanduser().mkdir(parents=True, exist_ok=True)
    store = Store(settings.store_url)
    try:
        if migrate:
            await asyncio.wait_for(upgrade(settings.store_url), CONNECT_TIMEOUT)
        await store.open()
    except (StoreUnavailable, OSError, TimeoutError) as error:
        raise StartError(f"cannot open the store: {error}; check --database-url and run `headrace migrate`") from error
    try:
        yield store
    finally:
        await store.close()


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the command decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_socket(settings: HttpSettings) -> socket.socket:
    """A listening socket. Raises StartError where the address is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
    except OSError as error:
        made.close()
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; try --port") from error
    made.listen(2048)
    return made


def http_server(broker: Broker, store: Store, settings: HttpSettings) -> HttpServer:
    app = create_app(broker=broker, store=store, settings=ApiSettings(request_timeout=settings.request_timeout))
    config = uvicorn.Config(
        app, http="httptools", lifespan="on", log_config=None, access_log=False, timeout_graceful_shutdown=10
    )
    return HttpServer(config)


async def run_http(server: HttpServer, listener: socket.socket) -> None:
    """Serve until cancelled; requests under way get the server's graceful time."""
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise


def dispatcher(broker: Broker, store: Store) -> Dispatcher:
    return Dispatcher(broker, store, parse=job_from_body, render=body_from_result)


def recorder(broker: Broker, store: Store) -> Recorder:
    return Recorder(broker, store)


async def make_worker(broker: Broker, settings: WorkerSettings) -> Worker:
    """Load tokenizer and engine. Raises StartError. The worker's `run` closes the engine."""
    try:
        path = await asyncio.to_thread(resolve, settings.model)
        tokenizer = await asyncio.to_thread(load_tokenizer, path, trust_remote_code=settings.trust_remote_code)
    except ModelLoadError as error:
        raise StartError(str(error)) from error
    worker_id = f"{socket.gethostname()}-{os.getpid()}"
    worker = Worker(
        broker,
        ProcessEngine(settings.engine_config()),
        TextProcessor(tokenizer),
        model=settings.model_name,
        worker_id=worker_id,
    )
    try:
        await worker.start()
    except EngineStartError as error:
        raise StartError(f"the engine cannot start: {error}") from error
    return worker


async def run_worker(worker: Worker, stop: asyncio.Event, grace: float) -> None:
    """Serve until `stop`, then let running requests end within `grace` seconds."""
    serving = asyncio.ensure_future(worker.run())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await worker.drain(grace)
        await serving
    except EngineDiedError as error:
        raise StartError(f"the engine ended: {error}; its jobs go back to the queue") from error
    finally:
        stopping.cancel()
        serving.cancel()


def stop_signal() -> asyncio.Event:
    """Set by SIGINT or SIGTERM."""
    event = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


async def until(stop: asyncio.Event, *work: Coroutine[Any, Any, Any]) -> None:
    """Run `work` until the stop signal, or until one of it ends: its failure is raised. The rest is cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    waiter = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, waiter], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in [*tasks, waiter]:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, waiter, return_exceptions=True)
