"""Greedy token ids over HTTP are those of transformers on the same weights, in fp32, however they are scheduled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from kernels.prefill_attention import PrefillContext, Span
from kernels.rope import CacheSlots
from tests.e2e.service import MODEL, Service, served
from workers.engine.build import build_engine
from workers.engine.config import EngineConfig
from workers.front.token_bytes import TokenBytes, decoder_kind
from workers.model.batch import Batch
from workers.model.loaders.export import export_folder
from workers.model.loaders.resolve import resolve
from workers.model.loaders.tokenizer import load_tokenizer

pytestmark = pytest.mark.model
NEW_TOKENS = 64
FP32 = ("--dtype", "float32", "--device", "cpu")
PROMPTS = [
    "What is the capital of France?",
    "Hi",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child in two sentences.",
    "List the first ten prime numbers.",
    "def fibonacci(n):",
    "Translate to German: The weather is nice today, and we are going for a walk.",
    "Überraschung! Café, naïve, façade: what do these words mean?",
    "日本の首都はどこですか。",
    "🙂🚀 What do these emoji stand for?",
    "Solve 12 * 13 + 7, step by step.",
    "Who wrote 'Hamlet', and when?",
    'Give me JSON with the keys "name" and "age".',
    "SELECT name FROM users WHERE",
    "Once upon a time, in a land far away, there lived",
    "x" * 70,
    "1 2 3 4 5 6 7 8 9 10 " * 6,
    "Summarize this. "
    + "A queue decouples those who send work from those who do it, so that each may fail alone. " * 6,
    "Tell a joke about a mill, a river and a wheel.\n\nMake it short.\n",
    "Why is the sky blue? Why is the sea blue? Why is grass green? " * 4,
]


@dataclass(frozen=True)
class Reference:
    """What transformers says: prompts as token ids, continuations, and its model."""

    prompts: list[list[int]]
    expected: list[list[int]]
    model: Any
    folder: Path
    id_of: dict[bytes, int]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    source = resolve("demo")
    folder = export_folder(source, tmp_path_factory.mktemp("exported"), torch.float32)
    tokenizer = load_tokenizer(source)
    prompts = [
        tokenizer.apply_chat_template(chat(prompt), add_generation_prompt=True, tokenize=True, return_dict=False)
        for prompt in PROMPTS
    ]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kind = decoder_kind(tokenizer.backend_tokenizer)
    assert kind is not None
    table = TokenBytes(tokenizer.backend_tokenizer, kind)
    return Reference(
        prompts, continuations(model, prompts), model, folder, {table[i]: i for i in range(len(tokenizer))}
    )


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@torch.inference_mode()
def continuations(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """transformers' greedy continuations, all prompts in one batch with padding on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config.eos_token_id = None
    made = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    return [row[width:].tolist() for row in made]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("plain"), *FP32) as running:
        yield running


def ask(reference: Reference, client: httpx.Client, index: int) -> tuple[list[int], int]:
    """Token ids of one answer, told from their bytes, and how many tokens of its prompt were cached."""
    body = {
        "model": MODEL,
        "messages": chat(PROMPTS[index]),
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": True,
    }
    got = client.post("/v1/chat/completions", json=body)
    assert got.status_code == 200, got.text
    answer = got.json()
    assert answer["usage"]["prompt_tokens"] == len(reference.prompts[index])
    ids = [reference.id_of[bytes(entry["bytes"])] for entry in answer["choices"][0]["logprobs"]["content"]]
    return ids, answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def check(reference: Reference, service: Service, at_once: int, indices: Sequence[int] = range(len(PROMPTS))) -> int:
    """Ask for these prompts and compare; returns how many prompt tokens were cached."""
    with service.client() as client, ThreadPoolExecutor(at_once) as lanes:
        answers = list(lanes.map(partial(ask, reference, client), indices))
    for index, (ids, _) in zip(indices, answers, strict=True):
        assert ids == reference.expected[index], PROMPTS[index]
    return sum(cached for _, cached in answers)


