"""What the routes of one app work with."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from api.admission import Admission
from api.key_ring import KeyRing
from api.keyed import KeyedRequests
from api.metrics import Metrics
from api.models import ModelRegistry
from api.queue_client import QueueClient
from api.response_api.runs import ResponseRuns
from api.settings import ApiSettings
from api.store import Store
from broker.base import Broker


@dataclass(frozen=True, slots=True)
class Services:
    broker: Broker
    store: Store
    settings: ApiSettings
    client: QueueClient
    models: ModelRegistry
    admission: Admission
    keyed: KeyedRequests
    metrics: Metrics
    key_ring: KeyRing
    runs: ResponseRuns


def services(request: Request) -> Services:
    """The services of the app that serves `request`."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found
