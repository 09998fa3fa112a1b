"""The engine in your own process, for research and benchmarks: no broker, no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec
import numpy as np

from schemas.messages import EmbeddingParams, FinishReason, SamplingParams
from workers.engine.build import build_engine
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.grammar import tokenizer_json
from workers.model.loaders.tokenizer import load_tokenizer
from workers.protocol import AddRequest, TokenLogprobs, TokenOutput

Prompt = str | Sequence[int]


@dataclass(slots=True)
class Generation:
    """One finished output. `text` is decoded without special tokens."""

    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class LLM:
    """`LLM("demo").generate(["Hello"], SamplingParams(max_tokens=16))`. Settings are those of EngineConfig.

    Not thread-safe. Stop strings are the server's affair: `sampling.stop` is refused here.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        built = build_engine(EngineConfig(model=model, **settings))
        self.engine, self.ready = built.engine, built.ready
        self._path = built.path
        self._tokenizer: Any = None
        self._ids = count()
        self._queues: dict[str, asyncio.Queue[TokenOutput]] = {}
        self._driver: asyncio.Task[None] | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._path)
        return self._tokenizer

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Generation]:
        """Run all prompts to their end, batched. One set of params serves all, or give one for each."""
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        results: dict[str, Generation] = {}
        for prompt, sampling in zip(prompts, each, strict=True):
            request = self._request(prompt, sampling)
            results[request.id] = Generation(request.prompt_token_ids)
            self.engine.add(request)
        while self.engine.has_work:
            for output in self.engine.step():
                self._collect(results[output.id], output)
        for result in results.values():
            if self._tokenizer is not None or any(isinstance(prompt, str) for prompt in prompts):
                result.text = self.tokenizer.decode(result.token_ids, skip_special_tokens=True)
        return list(results.values())

    def embed(self, inputs: Sequence[Prompt], wanted: EmbeddingParams | None = None) -> list[list[float]]:
        """A vector of each input, of an embedding model (or one loaded with `task="embed"`)."""
        made: dict[str, list[float]] = {}
        for each in inputs:
            ids = self.tokenizer(each)["input_ids"] if isinstance(each, str) else list(each)
            name = f"llm-{next(self._ids)}"
            made[name] = []
            embedding = wanted or EmbeddingParams()
            self.engine.add(AddRequest(name, ids, SamplingParams(max_tokens=1), embedding=embedding))
        while self.engine.has_work:
            for output in self.engine.step():
                made[output.id] = np.frombuffer(output.vector or b"", "<f4").tolist()
        return list(made.values())

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[TokenOutput]:
        """Yield outputs as they are made; streams of one event loop run as one batch. Leaving early aborts."""
        request = self._request(prompt, params or SamplingParams())
        queue = self._queues[request.id] = asyncio.Queue()
        self.engine.add(request)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        try:
            while True:
                output = await queue.get()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            del self._queues[request.id]
            self.engine.abort([request.id])

    async def _drive(self) -> None:
        while self.engine.has_work:
            for output in self.engine.step():
                if output.id in self._queues:
                    self._queues[output.id].put_nowait(output)
            await asyncio.sleep(0)

    def _request(self, prompt: Prompt, sampling: SamplingParams) -> AddRequest:
        if sampling.stop or sampling.bad_words or sampling.num_outputs != 1:
            raise ValueError(
                "stop strings, bad words and n > 1 are the server's affair; use stop_token_ids, bad_token_ids, or repeat "
                "the prompt"
            )
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        if sampling.grammar is not None and isinstance(self.engine, Engine) and self.engine.grammars is None:
            self.engine.load_grammars(tokenizer_json(self.tokenizer))
        number = next(self._ids)
        seed = number if sampling.seed is None else sampling.seed
        return AddRequest(f"llm-{number}", ids, msgspec.structs.replace(sampling, seed=seed))

    @staticmethod
    def _collect(result: Generation, output: TokenOutput) -> None:
        result.token_ids += output.token_ids
        result.logprobs += output.logprobs or []
        result.finish_reason = output.finish_reason
