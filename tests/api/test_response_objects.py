"""/v1/responses with OpenAI's own client, over a socket, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pydantic
import pytest

from api.jobs.recorder import Recorder
from api.store import Store
from broker.base import BrokerUnavailable, PublishRejected
from broker.memory import MemoryBroker, MemoryHub
from tests.api.conftest import connected
from tests.api.stub_worker import StubWorker
from tests.api.test_errors import error_of

RESPONSES = "/v1/responses"


@pytest.fixture(autouse=True)
async def recorder(hub: MemoryHub, store: Store) -> AsyncIterator[None]:
    async with connected(hub) as broker:
        running = asyncio.create_task(Recorder(broker, store).run())
        yield
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture
async def client(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


def asking(text: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "stub", "input": text} | fields


async def ended(client: openai.AsyncOpenAI, response_id: str) -> Any:
    """The response, polled as clients do until it has ended."""
    async with asyncio.timeout(60):
        while (found := await client.responses.retrieve(response_id)).status in ("queued", "in_progress"):  # noqa: ASYNC110 - as clients do
            await asyncio.sleep(0.01)
    return found


async def test_create_retrieve_and_delete(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    made = await client.responses.create(
        model="stub", input="one two", instructions="Be brief.", metadata={"k": "v"}, temperature=0.5, user="u"
    )
    assert (made.status, made.output_text, made.error, made.incomplete_details) == ("completed", "one two", None, None)
    assert (made.instructions, made.metadata, made.temperature, made.top_p) == ("Be brief.", {"k": "v"}, 0.5, 1.0)
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (2, 2, 4)
    assert await client.responses.retrieve(made.id) == made
    (job,) = worker.jobs.values()
    assert job.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two"}]
    assert (job.sampling.temperature, job.store_output, made.id) == (0.5, True, f"resp_{job.id}")
    await client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            await call(made.id)


async def test_synchronous_client(server: str) -> None:
    def talk() -> tuple[str, str, list[str]]:
        with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
            made = client.responses.create(model="stub", input="one two")
            with client.responses.stream(model="stub", input="three four") as stream:
                final = stream.get_final_response()
            kinds = [event.type for event in client.responses.create(model="stub", input="five", stream=True)]
            client.responses.delete(made.id)
            return made.output_text, final.output_text, kinds

    whole, streamed, kinds = await asyncio.to_thread(talk)
    assert (whole, streamed, kinds[0], kinds[-1]) == ("one two", "three four", "response.created", "response.completed")


async def test_events_of_a_stream(client: openai.AsyncOpenAI) -> None:
    events = [event async for event in await client.responses.create(model="stub", input="one two, three", stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == ["one", " two", ",", " three"]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 4,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    first, last = events[0], events[-1]
    assert first.type == "response.created"
    assert last.type == "response.completed"
    assert (first.response.status, first.response.output) == ("in_progress", [])
    assert last.response == await client.responses.retrieve(first.response.id)
    assert last.response.output_text == "one two, three"


async def test_a_limit_makes_it_incomplete(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="stub", input="one two three", max_output_tokens=2)
    assert (made.status, made.output_text) == ("incomplete", "one two")
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    stream = await client.responses.create(model="stub", input="one two three", max_output_tokens=2, stream=True)
    *_, last = [event async for event in stream]
    assert last.type == "response.incomplete"
    assert last.response.output[0].status == "incomplete"  # type: ignore[union-attr]


async def test_a_conversation_by_previous_response_id(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    first = await client.responses.create(model="stub", input="one", instructions="Only once.")
    second = await client.responses.create(model="stub", input="two", previous_response_id=first.id)
    third = await client.responses.create(
        model="stub",
        previous_response_id=second.id,
        input=[
            {"role": "developer", "content": "hm"},
            {"role": "user", "content": [{"type": "input_text", "text": "3"}]},
        ],
    )
    said = [(message["role"], message["content"]) for message in list(worker.jobs.values())[-1].messages or []]
    assert said == [
        ("user", "one"),
        ("assistant", "one"),
        ("user", "two"),
        ("assistant", "two"),
        ("system", "hm"),
        ("user", "3"),
    ]
    assert third.previous_response_id == second.id
    items = [item async for item in client.responses.input_items.list(third.id, order="asc", limit=1)]
    assert [item.role for item in items] == ["developer", "user"]  # type: ignore[union-attr]
    await client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as gone:
        await client.responses.create(model="stub", input="4", previous_response_id=third.id)
    assert (gone.value.code, gone.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_output_echoed_back_as_input(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    first = await client.responses.create(model="stub", input="one")
    response = await client.responses.with_raw_response.create(
        model="stub",
        input=[item.model_dump() for item in first.output] + [{"role": "user", "content": "two"}],  # type: ignore[arg-type]
    )
    assert "x-headrace-ignored-params" not in response.headers
    assert [message["content"] for message in list(worker.jobs.values())[-1].messages or []] == ["one", "two"]


class Answer(pydantic.BaseModel):
    number: int


async def test_formats_reach_the_job_as_grammars(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    parsed = await client.responses.parse(model="stub", input='{"number":1}', text_format=Answer)
    assert parsed.output_parsed == Answer(number=1)
    assert (await client.responses.retrieve(parsed.id)).text == parsed.text
    await client.responses.create(model="stub", input="{}", text={"format": {"type": "json_object"}})
    await client.responses.create(model="stub", input="{}", text={"format": {"type": "text"}})
    schema, any_object, plain = [job.sampling.grammar for job in worker.jobs.values()]
    assert schema is not None
    assert any_object is not None
    assert (schema.kind, schema.param, json.loads(schema.value)["required"]) == ("json", "text.format", ["number"])
    assert (json.loads(any_object.value), plain) == ({"type": "object"}, None)


async def test_what_is_not_stored_is_gone(client: openai.AsyncOpenAI, worker: StubWorker, store: Store) -> None:
    made = await client.responses.create(model="stub", input="one", store=False)
    assert (made.output_text, list(worker.jobs.values())[-1].store_output) == ("one", False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    stream = await client.responses.create(model="stub", input="one two", store=False, stream=True)
    *_, last = [event async for event in stream]
    assert last.type == "response.completed"
    assert last.response.output_text == "one two"


async def test_background(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    made = await client.responses.create(model="stub", input="one two", background=True)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    found = await ended(client, made.id)
    assert (found.status, found.output_text) == ("completed", "one two")
    events = [event async for event in await client.responses.retrieve(made.id, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for after in (0, 4, len(events) - 2):
        rest = [event async for event in await client.responses.retrieve(made.id, stream=True, starting_after=after)]
        assert rest == events[after + 1 :]
    assert [event async for event in await client.responses.retrieve(made.id, stream=True, starting_after=99)] == []


async def test_a_stream_told_again_is_the_stream(client: openai.AsyncOpenAI) -> None:
    for background in (False, True):
        stream = await client.responses.create(
            model="stub", input="a  b\n\nc né 漢字 🙂 (x)", stream=True, background=background
        )
        events = [event async for event in stream]
        made = events[0].response.id  # type: ignore[union-attr]
        assert [event async for event in await client.responses.retrieve(made, stream=True)] == events


async def test_cancel(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    made = await client.responses.create(model="stub", input="hang-late b c", background=True)
    await worker.until_jobs(1)
    cancelled = await client.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    await worker.until_cancelled()
    assert (await client.responses.cancel(made.id)).status == "cancelled"
    *_, last = [event async for event in await client.responses.retrieve(made.id, stream=True)]
    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"


async def test_cancelling_what_has_ended_changes_nothing(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="stub", input="one", background=True)
    whole = await ended(client, made.id)
    assert await client.responses.cancel(made.id) == whole
    other = await client.responses.create(model="stub", input="one")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.cancel(other.id)
    assert refused.value.code == "not_cancellable"


async def test_deleting_what_runs_stops_it(client: openai.AsyncOpenAI, worker: StubWorker) -> None:
    made = await client.responses.create(model="stub", input="hang", background=True)
    await worker.until_jobs(1)
    await client.responses.delete(made.id)
    await worker.until_cancelled()


async def test_leaving_cancels_unless_in_the_background(
    client: openai.AsyncOpenAI, worker: StubWorker, store: Store
) -> None:
    background = await client.responses.create(model="stub", input="hang-late b", stream=True, background=True)
    async for event in background:
        if event.type == "response.output_text.delta":
            break
    await background.close()
    stream = await client.responses.create(model="stub", input="hang-late b", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await worker.until_cancelled()
    assert worker.cancelled == {list(worker.jobs)[1]}


async def test_failures(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="stub", input="fail")
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="stub", input="fail", stream=True)
    made = await client.responses.create(model="stub", input="fail", background=True)
    failed = await ended(client, made.id)
    assert (failed.status, failed.output) == ("failed", [])
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("invalid_prompt", "too long")
    for after in (-1, 1, 7):
        query = {} if after < 0 else {"starting_after": after}
        *_, last = [event async for event in await client.responses.retrieve(made.id, stream=True, **query)]  # type: ignore[call-overload]
        assert last.type == "response.failed"
        assert last.sequence_number > after
    late = [event async for event in await client.responses.create(model="stub", input="fail-late b c", stream=True)]
    assert [event.sequence_number for event in late] == list(range(len(late)))
    assert late[-1].type == "response.failed"
    assert late[-1].response.error is not None
    assert late[-1].response.error.code == "server_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"reasoning": {"effort": "low", "summary": "detailed"}}, "reasoning.summary"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ],
)
async def test_what_is_not_served_is_named(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    error = error_of(await http.post(RESPONSES, json=asking("x") | fields), 400)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"model": "none"}, "model"),
    ],
)
async def test_what_is_wrong_is_named(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await http.post(RESPONSES, json=asking("x") | fields)
    assert error_of(response, 404 if param == "model" else 400)["param"] == param


async def test_an_unended_response_cannot_be_built_upon(http: httpx.AsyncClient, worker: StubWorker) -> None:
    made = (await http.post(RESPONSES, json=asking("hang", background=True))).json()
    response = await http.post(RESPONSES, json=asking("x", previous_response_id=made["id"]))
    assert error_of(response, 400)["code"] == "previous_response_not_ended"


async def test_bad_queries_and_unknown_ids(http: httpx.AsyncClient) -> None:
    made = (await http.post(RESPONSES, json=asking("one"))).json()["id"]
    bad = await http.get(f"{RESPONSES}/{made}?stream=true&starting_after=x")
    assert error_of(bad, 400)["param"] == "starting_after"
    assert error_of(await http.get(f"{RESPONSES}/{made}/input_items?limit=0"), 400)["param"] == "limit"
    for method, path in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
        error_of(await http.request(method, f"{RESPONSES}/none{path}"), 404)


async def test_a_foreground_response_is_streamed_to_its_client_alone(
    http: httpx.AsyncClient, worker: StubWorker
) -> None:
    asked = asyncio.create_task(http.post(RESPONSES, json=asking("hang")))
    await worker.until_jobs(1)
    (job,) = worker.jobs
    found = await http.get(f"{RESPONSES}/resp_{job}")
    assert found.json()["status"] == "in_progress"
    assert error_of(await http.get(f"{RESPONSES}/resp_{job}?stream=true"), 400)["code"] == "not_background"
    asked.cancel()
    await asyncio.wait([asked])


@pytest.mark.parametrize(("failure", "status"), [(PublishRejected("full"), 429), (BrokerUnavailable("gone"), 503)])
@pytest.mark.parametrize("fields", [{}, {"background": True}, {"background": True, "stream": True}])
async def test_what_is_refused_leaves_nothing(
    http: httpx.AsyncClient,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    failure: Exception,
    status: int,
) -> None:
    kept: list[str] = []
    create = store.responses.create

    async def noted(record: Any) -> None:
        kept.append(record.id)
        await create(record)

    async def refuse(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(store.responses, "create", noted)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBroker, "publish", refuse)
        assert (await http.post(RESPONSES, json=asking("one") | fields)).status_code == status
    (response_id,) = kept
    assert (await http.get(f"{RESPONSES}/{response_id}")).status_code == 404
