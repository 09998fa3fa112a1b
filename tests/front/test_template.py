"""Chat templates that come with a job: for workers that trust their callers, in the sandbox, and with clear errors."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from schemas.messages import ErrorInfo, Job, SamplingParams
from tests.front import tokenizers
from workers.front import text as text_module
from workers.front.limits import InvalidJobError, Limits
from workers.front.text import TextProcessor

LIMITS = Limits(max_model_len=200, vocab_size=330)
MESSAGES = [{"role": "user", "content": "hello"}]


def job(template: str | None, **fields: Any) -> Job:
    return Job(id="j", model="m", messages=MESSAGES, chat_template=template, sampling=SamplingParams(), **fields)


async def rendered(job: Job, *, own: str | None = tokenizers.TEMPLATE) -> str:
    tokenizer = tokenizers.byte_level(own)
    prompt = await TextProcessor(tokenizer, trust_request_templates=True).prepare(job, LIMITS)
    return str(tokenizer.decode(prompt.token_ids))


async def refusal(job: Job, *, trusted: bool = True) -> ErrorInfo:
    processor = TextProcessor(tokenizers.byte_level(), trust_request_templates=trusted)
    with pytest.raises(InvalidJobError) as caught:
        await processor.prepare(job, LIMITS)
    assert (caught.value.error.status, caught.value.error.param) == (400, "chat_template")
    return caught.value.error


@pytest.mark.parametrize("own", [tokenizers.TEMPLATE, None])
async def test_it_takes_the_place_of_the_models_own(own: str | None) -> None:
    template = (
        "[{{ messages[0].content }}]{{ x }}{% if tools %}{{ tools[0].function.name }}{% endif %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    tool = {"type": "function", "function": {"name": "f"}}
    assert await rendered(job(template, template_kwargs={"x": 7}), own=own) == "[hello]7>"
    # Calls are read by the syntax of the worker's model, so tools need one that has it.
    made = job(template, tools=[tool])
    assert await rendered(made, own="{{ tools }}<tool_call>") == "[hello]f>"


async def test_it_is_refused_where_callers_are_not_trusted() -> None:
    error = await refusal(job("x"), trusted=False)
    assert "--trust-request-chat-template" in error.message


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{{ messages[0].content.__class__.__mro__ }}", "SecurityError"),
        ("{% set _ = messages.append(1) %}", "SecurityError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for i in range(1000000) %}{% endfor %}", "OverflowError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
async def test_its_faults_are_named(template: str, reason: str) -> None:
    assert reason in (await refusal(job(template))).message


async def test_one_that_does_not_end_is_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()

    def never_ends(*_: Any, **__: Any) -> str:
        ends.wait(10)
        return ""

    monkeypatch.setattr(text_module, "OWN_TEMPLATE_SECONDS", 0.02)
    tokenizer = tokenizers.byte_level()
    tokenizer.apply_chat_template = never_ends
    processor = TextProcessor(tokenizer, trust_request_templates=True)
    try:
        with pytest.raises(InvalidJobError, match="ran for more than"):
            await processor.prepare(job("x"), LIMITS)
    finally:
        ends.set()
