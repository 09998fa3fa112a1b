"""Questions about text: answered by the worker that is named, beside its jobs."""

from __future__ import annotations

import pytest

from broker.base import Message
from schemas.messages import Control, Job, SamplingParams, TextAnswer, encode
from schemas.topology import CONTROL
from tests.front.harness import MODEL, TOKENIZER, Bench, ids
from workers.front import questions


async def ask(bench: Bench, worker: str, **fields: object) -> None:
    job = Job(**{"id": "q", "model": MODEL, "reply_to": bench.reader.queue, **fields})  # type: ignore[arg-type]
    control = Control(kind="tokenize", worker=worker, question=job)
    await bench.client.publish(CONTROL, "", Message(encode(control)), confirm=False)


def answers(bench: Bench) -> list[TextAnswer]:
    return [answer for frame in bench.reader.frames for answer in frame.answers]


async def answered(bench: Bench, **fields: object) -> TextAnswer:
    before = len(answers(bench))
    await ask(bench, "w1", **fields)
    await bench.reader.until(lambda: len(answers(bench)) > before)
    return answers(bench)[-1]


async def test_a_prompt_and_a_conversation(bench: Bench) -> None:
    await bench.worker()
    answer = await answered(bench, prompt="hello 🦀")
    assert answer.token_ids == ids("hello 🦀")
    assert (answer.text, "".join(answer.tokens)[:6]) == ("hello 🦀", "hello ")
    answer = await answered(bench, messages=[{"role": "user", "content": "hi"}])
    assert answer.text == TOKENIZER.decode(answer.token_ids, skip_special_tokens=True)
    assert TOKENIZER.decode(answer.token_ids) == "<|user|>hi<|end|><|assistant|>"


async def test_token_ids_become_text(bench: Bench) -> None:
    await bench.worker()
    end = TOKENIZER.eos_token_id
    sampling = SamplingParams(skip_special_tokens=False)
    answer = await answered(bench, prompt_token_ids=[*ids("fox"), end], sampling=sampling)
    assert answer.text == "fox<|end|>"
    assert answer.tokens[-1] == "<|end|>"


async def test_faults_are_told(bench: Bench) -> None:
    await bench.worker()
    answer = await answered(bench, prompt_token_ids=[10**6])
    assert answer.error is not None
    assert (answer.error.param, answer.error.code) == ("prompt", "unknown_token_id")


async def test_others_stay_silent_and_jobs_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.worker()
    await ask(bench, "somebody else", prompt="x")
    monkeypatch.setattr(questions, "MAX_OPEN", 0)
    answer = await answered(bench, prompt="x")
    assert answer.error is not None
    assert answer.error.status == 429
    assert len(answers(bench)) == 1
