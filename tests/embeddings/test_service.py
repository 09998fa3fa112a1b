"""`headrace serve` with a small encoder, by OpenAI's own client: sync and async, to the end of a batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from tests.e2e.service import Service, run_batch, served
from tests.embeddings.folders import TEXTS, reference, word_tokenizer, write_model

ENDPOINT = "/v1/embeddings"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "small-bert"


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return write_model(folder, "bert", pooling="mean")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, folder: Path, model: Any) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service")
    with served(home, "--model", str(folder), "--dtype", "float32") as running:
        yield running
    assert f"try: curl {running.url}/v1/embeddings" in (home / "serve.log").read_text()


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def wanted(model: Any) -> torch.Tensor:
    return torch.stack([reference(model, word_tokenizer()(text)["input_ids"], "mean") for text in TEXTS])


def vectors(answer: Any) -> torch.Tensor:
    return torch.tensor([one.embedding for one in answer.data])


def test_the_client_gets_the_model_s_vectors(client: openai.OpenAI, model: Any) -> None:
    packed = client.embeddings.create(model="small-bert", input=TEXTS)
    torch.testing.assert_close(vectors(packed), wanted(model), rtol=0, atol=1e-4)
    plain = client.embeddings.create(model="small-bert", input=TEXTS, encoding_format="float")
    assert torch.equal(vectors(plain), vectors(packed))
    assert (packed.object, packed.model, [one.index for one in packed.data]) == ("list", "small-bert", [0, 1, 2, 3])
    counts = sum(len(word_tokenizer()(text)["input_ids"]) for text in TEXTS)
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (counts, counts)
    ids = [word_tokenizer()(text)["input_ids"] for text in TEXTS]
    assert torch.equal(vectors(client.embeddings.create(model="small-bert", input=ids)), vectors(packed))


def test_dimensions_and_truncation(client: openai.OpenAI) -> None:
    whole = vectors(client.embeddings.create(model="small-bert", input="the lazy dog"))[0]
    cut = vectors(client.embeddings.create(model="small-bert", input="the lazy dog", dimensions=8))[0]
    torch.testing.assert_close(cut, whole[:8] / whole[:8].norm(), rtol=0, atol=1e-5)
    long = client.embeddings.create(
        model="small-bert", input="the lazy dog " * 100, extra_body={"truncate_prompt_tokens": 5}
    )
    assert long.usage.prompt_tokens == 5
    torch.testing.assert_close(vectors(long)[0], whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"dimensions": 65}, "dimensions", "invalid_value"),
        ({"input": ["water", "water " * 200]}, "input", "context_length_exceeded"),
        ({"input": [[1, 99999]]}, "input", "unknown_token_id"),
        ({"input": []}, "input", "invalid_value"),
        ({"model": "nobody"}, "model", "model_not_found"),
    ],
)
def test_refusals(client: openai.OpenAI, parameters: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(**{"model": "small-bert", "input": "water", **parameters})
    assert refused.value.status_code in (400, 404)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_chat_with_an_embedding_model_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings") as refused:
        client.chat.completions.create(model="small-bert", messages=[{"role": "user", "content": "Hello"}])
    assert refused.value.code == "unsupported_model"


async def test_many_at_once(service: Service, model: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(model="small-bert", input=TEXTS[: 1 + n % 4] * 50) for n in range(8))
        )
    for number, answer in enumerate(answers):
        expected = wanted(model)[: 1 + number % 4].repeat(50, 1)
        torch.testing.assert_close(vectors(answer), expected, rtol=0, atol=1e-4)


def test_a_batch(service: Service, model: Any) -> None:
    bodies: list[dict[str, Any]] = [{"input": TEXTS}, {"input": TEXTS[0], "dimensions": 8}, {"input": "water " * 200}]
    bodies += [{"input": TEXTS[index % 4]} for index in range(20)]
    lines = [
        {"custom_id": f"line-{n}", "method": "POST", "url": ENDPOINT, "body": {"model": "small-bert", **body}}
        for n, body in enumerate(bodies)
    ]
    with service.client() as http:
        batch = run_batch(http, "\n".join(map(json.dumps, lines)).encode(), ENDPOINT)
        output = http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
        errors = http.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
        usage = http.get("/v1/usage").json()["data"][0]
    assert batch["request_counts"] == {"total": 23, "completed": 22, "failed": 1}
    assert [json.loads(line)["custom_id"] for line in output] == [f"line-{n}" for n in range(23) if n != 2]
    answers = [json.loads(line)["response"]["body"] for line in output]
    first, second = answers[:2]
    made = torch.tensor([one["embedding"] for one in first["data"]])
    torch.testing.assert_close(made, wanted(model), rtol=0, atol=1e-4)
    assert len(second["data"][0]["embedding"]) == 8
    assert batch["usage"]["input_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert json.loads(errors[0])["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert usage["completion_tokens"] == 0
    service.assert_idle()
