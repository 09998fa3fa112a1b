"""Parameters and endpoints beyond OpenAI's, by OpenAI's client against the whole service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cli.headrace import run
from tests.e2e.service import MODEL, Service, served

pytestmark = pytest.mark.model
PROMPT = "The capital of France is"


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def complete(client: openai.OpenAI, *, prompt: Any = PROMPT, extra: dict[str, Any] | None = None, **more: Any) -> Any:
    settings = {"max_tokens": 8, "temperature": 0, **more}
    return client.completions.create(model=MODEL, prompt=prompt, extra_body=extra or {}, **settings)


def test_tokens_and_text(service: Service) -> None:
    with service.client() as http:
        tokens = http.post("/v1/tokenize", json={"model": MODEL, "prompt": PROMPT, "return_token_strs": True}).json()
        assert "".join(tokens["token_strs"]) == PROMPT
        text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]}).json()
        assert text == {"prompt": PROMPT}
        messages = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        asked = http.post("/tokenize", json=messages).json()["count"]
        answer = http.post("/v1/chat/completions", json=messages | {"max_tokens": 1}).json()
        assert answer["usage"]["prompt_tokens"] == asked


def test_words_that_are_not_said(client: openai.OpenAI) -> None:
    said = complete(client).choices[0].text
    assert "Paris" in said
    assert "Paris" not in complete(client, extra={"bad_words": ["Paris"]}).choices[0].text


def test_nothing_but_allowed_tokens(client: openai.OpenAI) -> None:
    choice = complete(client, extra={"allowed_token_ids": [1000, 1001], "return_token_ids": True}).choices[0]
    assert set(choice.token_ids) <= {1000, 1001}


def test_the_best_of_some(client: openai.OpenAI) -> None:
    made = complete(client, best_of=4, n=2, temperature=1, seed=3, logprobs=0)
    assert [choice.index for choice in made.choices] == [0, 1]
    means = [sum(choice.logprobs.token_logprobs) / len(choice.logprobs.tokens) for choice in made.choices]
    assert means == sorted(means, reverse=True)
    assert made.usage.completion_tokens > sum(len(choice.logprobs.tokens) for choice in made.choices)


def test_what_is_echoed_is_the_same_streamed(client: openai.OpenAI) -> None:
    whole = complete(client, echo=True, logprobs=1).choices[0]
    assert whole.text.startswith(PROMPT)
    assert "".join(whole.logprobs.tokens) == whole.text
    chunks = [chunk.choices[0] for chunk in complete(client, echo=True, logprobs=1, stream=True) if chunk.choices]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    parts = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert [offset for part in parts for offset in part.text_offset] == whole.logprobs.text_offset
    assert parts[0].token_logprobs[0] is None


def test_the_prompts_end(client: openai.OpenAI) -> None:
    extra = {"truncate_prompt_tokens": 3, "return_token_ids": True}
    whole = complete(client, extra={"return_token_ids": True}).choices[0].prompt_token_ids
    assert complete(client, extra=extra).choices[0].prompt_token_ids == whole[-3:]
    salted = complete(client, prompt=[whole * 8], extra={"cache_salt": "a"})
    again = complete(client, prompt=[whole * 8], extra={"cache_salt": "b"})
    assert [answer.usage.prompt_tokens_details.cached_tokens for answer in (salted, again)] == [0, 0]
    assert complete(client, prompt=[whole * 8], extra={"cache_salt": "a"}).usage.prompt_tokens_details.cached_tokens > 0


def test_an_answer_is_continued(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    extra = {"continue_final_message": True, "echo": True}
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=4, temperature=0, extra_body=extra
    )
    assert str(answer.choices[0].message.content).startswith("The capital of France is Paris")


def test_keys_from_the_first_to_a_revoked_one(tmp_path: Path) -> None:
    made = [run("keys", "create", "--data-dir", str(tmp_path)).stdout.strip() for _ in range(2)]
    with served(tmp_path) as running:
        alice, bob = (openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) for key in made)
        with alice, bob, openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-hr-x", max_retries=0) as nobody:
            with pytest.raises(openai.AuthenticationError):
                nobody.models.list()
            assert complete(alice, max_tokens=2).usage.completion_tokens == 2
            file = alice.files.create(file=("a.jsonl", b"{}"), purpose="batch")
            assert alice.files.retrieve(file.id).bytes == 2
            with pytest.raises(openai.NotFoundError):
                bob.files.retrieve(file.id)
            assert [row["requests"] for row in usage(bob)] == []


def usage(client: openai.OpenAI) -> list[dict[str, Any]]:
    report: Any = client.get("/usage", cast_to=object)
    rows: list[dict[str, Any]] = report["data"]
    return rows
