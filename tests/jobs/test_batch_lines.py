"""Batches over each endpoint, by the parse and render that the service runs with."""

from __future__ import annotations

from typing import Any

import pytest

from api.batch_lines import body_from_line, job_from_line
from api.errors import ApiError
from api.jobs.batch_run import BatchSettings
from api.jobs.dispatcher import Dispatcher
from api.jobs.recorder import Recorder
from api.store import NotFound, Store
from broker.memory import MemoryBroker
from schemas.openai.batches import BatchRequest
from tests.jobs.stub import MODEL, StubWorker, jsonl, read_lines, running, submit, until_status

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
PLAIN = {"model": MODEL, "prompt": "hello"}
RESPONSE = {"model": MODEL, "input": "hello", "instructions": "Be brief.", "metadata": {"k": "v"}}


async def output_of(broker: MemoryBroker, store: Store, endpoint: str, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of both result files of a batch."""
    BatchRequest(input_file_id="f", endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
    lines = [{"custom_id": f"c{n}", "method": "POST", "url": endpoint, "body": body} for n, body in enumerate(bodies)]
    batch = await submit(store, jsonl(*lines), endpoint=endpoint)
    settings = BatchSettings(poll=0.01)
    dispatcher = Dispatcher(broker, store, parse=job_from_line, render=body_from_line, settings=settings)
    async with running(Recorder(broker, store).run), running(dispatcher.run):
        done = await until_status(store, batch, "completed")
    return await read_lines(store, done.output_file_id) + await read_lines(store, done.error_file_id)


async def test_responses(broker: MemoryBroker, store: Store, worker: StubWorker) -> None:
    whole, failed, refused = await output_of(
        broker, store, "/v1/responses", RESPONSE, RESPONSE | {"input": "fail"}, RESPONSE | {"stream": True}
    )
    body = whole["response"]["body"]
    assert (body["object"], body["status"], body["output"][0]["content"][0]["text"]) == (
        "response",
        "completed",
        "hello!",
    )
    assert (body["usage"]["total_tokens"], body["store"], body["instructions"]) == (3, False, None)
    with pytest.raises(NotFound):
        await store.responses.get("me", body["id"])
    assert failed["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert (refused["response"]["status_code"], refused["response"]["body"]["error"]["param"]) == (400, "stream")
    assert worker.last is not None
    assert worker.last.messages is not None
    assert worker.last.messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [("/v1/chat/completions", CHAT, "chat.completion"), ("/v1/completions", PLAIN, "text_completion")],
)
async def test_completions(
    broker: MemoryBroker, store: Store, worker: StubWorker, endpoint: str, body: dict[str, Any], kind: str
) -> None:
    (done,) = await output_of(broker, store, endpoint, body)
    assert done["response"]["body"]["object"] == kind


@pytest.mark.parametrize(
    "fields", [{"background": True}, {"previous_response_id": "resp_1"}, {"stream": True}, {"tools": 3}]
)
def test_what_a_line_cannot_ask_for(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        job_from_line("/v1/responses", RESPONSE | fields, job_id="j")
    assert (refused.value.status, refused.value.param) == (400, next(iter(fields)))
