"""Prompts become token ids, and what cannot run is refused with a clear error."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tokenizers import processors

from schemas.messages import ErrorInfo, Job, SamplingParams
from tests.front import tokenizers
from workers.front import text as text_module
from workers.front.limits import InvalidJobError, Limits
from workers.front.text import Prompt, TextProcessor

LIMITS = Limits(max_model_len=50, vocab_size=330)
MESSAGES = [{"role": "user", "content": "hello"}]


def job(**fields: Any) -> Job:
    sampling = fields.pop("sampling", {})
    if not {"messages", "prompt", "prompt_token_ids"} & fields.keys():
        fields["prompt"] = "hello"
    return Job(id="j", model="m", sampling=SamplingParams(**sampling), **fields)


def prepare(job: Job, limits: Limits = LIMITS, tokenizer: Any = None) -> Prompt:
    return asyncio.run(TextProcessor(tokenizer or tokenizers.byte_level()).prepare(job, limits))


def refusal(job: Job, limits: Limits = LIMITS, tokenizer: Any = None) -> ErrorInfo:
    with pytest.raises(InvalidJobError) as caught:
        prepare(job, limits, tokenizer)
    assert caught.value.error.status == 400
    return caught.value.error


def decoded(prompt: Prompt) -> str:
    return str(tokenizers.byte_level().decode(prompt.token_ids))


def test_chat_goes_through_the_template() -> None:
    assert decoded(prepare(job(messages=MESSAGES))) == "<|user|>hello<|end|><|assistant|>"


def test_template_kwargs_reach_the_template() -> None:
    kwargs = {"add_generation_prompt": False, "suffix": "!"}
    assert decoded(prepare(job(messages=MESSAGES, template_kwargs=kwargs))) == "<|user|>hello<|end|>!"


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "return_tensors"])
def test_template_itself_is_not_the_callers(name: str) -> None:
    assert name in refusal(job(messages=MESSAGES, template_kwargs={name: "x"})).message


def test_text_parts_are_joined() -> None:
    content = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert decoded(prepare(job(messages=[{"role": "user", "content": content}]))).startswith("<|user|>hel\nlo")


def test_other_parts_are_refused() -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:"}}]
    assert refusal(job(messages=[{"role": "user", "content": content}])).param == "messages[0].content"


def test_template_refuses_messages() -> None:
    error = refusal(job(messages=[{"role": "tool", "content": "x"}]))
    assert error.param == "messages"
    assert "no tools here" in error.message


def test_no_template() -> None:
    error = refusal(job(messages=MESSAGES), tokenizer=tokenizers.byte_level(template=None))
    assert (error.code, error.param) == ("no_chat_template", "messages")


def test_completion_prompts_get_special_tokens_and_chats_do_not() -> None:
    tokenizer = tokenizers.byte_level()
    end = ("<|end|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[end]
    )
    assert prepare(job(), tokenizer=tokenizer).token_ids[0] == tokenizer.eos_token_id
    assert prepare(job(messages=MESSAGES), tokenizer=tokenizer).token_ids[0] != tokenizer.eos_token_id


def test_truncation_in_the_tokenizers_file_is_ignored() -> None:
    tokenizer = tokenizers.byte_level()
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert len(prepare(job(prompt="qqqqqq"), tokenizer=tokenizer).token_ids) == 6


def test_given_ids_are_taken_as_they_are() -> None:
    assert prepare(job(prompt_token_ids=[1, 2, 329])) == Prompt([1, 2, 329], 47)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_token_ids": [1, 330]},
        {"sampling": {"stop_token_ids": [330]}},
        {"sampling": {"logit_bias": {330: 1.0}}},
    ],
)
def test_unknown_ids_are_named(fields: dict[str, Any]) -> None:
    error = refusal(job(**fields))
    assert error.code == "unknown_token_id"
    assert "330" in error.message


def test_empty_prompt() -> None:
    assert refusal(job(prompt="")).param == "prompt"


def test_max_tokens_defaults_to_the_room_left() -> None:
    assert prepare(job(prompt_token_ids=[1] * 40)).max_tokens == 10
    assert prepare(job(prompt_token_ids=[1] * 40, sampling={"max_tokens": 10})).max_tokens == 10


@pytest.mark.parametrize(("count", "max_tokens"), [(40, 11), (50, None), (60, 1)])
def test_too_long(count: int, max_tokens: int | None) -> None:
    error = refusal(job(prompt_token_ids=[1] * count, sampling={"max_tokens": max_tokens}))
    assert error.code == "context_length_exceeded"
    assert str(count) in error.message
    assert "50" in error.message


def test_min_tokens_over_max_tokens() -> None:
    assert refusal(job(sampling={"max_tokens": 3, "min_tokens": 4})).param == "min_tokens"


@pytest.mark.parametrize(("letters", "in_thread"), [(10, False), (5_000, True)])
def test_only_long_prompts_leave_the_loops_thread(
    letters: int, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    tokenize = TextProcessor._tokenize

    def spy(self: TextProcessor, job: Job) -> list[int]:
        threads.append(threading.current_thread())
        return tokenize(self, job)

    monkeypatch.setattr(text_module.TextProcessor, "_tokenize", spy)
    prepare(job(prompt="q" * letters), Limits(10_000, 330))
    assert (threads[0] is not threading.main_thread()) is in_thread
