"""A background response over an api process that is killed and started again: real processes, RabbitMQ and Postgres."""

from __future__ import annotations

import re
import time
from typing import Any

import openai
import pytest

from tests.cli.conftest import Start
from tests.cli.headrace import Running, run

pytestmark = pytest.mark.model
MODEL = "smollm2-135m-instruct"
READY_SECONDS = 60.0


@pytest.fixture
def services(amqp_vhost_url: str, postgres_db_url: str) -> dict[str, str]:
    """Addresses as a deployment sets them."""
    return {"AMQP_URL": amqp_vhost_url, "DATABASE_URL": postgres_db_url}


def client_of(process: Running) -> openai.OpenAI:
    """A client of an api process that knows its model."""
    url = process.wait_for(r"listening on (http://\S+)")[1]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2, timeout=60)
    limit = time.monotonic() + READY_SECONDS
    while not re.search(MODEL, client.models.list().to_json()):
        assert time.monotonic() < limit
        time.sleep(0.1)
    return client


def ended(client: openai.OpenAI, response_id: str) -> Any:
    while (found := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        time.sleep(0.1)
    return found


def test_it_goes_on_and_is_read_on(start: Start, services: dict[str, str]) -> None:
    migrated = run("migrate", **services)
    assert migrated.returncode == 0, migrated.stderr
    start("jobs", **services)
    worker = start("worker", **services)
    first = start("api", "--port", "0", **services)
    worker.wait_for(f"ready: serving {MODEL}")
    asking: dict[str, Any] = {"model": MODEL, "input": "Count to fifty in words.", "background": True}
    asking |= {"max_output_tokens": 64, "temperature": 0, "extra_body": {"ignore_eos": True}}
    with client_of(first) as client:
        waiting = client.responses.create(**asking)
        events = []
        for event in client.responses.create(**asking, stream=True):
            events.append(event)
            if len(events) == 12:
                first.kill()
                break
    response_id = events[0].response.id
    second = start("api", "--port", "0", **services)
    with client_of(second) as client:
        rest = list(client.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number))
        events += rest
        whole = client.responses.retrieve(response_id)
        assert whole == events[-1].response
        assert whole.status == "incomplete"
        assert [event.sequence_number for event in events] == list(range(len(events)))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text
        assert ended(client, waiting.id).status == "incomplete"
        follow_up = client.responses.create(
            model=MODEL, input="Thanks.", previous_response_id=response_id, max_output_tokens=4
        )
        assert follow_up.usage is not None
        assert whole.usage is not None
        assert follow_up.usage.input_tokens > whole.usage.total_tokens
