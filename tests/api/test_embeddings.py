"""/v1/embeddings before a stub worker: shapes, refusals, jobs, batches' lines."""

from __future__ import annotations

import asyncio
import struct
from base64 import b64decode
from typing import Any

import httpx
import pytest

from api.batch_lines import body_from_line, job_from_line
from api.embeddings import EMBEDDINGS, embedding_jobs, parse_embeddings
from api.errors import ApiError
from schemas.messages import Choice, EmbeddingParams, Result, Usage
from tests.api.stub_worker import StubWorker

MODEL = "vectors"


async def embed(http: httpx.AsyncClient, given: Any, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    return await http.post(EMBEDDINGS, json={"model": MODEL, "input": given, **fields}, headers=headers)


@pytest.mark.parametrize(
    ("given", "lengths"),
    [("a b c", [3]), (["a", "a b"], [1, 2]), ([5, 6, 7], [3]), ([[5], [6, 7]], [1, 2])],
    ids=["string", "strings", "ids", "lists of ids"],
)
async def test_all_forms_of_input(
    http: httpx.AsyncClient, embedder: StubWorker, given: Any, lengths: list[int]
) -> None:
    response = await embed(http, given)
    assert response.status_code == 200, response.text
    body = response.json()
    vectors = [[index / 4, length / 4] for index, length in enumerate(lengths)]
    assert body["data"] == [
        {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
    ]
    assert (body["object"], body["model"]) == ("list", MODEL)
    assert body["id"].startswith("embd-")
    assert body["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}


async def test_base64_holds_the_same_numbers(http: httpx.AsyncClient, embedder: StubWorker) -> None:
    plain = (await embed(http, ["a", "a b"], encoding_format="float")).json()["data"]
    packed = (await embed(http, ["a", "a b"], encoding_format="base64")).json()["data"]
    assert [list(struct.unpack("<2f", b64decode(one["embedding"]))) for one in packed] == [
        one["embedding"] for one in plain
    ]


async def test_many_inputs_are_several_jobs_and_one_answer(http: httpx.AsyncClient, embedder: StubWorker) -> None:
    given = ["a " * (1 + index % 3) for index in range(600)]
    body = (await embed(http, given)).json()
    assert [job.inputs and len(job.inputs) for job in embedder.jobs.values()] == [128, 128, 128, 128, 88]
    assert [one["index"] for one in body["data"]] == list(range(600))
    assert [one["embedding"][1] * 4 for one in body["data"]] == [len(one.split()) for one in given]
    assert body["usage"]["prompt_tokens"] == sum(len(one.split()) for one in given)


def test_parameters_reach_the_job() -> None:
    request = parse_embeddings(
        {
            "model": MODEL,
            "input": "a",
            "dimensions": 8,
            "normalize": False,
            "truncate_prompt_tokens": -1,
            "add_special_tokens": False,
            "priority": -3,
            "cache_salt": "s",
        }
    )
    (job,) = embedding_jobs(request, job_id="j", owner="me", deadline=7.0)
    assert job.inputs == ["a"]
    assert job.embedding == EmbeddingParams(dimensions=8, normalize=False)
    assert (job.truncate_prompt_tokens, job.add_special_tokens, job.priority, job.cache_salt) == (-1, False, -3, "s")
    assert (job.id, job.owner, job.deadline, job.stream) == ("j", "me", 7.0, False)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": ""}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": [[1], []]}, "input"),
    ({"input": ["a", [1]]}, "input"),
    ({"input": [1.5]}, "input"),
    ({"input": [-1]}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": None}, "input"),
    ({"encoding_format": "int8"}, "encoding_format"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": "8"}, "dimensions"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
    ({"embed_dtype": "int8"}, "embed_dtype"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=str)
async def test_refusals_name_the_parameter(
    http: httpx.AsyncClient, embedder: StubWorker, fields: dict[str, Any], param: str
) -> None:
    response = await http.post(EMBEDDINGS, json={"model": MODEL, "input": "a", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not embedder.jobs


async def test_the_wrong_kind_of_model_is_refused(http: httpx.AsyncClient, embedder: StubWorker) -> None:
    messages = [{"role": "user", "content": "a"}]
    answers = [
        await http.post(EMBEDDINGS, json={"model": "stub", "input": "a"}),
        await http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages}),
        await http.post("/v1/completions", json={"model": MODEL, "prompt": "a"}),
        await http.post("/v1/responses", json={"model": MODEL, "input": "a"}),
    ]
    for answer in answers:
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("model", "unsupported_model")
    assert "makes text and nothing else" in answers[0].json()["error"]["message"]
    assert "makes embeddings and nothing else" in answers[1].json()["error"]["message"]
    unknown = await http.post(EMBEDDINGS, json={"model": "nobody", "input": "a"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_models_say_which_they_are(http: httpx.AsyncClient, embedder: StubWorker) -> None:
    models = {one["id"]: one["embedding_dimensions"] for one in (await http.get("/v1/models")).json()["data"]}
    assert models == {"stub": None, MODEL: 2}


async def test_a_failed_job_is_the_answer(http: httpx.AsyncClient, embedder: StubWorker) -> None:
    response = await embed(http, "fail now")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_ignored_parameters_are_named_and_ids_kept(http: httpx.AsyncClient, embedder: StubWorker) -> None:
    response = await embed(http, "a", wibble=1, user="me", request_id="mine")
    assert response.headers["x-headrace-ignored-params"] == "wibble"
    assert response.json()["id"] == "embd-mine"


async def test_an_idempotency_key_repeats_the_answer(http: httpx.AsyncClient, embedder: StubWorker, store: Any) -> None:
    headers = {"idempotency-key": "k"}
    first = await embed(http, ["a", "a b"], headers)
    again = await embed(http, ["a", "a b"], headers)
    assert again.json()["data"] == first.json()["data"]
    assert again.headers["idempotent-replayed"] == "true"
    assert len(embedder.jobs) == 1
    assert (await embed(http, "other", headers)).status_code == 409


async def test_who_leaves_cancels(server: str, hub: Any, broker: Any) -> None:
    from tests.api.conftest import connected
    from tests.api.stub_worker import serving

    async with connected(hub) as made, serving(made, MODEL, "stub-2", dimensions=2) as worker:
        async with httpx.AsyncClient(base_url=server) as client:
            asked = asyncio.create_task(embed(client, "hang"))
            await worker.until_jobs(1)
            asked.cancel()
            await asyncio.wait([asked])
        await worker.until_cancelled()


def test_batch_lines() -> None:
    job = job_from_line(EMBEDDINGS, {"model": MODEL, "input": ["a"] * 2048}, job_id="batch_1-1", owner="me")
    assert job.inputs is not None
    assert (len(job.inputs), job.id, job.owner) == (2048, "batch_1-1", "me")
    choices = [
        Choice(index=index, text="", token_ids=[], finish_reason="stop", embedding=struct.pack("<f", index))
        for index in (1, 0)
    ]
    result = Result(
        job="batch_1-1", model=MODEL, outcome="completed", choices=choices, usage=Usage(prompt_tokens=5), created=9.0
    )
    body = body_from_line(EMBEDDINGS, result)
    assert [one["embedding"] for one in body["data"]] == [[0.0], [1.0]]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize(
    ("fields", "param"), [({"encoding_format": "base64"}, "encoding_format"), ({"request_id": "x"}, "request_id")]
)
def test_batch_lines_refuse_what_the_output_cannot_have(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        job_from_line(EMBEDDINGS, {"model": MODEL, "input": "a", **fields}, job_id="j")
    assert (refused.value.status, refused.value.param) == (400, param)
