"""`headrace bench interference`: a backlog of batch work without end beside interactive requests, on the engine.

First the engine's capacity: tokens a second of interactive requests that never run dry. Then, at each load (a share of the
capacity), the same interactive requests at the same random times (Poisson) alone and beside the backlog. One JSON line a
load: time to the first token and between two tokens in milliseconds, both ways and as a factor, and what batch work got of
the capacity that interactive requests left. Prompts are random token ids, so none finds another's in the cache.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import numpy as np

from bench.http import quantiles
from bench.load import to_stderr
from schemas.messages import SamplingParams
from workers.engine.build import BuiltEngine, build_engine
from workers.engine.config import EngineConfig
from workers.protocol import BATCH_PRIORITY, AddRequest

WARM_UP_PART = 0.1
"""Of a run, before anything counts."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headrace bench interference", description=__doc__)
    made.add_argument("--model", default="demo", help="model folder, .gguf file, hub id or demo")
    made.add_argument("--load-format", choices=["auto", "dummy"], default="auto", help="dummy: random weights")
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, help="CPU threads")
    made.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9], help="shares of the capacity")
    made.add_argument("--seconds", type=float, default=20.0, help="of each of the runs, two a load and one before")
    made.add_argument("--prompt-tokens", type=int, default=512)
    made.add_argument(
        "--output-tokens", type=int, default=256, help="on average; from half to one and a half times that"
    )
    made.add_argument("--max-running", type=int, default=256)
    made.add_argument("--max-model-len", type=int, default=2048)
    made.add_argument("--batch-step-tokens", type=int, help="as of the worker")
    made.add_argument("--seed", type=int, default=1)
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    built = build_engine(
        EngineConfig(
            model=options.model,
            load_format=options.load_format,
            device=options.device,
            threads=options.threads,
            max_running=options.max_running,
            max_model_len=options.max_model_len,
            batch_step_tokens=options.batch_step_tokens,
        )
    )
    Run(built, options, rate=0.0).run(min(options.seconds, 5.0), full=True)  # kernels are compiled, caches are warm
    to_stderr("capacity ...")
    full = Run(built, options, rate=0.0)
    full.run(options.seconds, full=True)
    to_stderr(f"capacity {full.rate(batch=False):.0f} tokens a second")
    for load in options.loads:
        print(json.dumps(compare(built, options, load, full.rate(batch=False))), flush=True)


def compare(built: BuiltEngine, options: argparse.Namespace, load: float, capacity: float) -> dict[str, Any]:
    """What is printed of one load."""
    rate = load * capacity / options.output_tokens
    alone, beside = Run(built, options, rate), Run(built, options, rate)
    alone.run(options.seconds)
    beside.run(options.seconds, backlog=True)
    figures = {"alone": alone.figures(), "beside": beside.figures()}
    left = capacity - beside.rate(batch=False)
    return {
        "model": options.model,
        "load": load,
        "capacity_tok_s": round(capacity, 1),
        "interactive_request_s": round(rate, 3),
        **figures,
        "ttft_p99_factor": _factor(figures, "ttft_ms"),
        "itl_p99_factor": _factor(figures, "itl_ms"),
        "batch_share_of_what_is_left": round(beside.rate(batch=True) / left, 3) if left > 0 else None,
    }


def _factor(figures: dict[str, dict[str, Any]], name: str) -> float | None:
    alone, beside = figures["alone"][name]["p99"], figures["beside"][name]["p99"]
    return round(beside / alone, 3) if alone and beside else None


@dataclass(slots=True)
class Seen:
    """Of one request: when it came, and when each of its tokens did."""

    arrived: float
    batch: bool
    times: list[float] = field(default_factory=list)


class Run:
    """The engine for some seconds under one load. It is empty before and after."""

    _numbers = count()

    def __init__(self, built: BuiltEngine, options: argparse.Namespace, rate: float) -> None:
        self._engine = built.engine
        self._vocabulary = built.ready.vocab_size
        self._options = options
        self._seen: dict[str, Seen] = {}
        self._began = self._counted = self._ended = 0.0
        self._arrivals = self._moments(rate)
        self._first = self._next = next(self._arrivals)
        self._draws = {batch: np.random.default_rng([options.seed, batch]) for batch in (False, True)}
        self._preemptions = -built.engine.stats().preemptions

    def _moments(self, rate: float) -> Iterator[float]:
        moment, draw = 0.0, random.Random(self._options.seed)
        while True:
            moment += draw.expovariate(rate) if rate else float("inf")
            yield moment

    def run(self, seconds: float, *, backlog: bool = False, full: bool = False) -> None:
        """`backlog`: batch requests never run dry; `full`: interactive ones do not."""
        self._began = time.perf_counter()
        self._counted, self._ended = self._began + WARM_UP_PART * seconds, self._began + seconds
        while (now := time.perf_counter()) < self._ended:
            self._arrive(now, backlog, full)
            if not self._engine.has_work:
                time.sleep(max(0.0, min(self._began + self._next, self._ended) - now))
                continue
            self._take()
        self._preemptions += self._engine.stats().preemptions
        self._engine.abort(list(self._seen))
        while self._engine.has_work:
            self._engine.step()

    def _arrive(self, now: float, backlog: bool, full: bool) -> None:
        while self._began + self._next <= now:
            self._add(self._began + self._next, batch=False)
            self._next = next(self._arrivals)
        # Before the first of them comes batch work has the engine to itself, and its first step would be a long one.
        if full or (backlog and now > self._began + self._first):
            stats, running = self._engine.stats(), self._options.max_running
            missing = running // 4 - stats.waiting if stats.running else running
            for _ in range(missing):
                self._add(now, batch=backlog)

    def _add(self, moment: float, *, batch: bool) -> None:
        options, draw = self._options, self._draws[batch]
        prompt = draw.integers(0, self._vocabulary, options.prompt_tokens).tolist()
        length = int(draw.integers(options.output_tokens // 2, options.output_tokens * 3 // 2 + 1))
        sampling = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, seed=0)
        name = f"{'batch' if batch else 'interactive'}-{next(self._numbers)}"
        self._seen[name] = Seen(moment, batch)
        self._engine.add(AddRequest(name, prompt, sampling, priority=BATCH_PRIORITY if batch else 0))

    def _take(self) -> None:
        outputs = self._engine.step()
        now = time.perf_counter()
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
            self._seen[output.id].times.append(now)

    def rate(self, *, batch: bool) -> float:
        """Tokens a second of a class."""
        tokens = sum(self._counts(each) for seen in self._seen.values() if seen.batch == batch for each in seen.times)
        return tokens / (self._ended - self._counted)

    def _counts(self, moment: float) -> bool:
        return self._counted <= moment <= self._ended

    def figures(self) -> dict[str, Any]:
        """Of interactive requests that came after the warm-up."""
        counted = [s for s in self._seen.values() if not s.batch and s.times and s.arrived >= self._counted]
        gaps = [later - earlier for seen in counted for earlier, later in pairwise(seen.times)]
        return {
            "requests": len(counted),
            "ttft_ms": quantiles([seen.times[0] - seen.arrived for seen in counted], 50, 90, 99),
            "itl_ms": quantiles(gaps, 50, 99),
            "interactive_tok_s": round(self.rate(batch=False), 1),
            "batch_tok_s": round(self.rate(batch=True), 1),
            "preemptions": self._preemptions,
        }
