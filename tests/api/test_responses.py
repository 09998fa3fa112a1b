"""Results to whole bodies."""

from __future__ import annotations

from api.requests import CHAT_COMPLETIONS, PLAIN_COMPLETIONS
from api.responses import body_from_result, body_from_results
from schemas.messages import Choice, PositionLogprobs, Result, TokenLogprob, Usage
from schemas.openai.chat import ChatCompletion
from schemas.openai.completions import Completion

LOGPROBS = [
    PositionLogprobs(TokenLogprob("He", -0.5, [72, 101]), [TokenLogprob("He", -0.5, [72, 101])]),
    PositionLogprobs(TokenLogprob("y", float("-inf"), [121]), [TokenLogprob("llo", -0.1, [108])]),
]


def result(job: str, *texts: str, logprobs: list[PositionLogprobs] | None = None) -> Result:
    choices = [
        Choice(index=index, text=text, token_ids=[1], finish_reason="stop", logprobs=logprobs)
        for index, text in enumerate(texts)
    ]
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    return Result(job=job, model="m", outcome="completed", usage=usage, choices=choices[::-1], created=12.5)


def test_chat_body() -> None:
    body = body_from_result(CHAT_COMPLETIONS, result("j", "Hey", "You", logprobs=LOGPROBS))
    ChatCompletion.model_validate(body)
    assert (body["id"], body["object"], body["created"]) == ("chatcmpl-j", "chat.completion", 12)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Hey", "You"]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    content = body["choices"][0]["logprobs"]["content"]
    assert content[0]["bytes"] == [72, 101]
    assert content[1]["logprob"] == -9999.0


def test_prompts_are_numbered_on() -> None:
    body = body_from_results(PLAIN_COMPLETIONS, "cmpl-x", [result("x-0", "a", "b"), result("x-1", "c")])
    Completion.model_validate(body)
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "a"), (1, "b"), (2, "c")]
    assert body["usage"]["total_tokens"] == 10


def test_completion_logprobs() -> None:
    body = body_from_result(PLAIN_COMPLETIONS, result("j", "Hey", logprobs=LOGPROBS))
    assert body["choices"][0]["logprobs"] == {
        "text_offset": [0, 2],
        "token_logprobs": [-0.5, -9999.0],
        "tokens": ["He", "y"],
        "top_logprobs": [{"He": -0.5}, {"llo": -0.1, "y": -9999.0}],
    }
