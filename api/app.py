"""The HTTP application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import Depends, FastAPI

from api import handlers, openapi_document
from api.admission import Admission
from api.auth import authenticate
from api.key_ring import KeyRing
from api.keyed import KeyedRequests
from api.metrics import Metrics
from api.models import ModelRegistry
from api.queue_client import QueueClient
from api.response_api.runs import ResponseRuns
from api.routes import (
    batches,
    chat,
    completions,
    docs,
    embeddings,
    files,
    health,
    metrics,
    models,
    responses,
    tokenize,
    usage,
    version,
)
from api.services import Services
from api.settings import ApiSettings
from api.store import Store
from broker.base import Broker

ROUTERS = (chat, completions, embeddings, responses, models, files, batches, tokenize, usage)
PUBLIC_ROUTERS = (health, metrics, version, docs)


def create_app(*, broker: Broker, store: Store, settings: ApiSettings | None = None) -> FastAPI:
    """The app over a connected broker and an open store, both closed by whoever opened them. Its lifespan opens the
    reply queue and listens for workers."""
    chosen = settings or ApiSettings()
    client = QueueClient(broker, max_buffered_tokens=chosen.max_buffered_tokens)
    registry = ModelRegistry(
        broker,
        expiry=chosen.worker_expiry,
        crash_grace=chosen.crash_grace,
        discovery_seconds=chosen.discovery_seconds,
    )
    admission = Admission(broker, registry, client.tally, max_wait=chosen.max_wait)
    keyed = KeyedRequests(client, store, chosen.request_timeout)
    key_ring = KeyRing(store, required=chosen.keys_required)
    counted = Metrics(client, registry, admission)
    shared = Services(
        broker, store, chosen, client, registry, admission, keyed, counted, key_ring, ResponseRuns(client, store)
    )
    app = FastAPI(
        title="Headrace",
        lifespan=_lifespan(shared),
        redirect_slashes=False,
        docs_url=None,  # its page loads scripts from elsewhere; api.routes.docs does not
        redoc_url=None,
    )
    app.state.services = shared
    handlers.install(app)
    app.add_middleware(handlers.RequestContext, metrics=shared.metrics)
    for module in ROUTERS:
        app.include_router(module.router, dependencies=[Depends(authenticate)])
    for module in PUBLIC_ROUTERS:
        app.include_router(module.router)
    public = frozenset(getattr(route, "path", "") for module in PUBLIC_ROUTERS for route in module.router.routes)
    openapi_document.install(app, version=version.VERSION, public=public)
    return app


def _lifespan(shared: Services) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for service in (shared.client, shared.models, shared.admission, shared.key_ring):
                stack.push_async_callback(service.close)
                await service.start()
            stack.push_async_callback(shared.keyed.close)
            stack.push_async_callback(shared.runs.close)
            yield

    return lifespan