def test_twenty_prompts(reference: Reference, plain: Service) -> None:
    """A few at a time, the last of them alone."""
    assert len(PROMPTS) == 20
    check(reference, plain, 5)
    check(reference, plain, 1, [2, 17])


def test_sixteen_at_once_with_prefix_cache_hits(reference: Reference, plain: Service) -> None:
    """The prompts once more, whose full blocks are in the cache by now."""
    check(reference, plain, 16)
    blocks = [(len(prompt) - 1) // 16 * 16 for prompt in reference.prompts]
    assert check(reference, plain, 16, [17, 19]) == blocks[17] + blocks[19]


def test_chunked_prefill(reference: Reference, tmp_path: Path) -> None:
    """Sixteen at once without a prefix cache, no step longer than 24 tokens."""
    with served(tmp_path, *FP32, "--max-batched-tokens", "24", "--no-prefix-caching") as running:
        assert check(reference, running, 16) == 0
        assert running.metrics()["headrace_model_preemptions_total"] == 0


def test_preemption(reference: Reference, tmp_path: Path) -> None:
    """Sixteen at once that need three times the cache there is."""
    with served(tmp_path, *FP32, "--kv-blocks", "40") as running:
        check(reference, running, 16)
        running.assert_idle()
        assert running.metrics()["headrace_model_preemptions_total"] > 0


@torch.inference_mode()
def test_logprobs_of_prompts(reference: Reference, plain: Service) -> None:
    """Of every token of all prompts within 1e-3, echoed and by themselves, of each of two choices; some are cached."""
    body = {
        "model": MODEL,
        "prompt": reference.prompts,
        "max_tokens": 1,
        "temperature": 0,
        "n": 2,
        "echo": True,
        "logprobs": 2,
        "prompt_logprobs": 0,
    }
    with plain.client() as client:
        got = client.post("/v1/completions", json=body)
    assert got.status_code == 200, got.text
    choices = got.json()["choices"]
    assert len(choices) == 2 * len(reference.prompts)
    for index, prompt in enumerate(reference.prompts):
        theirs = reference.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        wanted = [row[token].item() for row, token in zip(theirs, prompt[1:], strict=False)]
        for choice in choices[2 * index : 2 * index + 2]:
            first, *echoed = choice["logprobs"]["token_logprobs"]
            assert first is None
            assert echoed[:-1] == pytest.approx(wanted, abs=1e-3)
            assert echoed[-1] == pytest.approx(theirs[-1].max().item(), abs=1e-3)
            unknown, *scored = choice["prompt_logprobs"]
            assert unknown is None
            alone = [position[str(token)]["logprob"] for position, token in zip(scored, prompt[1:], strict=True)]
            assert alone == echoed[:-1]


@torch.inference_mode()
def test_logits(reference: Reference) -> None:
    """All positions of every prompt within 1e-3 relative."""
    config = EngineConfig(model="demo", dtype="float32", device="cpu", kv_blocks=32)
    runner = build_engine(config).engine.runner
    for prompt in reference.prompts:
        ids = torch.tensor(prompt)
        ours = runner.model.forward(whole_prompt(ids, runner.kv_cache), runner.kv_cache)
        theirs = reference.model(ids[None]).logits[0]
        errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        assert errors.max() < 1e-3
        assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-3


def whole_prompt(ids: torch.Tensor, cache: torch.Tensor) -> Batch:
    """One sequence from its first token on, in the cache's blocks from 1 on."""
    blocks, heads, size = cache.shape[2:5]
    positions = torch.arange(len(ids))
    tables = torch.arange(1, cache.shape[2], dtype=torch.int32)[None]
    prefill = PrefillContext([Span(0, 0, len(ids), len(ids))], tables, None)
    return Batch(ids, positions, CacheSlots(positions + size, blocks, heads, size), 0, None, prefill, None)
