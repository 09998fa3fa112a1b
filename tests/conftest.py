"""Services for integration tests, each started when a test first asks for it. Every process of a parallel run has its own:
tests kill them, and stop them for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch

from bench.services import Postgres, RabbitMQ, ServiceMissing
from tests import parts

if not torch.cuda.is_available():
    # Triton asks once, when the first kernel is defined: before any test module imports one.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of pytest-xdist's processes
        parts.sort(items)


S = TypeVar("S", RabbitMQ, Postgres)


def found(kind: type[S]) -> S:
    """The service, not started. Where it is not installed the test skips; in CI it fails."""
    try:
        return kind()
    except ServiceMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A running RabbitMQ node shared by the whole session: leave it as it was."""
    service = found(RabbitMQ)
    try:
        service.start()
        yield service
    finally:
        service.remove()


@pytest.fixture(scope="session")
def amqp_url(rabbitmq: RabbitMQ) -> str:
    """The node's default virtual host, shared by all tests."""
    return rabbitmq.url


@pytest.fixture
def amqp_vhost_url(rabbitmq: RabbitMQ) -> str:
    """A virtual host of this test alone; costs about two seconds."""
    return rabbitmq.add_vhost()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running Postgres server shared by the whole session."""
    service = found(Postgres)
    try:
        service.start()
        yield service
    finally:
        service.remove()


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """SQLAlchemy URL of the server's own database: for connecting, not for tables."""
    return postgres.url


@pytest.fixture
def postgres_db_url(postgres: Postgres) -> Iterator[str]:
    """SQLAlchemy URL of an empty database of this test alone."""
    name = postgres.create_database()
    yield postgres.database_url(name)
    postgres.drop_database(name)
