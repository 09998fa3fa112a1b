"""The HTTP server, under the command's own control of signals."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.settings import ApiSettings
from api.store import Store
from broker.base import Broker
from cli.errors import StartError
from cli.settings import DrainSettings, HttpSettings

BACKLOG = 2048
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the command decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(settings: HttpSettings) -> socket.socket:
    """A listening socket. Raises StartError where the address cannot be had."""
    try:
        return _listener(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; try another --port"
        ) from error


def listen_side_by_side(settings: HttpSettings, count: int) -> list[socket.socket]:
    """`count` sockets that listen on one address, among which the kernel spreads connections evenly. Of processes that
    share one socket the first to wake takes what there is: of four, one then did up to 45% of the work for 256 streams
    that came at once. Raises StartError."""
    with listen(settings) as probe:  # alone: another service on this port is told, not joined
        port = probe.getsockname()[1]
    return [_listener(settings.host, port, share=True) for _ in range(count)]


def _listener(host: str, port: int, *, share: bool = False) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def address_of(listener: socket.socket) -> str:
    """The server's URL, as this machine reaches it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def keys_required(settings: HttpSettings) -> bool:
    """Whether requests need a key even while there is none."""
    return settings.host not in LOOPBACK and settings.keyless != "anywhere"


async def who_may_come(settings: HttpSettings, store: Store) -> str:
    """In one line, who can use the service. Raises StoreError."""
    if await store.api_keys.list():
        return "open to those who have an API key (`headrace keys list`)"
    if keys_required(settings):
        return f"open to nobody: reachable at {settings.host} and no API key yet; `headrace keys create` makes one"
    if settings.host in LOOPBACK:
        return "open to this machine only, without a key; `headrace keys create` closes it, --host opens it to others"
    return f"open to everyone who reaches {settings.host}, without a key; `headrace keys create` closes it"


def make_app(broker: Broker, store: Store, settings: HttpSettings) -> FastAPI:
    api_settings = ApiSettings(
        request_timeout=settings.request_timeout,
        max_wait=settings.max_wait,
        keys_required=keys_required(settings),
    )
    return create_app(broker=broker, store=store, settings=api_settings)


def http_config(app: FastAPI, settings: DrainSettings) -> uvicorn.Config:
    """uvicorn on uvloop and httptools; logging is the command's own."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
